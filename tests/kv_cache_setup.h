/*
 * Tokens for the tests of KV caches, and caches filled with them.
 */
#ifndef HEADROOM_KV_CACHE_SETUP_H
#define HEADROOM_KV_CACHE_SETUP_H

#include <criterion/criterion.h>

#include "headroom/kv_cache.h"
#include "test_random.h"

enum { HEADS = 3, HEAD_DIM = 64, TOKENS = 150, ROW = HEADS * HEAD_DIM };

/* K and V of TOKENS tokens; token 7 is all zeros, token 9 tiny. */
typedef struct input {
    float k[TOKENS * ROW], v[TOKENS * ROW];
    int32_t positions[TOKENS];
    float k_scale[HEADS], v_scale[ROW], mean[ROW];
} input;

static inline const input *make_input(void)
{
    static input in;
    test_random random = {11};
    random_gaussians(&random, in.k, TOKENS * ROW);
    random_gaussians(&random, in.v, TOKENS * ROW);
    for (int i = 0; i < ROW; i++) {
        in.k[7 * ROW + i] = in.v[7 * ROW + i] = 0;
        in.k[9 * ROW + i] *= 1e-30f;
        in.v[9 * ROW + i] *= 1e-30f;
        in.v_scale[i] = 0.03f;
        in.mean[i] = 0.5f * random_gaussian(&random);
    }
    for (int h = 0; h < HEADS; h++)
        in.k_scale[h] = 0.04f;
    for (int t = 0; t < TOKENS; t++)
        in.positions[t] = 1000 + 3 * t;
    return &in;
}

static inline hr_tensor view_of(const float *x, int64_t first, int64_t tokens)
{
    return hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){tokens, HEADS, HEAD_DIM},
                          (float *)x + first * ROW);
}

static inline hr_recipe recipe_of(const char *text)
{
    hr_recipe recipe;
    cr_assert_eq(hr_recipe_parse(text, &recipe), HR_OK, "%s", hr_last_error());
    return recipe;
}

/* With what static scales and mean the recipe asks for. */
static inline hr_kv_cache_options options_for(const hr_recipe *recipe, const input *in,
                                              int32_t page_size)
{
    hr_kv_cache_options options = {.recipe = recipe,
                                   .num_kv_heads = HEADS,
                                   .head_dim = HEAD_DIM,
                                   .page_size = page_size,
                                   .num_pages = (TOKENS + page_size - 1) / page_size + 2};
    bool scaled_k = recipe->k.granularity != HR_GRANULARITY_NONE && !recipe->k.dynamic;
    bool scaled_v = recipe->v.granularity != HR_GRANULARITY_NONE && !recipe->v.dynamic;
    if (scaled_k) options.k_scale = in->k_scale;
    if (scaled_v) options.v_scale = in->v_scale;
    if (recipe->k.transform & HR_TRANSFORM_MEAN) options.k_mean = in->mean;
    return options;
}

static inline hr_kv_cache *create(const hr_kv_cache_options *options)
{
    hr_kv_cache *cache;
    cr_assert_eq(hr_kv_cache_create(options, &cache), HR_OK, "%s", hr_last_error());
    return cache;
}

/* Tokens in slots that run backwards over the pages: page order and token order differ. */
static inline void fill_slots(int64_t slots[TOKENS], const hr_kv_cache_options *options)
{
    for (int64_t t = 0; t < TOKENS; t++) {
        int64_t page = options->num_pages - 1 - t / options->page_size;
        slots[t] = page * options->page_size + t % options->page_size;
    }
}

static inline void append_in_chunks(hr_kv_cache *cache, const input *in, const int64_t *slots,
                                    int64_t chunk)
{
    for (int64_t first = 0; first < TOKENS; first += chunk) {
        int64_t count = TOKENS - first < chunk ? TOKENS - first : chunk;
        hr_tensor k = view_of(in->k, first, count), v = view_of(in->v, first, count);
        cr_assert_eq(hr_kv_cache_append(cache, &k, &v, in->positions + first, slots + first), HR_OK,
                     "%s", hr_last_error());
    }
}

static inline int64_t scale_bytes(const hr_kv_view *view)
{
    int64_t rows = (int64_t)view->num_pages * view->page_size * view->num_kv_heads;
    return rows * view->token_scales * (int64_t)sizeof(float);
}

static inline void expect_same_store(const hr_kv_cache *a, const hr_kv_cache *b, hr_operand operand)
{
    hr_kv_view x = hr_kv_cache_view(a, operand), y = hr_kv_cache_view(b, operand);
    size_t rows = (size_t)x.num_pages * (size_t)x.page_size * (size_t)x.num_kv_heads;
    const size_t tiles = rows / (size_t)hr_layout_tile_tokens(x.layout);
    cr_assert_eq(x.layout, y.layout);
    cr_expect_arr_eq(x.codes, y.codes, tiles * x.tile_bytes);
    if (x.token_scales) cr_expect_arr_eq(x.scale, y.scale, (size_t)scale_bytes(&x));
    if (x.zero_point) cr_expect_arr_eq(x.zero_point, y.zero_point, rows * (size_t)x.token_scales);
}

#endif
