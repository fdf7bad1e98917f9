/*
 * Observers: parsing, the histogram's exactness under any split of the data, percentiles against
 * sorted values, and the MSE search against a fine search on the values themselves.
 */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/format.h"
#include "histogram.h"
#include "observer.h"
#include "test_random.h"

enum { COUNT = 20000 };

static float values[COUNT];

typedef enum fill {
    GAUSSIAN,
    ONE_OUTLIER,
    SPARSE_OUTLIERS,
    LAPLACE,
    WIDE,
    BF16_VALUES,
    FILLS
} fill;

static void fill_values(fill kind, uint64_t seed)
{
    test_random random = {seed};
    random_gaussians(&random, values, COUNT);
    for (int i = 0; i < COUNT; i++) {
        double uniform = random_uniform(&random);
        if (kind == SPARSE_OUTLIERS && uniform < 0.001) values[i] *= 10;
        if (kind == LAPLACE) values[i] = copysignf((float)-log(uniform), values[i]);
        if (kind == WIDE) values[i] *= exp2f((float)(random_bits(&random) % 200) - 100);
    }
    if (kind == ONE_OUTLIER) values[COUNT / 3] = -1000;
    if (kind == BF16_VALUES) {
        static uint16_t codes[COUNT];
        cr_assert_eq(hr_encode(HR_DTYPE_BF16, values, COUNT, 1, 0, codes), HR_OK);
        cr_assert_eq(hr_decode(HR_DTYPE_BF16, codes, COUNT, 1, 0, values), HR_OK);
    }
}

static hr_observer_config parse(const char *text)
{
    hr_observer_config config;
    cr_assert_eq(hr_observer_parse(text, &config), HR_OK, "%s", hr_last_error());
    return config;
}

static float result(const hr_observer_config *config, const void *state, hr_dtype dtype)
{
    float amax = -1;
    cr_assert_eq(config->type->result(state, config->parameter, dtype, &amax), HR_OK);
    return amax;
}

/* The amax for these values in one call. */
static float amax_of(const char *observer, const float *x, int64_t count, hr_dtype dtype)
{
    hr_observer_config config = parse(observer);
    void *state = config.type->create();
    cr_assert_not_null(state);
    config.type->observe(state, x, count);
    float amax = result(&config, state, dtype);
    config.type->release(state);
    return amax;
}

Test(observer, every_row_has_a_name_and_a_summary_and_parses)
{
    cr_assert_eq(hr_observer_count(), 3);
    for (int i = 0; i < hr_observer_count(); i++) {
        hr_observer_config config = parse(hr_observer_name(i)), again;
        cr_assert_str_eq(config.type->name, hr_observer_name(i));
        cr_assert_gt(strlen(hr_observer_summary(i)), 10);
        again = parse(config.text);
        cr_assert_str_eq(config.text, again.text);
        cr_assert(config.parameter == again.parameter);
    }
    cr_assert_str_eq(hr_observer_name(-1), "");
    cr_assert_str_eq(hr_observer_summary(hr_observer_count()), "");
    cr_assert_str_eq(parse(NULL).text, "absmax");
    cr_assert_str_eq(parse("percentile").text, "percentile:99.99");
    cr_assert_str_eq(parse("percentile:99.90").text, "percentile:99.9");
    cr_assert_str_eq(parse("percentile:100").text, "percentile:100");
}

Test(observer, bad_text_is_refused)
{
    static const char *const bad[] = {"",
                                      "max",
                                      "absmax:",
                                      "absmax:1",
                                      "mse:2",
                                      "percentile:",
                                      "percentile:50",
                                      "percentile:100.1",
                                      "percentile:nan",
                                      "percentile:inf",
                                      "percentile:99,9",
                                      "percentile:99.99x",
                                      "percentile:99.987654321012",
                                      "percentiles:99"};
    hr_observer_config config;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_assert_neq(hr_observer_parse(bad[i], &config), HR_OK, "\"%s\"", bad[i]);
    cr_assert_eq(hr_observer_parse("percentile:50", &config), HR_ERROR_INVALID_ARGUMENT);
    cr_assert(strstr(hr_last_error(), "above 50 and at most 100"));
    cr_assert_eq(hr_observer_parse("absmax:1", &config), HR_ERROR_INVALID_ARGUMENT);
    cr_assert(strstr(hr_last_error(), "no parameter"));
}

