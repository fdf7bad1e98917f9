/*
 * A quantized, paged KV cache: one layer's K and V, stored as codes and scales from the moment a
 * token arrives. Pages are numbered; which pages belong to which sequence (the block table) and
 * which are free is the caller's business, as in vLLM (Kwon et al. 2023, "PagedAttention").
 *
 *     slot = page * page_size + offset        a token's place, as in vLLM's slot_mapping
 *
 * K and V are stored each by its part of the recipe, in formats of their own:
 *
 *     codes   [num_pages][num_kv_heads][page_size][head_dim codes]     HR_LAYOUT_ROWS: the row of a
 *                                                                      token and head
 *             [num_pages][num_kv_heads][page_size / 16][block]         HR_LAYOUT_BLOCKS_K and _V:
 *                                                                      16 tokens of a head
 *     scale   [num_pages][num_kv_heads][page_size]                     TOKEN
 *             [num_pages][num_kv_heads][page_size][head_dim / block]   GROUP
 *             [1], [num_kv_heads], [num_kv_heads][head_dim]            static TENSOR, HEAD, CHANNEL
 *     zero_point                                                       as scale, for u4
 *
 * A token is rotated (rope, K), smoothed (static mean, K), rotated again (Hadamard, K), quantized
 * and stored in one pass and by itself: its codes depend on nothing but the token, so that any
 * division of a sequence into calls gives the same bytes. That excludes what needs other tokens:
 * dynamic scales per tensor, head, channel or block, and a mean computed from the data.
 */
#ifndef HEADROOM_KV_CACHE_H
#define HEADROOM_KV_CACHE_H

#include "headroom/pack.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where the tokens of a batch of sequences lie. Zero page_size: K and V are contiguous. */
typedef struct hr_paging {
    int32_t page_size;          /* tokens a page */
    int32_t max_pages;          /* columns of block_table */
    const int32_t *block_table; /* [batch, max_pages] page numbers */
    /*
     * [batch] which of the cache's residual blocks each sequence has, below max_sequences. Only
     * for a recipe with a residual; else NULL.
     */
    const int32_t *residual_blocks;
    /*
     * How the cache holds K and V: what hr_kv_cache_options says, and so zeros for rows. Chooses
     * the kernel; hr_kv_cache_gather, which reads any, does not look at it.
     */
    hr_layout k_layout, v_layout;
} hr_paging;

typedef struct hr_kv_cache hr_kv_cache; /* opaque */

/* Zero-initialize, then set what applies. Arrays are copied. */
typedef struct hr_kv_cache_options {
    const hr_recipe *recipe; /* its k and v */
    int32_t num_kv_heads;
    int32_t head_dim;  /* a multiple of 8 up to 256 */
    int32_t page_size; /* tokens: a multiple of 16 from 16 to 256 */
    int32_t num_pages; /* >= 1 */
    hr_rope rope;      /* of K */
    /* Static scales from a profile, as hr_pack_options.static_scale; NULL where dynamic. */
    const float *k_scale, *v_scale;
    const float *k_mean; /* [num_kv_heads, head_dim] of rotated keys, when the recipe smooths K */
    uint64_t hadamard_seed; /* 0 means HR_HADAMARD_DEFAULT_SEED */
    int32_t max_sequences;  /* residual blocks, where the recipe has a residual; else 0 */
    /*
     * HR_LAYOUT_ROWS, which kernels of every machine read, or HR_LAYOUT_BLOCKS_K and _V, in which
     * some read 8 and 4 bits faster: hr_kv_cache_layouts (headroom/attention.h) says what to take.
     */
    hr_layout k_layout, v_layout;
} hr_kv_cache_options;

enum { HR_PAGE_SIZE_MULTIPLE = 16, HR_PAGE_SIZE_MAX = 256 };

/*
 * An empty cache; release with hr_kv_cache_free. A recipe that cannot be applied token by token is
 * HR_ERROR_UNSUPPORTED and the message names a setting that can.
 */
