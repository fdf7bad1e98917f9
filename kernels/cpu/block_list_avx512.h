/*
 * How decode kernels find K and V in blocks of 16 keys (HR_LAYOUT_BLOCKS_K and _V), in pages or
 * not, and what of the next tile they fetch ahead:
 *
 *     tile     256 keys: 16 blocks of K and 16 of V, each in one piece; blocks past the sequence
 *              repeat its last, as keys that are not there have no weight whatever their codes
 *     ahead    the next tile's blocks and scales into the second-level cache, in chunks of four
 *              cache lines, from four places of K and four of V in turn: a few at each step, in
 *              proportion to what steps cost
 *
 * Products prefetch again, into the first-level cache, what they come to soon.
 */
#ifndef HEADROOM_BLOCK_LIST_AVX512_H
#define HEADROOM_BLOCK_LIST_AVX512_H

#include "decode_rows_avx512.h"

enum {
    BLOCK_KEYS = 16,
    TILE_BLOCKS = DECODE_TILE / BLOCK_KEYS,
    CHUNK_BYTES = 256,
    SCALE_KEYS = CHUNK_BYTES / (int)sizeof(float),
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

/* The chunks of the blocks b, b + 4, b + 8 and b + 12 of K and of V, in turn. */
DECODE_INLINE void list_chunks(block_list *list, const tile_blocks *tile, int32_t b,
                               int64_t k_bytes, int64_t v_bytes)
{
    enum { STEP = TILE_BLOCKS / PREFETCH_PLACES };
    const uint8_t *const *k = tile->k + b, *const *v = tile->v + b;
    const uint8_t *first[8] = {k[0],        v[0],        k[STEP],     v[STEP],
                               k[2 * STEP], v[2 * STEP], k[3 * STEP], v[3 * STEP]};
    const __m512i places = _mm512_loadu_si512(first);
    for (int64_t at = 0; at < k_bytes || at < v_bytes; at += CHUNK_BYTES) {
        const uint32_t left = (at < k_bytes ? 0x55 : 0) | (at < v_bytes ? 0xaa : 0);
        _mm512_storeu_si512(list->chunk + list->count,
                            _mm512_maskz_compress_epi64(
                                (__mmask8)left, _mm512_add_epi64(places, _mm512_set1_epi64(at))));
        list->count += __builtin_popcount(left);
    }
}

/* The scales of up to 64 keys: one chunk, or up to four where they are in pages. */
DECODE_INLINE void list_scales(block_list *list, const hr_kernel_operand *operand, int64_t key,
                               int32_t count)
{
    if (operand->granularity != HR_GRANULARITY_TOKEN) return;
    if (count > SCALE_KEYS) count = SCALE_KEYS;
    for (int32_t at = 0, run; at < count; at += run) {
        run = hr_kernel_run(operand, key + at, count - at);
        const float *scale = operand->scale + hr_kernel_slot(operand, key + at);
        list->chunk[list->count++] = (const uint8_t *)scale;
    }
}

/*
 * Plans the prefetching of the tile whose blocks are given; `first` is its first key and `cost`
 * what the steps meanwhile will add up to.
 */
static inline void plan_blocks(block_list *list, const tile_blocks *tile, const code_blocks *k,
                               const code_blocks *v, int64_t first, int32_t count, int32_t cost)
{
    list->count = list->done = list->credit = 0;
    for (int32_t b = 0; b < TILE_BLOCKS / PREFETCH_PLACES; b++) {
        list_scales(list, k->operand, first + b * SCALE_KEYS, count - b * SCALE_KEYS);
        list_scales(list, v->operand, first + b * SCALE_KEYS, count - b * SCALE_KEYS);
        list_chunks(list, tile, b, k->bytes, v->bytes);
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
