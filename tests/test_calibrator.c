/*
 * Calibration: scales are the known maxima over the format's largest code, before and after the
 * transforms that packing applies; shards, threads and failed calls change nothing.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/calibration.h"
#include "headroom/format.h"
#include "observer.h"
#include "test_random.h"
#include "transform.h"

enum { TOKENS = 150, HEADS = 4, KV_HEADS = 2, DIM = 32 };

typedef struct data {
    int64_t tokens;
    float *q, *k, *v;
} data;

static data make_data(uint64_t seed, int64_t tokens)
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

static void free_data(data *d)
{
    free(d->q);
    free(d->k);
    free(d->v);
}

static hr_tensor view(float *values, int64_t tokens, int64_t heads)
{
    return hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){tokens, heads, DIM}, values);
}

/* Observes tokens first .. first + count - 1 of d. */
static hr_status observe(hr_calibrator *calibrator, int32_t layer, const data *d, int64_t first,
                         int64_t count)
{
    hr_tensor q = view(d->q + first * HEADS * DIM, count, HEADS);
    hr_tensor k = view(d->k + first * KV_HEADS * DIM, count, KV_HEADS);
    hr_tensor v = view(d->v + first * KV_HEADS * DIM, count, KV_HEADS);
    return hr_calibrator_observe(calibrator, layer, &q, &k, &v);
}

static void observe_ok(hr_calibrator *calibrator, int32_t layer, const data *d)
{
    cr_assert_eq(observe(calibrator, layer, d, 0, d->tokens), HR_OK, "%s", hr_last_error());
}

static hr_calibrator *create(const char *recipe, const char *observer)
{
    hr_calibrator_options options = {.observer = observer};
    hr_calibrator *calibrator;
    cr_assert_eq(hr_recipe_parse(recipe, &options.recipe), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_calibrator_create(&options, &calibrator), HR_OK, "%s", hr_last_error());
    return calibrator;
}

static hr_profile *finish(hr_calibrator *calibrator)
{
    hr_profile *profile;
    hr_status status = hr_calibrator_finish(calibrator, NULL, 0, &profile);
    cr_assert_eq(status, HR_OK, "%s", hr_last_error());
    return profile;
}

static hr_profile_layer layer_of(const hr_profile *profile, int32_t layer)
{
    hr_profile_layer out;
    cr_assert_eq(hr_profile_find_layer(profile, layer, &out), HR_OK, "%s", hr_last_error());
    return out;
}

/* Largest magnitude of one head of [tokens, heads, DIM]. */
static float head_max(const float *x, int64_t tokens, int heads, int head)
{
    float max = 0;
    for (int64_t t = 0; t < tokens; t++)
        for (int c = 0; c < DIM; c++)
            max = fmaxf(max, fabsf(x[(t * heads + head) * DIM + c]));
    return max;
}

static void assert_same_layer(const hr_profile_layer *a, const hr_profile_layer *b)
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

Test(calibrator, scales_are_each_heads_maximum_over_the_largest_code)
{
    data d = make_data(1, TOKENS);
    d.q[(17 * HEADS + 2) * DIM + 5] = -40;
    d.v[(149 * KV_HEADS + 1) * DIM + 31] = 90;
    hr_calibrator *calibrator = create("fp8", NULL);
    cr_assert_eq(hr_calibrator_passes(calibrator), 1);
    observe_ok(calibrator, 3, &d);
    hr_profile *profile = finish(calibrator);
    hr_profile_layer layer = layer_of(profile, 3);
    cr_assert_eq(layer.num_heads, HEADS);
    cr_assert_eq(layer.num_kv_heads, KV_HEADS);
    cr_assert_eq(layer.head_dim, DIM);
    cr_assert_eq(layer.tokens, TOKENS);
    for (int h = 0; h < HEADS; h++)
        cr_assert(layer.q_scale[h] == head_max(d.q, TOKENS, HEADS, h) / 448);
    for (int h = 0; h < KV_HEADS; h++) {
        cr_assert(layer.k_scale[h] == head_max(d.k, TOKENS, KV_HEADS, h) / 448);
        cr_assert(layer.v_scale[h] == head_max(d.v, TOKENS, KV_HEADS, h) / 448);
    }
    cr_assert(layer.q_scale[2] == 40.0f / 448);
    cr_assert(layer.q_amax[2 * DIM + 5] == 40);
    cr_assert(layer.v_channel_scale[DIM + 31] == 90.0f / 448);
    cr_assert_eq(hr_profile_get_info(profile).warning_count, 0);
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    free_data(&d);
}

