/*
 * Vectors of the integer kernels (integer_tile.h) on AVX2: 8 words of 32 bits, or 16 of 16 bits.
 *
 * With AVX-VNNI operands are bytes, four to a dword, and vpdpbusd multiplies: K as code + 128,
 * since one factor is unsigned. Without, they are 16 bits wide, two to a dword, and vpmaddwd
 * multiplies, which is exact; vpmaddubsw would stop at 32767 where two products make up to 2 * 255
 * * 127.
 */
#ifndef HEADROOM_INTEGER_VEC_AVX2_H
#define HEADROOM_INTEGER_VEC_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#include "integer_softmax.h"

#define INLINE static inline __attribute__((always_inline))

typedef __m256i ivec; /* int32 */
typedef __m256 fvec;
typedef __m256i wvec; /* uint16, or int16 */

/* 16 registers hold 6 x 2 accumulators, 2 operands and a broadcast. */
enum { WIDTH = 8, ROWS = 6, VECS = 2 };

#ifdef __AVXVNNI__
typedef int8_t product_code;
enum { CODES = 4, UNITS = 8, PAIR = 1, K_OFFSET = 128, V_OFFSET = 0 };

/* In assembly: compilers copy the accumulators of the intrinsic. */
INLINE void add_products(ivec *sum, ivec a, ivec b, bool a_unsigned)
{
    if (a_unsigned)
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(*sum) : "x"(a), "x"(b));
    else
        __asm__("%{vex%} vpdpbusd %1, %2, %0" : "+x"(*sum) : "x"(a), "x"(b));
}
#else
typedef int16_t product_code;
enum { CODES = 2, UNITS = 8, PAIR = 1, K_OFFSET = 0, V_OFFSET = 0 };

INLINE void add_products(ivec *sum, ivec a, ivec b, bool a_unsigned)
{
    (void)a_unsigned;
    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a, b));
}
#endif

INLINE ivec ivec_set(int32_t x)
{
    return _mm256_set1_epi32(x);
}

INLINE ivec ivec_load(const void *source)
{
    return _mm256_loadu_si256(source);
}

INLINE void ivec_store(void *target, ivec x)
{
    _mm256_storeu_si256(target, x);
}

INLINE ivec ivec_shift_left(ivec x, int bits)
{
    return _mm256_slli_epi32(x, bits);
}

INLINE fvec fvec_of(ivec x)
{
    return _mm256_cvtepi32_ps(x);
}

INLINE fvec fvec_set(float x)
{
    return _mm256_set1_ps(x);
}

INLINE fvec fvec_load(const float *source)
{
    return _mm256_loadu_ps(source);
}

INLINE void fvec_store(float *target, fvec x)
{
    _mm256_storeu_ps(target, x);
}

INLINE fvec fvec_mul(fvec a, fvec b)
{
    return _mm256_mul_ps(a, b);
}

INLINE fvec fvec_sub(fvec a, fvec b)
{
    return _mm256_sub_ps(a, b);
}

/* a b + c */
INLINE fvec fvec_fma(fvec a, fvec b, fvec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

INLINE wvec wvec_set(uint16_t x)
{
    return _mm256_set1_epi16((int16_t)x);
}

INLINE wvec wvec_load(const void *source)
{
    return _mm256_loadu_si256(source);
}

INLINE void wvec_store(void *target, wvec x)
{
    _mm256_storeu_si256(target, x);
}

INLINE wvec wvec_min(wvec a, wvec b)
{
    return _mm256_min_epu16(a, b);
}

/* a - b, at least 0 */
INLINE wvec wvec_sub(wvec a, wvec b)
{
    return _mm256_subs_epu16(a, b);
}

INLINE wvec wvec_max(wvec a, wvec b)
{
    return _mm256_max_epu16(a, b);
}

/* hr_integer_product. */
INLINE wvec wvec_product(wvec a, wvec b)
{
    return _mm256_mulhrs_epi16(a, b);
}

INLINE uint16_t wvec_least(wvec x)
{
    const __m128i half = _mm_min_epu16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    return (uint16_t)_mm_extract_epi16(_mm_minpos_epu16(half), 0);
}

/* Words whose key is not in [lo, hi) become 65535. */
INLINE wvec wvec_hide(wvec x, wvec key, int16_t lo, int16_t hi)
{
    const __m256i before = _mm256_cmpgt_epi16(_mm256_set1_epi16(lo), key);
    const __m256i seen = _mm256_cmpgt_epi16(_mm256_set1_epi16(hi), key);
    return _mm256_or_si256(x, _mm256_or_si256(before, _mm256_xor_si256(seen, wvec_set(65535))));
}

/* hr_integer_round16 of keys [0, 8) (low) and [16, 24) (high) as words, four by four in turn. */
INLINE wvec round_logits(fvec low, fvec high)
{
    const fvec top = _mm256_set1_ps(65535);
    return _mm256_packus_epi32(_mm256_cvtps_epi32(_mm256_min_ps(low, top)),
                               _mm256_cvtps_epi32(_mm256_min_ps(high, top)));
}

/* Pairs of products of 16-bit numbers added to the lanes of hr_integer_lane. */
INLINE ivec add_weights(ivec sum, wvec e, wvec factor)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(e, factor));
}

