/*
 * Calibration: scales are the known maxima over the format's largest code, before and after the
 * transforms that packing applies; threads and failed calls change nothing; what looks wrong in the
 * data is warned of.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "calibrator_data.h"
#include "headroom/format.h"
#include "observer.h"
#include "transform.h"

/* Largest magnitude of one head of [tokens, heads, DIM]. */
static float head_max(const float *x, int64_t tokens, int heads, int head)
{
    float max = 0;
    for (int64_t t = 0; t < tokens; t++)
        for (int c = 0; c < DIM; c++)
            max = fmaxf(max, fabsf(x[(t * heads + head) * DIM + c]));
    return max;
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