/* Splits the values at random into shards, merges these in random order. */
static hr_histogram *sharded(uint64_t seed)
{
    enum { SHARDS = 7 };
    test_random random = {seed};
    hr_histogram *shards[SHARDS];
    for (int i = 0; i < SHARDS; i++)
        shards[i] = hr_histogram_create();
    for (int64_t first = 0, count; first < COUNT; first += count) {
        count = 1 + (int64_t)(random_bits(&random) % 300);
        if (count > COUNT - first) count = COUNT - first;
        hr_histogram_add(shards[random_bits(&random) % SHARDS], values + first, count);
    }
    for (int left = SHARDS; left > 1; left--) {
        int a = (int)(random_bits(&random) % (uint64_t)left);
        hr_histogram *other = shards[left - 1];
        if (a == left - 1) a = 0;
        hr_histogram_merge(shards[a], other);
        free(other);
    }
    return shards[0];
}

Test(histogram, shards_equal_one_pass_bit_for_bit)
{
    for (fill kind = 0; kind < FILLS; kind++)
        for (uint64_t seed = 1; seed <= 5; seed++) {
            fill_values(kind, seed);
            hr_histogram *whole = hr_histogram_create();
            hr_histogram_add(whole, values, COUNT);
            hr_histogram *merged = sharded(seed);
            cr_assert_eq(memcmp(whole, merged, sizeof *whole), 0, "fill %d seed %d", kind,
                         (int)seed);
            free(whole);
            free(merged);
        }
}

/* A tiny first batch, zeros, subnormals and the largest floats: any order gives the same. */
Test(histogram, widening_forgets_nothing)
{
    static const float steps[] = {
        0.0f,  FLT_TRUE_MIN, 3 * FLT_TRUE_MIN, 1e-42f,   FLT_MIN, 1e-20f, -1e-3f, 1.0f, 1.5f,
        -3e4f, 0.0f,         FLT_MAX,          -FLT_MAX, 2.0f};
    enum { STEPS = sizeof steps / sizeof *steps };
    hr_histogram *up = hr_histogram_create(), *down = hr_histogram_create();
    for (int i = 0; i < STEPS; i++) {
        hr_histogram_add(up, &steps[i], 1);
        hr_histogram_add(down, &steps[STEPS - 1 - i], 1);
        uint64_t total = up->underflow;
        for (int bin = 0; bin < HR_HISTOGRAM_BINS; bin++)
            total += up->count[bin];
        cr_assert_eq(total, (uint64_t)i + 1);
        cr_assert_eq(up->total, (uint64_t)i + 1);
    }
    cr_assert_eq(memcmp(up, down, sizeof *up), 0);
    cr_assert(up->max == FLT_MAX);
    cr_assert(hr_histogram_edge(up, HR_HISTOGRAM_BINS) == 0x1p128);
    free(up);
    free(down);
}

