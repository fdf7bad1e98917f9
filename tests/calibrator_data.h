/*
 * Random Q, K and V of one shape, and short ways to calibrate with them.
 */
#ifndef HEADROOM_TESTS_CALIBRATOR_DATA_H
#define HEADROOM_TESTS_CALIBRATOR_DATA_H

#include <criterion/criterion.h>
#include <stdlib.h>

#include "headroom/calibration.h"
#include "test_random.h"

enum { TOKENS = 150, HEADS = 4, KV_HEADS = 2, DIM = 32 };

typedef struct data {
    int64_t tokens;
    float *q, *k, *v;
} data;

static inline data make_data(uint64_t seed, int64_t tokens)
{
    data d = {.tokens = tokens};
    test_random random = {seed};
    float **tensors[] = {&d.q, &d.k, &d.v};
    for (int i = 0; i < 3; i++) {
        int64_t count = tokens * (i ? KV_HEADS : HEADS) * DIM;
        *tensors[i] = malloc((size_t)count * sizeof(float));
        cr_assert_not_null(*tensors[i]);
        random_gaussians(&random, *tensors[i], count);
    }
    return d;
}

static inline void free_data(data *d)
{
    free(d->q);
    free(d->k);
    free(d->v);
}

static inline hr_tensor view(float *values, int64_t tokens, int64_t heads)
{
    return hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){tokens, heads, DIM}, values);
}

/* Observes tokens first .. first + count - 1 of d. */
static inline hr_status observe(hr_calibrator *calibrator, int32_t layer, const data *d,
                                int64_t first, int64_t count)
{
    hr_tensor q = view(d->q + first * HEADS * DIM, count, HEADS);
    hr_tensor k = view(d->k + first * KV_HEADS * DIM, count, KV_HEADS);
    hr_tensor v = view(d->v + first * KV_HEADS * DIM, count, KV_HEADS);
    return hr_calibrator_observe(calibrator, layer, &q, &k, &v);
}

static inline void observe_ok(hr_calibrator *calibrator, int32_t layer, const data *d)
{
    cr_assert_eq(observe(calibrator, layer, d, 0, d->tokens), HR_OK, "%s", hr_last_error());
}

static inline hr_calibrator *create(const char *recipe, const char *observer)
{
    hr_calibrator_options options = {.observer = observer};
    hr_calibrator *calibrator;
    cr_assert_eq(hr_recipe_parse(recipe, &options.recipe), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_calibrator_create(&options, &calibrator), HR_OK, "%s", hr_last_error());
    return calibrator;
}

static inline hr_profile *finish(hr_calibrator *calibrator)
{
    hr_profile *profile;
    hr_status status = hr_calibrator_finish(calibrator, NULL, 0, &profile);
    cr_assert_eq(status, HR_OK, "%s", hr_last_error());
    return profile;
}

static inline hr_profile_layer layer_of(const hr_profile *profile, int32_t layer)
{
    hr_profile_layer out;
    cr_assert_eq(hr_profile_find_layer(profile, layer, &out), HR_OK, "%s", hr_last_error());
    return out;
}

static inline void assert_same_layer(const hr_profile_layer *a, const hr_profile_layer *b)
{
    const struct {
        const float *a, *b;
        int count;
    } arrays[] = {
        {a->q_scale, b->q_scale, HEADS},
        {a->k_scale, b->k_scale, KV_HEADS},
        {a->v_scale, b->v_scale, KV_HEADS},
        {a->k_mean, b->k_mean, KV_HEADS * DIM},
        {a->q_amax, b->q_amax, HEADS * DIM},
        {a->k_amax, b->k_amax, KV_HEADS * DIM},
        {a->v_amax, b->v_amax, KV_HEADS * DIM},
        {a->v_channel_scale, b->v_channel_scale, KV_HEADS * DIM},
    };
    cr_assert_eq(a->tokens, b->tokens);
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        for (int j = 0; j < arrays[i].count; j++)
            cr_assert(arrays[i].a[j] == arrays[i].b[j], "array %zu element %d: %.9g and %.9g", i, j,
                      arrays[i].a[j], arrays[i].b[j]);
}

#endif
