/*
 * hr_kv_cache: what is stored for a token, whatever the calls it came in, and every refusal.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kv_cache_setup.h"

static const char *const recipes[] = {
    "bf16",
    "bf16:qkv.dtype=f32",
    "fp8",
    "fp8:v.granularity=channel",
    "int8",
    "int8:v.granularity=group16",
    "int8-fp8:v.granularity=token",
    "int4",
    "int4:kv.dtype=u4,kv.granularity=group32",
    "int4:v.dtype=i8",
};

enum { RECIPES = sizeof recipes / sizeof recipes[0] };

Test(kv_cache, any_chunking_gives_the_same_bytes)
{
    const input *in = make_input();
    const int32_t page_sizes[] = {16, 48, 64, 256};
    for (int r = 0; r < RECIPES; r++) {
        hr_recipe recipe = recipe_of(recipes[r]);
        hr_kv_cache_options options = options_for(&recipe, in, page_sizes[r % 4]);
        options.rope = (hr_rope){.rotary_dim = 32, .interleaved = r % 2, .theta = 10000};
        int64_t slots[TOKENS];
        fill_slots(slots, &options);
        hr_kv_cache *whole = create(&options);
        append_in_chunks(whole, in, slots, TOKENS);
        const int64_t chunks[] = {1, 7, 33, 64};
        for (int i = 0; i < 4; i++) {
            hr_kv_cache *parts = create(&options);
            append_in_chunks(parts, in, slots, chunks[i]);
            expect_same_store(whole, parts, HR_OPERAND_K);
            expect_same_store(whole, parts, HR_OPERAND_V);
            hr_kv_cache_free(parts);
        }
        hr_kv_cache_free(whole);
    }
}

/* The picture in headroom/kv_cache.h, computed here a second time. */
Test(kv_cache, rows_lie_where_the_header_says)
{
    const input *in = make_input();
    hr_recipe recipe = recipe_of("int8:k.transform=none,v.granularity=group16");
    hr_kv_cache_options options = options_for(&recipe, in, 48);
    int64_t slots[TOKENS];
    fill_slots(slots, &options);
    hr_kv_cache *cache = create(&options);
    append_in_chunks(cache, in, slots, TOKENS);
    const hr_kv_view k = hr_kv_cache_view(cache, HR_OPERAND_K);
    const hr_kv_view v = hr_kv_cache_view(cache, HR_OPERAND_V);
    cr_assert_eq(k.row_bytes, HEAD_DIM);
    cr_assert_eq(k.token_scales, 1);
    cr_assert_eq(v.token_scales, HEAD_DIM / 16);
    for (int64_t t = 0; t < TOKENS; t++)
        for (int64_t h = 0; h < HEADS; h++) {
            int64_t page = slots[t] / 48, offset = slots[t] % 48;
            int64_t row = (page * HEADS + h) * 48 + offset;
            for (int64_t c = 0; c < HEAD_DIM; c++) {
                double code = ((const int8_t *)k.codes)[row * HEAD_DIM + c];
                double scale = (double)k.scale[row];
                double x = (double)in->k[t * ROW + h * HEAD_DIM + c];
                cr_assert(fabs(code * scale - x) <= 0.5001 * scale, "k, token %lld", (long long)t);
                code = ((const int8_t *)v.codes)[row * HEAD_DIM + c];
                scale = (double)v.scale[row * (HEAD_DIM / 16) + c / 16];
                x = (double)in->v[t * ROW + h * HEAD_DIM + c];
                cr_assert(fabs(code * scale - x) <= 0.5001 * scale, "v, token %lld", (long long)t);
            }
        }
    int64_t slots_total = (int64_t)options.num_pages * 48 * HEADS;
    cr_expect_eq(hr_kv_cache_bytes(cache), slots_total * (2 * HEAD_DIM + 4 * (1 + HEAD_DIM / 16)));
    hr_kv_cache_free(cache);
}

