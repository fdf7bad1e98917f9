/*
 * K and V of the integer decode kernels, 8-bit or nibbles, from rows (decode_rows_avx512.h) to
 * vectors that dpbusd multiplies:
 *
 *     K       4 keys transposed by dwords, code + 128
 *     V       4 keys --(interleave bytes)--> 4 vectors a part; vector k, lane L, dword i, byte t:
 *             byte 16 L + 4 k + i of key t
 *
 * Nibbles are moved as bytes and expanded afterwards, to two vectors: the low nibbles (even
 * channels) and the high ones. vpermb with the sixteen levels four times over ignores the upper
 * bits, so expanding costs one permutation a vector and half a shift.
 */
#ifndef HEADROOM_INTEGER_DECODE_LOAD_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_LOAD_AVX512VNNI_H

#include "decode_rows_avx512.h"
#include "integer_nibbles.h"
#include "integer_vector_avx512vnni.h"

/* How codes are stored. */
typedef enum code_kind {
    CODES_BYTES,
    CODES_NIBBLES,
    CODES_SHIFTED,       /* nibbles less the token's zero point */
    CODES_BYTES_NIBBLES, /* of K, and of V */
    CODES_NIBBLES_BYTES
} code_kind;

INLINE code_kind kind_of_k(code_kind kind)
{
    if (kind == CODES_BYTES_NIBBLES) return CODES_BYTES;
    return kind == CODES_NIBBLES_BYTES ? CODES_NIBBLES : kind;
}

INLINE code_kind kind_of_v(code_kind kind)
{
    if (kind == CODES_BYTES_NIBBLES) return CODES_NIBBLES;
    return kind == CODES_NIBBLES_BYTES ? CODES_BYTES : kind;
}

/* Channels that the vectors of a row have room for. */
INLINE int32_t channels_of(const code_rows *rows, code_kind kind)
{
    if (rows->paired) return PART;
    return rows->parts * PART * (kind == CODES_BYTES ? 1 : 2);
}

/*
 * K (offset 128) or V (0) of a kernel; dpbusd takes K as unsigned numbers, so the offset is added
 * to every level.
 */
static inline code_rows integer_rows(const hr_kernel_args *args, const hr_kernel_operand *operand,
                                     code_kind kinds, int offset)
{
    const code_kind kind = offset ? kind_of_k(kinds) : kind_of_v(kinds);
    const size_t head_dim = (size_t)args->head_dim;
    code_rows rows = rows_of(operand, kind == CODES_BYTES ? head_dim : head_dim / 2);
    if (kind == CODES_BYTES) return rows;
    int8_t levels[16], table[64];
    hr_nibble_levels(operand->dtype, 0, levels);
    for (int i = 0; i < 64; i++)
        table[i] = (int8_t)(levels[i % 16] + offset);
    rows.levels = _mm512_loadu_si512(table);
    return rows;
}

/* One zero point a key of the tile. */
static inline void gather_zero_points(const hr_kernel_operand *operand, int64_t first,
                                      int32_t count, uint8_t *zero_point)
{
    int32_t run;
    if (operand->granularity == HR_GRANULARITY_TOKEN)
        for (int32_t j = 0; j < count; j += run) {
            run = hr_kernel_run(operand, first + j, count - j);
            memcpy(zero_point + j, operand->zero_point + hr_kernel_slot(operand, first + j),
                   (size_t)run);
        }
    else
        for (int32_t j = 0; j < count; j++)
            zero_point[j] = operand->granularity == HR_GRANULARITY_BLOCK
                                ? operand->zero_point[(first + j) / operand->block]
                                : operand->zero_point[0];
    memset(zero_point + count, 0, (size_t)(DECODE_TILE - count));
}

/* The codes of 64 bytes, low or high nibbles. */
INLINE __m512i expand_nibbles(const code_rows *rows, __m512i bytes, int high)
{
    if (high) bytes = _mm512_srli_epi16(bytes, 4);
    return _mm512_permutexvar_epi8(bytes, rows->levels);
}

