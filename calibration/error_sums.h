/*
 * Error sums that add up: the terms behind hr_error, accumulated element by element and merged over
 * rows, heads and layers, so that a layer's figure is that of all its elements and not a mean of
 * means. Sums are in double; the terms are squares and magnitudes, all of one sign but x.r, so
 * plain summation of n terms is good to n * 2^-53 relative.
 */
#ifndef HEADROOM_ERROR_SUMS_H
#define HEADROOM_ERROR_SUMS_H

#include "headroom/audit.h"

typedef struct hr_error_sums {
    double max_abs;
    double abs_error, abs_reference;       /* sum |x - r|, sum |r| */
    double square_error, square_reference; /* sum (x - r)^2, sum r^2 */
    double square_value, product;          /* sum x^2, sum x r */
    int64_t count, nonfinite;
} hr_error_sums;

/* Adds rows x columns elements; strides in elements. */
void hr_error_sums_add(hr_error_sums *sums, const float *x, int64_t x_stride, const double *r,
                       int64_t r_stride, int64_t rows, int64_t columns);

/* As above for two double arrays. */
void hr_error_sums_add_f64(hr_error_sums *sums, const double *x, int64_t x_stride, const double *r,
                           int64_t r_stride, int64_t rows, int64_t columns);

void hr_error_sums_merge(hr_error_sums *sums, const hr_error_sums *other);

/* The figures; all NaN when anything was not finite or nothing was added. */
hr_error hr_error_sums_finish(const hr_error_sums *sums);

#endif