/* Codes and scales are those of hr_pack with the same static scales and mean. */
Test(kv_cache, a_gathered_sequence_is_what_hr_pack_makes)
{
    const input *in = make_input();
    for (int r = 0; r < RECIPES; r++) {
        hr_recipe recipe = recipe_of(recipes[r]);
        hr_kv_cache_options options = options_for(&recipe, in, 64);
        options.rope = (hr_rope){.rotary_dim = HEAD_DIM, .theta = 500000};
        int64_t slots[TOKENS];
        fill_slots(slots, &options);
        hr_kv_cache *cache = create(&options);
        append_in_chunks(cache, in, slots, 40);
        int32_t table[8];
        for (int32_t i = 0; i < 8; i++)
            table[i] = options.num_pages - 1 - i;
        /* One token at a time, so that hr_pack's floor under small scales is the token's own. */
        for (int32_t t = 0; t < TOKENS; t++) {
            if (t == 7) continue;
            const int32_t one[2] = {0, 1};
            hr_tensor x[2] = {view_of(in->k, t, 1), view_of(in->v, t, 1)};
            for (int operand = HR_OPERAND_K; operand <= HR_OPERAND_V; operand++) {
                bool key = operand == HR_OPERAND_K;
                hr_pack_options pack = {.batch = 1,
                                        .cu_seqlens = one,
                                        .static_scale = key ? options.k_scale : options.v_scale,
                                        .mean = key ? options.k_mean : NULL};
                if (key) {
                    pack.rope = options.rope;
                    pack.positions = in->positions + t;
                }
                hr_packed packed, gathered;
                cr_assert_eq(hr_pack((hr_operand)operand, key ? &recipe.k : &recipe.v, &x[!key],
                                     &pack, &packed),
                             HR_OK, "%s", hr_last_error());
                const int32_t all[2] = {0, t + 1};
                const hr_paging paging = {.page_size = 64, .max_pages = 8, .block_table = table};
                cr_assert_eq(hr_kv_cache_gather(cache, (hr_operand)operand, &paging, 1, all,
                                                HR_LAYOUT_ROWS, &gathered),
                             HR_OK, "%s", hr_last_error());
                static float expected[ROW], has[TOKENS * ROW];
                cr_assert_eq(hr_unpack(&packed, expected), HR_OK);
                cr_assert_eq(hr_unpack(&gathered, has), HR_OK);
                cr_expect_arr_eq(has + t * ROW, expected, sizeof expected, "%s, token %d",
                                 recipes[r], t);
                cr_expect_eq(gathered.hadamard_seed, packed.hadamard_seed);
                hr_packed_free(&packed);
                hr_packed_free(&gathered);
            }
        }
        hr_kv_cache_free(cache);
    }
}

/* A token of zeros must not have a scale above those of its neighbours. */
Test(kv_cache, zero_and_tiny_tokens_have_small_valid_scales)
{
    const input *in = make_input();
    hr_recipe recipe = recipe_of("int8:k.transform=none");
    hr_kv_cache_options options = options_for(&recipe, in, 16);
    int64_t slots[TOKENS];
    fill_slots(slots, &options);
    hr_kv_cache *cache = create(&options);
    append_in_chunks(cache, in, slots, TOKENS);
    const hr_kv_view v = hr_kv_cache_view(cache, HR_OPERAND_V);
    const int tokens[] = {7, 9};
    for (int i = 0; i < 2; i++)
        for (int h = 0; h < HEADS; h++) {
            int64_t slot = slots[tokens[i]];
            float scale = v.scale[(slot / 16 * HEADS + h) * 16 + slot % 16];
            cr_expect(scale > 0 && scale < 1e-30f && isfinite(1 / scale), "token %d: %g", tokens[i],
                      (double)scale);
        }
    hr_kv_cache_free(cache);
}

