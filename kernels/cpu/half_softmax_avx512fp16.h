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

/* The least exponent: x is clamped to it, where n is -25 and p 0. */
#define HALF_LEAST_EXPONENT (-24.9f)

static inline __m512h half_set(float value)
{
    return _mm512_set1_ph((_Float16)value);
}

/*
 * p of one vector, at most 1; least = HALF_LEAST_EXPONENT / c. A score of -inf, masked, has p = 0,
 * and so has every score when the largest is -inf: the difference is NaN then, and vmaxph returns
 * its second operand. The polynomial is the minimax one of degree 3 on [-1/2, 1/2] among those
 * exact at 0, relative error 1.0e-4.
 */
static inline __m512h half_weights(__m512h scores, __m512h largest, __m512h c, __m512h least)
{
    const __m512h magic = half_set(1536 + 25);
    const float unit = 0x1p-10f;
    __m512h d = _mm512_max_ph(_mm512_sub_ph(scores, largest), least);
    __m512h shifted = _mm512_fmadd_ph(d, c, magic);
    __m512h r = _mm512_fmsub_ph(d, c, _mm512_sub_ph(shifted, magic));
    __m512h y = _mm512_fmadd_ph(half_set(unit * 0.0550085f), r, half_set(unit * 0.2422108f));
    y = _mm512_fmadd_ph(y, r, half_set(unit * 0.693283f));
    y = _mm512_fmadd_ph(y, r, half_set(unit));
    __m512i power = _mm512_slli_epi16(_mm512_castph_si512(shifted), 10);
    return _mm512_mul_ph(y, _mm512_castsi512_ph(power));
}

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
