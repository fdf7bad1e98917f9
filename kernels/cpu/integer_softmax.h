/*
 * The arithmetic of the integer kernels (recipes `int8` and `int4`), specified.
 *
 * Every kernel of the family gives bit-identical O and LSE, whatever its instruction set, its tiles
 * and its number of threads, because each step below is either exact or rounded once, in a stated
 * order. fma is the fused operation (one rounding), all other operations are binary32 and
 * round-to-nearest-even unless `double` is written; max and min choose, they do not round.
 * The functions in this file are the specification in C; vector kernels restate them.
 *
 * 1. Tile. A softmax tile is the keys [256 t, 256 t + 256) of a sequence, whatever the mask.
 *    Over all its keys j below seqlen_kv:
 *        F = floor(log2(max k_scale_j))      k_j = round22(k_scale_j * 2^-F)        in [0, 2)
 *        E = floor(log2(max v_scale_j))      w_j = max(v_scale_j * 2^-E, 2^-64)     in (0, 2)
 *        u_j = 24 * 1024 - 1024 log2(w_j), as hr_integer_log2     r_j = 1 / w_j
 *        H = max r_j      R_j = r_j * (4096 / H)      A_j = [R_j]      B_j = [(R_j - A_j) * 4096]
 *    where [] rounds to the nearest integer. The tile is even when H <= 8 min r_j: A_j >= 512 is
 *    then good to 2^-10. It is wide when it is not even and H <= 128 min r_j.
 *    round22 rounds to 22 significant bits, so that 1.5 * 2^23 * k_j is exact (see 3).
 *    Scales in groups of channels: k_scale_j and v_scale_j are the largest of the token's groups g,
 *        k_jg = k_scale_jg * 2^-F
 *        c_jg = max((v_scale_jg * 2^-E) * r_j, 2^-64)     C_g = max c_jg over the tile's keys
 *        G_jg = [c_jg * (32767 / C_g)]                    in 0 .. 32767
 * 2. Row i. c_i = q_scale_i * softmax_scale * log2(e) in double, left to right;
 *        a = (float)min(c_i * 2^F * 1024, 2^100) once a tile.
 * 3. Logits. S_ij = sum of q_code * k_code, exact in int32.
 *        y_ij = fma((float)S_ij * k_j, -a, u_j)
 *    is 24 octaves minus the weight times V's scale in log2 units, all in units of 1/1024 octave:
 *    the least y belongs to the largest contribution. Over the keys of the tile that row i sees
 *    (none: the tile leaves the row alone)
 *        Y_ij = round16(y_ij)         N = min Y_ij
 *    where round16 rounds to the nearest even integer and stops at 0 and 65535. 64 octaves hold the
 *    keys that matter of nearly all rows; when they may not, because N < 1, N > 34820 or a >= 64,
 *        n = min y_ij                 Y_ij = round16(y_ij - n)         N = 0
 *    takes their place. M = 24576 - N or 24576 - n is what the tile is relative to.
 *    (float)S_ij * k_j = fma(1.5 * 2^23 + S_ij, k_j, -(1.5 * 2^23 * k_j)) bit for bit when
 *    |S_ij| < 2^22: a kernel may start its int32 accumulators at the bits of 1.5 * 2^23 and read
 *    them back as floats. With K's scales in groups, x takes the place of (float)S_ij * k_j: x = 0,
 *    then x = fma((float)S_ijg, k_jg, x) for g = 0, 1, ..., where S_ijg is the sum of the channels
 *    of group g. Softcap and ALiBi: see integer_body.c, and hr_integer_cap below.
 * 4. Weights. e_ij = hr_integer_weight(Y_ij - N), about 32640 * 2^((N - Y_ij) / 1024), an integer;
 *    0 from 16 octaves on, and so for every key that stopped at 65535.
 *        P_ij = (e_ij + 64) >> 7, at most 255, where recipes have P in U8
 *        P_ij = e_ij                           where they have it in I16
 *        e_ijg = hr_integer_product(e_ij, G_jg)          for group g of V's scales, P in U8 only
 *        f_ig = hr_integer_share_factor(max of e_ijg over the tile's keys)
 *        P_ijg = hr_integer_product(e_ijg, f_ig)         at most 255
 *    so that P of each group is relative to the largest contribution to that group.
 *        s_k = sum of e_ij * A_j, exact in int32, over the keys of lane k (hr_integer_lane)
 *    in an even tile; in a wide one, with the sum of e_ij * B_j, exact too,
 *        s_k = fma((float)sum B, 2^-12, (float)sum A)
 *    and in any other, where a key may matter to the sum and not to O,
 *        x_ij = fma((float)S_ij * k_j, -a, 24576)      n0 = min x_ij
 *        s_k = sum of 2^max((n0 - x_ij) / 1024, -100) over j = k, k + 16, ... ascending, 16 lanes
 *    V's scale is inside P before it is rounded, and taken out of the sum again: softmax weights
 *    are summed unrounded. docs/int8-softmax.md has the measurements behind both choices.
 * 5. T_ic = sum of P_ij * v_code_jc, or of P_ijg for the group g of channel c, exact in int32: with
 *    P in I16 32640 * 127 * 256. P in I16 is 2^7 times P in U8, and so are T and O up to 7.
 * 6. Row state m (-inf), e (-1000), l_k (0) and O_c (0), in the units of its largest tile:
 *        m' = max(m, M)                      e' = max(e, E)
 *        alpha = 2^max((m - m') / 1024, -100)      beta = 2^max((M - m') / 1024, -100)
 *        l_k = fma((float)s_k, beta * (H * 2^-19), l_k * alpha)
 *        l_k = fma(s_k, 255 * 2^((24576 - n0 - m') / 1024), l_k * alpha)   in the third case
 *        O_c = fma((float)T_ic, beta * 2^(E - e'), O_c * (alpha * 2^(e - e')))
 *    with V's scales in groups ((beta * 2^(E - e')) * (C_g * (32768 / 32767))) * (256 / f_ig) in
 *    place of beta * 2^(E - e').
 *    P is relative to the tile's own maximum, not to the running one: later tiles keep 8 bits.
 * 7. l = the sum of the lanes as a tree: k + (k + 8), then + 4, + 2, + 1. hr_integer_finish gives
 *    the LSE and g = 1 / l, or 2^-7 / l with P in I16; O = (O_c * g) * 2^e.
 *
 * Range. Nothing above overflows or is NaN for finite scales > 0 and any sequence length:
 * |y| < 2^123 by the bound on a; where y is rounded without n, |y| < 64 * 2^23 + 2^17 fits int32;
 * e_ij * A_j <= 32640 * 4096, and a lane has 16 keys: below 2^31; alpha and beta stay out of the
 * denormals, which are 60 times slower. Row states need no case for "no tile yet": alpha then
 * multiplies zeros.
 */
