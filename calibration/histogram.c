/*
 * Magnitude histogram whose bins are the upper bits of the float; see histogram.h.
 */
#include "histogram.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "memory.h"

enum {
    MANTISSA_BITS = 23,
    BIN_SHIFT = HR_HISTOGRAM_OFFSET_BITS, /* bits of the representation below the bin's number */
    MAGNITUDE_MASK = 0x7fffffff
};

_Static_assert(1 << (MANTISSA_BITS - BIN_SHIFT) == HR_HISTOGRAM_OCTAVE_BINS,
               "a bin is the exponent and the top mantissa bits");

static uint32_t magnitude_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & MAGNITUDE_MASK;
}

static float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

hr_histogram *hr_histogram_create(void)
{
    return hr_alloc(1, sizeof(hr_histogram));
}

/* Moves the window up so that its top octave holds `bits`; it never moves down. */
static void cover(hr_histogram *histogram, uint32_t bits)
{
    int32_t base = (int32_t)(bits >> MANTISSA_BITS) - (HR_HISTOGRAM_OCTAVES - 1);
    if (base <= histogram->base) return;
    int64_t shift = (int64_t)(base - histogram->base) * HR_HISTOGRAM_OCTAVE_BINS;
    if (shift > HR_HISTOGRAM_BINS) shift = HR_HISTOGRAM_BINS;
    for (int64_t bin = 0; bin < shift; bin++)
        histogram->underflow += histogram->count[bin];
    size_t kept = (size_t)(HR_HISTOGRAM_BINS - shift);
    memmove(histogram->count, histogram->count + shift, kept * sizeof *histogram->count);
    memmove(histogram->offset, histogram->offset + shift, kept * sizeof *histogram->offset);
    memset(histogram->count + kept, 0, (size_t)shift * sizeof *histogram->count);
    memset(histogram->offset + kept, 0, (size_t)shift * sizeof *histogram->offset);
    histogram->base = base;
}

void hr_histogram_add(hr_histogram *histogram, const float *values, int64_t count)
{
    uint32_t largest = magnitude_bits(histogram->max);
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = magnitude_bits(values[i]);
        if (bits > largest) largest = bits;
    }
    histogram->max = float_of_bits(largest);
    histogram->total += (uint64_t)count;
    cover(histogram, largest);

    uint32_t first = (uint32_t)histogram->base << MANTISSA_BITS;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = magnitude_bits(values[i]);
        if (bits < first) {
            histogram->underflow++;
        } else {
            uint32_t bin = (bits - first) >> BIN_SHIFT;
            histogram->count[bin]++;
            histogram->offset[bin] += bits & ((1u << BIN_SHIFT) - 1);
        }
    }
}

void hr_histogram_merge(hr_histogram *histogram, const hr_histogram *other)
{
    if (other->max > histogram->max) histogram->max = other->max;
    histogram->total += other->total;
    histogram->underflow += other->underflow;
    cover(histogram, magnitude_bits(histogram->max));
    int64_t shift = (int64_t)(histogram->base - other->base) * HR_HISTOGRAM_OCTAVE_BINS;
    for (int64_t bin = 0; bin < HR_HISTOGRAM_BINS; bin++) {
        if (bin < shift) {
            histogram->underflow += other->count[bin];
        } else {
            histogram->count[bin - shift] += other->count[bin];
            histogram->offset[bin - shift] += other->offset[bin];
        }
    }
}

double hr_histogram_edge(const hr_histogram *histogram, int bin)
{
    /* In double, so that the end of the last octave of float (2^128) has a value too. */
    int exponent = histogram->base + bin / HR_HISTOGRAM_OCTAVE_BINS;
    double fraction = (double)(bin % HR_HISTOGRAM_OCTAVE_BINS) / HR_HISTOGRAM_OCTAVE_BINS;
    if (exponent == 0) return ldexp(fraction, FLT_MIN_EXP - 1); /* subnormal floats */
    return ldexp(1.0 + fraction, exponent + FLT_MIN_EXP - 2);
}

float hr_histogram_rank(const hr_histogram *histogram, uint64_t rank)
{
    if (rank >= histogram->total) return histogram->max;
    uint64_t seen = histogram->underflow;
    int bin = 0; /* its lower edge ends the underflow bin */
    while (seen < rank && bin < HR_HISTOGRAM_BINS)
        seen += histogram->count[bin++];
    double edge = hr_histogram_edge(histogram, bin);
    return edge < histogram->max ? (float)edge : histogram->max;
}