Test(calibrator, tensor_granularity_has_one_scale_for_all_heads)
{
    data d = make_data(2, TOKENS);
    hr_calibrator *calibrator = create("fp8:qkv.granularity=tensor", "absmax");
    observe_ok(calibrator, 0, &d);
    hr_profile *profile = finish(calibrator);
    hr_profile_layer layer = layer_of(profile, 0);
    float max = 0;
    for (int h = 0; h < HEADS; h++)
        max = fmaxf(max, head_max(d.q, TOKENS, HEADS, h));
    for (int h = 0; h < HEADS; h++)
        cr_assert(layer.q_scale[h] == max / 448);
    cr_assert(layer.k_scale[0] == layer.k_scale[1]);
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    free_data(&d);
}

/* The pooled percentile is that of all heads' values, not the maximum of the heads' percentiles. */
Test(calibrator, tensor_percentile_pools_the_heads_values)
{
    data d = make_data(3, TOKENS);
    for (int64_t t = 0; t < TOKENS; t++)
        for (int c = 0; c < DIM; c++) {
            d.k[(t * KV_HEADS + 0) * DIM + c] = 1;
            d.k[(t * KV_HEADS + 1) * DIM + c] = 8;
        }
    hr_calibrator *pooled = create("fp8:qkv.granularity=tensor", "percentile:75");
    observe_ok(pooled, 0, &d);
    hr_profile *profile = finish(pooled);
    cr_assert(layer_of(profile, 0).k_scale[0] == 8.0f / 448);
    hr_profile_free(profile);
    hr_calibrator_free(pooled);

    /* With head 1 at the 60th percentile of the pool being small, a maximum over heads would
     * differ. */
    for (int64_t t = 0; t < TOKENS * 7 / 10; t++)
        for (int c = 0; c < DIM; c++)
            d.k[(t * KV_HEADS + 1) * DIM + c] = 1;
    hr_calibrator *again = create("fp8:qkv.granularity=tensor", "percentile:80");
    observe_ok(again, 0, &d);
    profile = finish(again);
    float edge = layer_of(profile, 0).k_scale[0] * 448;
    cr_assert(edge >= 1 && edge <= 1 + 1.0f / 128, "%g", edge);
    hr_profile_free(profile);
    hr_calibrator_free(again);
    free_data(&d);
}

/* Scales must cover what packing sees: the rotated rows, by the transform packing uses. */
Test(calibrator, rotation_is_applied_before_observing)
{
    data d = make_data(4, TOKENS);
    hr_calibrator_options options = {.hadamard_seed = 99};
    hr_calibrator *calibrator;
    cr_assert_eq(hr_recipe_parse("fp8:qk.transform=hadamard", &options.recipe), HR_OK);
    cr_assert_eq(hr_calibrator_create(&options, &calibrator), HR_OK);
    observe_ok(calibrator, 0, &d);
    hr_profile *profile = finish(calibrator);
    hr_profile_layer layer = layer_of(profile, 0);
    float raw = head_max(d.q, TOKENS, HEADS, 1), v_max = head_max(d.v, TOKENS, KV_HEADS, 0);
    float signs[DIM];
    hr_hadamard_signs(99, DIM, signs);
    for (int64_t row = 0; row < TOKENS * HEADS; row++)
        hr_hadamard_rotate(signs, DIM, d.q + row * DIM);
    float rotated = head_max(d.q, TOKENS, HEADS, 1);
    cr_assert(rotated != raw);
    cr_assert(layer.q_scale[1] == rotated / 448);
    cr_assert(layer.v_scale[0] == v_max / 448, "V is not rotated");
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    free_data(&d);
}

