/*
 * E4M3 codes to FP16 for attention_fp8_avx512fp16.c, each value in both halves of a dword, as
 * half_product_avx512fp16.h takes its broadcast operand.
 *
 * A code s eeee mmm moved three places down the significand of binary16, s 0eeeemmm 0000000, is the
 * value times 2^-8, subnormals included: with the code in both bytes of a word, an arithmetic shift
 * by one and a mask.
 */
#ifndef HEADROOM_HALF_LOAD_AVX512FP16_H
#define HEADROOM_HALF_LOAD_AVX512FP16_H

#include "half_softmax_avx512fp16.h"

/* 16 of 64 codes as value * 2^-8; `spread` has each of their places four times. */
static inline __m512i decode_codes(__m512i codes, __m512i spread)
{
    __m512i four = _mm512_permutexvar_epi8(spread, codes);
    return _mm512_and_si512(_mm512_srai_epi16(four, 1), _mm512_set1_epi16((short)0xbf80));
}

/*
 * Codes of tokens [token, token + count) to out [count][channels], times `power`; tokens up to the
 * next multiple of `multiple` become 0, as do channels between head_dim and `channels`. False when
 * a code is NaN.
 */
FLOAT_INLINE bool load_codes_twice(const hr_kernel_operand *operand, int32_t token, int32_t count,
                                   int32_t multiple, int32_t head_dim, float power, uint32_t *out)
{
    const int32_t channels = padded_channels(head_dim);
    const __m512h factor = half_set(power);
    const __m512i first = _mm512_set_epi64(
        0x0f0f0f0f0e0e0e0e, 0x0d0d0d0d0c0c0c0c, 0x0b0b0b0b0a0a0a0a, 0x0909090908080808,
        0x0707070706060606, 0x0505050504040404, 0x0303030302020202, 0x0101010100000000);
    const __m512i sign = _mm512_set1_epi8((char)0x80), all = _mm512_set1_epi8(-1);
    __mmask64 nan = 0;
    for (int32_t i = 0; i < count; i++, out += channels) {
        const unsigned char *row = row_of(operand, (size_t)head_dim, token + i);
        for (int32_t channel = 0; channel < head_dim; channel += 64) {
            const int32_t left = head_dim - channel;
            const __mmask64 there = left < 64 ? ((__mmask64)1 << left) - 1 : ~(__mmask64)0;
            const __m512i codes = _mm512_maskz_loadu_epi8(there, row + channel);
            nan |= _mm512_cmpeq_epi8_mask(_mm512_or_si512(codes, sign), all);
            __m512i spread = first;
            for (int32_t c = 0; c < left && c < 64; c += 16) {
                __m512i x = decode_codes(codes, spread);
                if (power != 1)
                    x = _mm512_castph_si512(_mm512_mul_ph(_mm512_castsi512_ph(x), factor));
                _mm512_store_si512(out + channel + c, x);
                spread = _mm512_add_epi8(spread, _mm512_set1_epi8(16));
            }
        }
    }
    const int32_t padding = (multiple - count % multiple) % multiple;
    memset(out, 0, (size_t)padding * (size_t)channels * sizeof *out);
    return nan == 0;
}

/* 32 rows of 16 doubled values to 16 channels of 32 rows. */
static inline void transpose_rows(const uint32_t *rows, int32_t stride, _Float16 *out,
                                  int32_t stride_out)
{
    vec low[16], high[16];
    for (int i = 0; i < 16; i++) {
        low[i] = vec_load((const float *)(const void *)(rows + i * stride));
        high[i] = vec_load((const float *)(const void *)(rows + (i + 16) * stride));
    }
    vec_transpose(low);
    vec_transpose(high);
    for (int i = 0; i < 16; i++) {
        __m512i both = _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm512_cvtepi32_epi16(_mm512_castps_si512(low[i]))),
            _mm512_cvtepi32_epi16(_mm512_castps_si512(high[i])), 1);
        _mm512_store_si512(out + i * stride_out, both);
    }
}

#endif
