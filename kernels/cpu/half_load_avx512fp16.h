/*
 * E4M3 codes to FP16 for attention_fp8_avx512fp16.c: queries transposed; keys and values with each
 * number in both halves of a dword, as half_product_avx512fp16.h takes its broadcast operand.
 *
 * A code s eeee mmm moved three places down the significand of binary16, s 0eeeemmm 0000000, is the
 * value times 2^-8, subnormals included: with the code in the high byte of a word, an arithmetic
 * shift by one and a mask.
 */
#ifndef HEADROOM_HALF_LOAD_AVX512FP16_H
#define HEADROOM_HALF_LOAD_AVX512FP16_H

#include "half_product_avx512fp16.h"
#include "half_softmax_avx512fp16.h"

/* 32 words with codes in their high bytes, as value * 2^-8. */
static inline __m512i decode_words(__m512i words)
{
    return _mm512_and_si512(_mm512_srai_epi16(words, 1), _mm512_set1_epi16((short)0xbf80));
}

/* Codes from `row` on, up to 64 of them; those past `left` are 0. */
static inline __m512i load_row(const unsigned char *row, int32_t left)
{
    if (left >= 64) return _mm512_loadu_si512(row);
    return _mm512_maskz_loadu_epi8(((__mmask64)1 << left) - 1, row);
}

/* Keeps the largest of codes without their signs: a NaN is 0x7f. */
static inline __m512i watch_nan(__m512i largest, __m512i codes)
{
    return _mm512_max_epu8(largest, _mm512_or_si512(codes, _mm512_set1_epi8((char)0x80)));
}

static inline bool has_nan(__m512i largest)
{
    return _mm512_cmpeq_epi8_mask(largest, _mm512_set1_epi8(-1)) != 0;
}

static inline __m512i times(__m512i x, __m512h factor)
{
    return _mm512_castph_si512(_mm512_mul_ph(_mm512_castsi512_ph(x), factor));
}

/*
 * Tokens [token, token + count) to out [count][channels], as value * 2^-8 * power, twice; tokens up
 * to the next multiple of `multiple` become 0, as do channels between head_dim and `channels`.
 * False when a code is NaN. Writing them, to the second-level cache, takes longer than decoding.
 */
FLOAT_INLINE bool load_twice(const hr_kernel_operand *operand, int32_t token, int32_t count,
                             int32_t multiple, int32_t head_dim, float power, uint32_t *out)
{
    const int32_t channels = padded_channels(head_dim);
    const __m512h factor = half_set(power);
    __m512i spread[4], largest = _mm512_setzero_si512(); /* spread: each place of 16 four times */
    spread[0] = _mm512_set_epi64(0x0f0f0f0f0e0e0e0e, 0x0d0d0d0d0c0c0c0c, 0x0b0b0b0b0a0a0a0a,
                                 0x0909090908080808, 0x0707070706060606, 0x0505050504040404,
                                 0x0303030302020202, 0x0101010100000000);
    for (int i = 1; i < 4; i++)
        spread[i] = _mm512_add_epi8(spread[i - 1], _mm512_set1_epi8(16));
    for (int32_t i = 0; i < count; i++, out += channels) {
        const unsigned char *row = row_of(operand, (size_t)head_dim, token + i);
        for (int32_t channel = 0; channel < head_dim; channel += 64) {
            const __m512i codes = load_row(row + channel, head_dim - channel);
            largest = watch_nan(largest, codes);
            for (int c = 0; c < 4 && channel + 16 * c < channels; c++) {
                __m512i x = decode_words(_mm512_permutexvar_epi8(spread[c], codes));
                if (power != 1) x = times(x, factor);
                _mm512_store_si512(out + channel + 16 * c, x);
            }
        }
    }
    const int32_t padding = (multiple - count % multiple) % multiple;
    memset(out, 0, (size_t)padding * (size_t)channels * sizeof *out);
    return !has_nan(largest);
}

/*
 * The transpose of up to 32 tokens, as value * 2^-8 * power, in out [head_dim][stride]; the lanes
 * of tokens past `count` become 0. Four channels, a dword of codes, are transposed as one. False
 * when a code is NaN.
 */
FLOAT_INLINE bool load_transposed(const hr_kernel_operand *operand, int32_t token, int32_t count,
                                  int32_t head_dim, float power, _Float16 *out, int32_t stride)
{
    const __m512h factor = half_set(power);
    const __m512i even =
        _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                         24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
    __m512i largest = _mm512_setzero_si512();
    for (int32_t channel = 0; channel < head_dim; channel += 64) {
        const int32_t left = head_dim - channel;
        vec rows[2][VEC_WIDTH]; /* 16 tokens each, then a dword of each of 16 tokens */
        for (int i = 0; i < HALF_LANES; i++) {
            __m512i codes = _mm512_setzero_si512();
            if (i < count)
                codes = load_row(row_of(operand, (size_t)head_dim, token + i) + channel, left);
            largest = watch_nan(largest, codes);
            rows[i / VEC_WIDTH][i % VEC_WIDTH] = _mm512_castsi512_ps(codes);
        }
        vec_transpose(rows[0]);
        vec_transpose(rows[1]);
        for (int i = 0; i < VEC_WIDTH && 4 * i < left; i++) {
            const __m512i low = _mm512_castps_si512(rows[0][i]);
            const __m512i high = _mm512_castps_si512(rows[1][i]);
            for (int pair = 0; pair < 2; pair++) {
                const __m512i two = _mm512_permutex2var_epi16(low, pair ? odd : even, high);
                _Float16 *target = out + (channel + 4 * i + 2 * pair) * stride;
                _mm512_storeu_si512(target, times(decode_words(_mm512_slli_epi16(two, 8)), factor));
                _mm512_storeu_si512(target + stride, times(decode_words(two), factor));
            }
        }
    }
    return !has_nan(largest);
}

#endif
