/*
 * The bound's terms for products in FP16 (attention_fp8_avx512fp16): running error analysis, Higham
 * 2002, 3.3. An FP16 operation is off by at most u = 2^-11 of its result, or by 2^-25 where that is
 * subnormal, so a sum is off by u times the magnitudes of its partial sums, to first order. The
 * order of summation is part of what the bound assumes: channels in ascending order in pieces of
 * 64, then the pieces; keys of a tile likewise in pieces of 32.
 *
 * 1. Logits. With S = q.k / (2^a q_scale k_scale) in FP16, and `path` all partial sums of q.k:
 *        D_j += softmax_scale (u path + (head_dim + pieces) 2^-25 2^a q_scale k_scale)
 * 2. Weights. s - m, the factor and the exponential's argument are off by u each, relative to the
 *    distance from the tile's largest logit m_t; the exponential itself, whose last operation
 * rounds P to FP16, by 2 u (test_half_softmax measures that over all arguments); the sum of 16
 * weights in FP16 by 4 u; weights that become subnormal or 0 by 2^-24 M_t: E_j += 3 u (m_t - s_j) +
 * 6 u,   and w_j is off by another 2^-24 M_t
 * 3. P is not rounded to E4M3: R_j = 0.
 * 5. Output, per tile of n keys, with `path` all partial sums of w_j v_jc. P is weight / M_t and V
 *    is value / v_scale there:
 *        |O_c - o_c| += u path + n 2^-25 M_t v_scale
 */
#ifndef HEADROOM_CHECK_BOUND_HALF_H
#define HEADROOM_CHECK_BOUND_HALF_H

#include <math.h>
#include <stdint.h>

#define HALF_UNIT 0x1p-11
#define HALF_TINY 0x1p-25
#define HALF_LOST 0x1p-24

enum { HALF_PIECE = 64, HALF_KEYS = 32 };

/* The error of q.k; `unit` is q_scale k_scale. */
static inline double half_dot_error(const float *q, const float *k, int32_t head_dim, double unit)
{
    const int exponent = head_dim <= 64 ? 9 : head_dim <= 128 ? 10 : 11;
    const int pieces = (head_dim + HALF_PIECE - 1) / HALF_PIECE;
    double path = 0, joined = 0;
    for (int32_t begin = 0; begin < head_dim; begin += HALF_PIECE) {
        double sum = 0;
        for (int32_t i = begin; i < head_dim && i < begin + HALF_PIECE; i++) {
            sum += (double)q[i] * (double)k[i];
            path += fabs(sum);
        }
        joined += sum;
        if (begin > 0) path += fabs(joined);
    }
    return HALF_UNIT * path + (head_dim + pieces) * ldexp(HALF_TINY * unit, exponent);
}

/* The relative error of a weight; `top` is the tile's largest. */
static inline double half_weight_error(double weight, double top)
{
    const double w = fmax(weight, 1e-300); /* where exp gave 0 the kernel has 0 too */
    return expm1(3 * HALF_UNIT * log(top / w)) + 6 * HALF_UNIT;
}

/*
 * A tile's sum in pieces of HALF_KEYS keys, where only the kernel knows at which key pieces start:
 * each partial sum is at most the distance from the least or the greatest of the last HALF_KEYS
 * running sums or more, and each piece joins a sum that is at most the distance from any.
 */
typedef struct half_range {
    double least, greatest;
} half_range;

typedef struct half_path {
    double sum, length;
    half_range all, block, before; /* of running sums: all, this HALF_KEYS terms', the last one's */
    int32_t terms;
} half_path;

static inline double half_distance(half_range *range, double sum)
{
    range->least = fmin(range->least, sum);
    range->greatest = fmax(range->greatest, sum);
    return fmax(sum - range->least, range->greatest - sum);
}

static inline void half_path_add(half_path *path, double term)
{
    if (path->terms % HALF_KEYS == 0) {
        path->before = path->block;
        path->block = (half_range){path->sum, path->sum};
        if (path->terms == 0) path->before = path->block;
    }
    path->sum += term;
    path->terms++;
    const double joined = half_distance(&path->all, path->sum);
    const double here = half_distance(&path->block, path->sum);
    path->length += fmax(here, half_distance(&path->before, path->sum));
    path->length += joined / HALF_KEYS;
}

/* `unit` is M_t v_scale. */
static inline double half_sum_error(const half_path *path, double unit)
{
    const double joins = fmax(path->all.greatest, -path->all.least); /* two more */
    return HALF_UNIT * (path->length + 2 * joins) + path->terms * HALF_TINY * unit;
}

#endif