/* hr_integer_bend[index] of 32 indices. */
INLINE __m256i look_up_bend(__m256i index)
{
    __m256i bend = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m256i table =
            _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)hr_integer_bend + i));
        /* Indices of this sixteenth get 0x70 to 0x7f, all others the top bit, which gives 0. */
        const __m256i own = _mm256_adds_epu8(
            _mm256_sub_epi8(index, _mm256_set1_epi8((char)(16 * i))), _mm256_set1_epi8(0x70));
        bend = _mm256_or_si256(bend, _mm256_shuffle_epi8(table, own));
    }
    return bend;
}

/*
 * hr_integer_from_half. A number below 2^-14, which has no leading one, may get one: it stays below
 * 1/2 and rounds to 0.
 */
INLINE __m256i from_half(__m256i x)
{
    const __m256i zero = _mm256_setzero_si256(), rebias = _mm256_set1_epi32(112 << 23);
    const __m256i low = _mm256_slli_epi32(_mm256_unpacklo_epi16(x, zero), 13);
    const __m256i high = _mm256_slli_epi32(_mm256_unpackhi_epi16(x, zero), 13);
    return _mm256_packus_epi32(
        _mm256_cvtps_epi32(_mm256_castsi256_ps(_mm256_add_epi32(low, rebias))),
        _mm256_cvtps_epi32(_mm256_castsi256_ps(_mm256_add_epi32(high, rebias))));
}

/* hr_integer_weight of 32 keys, from TOP + N - y, stopped at 0. */
INLINE void weights_of(wvec e[VECS])
{
    const __m256i six = _mm256_set1_epi16(63), zero = _mm256_setzero_si256();
    const __m256i index = _mm256_packus_epi16(_mm256_and_si256(_mm256_srli_epi16(e[0], 4), six),
                                              _mm256_and_si256(_mm256_srli_epi16(e[1], 4), six));
    const __m256i bend = look_up_bend(index);
    e[0] = from_half(_mm256_subs_epu16(e[0], _mm256_unpacklo_epi8(bend, zero)));
    e[1] = from_half(_mm256_subs_epu16(e[1], _mm256_unpackhi_epi8(bend, zero)));
}

/* P of 32 keys, hr_integer_product of e and factor. */
INLINE void store_shared_weights(product_code *p, const wvec e[VECS], wvec factor)
{
    const __m256i low = _mm256_mulhrs_epi16(e[0], factor), high = _mm256_mulhrs_epi16(e[1], factor);
    if (CODES == 4) {
        wvec_store(p, _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), 0xd8));
    } else {
        wvec_store(p, low);
        wvec_store(p + 16, high);
    }
}

/* P of 32 keys; returns total, as V has no offset. */
INLINE ivec store_weights(product_code *p, const wvec e[VECS], ivec total)
{
    store_shared_weights(p, e, _mm256_set1_epi16(256));
    return total;
}

/*
 * The same in 15 bits: as they are where codes have 16 bits, else the upper 8 to `high` and the
 * lower 7 to `low`.
 */
INLINE ivec store_split_weights(product_code *high, product_code *low, const wvec e[VECS],
                                ivec total)
{
    if (CODES == 4) {
        const __m256i lower = _mm256_set1_epi16(127);
        const __m256i upper =
            _mm256_packus_epi16(_mm256_srli_epi16(e[0], 7), _mm256_srli_epi16(e[1], 7));
        const __m256i rest =
            _mm256_packus_epi16(_mm256_and_si256(e[0], lower), _mm256_and_si256(e[1], lower));
        wvec_store(high, _mm256_permute4x64_epi64(upper, 0xd8));
        wvec_store(low, _mm256_permute4x64_epi64(rest, 0xd8));
    } else {
        wvec_store(high, e[0]);
        wvec_store(high + 16, e[1]);
    }
    return total;
}

/* v[i] dword j <-> v[j] dword i. */
INLINE void transpose(ivec v[UNITS])
{
    ivec t[UNITS];
    for (int i = 0; i < UNITS; i += 2) {
        t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < UNITS; i += 4) {
        v[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x31);
    }
    for (int i = 0; i < UNITS; i++)
        v[i] = t[i];
}

#include "integer_dot.h"

#endif
