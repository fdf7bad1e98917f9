/*
 * What float_decode_avx512.h wants of a kernel whose products, sums and P are FP32, but for how its
 * codes become FP32.
 */
#ifndef HEADROOM_SINGLE_DECODE_AVX512_H
#define HEADROOM_SINGLE_DECODE_AVX512_H

#include <immintrin.h>
#include <stdint.h>

typedef __m512 wide_vec;

enum { OUTPUTS = 16, FLUSH_KEYS = 256, PEAK_WEIGHT = 1 };

#define WIDE_INLINE static inline __attribute__((always_inline))

WIDE_INLINE wide_vec wide_zero(void)
{
    return _mm512_setzero_ps();
}

WIDE_INLINE wide_vec wide_fma(wide_vec a, wide_vec b, wide_vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

WIDE_INLINE wide_vec wide_weight(int32_t dword)
{
    return _mm512_castsi512_ps(_mm512_set1_epi32(dword));
}

WIDE_INLINE void add_vector(float *t, wide_vec sum)
{
    _mm512_store_ps(t, _mm512_add_ps(_mm512_load_ps(t), sum));
}

WIDE_INLINE __m512i weights_of(__m512 p)
{
    return _mm512_castps_si512(p);
}

static inline float float_weight(float weight)
{
    return weight;
}

#endif
