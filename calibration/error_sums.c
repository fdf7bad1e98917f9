/*
 * Error sums and the figures made of them; see error_sums.h.
 */
#include "error_sums.h"

#include <math.h>
#include <stdbool.h>

static void add_pair(hr_error_sums *sums, double x, double r)
{
    sums->count++;
    if (!isfinite(x) || !isfinite(r)) {
        sums->nonfinite++;
        return;
    }
    double error = fabs(x - r);
    if (error > sums->max_abs) sums->max_abs = error;
    sums->abs_error += error;
    sums->abs_reference += fabs(r);
    sums->square_error += error * error;
    sums->square_reference += r * r;
    sums->square_value += x * x;
    sums->product += x * r;
}

void hr_error_sums_add(hr_error_sums *sums, const float *x, int64_t x_stride, const double *r,
                       int64_t r_stride, int64_t rows, int64_t columns)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            add_pair(sums, (double)x[i * x_stride + j], r[i * r_stride + j]);
}

void hr_error_sums_add_f64(hr_error_sums *sums, const double *x, int64_t x_stride, const double *r,
                           int64_t r_stride, int64_t rows, int64_t columns)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            add_pair(sums, x[i * x_stride + j], r[i * r_stride + j]);
}

void hr_error_sums_merge(hr_error_sums *sums, const hr_error_sums *other)
{
    if (other->max_abs > sums->max_abs) sums->max_abs = other->max_abs;
    sums->abs_error += other->abs_error;
    sums->abs_reference += other->abs_reference;
    sums->square_error += other->square_error;
    sums->square_reference += other->square_reference;
    sums->square_value += other->square_value;
    sums->product += other->product;
    sums->count += other->count;
    sums->nonfinite += other->nonfinite;
}

/* error / reference, where nothing off nothing is no error and something off nothing is infinite.
 */
static double ratio(double error, double reference)
{
    if (reference > 0) return error / reference;
    return error > 0 ? INFINITY : 0;
}

/* 1 for two zero vectors, which agree, and 0 when one is zero; rounding must not pass 1. */
static double cosine(const hr_error_sums *sums)
{
    double norms = sqrt(sums->square_value) * sqrt(sums->square_reference);
    if (norms > 0) return fmax(-1, fmin(1, sums->product / norms));
    return sums->square_value == sums->square_reference ? 1 : 0;
}

/*
 * What HR_DTYPE_C4, which has no level of zero, leaves of exact zeros is nothing either: packing
 * gives them a scale of 2^-60, and a level is at most 127.
 */
static bool is_zero_of_c4(const hr_error_sums *sums)
{
    return sums->abs_reference == 0 && sums->max_abs <= 0x1p-53;
}

hr_error hr_error_sums_finish(const hr_error_sums *sums)
{
    hr_error error = {NAN, NAN, NAN, NAN, NAN, NAN, sums->count, sums->nonfinite};
    if (sums->count == 0 || sums->nonfinite > 0) return error;
    error.max_abs = sums->max_abs;
    error.rmse = sqrt(sums->square_error / (double)sums->count);
    if (is_zero_of_c4(sums)) {
        error.rel_l1 = error.rel_l2 = 0;
        error.cosine = 1;
        error.sqnr_db = INFINITY;
        return error;
    }
    error.rel_l1 = ratio(sums->abs_error, sums->abs_reference);
    error.rel_l2 = ratio(sqrt(sums->square_error), sqrt(sums->square_reference));
    error.cosine = cosine(sums);
    error.sqnr_db = -20 * log10(error.rel_l2);
    return error;
}