#ifndef HEADROOM_INTEGER_SOFTMAX_H
#define HEADROOM_INTEGER_SOFTMAX_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernel.h"

enum {
    HR_INTEGER_TILE = 256,      /* keys a softmax tile has */
    HR_INTEGER_LANES = 16,      /* partial sums a row has */
    HR_INTEGER_NO_TILE = -1000, /* a row's V exponent before its first tile */
    HR_INTEGER_MAX_HEAD_DIM = 256
};

#define HR_INTEGER_LOG2E 1.4426950408889634
#define HR_INTEGER_LN2 0.6931471805599453
#define HR_INTEGER_OCTAVE 1024      /* units of a logit */
#define HR_INTEGER_OFFSET 24576.0f  /* where y is for a logit of 0 */
#define HR_INTEGER_MAX_LEAST 34820  /* 65535 - HR_INTEGER_TOP: larger N leave int16 */
#define HR_INTEGER_MAX_DIRECT 64.0f /* a from which logits may leave int32 */
#define HR_INTEGER_WIDE 128.0f      /* largest ratio of 1 / w in a wide tile */
#define HR_INTEGER_EVEN 8.0f        /* largest ratio of 1 / w in an even tile */
#define HR_INTEGER_MAGIC 0x1.8p23f  /* adding it to |x| < 2^22 rounds x to an integer */
#define HR_INTEGER_MIN_LOG2 -100.0f
#define HR_INTEGER_MIN_V 0x1p-64f
#define HR_INTEGER_MAX_FACTOR 0x1p100

/*
 * 2^f = 1 + f (c1 + f (c2 + f (c3 + f c4))) for f in [-1/2, 1/2]: the minimax polynomial that is
 * exact at 0 and does not decrease from one octave to the next; relative error 2.9e-6.
 */
#define HR_EXP2_C1 0x1.62e12cp-1f
#define HR_EXP2_C2 0x1.ec0378p-3f
#define HR_EXP2_C3 0x1.c9fc46p-5f
#define HR_EXP2_C4 0x1.3a02ccp-7f

