/*
 * K and V from blocks of 16 tokens to the INT8 tiles that vpdpbusd wants, once a task and softmax
 * tile. A block has the order of the tiles already, so bytes are copied a line at a time:
 *
 *     K block [head_dim / 4][16 tokens][4]  ->  [head_dim / 4][64 tokens][4], its 16 of them
 *     V block [4 quads][channels][4 tokens] ->  [16 quads][channels][4 tokens], quads c, c + 4, ...
 *                                               for block c of the four
 *
 * and a line of nibbles becomes two lines of their levels, with 3 operations each.
 */
#include <immintrin.h>

#include "integer_body_avx512vnni.h"
#include "integer_expand_avx512vnni.h"
#include "integer_nibbles.h"

enum {
    TOKENS = 16, /* a block has */
    BLOCKS = HR_INTEGER_VNNI_TILE / TOKENS,
    LINE = 64, /* bytes: 16 tokens of K or 16 channels of V */
    V_LINE_CHANNELS = 16
};

#define INLINE static inline __attribute__((always_inline))

/* One operand's blocks in one sequence. */
typedef struct code_blocks {
    const hr_kernel_operand *operand;
    int32_t head_dim, end; /* tokens from `end` on are past the sequence */
    int32_t groups;        /* of channels that have zero points; 0: a token has one */
    size_t block_bytes;
    __m512i levels; /* of nibbles: the 16 levels, in each 128-bit lane */
} code_blocks;

/* Levels are `added` to; `channels` are those a block has, padding included. */
static code_blocks blocks_of(const hr_kernel_args *args, const hr_kernel_operand *operand,
                             int32_t channels, int added)
{
    int8_t levels[16] = {0};
    const bool nibbles = operand->dtype != HR_DTYPE_I8;
    if (nibbles) hr_nibble_levels(operand->dtype, 0, levels);
    for (int i = 0; i < 16; i++)
        levels[i] = (int8_t)(levels[i] + added);
    code_blocks blocks = {
        .operand = operand,
        .head_dim = args->head_dim,
        .end = args->seqlen_kv,
        .block_bytes = (size_t)TOKENS * (size_t)channels / (nibbles ? 2 : 1),
        .levels = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)levels)),
    };
    if (operand->dtype == HR_DTYPE_U4) blocks.groups = hr_integer_groups(operand, args->head_dim);
    return blocks;
}

/* The block that begins with token `first`. */
INLINE const uint8_t *block_at(const code_blocks *blocks, int32_t first)
{
    const int64_t slot = hr_kernel_slot(blocks->operand, first);
    return (const uint8_t *)blocks->operand->codes + (size_t)(slot / TOKENS) * blocks->block_bytes;
}

/* U4's zero points of a block's tokens, 0 past the sequence, of one group of channels. */
static __m128i zero_points(const code_blocks *blocks, int32_t first, int32_t group)
{
    const hr_kernel_operand *operand = blocks->operand;
    uint8_t zeros[TOKENS] = {0};
    const int32_t left = blocks->end - first, count = left < TOKENS ? left : TOKENS;
    const int64_t slot = hr_kernel_slot(operand, first);
    for (int32_t i = 0; i < count; i++) {
        if (blocks->groups)
            zeros[i] = operand->zero_point[(slot + i) * blocks->groups + group];
        else if (operand->granularity == HR_GRANULARITY_TOKEN)
            zeros[i] = operand->zero_point[slot + i];
        else if (operand->granularity == HR_GRANULARITY_BLOCK)
            zeros[i] = operand->zero_point[(first + i) / operand->block];
        else
            zeros[i] = operand->zero_point[0];
    }
    return _mm_loadu_si128((const __m128i *)zeros);
}

/* The group that a channel's zero points are in. */
INLINE int32_t group_of(const code_blocks *blocks, int32_t channel)
{
    return blocks->groups ? channel / blocks->operand->block : 0;
}

/* The codes in the low or high halves of 64 bytes. */
INLINE __m512i half_codes(const code_blocks *blocks, __m512i bytes, bool high)
{
    const __m512i nibbles = high ? _mm512_srli_epi16(bytes, 4) : bytes;
    return _mm512_shuffle_epi8(blocks->levels, _mm512_and_si512(nibbles, _mm512_set1_epi8(15)));
}

/* A block of K to its lines of a tile, code + 128. */
INLINE void expand_k_block(const code_blocks *blocks, int32_t first, uint8_t *tile, bool nibbles)
{
    enum { STRIDE = BLOCKS * LINE };
    const uint8_t *block = block_at(blocks, first);
    if (!nibbles) {
        for (int32_t i = 0; i < blocks->head_dim / 4; i++)
            _mm512_store_si512(tile + i * STRIDE, _mm512_loadu_si512(block + i * LINE));
        return;
    }
    const bool shifted = blocks->operand->dtype == HR_DTYPE_U4;
    __m512i zeros = _mm512_setzero_si512();
    for (int32_t i = 0, group = -1; i < blocks->head_dim / 8; i++) {
        if (shifted && group_of(blocks, 8 * i) != group) {
            group = group_of(blocks, 8 * i);
            zeros = _mm512_cvtepu8_epi32(zero_points(blocks, first, group));
            zeros = _mm512_mullo_epi32(zeros, _mm512_set1_epi32(0x01010101));
        }
        const __m512i bytes = _mm512_loadu_si512(block + i * LINE);
        const __m512i low = half_codes(blocks, bytes, false);
        const __m512i high = half_codes(blocks, bytes, true);
        _mm512_store_si512(tile + 2 * i * STRIDE, _mm512_sub_epi8(low, zeros));
        _mm512_store_si512(tile + (2 * i + 1) * STRIDE, _mm512_sub_epi8(high, zeros));
    }
}

