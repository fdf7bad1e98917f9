/*
 * Vectors of 8 floats, AVX2 with FMA and F16C. The functions of vec_portable.h, where they are
 * described. 16 registers hold a product tile of 6 x 2 accumulators, 2 operands and a broadcast.
 */
#ifndef HEADROOM_VEC_AVX2_H
#define HEADROOM_VEC_AVX2_H

#include <immintrin.h>
#include <stdint.h>

enum { VEC_WIDTH = 8, ROWS = 6, VECS = 2 };

typedef __m256 vec;

static inline vec vec_set(float value)
{
    return _mm256_set1_ps(value);
}

static inline vec vec_load(const float *source)
{
    return _mm256_loadu_ps(source);
}

static inline void vec_store(float *target, vec value)
{
    _mm256_storeu_ps(target, value);
}

static inline vec vec_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}

static inline vec vec_sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}

static inline vec vec_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}

static inline vec vec_div(vec a, vec b)
{
    return _mm256_div_ps(a, b);
}

static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline vec vec_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

static inline vec vec_and(vec a, uint32_t mask)
{
    return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32((int)mask)));
}

static inline vec vec_copysign(vec a, vec sign)
{
    const vec top = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MIN));
    return _mm256_or_ps(_mm256_andnot_ps(top, a), _mm256_and_ps(top, sign));
}

static inline vec vec_shift_to_exponent(vec a)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23));
}

static inline float vec_reduce_max(vec a)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

static inline float vec_reduce_add(vec a)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* 8 x 8 in three rounds: pairs of rows, quads of rows, 128-bit halves. */
static inline void vec_transpose(vec rows[VEC_WIDTH])
{
    vec t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        rows[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        rows[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        rows[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        rows[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++)
        rows[i] = t[i];
}

static inline vec vec_load_bf16(const uint16_t *source)
{
    __m128i codes = _mm_loadu_si128((const __m128i *)(const void *)source);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(codes), 16));
}

/* Through binary16, as in vec_avx512.h. */
static inline vec vec_load_e4m3(const uint8_t *source)
{
    __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)(const void *)source));
    __m128i half = _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16((short)0xbf80));
    const __m128i all_ones = _mm_set1_epi16(0x3f80);
    __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(half, all_ones), all_ones);
    half = _mm_or_si128(half, _mm_and_si128(nan, _mm_set1_epi16(0x7e00)));
    return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
}

static inline vec vec_load_i8(const int8_t *source)
{
    __m128i codes = _mm_loadl_epi64((const __m128i *)(const void *)source);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
}

#endif