/*
 * A vector of moved bytes -> one or two vectors of codes. `offset` is in the nibbles' levels, for
 * bytes it is added here: 128 or 0.
 */
INLINE void expand_codes(const code_rows *rows, __m512i v, code_kind kind, int offset, __m512i zero,
                         __m512i out[2])
{
    if (kind == CODES_BYTES) {
        out[0] = offset ? _mm512_xor_si512(v, _mm512_set1_epi8((char)128)) : v;
        return;
    }
    out[0] = expand_nibbles(rows, v, 0);
    out[1] = expand_nibbles(rows, v, 1);
    if (kind != CODES_SHIFTED) return;
    out[0] = _mm512_sub_epi8(out[0], zero);
    out[1] = _mm512_sub_epi8(out[1], zero);
}

/*
 * A part of the row at at[0], as it lies. Where rows fill half a vector, that of the key four on is
 * in its upper half.
 */
INLINE __m512i load_codes(const code_rows *rows, const int64_t *at, int32_t part)
{
    if (!rows->paired) return load_part(rows, row_at(rows, at[0]), part);
    return load_pair(row_at(rows, at[0]), row_at(rows, at[4]));
}

/*
 * One part of the four keys whose rows are at `at`, as in a V block, of its four vectors of moved
 * bytes those from `first` on, each of which gives one or two vectors. Where rows fill half a
 * vector, four keys from `other` on are in the upper halves. first, count and kind are constants.
 */
INLINE void value_vectors(const code_rows *rows, const int64_t *at, const int64_t *other,
                          int32_t part, int first, int count, code_kind kind, __m512i zero,
                          __m512i out[8])
{
    const int planes = kind == CODES_BYTES ? 1 : 2;
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        v[i] = rows->paired ? load_pair(row_at(rows, at[i]), row_at(rows, other[i]))
                            : load_part(rows, row_at(rows, at[i]), part);
#pragma GCC unroll 4
    for (int i = first; i < first + count; i++) {
        const __m512i even =
            i < 2 ? _mm512_unpacklo_epi8(v[0], v[1]) : _mm512_unpackhi_epi8(v[0], v[1]);
        const __m512i odd =
            i < 2 ? _mm512_unpacklo_epi8(v[2], v[3]) : _mm512_unpackhi_epi8(v[2], v[3]);
        const __m512i four =
            i % 2 == 0 ? _mm512_unpacklo_epi16(even, odd) : _mm512_unpackhi_epi16(even, odd);
        expand_codes(rows, four, kind, 0, zero, out + planes * (i - first));
    }
}

/* The zero points of a row's codes; of the key four on too where rows fill half a vector. */
INLINE __m512i row_zeros(const code_rows *rows, const uint8_t *zero_point, code_kind kind)
{
    if (kind != CODES_SHIFTED) return _mm512_setzero_si512();
    const __m512i zero = _mm512_set1_epi8((char)zero_point[0]);
    if (!rows->paired) return zero;
    return _mm512_inserti64x4(zero, _mm256_set1_epi8((char)zero_point[4]), 1);
}

/* The zero points of four keys, or of twice four, as value_vectors takes them. */
INLINE __m512i value_zeros(const code_rows *rows, const uint8_t *zero_point, const uint8_t *other,
                           code_kind kind)
{
    if (kind != CODES_SHIFTED) return _mm512_setzero_si512();
    int32_t four;
    memcpy(&four, zero_point, sizeof four);
    const __m512i zero = _mm512_set1_epi32(four);
    if (!rows->paired) return zero;
    memcpy(&four, other, sizeof four);
    return _mm512_mask_set1_epi32(zero, 0xff00, four);
}

/*
 * Where rows fill half a vector, the sums of a vector's low and high nibbles, two sets of keys
 * each: those of all keys, low nibbles' and then high ones'.
 */
INLINE __m512i add_halves(__m512i low, __m512i high)
{
    return _mm512_add_epi32(_mm512_shuffle_i32x4(low, high, 0x44),
                            _mm512_shuffle_i32x4(low, high, 0xee));
}

#endif
