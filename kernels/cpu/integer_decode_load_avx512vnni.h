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

INLINE int32_t vectors_of(const code_rows *rows, code_kind kind)
{
    return rows->parts * (kind == CODES_BYTES ? 4 : 8);
}

/*
 * K (offset 128) or V (0) of a kernel; dpbusd takes K as unsigned numbers, so the offset is added
 * to every level. Bytes beside nibbles get an even number of parts: both then fill as many vectors.
 */
static inline code_rows integer_rows(const hr_kernel_args *args, const hr_kernel_operand *operand,
                                     code_kind kinds, int offset)
{
    const code_kind kind = offset ? kind_of_k(kinds) : kind_of_v(kinds);
    const size_t head_dim = (size_t)args->head_dim;
    code_rows rows = rows_of(operand, kind == CODES_BYTES ? head_dim : head_dim / 2);
    if (kind == CODES_BYTES && kinds != CODES_BYTES) {
        rows.doubled = 1;
        rows.whole = rows.whole && rows.parts % 2 == 0;
        rows.parts = (rows.parts + 1) / 2 * 2;
    }
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

/* Four vectors as moved bytes -> four or eight vectors of codes. */
INLINE void expand_block(const code_rows *rows, const __m512i v[4], code_kind kind, int offset,
                         __m512i zero, __m512i out[8])
{
    const int planes = kind == CODES_BYTES ? 1 : 2;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
        expand_codes(rows, v[k], kind, offset, zero, out + planes * k);
}

/* One part of four keys, code + 128, as in a K block. `zero`: dword i of a lane is token i's. */
INLINE void key_vectors(const code_rows *rows, const uint8_t *const row[4], int32_t part,
                        code_kind kind, __m512i zero, __m512i out[8])
{
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        v[i] = load_part(rows, row[i], part);
    transpose_lanes(v);
    expand_block(rows, v, kind, 128, zero, out);
}

/* One part of four keys as in a V block. `zero`: byte i of a dword is token i's. */
INLINE void value_vectors(const code_rows *rows, const uint8_t *const row[4], int32_t part,
                          code_kind kind, __m512i zero, __m512i out[8])
{
    __m512i v[4], t[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        v[i] = load_part(rows, row[i], part);
    t[0] = _mm512_unpacklo_epi8(v[0], v[1]);
    t[1] = _mm512_unpackhi_epi8(v[0], v[1]);
    t[2] = _mm512_unpacklo_epi8(v[2], v[3]);
    t[3] = _mm512_unpackhi_epi8(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi16(t[0], t[2]);
    v[1] = _mm512_unpackhi_epi16(t[0], t[2]);
    v[2] = _mm512_unpacklo_epi16(t[1], t[3]);
    v[3] = _mm512_unpackhi_epi16(t[1], t[3]);
    expand_block(rows, v, kind, 0, zero, out);
}

/* The zero points of four keys as key_vectors takes them. */
INLINE __m512i key_zeros(const uint8_t *zero_point, code_kind kind)
{
    if (kind != CODES_SHIFTED) return _mm512_setzero_si512();
    const __m128i four = _mm_loadu_si32(zero_point);
    return _mm512_broadcast_i32x4(
        _mm_shuffle_epi8(four, _mm_setr_epi32(0, 0x01010101, 0x02020202, 0x03030303)));
}

/* The zero points of four keys as value_vectors takes them. */
INLINE __m512i value_zeros(const uint8_t *zero_point, code_kind kind)
{
    if (kind != CODES_SHIFTED) return _mm512_setzero_si512();
    int32_t four;
    memcpy(&four, zero_point, sizeof four);
    return _mm512_set1_epi32(four);
}

#endif