/* Each value's bin contains it, and the offset sums give the bins' exact means. */
Test(histogram, bins_contain_their_values)
{
    for (fill kind = 0; kind < FILLS; kind++) {
        fill_values(kind, 77);
        hr_histogram *all = hr_histogram_create();
        hr_histogram_add(all, values, COUNT);
        double first = hr_histogram_edge(all, 0), sum = 0, binned = 0;
        uint64_t below = 0;
        for (int i = 0; i < COUNT; i++) {
            double x = fabs((double)values[i]);
            if (x < first)
                below++;
            else
                sum += x;
        }
        cr_assert_eq(below, all->underflow);
        for (int bin = 0; bin < HR_HISTOGRAM_BINS; bin++) {
            double low = hr_histogram_edge(all, bin), high = hr_histogram_edge(all, bin + 1);
            uint64_t inside = 0;
            if (bin % 16 == 0) { /* counting is quadratic; every sixteenth bin will do */
                for (int i = 0; i < COUNT; i++)
                    inside += fabs((double)values[i]) >= low && fabs((double)values[i]) < high;
                cr_assert_eq(inside, all->count[bin]);
            }
            binned +=
                (double)all->count[bin] * low + (double)all->offset[bin] * (high - low) * 0x1p-15;
        }
        cr_assert_float_eq(binned / sum, 1, 1e-12);
        free(all);
    }
}

static int compare_magnitudes(const void *a, const void *b)
{
    float x = fabsf(*(const float *)a), y = fabsf(*(const float *)b);
    return (x > y) - (x < y);
}

Test(observer, percentile_is_within_a_bin_of_the_sorted_values)
{
    static const double percents[] = {50.5, 75, 90, 99, 99.9, 99.99, 100};
    for (fill kind = 0; kind < FILLS; kind++)
        for (size_t p = 0; p < sizeof percents / sizeof *percents; p++) {
            char text[32];
            snprintf(text, sizeof text, "percentile:%g", percents[p]);
            fill_values(kind, 5);
            float amax = amax_of(text, values, COUNT, HR_DTYPE_E4M3);
            qsort(values, COUNT, sizeof *values, compare_magnitudes);
            double exact = fabs((double)values[(int)ceil(percents[p] * COUNT / 100) - 1]);
            double max = fabs((double)values[COUNT - 1]);
            /* Bins are 2^-8 of their octave; below the window there is only its lower edge. */
            double width = fmax(ldexp(1, ilogb(exact) - 8), ldexp(1, ilogb(max) - 15));
            cr_assert(amax >= exact && amax <= exact + width, "fill %d, %s: %g, exact %g", kind,
                      text, amax, exact);
            if (percents[p] == 100) cr_assert(amax == max);
        }
}

/* 99.99 % of fewer than 10,000 values is all of them: nothing may be clipped. */
Test(observer, percentile_of_few_values_is_the_maximum)
{
    fill_values(GAUSSIAN, 6);
    cr_assert(amax_of("percentile", values, 9999, HR_DTYPE_I8) ==
              amax_of("absmax", values, 9999, HR_DTYPE_I8));
}

Test(observer, absmax_is_exact_and_merges_bit_for_bit)
{
    hr_observer_config config = parse("absmax");
    fill_values(WIDE, 7);
    float exact = 0;
    for (int i = 0; i < COUNT; i++)
        exact = fmaxf(exact, fabsf(values[i]));
    void *a = config.type->create(), *b = config.type->create();
    config.type->observe(a, values, 123);
    config.type->observe(b, values + 123, COUNT - 123);
    config.type->merge(a, b);
    cr_assert(result(&config, a, HR_DTYPE_I8) == exact);
    config.type->release(a);
    config.type->release(b);
}

Test(observer, nothing_and_zeros_give_zero)
{
    static const float zeros[64];
    for (int i = 0; i < hr_observer_count(); i++) {
        cr_assert(amax_of(hr_observer_name(i), zeros, 0, HR_DTYPE_E4M3) == 0);
        cr_assert(amax_of(hr_observer_name(i), zeros, 64, HR_DTYPE_E4M3) == 0);
        float tiny[2] = {FLT_TRUE_MIN, 0};
        cr_assert(amax_of(hr_observer_name(i), tiny, 2, HR_DTYPE_E4M3) > 0);
    }
}