Test(kv_cache, later_tokens_overwrite_and_skipped_ones_do_not)
{
    const input *in = make_input();
    hr_recipe recipe = recipe_of("int8:k.transform=none");
    hr_kv_cache_options options = options_for(&recipe, in, 16);
    hr_kv_cache *a = create(&options), *b = create(&options);
    hr_tensor k = view_of(in->k, 0, 4), v = view_of(in->v, 0, 4);
    /* Slot 5 gets tokens 0, 2 and 3 in turn; token 1 is padding. */
    const int64_t slots[] = {5, -1, 5, 5};
    cr_assert_eq(hr_kv_cache_append(a, &k, &v, NULL, slots), HR_OK, "%s", hr_last_error());
    hr_tensor last_k = view_of(in->k, 3, 1), last_v = view_of(in->v, 3, 1);
    cr_assert_eq(hr_kv_cache_append(b, &last_k, &last_v, NULL, slots), HR_OK);
    expect_same_store(a, b, HR_OPERAND_K);
    expect_same_store(a, b, HR_OPERAND_V);
    hr_kv_cache_free(a);
    hr_kv_cache_free(b);
}

/* The pair's angle in closed form, in double; an F32 cache shows the rotation itself. */
Test(kv_cache, rope_is_the_closed_form)
{
    const input *in = make_input();
    hr_recipe recipe = recipe_of("bf16:qkv.dtype=f32");
    const int32_t rotary_dims[] = {2, 16, 48, HEAD_DIM};
    for (int i = 0; i < 8; i++) {
        const int32_t rotary_dim = rotary_dims[i / 2];
        const bool interleaved = i % 2;
        hr_kv_cache_options options = options_for(&recipe, in, 16);
        options.rope =
            (hr_rope){.rotary_dim = rotary_dim, .interleaved = interleaved, .theta = 10000};
        hr_kv_cache *cache = create(&options);
        hr_tensor k = view_of(in->k, 0, 3), v = view_of(in->v, 0, 3);
        const int32_t positions[] = {0, 1, 131071};
        const int64_t slots[] = {0, 1, 2};
        cr_assert_eq(hr_kv_cache_append(cache, &k, &v, positions, slots), HR_OK);
        const float *codes = hr_kv_cache_view(cache, HR_OPERAND_K).codes;
        for (int t = 0; t < 3; t++)
            for (int32_t c = 0; c < HEAD_DIM; c++) {
                const float *x = in->k + t * ROW;
                double expected = (double)x[c], length = 0;
                if (c < rotary_dim) {
                    int32_t pair = interleaved ? c / 2 : c % (rotary_dim / 2);
                    bool second = interleaved ? c % 2 : c >= rotary_dim / 2;
                    double a = (double)x[interleaved ? 2 * pair : pair];
                    double b = (double)x[interleaved ? 2 * pair + 1 : pair + rotary_dim / 2];
                    double angle = positions[t] / pow(10000, 2.0 * pair / rotary_dim);
                    expected =
                        second ? b * cos(angle) + a * sin(angle) : a * cos(angle) - b * sin(angle);
                    length = hypot(a, b);
                }
                /* 2^-22 for the rotation, and the angle's own rounding in double. */
                double tolerance = length * (0x1p-22 + 4 * 0x1p-52 * positions[t]);
                cr_expect(fabs((double)codes[t * HEAD_DIM + c] - expected) <= tolerance,
                          "rotary_dim %d, interleaved %d, token %d, channel %d: %g, not %g",
                          rotary_dim, interleaved, t, c, (double)codes[t * HEAD_DIM + c], expected);
            }
        hr_kv_cache_free(cache);
    }
}

static void expect_create_fails(const hr_kv_cache_options *options, hr_status status,
                                const char *text)
{
    hr_kv_cache *cache = (hr_kv_cache *)&status;
    cr_expect_eq(hr_kv_cache_create(options, &cache), status, "%s", text);
    cr_expect_null(cache);
    cr_expect(strstr(hr_last_error(), text), "\"%s\" is not in: %s", text, hr_last_error());
}

