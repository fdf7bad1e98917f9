/*
 * E4M3 in the decode kernels: the bits of a code three places down the mantissa are an FP16 of 2^-8
 * times the value, subnormals included. Its NaN, which becomes a number, is watched for.
 */
#ifndef HEADROOM_E4M3_DECODE_AVX512_H
#define HEADROOM_E4M3_DECODE_AVX512_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define E4M3_SCALE 0x1p8f /* a value over its FP16 */
#define WIDE_INLINE static inline __attribute__((always_inline))

/* Every other code of 64, from code `plane` on, as the bits of FP16. */
WIDE_INLINE __m512i half_of(__m512i raw, int plane)
{
    const __m512i high = plane ? raw : _mm512_slli_epi16(raw, 8);
    return _mm512_and_si512(_mm512_srai_epi16(high, 1), _mm512_set1_epi16((short)0xbf80));
}

/* The same, NaN included. */
WIDE_INLINE __m512i half_or_nan_of(__m512i raw, int plane)
{
    const __m512i half = half_of(raw, plane);
    const __m512i magnitude = _mm512_and_si512(half, _mm512_set1_epi16(0x7fff));
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f << 7));
    return _mm512_mask_mov_epi16(half, nan, _mm512_set1_epi16(0x7e00));
}

/* 16 numbers of FP16, the lower or the upper ones. */
WIDE_INLINE __m512 floats_of(__m512i half, int upper)
{
    return _mm512_cvtph_ps(upper ? _mm512_extracti64x4_epi64(half, 1)
                                 : _mm512_castsi512_si256(half));
}

static inline float value_of(uint32_t code)
{
    if ((code & 0x7f) == 0x7f) return NAN;
    const uint16_t bits = (uint16_t)((code & 0x80) << 8 | (code & 0x7f) << 7);
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))) * E4M3_SCALE;
}

/* The largest magnitudes: 0x7f is NaN. */
WIDE_INLINE void watch_value(__m512i *seen, __m512i raw)
{
    *seen = _mm512_max_epu8(*seen, _mm512_and_si512(raw, _mm512_set1_epi8(0x7f)));
}

WIDE_INLINE void watch_key(__m512i *seen, __m512i raw)
{
    watch_value(seen, raw);
}

static inline int is_special(__m512i seen)
{
    return _mm512_cmpeq_epi8_mask(seen, _mm512_set1_epi8(0x7f)) != 0;
}

#endif
