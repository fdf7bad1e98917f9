/*
 * The bound's terms for FP16 products in decode (attention_fp8_decode_avx512fp16 and
 * attention_fp8_blocks_decode_avx512fp16). As in
 * check_bound_half.h an FP16 operation is off by at most u = 2^-11 of its result, or by 2^-25 where
 * that is subnormal; statistics and O are FP32, P is rounded to FP16.
 *
 * 1. Logits. Eight sums: of the channels c with the same c % 64 / 16 and c % 4 / 2, ascending; then
 *    they are added in three rounds. S is q.k / (2^10 q_scale k_scale). With `path` the magnitudes
 *    of all partial sums of q.k:
 *        D_j += softmax_scale (u path + (head_dim + 7) 2^-25 2^10 q_scale k_scale)
 *    With K in blocks: two sums of each 32 channels, of those with the same c % 4 / 2, ascending;
 *    the sums of the next 32 are added to those of the channels before, and at the end the two. The
 *    last step rounds 2 (head_dim / 32 - 1) + 1 times more in place of 7.
 * 3. P is w_j / M_t * 224: rounding it costs u w_j and 2^-25 / 224 M_t.
 * 5. T. Up to 128 products are added up, in chains that differ with the number of rows; a sum of n
 *    terms is off by n u times their magnitudes in any order, which is 128 u w_j |v_jc| a key. A
 *    step whose product is 0 is exact; any other |v_jc| is at least 2^-9 v_scale, and 2^-25 in
 *    units of 2^8 v_scale / 224 M_t is at most 2^-8 / 224 M_t |v_jc|.
 */
#ifndef HEADROOM_CHECK_BOUND_HALF_DECODE_H
#define HEADROOM_CHECK_BOUND_HALF_DECODE_H

#include "check_bound_half.h"

#define HALF_DECODE_P_RELATIVE ((1 + 128) * HALF_UNIT)
#define HALF_DECODE_P_ABSOLUTE ((HALF_TINY + 0x1p-8) / 224)

/* The error of q.k; `unit` is q_scale k_scale. blocks: K lies in blocks. */
static inline double half_decode_dot_error(const float *q, const float *k, int32_t head_dim,
                                           bool blocks, double unit)
{
    double sum[256 / 32][2] = {{0}}, path = 0, halves[2];
    for (int32_t c = 0; c < head_dim; c++) {
        double *at = &sum[blocks ? c / 32 : c % 64 / 16][c % 4 / 2];
        *at += (double)q[c] * (double)k[c];
        path += fabs(*at);
    }
    const int32_t chains = blocks ? (head_dim + 31) / 32 : 4;
    for (int h = 0; h < 2; h++) {
        if (!blocks) {
            const double low = sum[0][h] + sum[1][h], high = sum[2][h] + sum[3][h];
            halves[h] = low + high;
            path += fabs(low) + fabs(high) + fabs(halves[h]);
            continue;
        }
        halves[h] = sum[0][h];
        for (int32_t i = 1; i < chains; i++) {
            halves[h] += sum[i][h];
            path += fabs(halves[h]);
        }
    }
    path += fabs(halves[0] + halves[1]);
    return HALF_UNIT * path + (head_dim + 2 * chains - 1) * HALF_TINY * 0x1p10 * unit;
}

#endif
