/*
 * Paged plans: does a cache belong to the plan, and how a kernel sees one of its heads.
 *
 * A page holds page_size slots of every head, head after head, in the codes and in the scales by
 * token alike (headroom/kv_cache.h). So slot s of page p is num_kv_heads * page_size * p + s rows
 * after the head's first row in page 0, and one number finds codes and scales.
 */
#include "dispatch.h"
#include "isa.h"
#include "kv_cache_internal.h"
#include "plan.h"
#include "status_internal.h"

hr_kernel_operand hr_plan_paged_operand(const hr_plan *plan, const hr_kv_cache *cache,
                                        hr_operand operand, int32_t kv_head, int32_t sequence)
{
    const hr_paging *paging = &plan->problem.paging;
    const hr_kv_store *store = operand == HR_OPERAND_K ? &cache->k : &cache->v;
    const int64_t row = hr_kv_row(cache, kv_head, 0);
    size_t token; /* 0: a page begins with a tile */
    const int64_t scale = hr_kv_scale_index(cache, store, kv_head, row);
    hr_kernel_operand out = {
        .codes = store->codes + hr_kv_tile(store, row, &token),
        .dtype = store->recipe.dtype,
        .granularity = store->recipe.granularity,
        .block = store->recipe.block,
    };
    hr_kernel_set_pages(&out, paging->block_table + (int64_t)sequence * paging->max_pages,
                        paging->page_size, (int64_t)cache->num_kv_heads * cache->page_size);
    if (store->scale) out.scale = store->scale + scale;
    if (store->zero_point) out.zero_point = store->zero_point + scale;
    return out;
}

/* The plan's kernel was chosen for the layouts of its problem's paging. */
static hr_status check_layout(char operand, hr_layout has, hr_layout wanted)
{
    if (has == wanted) return HR_OK;
    return hr_fail(HR_ERROR_MISMATCH,
                   "the cache holds %c in layout %s; the plan reads %s, as its problem's "
                   "paging.%c_layout says",
                   operand, hr_layout_name(has), hr_layout_name(wanted), operand);
}

hr_status hr_plan_check_cache(const hr_plan *plan, const hr_plan_io *io)
{
    const hr_attention_problem *problem = &plan->problem;
    const hr_kv_cache *cache = io->cache;
    const struct {
        const char *field;
        int32_t has, wanted;
    } checks[] = {{"num_kv_heads", cache->num_kv_heads, problem->num_kv_heads},
                  {"head_dim", cache->head_dim, problem->head_dim},
                  {"page_size", cache->page_size, problem->paging.page_size}};
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++)
        if (checks[i].has != checks[i].wanted)
            return hr_fail(HR_ERROR_MISMATCH, "the cache has %s %d; the plan has %d",
                           checks[i].field, checks[i].has, checks[i].wanted);
    HR_TRY(hr_plan_check_recipe("the cache's k", &cache->k.recipe, &plan->recipe.k));
    HR_TRY(hr_plan_check_recipe("the cache's v", &cache->v.recipe, &plan->recipe.v));
    HR_TRY(check_layout('k', cache->k.layout, problem->paging.k_layout));
    HR_TRY(check_layout('v', cache->v.layout, problem->paging.v_layout));
    HR_TRY(hr_plan_check_rope("the cache's k", &cache->rope, &problem->rope));
    return hr_paging_check(&problem->paging, problem->batch, problem->cu_seqlens_kv,
                           cache->num_pages);
}

/*
 * The first row made for decode that reads some layouts of a cache is the fastest there; its
 * layouts are taken if rows of the table do all that can be asked of a cache.
 */
hr_status hr_kernel_cache_layouts(const hr_recipe *recipe, int32_t head_dim, uint32_t isa_mask,
                                  hr_layout *k, hr_layout *v)
{
    char reason[HR_KERNEL_REASON_BYTES];
    hr_kernel_query decode = {
        .recipe = *recipe, .head_dim = head_dim, .seqlen_q = 1, .features = HR_FEATURE_PAGED};
    HR_TRY(hr_recipe_normalize(&decode.recipe));
    hr_kernel_query all = decode;
    all.seqlen_q = 0;
    all.features = (1u << HR_FEATURE_COUNT) - 1;
    for (int i = 0; i < hr_kernels_count; i++) {
        const hr_kernel_info *info = &hr_kernels[i].info, *row;
        if (info->max_seqlen_q == 0) continue;
        decode.k_layout = all.k_layout = info->k_layout;
        decode.v_layout = all.v_layout = info->v_layout;
        if (hr_kernel_check(info, &decode, isa_mask, reason) != HR_KERNEL_FITS ||
            hr_kernel_find(&all, isa_mask, &row) != HR_OK)
            continue;
        *k = info->k_layout;
        *v = info->v_layout;
        return HR_OK;
    }
    decode.k_layout = decode.v_layout = *k = *v = HR_LAYOUT_ROWS;
    const hr_kernel_info *row;
    return hr_kernel_find(&decode, isa_mask, &row);
}

hr_status hr_kv_cache_layouts(const hr_recipe *recipe, int32_t head_dim, hr_layout *k, hr_layout *v)
{
    if (!recipe || !k || !v)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "recipe, k and v must not be NULL");
    uint32_t usable;
    HR_TRY(hr_isa_usable(HR_DEVICE_CPU, &usable));
    return hr_kernel_cache_layouts(recipe, head_dim, usable, k, v);
}
