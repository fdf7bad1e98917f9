/*
 * How the integer kernels on AVX-512 VNNI read rows of codes, I8 or nibbles, in pages or not, as
 * vectors of 64 INT8: shared by the expansions of tiles.
 */
#ifndef HEADROOM_INTEGER_EXPAND_ROWS_AVX512VNNI_H
#define HEADROOM_INTEGER_EXPAND_ROWS_AVX512VNNI_H

#include <immintrin.h>

#include "integer_body_avx512vnni.h"
#include "integer_nibbles.h"

enum { SUBTILE = HR_INTEGER_VNNI_TILE, WIDE = 64 /* channels a vector of codes has */ };

#define INLINE static inline __attribute__((always_inline))

/* One operand's rows in one sequence and what its codes stand for. */
typedef struct code_rows {
    const hr_kernel_operand *operand;
    int32_t head_dim;
    int32_t end; /* tokens from here on are past the sequence */
    bool nibbles;
    __m512i levels; /* of nibbles: the 16 levels, in each 128-bit lane */
    __m512i order;  /* byte i of a vector is the code in byte order[i], nibble i % 2 if nibbles */
    int32_t groups; /* of channels that have zero points; 0: a token has one */
    __m512i group[HR_INTEGER_MAX_HEAD_DIM / WIDE]; /* of byte i of each vector of a row */
} code_rows;

/* The channels as they lie: K's order. */
static inline void key_order(uint8_t order[WIDE])
{
    for (int i = 0; i < WIDE; i++)
        order[i] = (uint8_t)i;
}

/*
 * V's order, so that interleaving within 128-bit lanes leaves the channels as they lie: dword k of
 * lane L holds channels 16 k + 4 L .. 16 k + 4 L + 3.
 */
static inline void value_order(uint8_t order[WIDE])
{
    for (int i = 0; i < WIDE; i++)
        order[i] = (uint8_t)(16 * (i % 16 / 4) + 4 * (i / 16) + i % 4);
}

/* `order` says which channel of 64 byte i of a vector of codes holds. */
static inline code_rows rows_of(const hr_kernel_args *args, const hr_kernel_operand *operand,
                                const uint8_t order[WIDE])
{
    int8_t levels[16] = {0};
    uint8_t bytes[WIDE];
    const bool nibbles = operand->dtype != HR_DTYPE_I8;
    if (nibbles) hr_nibble_levels(operand->dtype, 0, levels);
    for (int i = 0; i < WIDE; i++)
        bytes[i] = nibbles ? order[i] / 2 : order[i];
    code_rows rows = {
        .operand = operand,
        .head_dim = args->head_dim,
        .end = args->seqlen_kv,
        .nibbles = nibbles,
        .levels = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)levels)),
        .order = _mm512_loadu_si512(bytes),
    };
    if (operand->dtype == HR_DTYPE_U4) rows.groups = hr_integer_groups(operand, args->head_dim);
    for (int32_t part = 0; part * WIDE < args->head_dim && rows.groups > 0; part++) {
        for (int i = 0; i < WIDE; i++)
            bytes[i] = (uint8_t)((part * WIDE + order[i]) / operand->block);
        rows.group[part] = _mm512_loadu_si512(bytes);
    }
    return rows;
}

static inline int zero_point_of(const hr_kernel_operand *operand, int32_t token)
{
    if (operand->granularity == HR_GRANULARITY_TOKEN)
        return operand->zero_point[hr_kernel_slot(operand, token)];
    if (operand->granularity == HR_GRANULARITY_BLOCK)
        return operand->zero_point[token / operand->block];
    return operand->zero_point[0];
}

/* The low `count` bits, of 64. */
INLINE __mmask64 first_bits(int32_t count)
{
    return count < 64 ? (UINT64_C(1) << count) - 1 : ~UINT64_C(0);
}