/* The same, of degree 5: relative error 1.1e-7. For hr_integer_tanh. */
#define HR_TANH_C1 0x1.62e42ap-1f
#define HR_TANH_C2 0x1.ebf9bcp-3f
#define HR_TANH_C3 0x1.c6b752p-5f
#define HR_TANH_C4 0x1.3cea88p-7f
#define HR_TANH_C5 0x1.5bba14p-10f

/*
 * log2(1 + u) = u * (d0 + u (d1 + ... u d6)) for u in [0, 1): minimax, exact at 0, absolute error
 * 3.4e-7.
 */
#define HR_LOG2_D0 0x1.715296p+0f
#define HR_LOG2_D1 -0x1.70ec7cp-1f
#define HR_LOG2_D2 0x1.e4af1cp-2f
#define HR_LOG2_D3 -0x1.4cf19cp-2f
#define HR_LOG2_D4 0x1.8b535ap-3f
#define HR_LOG2_D5 -0x1.41ae44p-4f
#define HR_LOG2_D6 0x1.f2603ap-7f

static inline uint32_t hr_integer_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float hr_integer_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Larger of the two, b when a is NaN: what maxps does. */
static inline float hr_integer_max(float a, float b)
{
    return a > b ? a : b;
}

/* 2^n for n in [-126, 127]. */
static inline float hr_integer_power(int32_t n)
{
    return hr_integer_float((uint32_t)(n + 127) << 23);
}

/* z in [-100, 126] to its nearest integer n and f = z - n in [-1/2, 1/2], both exact. */
static inline int32_t hr_integer_split(float z, float *f)
{
    float shifted = z + HR_INTEGER_MAGIC;
    *f = z - (shifted - HR_INTEGER_MAGIC);
    return (int32_t)(hr_integer_bits(shifted) - hr_integer_bits(HR_INTEGER_MAGIC));
}

/* 2^max(z, -100) for z <= 126. */
static inline float hr_integer_exp2(float z)
{
    float f;
    int32_t n = hr_integer_split(hr_integer_max(z, HR_INTEGER_MIN_LOG2), &f);
    float p = fmaf(f, HR_EXP2_C4, HR_EXP2_C3);
    p = fmaf(p, f, HR_EXP2_C2);
    p = fmaf(p, f, HR_EXP2_C1);
    return fmaf(p, f, 1.0f) * hr_integer_power(n);
}

/* Softcap c as its two factors; far from what any logit is, so that both are finite. */
typedef struct hr_integer_cap {
    float argument; /* -2 log2(e) / c: from a logit to the exponent in tanh */
    float units;    /* c * 1024 log2(e): from tanh to units */
} hr_integer_cap;

static inline hr_integer_cap hr_integer_cap_of(float softcap)
{
    const double c = fmin(fmax((double)softcap, 0x1p-90), 0x1p90);
    return (hr_integer_cap){(float)(-2 * HR_INTEGER_LOG2E / c),
                            (float)(c * HR_INTEGER_OCTAVE * HR_INTEGER_LOG2E)};
}

/*
 * tanh(x / c) = (1 - e) / (1 + e) with x's sign, e = 2^(argument |x|), for finite x. e - 1 is one
 * rounding of 2^n - 1 + 2^n (2^f - 1), so that small x keep their relative error, 8e-7.
 */
static inline float hr_integer_tanh(float x, float argument)
{
    float f;
    int32_t n = hr_integer_split(hr_integer_max(fabsf(x) * argument, HR_INTEGER_MIN_LOG2), &f);
    float p = fmaf(f, HR_TANH_C5, HR_TANH_C4), power = hr_integer_power(n);
    p = fmaf(p, f, HR_TANH_C3);
    p = fmaf(p, f, HR_TANH_C2);
    p = fmaf(p, f, HR_TANH_C1);
    float less = fmaf(p * f, power, power - 1.0f);
    return copysignf(less / (less + 2.0f), x);
}

/*
 * The weight at a distance of d units from the tile's maximum, an integer: 32640 * 2^(-d / 1024)
 * within HR_INTEGER_WEIGHT_ERROR of itself and half a unit (Schraudolph 1999: the bits of a float
 * are nearly its logarithm). The bits of a binary16 number, read as an integer, are 1024 times its
 * logarithm to base 2 plus 15 * 1024, but for 1 + f - 2^f; hr_integer_bend takes that away, by the
 * first six bits of f. Only six bits, so that a table is one register; and a binary16 number,
 * because CPUs convert it to the integer in one step.
 */
