/*
 * The softmax of attention_fp8_avx512fp16.c on 32 rows at once, one row a lane, in FP16:
 *
 *     p = 2^(c (s - m))        s, m: scores and their largest of the tile; c: per row
 *
 * P stays FP16, which holds more than the recipe's E4M3: rounding it would cost four operations and
 * most of the accuracy. s - m and x = c (s - m) are relative to the distance from the largest
 * score, so that heavy weights, near m, get the small errors.
 *
 * 2^x: n = round(x) appears in the low bits of x + 1561, where FP16 has steps of 1; 2^(x - n) is a
 * polynomial, times 2^-10; and n + 25, shifted into the exponent, is 2^(n + 10). The last product
 * then rounds once, into subnormals too. Below 2^-24.5 weights become 0. (vreduceph and vscalefph
 * would do it in two instructions fewer, but take three and two operations each.)
 */
#ifndef HEADROOM_HALF_SOFTMAX_AVX512FP16_H
#define HEADROOM_HALF_SOFTMAX_AVX512FP16_H

#include <immintrin.h>

/* x is clamped to -HALF_EXPONENTS, where n is -25 and p 0. */
#define HALF_EXPONENTS 24.9f

static inline __m512h half_set(float value)
{
    return _mm512_set1_ph((_Float16)value);
}

/*
 * Scores of 8 keys, `s` [8][WEIGHT_STRIDE] of which 32 are taken, become weights in place; returns
 * each row's sum of them. Weights are at most 1; limit = HALF_EXPONENTS / c. A score of -inf,
 * masked, has p = 0, and so has every score when the largest is -inf: the distance m - s is NaN
 * then, and vminph returns its second operand. The polynomial is the minimax one of degree 3 on
 * [-1/2, 1/2] among those exact at 0, relative error 1.0e-4.
 *
 * Assembly, for the same speed with any compiler: 10 operations a vector, all 8 vectors one
 * operation at a time. zmm0-7: the distance, then r; zmm8-15: x + 1561, then 2^n; zmm16-23: n, then
 * 2^r. Operands that an instruction overwrites come from memory, as loads take no vector port.
 */
/* clang-format off */
#define Z(n) "%%zmm" #n
#define DISTANCE(a, t, y, at) "vsubph " #at "(%[s]), %[largest], " Z(a) "\n\t"
#define CLAMP(a, t, y, at) "vminph %[limit], " Z(a) ", " Z(a) "\n\t"
#define SHIFT(a, t, y, at) "vpbroadcastd %[magic2], " Z(t) "\n\t"                                  \
    "vfnmadd231ph %[c], " Z(a) ", " Z(t) "\n\t"
#define ROUND(a, t, y, at) "vsubph %[magic], " Z(t) ", " Z(y) "\n\t"
#define REST(a, t, y, at) "vfnmsub213ph " Z(y) ", %[c], " Z(a) "\n\t"
#define CUBE(a, t, y, at) "vpbroadcastd %[k3], " Z(y) "\n\t"                                       \
    "vfmadd213ph %[k2], " Z(a) ", " Z(y) "\n\t"
#define SQUARE(a, t, y, at) "vfmadd213ph %[k1], " Z(a) ", " Z(y) "\n\t"
#define LINEAR(a, t, y, at) "vfmadd213ph %[k0], " Z(a) ", " Z(y) "\n\t"
#define POWER(a, t, y, at) "vpsllw $10, " Z(t) ", " Z(t) "\n\t"
#define WEIGHT(a, t, y, at) "vmulph " Z(t) ", " Z(y) ", " Z(y) "\n\t"
#define STORE(a, t, y, at) "vmovups " Z(y) ", " #at "(%[s])\n\t"
#define ADD(x, y) "vaddph " Z(y) ", " Z(x) ", " Z(x) "\n\t"
#define ALL(f)                                                                                     \
    f(0, 8, 16, 0) f(1, 9, 17, 192) f(2, 10, 18, 384) f(3, 11, 19, 576)                            \
    f(4, 12, 20, 768) f(5, 13, 21, 960) f(6, 14, 22, 1152) f(7, 15, 23, 1344)
/* clang-format on */

enum { WEIGHT_KEYS = 8, WEIGHT_STRIDE = 96 };

static inline __m512h half_weigh_keys(_Float16 *s, __m512h largest, __m512h c, __m512h limit)
{
    const __m512h magic = half_set(1536 + 25);
    const __m512h k2 = half_set(0x1p-10f * 0.2422108f), k1 = half_set(0x1p-10f * 0.693283f);
    const _Float16 magic2[2] = {1536 + 25, 1536 + 25};
    const _Float16 k3[2] = {(_Float16)(0x1p-10f * 0.0550085f), (_Float16)(0x1p-10f * 0.0550085f)};
    register __m512h sum __asm__("zmm16");
    __asm__ volatile(ALL(DISTANCE) ALL(CLAMP) ALL(SHIFT) ALL(ROUND) ALL(REST) ALL(CUBE) ALL(SQUARE)
                         ALL(LINEAR) ALL(POWER) ALL(WEIGHT) ALL(STORE) /**/
                     ADD(16, 20) ADD(17, 21) ADD(18, 22) ADD(19, 23) ADD(16, 18) ADD(17, 19)
                         ADD(16, 17)
                     : "=&v"(sum) /* no input may be in it */
                     : [s] "r"(s), [largest] "v"(largest), [c] "v"(c), [limit] "v"(limit),
                       [magic] "v"(magic), [k2] "v"(k2), [k1] "v"(k1), [k0] "v"(half_set(0x1p-10f)),
                       [magic2] "m"(magic2), [k3] "m"(k3)
                     : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                       "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
                       "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23");
    return sum;
}

#undef Z
#undef DISTANCE
#undef CLAMP
#undef SHIFT
#undef ROUND
#undef REST
#undef CUBE
#undef SQUARE
#undef LINEAR
#undef POWER
#undef WEIGHT
#undef STORE
#undef ADD
#undef ALL

/* The two halves of a vector as floats. */
static inline __m512 half_low(__m512h x)
{
    return _mm512_cvtxph_ps(_mm512_castph512_ph256(x));
}

static inline __m512 half_high(__m512h x)
{
    return _mm512_cvtxph_ps(
        _mm256_castsi256_ph(_mm512_extracti64x4_epi64(_mm512_castph_si512(x), 1)));
}

#endif