HR_API hr_status hr_kv_cache_create(const hr_kv_cache_options *options,
                                    hr_kv_cache **out) HR_NODISCARD;
HR_API void hr_kv_cache_free(hr_kv_cache *cache);

/*
 * Stores tokens: k, v [tokens, num_kv_heads, head_dim] (F32, F16 or BF16, any strides), K not yet
 * rotated by rope. slot_mapping [tokens]: where each goes; -1 skips a token (padding). A slot that
 * already holds a token, or that occurs twice, is overwritten by the later one. positions [tokens],
 * >= 0: required with rope, else ignored and may be NULL.
 *
 * A slot in a page the cache does not have is HR_ERROR_INVALID_ARGUMENT, NaN or infinity
 * HR_ERROR_NUMERIC, with the token named; the cache is then unchanged. Allocates nothing. Calls for
 * different slots may run at the same time. A token whose channels are all zero takes the scale
 * 2^-126, where hr_pack, which knows the other tokens, takes a larger one.
 */
HR_API hr_status hr_kv_cache_append(hr_kv_cache *cache, const hr_tensor *k, const hr_tensor *v,
                                    const int32_t *positions,
                                    const int64_t *slot_mapping) HR_NODISCARD;

/*
 * The same for a cache whose recipe has a residual of N tokens. Every token is quantized and stored
 * when it arrives, as above, and kept in BF16 (rotated by rope alone) in the residual block of its
 * sequence as well, until N to N + 16 newer ones have come. positions [tokens]: its index in its
 * sequence, which rope turns by too. blocks [tokens]: the residual block of its sequence, below
 * max_sequences; a new sequence simply takes a block over. Tokens of a sequence come in order.
 */
HR_API hr_status hr_kv_cache_append_residual(hr_kv_cache *cache, const hr_tensor *k,
                                             const hr_tensor *v, const int32_t *positions,
                                             const int64_t *slot_mapping,
                                             const int32_t *blocks) HR_NODISCARD;

/*
 * Bytes the cache holds for all of its pages: codes, scales and zero points of K and V; and for its
 * residual blocks.
 */
HR_API int64_t hr_kv_cache_bytes(const hr_kv_cache *cache);

/* K or V as kernels read it: the arrays of the picture above, owned by the cache. */
typedef struct hr_kv_view {
    hr_operand_recipe recipe;
    int32_t num_pages, num_kv_heads, page_size, head_dim;
    hr_layout layout;
    const void *codes;  /* 64-byte aligned, at least 64 readable bytes after the last code */
    size_t row_bytes;   /* of the codes of one token and head */
    size_t tile_bytes;  /* of hr_layout_tile_tokens(layout) slots of a head, with their padding */
    const float *scale; /* NULL for formats without */
    const uint8_t *zero_point;
    int32_t token_scales;   /* scales a token and head has: 1, head_dim / block, or 0 when static */
    const float *mean;      /* [num_kv_heads, head_dim] subtracted from K; NULL otherwise */
    uint64_t hadamard_seed; /* 0 when not rotated */
    hr_rope rope;           /* of K; zeroed for V */
} hr_kv_view;

/* operand: HR_OPERAND_K or HR_OPERAND_V; zeroed for anything else. */
HR_API hr_kv_view hr_kv_cache_view(const hr_kv_cache *cache, hr_operand operand);

/*
 * Copies sequences out of the cache: K or V of the tokens cu_seqlens [batch + 1] counts, found
 * through the block table, as a contiguous operand with the same codes and scales. For kernels
 * without HR_FEATURE_PAGED, and to look at what the cache holds (hr_unpack). Release *out with
 * hr_packed_free; it is zeroed on error.
 */
HR_API hr_status hr_kv_cache_gather(const hr_kv_cache *cache, hr_operand operand,
                                    const hr_paging *paging, int32_t batch,
                                    const int32_t *cu_seqlens, hr_layout layout,
                                    hr_packed *out) HR_NODISCARD;

#ifdef __cplusplus
}
#endif

#endif
