/*
 * hr_error_measure: how far one array is from its reference. The sums and their edge cases are in
 * error_sums.c.
 */
#include "error_sums.h"

void hr_error_measure(const float *x, int64_t x_stride, const double *r, int64_t r_stride,
                      int64_t rows, int64_t columns, hr_error *out)
{
    hr_error_sums sums = {0};
    hr_error_sums_add(&sums, x, x_stride, r, r_stride, rows, columns);
    *out = hr_error_sums_finish(&sums);
}
