/*
 * Mean smoothing and Hadamard rotation of contiguous rows; the equations are in transform.h.
 *
 * The rotation is a fast Walsh-Hadamard transform: log2(block) passes of sums and differences, one
 * multiplication by 1/sqrt(block) at the end.
 */
#include "transform.h"

#include <assert.h>
#include <math.h>

#include "headroom/pack.h"

int32_t hr_hadamard_block(int32_t head_dim)
{
    return head_dim & -head_dim;
}

void hr_hadamard_signs(uint64_t seed, int32_t head_dim, float *signs)
{
    if (seed == 0) seed = HR_HADAMARD_DEFAULT_SEED;
    for (int32_t c = 0; c < head_dim; c++) {
        uint64_t z = seed + ((uint64_t)c + 1) * UINT64_C(0x9e3779b97f4a7c15);
        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        z ^= z >> 31;
        signs[c] = z >> 63 ? -1.0f : 1.0f;
    }
}

/* values = H values, unnormalized. */
static void walsh_hadamard(double *values, int32_t head_dim, int32_t block)
{
    for (int32_t half = 1; half < block; half *= 2) {
        for (int32_t start = 0; start < head_dim; start += 2 * half) {
            for (int32_t c = start; c < start + half; c++) {
                double a = values[c], b = values[c + half];
                values[c] = a + b;
                values[c + half] = a - b;
            }
        }
    }
}

void hr_hadamard_rotate(const float *signs, int32_t head_dim, float *row)
{
    assert(head_dim >= 1 && head_dim <= HR_HEAD_DIM_MAX);
    double values[HR_HEAD_DIM_MAX];
    int32_t block = hr_hadamard_block(head_dim);
    double normalizer = 1.0 / sqrt(block);
    for (int32_t c = 0; c < head_dim; c++)
        values[c] = (double)row[c] * signs[c];
    walsh_hadamard(values, head_dim, block);
    for (int32_t c = 0; c < head_dim; c++)
        row[c] = hr_saturate(values[c] * normalizer);
}

void hr_hadamard_unrotate(const float *signs, int32_t head_dim, float *row)
{
    assert(head_dim >= 1 && head_dim <= HR_HEAD_DIM_MAX);
    double values[HR_HEAD_DIM_MAX];
    int32_t block = hr_hadamard_block(head_dim);
    double normalizer = 1.0 / sqrt(block);
    for (int32_t c = 0; c < head_dim; c++)
        values[c] = row[c];
    walsh_hadamard(values, head_dim, block);
    for (int32_t c = 0; c < head_dim; c++)
        row[c] = hr_saturate(values[c] * normalizer * signs[c]);
}

void hr_channel_sum(const float *rows, int64_t tokens, int32_t head_dim, double *sum)
{
    for (int64_t t = 0; t < tokens; t++)
        for (int32_t c = 0; c < head_dim; c++)
            sum[c] += rows[t * head_dim + c];
}

void hr_channel_mean(const double *sum, int64_t tokens, int32_t head_dim, float *mean)
{
    for (int32_t c = 0; c < head_dim; c++)
        mean[c] = tokens > 0 ? (float)(sum[c] / (double)tokens) : 0.0f;
}

void hr_mean_subtract(const float *mean, int32_t head_dim, float *row)
{
    for (int32_t c = 0; c < head_dim; c++)
        row[c] = hr_saturate((double)row[c] - mean[c]);
}

void hr_mean_add(const float *mean, int32_t head_dim, float *row)
{
    for (int32_t c = 0; c < head_dim; c++)
        row[c] = hr_saturate((double)row[c] + mean[c]);
}
