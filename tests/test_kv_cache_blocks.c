/*
 * KV caches in HR_LAYOUT_BLOCKS_K and _V: what they hold is what a cache in rows holds, in the
 * bytes that packing makes of it, whoever writes it in what order.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "kv_cache_setup.h"

/* Every format blocks take, head_dims with padding in V and without, scales of every kind. */
static const struct {
    const char *recipe;
    int32_t heads, head_dim, page_size;
} cases[] = {
    {"int8:k.transform=none", HEADS, HEAD_DIM, 16},
    {"int8", HEADS, HEAD_DIM, 64},
    {"int8:k.transform=none,kv.granularity=group8", 2, 72, 48},
    {"int8:k.transform=none", HEADS, 8, 256},
    {"fp8", HEADS, HEAD_DIM, 48},
    {"fp8:v.granularity=channel", HEADS, HEAD_DIM, 16},
    {"int8-fp8:k.transform=none,v.granularity=token", 2, 72, 64},
    {"int4", HEADS, HEAD_DIM, 16},
    {"int4:qk.transform=none", 2, 72, 256},
    {"int4:kv.dtype=i4,qk.transform=none", HEADS, 8, 48},
    {"int4:kv.dtype=u4,kv.granularity=group32", HEADS, HEAD_DIM, 64},
    {"int4:v.dtype=i8", HEADS, HEAD_DIM, 16},
    {"int8:v.dtype=c4", HEADS, HEAD_DIM, 32},
};

enum { CASES = sizeof cases / sizeof cases[0] };

/* The first channels and heads of the input, in the case's shape. */
static hr_tensor tokens_of(const float *x, int index, int64_t first, int64_t count)
{
    hr_tensor view = hr_tensor_view(HR_DTYPE_F32, 3,
                                    (int64_t[]){count, cases[index].heads, cases[index].head_dim},
                                    (float *)x + first * ROW);
    view.stride[0] = ROW;
    view.stride[1] = cases[index].head_dim < HEAD_DIM ? HEAD_DIM : cases[index].head_dim;
    return view;
}

static hr_kv_cache_options options_of(const hr_recipe *recipe, const input *in, int index,
                                      bool blocks)
{
    hr_kv_cache_options options = options_for(recipe, in, cases[index].page_size);
    options.num_kv_heads = cases[index].heads;
    options.head_dim = cases[index].head_dim;
    options.k_layout = blocks ? HR_LAYOUT_BLOCKS_K : HR_LAYOUT_ROWS;
    options.v_layout = blocks ? HR_LAYOUT_BLOCKS_V : HR_LAYOUT_ROWS;
    return options;
}

static void append(hr_kv_cache *cache, const input *in, int index, const int64_t *slots,
                   int64_t chunk)
{
    for (int64_t first = 0; first < TOKENS; first += chunk) {
        const int64_t count = TOKENS - first < chunk ? TOKENS - first : chunk;
        const hr_tensor k = tokens_of(in->k, index, first, count);
        const hr_tensor v = tokens_of(in->v, index, first, count);
        cr_assert_eq(hr_kv_cache_append(cache, &k, &v, in->positions + first, slots + first), HR_OK,
                     "%s", hr_last_error());
    }
}

static hr_packed gather(const hr_kv_cache *cache, hr_operand operand, hr_layout layout,
                        const hr_kv_cache_options *options)
{
    static int32_t table[TOKENS];
    const int32_t lengths[2] = {0, TOKENS};
    for (int32_t i = 0; i < options->num_pages; i++)
        table[i] = options->num_pages - 1 - i; /* as fill_slots */
    const hr_paging paging = {
        .page_size = options->page_size, .max_pages = options->num_pages, .block_table = table};
    hr_packed out;
    cr_assert_eq(hr_kv_cache_gather(cache, operand, &paging, 1, lengths, layout, &out), HR_OK, "%s",
                 hr_last_error());
    return out;
}

