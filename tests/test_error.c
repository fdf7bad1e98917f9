/*
 * Error figures: known values, strides, and the cases in which a careless figure would look good.
 */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>

#include "error_sums.h"
#include "test_random.h"

enum { COUNT = 4096 };

static hr_error measure(const float *x, const double *r, int64_t count)
{
    hr_error error;
    hr_error_measure(x, count, r, count, 1, count, &error);
    return error;
}

static void assert_all_nan(const hr_error *e)
{
    cr_assert(isnan(e->max_abs) && isnan(e->rmse) && isnan(e->rel_l1) && isnan(e->rel_l2) &&
              isnan(e->cosine) && isnan(e->sqnr_db));
}

Test(error, known_figures)
{
    const float x[] = {1, 2, 3, -4};
    const double r[] = {1, 2.5, 2, -4};
    hr_error e = measure(x, r, 4);
    cr_assert_float_eq(e.max_abs, 1, 1e-15);
    cr_assert_float_eq(e.rmse, sqrt(1.25 / 4), 1e-15);
    cr_assert_float_eq(e.rel_l1, 1.5 / 9.5, 1e-15);
    cr_assert_float_eq(e.rel_l2, sqrt(1.25 / 27.25), 1e-15);
    cr_assert_float_eq(e.cosine, 28 / sqrt(30 * 27.25), 1e-15);
    cr_assert_float_eq(e.sqnr_db, 10 * log10(27.25 / 1.25), 1e-12);
    cr_assert_eq(e.count, 4);
    cr_assert_eq(e.nonfinite, 0);
}

Test(error, strides_skip_what_lies_between_the_rows)
{
    const float x[] = {1, 2, NAN, 3, 4, NAN};
    const double r[] = {1, 2, 3, 7};
    hr_error e;
    hr_error_measure(x, 3, r, 2, 2, 2, &e);
    cr_assert_eq(e.count, 4);
    cr_assert_eq(e.nonfinite, 0);
    cr_assert_float_eq(e.max_abs, 3, 1e-15);
}

Test(error, equal_arrays)
{
    float x[COUNT];
    double r[COUNT];
    test_random random = {1};
    random_gaussians(&random, x, COUNT);
    for (int i = 0; i < COUNT; i++)
        r[i] = x[i];
    hr_error e = measure(x, r, COUNT);
    cr_assert(e.max_abs == 0 && e.rmse == 0 && e.rel_l1 == 0 && e.rel_l2 == 0);
    cr_assert(e.sqnr_db == INFINITY);
    cr_assert(e.cosine <= 1 && e.cosine > 1 - 1e-15);
}

/* One bad element of thousands must spoil every figure, on either side, and be counted. */
Test(error, anything_not_finite_makes_every_figure_nan)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    float x[COUNT] = {0};
    double r[COUNT] = {0};
    for (int i = 0; i < 3; i++) {
        x[1234] = bad[i];
        hr_error e = measure(x, r, COUNT);
        assert_all_nan(&e);
        cr_assert_eq(e.nonfinite, 1);
        cr_assert_eq(e.count, COUNT);
        r[1234] = bad[i]; /* equal infinities are no agreement either */
        e = measure(x, r, COUNT);
        assert_all_nan(&e);
        cr_assert_eq(e.nonfinite, 1);
        x[1234] = 0;
        e = measure(x, r, COUNT);
        assert_all_nan(&e);
        cr_assert(!(e.rel_l2 <= 1e9));
        r[1234] = 0;
    }
}

Test(error, nothing_compared_is_not_a_pass)
{
    hr_error e = measure(NULL, NULL, 0);
    assert_all_nan(&e);
    cr_assert_eq(e.count, 0);
}

Test(error, zero_references)
{
    const float zeros[2] = {0, -0.0f}, ones[2] = {1, 1};
    const double zero_reference[2] = {0, 0}, one_reference[2] = {1, 1};
    hr_error e = measure(zeros, zero_reference, 2);
    cr_assert(e.rel_l1 == 0 && e.rel_l2 == 0 && e.cosine == 1 && e.sqnr_db == INFINITY);
    e = measure(ones, zero_reference, 2);
    cr_assert(e.rel_l1 == INFINITY && e.rel_l2 == INFINITY && e.cosine == 0);
    cr_assert(e.sqnr_db == -INFINITY);
    e = measure(zeros, one_reference, 2);
    cr_assert(e.rel_l1 == 1 && e.rel_l2 == 1 && e.cosine == 0);
    cr_assert_float_eq(e.sqnr_db, 0, 1e-15);
}

/* The largest a 4-bit codebook makes of a zero passes as one; twice that does not. */
Test(error, zeros_in_a_codebook_without_zero)
{
    const float codes[2] = {127 * 0x1p-60f, -0x1p-53f}, larger[2] = {0, 0x1p-52f};
    const double reference[2] = {0, 0}, tiny_reference[2] = {0, 0x1p-60};
    hr_error e = measure(codes, reference, 2);
    cr_assert(e.rel_l1 == 0 && e.rel_l2 == 0 && e.cosine == 1 && e.sqnr_db == INFINITY);
    cr_assert(e.max_abs == 0x1p-53 && e.rmse > 0);
    e = measure(larger, reference, 2);
    cr_assert(e.rel_l1 == INFINITY && e.rel_l2 == INFINITY && e.cosine == 0);
    e = measure(codes, tiny_reference, 2);
    cr_assert(e.rel_l2 > 100);
}

/* Squares of the largest and smallest floats stay inside double. */
Test(error, extreme_magnitudes)
{
    const float large[2] = {FLT_MAX, -FLT_MAX}, small[2] = {FLT_TRUE_MIN, FLT_TRUE_MIN};
    const double large_reference[2] = {-FLT_MAX, FLT_MAX};
    const double small_reference[2] = {2 * (double)FLT_TRUE_MIN, 2 * (double)FLT_TRUE_MIN};
    hr_error e = measure(large, large_reference, 2);
    cr_assert_float_eq(e.rel_l2, 2, 1e-15);
    cr_assert_float_eq(e.cosine, -1, 1e-15);
    e = measure(small, small_reference, 2);
    cr_assert_float_eq(e.rel_l2, 0.5, 1e-15);
    cr_assert_float_eq(e.cosine, 1, 1e-15);
}

/* Parts merged give the figures of the whole, not a mean of the parts' figures. */
Test(error, parts_add_up)
{
    float x[COUNT];
    double r[COUNT];
    test_random random = {2};
    random_gaussians(&random, x, COUNT);
    for (int i = 0; i < COUNT; i++)
        r[i] = x[i] + (i < 100 ? 0.5 : 0.01) * random_gaussian(&random);
    hr_error_sums a = {0}, b = {0};
    hr_error_sums_add(&a, x, 100, r, 100, 1, 100);
    hr_error_sums_add(&b, x + 100, COUNT, r + 100, COUNT, 1, COUNT - 100);
    hr_error_sums_merge(&a, &b);
    hr_error whole = measure(x, r, COUNT), merged = hr_error_sums_finish(&a);
    cr_assert_eq(whole.count, merged.count);
    cr_assert(whole.max_abs == merged.max_abs);
    cr_assert_float_eq(merged.rmse / whole.rmse, 1, 1e-12);
    cr_assert_float_eq(merged.rel_l1 / whole.rel_l1, 1, 1e-12);
    cr_assert_float_eq(merged.cosine, whole.cosine, 1e-12);
}
