/*
 * The transforms that go before quantization, on contiguous rows of one head.
 *
 * Mean smoothing: y = x - mean, per head and channel (SageAttention, section 4.2).
 * Rotation: y = H D x, with D a diagonal of random signs and H a normalized Hadamard matrix
 * (QuaRot, section 3). H D is orthogonal, so (H D q) . (H D k) = q . k.
 *
 * H is block diagonal when head_dim is not a power of two: its blocks have the size of the largest
 * power of two that divides head_dim (8 or more, as head_dim is a multiple of 8): 128 is one block,
 * 96 is three blocks of 32, 80 five blocks of 16.
 *
 * D is the same for every head of Q and of K, which is the simplest choice that gives a query head
 * the signs of its KV head. Sign c comes from a counter, not from a stream, so that any channel's
 * sign can be had by itself: z = SplitMix64's output function (Steele, Lea, Flood 2014) of
 * seed + (c + 1) * 0x9e3779b97f4a7c15; the sign is minus when the top bit of z is set.
 *
 * Every result is computed in double and rounded once to float, saturating at the largest finite
 * float: a rotation can grow one channel by sqrt(block).
 */
#ifndef HEADROOM_TRANSFORM_H
#define HEADROOM_TRANSFORM_H

#include <float.h>
#include <stdint.h>

enum { HR_HEAD_DIM_MAX = 256, HR_HEAD_DIM_MULTIPLE = 8 };

/* The nearest float, and the largest finite one of its sign for what is beyond; NaN stays. */
static inline float hr_saturate(double value)
{
    if (value > (double)FLT_MAX) return FLT_MAX;
    if (value < -(double)FLT_MAX) return -FLT_MAX;
    return (float)value;
}

/* Size of the diagonal blocks of H: the largest power of two that divides head_dim. */
int32_t hr_hadamard_block(int32_t head_dim);

/* signs[c] = +1 or -1 for c in 0..head_dim-1. seed 0 means HR_HADAMARD_DEFAULT_SEED. */
void hr_hadamard_signs(uint64_t seed, int32_t head_dim, float *signs);

/* row = H D row, and its inverse row = D H row. head_dim is at most HR_HEAD_DIM_MAX. */
void hr_hadamard_rotate(const float *signs, int32_t head_dim, float *row);
void hr_hadamard_unrotate(const float *signs, int32_t head_dim, float *row);

/* sum[c] += the sum of channel c over `tokens` rows, added in token order. */
void hr_channel_sum(const float *rows, int64_t tokens, int32_t head_dim, double *sum);

/* mean[c] = sum[c] / tokens rounded to float; 0 for no tokens. */
void hr_channel_mean(const double *sum, int64_t tokens, int32_t head_dim, float *mean);

/* row = row - mean, and its inverse row = row + mean. */
void hr_mean_subtract(const float *mean, int32_t head_dim, float *row);
void hr_mean_add(const float *mean, int32_t head_dim, float *row);

#endif