/* Four zero points to every channel. */
INLINE __m512i quad_zeros(__m128i zeros, int quad)
{
    uint32_t four[4];
    _mm_storeu_si128((__m128i *)four, zeros);
    return _mm512_set1_epi32((int32_t)four[quad]);
}

/* A block of V to its quads of a tile, which are `stride` bytes apart. */
INLINE void expand_v_block(const code_blocks *blocks, int32_t first, uint8_t *tile,
                           int32_t channels, bool nibbles)
{
    const int32_t quad_bytes = channels * 4, stride = BLOCKS * quad_bytes;
    const uint8_t *block = block_at(blocks, first);
    if (!nibbles) {
        for (int32_t quad = 0; quad < TOKENS / 4; quad++)
            for (int32_t i = 0; i < quad_bytes; i += LINE)
                _mm512_store_si512(tile + quad * stride + i,
                                   _mm512_loadu_si512(block + quad * quad_bytes + i));
        return;
    }
    const bool shifted = blocks->operand->dtype == HR_DTYPE_U4;
    __m128i zeros = _mm_setzero_si128();
    for (int32_t c = 0, group = -1; c < channels; c += V_LINE_CHANNELS) {
        if (shifted && c < blocks->head_dim && group_of(blocks, c) != group) {
            group = group_of(blocks, c);
            zeros = zero_points(blocks, first, group);
        }
        for (int32_t pair = 0; pair < 2; pair++) {
            const __m512i bytes = _mm512_loadu_si512(block + pair * quad_bytes + 4 * c);
            const __m512i low = half_codes(blocks, bytes, false);
            const __m512i high = half_codes(blocks, bytes, true);
            uint8_t *out = tile + 2 * pair * stride + 4 * c;
            _mm512_store_si512(out, _mm512_sub_epi8(low, quad_zeros(zeros, 2 * pair)));
            _mm512_store_si512(out + stride,
                               _mm512_sub_epi8(high, quad_zeros(zeros, 2 * pair + 1)));
        }
    }
}

/* Zero codes for a block past the sequence. */
static void clear_k_block(int32_t head_dim, uint8_t *tile)
{
    for (int32_t i = 0; i < head_dim / 4; i++)
        _mm512_store_si512(tile + i * BLOCKS * LINE, _mm512_set1_epi8((char)128));
}

static void clear_v_block(int32_t channels, uint8_t *tile)
{
    for (int32_t quad = 0; quad < TOKENS / 4; quad++)
        for (int32_t i = 0; i < channels * 4; i += LINE)
            _mm512_store_si512(tile + quad * BLOCKS * channels * 4 + i, _mm512_setzero_si512());
}

/* K's tokens [token, end), in whole layout tiles, to where they lie in the tile from `first` on. */
static void expand_keys(const hr_kernel_args *args, int32_t token, int32_t end, int32_t first,
                        uint8_t *tile)
{
    const code_blocks k = blocks_of(args, &args->k, args->head_dim, 128);
    for (; token < end; token += HR_INTEGER_VNNI_TILE) {
        uint8_t *out = tile + (int64_t)(token - first) * args->head_dim;
        for (int32_t c = 0; c < BLOCKS; c++, out += LINE)
            if (token + c * TOKENS >= k.end)
                clear_k_block(k.head_dim, out);
            else if (args->k.dtype == HR_DTYPE_I8)
                expand_k_block(&k, token + c * TOKENS, out, false);
            else
                expand_k_block(&k, token + c * TOKENS, out, true);
    }
}

/* Likewise V's. */
static void expand_values(const hr_kernel_args *args, int32_t token, int32_t end, int32_t first,
                          uint8_t *tile)
{
    const int32_t channels = hr_integer_vnni_channels(args->head_dim);
    const code_blocks v = blocks_of(args, &args->v, channels, 0);
    for (; token < end; token += HR_INTEGER_VNNI_TILE) {
        uint8_t *out = tile + (int64_t)(token - first) * channels;
        for (int32_t c = 0; c < BLOCKS; c++, out += 4 * channels)
            if (token + c * TOKENS >= v.end)
                clear_v_block(channels, out);
            else if (args->v.dtype == HR_DTYPE_I8)
                expand_v_block(&v, token + c * TOKENS, out, channels, false);
            else
                expand_v_block(&v, token + c * TOKENS, out, channels, true);
    }
}

hr_integer_vnni_tile hr_integer_expand_blocks_avx512vnni(const hr_kernel_args *args,
                                                         const hr_kernel_range *range,
                                                         int32_t first, void *expanded)
{
    uint8_t *k_tile = expanded, *v_tile = k_tile + HR_INTEGER_TILE * args->head_dim;
    const int32_t tile_end = first + HR_INTEGER_TILE;
    const int32_t end = tile_end < range->end ? tile_end : range->end;
    int32_t token = first;
    while (token + HR_INTEGER_VNNI_TILE <= range->begin)
        token += HR_INTEGER_VNNI_TILE;
    expand_keys(args, token, end, first, k_tile);
    expand_values(args, token, end, first, v_tile);
    return (hr_integer_vnni_tile){.k = k_tile, .v = (const int8_t *)v_tile};
}
