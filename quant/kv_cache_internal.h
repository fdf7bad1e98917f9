/*
 * Inside of a KV cache: the picture is in headroom/kv_cache.h. The row of a token and head is
 *
 *     row = (page * num_kv_heads + head) * page_size + offset
 *
 * in codes (in tiles of the layout: one row, or a block of 16), in scales and in zero points (times
 * token_scales).
 */
#ifndef HEADROOM_KV_CACHE_INTERNAL_H
#define HEADROOM_KV_CACHE_INTERNAL_H

#include "headroom/kv_cache.h"
#include "pack_layout.h"
#include "rope_internal.h"

/* One of K and V. */
typedef struct hr_kv_store {
    hr_operand operand;
    hr_operand_recipe recipe;
    hr_layout layout;
    hr_layout_map map; /* of a layout other than ROWS */
    size_t row_bytes, tile_bytes;
    int32_t token_scales; /* scales a token and head has of its own; 0 for static ones */
    int64_t scale_count;
    unsigned char *codes; /* all NULL where the format has none */
    float *scale;
    uint8_t *zero_point;
} hr_kv_store;

struct hr_kv_cache {
    int32_t num_kv_heads, head_dim, page_size, num_pages;
    hr_rope rope;
    uint64_t hadamard_seed; /* 0 when K is not rotated */
    float *mean;            /* [num_kv_heads, head_dim] or NULL */
    hr_kv_store k, v;
    double rates[HR_ROPE_PAIRS];
    float signs[HR_HEAD_DIM_MAX];
    /*
     * The residual: a BF16 cache with ring_pages pages of 16 tokens for each block; token t of a
     * sequence is in page (t / 16) mod ring_pages of its block. NULL without.
     */
    struct hr_kv_cache *recent;
    int32_t residual, max_sequences;
};

/* Pages of 16 tokens that hold `residual` tokens wherever a page begins. */
static inline int32_t hr_kv_ring_pages(int32_t residual)
{
    return residual / HR_RESIDUAL_MULTIPLE + 1;
}

/* How many tokens of a sequence are read from their codes; the rest are the residual's. */
static inline int32_t hr_kv_quantized_tokens(int32_t residual, int32_t tokens)
{
    return tokens > residual ? (tokens - residual) / HR_RESIDUAL_MULTIPLE * HR_RESIDUAL_MULTIPLE
                             : 0;
}

static inline int64_t hr_kv_row(const hr_kv_cache *cache, int32_t head, int64_t slot)
{
    int64_t page = slot / cache->page_size, offset = slot % cache->page_size;
    return (page * cache->num_kv_heads + head) * cache->page_size + offset;
}

/* The tile that a row is in, from the start of all codes, and the row's place in it. */
static inline size_t hr_kv_tile(const hr_kv_store *store, int64_t row, size_t *token)
{
    const int64_t tokens = hr_layout_tile_tokens(store->layout);
    *token = (size_t)(row % tokens);
    return (size_t)(row / tokens) * store->tile_bytes;
}

/* The first of the scales, and zero points, that the token's row has in this store. */
static inline int64_t hr_kv_scale_index(const hr_kv_cache *cache, const hr_kv_store *store,
                                        int32_t head, int64_t row)
{
    if (store->token_scales) return row * store->token_scales;
    if (store->recipe.granularity == HR_GRANULARITY_HEAD) return head;
    if (store->recipe.granularity == HR_GRANULARITY_CHANNEL) return (int64_t)head * cache->head_dim;
    return 0;
}

/*
 * A block table covers its sequences: every page it names for a token is at least 0, and below
 * num_pages unless that is 0. The fields' own rules too; page_size must be given.
 */
hr_status hr_paging_check(const hr_paging *paging, int32_t batch, const int32_t *cu_seqlens,
                          int32_t num_pages) HR_NODISCARD;

#endif