static void expect_same_packed(const hr_packed *a, const hr_packed *b, int index)
{
    cr_assert_eq(a->head_bytes, b->head_bytes);
    cr_assert_eq(a->scale_count, b->scale_count);
    cr_expect_arr_eq(a->codes, b->codes, (size_t)a->num_heads * a->head_bytes, "%s",
                     cases[index].recipe);
    cr_expect_arr_eq(a->scale, b->scale, (size_t)a->scale_count * sizeof(float), "%s",
                     cases[index].recipe);
    if (a->zero_point) cr_expect_arr_eq(a->zero_point, b->zero_point, (size_t)a->scale_count);
}

/* A page of the cache has the bytes of its tokens' blocks in the packed operand. */
static void expect_blocks(const hr_kv_cache *cache, const hr_packed *packed,
                          const hr_kv_cache_options *options, int index)
{
    const hr_kv_view view = hr_kv_cache_view(cache, packed->operand);
    const int64_t page_blocks = options->page_size / 16;
    cr_assert_eq(view.layout, packed->layout);
    for (int64_t head = 0; head < options->num_kv_heads; head++)
        for (int64_t block = 0; block < (TOKENS + 15) / 16; block++) {
            const int64_t page = options->num_pages - 1 - block / page_blocks;
            const int64_t at =
                (page * options->num_kv_heads + head) * page_blocks + block % page_blocks;
            cr_expect_arr_eq((const char *)view.codes + (size_t)at * view.tile_bytes,
                             (const char *)packed->codes + (size_t)head * packed->head_bytes +
                                 (size_t)block * view.tile_bytes,
                             view.tile_bytes, "%s: %s, head %d, block %d", cases[index].recipe,
                             hr_layout_name(view.layout), (int)head, (int)block);
        }
}

Test(kv_cache_blocks, hold_what_rows_hold_in_the_bytes_that_packing_makes)
{
    const input *in = make_input();
    for (int index = 0; index < CASES; index++) {
        const hr_recipe recipe = recipe_of(cases[index].recipe);
        const hr_kv_cache_options options = options_of(&recipe, in, index, true);
        const hr_kv_cache_options of_rows = options_of(&recipe, in, index, false);
        hr_kv_cache *blocks = create(&options), *rows = create(&of_rows);
        int64_t slots[TOKENS];
        fill_slots(slots, &options);
        append(rows, in, index, slots, TOKENS);
        append(blocks, in, index, slots, 1 + index * 7);
        for (int operand = HR_OPERAND_K; operand <= HR_OPERAND_V; operand++) {
            const hr_layout layout =
                operand == HR_OPERAND_K ? HR_LAYOUT_BLOCKS_K : HR_LAYOUT_BLOCKS_V;
            hr_packed expected = gather(rows, (hr_operand)operand, HR_LAYOUT_ROWS, &options);
            hr_packed gathered = gather(blocks, (hr_operand)operand, HR_LAYOUT_ROWS, &options);
            expect_same_packed(&gathered, &expected, index);
            hr_packed laid_out;
            cr_assert_eq(hr_packed_relayout(&expected, layout, &laid_out), HR_OK);
            expect_blocks(blocks, &laid_out, &options, index);
            hr_packed_free(&gathered);
            gathered = gather(blocks, (hr_operand)operand, layout, &options);
            expect_same_packed(&gathered, &laid_out, index);
            hr_packed_free(&expected);
            hr_packed_free(&gathered);
            hr_packed_free(&laid_out);
        }
        hr_kv_cache_free(blocks);
        hr_kv_cache_free(rows);
    }
}