Test(kv_cache, create_names_what_it_refuses)
{
    const input *in = make_input();
    hr_recipe recipe = recipe_of("int8:k.transform=none");
    const hr_kv_cache_options good = options_for(&recipe, in, 16);
    hr_kv_cache_options options = good;
    options.page_size = 40;
    expect_create_fails(&options, HR_ERROR_INVALID_ARGUMENT, "page_size is 40");
    options.page_size = 272;
    expect_create_fails(&options, HR_ERROR_INVALID_ARGUMENT, "up to 256");
    options = good;
    options.num_pages = 0;
    expect_create_fails(&options, HR_ERROR_INVALID_ARGUMENT, "num_pages is 0");
    options = good;
    options.num_kv_heads = -1;
    expect_create_fails(&options, HR_ERROR_INVALID_ARGUMENT, "num_kv_heads is -1");
    options = good;
    options.head_dim = 60;
    expect_create_fails(&options, HR_ERROR_UNSUPPORTED, "head_dim 60");
    options = good;
    options.rope.rotary_dim = 66;
    expect_create_fails(&options, HR_ERROR_INVALID_ARGUMENT, "rotary_dim is 66");
    options = good;
    options.k_scale = in->k_scale;
    expect_create_fails(&options, HR_ERROR_INVALID_ARGUMENT, "k was given static scales");
    options = good;
    options.k_mean = in->mean;
    expect_create_fails(&options, HR_ERROR_INVALID_ARGUMENT, "does not smooth k");
    options = good;
    options.num_pages = INT32_MAX;
    options.num_kv_heads = INT32_MAX;
    expect_create_fails(&options, HR_ERROR_OUT_OF_MEMORY, "");
    expect_create_fails(NULL, HR_ERROR_INVALID_ARGUMENT, "options is NULL");
}

Test(kv_cache, create_refuses_what_a_stream_cannot_know)
{
    const input *in = make_input();
    const struct {
        const char *recipe;
        hr_status status;
        const char *text;
    } cases[] = {
        {"int8:k.granularity=block64", HR_ERROR_UNSUPPORTED, "k has scales per block of 64"},
        {"int8:k.transform=none,v.granularity=block16", HR_ERROR_UNSUPPORTED,
         "v.granularity=token"},
        {"int8-fp8:k.transform=none", HR_ERROR_UNSUPPORTED, "v has dynamic scales per channel"},
        {"fp8:k.scale=dynamic", HR_ERROR_UNSUPPORTED, "k.scale=static"},
        {"fp8", HR_ERROR_INVALID_ARGUMENT, "k needs static scales per head"},
        {"int8", HR_ERROR_INVALID_ARGUMENT, "k_mean is NULL"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        hr_recipe recipe = recipe_of(cases[i].recipe);
        hr_kv_cache_options options = options_for(&recipe, in, 16);
        options.k_scale = options.v_scale = options.k_mean = NULL;
        expect_create_fails(&options, cases[i].status, cases[i].text);
    }
}

static void expect_append_fails(hr_kv_cache *cache, const hr_tensor *k, const hr_tensor *v,
                                const int32_t *positions, const int64_t *slots, hr_status status,
                                const char *text)
{
    cr_expect_eq(hr_kv_cache_append(cache, k, v, positions, slots), status, "%s", text);
    cr_expect(strstr(hr_last_error(), text), "\"%s\" is not in: %s", text, hr_last_error());
}

Test(kv_cache, append_names_what_it_refuses_and_stores_nothing)
{
    const input *in = make_input();
    hr_recipe recipe = recipe_of("int8:k.transform=none");
    hr_kv_cache_options options = options_for(&recipe, in, 16);
    options.num_pages = 3;
    options.rope = (hr_rope){.rotary_dim = 8, .theta = 10000};
    hr_kv_cache *cache = create(&options), *empty = create(&options);
    hr_tensor k = view_of(in->k, 0, 2), v = view_of(in->v, 0, 2), one = view_of(in->v, 0, 1);
    const int64_t slots[] = {0, 47}, past[] = {0, 48}, negative[] = {0, -2};
    const int32_t before[] = {0, -1};
    const hr_status invalid = HR_ERROR_INVALID_ARGUMENT;
    expect_append_fails(cache, &k, &v, in->positions, past, invalid,
                        "slot_mapping[1] is 48, in page 3; the cache has 3 pages of 16");
    expect_append_fails(cache, &k, &v, in->positions, negative, invalid, "slot_mapping[1] is -2");
    expect_append_fails(cache, &k, &v, in->positions, NULL, invalid, "slot_mapping is NULL");
    expect_append_fails(cache, &k, &v, NULL, slots, invalid, "positions is NULL");
    expect_append_fails(cache, &k, &v, before, slots, invalid, "positions[1] is -1");
    expect_append_fails(cache, &k, &one, in->positions, slots, HR_ERROR_MISMATCH, "v has 1");
    hr_tensor wide =
        hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){2, HEADS + 1, HEAD_DIM}, (float *)in->k);
    expect_append_fails(cache, &wide, &v, in->positions, slots, HR_ERROR_MISMATCH, "k has 4 heads");
    float bad[2 * ROW];
    memcpy(bad, in->v, sizeof bad);
    bad[ROW + HEAD_DIM + 5] = NAN;
    hr_tensor not_finite = view_of(bad, 0, 2);
    expect_append_fails(cache, &k, &not_finite, in->positions, slots, HR_ERROR_NUMERIC,
                        "v has a NaN or infinity at token 1, head 1, channel 5");
    expect_same_store(cache, empty, HR_OPERAND_K);
    expect_same_store(cache, empty, HR_OPERAND_V);
    /* What is skipped may be anything. */
    const int64_t skipped[] = {0, -1};
    cr_expect_eq(hr_kv_cache_append(cache, &k, &not_finite, in->positions, skipped), HR_OK);
    hr_kv_cache_free(cache);
    hr_kv_cache_free(empty);
}

