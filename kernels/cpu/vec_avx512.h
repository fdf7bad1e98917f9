/*
 * Vectors of 16 floats, AVX-512 F/BW/VL/DQ. The functions of vec_portable.h, where they are
 * described. 32 registers hold a product tile of 6 x 4 accumulators, 4 operands and a broadcast.
 */
#ifndef HEADROOM_VEC_AVX512_H
#define HEADROOM_VEC_AVX512_H

#include <immintrin.h>
#include <stdint.h>

enum { VEC_WIDTH = 16, ROWS = 6, VECS = 4 };

typedef __m512 vec;

static inline vec vec_set(float value)
{
    return _mm512_set1_ps(value);
}

static inline vec vec_load(const float *source)
{
    return _mm512_loadu_ps(source);
}

static inline void vec_store(float *target, vec value)
{
    _mm512_storeu_ps(target, value);
}

static inline vec vec_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}

static inline vec vec_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}

static inline vec vec_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}

static inline vec vec_div(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}

static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline vec vec_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

static inline vec vec_and(vec a, uint32_t mask)
{
    return _mm512_and_ps(a, _mm512_castsi512_ps(_mm512_set1_epi32((int)mask)));
}

static inline vec vec_copysign(vec a, vec sign)
{
    const __m512i top = _mm512_set1_epi32(INT32_MIN);
    /* Truth table of (selector ? second : third), 0xca. */
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(top, _mm512_castps_si512(sign), _mm512_castps_si512(a), 0xca));
}

static inline vec vec_shift_to_exponent(vec a)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23));
}

static inline float vec_reduce_max(vec a)
{
    return _mm512_reduce_max_ps(a);
}

static inline float vec_reduce_add(vec a)
{
    return _mm512_reduce_add_ps(a);
}

/* 16 x 16 in four rounds: pairs of rows, quads of rows, 128-bit lanes, 256-bit halves. */
static inline void vec_transpose(vec rows[VEC_WIDTH])
{
    vec t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        rows[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        rows[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        rows[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 16; j += 8) {
            t[i + j] = _mm512_shuffle_f32x4(rows[i + j], rows[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_f32x4(rows[i + j], rows[i + j + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        rows[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    }
}

static inline vec vec_load_bf16(const uint16_t *source)
{
    __m256i codes = _mm256_loadu_si256((const __m256i *)(const void *)source);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(codes), 16));
}

/*
 * E4M3 moved into binary16: the same bits three places down the mantissa, an exponent bias 8 less,
 * hence * 2^8. Binary16 keeps E4M3's subnormals, which the conversion instruction takes at full
 * speed; code 0x7f becomes a NaN.
 */
static inline vec vec_load_e4m3(const uint8_t *source)
{
    __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)source));
    __m256i half = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16((short)0xbf80));
    const __m256i all_ones = _mm256_set1_epi16(0x3f80);
    __mmask16 nan = _mm256_cmpeq_epi16_mask(_mm256_and_si256(half, all_ones), all_ones);
    half = _mm256_mask_mov_epi16(half, nan, _mm256_set1_epi16(0x7e00));
    return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
}

static inline vec vec_load_i8(const int8_t *source)
{
    __m128i codes = _mm_loadu_si128((const __m128i *)(const void *)source);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
}

#endif