/* Squared error of coding all values with this amax. */
static double true_error(hr_dtype dtype, float amax)
{
    static uint8_t codes[COUNT];
    static float decoded[COUNT];
    float scale = hr_scale_of_amax(dtype, amax);
    cr_assert_eq(hr_encode(dtype, values, COUNT, scale, 0, codes), HR_OK);
    cr_assert_eq(hr_decode(dtype, codes, COUNT, scale, 0, decoded), HR_OK);
    double sum = 0;
    for (int i = 0; i < COUNT; i++)
        sum += ((double)values[i] - decoded[i]) * ((double)values[i] - decoded[i]);
    return sum;
}

static const hr_dtype searched[] = {HR_DTYPE_E4M3, HR_DTYPE_E5M2, HR_DTYPE_I8, HR_DTYPE_I4,
                                    HR_DTYPE_C4};

/*
 * On the values themselves the error is at most absmax's, and within 1 % of the best of a search
 * four times as fine. (The fill WIDE is left out: its squares overflow the comparison's meaning,
 * one value being all of the error.)
 */
Test(observer, mse_finds_the_least_error)
{
    static const fill kinds[] = {GAUSSIAN, ONE_OUTLIER, SPARSE_OUTLIERS, LAPLACE, BF16_VALUES};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (size_t i = 0; i < sizeof searched / sizeof *searched; i++) {
            fill_values(kinds[k], 8 + k);
            hr_dtype dtype = searched[i];
            float max = amax_of("absmax", values, COUNT, dtype);
            float amax = amax_of("mse", values, COUNT, dtype);
            double error = true_error(dtype, amax), best = true_error(dtype, max);
            cr_assert(amax > 0 && amax <= max);
            cr_assert(error <= best, "fill %d, %s: %g, absmax %g", kinds[k], hr_dtype_name(dtype),
                      error, best);
            for (int j = 0; j <= 256 * 6; j++)
                best = fmin(best, true_error(dtype, (float)(max * exp2(-j / 256.0))));
            cr_assert(error <= 1.01 * best, "fill %d, %s: %g, best %g", kinds[k],
                      hr_dtype_name(dtype), error, best);
        }
}

/* One outlier of 60 in N(0, 1): INT4 gives it up, and then fits the rest as if it were not there.
 */
Test(observer, mse_clips_an_outlier)
{
    fill_values(ONE_OUTLIER, 9);
    values[COUNT / 3] = 60;
    float clipped = amax_of("mse", values, COUNT, HR_DTYPE_I4);
    values[COUNT / 3] = 0;
    float without = amax_of("mse", values, COUNT, HR_DTYPE_I4);
    cr_assert(without < 4 && clipped >= without);
    cr_assert(clipped < 1.25f * without, "%g, without the outlier %g", clipped, without);
}

Test(observer, mse_leaves_formats_without_a_scale_alone)
{
    fill_values(GAUSSIAN, 10);
    float max = amax_of("absmax", values, COUNT, HR_DTYPE_I8);
    cr_assert(amax_of("mse", values, COUNT, HR_DTYPE_BF16) == max);
    cr_assert(amax_of("mse", values, COUNT, HR_DTYPE_U4) == max);
    cr_assert(hr_scale_of_amax(HR_DTYPE_BF16, max) == 1);
}

Test(observer, scales_stay_in_range)
{
    cr_assert(hr_scale_of_amax(HR_DTYPE_E4M3, 448) == 1);
    cr_assert(hr_scale_of_amax(HR_DTYPE_I8, 254) == 2);
    cr_assert(hr_scale_of_amax(HR_DTYPE_U4, 7.5f) == 1);
    cr_assert(hr_scale_of_amax(HR_DTYPE_E4M3, 0) == HR_SCALE_MIN);
    cr_assert(hr_scale_of_amax(HR_DTYPE_E4M3, FLT_TRUE_MIN) == HR_SCALE_MIN);
    cr_assert(isfinite(hr_scale_of_amax(HR_DTYPE_I4, FLT_MAX)));
}
