/*
 * Making and looking at a KV cache; the layout is in headroom/kv_cache.h.
 */
#include <stdlib.h>
#include <string.h>

#include "kv_cache_internal.h"
#include "memory.h"
#include "pack_check.h"
#include "pack_scale.h"
#include "status_internal.h"

enum { CODE_SLACK = 64 }; /* a vector load may start at the last code */

/* What must hold, besides the rules of packing, for a token to be stored by itself. */
static hr_status check_stream(char name, const hr_operand_recipe *recipe)
{
    const char *granularity = hr_granularity_name(recipe->granularity);
    switch (recipe->granularity) {
    case HR_GRANULARITY_TENSOR:
    case HR_GRANULARITY_HEAD:
    case HR_GRANULARITY_CHANNEL:
        if (!recipe->dynamic) return HR_OK;
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%c has dynamic scales per %s, which need all tokens at once; a cache takes "
                       "%c.scale=static with scales from a profile, or %c.granularity=token or "
                       "groupN",
                       name, granularity, name, name);
    case HR_GRANULARITY_BLOCK:
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%c has scales per block of %d tokens, which need these tokens at once; a "
                       "cache takes %c.granularity=token or groupN",
                       name, recipe->block, name);
    default:
        return HR_OK;
    }
}

/* Pages hold whole tiles of these layouts and no others. */
static hr_status check_layout(hr_operand operand, const hr_operand_recipe *recipe, hr_layout layout)
{
    const bool key = operand == HR_OPERAND_K;
    HR_TRY(hr_layout_check(layout, operand, recipe->dtype));
    if (layout == HR_LAYOUT_ROWS || layout == (key ? HR_LAYOUT_BLOCKS_K : HR_LAYOUT_BLOCKS_V))
        return HR_OK;
    return hr_fail(HR_ERROR_UNSUPPORTED, "%c_layout is %s; a cache takes rows or %s",
                   key ? 'k' : 'v', hr_layout_name(layout), key ? "blocks_k" : "blocks_v");
}

static hr_status check_operand(hr_operand operand, const hr_operand_recipe *recipe,
                               const hr_kv_cache_options *options)
{
    const bool key = operand == HR_OPERAND_K;
    HR_TRY(hr_pack_check_recipe(operand, recipe, options->head_dim));
    HR_TRY(check_stream(key ? 'k' : 'v', recipe));
    HR_TRY(check_layout(operand, recipe, key ? options->k_layout : options->v_layout));
    return hr_pack_check_static_scales(key ? "k" : "v", recipe, options->num_kv_heads,
                                       options->head_dim,
                                       key ? options->k_scale : options->v_scale);
}

static hr_status check_mean(const hr_kv_cache_options *options, const hr_operand_recipe *recipe)
{
    const bool smoothed = recipe->transform & HR_TRANSFORM_MEAN;
    if (smoothed && !options->k_mean)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the recipe smooths k, but k_mean is NULL: the mean of keys yet to come is "
                       "not known, so give that of a profile, or take a recipe without "
                       "(k.transform=none or hadamard)");
    if (!smoothed && options->k_mean)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "k_mean was given, but the recipe does not smooth k");
    return hr_pack_check_mean("k_mean", options->k_mean, options->num_kv_heads, options->head_dim);
}

static hr_status check_options(const hr_kv_cache_options *options)
{
    if (!options || !options->recipe)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is NULL", options ? "recipe" : "options");
    if (options->num_kv_heads < 1 || options->num_pages < 1)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is %d; it must be at least 1",
                       options->num_kv_heads < 1 ? "num_kv_heads" : "num_pages",
                       options->num_kv_heads < 1 ? options->num_kv_heads : options->num_pages);
    if (options->page_size < HR_PAGE_SIZE_MULTIPLE || options->page_size > HR_PAGE_SIZE_MAX ||
        options->page_size % HR_PAGE_SIZE_MULTIPLE != 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "page_size is %d; multiples of %d up to %d are accepted", options->page_size,
                       HR_PAGE_SIZE_MULTIPLE, HR_PAGE_SIZE_MAX);
    hr_recipe recipe = *options->recipe;
    HR_TRY(hr_recipe_normalize(&recipe));
    HR_TRY(check_operand(HR_OPERAND_K, &recipe.k, options));
    HR_TRY(check_operand(HR_OPERAND_V, &recipe.v, options));
    HR_TRY(check_mean(options, &recipe.k));
    if (recipe.residual ? options->max_sequences < 1 : options->max_sequences != 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "max_sequences is %d; with a recipe with%s a residual it must be %s",
                       options->max_sequences, recipe.residual ? "" : "out",
                       recipe.residual ? "at least 1" : "0");
    return hr_rope_check(&options->rope, options->head_dim);
}