static const char smoothed[] = "fp8:k.transform=mean";

Test(calibrator, smoothed_keys_take_two_passes)
{
    data d = make_data(5, TOKENS);
    for (int64_t t = 0; t < TOKENS; t++)
        d.k[(t * KV_HEADS + 1) * DIM + 7] += 100;
    hr_calibrator *calibrator = create(smoothed, NULL);
    cr_assert_eq(hr_calibrator_passes(calibrator), 2);
    observe_ok(calibrator, 0, &d);
    hr_profile *profile = NULL;
    cr_assert_eq(hr_calibrator_finish(calibrator, NULL, 0, &profile), HR_ERROR_INVALID_ARGUMENT);
    cr_assert(strstr(hr_last_error(), "two passes"));
    cr_assert_eq(hr_calibrator_next_pass(calibrator), HR_OK);
    observe_ok(calibrator, 0, &d);
    cr_assert_eq(hr_calibrator_next_pass(calibrator), HR_ERROR_INVALID_ARGUMENT);
    profile = finish(calibrator);
    hr_profile_layer layer = layer_of(profile, 0);

    double sum = 0;
    for (int64_t t = 0; t < TOKENS; t++)
        sum += d.k[(t * KV_HEADS + 1) * DIM + 7];
    cr_assert_float_eq(layer.k_mean[DIM + 7], sum / TOKENS, 1e-5);
    cr_assert(layer.k_amax[DIM + 7] > 97, "channel maxima are those before smoothing");
    for (int64_t t = 0; t < TOKENS; t++)
        for (int h = 0; h < KV_HEADS; h++)
            hr_mean_subtract(layer.k_mean + h * DIM, DIM, d.k + (t * KV_HEADS + h) * DIM);
    for (int h = 0; h < KV_HEADS; h++)
        cr_assert(layer.k_scale[h] == head_max(d.k, TOKENS, KV_HEADS, h) / 448);
    cr_assert(layer.q_scale[0] == head_max(d.q, TOKENS, HEADS, 0) / 448);
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    free_data(&d);
}

Test(calibrator, the_second_pass_must_see_the_same_data)
{
    data d = make_data(6, TOKENS);
    hr_calibrator *calibrator = create(smoothed, NULL);
    observe_ok(calibrator, 0, &d);
    cr_assert_eq(hr_calibrator_next_pass(calibrator), HR_OK);
    cr_assert_eq(observe(calibrator, 1, &d, 0, TOKENS), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "layer 1 was not observed in the first pass"));
    cr_assert_eq(observe(calibrator, 0, &d, 0, TOKENS - 1), HR_OK);
    hr_profile *profile;
    cr_assert_eq(hr_calibrator_finish(calibrator, NULL, 0, &profile), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "150 tokens, the second 149"), "%s", hr_last_error());
    hr_calibrator_free(calibrator);
    free_data(&d);
}

/* Dynamic scales need no pass of their own, but the mean and scales to look at are there. */
Test(calibrator, dynamic_recipes_take_one_pass)
{
    data d = make_data(7, TOKENS);
    hr_calibrator *calibrator = create("int8", NULL);
    cr_assert_eq(hr_calibrator_passes(calibrator), 1);
    observe_ok(calibrator, 0, &d);
    hr_profile *profile = finish(calibrator);
    hr_profile_layer layer = layer_of(profile, 0);
    cr_assert(layer.v_scale[0] == head_max(d.v, TOKENS, KV_HEADS, 0) / 127);
    double sum = 0;
    for (int64_t t = 0; t < TOKENS; t++)
        sum += d.k[t * KV_HEADS * DIM];
    cr_assert_float_eq(layer.k_mean[0], sum / TOKENS, 1e-6);
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    free_data(&d);
}

