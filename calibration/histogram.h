/*
 * A histogram of magnitudes with exact integer counts, for floats of any range.
 *
 *      below base     octave base        base + 1                    octave of the maximum
 *     [ underflow ][ 256 equal bins ][ 256 equal bins ]   ...       [ 256 equal bins ]
 *
 * An octave holds the values of one float exponent; every bin's width is a power of two, and a
 * value's bin is the upper 17 bits of its representation: no rounding is involved. The window is 16
 * octaves and its top is the octave of the largest value seen. When a larger value arrives the
 * window moves up and the bins that fall out of it are added to the underflow bin. The content is
 * therefore a function of the multiset of values alone: shards merged in any order equal one pass,
 * bit for bit.
 *
 * Relative to a uniform histogram of as many bins this keeps the resolution of ordinary values
 * (1/512 to 1/256) when an outlier is a thousand times larger, which is where clipping matters.
 */
#ifndef HEADROOM_HISTOGRAM_H
#define HEADROOM_HISTOGRAM_H

#include <stdbool.h>
#include <stdint.h>

enum {
    HR_HISTOGRAM_OCTAVES = 16,
    HR_HISTOGRAM_OCTAVE_BINS = 256,
    HR_HISTOGRAM_BINS = HR_HISTOGRAM_OCTAVES * HR_HISTOGRAM_OCTAVE_BINS
};

typedef struct hr_histogram {
    int32_t base;       /* float exponent field of the lowest octave of the window */
    float max;          /* largest magnitude seen */
    uint64_t total;     /* values seen */
    uint64_t underflow; /* values below the window */
    uint64_t count[HR_HISTOGRAM_BINS];
    /*
     * Sum of the values' distances from the lower edge of their bin, in units of 2^-15 of its
     * width: with the count, the exact mean of the bin.
     */
    uint64_t offset[HR_HISTOGRAM_BINS];
} hr_histogram;

enum { HR_HISTOGRAM_OFFSET_BITS = 15 };

/* Empty; NULL with the message set when memory runs out. Release with free(). */
hr_histogram *hr_histogram_create(void);

/* Adds |values[i]|; values are finite. */
void hr_histogram_add(hr_histogram *histogram, const float *values, int64_t count);

void hr_histogram_merge(hr_histogram *histogram, const hr_histogram *other);

/* Lower edge of a bin, 0 .. HR_HISTOGRAM_BINS; that of HR_HISTOGRAM_BINS is the window's end. */
double hr_histogram_edge(const hr_histogram *histogram, int bin);

/*
 * The upper edge of the bin that holds the rank-th smallest magnitude (1 .. total), but not more
 * than the maximum: at least that magnitude, and at most 1/256 above it unless it is in the
 * underflow bin. 0 when empty.
 */
float hr_histogram_rank(const hr_histogram *histogram, uint64_t rank);

#endif
