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

#include "integer_expand_rows_avx512vnni.h"

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
            __m512i v[4];
            interleave_tokens(r, v);
            for (int k = 0; k < 4 && channel + k * 16 < channels; k++)
                _mm512_store_si512(out + (channel + k * 16) * 4, v[k]);
        }
    }
}

static size_t k_bytes(int32_t head_dim)
{
    return (size_t)HR_INTEGER_TILE * (size_t)head_dim;
}

static size_t v_bytes(int32_t head_dim)
{
    return (size_t)HR_INTEGER_TILE * (size_t)hr_integer_vnni_channels(head_dim);
}

/* K's tokens [token, end), in whole layout tiles, to where they lie in the tile from `first` on. */
static void expand_keys(const hr_kernel_args *args, int32_t token, int32_t end, int32_t first,
                        uint8_t *tile)
{
    uint8_t order[WIDE], *out = tile + (int64_t)(token - first) * args->head_dim;
    key_order(order);
    const code_rows k = rows_of(args, &args->k, order);
    for (; token < end; token += SUBTILE, out += SUBTILE * args->head_dim)
        if (k.nibbles)
            expand_k(&k, token, out, true);
        else
            expand_k(&k, token, out, false);
}

/* Likewise V's. */
static void expand_values(const hr_kernel_args *args, int32_t token, int32_t end, int32_t first,
                          int8_t *tile)
{
    const int32_t channels = hr_integer_vnni_channels(args->head_dim);
    uint8_t order[WIDE];
    int8_t *out = tile + (int64_t)(token - first) * channels;
    value_order(order);
    const code_rows v = rows_of(args, &args->v, order);
    for (; token < end; token += SUBTILE, out += SUBTILE * channels)
        if (v.nibbles)
            expand_v(&v, token, out, true);
        else
            expand_v(&v, token, out, false);
}

hr_integer_vnni_tile hr_integer_expand_avx512vnni(const hr_kernel_args *args,
                                                  const hr_kernel_range *range, int32_t first,
                                                  void *expanded)
{
    uint8_t *k_tile = expanded;
    int8_t *v_tile = (int8_t *)expanded + k_bytes(args->head_dim);
    int32_t end = first + HR_INTEGER_TILE < range->end ? first + HR_INTEGER_TILE : range->end;
    int32_t token = first;
    while (token + SUBTILE <= range->begin)
        token += SUBTILE;
    expand_keys(args, token, end, first, k_tile);
    expand_values(args, token, end, first, v_tile);
    return (hr_integer_vnni_tile){.k = k_tile, .v = v_tile};
}

size_t hr_integer_expand_avx512vnni_scratch(int32_t head_dim)
{
    return hr_integer_attention_avx512vnni_scratch(head_dim) + k_bytes(head_dim) +
           v_bytes(head_dim);
}