Test(calibrator, plain_formats_have_scale_one)
{
    data d = make_data(8, TOKENS);
    hr_calibrator *calibrator = create("bf16", "mse");
    observe_ok(calibrator, 0, &d);
    hr_profile *profile = finish(calibrator);
    cr_assert(layer_of(profile, 0).k_scale[1] == 1);
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    free_data(&d);
}

static void check_merge(const char *recipe, const char *observer)
{
    data d = make_data(9, TOKENS);
    for (int64_t i = 0; i < TOKENS * KV_HEADS * DIM; i++)
        d.k[i] *= expf(3 * d.v[i]); /* shards of different ranges */
    hr_calibrator *whole = create(recipe, observer);
    hr_calibrator *a = create(recipe, observer), *b = create(recipe, observer);
    for (int pass = 1;; pass++) {
        observe_ok(whole, 0, &d);
        cr_assert_eq(observe(a, 0, &d, 0, 1), HR_OK);
        cr_assert_eq(observe(a, 0, &d, 1, 69), HR_OK);
        cr_assert_eq(observe(b, 0, &d, 70, TOKENS - 70), HR_OK);
        cr_assert_eq(observe(b, 4, &d, 0, TOKENS), HR_OK);
        cr_assert_eq(hr_calibrator_merge(a, b), HR_OK, "%s", hr_last_error());
        if (pass == hr_calibrator_passes(whole)) break;
        /* b takes a's first pass: all of it but what it has itself. */
        hr_calibrator *rest = create(recipe, observer);
        cr_assert_eq(observe(rest, 0, &d, 0, 1), HR_OK);
        cr_assert_eq(observe(rest, 0, &d, 1, 69), HR_OK);
        cr_assert_eq(hr_calibrator_merge(b, rest), HR_OK);
        hr_calibrator_free(rest);
        cr_assert_eq(hr_calibrator_next_pass(whole), HR_OK);
        cr_assert_eq(hr_calibrator_next_pass(a), HR_OK);
        cr_assert_eq(hr_calibrator_next_pass(b), HR_OK);
    }
    hr_profile *one = finish(whole), *merged = finish(a);
    cr_assert_eq(hr_profile_get_info(merged).layer_count, 2);
    hr_profile_layer x = layer_of(one, 0), y = layer_of(merged, 0);
    assert_same_layer(&x, &y);
    hr_profile_free(one);
    hr_profile_free(merged);
    hr_calibrator_free(whole);
    hr_calibrator_free(a);
    hr_calibrator_free(b);
    free_data(&d);
}

Test(calibrator, shards_merge_to_what_one_pass_gives)
{
    check_merge("fp8", "absmax");
    check_merge("fp8", "percentile:99");
    check_merge("fp8:qkv.granularity=tensor", "percentile");
    check_merge("fp8:qkv.dtype=i8", "mse");
    check_merge("fp8:qk.transform=hadamard", "absmax");
}

Test(calibrator, shards_merge_in_the_second_pass)
{
    check_merge(smoothed, "absmax");
    check_merge(smoothed, "percentile:99");
    check_merge("fp8:q.transform=hadamard,k.transform=mean+hadamard", "percentile");
}

