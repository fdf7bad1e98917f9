/*
 * hr_kv_cache_gather: sequences of a cache as a contiguous packed operand.
 */
#include <stdlib.h>
#include <string.h>

#include "kv_cache_internal.h"
#include "memory.h"
#include "pack_check.h"
#include "packed_memory.h"
#include "status_internal.h"

static hr_status check_arguments(const hr_kv_cache *cache, hr_operand operand,
                                 const hr_paging *paging, int32_t batch, const int32_t *cu_seqlens,
                                 hr_layout layout, const hr_kv_store *store)
{
    if (!cache || !paging)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is NULL", cache ? "paging" : "cache");
    if (operand != HR_OPERAND_K && operand != HR_OPERAND_V)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "a cache holds K and V, not %s",
                       hr_operand_name(operand));
    HR_TRY(hr_layout_check(layout, operand, store->recipe.dtype));
    if (paging->page_size != cache->page_size)
        return hr_fail(HR_ERROR_MISMATCH, "page_size is %d; the cache has pages of %d",
                       paging->page_size, cache->page_size);
    HR_TRY(hr_pack_check_seqlens("cu_seqlens", batch, cu_seqlens,
                                 batch >= 1 && cu_seqlens ? cu_seqlens[batch] : 0));
    return hr_paging_check(paging, batch, cu_seqlens, cache->num_pages);
}

static void get_codes(const hr_kv_store *store, int64_t row, uint8_t *codes)
{
    size_t token;
    const uint8_t *tile = store->codes + hr_kv_tile(store, row, &token);
    if (store->layout == HR_LAYOUT_ROWS)
        memcpy(codes, tile, store->row_bytes);
    else
        hr_layout_get_row(&store->map, tile, token, codes);
}

/* One head: codes in rows form, scales and zero points in place. */
static void gather_head(const hr_kv_cache *cache, const hr_kv_store *store, const hr_paging *paging,
                        int32_t head, const hr_packed *out, uint8_t *rows)
{
    const int64_t scales = store->token_scales;
    for (int32_t b = 0; b < out->batch; b++) {
        const int32_t *table = paging->block_table + (int64_t)b * paging->max_pages;
        for (int64_t t = out->cu_seqlens[b]; t < out->cu_seqlens[b + 1]; t++) {
            int64_t i = t - out->cu_seqlens[b];
            int64_t slot =
                (int64_t)table[i / cache->page_size] * cache->page_size + i % cache->page_size;
            int64_t from = hr_kv_row(cache, head, slot), to = head * out->total_tokens + t;
            get_codes(store, from, rows + (size_t)t * store->row_bytes);
            if (!scales) continue;
            memcpy(out->scale + to * scales, store->scale + from * scales,
                   (size_t)scales * sizeof *out->scale);
            if (out->zero_point)
                memcpy(out->zero_point + to * scales, store->zero_point + from * scales,
                       (size_t)scales);
        }
    }
}

static hr_status gather_operand(const hr_kv_cache *cache, const hr_kv_store *store,
                                const hr_paging *paging, const int32_t *cu_seqlens, hr_packed *out)
{
    HR_TRY(hr_packed_measure(out, cu_seqlens));
    HR_TRY(hr_packed_allocate(out, false));
    if (!store->token_scales && out->scale)
        memcpy(out->scale, store->scale, (size_t)out->scale_count * sizeof *out->scale);
    if (out->mean)
        memcpy(out->mean, cache->mean,
               (size_t)out->num_heads * (size_t)out->head_dim * sizeof *out->mean);
    uint8_t *rows = hr_alloc((size_t)out->total_tokens, store->row_bytes);
    if (!rows) return HR_ERROR_OUT_OF_MEMORY;
    for (int32_t head = 0; head < out->num_heads; head++) {
        gather_head(cache, store, paging, head, out, rows);
        hr_layout_from_rows(out, head, rows);
    }
    free(rows);
    return HR_OK;
}

hr_status hr_kv_cache_gather(const hr_kv_cache *cache, hr_operand operand, const hr_paging *paging,
                             int32_t batch, const int32_t *cu_seqlens, hr_layout layout,
                             hr_packed *out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out is NULL");
    *out = (hr_packed){0};
    const bool key = operand == HR_OPERAND_K;
    const hr_kv_store *store = !cache ? NULL : key ? &cache->k : &cache->v;
    HR_TRY(check_arguments(cache, operand, paging, batch, cu_seqlens, layout, store));
    *out = (hr_packed){
        .operand = operand,
        .recipe = store->recipe,
        .layout = layout,
        .batch = batch,
        .num_heads = cache->num_kv_heads,
        .head_dim = cache->head_dim,
        .total_tokens = cu_seqlens[batch],
        .hadamard_seed = key ? cache->hadamard_seed : 0,
    };
    if (key) out->rope = cache->rope;
    hr_status status = gather_operand(cache, store, paging, cu_seqlens, out);
    if (status != HR_OK) hr_packed_free(out);
    return status;
}