Test(kv_cache, gather_names_what_it_refuses)
{
    const input *in = make_input();
    hr_recipe recipe = recipe_of("int8:k.transform=none");
    hr_kv_cache_options options = options_for(&recipe, in, 16);
    options.num_pages = 3;
    hr_kv_cache *cache = create(&options);
    const int32_t table[] = {0, 2, 3}, lengths[] = {0, 33};
    hr_paging paging = {.page_size = 16, .max_pages = 3, .block_table = table};
    const struct {
        int32_t page_size, max_pages;
        hr_operand operand;
        hr_status status;
        const char *text;
    } cases[] = {
        {16, 3, HR_OPERAND_K, HR_ERROR_INVALID_ARGUMENT, "block_table[0][2] is 3"},
        {16, 2, HR_OPERAND_K, HR_ERROR_INVALID_ARGUMENT, "max_pages is 2"},
        {32, 3, HR_OPERAND_V, HR_ERROR_MISMATCH, "pages of 16"},
        {16, 3, HR_OPERAND_Q, HR_ERROR_INVALID_ARGUMENT, "not q"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        paging.page_size = cases[i].page_size;
        paging.max_pages = cases[i].max_pages;
        hr_packed out;
        cr_expect_eq(
            hr_kv_cache_gather(cache, cases[i].operand, &paging, 1, lengths, HR_LAYOUT_ROWS, &out),
            cases[i].status, "%s", cases[i].text);
        cr_expect(strstr(hr_last_error(), cases[i].text), "%s", hr_last_error());
        cr_expect_null(out.codes);
    }
    hr_kv_cache_free(cache);
}

Test(kv_cache, unwritten_slots_read_as_zeros)
{
    const input *in = make_input();
    hr_recipe recipe = recipe_of("int4:k.transform=hadamard,kv.dtype=u4");
    hr_kv_cache_options options = options_for(&recipe, in, 16);
    hr_kv_cache *cache = create(&options);
    const int32_t table[] = {1}, lengths[] = {0, 16};
    const hr_paging paging = {.page_size = 16, .max_pages = 1, .block_table = table};
    hr_packed out;
    cr_assert_eq(hr_kv_cache_gather(cache, HR_OPERAND_V, &paging, 1, lengths, HR_LAYOUT_ROWS, &out),
                 HR_OK);
    static float values[16 * ROW];
    cr_assert_eq(hr_unpack(&out, values), HR_OK);
    for (int i = 0; i < 16 * ROW; i++)
        cr_assert_eq(values[i], 0.0f);
    hr_packed_free(&out);
    hr_kv_cache_free(cache);
}