Test(calibrator, merging_what_does_not_belong_together_is_refused)
{
    data d = make_data(10, TOKENS);
    hr_calibrator *a = create("fp8", NULL), *other_recipe = create("int8", NULL);
    hr_calibrator *other_observer = create("fp8", "mse");
    cr_assert_eq(hr_calibrator_merge(a, a), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_calibrator_merge(a, other_recipe), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "int8"));
    cr_assert_eq(hr_calibrator_merge(a, other_observer), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "mse"));

    hr_calibrator *other_shape = create("fp8", NULL);
    hr_tensor q = view(d.k, TOKENS, KV_HEADS), v = view(d.v, TOKENS, KV_HEADS);
    cr_assert_eq(hr_calibrator_observe(other_shape, 0, &q, &q, &v), HR_OK);
    observe_ok(a, 0, &d);
    cr_assert_eq(hr_calibrator_merge(a, other_shape), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "layer 0 has 4 heads"));

    hr_calibrator *x = create(smoothed, NULL), *y = create(smoothed, NULL);
    cr_assert_eq(observe(x, 0, &d, 0, 100), HR_OK);
    cr_assert_eq(observe(y, 0, &d, 50, 100), HR_OK);
    cr_assert_eq(hr_calibrator_next_pass(x), HR_OK);
    cr_assert_eq(hr_calibrator_merge(x, y), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "pass 2"));
    cr_assert_eq(hr_calibrator_next_pass(y), HR_OK);
    cr_assert_eq(hr_calibrator_merge(x, y), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "same first pass"));
    hr_calibrator *all[] = {a, other_recipe, other_observer, other_shape, x, y};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        hr_calibrator_free(all[i]);
    free_data(&d);
}

/* A failing call names the value and leaves no trace, wherever in the call the bad value is. */
Test(calibrator, a_value_that_is_not_finite_leaves_the_state_as_it_was)
{
    data d = make_data(11, TOKENS), bad = make_data(12, TOKENS);
    hr_calibrator *clean = create("fp8", "percentile"), *hit = create("fp8", "percentile");
    observe_ok(clean, 0, &d);
    observe_ok(hit, 0, &d);

    bad.v[((TOKENS - 1) * KV_HEADS + 1) * DIM + 30] = NAN;
    cr_assert_eq(observe(hit, 0, &bad, 0, TOKENS), HR_ERROR_NUMERIC);
    cr_assert(strstr(hr_last_error(), "layer 0: v is not finite at token 149, head 1, channel 30"),
              "%s", hr_last_error());
    cr_assert_eq(observe(hit, 5, &bad, 0, TOKENS), HR_ERROR_NUMERIC);
    bad.q[(80 * HEADS + 3) * DIM] = -INFINITY;
    cr_assert_eq(observe(hit, 0, &bad, 0, TOKENS), HR_ERROR_NUMERIC);
    cr_assert(strstr(hr_last_error(), "q is not finite at token 80, head 3, channel 0"));

    hr_profile *a = finish(clean), *b = finish(hit);
    cr_assert_eq(hr_profile_get_info(b).layer_count, 1, "layer 5 must not exist");
    hr_profile_layer x = layer_of(a, 0), y = layer_of(b, 0);
    assert_same_layer(&x, &y);
    hr_profile_free(a);
    hr_profile_free(b);
    hr_calibrator_free(clean);
    hr_calibrator_free(hit);
    free_data(&d);
    free_data(&bad);
}

Test(calibrator, threads_do_not_change_the_result)
{
    data d = make_data(13, TOKENS);
    hr_profile *profiles[2];
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(i ? 5 : 1);
        hr_calibrator *calibrator =
            create("fp8:q.transform=hadamard,k.transform=mean+hadamard", "mse");
        observe_ok(calibrator, 0, &d);
        cr_assert_eq(hr_calibrator_next_pass(calibrator), HR_OK);
        observe_ok(calibrator, 0, &d);
        profiles[i] = finish(calibrator);
        hr_calibrator_free(calibrator);
    }
    hr_profile_layer x = layer_of(profiles[0], 0), y = layer_of(profiles[1], 0);
    assert_same_layer(&x, &y);
    hr_profile_free(profiles[0]);
    hr_profile_free(profiles[1]);
    free_data(&d);
}