static int32_t token_scales_of(const hr_operand_recipe *recipe, int32_t head_dim)
{
    if (recipe->granularity == HR_GRANULARITY_TOKEN) return 1;
    if (recipe->granularity == HR_GRANULARITY_GROUP) return head_dim / recipe->block;
    return 0;
}

/* The codes of slots that nothing was written to are 0. */
static hr_status allocate_codes(const hr_kv_cache *cache, hr_kv_store *store, size_t *rows)
{
    const hr_dtype dtype = store->recipe.dtype;
    const size_t tile_tokens = (size_t)hr_layout_tile_tokens(store->layout);
    store->row_bytes = hr_layout_row_bytes(dtype, cache->head_dim);
    store->tile_bytes = hr_layout_tile_bytes(store->layout, dtype, cache->head_dim);
    if (store->layout != HR_LAYOUT_ROWS)
        store->map = hr_layout_map_of(store->layout, dtype, cache->head_dim);
    /* Rows that cannot be counted cannot be allocated either; SIZE_MAX is refused. */
    size_t bytes;
    if (__builtin_mul_overflow((size_t)cache->num_pages * (size_t)cache->page_size,
                               (size_t)cache->num_kv_heads, rows) ||
        __builtin_mul_overflow(*rows / tile_tokens, store->tile_bytes, &bytes) ||
        bytes > SIZE_MAX / 2)
        bytes = SIZE_MAX / 2;
    store->codes = hr_alloc(1, bytes + CODE_SLACK);
    if (!store->codes) return HR_ERROR_OUT_OF_MEMORY;
    if (store->map.added) memset(store->codes, store->map.added, bytes);
    return HR_OK;
}

static hr_status allocate_store(const hr_kv_cache *cache, const hr_operand_recipe *recipe,
                                hr_operand operand, const hr_kv_cache_options *options,
                                hr_kv_store *store)
{
    const bool key = operand == HR_OPERAND_K;
    const float *static_scale = key ? options->k_scale : options->v_scale;
    store->operand = operand;
    store->recipe = *recipe;
    store->layout = key ? options->k_layout : options->v_layout;
    store->token_scales = token_scales_of(recipe, cache->head_dim);
    size_t rows;
    HR_TRY(allocate_codes(cache, store, &rows));
    if (recipe->granularity == HR_GRANULARITY_NONE) return HR_OK;

    const int32_t nothing[2] = {0, 0};
    store->scale_count = store->token_scales ? (int64_t)rows * store->token_scales
                                             : hr_scale_count(recipe, cache->num_kv_heads,
                                                              cache->head_dim, 1, nothing);
    store->scale = hr_alloc((size_t)store->scale_count, sizeof *store->scale);
    if (!store->scale) return HR_ERROR_OUT_OF_MEMORY;
    /* What a head of zeros takes: slots never written read as (nearly) zeros in every format. */
    const float unwritten = hr_scale_floor(recipe->dtype, 0);
    for (int64_t i = 0; i < store->scale_count; i++)
        store->scale[i] = static_scale ? static_scale[i] : unwritten;
    if (recipe->dtype != HR_DTYPE_U4) return HR_OK;
    store->zero_point = hr_alloc((size_t)store->scale_count, 1);
    return store->zero_point ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
}

static hr_status make_residual(hr_kv_cache *cache, int32_t residual,
                               const hr_kv_cache_options *options)
{
    const int64_t pages = (int64_t)hr_kv_ring_pages(residual) * options->max_sequences;
    hr_recipe bf16;
    HR_TRY(hr_recipe_parse("bf16", &bf16));
    if (pages > INT32_MAX)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "%d residual blocks of %d tokens are more than a cache can have",
                       options->max_sequences, residual);
    cache->residual = residual;
    cache->max_sequences = options->max_sequences;
    const hr_kv_cache_options recent = {.recipe = &bf16,
                                        .num_kv_heads = options->num_kv_heads,
                                        .head_dim = options->head_dim,
                                        .page_size = HR_RESIDUAL_MULTIPLE,
                                        .num_pages = (int32_t)pages,
                                        .rope = options->rope};
    return hr_kv_cache_create(&recent, &cache->recent);
}

