/*
 * The softmax of attention_fp8_avx512fp16.c on 32 rows at once, one row a lane, in FP16:
 *
 *     p = 1.75 * 2^(c (s - m))        s, m: scores and their largest of the tile; c: per row
 *     P = p rounded to E4M3
 *
 * A code of E4M3 shifted into binary16 stands for its value times 2^-8, subnormals included, so
 * E4M3's 448 is 1.75 here and its step of 2^-9 is 2^-17. s - m and the products are relative to the
 * distance from the largest score, so that heavy weights, near m, get the small errors.
 *
 * 2^x: n = round(x) appears in the low bits of x + 1561, where FP16 has steps of 1; 2^(x - n) is a
 * polynomial, times 2^-10; and n + 25, shifted into the exponent, is 2^(n + 10). The last product
 * then rounds once, into subnormals too. Below 2^-25 weights become 0.
 */
#ifndef HEADROOM_HALF_SOFTMAX_AVX512FP16_H
#define HEADROOM_HALF_SOFTMAX_AVX512FP16_H

#include <immintrin.h>

/* The largest weight, and the least exponent: x is clamped to it, where n is -25 and p 0. */
#define HALF_TOP 1.75f
#define HALF_LEAST_EXPONENT (-24.9f)

static inline __m512h half_set(float value)
{
    return _mm512_set1_ph((_Float16)value);
}

/*
 * p of one vector; least = HALF_LEAST_EXPONENT / c. A score of -inf, masked, has p = 0, and so has
 * every score when the largest is -inf: the difference is NaN then, and vmaxph returns its second
 * operand. The polynomial is the minimax one of degree 3 on [-1/2, 1/2] among those exact at 0,
 * relative error 1.0e-4.
 */
static inline __m512h half_weights(__m512h scores, __m512h largest, __m512h c, __m512h least)
{
    const __m512h magic = half_set(1536 + 25);
    const float unit = HALF_TOP * 0x1p-10f;
    __m512h d = _mm512_max_ph(_mm512_sub_ph(scores, largest), least);
    __m512h shifted = _mm512_fmadd_ph(d, c, magic);
    __m512h r = _mm512_fmsub_ph(d, c, _mm512_sub_ph(shifted, magic));
    __m512h y = _mm512_fmadd_ph(half_set(unit * 0.0550085f), r, half_set(unit * 0.2422108f));
    y = _mm512_fmadd_ph(y, r, half_set(unit * 0.693283f));
    y = _mm512_fmadd_ph(y, r, half_set(unit));
    __m512i power = _mm512_slli_epi16(_mm512_castph_si512(shifted), 10);
    return _mm512_mul_ph(y, _mm512_castsi512_ph(power));
}

/*
 * p to E4M3's nearest value, ties to even: adding 2^7 times p's power of two (at least that of the
 * smallest normal value) leaves three bits after the leading one.
 */
static inline __m512h half_round_e4m3(__m512h p)
{
    __m512i bits = _mm512_and_si512(_mm512_castph_si512(p), _mm512_set1_epi16(0x7c00));
    __m512h power = _mm512_max_ph(_mm512_castsi512_ph(bits), half_set(0x1p-14f));
    __m512h shifted = _mm512_fmadd_ph(power, half_set(128), p);
    return _mm512_fmadd_ph(power, half_set(-128), shifted);
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