/* Slots are written in any order and again, with neighbours in the same bytes. */
Test(kv_cache_blocks, writing_a_slot_again_overwrites_it_and_no_other)
{
    const input *in = make_input();
    for (int index = 0; index < CASES; index++) {
        const hr_recipe recipe = recipe_of(cases[index].recipe);
        const hr_kv_cache_options options = options_of(&recipe, in, index, true);
        hr_kv_cache *once = create(&options), *again = create(&options);
        int64_t slots[TOKENS], turned[TOKENS], kept[TOKENS];
        fill_slots(slots, &options);
        for (int t = 0; t < TOKENS; t++) {
            turned[t] = slots[TOKENS - 1 - t];
            kept[t] = t % 3 ? slots[t] : -1;
        }
        append(once, in, index, slots, TOKENS);
        append(again, in, index, turned, 50); /* other tokens in every slot ... */
        append(again, in, index, slots, 50);  /* ... then the right ones, some of them twice */
        append(again, in, index, kept, 1);
        expect_same_store(once, again, HR_OPERAND_K);
        expect_same_store(once, again, HR_OPERAND_V);
        hr_kv_cache_free(once);
        hr_kv_cache_free(again);
    }
}

Test(kv_cache_blocks, bytes_are_those_of_whole_blocks)
{
    const input *in = make_input();
    const int index = 2; /* head_dim 72: V has 80 channels */
    const hr_recipe recipe = recipe_of("int8:k.transform=none");
    const hr_kv_cache_options options = options_of(&recipe, in, index, true);
    hr_kv_cache *cache = create(&options);
    const hr_kv_view k = hr_kv_cache_view(cache, HR_OPERAND_K);
    const hr_kv_view v = hr_kv_cache_view(cache, HR_OPERAND_V);
    cr_expect_eq(k.tile_bytes, 16 * 72);
    cr_expect_eq(v.tile_bytes, 16 * 80);
    cr_expect_eq(v.row_bytes, 72);
    const int64_t tokens = (int64_t)options.num_pages * options.page_size * options.num_kv_heads;
    cr_expect_eq(hr_kv_cache_bytes(cache), tokens * (72 + 80 + 2 * (int64_t)sizeof(float)));
    /* Slots that nothing was written to hold code 0. */
    cr_expect_eq(((const uint8_t *)k.codes)[5], 128);
    cr_expect_eq(((const uint8_t *)v.codes)[5], 0);
    hr_kv_cache_free(cache);
}

Test(kv_cache_blocks, create_names_the_layouts_it_refuses)
{
    const struct {
        const char *recipe;
        int k, v;
        hr_status status;
        const char *text;
    } refused[] = {
        {"int8:k.transform=none", HR_LAYOUT_VNNI_K, 0, HR_ERROR_UNSUPPORTED,
         "k_layout is vnni_k; a cache takes rows or blocks_k"},
        {"int8:k.transform=none", 0, HR_LAYOUT_SM90_V, HR_ERROR_UNSUPPORTED,
         "v_layout is sm90_v; a cache takes rows or blocks_v"},
        {"int8:k.transform=none", HR_LAYOUT_BLOCKS_V, 0, HR_ERROR_UNSUPPORTED,
         "K in i8 has no layout blocks_v"},
        {"bf16", HR_LAYOUT_BLOCKS_K, 0, HR_ERROR_UNSUPPORTED, "K in bf16 has no layout blocks_k"},
        {"bf16", 0, HR_LAYOUT_BLOCKS_V, HR_ERROR_UNSUPPORTED, "V in bf16 has no layout blocks_v"},
        {"bf16", HR_LAYOUT_COUNT, 0, HR_ERROR_INVALID_ARGUMENT, "no layout has the number"},
        {"bf16", 0, -1, HR_ERROR_INVALID_ARGUMENT, "no layout has the number -1"},
    };
    const input *in = make_input();
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        const hr_recipe recipe = recipe_of(refused[i].recipe);
        hr_kv_cache_options options = options_for(&recipe, in, 16);
        options.k_layout = (hr_layout)refused[i].k;
        options.v_layout = (hr_layout)refused[i].v;
        hr_kv_cache *cache = NULL;
        cr_expect_eq(hr_kv_cache_create(&options, &cache), refused[i].status, "%s",
                     refused[i].text);
        cr_expect_null(cache);
        cr_expect(strstr(hr_last_error(), refused[i].text), "\"%s\" is not in: %s", refused[i].text,
                  hr_last_error());
    }
}
