/*
 * BF16 decode on AVX-512: K and V become FP32 by a shift or a mask; products, P and statistics are
 * FP32.
 */
#include <math.h>
#include <string.h>

#include "single_decode_avx512.h"

enum { CODE_BYTES = 2 };

#define PRODUCT_SCALE 1.0f
#define VALUE_SCALE 1.0f

WIDE_INLINE wide_vec wide_of(__m512i raw, int plane)
{
    return _mm512_castsi512_ps(plane ? _mm512_and_si512(raw, _mm512_set1_epi32((int32_t)0xffff0000))
                                     : _mm512_slli_epi32(raw, 16));
}

WIDE_INLINE __m512 sum_two(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

WIDE_INLINE __m512 sum_keys(const wide_vec sum[4])
{
    return sum_two(sum_two(sum[0], sum[1]), sum_two(sum[2], sum[3]));
}

static inline float value_of(uint32_t code)
{
    const uint32_t bits = code << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

WIDE_INLINE wide_vec query_of(__m512i raw, int plane)
{
    return wide_of(raw, plane);
}

/* NaN and infinity of K come out of the products by themselves. */
WIDE_INLINE void watch_key(__m512i *seen, __m512i raw)
{
    (void)seen;
    (void)raw;
}

/* The largest magnitudes. */
WIDE_INLINE void watch_value(__m512i *seen, __m512i raw)
{
    *seen = _mm512_max_epu16(*seen, _mm512_and_si512(raw, _mm512_set1_epi16(0x7fff)));
}

static inline int is_special(__m512i seen)
{
    return _mm512_cmpge_epu16_mask(seen, _mm512_set1_epi16(0x7f80)) != 0;
}

#include "float_decode_avx512.h"
#include "kernel_rows.h"

size_t hr_attention_bf16_decode_avx512_scratch(int32_t head_dim)
{
    return float_decode_scratch(head_dim);
}

void hr_attention_bf16_decode_avx512(const hr_kernel_args *args)
{
    float_decode_run(args);
}