#define HR_INTEGER_TOP 30715           /* what makes 32640, P = 255, of a distance of 0 */
#define HR_INTEGER_WEIGHT_ERROR 2.9e-3 /* .0009 on average */

/* About 1024 (1 + f - 2^f) on [i / 64, (i + 1) / 64): the integers with the least mean square. */
static const uint8_t hr_integer_bend[64] = {
    3,  7,  12, 16, 21, 25, 29, 33, 37, 41, 45, 48, 51, 55, 58, 61, 64, 66, 69, 71, 73, 75,
    77, 79, 81, 82, 84, 85, 86, 86, 87, 88, 88, 88, 88, 88, 88, 87, 86, 85, 84, 83, 81, 80,
    78, 76, 74, 71, 69, 66, 63, 59, 56, 52, 48, 44, 40, 35, 31, 26, 20, 15, 9,  3,
};

/* A positive binary16 number below 2^15 as an integer, nearest even. */
static inline int32_t hr_integer_from_half(int32_t half)
{
    int32_t exponent = half >> 10, mantissa = half & 1023;
    float value = exponent ? (float)(mantissa + 1024) : (float)mantissa;
    value *= hr_integer_power((exponent ? exponent : 1) - 25);
    return (int32_t)(hr_integer_bits(value + HR_INTEGER_MAGIC) - hr_integer_bits(HR_INTEGER_MAGIC));
}

static inline int32_t hr_integer_weight(int32_t distance)
{
    int32_t line = HR_INTEGER_TOP - distance;
    if (line < 0) line = 0;
    int32_t bend = hr_integer_bend[line >> 4 & 63];
    return hr_integer_from_half(line > bend ? line - bend : 0);
}

/* P in U8 of a weight. */
static inline int32_t hr_integer_p(int32_t weight)
{
    return (weight + 64) >> 7;
}

/* What T is too large by: P in I16 is not shifted. */
static inline double hr_integer_p_unit(const hr_kernel_args *args)
{
    return args->p_dtype == HR_DTYPE_I16 ? 128 : 1;
}

/* y to the nearest even integer in [0, 65535]; NaN and |y| >= 2^31 must not come. */
static inline int32_t hr_integer_round16(float y)
{
    if (!(y > 0)) return 0;
    return y < 65535 ? (int32_t)(hr_integer_bits(y + HR_INTEGER_MAGIC) -
                                 hr_integer_bits(HR_INTEGER_MAGIC))
                     : 65535;
}

/*
 * The lane that sums key j of a tile where the tile is even. Vectors of 16 32-bit logits, packed to
 * 16 bits two by two, lie so.
 */
static inline int32_t hr_integer_lane(int32_t j)
{
    return j % 16 / 4 * 4 + j / 16 % 2 * 2 + j % 4 / 2;
}

/* log2(w) for a normal w > 0. */
static inline float hr_integer_log2(float w)
{
    uint32_t bits = hr_integer_bits(w);
    float exponent = (float)((int32_t)(bits >> 23) - 127);
    float u = hr_integer_float((bits & 0x7fffff) | 0x3f800000) - 1.0f;
    float p = fmaf(u, HR_LOG2_D6, HR_LOG2_D5);
    p = fmaf(p, u, HR_LOG2_D4);
    p = fmaf(p, u, HR_LOG2_D3);
    p = fmaf(p, u, HR_LOG2_D2);
    p = fmaf(p, u, HR_LOG2_D1);
    p = fmaf(p, u, HR_LOG2_D0);
    return fmaf(p, u, exponent);
}

/* x >= 0 rounded to 22 significant bits, nearest even. */
static inline float hr_integer_round22(float x)
{
    uint32_t bits = hr_integer_bits(x);
    return hr_integer_float((bits + 1 + (bits >> 2 & 1)) & ~UINT32_C(3));
}

/* |e| < 2^22 rounded to an integer, nearest even. */
static inline int32_t hr_integer_round(float e)
{
    return (int32_t)(hr_integer_bits(e + HR_INTEGER_MAGIC) - hr_integer_bits(HR_INTEGER_MAGIC));
}

/* floor(log2(x)) of a finite x > 0, denormal or not. */
static inline int32_t hr_integer_exponent(float x)
{
    int exponent;
    frexpf(x, &exponent);
    return exponent - 1;
}

