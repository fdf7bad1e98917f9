/*
 * mse: the amax whose scale gives the least squared error of the real quantizer,
 *
 *     argmin over amax of  sum_i n_i (x_i - scale decode(encode(x_i / scale)))^2,
 *     scale = amax / format maximum,
 *
 * over points x_i that stand for the bins of a magnitude histogram (the formats are antisymmetric,
 * so the sign does not matter). A bin of width W whose values average a distance m from its lower
 * edge is stood for by two points of half its count each, m +- min(m, W - m) / 2: for evenly spread
 * values those are its quarters; for BF16 recordings, where every value is a lower edge (m = 0), it
 * is exact. Values under the window (below max / 2^15) count as zero.
 *
 * Grid: max * 2^(-j/8), j = 0 .. 80, then the best of these times 2^(+-i/64), i = 1 .. 7, never
 * above max. Ties go to the larger amax; j = 0 is absmax, so the result is never worse than absmax
 * on the histogram. The coarse search stops when the clipped values alone cost more than the best
 * so far, because that cost only grows as amax shrinks.
 */
#include <math.h>
#include <stdlib.h>

#include "headroom/format.h"
#include "histogram.h"
#include "memory.h"
#include "observer.h"

enum { COARSE_STEPS = 80, COARSE_PER_OCTAVE = 8, FINE_STEPS = 7, FINE_PER_OCTAVE = 64 };

/* The histogram as weighted points, ascending, with room for one trial of the quantizer. */
typedef struct sample {
    int64_t count; /* even, as the nibble formats need */
    float *x;
    double *weight;
    float *decoded;
    void *codes; /* at most 4 bytes a point */
} sample;

static void sample_free(sample *s)
{
    free(s->x);
    free(s->weight);
    free(s->decoded);
    free(s->codes);
}

static hr_status sample_create(const hr_histogram *histogram, sample *out)
{
    size_t most = 2 * HR_HISTOGRAM_BINS;
    *out = (sample){.x = hr_alloc(most, sizeof(float)),
                    .weight = hr_alloc(most, sizeof(double)),
                    .decoded = hr_alloc(most, sizeof(float)),
                    .codes = hr_alloc(most, sizeof(float))};
    if (!out->x || !out->weight || !out->decoded || !out->codes) {
        sample_free(out);
        return HR_ERROR_OUT_OF_MEMORY;
    }
    for (int bin = 0; bin < HR_HISTOGRAM_BINS; bin++) {
        double count = (double)histogram->count[bin];
        if (count == 0) continue;
        double low = hr_histogram_edge(histogram, bin);
        double width = hr_histogram_edge(histogram, bin + 1) - low;
        double mean =
            ldexp((double)histogram->offset[bin] / count, -HR_HISTOGRAM_OFFSET_BITS) * width;
        double spread = fmin(mean, width - mean) / 2;
        for (int side = -1; side <= 1; side += 2) {
            out->x[out->count] = (float)fmin(low + mean + side * spread, histogram->max);
            out->weight[out->count++] = count / 2;
        }
    }
    return HR_OK;
}

/* Sets *error to the weighted squared error of coding the sample with this amax. */
static hr_status quantization_error(const sample *s, hr_dtype dtype, float amax, double *error)
{
    float scale = hr_scale_of_amax(dtype, amax);
    hr_status status = hr_encode(dtype, s->x, s->count, scale, 0, s->codes);
    if (status == HR_OK) status = hr_decode(dtype, s->codes, s->count, scale, 0, s->decoded);
    if (status != HR_OK) return status;
    double sum = 0;
    for (int64_t i = 0; i < s->count; i++) {
        double difference = (double)s->x[i] - s->decoded[i];
        sum += s->weight[i] * difference * difference;
    }
    *error = sum;
    return HR_OK;
}

/* What the values above amax cost at least, whatever the format does below. */
static double clipping_error(const sample *s, float amax)
{
    double sum = 0;
    for (int64_t i = s->count - 1; i >= 0 && s->x[i] > amax; i--) {
        double difference = (double)s->x[i] - amax;
        sum += s->weight[i] * difference * difference;
    }
    return sum;
}

typedef struct search {
    float amax;
    double error;
} search;

static hr_status try_amax(const sample *s, hr_dtype dtype, float amax, search *best)
{
    double error;
    hr_status status = quantization_error(s, dtype, amax, &error);
    if (status != HR_OK) return status;
    if (error < best->error || (error == best->error && amax > best->amax))
        *best = (search){amax, error};
    return HR_OK;
}

static hr_status find_best(const sample *s, hr_dtype dtype, float max, float *amax)
{
    search best = {0, INFINITY};
    for (int j = 0; j <= COARSE_STEPS; j++) {
        float trial = (float)(max * exp2(-(double)j / COARSE_PER_OCTAVE));
        if (clipping_error(s, trial) > best.error) break;
        hr_status status = try_amax(s, dtype, trial, &best);
        if (status != HR_OK) return status;
    }
    double center = best.amax;
    for (int i = -FINE_STEPS; i <= FINE_STEPS; i++) {
        float trial = (float)(center * exp2((double)i / FINE_PER_OCTAVE));
        if (i == 0 || trial > max) continue;
        hr_status status = try_amax(s, dtype, trial, &best);
        if (status != HR_OK) return status;
    }
    *amax = best.amax;
    return HR_OK;
}

static void *mse_create(void)
{
    return hr_histogram_create();
}

static void mse_observe(void *state, const float *values, int64_t count)
{
    hr_histogram_add(state, values, count);
}

static void mse_merge(void *state, const void *other)
{
    hr_histogram_merge(state, other);
}

static hr_status mse_result(const void *state, double parameter, hr_dtype dtype, float *amax)
{
    (void)parameter;
    const hr_histogram *histogram = state;
    *amax = histogram->max;
    /* Formats without a symmetric static scale have nothing to search. */
    if (histogram->max == 0 || hr_scale_of_amax(dtype, 1) == 1 || dtype == HR_DTYPE_U4)
        return HR_OK;

    sample s;
    hr_status status = sample_create(histogram, &s);
    if (status != HR_OK) return status;
    status = find_best(&s, dtype, histogram->max, amax);
    sample_free(&s);
    return status;
}

const hr_observer_type hr_observer_mse = {
    .name = "mse",
    .summary = "amax of the least squared error of the real quantizer, found by grid search",
    .create = mse_create,
    .release = free,
    .observe = mse_observe,
    .merge = mse_merge,
    .result = mse_result,
};
