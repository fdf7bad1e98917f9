/*
 * percentile:P: amax is the smallest histogram edge that at least P percent of the magnitudes do
 * not exceed. Clips the largest (100 - P) percent; P = 100 is absmax. The rank is ceil(P/100 n), so
 * fewer than 1 / (1 - P/100) values (10,000 for the default 99.99) clip none.
 */
#include <math.h>
#include <stdlib.h>

#include "histogram.h"
#include "metadata.h"
#include "observer.h"
#include "printable.h"
#include "status_internal.h"

static hr_status percentile_parse(const char *text, double *parameter)
{
    *parameter = 99.99;
    if (!text) return HR_OK;
    double value;
    if (!hr_number_parse(text, &value) || !(value > 50 && value <= 100))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "observer percentile: \"%s\" is not a percentage above 50 and at most "
                       "100; for example percentile:99.99",
                       hr_print(text).text);
    *parameter = value;
    return HR_OK;
}

static void *percentile_create(void)
{
    return hr_histogram_create();
}

static void percentile_observe(void *state, const float *values, int64_t count)
{
    hr_histogram_add(state, values, count);
}

static void percentile_merge(void *state, const void *other)
{
    hr_histogram_merge(state, other);
}

static hr_status percentile_result(const void *state, double parameter, hr_dtype dtype, float *amax)
{
    (void)dtype;
    const hr_histogram *histogram = state;
    uint64_t rank = (uint64_t)ceil(parameter * (double)histogram->total / 100);
    *amax = hr_histogram_rank(histogram, rank ? rank : 1);
    return HR_OK;
}

const hr_observer_type hr_observer_percentile = {
    .name = "percentile",
    .summary = "magnitude that P percent of the values do not exceed; percentile:P, default 99.99",
    .parse = percentile_parse,
    .create = percentile_create,
    .release = free,
    .observe = percentile_observe,
    .merge = percentile_merge,
    .result = percentile_result,
};
