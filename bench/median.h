/*
 * The median of timed runs, which a few disturbed ones do not move.
 */
#ifndef HEADROOM_MEDIAN_H
#define HEADROOM_MEDIAN_H

#include <stdlib.h>

static inline int bench_compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of n >= 1 values, which are left in ascending order. */
static inline double bench_median(double *values, size_t n)
{
    qsort(values, n, sizeof *values, bench_compare_doubles);
    return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

#endif
