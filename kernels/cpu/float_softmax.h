/*
 * The softmax of one row of one tile, in base 2:
 *
 *     x_j = log2(e) * (softmax_scale * q.k_j, capped, biased)       m = max of visible x_j
 *     p_j = round(2^(x_j - m) * P_MAX)                              sum = sum 2^(x_j - m) * P_MAX
 *
 * p_j is rounded to the recipe's P format but kept as a float. P_MAX puts the row's largest weight
 * on the format's largest value: 448 for E4M3, whose small values lose bits; 1 for BF16 and F32.
 *
 * Cost for a vector of keys when dot products are the logits: one maximum, then 17 operations.
 */
#ifndef HEADROOM_FLOAT_SOFTMAX_H
#define HEADROOM_FLOAT_SOFTMAX_H

#include <math.h>

#include "float_load.h"

#define LOG2E 1.44269504088896340736f
#define LN2 0.69314718055994530942f

/*
 * top * 2^x for x <= 127, 0 below -126.5, relative error under 2^-22 and exact at 0; NaN stays. The
 * polynomial is the minimax one of degree 5 on [-1/2, 1/2] among those exact at 0; its relative
 * error is 1.1e-7. Adding 1.5 * 2^23 rounds x to an integer in the low bits of the sum; with 127
 * more those bits are the exponent field of 2^n.
 */
FLOAT_INLINE vec vec_exp2_times(vec x, float top)
{
    const vec magic = vec_set(0x1.8p23f + 127.0f);
    x = vec_max(vec_set(-127.0f), x);
    vec shifted = vec_add(x, magic);
    vec f = vec_sub(x, vec_sub(shifted, magic));
    vec y = vec_set(top * 0x1.5bba14p-10f);
    y = vec_fma(y, f, vec_set(top * 0x1.3cea88p-7f));
    y = vec_fma(y, f, vec_set(top * 0x1.c6b752p-5f));
    y = vec_fma(y, f, vec_set(top * 0x1.ebf9bcp-3f));
    y = vec_fma(y, f, vec_set(top * 0x1.62e42ap-1f));
    y = vec_fma(y, f, vec_set(top));
    return vec_mul(y, vec_shift_to_exponent(shifted));
}

FLOAT_INLINE vec vec_exp2(vec x)
{
    return vec_exp2_times(x, 1);
}

/* tanh(x) = (1 - e) / (1 + e), e = exp(-2 |x|), with x's sign; absolute error a few 2^-24. */
FLOAT_INLINE vec vec_tanh(vec x)
{
    const vec one = vec_set(1.0f);
    vec e = vec_exp2(vec_mul(vec_and(x, INT32_MAX), vec_set(-2.0f * LOG2E)));
    return vec_copysign(vec_div(vec_sub(one, e), vec_add(one, e)), x);
}

/*
 * Rounds p >= 0 to nearest even with `mantissa_bits` after the leading one, and to multiples of
 * smallest * 2^-mantissa_bits below `smallest`: adding and subtracting a power of two that much
 * larger leaves exactly those bits. NaN stays.
 */
FLOAT_INLINE vec round_significand(vec p, int mantissa_bits, float smallest)
{
    const float factor = (float)(1u << (23 - mantissa_bits));
    vec exponent = vec_and(p, 0x7f800000);
    if (smallest > 0) exponent = vec_max(vec_set(smallest), exponent);
    vec shifted = vec_fma(exponent, vec_set(factor), p);
    return vec_fma(exponent, vec_set(-factor), shifted);
}

FLOAT_INLINE vec round_weight(vec p, hr_dtype p_dtype)
{
    if (p_dtype == HR_DTYPE_BF16) return round_significand(p, 7, 0);
    if (p_dtype == HR_DTYPE_E4M3) return round_significand(p, 3, 0x1p-6f);
    return p;
}

/* P_MAX */
FLOAT_INLINE float largest_weight(hr_dtype p_dtype)
{
    return p_dtype == HR_DTYPE_E4M3 ? 448 : 1;
}

/* What turns one row's dot products into logits; x[0] belongs to key `key` of the sequence. */
typedef struct logit_rule {
    float scale;               /* log2(e) * softmax_scale * the row's scale; / softcap when capped.
                                  1 when Q was multiplied by it beforehand */
    const float *column_scale; /* one a key, or NULL */
    float bias;                /* / softcap, added before the cap: what smoothing took from q.k */
    float softcap;             /* log2(e) * softcap, 0: none */
    float alibi_slope;         /* log2(e) * slope, 0: none */
    float diagonal;            /* i + shift - key: where the distance is 0 */
} logit_rule;

/* True when the dot products are the logits already. */
FLOAT_INLINE bool is_identity(const logit_rule *rule)
{
    return rule->scale == 1 && !rule->column_scale && rule->softcap == 0 && rule->alibi_slope == 0;
}

/* Dot products -> logits. */
FLOAT_INLINE void apply_rule(float *x, int32_t columns, const logit_rule *rule)
{
    static const float lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const vec scale = vec_set(rule->scale);
    for (int32_t j = 0; j < columns; j += VEC_WIDTH) {
        vec y = vec_mul(vec_load(x + j), scale);
        if (rule->column_scale) y = vec_mul(y, vec_load(rule->column_scale + j));
        if (rule->softcap != 0)
            y = vec_mul(vec_tanh(vec_add(y, vec_set(rule->bias))), vec_set(rule->softcap));
        if (rule->alibi_slope != 0) {
            vec distance = vec_sub(vec_load(lane), vec_set(rule->diagonal - (float)j));
            y = vec_sub(y, vec_mul(vec_and(distance, INT32_MAX), vec_set(rule->alibi_slope)));
        }
        vec_store(x + j, y);
    }
}

/* Sets x to -inf outside [lo, hi) of `columns` and returns the largest of the rest. */
FLOAT_INLINE float mask_and_maximum(float *x, int32_t columns, int32_t lo, int32_t hi)
{
    for (int32_t j = 0; j < lo; j++)
        x[j] = -INFINITY;
    for (int32_t j = hi; j < columns; j++)
        x[j] = -INFINITY;
    vec largest = vec_set(-INFINITY);
    for (int32_t j = 0; j < columns; j += VEC_WIDTH)
        largest = vec_max(largest, vec_load(x + j));
    return vec_reduce_max(largest);
}

/* Logits -> rounded weights relative to `largest`; returns their sum before rounding. */
FLOAT_INLINE float apply_weights(float *x, int32_t columns, float largest, hr_dtype p_dtype)
{
    const vec reference = vec_set(largest);
    vec sum = vec_set(0);
    for (int32_t j = 0; j < columns; j += VEC_WIDTH) {
        vec p = vec_exp2_times(vec_sub(vec_load(x + j), reference), largest_weight(p_dtype));
        sum = vec_add(sum, p);
        vec_store(x + j, round_weight(p, p_dtype));
    }
    return vec_reduce_add(sum);
}

#endif