static hr_status fill_cache(hr_kv_cache *cache, const hr_kv_cache_options *options)
{
    hr_recipe recipe = *options->recipe;
    HR_TRY(hr_recipe_normalize(&recipe));
    cache->num_kv_heads = options->num_kv_heads;
    cache->head_dim = options->head_dim;
    cache->page_size = options->page_size;
    cache->num_pages = options->num_pages;
    cache->rope = options->rope;
    hr_rope_rates(&cache->rope, cache->rates);
    if (recipe.k.transform & HR_TRANSFORM_HADAMARD) {
        uint64_t seed = options->hadamard_seed;
        cache->hadamard_seed = seed ? seed : HR_HADAMARD_DEFAULT_SEED;
        hr_hadamard_signs(cache->hadamard_seed, cache->head_dim, cache->signs);
    }
    if (options->k_mean) {
        size_t count = (size_t)cache->num_kv_heads * (size_t)cache->head_dim;
        cache->mean = hr_alloc(count, sizeof *cache->mean);
        if (!cache->mean) return HR_ERROR_OUT_OF_MEMORY;
        memcpy(cache->mean, options->k_mean, count * sizeof *cache->mean);
    }
    if (recipe.residual) HR_TRY(make_residual(cache, recipe.residual, options));
    HR_TRY(allocate_store(cache, &recipe.k, HR_OPERAND_K, options, &cache->k));
    return allocate_store(cache, &recipe.v, HR_OPERAND_V, options, &cache->v);
}

hr_status hr_kv_cache_create(const hr_kv_cache_options *options, hr_kv_cache **out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out is NULL");
    *out = NULL;
    HR_TRY(check_options(options));
    hr_kv_cache *cache = hr_alloc(1, sizeof *cache);
    if (!cache) return HR_ERROR_OUT_OF_MEMORY;
    hr_status status = fill_cache(cache, options);
    if (status != HR_OK) {
        hr_kv_cache_free(cache);
        return status;
    }
    *out = cache;
    return HR_OK;
}

void hr_kv_cache_free(hr_kv_cache *cache)
{
    if (!cache) return;
    hr_kv_store *stores[] = {&cache->k, &cache->v};
    for (int i = 0; i < 2; i++) {
        free(stores[i]->codes);
        free(stores[i]->scale);
        free(stores[i]->zero_point);
    }
    free(cache->mean);
    hr_kv_cache_free(cache->recent);
    free(cache);
}

static int64_t store_bytes(const hr_kv_cache *cache, const hr_kv_store *store)
{
    size_t token;
    const int64_t rows = (int64_t)cache->num_pages * cache->page_size * cache->num_kv_heads;
    return (int64_t)hr_kv_tile(store, rows, &token) + store->scale_count * (int64_t)sizeof(float) +
           (store->zero_point ? store->scale_count : 0);
}

int64_t hr_kv_cache_bytes(const hr_kv_cache *cache)
{
    if (!cache) return 0;
    return store_bytes(cache, &cache->k) + store_bytes(cache, &cache->v) +
           hr_kv_cache_bytes(cache->recent);
}

hr_kv_view hr_kv_cache_view(const hr_kv_cache *cache, hr_operand operand)
{
    const bool key = operand == HR_OPERAND_K;
    if (!cache || (!key && operand != HR_OPERAND_V)) return (hr_kv_view){0};
    const hr_kv_store *store = key ? &cache->k : &cache->v;
    hr_kv_view view = {
        .recipe = store->recipe,
        .num_pages = cache->num_pages,
        .num_kv_heads = cache->num_kv_heads,
        .page_size = cache->page_size,
        .head_dim = cache->head_dim,
        .layout = store->layout,
        .codes = store->codes,
        .row_bytes = store->row_bytes,
        .tile_bytes = store->tile_bytes,
        .scale = store->scale,
        .zero_point = store->zero_point,
        .token_scales = store->token_scales,
    };
    if (key) {
        view.mean = cache->mean;
        view.hadamard_seed = cache->hadamard_seed;
        view.rope = cache->rope;
    }
    return view;
}
