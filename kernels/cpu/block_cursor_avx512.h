/*
 * What of the next tile is left to fetch into the second-level cache, for decode kernels that read
 * K and V in blocks of the same size (block_list_avx512.h): a line of K and one of V in turn, block
 * after block, and a block's scales before it. The products fetch half as many lines of each as
 * they read, step by step, at an address a line. With a KiB of K before each KiB of V instead,
 * `int4` with eight rows reads a tenth less.
 */
#ifndef HEADROOM_BLOCK_CURSOR_AVX512_H
#define HEADROOM_BLOCK_CURSOR_AVX512_H

#include "block_list_avx512.h"

/* A tile that is to be fetched, and where its blocks' scales and zero points are. */
typedef struct ahead_tile {
    const tile_blocks *blocks;
    const void *k_scales[TILE_BLOCKS], *v_scales[TILE_BLOCKS];
    const void *k_zeros[TILE_BLOCKS], *v_zeros[TILE_BLOCKS];
} ahead_tile;

typedef struct block_cursor {
    const ahead_tile *tile;
    const uint8_t *k, *v; /* the next lines */
    const uint8_t *end;   /* of k's block */
    int64_t bytes;        /* of a block */
    int32_t block;
} block_cursor;

/* What stands for all keys is fetched as if it were the first of these. */
static inline int64_t scale_slot(const hr_kernel_operand *operand, int64_t key)
{
    return operand->granularity == HR_GRANULARITY_TOKEN ? hr_kernel_slot(operand, key) : 0;
}

/* The tile whose first key is `first` of a sequence whose last is `last`. */
static inline void find_scales(const tile_blocks *blocks, const hr_kernel_operand *k,
                               const hr_kernel_operand *v, int64_t first, int64_t last,
                               ahead_tile *out)
{
    out->blocks = blocks;
    for (int32_t b = 0; b < TILE_BLOCKS; b++) {
        const int64_t key = first + b * BLOCK_KEYS < last ? first + b * BLOCK_KEYS : last;
        const int64_t k_slot = scale_slot(k, key), v_slot = scale_slot(v, key);
        out->k_scales[b] = k->scale + k_slot;
        out->v_scales[b] = v->scale + v_slot;
        out->k_zeros[b] = k->zero_point ? (const void *)(k->zero_point + k_slot) : k->scale;
        out->v_zeros[b] = v->zero_point ? (const void *)(v->zero_point + v_slot) : v->scale;
    }
}

/* At a block's first lines. */
DECODE_INLINE void enter_block(block_cursor *c, int32_t block)
{
    _mm_prefetch((const char *)c->tile->k_scales[block], _MM_HINT_T1);
    _mm_prefetch((const char *)c->tile->v_scales[block], _MM_HINT_T1);
    _mm_prefetch((const char *)c->tile->k_zeros[block], _MM_HINT_T1);
    _mm_prefetch((const char *)c->tile->v_zeros[block], _MM_HINT_T1);
    c->block = block;
    c->k = c->tile->blocks->k[block];
    c->v = c->tile->blocks->v[block];
    c->end = c->k + c->bytes;
}

/* `count` lines of K and as many of V; the last block's again when there is none left. */
DECODE_INLINE void fetch_lines(block_cursor *c, int count)
{
#pragma GCC unroll 4
    for (int i = 0; i < count; i++) {
        _mm_prefetch((const char *)c->k + i * PART, _MM_HINT_T1);
        _mm_prefetch((const char *)c->v + i * PART, _MM_HINT_T1);
    }
    c->k += count * PART;
    c->v += count * PART;
    if (c->k >= c->end) enter_block(c, c->block < TILE_BLOCKS - 1 ? c->block + 1 : c->block);
}

#endif
