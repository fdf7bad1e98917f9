/*
 * absmax: amax = max |x|. Nothing is ever clipped; one outlier sets the scale of all.
 */
#include <math.h>
#include <stdlib.h>

#include "memory.h"
#include "observer.h"

static void *absmax_create(void)
{
    return hr_alloc(1, sizeof(float));
}

static void absmax_observe(void *state, const float *values, int64_t count)
{
    float amax = *(const float *)state;
    for (int64_t i = 0; i < count; i++) {
        float magnitude = fabsf(values[i]);
        amax = magnitude > amax ? magnitude : amax;
    }
    *(float *)state = amax;
}

static void absmax_merge(void *state, const void *other)
{
    absmax_observe(state, other, 1);
}

static hr_status absmax_result(const void *state, double parameter, hr_dtype dtype, float *amax)
{
    (void)parameter;
    (void)dtype;
    *amax = *(const float *)state;
    return HR_OK;
}

const hr_observer_type hr_observer_absmax = {
    .name = "absmax",
    .summary = "largest magnitude seen; clips nothing",
    .create = absmax_create,
    .release = free,
    .observe = absmax_observe,
    .merge = absmax_merge,
    .result = absmax_result,
};