/* BF16 input with a stride between heads and tokens gives what its values in F32 give. */
Test(calibrator, strided_half_precision_input)
{
    data d = make_data(14, TOKENS);
    uint16_t *codes = malloc(TOKENS * HEADS * DIM * sizeof *codes);
    cr_assert_eq(hr_encode(HR_DTYPE_BF16, d.q, TOKENS * HEADS * DIM, 1, 0, codes), HR_OK);
    cr_assert_eq(hr_decode(HR_DTYPE_BF16, codes, TOKENS * HEADS * DIM, 1, 0, d.q), HR_OK);
    hr_calibrator *f32 = create("fp8", NULL), *bf16 = create("fp8", NULL);
    hr_tensor q = view(d.q, TOKENS, HEADS), k = view(d.q, TOKENS, KV_HEADS);
    k.stride[0] = HEADS * DIM; /* the first two heads of q */
    cr_assert_eq(hr_calibrator_observe(f32, 0, &q, &k, &k), HR_OK, "%s", hr_last_error());
    q.dtype = k.dtype = HR_DTYPE_BF16;
    q.data = k.data = codes;
    cr_assert_eq(hr_calibrator_observe(bf16, 0, &q, &k, &k), HR_OK, "%s", hr_last_error());
    hr_profile *a = finish(f32), *b = finish(bf16);
    hr_profile_layer x = layer_of(a, 0), y = layer_of(b, 0);
    assert_same_layer(&x, &y);
    cr_assert(x.k_scale[1] == x.q_scale[1]);
    free(codes);
    hr_profile_free(a);
    hr_profile_free(b);
    hr_calibrator_free(f32);
    hr_calibrator_free(bf16);
    free_data(&d);
}

static bool has_warning(const hr_profile *profile, const char *text)
{
    for (int32_t i = 0; i < hr_profile_get_info(profile).warning_count; i++)
        if (strstr(hr_profile_warning(profile, i), text)) return true;
    return false;
}

Test(calibrator, a_zero_head_is_warned_of_and_gets_the_smallest_scale)
{
    static const char *const observers[] = {"absmax", "percentile", "mse"};
    data d = make_data(15, TOKENS);
    for (int64_t t = 0; t < TOKENS; t++)
        memset(d.v + (t * KV_HEADS + 1) * DIM, 0, DIM * sizeof(float));
    for (int i = 0; i < 3; i++) {
        hr_calibrator *calibrator = create("fp8", observers[i]);
        observe_ok(calibrator, 2, &d);
        hr_profile *profile = finish(calibrator);
        hr_profile_layer layer = layer_of(profile, 2);
        cr_assert(layer.v_scale[1] == HR_SCALE_MIN);
        cr_assert(layer.v_channel_scale[DIM] == HR_SCALE_MIN);
        cr_assert(isnormal(1 / (layer.v_scale[1] * layer.v_scale[1])));
        cr_assert(layer.v_scale[0] > 1e-3f);
        cr_assert_eq(hr_profile_get_info(profile).warning_count, 1);
        cr_assert(has_warning(profile, "layer 2: v head 1 is zero over all 150 tokens"), "%s",
                  hr_profile_warning(profile, 0));
        hr_profile_free(profile);
        hr_calibrator_free(calibrator);
    }
    free_data(&d);
}

Test(calibrator, heads_with_next_to_nothing_are_warned_of)
{
    data d = make_data(16, TOKENS);
    for (int64_t t = 0; t < TOKENS; t++)
        for (int c = 0; c < DIM; c++) {
            d.k[(t * KV_HEADS + 0) * DIM + c] = 3.7f * (float)(c - 4);
            d.v[(t * KV_HEADS + 0) * DIM + c] = 1e-30f;
        }
    hr_calibrator *calibrator = create(smoothed, NULL);
    observe_ok(calibrator, 0, &d);
    cr_assert_eq(hr_calibrator_next_pass(calibrator), HR_OK);
    observe_ok(calibrator, 0, &d);
    hr_profile *profile = finish(calibrator);
    cr_assert(has_warning(profile, "k head 0 is the same for all 150 tokens"));
    cr_assert(has_warning(profile, "v head 0 has values of at most 1e-30"));
    cr_assert_eq(hr_profile_get_info(profile).warning_count, 2);
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    free_data(&d);
}

