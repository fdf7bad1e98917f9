/*
 * Vectors of the integer decode kernels (integer_decode_tile.h) on AVX2: rows of 32 bytes of codes
 * to the operands that integer_vec_avx2.h multiplies.
 *
 * Without AVX-VNNI operands are words. A vector of bytes becomes two, its even and its odd bytes,
 * each in the upper half of a word: a shift and a mask cost less than two sign extensions, which
 * one port alone makes, and sums are shifted back by 8 bits at the end, exactly.
 */
#ifndef HEADROOM_INTEGER_DECODE_VEC_AVX2_H
#define HEADROOM_INTEGER_DECODE_VEC_AVX2_H

#include "integer_vec_avx2.h"

#ifdef __AVXVNNI__
enum { SPLIT = 1, SUM_SHIFT = 0 };
#else
enum { SPLIT = 2, SUM_SHIFT = 8 };
#endif

/*
 * RAW: bytes of a vector of codes. KEY_ROWS: rows whose products with 4 keys are summed together,
 * VALUE_VECTORS: vectors of O that 4 rows' are: 8 sums and their operands fit 16 registers.
 * FEW_VECTORS: those of O that one row keeps.
 */
enum { RAW = 32, KEY_ROWS = 2, VALUE_VECTORS = 2, FEW_VECTORS = 8 };

INLINE ivec ivec_add(ivec a, ivec b)
{
    return _mm256_add_epi32(a, b);
}

INLINE ivec ivec_shift_right(ivec x, int bits)
{
    return _mm256_srai_epi32(x, bits);
}

INLINE ivec bytes_set(int x)
{
    return _mm256_set1_epi8((char)x);
}

INLINE ivec bytes_sub(ivec a, ivec b)
{
    return _mm256_sub_epi8(a, b);
}

INLINE ivec bytes_xor(ivec a, ivec b)
{
    return _mm256_xor_si256(a, b);
}

/* The 16 levels of nibbles as look_up_levels takes them. */
INLINE ivec load_levels(const int8_t levels[16])
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)levels));
}

/* What the low or the high nibbles of 32 bytes stand for. */
INLINE ivec look_up_levels(ivec levels, ivec bytes, int high)
{
    if (high) bytes = _mm256_srli_epi16(bytes, 4);
    return _mm256_shuffle_epi8(levels, _mm256_and_si256(bytes, _mm256_set1_epi8(15)));
}

/* A vector of bytes as operands of products. */
INLINE void split_bytes(ivec bytes, ivec out[SPLIT])
{
    if (SPLIT == 1) {
        out[0] = bytes;
    } else {
        out[0] = _mm256_slli_epi16(bytes, 8);
        out[SPLIT - 1] = _mm256_and_si256(bytes, _mm256_set1_epi16((short)0xff00));
    }
}

/* Dword i of a lane: the sum of a lane of v[i], which is one key's. */
INLINE ivec sum_dwords(const ivec v[4])
{
    const ivec ab =
        _mm256_add_epi32(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
    const ivec cd =
        _mm256_add_epi32(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
}

/* WIDTH keys' sums from those of sum_dwords. */
INLINE ivec join_sums(const ivec sum[WIDTH / 4])
{
    return _mm256_add_epi32(_mm256_permute2x128_si256(sum[0], sum[1], 0x20),
                            _mm256_permute2x128_si256(sum[0], sum[1], 0x31));
}

/*
 * CODES rows side by side, within lanes. VNNI: four vectors of bytes, of which vector k, lane L has
 * bytes 16 L + 4 k .. + 3. Otherwise two vectors of words: vector k, lane L has words 8 L + 4 k ..
 */
INLINE void interleave_rows(ivec v[CODES])
{
#ifdef __AVXVNNI__
    const ivec a = _mm256_unpacklo_epi8(v[0], v[1]), b = _mm256_unpackhi_epi8(v[0], v[1]);
    const ivec c = _mm256_unpacklo_epi8(v[2], v[3]), d = _mm256_unpackhi_epi8(v[2], v[3]);
    v[0] = _mm256_unpacklo_epi16(a, c);
    v[1] = _mm256_unpackhi_epi16(a, c);
    v[2] = _mm256_unpacklo_epi16(b, d);
    v[3] = _mm256_unpackhi_epi16(b, d);
#else
    const ivec low = _mm256_unpacklo_epi16(v[0], v[1]);
    v[1] = _mm256_unpackhi_epi16(v[0], v[1]);
    v[0] = low;
#endif
}

#endif