INLINE __m512i expand_nibbles(const code_rows *rows, const uint8_t *codes, int32_t channels)
{
    __mmask32 mask = (__mmask32)first_bits(channels / 2);
    __m512i packed = _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(mask, codes));
    packed = _mm512_permutexvar_epi8(rows->order, packed);
    /* Even bytes keep their low nibble, odd ones get the high one; vpshufb reads the low four bits
     * when the top bit is clear. */
    __m512i high = _mm512_srli_epi16(packed, 4);
    __m512i nibbles = _mm512_mask_blend_epi8(UINT64_C(0xaaaaaaaaaaaaaaaa), packed, high);
    nibbles = _mm512_and_si512(nibbles, _mm512_set1_epi8(15));
    return _mm512_shuffle_epi8(rows->levels, nibbles);
}

/* Zero points of the codes of a vector. */
INLINE __m512i zero_points(const code_rows *rows, int32_t token, int32_t channel)
{
    const hr_kernel_operand *operand = rows->operand;
    if (rows->groups == 0) return _mm512_set1_epi8((char)zero_point_of(operand, token));
    const uint8_t *zero = operand->zero_point + hr_kernel_slot(operand, token) * rows->groups;
    const __m128i all = _mm_maskz_loadu_epi8((__mmask16)((1 << rows->groups) - 1), zero);
    return _mm512_permutexvar_epi8(rows->group[channel / WIDE], _mm512_castsi128_si512(all));
}

/* INT8 codes of channels [channel, channel + 64) of a token, in the order of rows->order. */
INLINE __m512i load_codes(const code_rows *rows, int32_t token, int32_t channel, bool nibbles)
{
    if (token >= rows->end) return _mm512_setzero_si512();
    const int32_t channels = rows->head_dim - channel < WIDE ? rows->head_dim - channel : WIDE;
    const int64_t element = hr_kernel_slot(rows->operand, token) * rows->head_dim + channel;
    const uint8_t *codes = rows->operand->codes;
    if (!nibbles) {
        __m512i bytes = _mm512_maskz_loadu_epi8(first_bits(channels), codes + element);
        return _mm512_permutexvar_epi8(rows->order, bytes);
    }
    __m512i values = expand_nibbles(rows, codes + element / 2, channels);
    if (rows->operand->dtype == HR_DTYPE_U4)
        values = _mm512_sub_epi8(values, zero_points(rows, token, channel));
    return values;
}

/* v[i] dword j <-> v[j] dword i. */
INLINE void transpose_dwords(__m512i v[16])
{
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    /* v[4 g + k], lane L: dwords 4 L + k of rows 4 g .. 4 g + 3 */
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m512i low01 = _mm512_shuffle_i32x4(v[k], v[4 + k], 0x44);
        __m512i high01 = _mm512_shuffle_i32x4(v[k], v[4 + k], 0xee);
        __m512i low23 = _mm512_shuffle_i32x4(v[8 + k], v[12 + k], 0x44);
        __m512i high23 = _mm512_shuffle_i32x4(v[8 + k], v[12 + k], 0xee);
        t[k] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        t[4 + k] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
        t[8 + k] = _mm512_shuffle_i32x4(high01, high23, 0x88);
        t[12 + k] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        v[i] = t[i];
}

/* 64 channels of four tokens in V's order, interleaved: 16 channels a vector. */
INLINE void interleave_tokens(const __m512i r[4], __m512i v[4])
{
    const __m512i low01 = _mm512_unpacklo_epi8(r[0], r[1]);
    const __m512i high01 = _mm512_unpackhi_epi8(r[0], r[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(r[2], r[3]);
    const __m512i high23 = _mm512_unpackhi_epi8(r[2], r[3]);
    v[0] = _mm512_unpacklo_epi16(low01, low23);
    v[1] = _mm512_unpackhi_epi16(low01, low23);
    v[2] = _mm512_unpacklo_epi16(high01, high23);
    v[3] = _mm512_unpackhi_epi16(high01, high23);
}

#endif
