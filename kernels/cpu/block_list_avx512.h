/*
 * How decode kernels find K and V in blocks of 16 keys (HR_LAYOUT_BLOCKS_K and _V), in pages or
 * not, and what of the next tile they fetch ahead:
 *
 *     tile     256 keys: 16 blocks of K and 16 of V, each in one piece; blocks past the sequence
 *              repeat its last, as keys that are not there have no weight whatever their codes
 *     ahead    the next tile's blocks and scales, in chunks of four cache lines, of K and of V in
 *              turn, into the second-level cache: a few at each step, in proportion to what steps
 *              cost. Products prefetch again, into the first-level cache, what they come to soon
 */
#ifndef HEADROOM_BLOCK_LIST_AVX512_H
#define HEADROOM_BLOCK_LIST_AVX512_H

#include "decode_rows_avx512.h"

enum {
    BLOCK_KEYS = 16,
    TILE_BLOCKS = DECODE_TILE / BLOCK_KEYS,
    CHUNK_SHIFT = 8,
    CHUNK_BYTES = 1 << CHUNK_SHIFT,
    MAX_BLOCK_CHUNKS = BLOCK_KEYS * 256 / CHUNK_BYTES, /* head_dim 256, a byte a code */
    MAX_CHUNKS = 2 * TILE_BLOCKS * (MAX_BLOCK_CHUNKS + 1)
};

/* K or V of the task's sequence. */
typedef struct code_blocks {
    const hr_kernel_operand *operand;
    const uint8_t *codes;
    int64_t bytes; /* of a block */
} code_blocks;

/* A tile's blocks. */
typedef struct tile_blocks {
    const uint8_t *k[TILE_BLOCKS], *v[TILE_BLOCKS];
} tile_blocks;

/* What is left of the next tile to prefetch. */
typedef struct block_list {
    ALIGNED const uint8_t *chunk[MAX_CHUNKS + 8];
    int32_t count, done;
    int32_t credit; /* 1/4096 chunks due */
    int32_t share;  /* 1/4096 chunks a step of cost 1 */
} block_list;

DECODE_INLINE __m512i address_of(const uint8_t *codes)
{
    return _mm512_set1_epi64((int64_t)(intptr_t)codes);
}

/* The blocks of keys [first, first + count). */
static inline void find_blocks(const code_blocks *k, const code_blocks *v, int64_t first,
                               int32_t count, tile_blocks *out)
{
    if (!k->operand->pages && count == DECODE_TILE) {
        const __m512i step = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
        for (int32_t b = 0; b < TILE_BLOCKS; b += 8) {
            const __m512i block = _mm512_add_epi64(step, _mm512_set1_epi64(first / BLOCK_KEYS + b));
            const __m512i k_at = _mm512_mullo_epi64(block, _mm512_set1_epi64(k->bytes));
            const __m512i v_at = _mm512_mullo_epi64(block, _mm512_set1_epi64(v->bytes));
            _mm512_storeu_si512(out->k + b, _mm512_add_epi64(k_at, address_of(k->codes)));
            _mm512_storeu_si512(out->v + b, _mm512_add_epi64(v_at, address_of(v->codes)));
        }
        return;
    }
    for (int32_t b = 0; b < TILE_BLOCKS; b++) {
        const int32_t key = b * BLOCK_KEYS < count ? b * BLOCK_KEYS : (count - 1) / 16 * 16;
        const int64_t block = hr_kernel_slot(k->operand, first + key) / BLOCK_KEYS;
        out->k[b] = k->codes + block * k->bytes;
        out->v[b] = v->codes + block * v->bytes;
    }
}

/* The chunks of a block of K and one of V, in turn, to the end of the list. */
DECODE_INLINE void list_chunks(block_list *list, const uint8_t *k, int64_t k_bytes,
                               const uint8_t *v, int64_t v_bytes)
{
    const uint8_t **chunk = list->chunk + list->count;
    const int64_t bytes = k_bytes < v_bytes ? k_bytes : v_bytes;
    const int64_t both = (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
    __m512i at = _mm512_slli_epi64(_mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3), CHUNK_SHIFT);
    at = _mm512_add_epi64(at, _mm512_mask_mov_epi64(address_of(k), 0xaa, address_of(v)));
    for (int64_t i = 0; i < both; i += 4 * CHUNK_BYTES) {
        _mm512_storeu_si512(chunk + i / CHUNK_BYTES * 2, at);
        at = _mm512_add_epi64(at, _mm512_set1_epi64(4 * CHUNK_BYTES));
    }
    chunk += both / CHUNK_BYTES * 2;
    for (int64_t i = both; i < k_bytes; i += CHUNK_BYTES)
        *chunk++ = k + i;
    for (int64_t i = both; i < v_bytes; i += CHUNK_BYTES)
        *chunk++ = v + i;
    list->count = (int32_t)(chunk - list->chunk);
}

/* The scales of 16 keys a line, of four lines where they are in one piece. */
DECODE_INLINE void list_scales(block_list *list, const hr_kernel_operand *operand, int64_t key)
{
    if (operand->granularity != HR_GRANULARITY_TOKEN) return;
    const float *scale = operand->scale + hr_kernel_slot(operand, key);
    if (operand->pages || key % 64 == 0) list->chunk[list->count++] = (const uint8_t *)scale;
}

/*
 * Plans the prefetching of the tile whose blocks are given; `first` is its first key and `cost`
 * what the steps meanwhile will add up to.
 */
static inline void plan_blocks(block_list *list, const tile_blocks *tile, const code_blocks *k,
                               const code_blocks *v, int64_t first, int32_t cost)
{
    list->count = list->done = list->credit = 0;
    for (int32_t b = 0; b < TILE_BLOCKS; b++) {
        list_scales(list, k->operand, first + b * BLOCK_KEYS);
        list_scales(list, v->operand, first + b * BLOCK_KEYS);
        list_chunks(list, tile->k[b], k->bytes, tile->v[b], v->bytes);
    }
    list->share = list->count * 4096 / cost + 1;
}

/* Called at steps of unlike cost, which add up to what plan_blocks was told. */
DECODE_INLINE void prefetch_blocks(block_list *list, int32_t cost)
{
    list->credit += cost * list->share;
    for (; list->credit >= 4096 && list->done < list->count; list->credit -= 4096) {
        const char *chunk = (const char *)list->chunk[list->done++];
#pragma GCC unroll 4
        for (int32_t line = 0; line < 4; line++)
            _mm_prefetch(chunk + line * PART, _MM_HINT_T1);
    }
}

#endif