/* The scales in groups of channels that a token has; 0 where its scale is not in groups. */
static inline int32_t hr_integer_groups(const hr_kernel_operand *operand, int32_t head_dim)
{
    return operand->granularity == HR_GRANULARITY_GROUP ? head_dim / operand->block : 0;
}

/* The scales of a token's groups. */
static inline const float *hr_integer_group_scales(const hr_kernel_operand *operand, int32_t groups,
                                                   int64_t token)
{
    return operand->scale + hr_kernel_slot(operand, token) * groups;
}

#define HR_INTEGER_MIN_SHARE 0x1p-64f
#define HR_INTEGER_SHARE_UNIT 32767                 /* G of the largest share */
#define HR_INTEGER_SHARE_STEP (32768.0f / 32767.0f) /* what makes up for it in O */

/* a * b / 2^15 to the nearest integer, as vpmulhrsw. */
static inline int32_t hr_integer_product(int32_t a, int32_t b)
{
    return (a * b + (1 << 14)) >> 15;
}

/*
 * f_ig: 256 times what makes 32640 of `largest`, or less. A group whose weights are all below 256
 * gets less than 8 bits, and f fits int16.
 */
static inline int32_t hr_integer_share_factor(int32_t largest)
{
    return (int32_t)(256.0f * 32640.0f / (float)(largest > 256 ? largest : 256));
}

/* The scale that stands for all of `token`: the largest of its groups when it has groups. */
static inline float hr_integer_token_scale(const hr_kernel_operand *operand, int32_t head_dim,
                                           int64_t token)
{
    switch (operand->granularity) {
    case HR_GRANULARITY_TOKEN:
        return operand->scale[hr_kernel_slot(operand, token)];
    case HR_GRANULARITY_BLOCK:
        return operand->scale[token / operand->block];
    case HR_GRANULARITY_GROUP: {
        int32_t groups = head_dim / operand->block;
        const float *scale = operand->scale + hr_kernel_slot(operand, token) * groups;
        float largest = scale[0];
        for (int32_t g = 1; g < groups; g++)
            largest = hr_integer_max(scale[g], largest);
        return largest;
    }
    default:
        return operand->scale[0];
    }
}

/* The factor c_i of step 2; natural units, so without log2(e), when logits are capped. */
static inline double hr_integer_row_factor(const hr_kernel_args *args, int32_t row)
{
    float q_scale = hr_integer_token_scale(&args->q, args->head_dim, row);
    double factor = (double)q_scale * (double)args->softmax_scale;
    return args->softcap == 0 ? factor * HR_INTEGER_LOG2E : factor;
}

/* c_i in the units of a tile, the factor a: unit is 2^F * 1024. The product in double is exact. */
static inline float hr_integer_tile_factor(double factor, double unit)
{
    double scaled = factor * unit;
    return (float)(scaled < HR_INTEGER_MAX_FACTOR ? scaled : HR_INTEGER_MAX_FACTOR);
}

/* Step 7, the tree: k + (k + 8), then + 4, + 2, + 1. */
static inline float hr_integer_sum(const float l[HR_INTEGER_LANES])
{
    float sum[HR_INTEGER_LANES];
    memcpy(sum, l, sizeof sum);
    for (int half = HR_INTEGER_LANES / 2; half > 0; half /= 2)
        for (int k = 0; k < half; k++)
            sum[k] += sum[k + half];
    return sum[0];
}

/*
 * Step 7 for a row whose lanes add up to `sum`: writes its LSE, if wanted, and returns what
 * multiplies O before 2^e. `bias` is what smoothing took from every logit (natural units); the sink
 * is a logit of the problem before smoothing. A row that saw no key has sum = 0 and m = -inf.
 */
static inline float hr_integer_finish(const hr_kernel_args *args, int32_t row, float m, float sum,
                                      double bias)
{
    /* In units of 2^octaves / 255. */
    double total = sum, lse = -INFINITY, octaves = (double)m / HR_INTEGER_OCTAVE;
    if (args->sink > -INFINITY) {
        double sink = ((double)args->sink - bias) * HR_INTEGER_LOG2E - octaves;
        if (total > 0)
            total += 255 * exp2(fmin(sink, 1000));
        else
            lse = args->sink;
    }
    if (args->lse) {
        if (total > 0) lse = HR_INTEGER_LN2 * (octaves + log2(total / 255)) + bias;
        args->lse[row * args->lse_stride] = (float)lse;
    }
    return total > 0 ? (float)(1 / (total * hr_integer_p_unit(args))) : 0.0f;
}

#endif