Test(calibrator, too_few_tokens_are_warned_of)
{
    data d = make_data(17, 200);
    hr_calibrator *calibrator = create("fp8", NULL);
    cr_assert_eq(observe(calibrator, 1, &d, 0, 200), HR_OK);
    cr_assert_eq(observe(calibrator, 0, &d, 0, 100), HR_OK);
    cr_assert_eq(observe(calibrator, 6, &d, 0, 127), HR_OK);
    hr_profile *profile = finish(calibrator);
    cr_assert(has_warning(profile, "2 of 3 layers saw fewer than 128 tokens (layer 0: 100)"));
    cr_assert_eq(hr_profile_get_info(profile).tokens, 100);
    hr_profile_free(profile);
    cr_assert_eq(observe(calibrator, 0, &d, 100, 28), HR_OK);
    cr_assert_eq(observe(calibrator, 6, &d, 127, 1), HR_OK);
    profile = finish(calibrator);
    cr_assert_eq(hr_profile_get_info(profile).warning_count, 0);
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    free_data(&d);
}

Test(calibrator, a_layer_that_was_never_observed_is_named)
{
    data d = make_data(18, TOKENS);
    hr_calibrator *calibrator = create("fp8", NULL);
    hr_profile *profile;
    cr_assert_eq(hr_calibrator_finish(calibrator, NULL, 0, &profile), HR_ERROR_INVALID_ARGUMENT);
    cr_assert(strstr(hr_last_error(), "nothing was observed"));
    observe_ok(calibrator, 0, &d);
    observe_ok(calibrator, 2, &d);
    cr_assert_eq(hr_calibrator_finish(calibrator, (int32_t[]){0, 1, 2}, 3, &profile),
                 HR_ERROR_NOT_FOUND);
    cr_assert(strstr(hr_last_error(), "layer 1 was never observed"));
    cr_assert_null(profile);
    hr_calibrator_free(calibrator);
    free_data(&d);
}

Test(calibrator, wrong_shapes_are_refused)
{
    data d = make_data(19, TOKENS);
    hr_calibrator *calibrator = create("fp8", NULL);
    hr_tensor q = view(d.q, TOKENS, HEADS), k = view(d.k, TOKENS, KV_HEADS);
    hr_tensor v = view(d.v, TOKENS, KV_HEADS), bad = view(d.q, TOKENS, 3);
    cr_assert_eq(hr_calibrator_observe(calibrator, 0, &bad, &k, &v), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "3, 2 and 2 heads"));
    bad = view(d.k, TOKENS - 1, KV_HEADS);
    cr_assert_eq(hr_calibrator_observe(calibrator, 0, &q, &k, &bad), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "150, 150 and 149 tokens"));
    bad = k;
    bad.shape[2] = 16;
    cr_assert_eq(hr_calibrator_observe(calibrator, 0, &q, &bad, &v), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "head_dim 32, 16 and 32"));
    bad = q;
    bad.dtype = HR_DTYPE_I8;
    cr_assert_eq(hr_calibrator_observe(calibrator, 7, &bad, &k, &v), HR_ERROR_UNSUPPORTED);
    cr_assert(strstr(hr_last_error(), "layer 7"));
    cr_assert_eq(observe(calibrator, 0, &d, 0, 0), HR_ERROR_INVALID_ARGUMENT);
    cr_assert(strstr(hr_last_error(), "no tokens"));
    cr_assert_eq(observe(calibrator, -1, &d, 0, 1), HR_ERROR_INVALID_ARGUMENT);
    observe_ok(calibrator, 0, &d);
    cr_assert_eq(hr_calibrator_observe(calibrator, 0, &k, &k, &v), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "first observed with 4, 2 and 32"));
    hr_calibrator_free(calibrator);
    free_data(&d);
}

static hr_recording_info source(const char *model, char digit)
{
    hr_recording_info info = {
        .path = "rec.safetensors", .model = model, .rope = "applied", .softmax_scale = 0.125f};
    memset(info.data_hash, digit, 32);
    return info;
}

