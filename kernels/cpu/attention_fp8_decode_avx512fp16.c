/*
 * FP8 decode on AVX512-FP16. Products are made in FP16, on codes turned into FP16 by two or three
 * operations for 32 of them (e4m3_decode_avx512.h):
 *
 *     S   head_dim / 8 of them are added up in one element, then three times two; Q is kept at
 *         2^-2, so that the sum stays below 448 * 2^-2 * 1.75 * 256 = 50176
 *     T   128 keys are added up, P at most 224: below 224 * 1.75 * 128 = 50176; then in FP32
 *
 * tests/check_bound.h has what that costs. P is not rounded to E4M3: FP16 holds more.
 */
#include <string.h>

#include "e4m3_decode_avx512.h"

typedef __m512h wide_vec;

enum { CODE_BYTES = 1, OUTPUTS = 32, FLUSH_KEYS = 128, PEAK_WEIGHT = 224 };

#define PRODUCT_SCALE 0x1p10f
#define VALUE_SCALE E4M3_SCALE
#define QUERY_SCALE 0x1p6f16 /* times 2^-8 of half_of: 2^-2 */

WIDE_INLINE wide_vec wide_zero(void)
{
    return _mm512_setzero_ph();
}

WIDE_INLINE wide_vec wide_of(__m512i raw, int plane)
{
    return _mm512_castsi512_ph(half_of(raw, plane));
}

WIDE_INLINE wide_vec query_of(__m512i raw, int plane)
{
    return _mm512_mul_ph(_mm512_castsi512_ph(half_or_nan_of(raw, plane)),
                         _mm512_set1_ph(QUERY_SCALE));
}

WIDE_INLINE wide_vec wide_fma(wide_vec a, wide_vec b, wide_vec c)
{
    return _mm512_fmadd_ph(a, b, c);
}

/* A dword holds the weight twice: broadcasting it takes no vector port. */
WIDE_INLINE wide_vec wide_weight(int32_t dword)
{
    return _mm512_castsi512_ph(_mm512_set1_epi32(dword));
}

WIDE_INLINE wide_vec sum_two(wide_vec a, wide_vec b)
{
    const __m512i x = _mm512_castph_si512(a), y = _mm512_castph_si512(b);
    return _mm512_add_ph(_mm512_castsi512_ph(_mm512_shuffle_i32x4(x, y, 0x88)),
                         _mm512_castsi512_ph(_mm512_shuffle_i32x4(x, y, 0xdd)));
}

/* A key's two halves are in one dword. */
WIDE_INLINE __m512 sum_keys(const wide_vec sum[4])
{
    const wide_vec pairs = sum_two(sum_two(sum[0], sum[1]), sum_two(sum[2], sum[3]));
    const __m512i swapped = _mm512_ror_epi32(_mm512_castph_si512(pairs), 16);
    const wide_vec both = _mm512_add_ph(pairs, _mm512_castsi512_ph(swapped));
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_castph_si512(both)));
}

WIDE_INLINE void add_vector(float *t, wide_vec sum)
{
    const __m512i bits = _mm512_castph_si512(sum);
    const __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(bits));
    const __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1));
    _mm512_store_ps(t, _mm512_add_ps(_mm512_load_ps(t), low));
    _mm512_store_ps(t + 16, _mm512_add_ps(_mm512_load_ps(t + 16), high));
}

WIDE_INLINE __m512i weights_of(__m512 p)
{
    const __m512i half = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(p, 0));
    return _mm512_or_si512(half, _mm512_slli_epi32(half, 16));
}

static inline float float_weight(float weight)
{
    uint32_t bits;
    memcpy(&bits, &weight, sizeof bits);
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128((int)(bits & 0xffff))));
}

#include "float_decode_avx512.h"
#include "kernel_rows.h"

size_t hr_attention_fp8_decode_avx512fp16_scratch(int32_t head_dim)
{
    return float_decode_scratch(head_dim);
}

void hr_attention_fp8_decode_avx512fp16(const hr_kernel_args *args)
{
    float_decode_run(args);
}
