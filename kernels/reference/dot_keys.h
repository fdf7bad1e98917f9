/*
 * FP64 dot products of one query with 16 keys, the inner loop of the oracle and of the divergence.
 *
 * K is kept as [seqlen_kv / 16][head_dim][16], zero or anything beyond seqlen_kv, so that 16 sums
 * run in vectors and each still adds up its channels in order, whatever the machine.
 */
#ifndef HEADROOM_DOT_KEYS_H
#define HEADROOM_DOT_KEYS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { HR_DOT_KEYS = 16 };

/* Where a channel of a key lies. */
static inline int64_t hr_interleaved_at(int64_t key, int32_t channel, int32_t head_dim)
{
    return (key / HR_DOT_KEYS * head_dim + channel) * HR_DOT_KEYS + key % HR_DOT_KEYS;
}

/* Two keys; of the same loops over double gcc 12 makes a fifth of the speed. */
typedef double hr_key_pair __attribute__((vector_size(16), aligned(8), may_alias));

/* q [head_dim], k [head_dim][16] -> dots [16] */
static inline void hr_dot_keys(const double *restrict q, const double *restrict k, int32_t head_dim,
                               double *restrict dots)
{
    hr_key_pair sum[HR_DOT_KEYS / 2] = {{0}};
    for (int32_t channel = 0; channel < head_dim; channel++) {
        const hr_key_pair *keys = (const hr_key_pair *)(k + (int64_t)channel * HR_DOT_KEYS);
#pragma GCC unroll 8
        for (int j = 0; j < HR_DOT_KEYS / 2; j++)
            sum[j] += q[channel] * keys[j];
    }
    memcpy(dots, sum, sizeof sum);
}

/* Does any of these 16 keys count? */
static inline bool hr_any_visible(const bool *visible)
{
    bool any = false;
    for (int i = 0; i < HR_DOT_KEYS; i++)
        any |= visible[i];
    return any;
}

#endif