static void hash_of(const char *digits, char out[33])
{
    data d = make_data(20, TOKENS);
    hr_calibrator *calibrator = create("fp8", NULL);
    for (; *digits; digits++) {
        hr_recording_info info = source("m", *digits);
        cr_assert_eq(hr_calibrator_set_source(calibrator, &info), HR_OK, "%s", hr_last_error());
    }
    observe_ok(calibrator, 0, &d);
    hr_profile *profile = finish(calibrator);
    strcpy(out, hr_profile_get_info(profile).data_hash);
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    free_data(&d);
}

Test(calibrator, the_data_hash_does_not_depend_on_the_order_of_recordings)
{
    char none[33], one[33], ab[33], ba[33], abc[33];
    hash_of("", none);
    hash_of("a", one);
    hash_of("ab", ab);
    hash_of("ba", ba);
    hash_of("abc", abc);
    cr_assert_str_eq(none, "");
    cr_assert_str_eq(one, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    cr_assert_eq(strlen(ab), 32);
    cr_assert_str_eq(ab, ba);
    cr_assert_str_neq(ab, abc);
}

Test(calibrator, recordings_of_different_models_are_refused)
{
    hr_calibrator *calibrator = create("fp8", NULL);
    hr_recording_info a = source("llama", 'a'), b = source("qwen", 'b');
    cr_assert_eq(hr_calibrator_set_source(calibrator, &a), HR_OK);
    cr_assert_eq(hr_calibrator_set_source(calibrator, &b), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "qwen") && strstr(hr_last_error(), "llama"));
    b = source("llama", 'b');
    b.causal = true;
    cr_assert_eq(hr_calibrator_set_source(calibrator, &b), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "causal"));
    b = source("llama", 'b');
    b.rope = "before";
    cr_assert_eq(hr_calibrator_set_source(calibrator, &b), HR_ERROR_MISMATCH);
    b = source("llama", 'b');
    b.softmax_scale = 0.25f;
    cr_assert_eq(hr_calibrator_set_source(calibrator, &b), HR_ERROR_MISMATCH);
    b.softmax_scale = NAN;
    cr_assert_eq(hr_calibrator_set_source(calibrator, &b), HR_ERROR_INVALID_ARGUMENT);

    hr_calibrator *other = create("fp8", NULL);
    b = source("qwen", 'b');
    cr_assert_eq(hr_calibrator_set_source(other, &b), HR_OK);
    cr_assert_eq(hr_calibrator_merge(calibrator, other), HR_ERROR_MISMATCH);
    hr_calibrator_free(other);
    hr_calibrator_free(calibrator);
}

Test(calibrator, the_second_pass_knows_its_recordings)
{
    hr_calibrator *calibrator = create(smoothed, NULL);
    hr_recording_info a = source("m", 'a'), b = source("m", 'b');
    cr_assert_eq(hr_calibrator_set_source(calibrator, &a), HR_OK);
    cr_assert_eq(hr_calibrator_next_pass(calibrator), HR_OK);
    cr_assert_eq(hr_calibrator_set_source(calibrator, &a), HR_OK);
    cr_assert_eq(hr_calibrator_set_source(calibrator, &b), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "first pass"));
    hr_calibrator_free(calibrator);
}

Test(calibrator, bad_options_are_refused)
{
    hr_calibrator_options options = {.observer = "median"};
    hr_calibrator *calibrator;
    cr_assert_eq(hr_recipe_parse("fp8", &options.recipe), HR_OK);
    cr_assert_eq(hr_calibrator_create(&options, &calibrator), HR_ERROR_NOT_FOUND);
    cr_assert(strstr(hr_last_error(), "absmax, percentile[:parameter], mse"), "%s",
              hr_last_error());
    options.observer = NULL;
    options.min_tokens = -1;
    cr_assert_eq(hr_calibrator_create(&options, &calibrator), HR_ERROR_INVALID_ARGUMENT);
    options.min_tokens = 0;
    options.recipe.k.granularity = HR_GRANULARITY_TOKEN;
    cr_assert_eq(hr_calibrator_create(&options, &calibrator), HR_ERROR_UNSUPPORTED);
    cr_assert_null(calibrator);
}
