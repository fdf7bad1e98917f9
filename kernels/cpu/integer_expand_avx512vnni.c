/*
 * K and V from rows to the INT8 tiles that vpdpbusd wants, once a task and softmax tile:
 *
 *     K rows of 16 tokens x 64 channels --(16 x 16 transpose of dwords)--> [channel quad][token][4]
 *     V rows of 4 tokens x 64 channels --(interleave bytes)--> [token quad][channel][4]
 *
 * Rows are I8, or nibbles that stand for one of 16 levels, and may be in pages. The expansion costs
 * about 7 shuffles a 64 nibbles, 2 a 64 bytes, shared by the 96 rows of a task.
 */
#include "integer_expand_avx512vnni.h"

#include <immintrin.h>

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
} code_rows;

/* `order` says which channel of 64 byte i of a vector of codes holds. */
static code_rows rows_of(const hr_kernel_args *args, const hr_kernel_operand *operand,
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
    return rows;
}

static int zero_point_of(const hr_kernel_operand *operand, int32_t token)
{
    if (operand->dtype != HR_DTYPE_U4) return 0;
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
        values =
            _mm512_sub_epi8(values, _mm512_set1_epi8((char)zero_point_of(rows->operand, token)));
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

/* Tokens [first, first + 64) of K to [head_dim / 4][64][4] bytes, code + 128. */
INLINE void expand_k(const code_rows *rows, int32_t first, uint8_t *tile, bool nibbles)
{
    const __m512i offset = _mm512_set1_epi8((char)128);
    for (int32_t channel = 0; channel < rows->head_dim; channel += WIDE) {
        int32_t quads = (rows->head_dim - channel) / 4;
        if (quads > 16) quads = 16;
        for (int32_t token = 0; token < SUBTILE; token += 16) {
            __m512i v[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                v[i] =
                    _mm512_add_epi8(load_codes(rows, first + token + i, channel, nibbles), offset);
            transpose_dwords(v);
            for (int32_t quad = 0; quad < quads; quad++)
                _mm512_store_si512(tile + ((channel / 4 + quad) * SUBTILE + token) * 4, v[quad]);
        }
    }
}

/* Tokens [first, first + 64) of V to [16 token quads][channels][4 tokens], HR_LAYOUT_VNNI_V. */
INLINE void expand_v(const code_rows *rows, int32_t first, int8_t *tile, bool nibbles)
{
    const int32_t channels = hr_integer_vnni_channels(rows->head_dim);
    for (int32_t quad = 0; quad < SUBTILE / 4; quad++) {
        const int32_t token = first + quad % 4 * 16 + quad / 4 * 4;
        int8_t *out = tile + quad * channels * 4;
        for (int32_t channel = 0; channel < channels; channel += WIDE) {
            __m512i r[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                r[i] = load_codes(rows, token + i, channel, nibbles);
            __m512i low01 = _mm512_unpacklo_epi8(r[0], r[1]);
            __m512i high01 = _mm512_unpackhi_epi8(r[0], r[1]);
            __m512i low23 = _mm512_unpacklo_epi8(r[2], r[3]);
            __m512i high23 = _mm512_unpackhi_epi8(r[2], r[3]);
            const __m512i v[4] = {
                _mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
                _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)};
            for (int k = 0; k < 4 && channel + k * 16 < channels; k++)
                _mm512_store_si512(out + (channel + k * 16) * 4, v[k]);
        }
    }
}

static size_t k_bytes(int32_t head_dim)
{
    return (size_t)HR_INTEGER_TILE * (size_t)head_dim;
}

hr_integer_vnni_tile hr_integer_expand_avx512vnni(const hr_kernel_args *args,
                                                  const hr_kernel_range *range, int32_t first,
                                                  void *expanded)
{
    /* K in channel order. V so that interleaving within 128-bit lanes leaves the channels in order:
     * dword k of lane L holds channels 16 k + 4 L .. 16 k + 4 L + 3. */
    uint8_t k_order[WIDE], v_order[WIDE];
    for (int i = 0; i < WIDE; i++) {
        k_order[i] = (uint8_t)i;
        v_order[i] = (uint8_t)(16 * (i % 16 / 4) + 4 * (i / 16) + i % 4);
    }
    const code_rows k = rows_of(args, &args->k, k_order), v = rows_of(args, &args->v, v_order);
    uint8_t *k_out = expanded;
    int8_t *v_out = (int8_t *)expanded + k_bytes(args->head_dim);
    const hr_integer_vnni_tile tile = {.k = k_out, .v = v_out};
    int32_t end = first + HR_INTEGER_TILE < range->end ? first + HR_INTEGER_TILE : range->end;
    int32_t token = first;
    for (; token + SUBTILE <= range->begin; token += SUBTILE) {
        k_out += SUBTILE * args->head_dim;
        v_out += SUBTILE * hr_integer_vnni_channels(args->head_dim);
    }
    for (; token < end; token += SUBTILE) {
        if (k.nibbles)
            expand_k(&k, token, k_out, true);
        else
            expand_k(&k, token, k_out, false);
        if (v.nibbles)
            expand_v(&v, token, v_out, true);
        else
            expand_v(&v, token, v_out, false);
        k_out += SUBTILE * args->head_dim;
        v_out += SUBTILE * hr_integer_vnni_channels(args->head_dim);
    }
    return tile;
}

size_t hr_integer_expand_avx512vnni_scratch(int32_t head_dim)
{
    return hr_integer_attention_avx512vnni_scratch(head_dim) + k_bytes(head_dim) +
           (size_t)HR_INTEGER_TILE * (size_t)hr_integer_vnni_channels(head_dim);
}
