/*
 * Calibration over several recordings and shards: shards merge to what one pass gives, bit for bit;
 * what does not belong together is refused; the data hash stands for all recordings.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "calibrator_data.h"

static const char smoothed[] = "fp8:k.transform=mean";

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

Test(calibrator_merge, shards_merge_to_what_one_pass_gives)
{
    check_merge("fp8", "absmax");
    check_merge("fp8", "percentile:99");
    check_merge("fp8:qkv.granularity=tensor", "percentile");
    check_merge("fp8:qkv.dtype=i8", "mse");
    check_merge("fp8:qk.transform=hadamard", "absmax");
}

Test(calibrator_merge, shards_merge_in_the_second_pass)
{
    check_merge(smoothed, "absmax");
    check_merge(smoothed, "percentile:99");
    check_merge("fp8:q.transform=hadamard,k.transform=mean+hadamard", "percentile");
}

Test(calibrator_merge, merging_what_does_not_belong_together_is_refused)
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

Test(calibrator_merge, the_data_hash_does_not_depend_on_the_order_of_recordings)
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

Test(calibrator_merge, recordings_of_different_models_are_refused)
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

Test(calibrator_merge, the_second_pass_knows_its_recordings)
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
