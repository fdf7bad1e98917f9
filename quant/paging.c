/*
 * Validation of block tables.
 */
#include "kv_cache_internal.h"
#include "status_internal.h"

static hr_status check_pages(const hr_paging *paging, int32_t sequence, int64_t tokens,
                             int32_t num_pages)
{
    int64_t pages = (tokens + paging->page_size - 1) / paging->page_size;
    if (pages > paging->max_pages)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "max_pages is %d, but sequence %d has %lld tokens, which take %lld pages"
                       " of %d",
                       paging->max_pages, sequence, (long long)tokens, (long long)pages,
                       paging->page_size);
    const int32_t *row = paging->block_table + (int64_t)sequence * paging->max_pages;
    for (int64_t i = 0; i < pages; i++) {
        if (row[i] < 0)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "block_table[%d][%lld] is %d; page numbers must be at least 0", sequence,
                           (long long)i, row[i]);
        if (num_pages && row[i] >= num_pages)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "block_table[%d][%lld] is %d, but the cache has %d pages", sequence,
                           (long long)i, row[i], num_pages);
    }
    return HR_OK;
}

hr_status hr_paging_check(const hr_paging *paging, int32_t batch, const int32_t *cu_seqlens,
                          int32_t num_pages)
{
    if (paging->page_size < 1)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "page_size is %d; it must be 0 (contiguous) or at least 1",
                       paging->page_size);
    if (!paging->block_table)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "block_table must not be NULL when page_size is given");
    if (paging->max_pages < 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "max_pages is %d; it must be at least 0",
                       paging->max_pages);
    for (int32_t b = 0; b < batch; b++)
        HR_TRY(check_pages(paging, b, (int64_t)cu_seqlens[b + 1] - cu_seqlens[b], num_pages));
    return HR_OK;
}
