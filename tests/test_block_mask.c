/*
 * Block-sparse masks: what the builders make, what hr_plan_create refuses, that plans count the
 * pairs that are left, and that results do not depend on splits, layouts of heads or threads.
 */
#include <math.h>

#include "plan_setup.h"

static const int32_t one_q[2] = {0, 300}, one_kv[2] = {0, 300};

/* Is block (row, column) of a mask of one head and one sequence seen? */
static bool seen(const hr_block_mask *mask, int32_t row, int32_t column)
{
    for (int64_t i = mask->row_begin[row]; i < mask->row_begin[row + 1]; i++)
        if (mask->columns[i] == column) return true;
    return false;
}

Test(block_mask, longformer_is_window_and_global)
{
    const hr_block_pattern pattern = {.block = 32, .window = 1, .global = 2};
    hr_block_mask mask;
    cr_assert_eq(hr_block_mask_from_pattern(&pattern, 1, 1, one_q, one_kv, &mask), HR_OK);
    cr_assert_eq(mask.rows, 10);
    for (int32_t r = 0; r < 10; r++)
        for (int32_t c = 0; c < 10; c++)
            cr_expect_eq(seen(&mask, r, c), abs(r - c) <= 1 || c < 2 || r < 2, "row %d, column %d",
                         r, c);
    hr_block_mask_free(&mask);
    cr_expect_null(mask.row_begin);
}

Test(block_mask, bigbird_adds_random_blocks_of_the_seed)
{
    hr_block_pattern pattern = {.block = 32, .window = 1, .global = 1, .random = 3, .seed = 7};
    hr_block_mask mask, again, other;
    cr_assert_eq(hr_block_mask_from_pattern(&pattern, 2, 1, one_q, one_kv, &mask), HR_OK);
    cr_assert_eq(hr_block_mask_from_pattern(&pattern, 2, 1, one_q, one_kv, &again), HR_OK);
    pattern.seed = 8;
    cr_assert_eq(hr_block_mask_from_pattern(&pattern, 2, 1, one_q, one_kv, &other), HR_OK);
    const int64_t count = mask.row_begin[20];
    const size_t bytes = (size_t)count * sizeof(int32_t);
    for (int32_t n = 0; n < 20; n++) {
        const int32_t r = n % 10;
        int32_t fixed = 0;
        for (int32_t c = 0; c < 10; c++)
            fixed += abs(r - c) <= 1 || c < 1 || r < 1;
        const int32_t wanted = fixed + 3 < 10 ? fixed + 3 : 10;
        cr_expect_eq(mask.row_begin[n + 1] - mask.row_begin[n], wanted, "row %d", n);
    }
    cr_assert_eq(again.row_begin[20], count);
    cr_assert_eq(other.row_begin[20], count);
    cr_expect_eq(memcmp(mask.columns, again.columns, bytes), 0);
    cr_expect_neq(memcmp(mask.columns, other.columns, bytes), 0, "the seed has no say");
    cr_expect_neq(memcmp(mask.columns, mask.columns + mask.row_begin[10], bytes / 2), 0,
                  "heads draw the same blocks");
    hr_block_mask_free(&mask);
    hr_block_mask_free(&again);
    hr_block_mask_free(&other);
}

/* Each unseen block of a row is drawn equally often: 4 sigma of a binomial of 2000 draws. */
Test(block_mask, random_blocks_are_even)
{
    const hr_block_pattern pattern = {.block = 10, .random = 1, .seed = 3};
    int32_t counts[30] = {0};
    hr_block_mask mask;
    cr_assert_eq(hr_block_mask_from_pattern(&pattern, 2000, 1, one_q, one_kv, &mask), HR_OK);
    for (int32_t head = 0; head < 2000; head++) {
        const int64_t row = (int64_t)head * 30 + 12;
        for (int64_t i = mask.row_begin[row]; i < mask.row_begin[row + 1]; i++)
            counts[mask.columns[i]]++;
    }
    for (int32_t c = 0; c < 30; c++)
        if (c != 12)
            cr_expect(fabs(counts[c] - 2000 / 29.0) < 4 * sqrt(2000 / 29.0), "column %d: %d", c,
                      counts[c]);
    hr_block_mask_free(&mask);
}

Test(block_mask, causal_patterns_stay_below_the_diagonal)
{
    const int32_t q[3] = {0, 40, 100}, kv[3] = {0, 90, 130}; /* one longer, one shorter than q */
    const hr_block_pattern pattern = {
        .block = 16, .window = 2, .global = 1, .random = 2, .seed = 1, .causal = true};
    hr_block_mask mask;
    cr_assert_eq(hr_block_mask_from_pattern(&pattern, 1, 2, q, kv, &mask), HR_OK);
    int32_t row = 0;
    for (int32_t b = 0; b < 2; b++) {
        const int32_t n = q[b + 1] - q[b], d = kv[b + 1] - kv[b] - n;
        for (int32_t first = 0; first < n; first += 16, row++) {
            const int32_t last = (first + 16 < n ? first + 16 : n) - 1;
            for (int64_t i = mask.row_begin[row]; i < mask.row_begin[row + 1]; i++)
                cr_expect_leq(mask.columns[i] * 16, last + d);
            if (last + d >= 0)
                cr_expect(seen(&mask, row, (last + d) / 16), "row %d misses its diagonal", row);
        }
    }
    cr_expect_eq(row, mask.rows);
    hr_block_mask_free(&mask);
}

/* Every block of a map, for heads and sequences of several block rows each. */
Test(block_mask, a_map_is_taken_block_by_block)
{
    enum { MASK_HEADS = 2, ROWS = 3 + 4, COLUMNS = 6 };
    const int32_t q[3] = {0, 40, 100}, kv[3] = {0, 90, 130}; /* 6 and 3 columns of 16 keys */
    uint8_t map[MASK_HEADS * ROWS * COLUMNS];
    check_random random = {17};
    for (size_t i = 0; i < sizeof map; i++)
        map[i] = (uint8_t)random_below(&random, 2);
    hr_block_mask mask;
    cr_assert_eq(hr_block_mask_from_map(map, 16, 16, MASK_HEADS, 2, q, kv, &mask), HR_OK, "%s",
                 hr_last_error());
    cr_assert_eq(mask.rows, ROWS);
    for (int32_t n = 0; n < MASK_HEADS * ROWS; n++)
        for (int32_t c = 0; c < COLUMNS; c++)
            cr_expect_eq(seen(&mask, n, c),
                         map[n * COLUMNS + c] && c < (n % ROWS < 3 ? COLUMNS : 3),
                         "row %d, column %d", n, c);
    hr_block_mask_free(&mask);
}

static void expect_refused(const hr_block_mask *mask, const char *message)
{
    plan_setup *s = setup_make("bf16", 4, 2, 16, 40, 70);
    hr_plan *plan;
    s->problem.mask.blocks = mask;
    cr_expect_eq(hr_plan_create(&s->problem, &s->recipe, NULL, &plan), HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), message), "\"%s\" is not in \"%s\"", message,
              hr_last_error());
    setup_free(s);
}

Test(block_mask, plans_refuse_what_the_header_excludes)
{
    int64_t begin[4] = {0, 1, 2, 4}; /* 3 rows of 16 queries, 5 columns of 16 keys */
    int32_t columns[4] = {0, 4, 1, 3};
    const hr_block_mask good = {16, 16, 1, 3, begin, columns};
    plan_setup *s = setup_make("bf16", 4, 2, 16, 40, 70);
    s->problem.mask.blocks = &good;
    hr_plan *plan = setup_plan(s, NULL);
    cr_expect_eq(hr_plan_flops(plan), 4.0 * 16 * 4 * (16 * 16 + 16 * 6 + 8 * 32));
    hr_plan_free(plan);
    setup_free(s);

    hr_block_mask bad = good;
    bad.block_q = 0;
    expect_refused(&bad, "both must be at least 1");
    bad = good;
    bad.heads = 3;
    expect_refused(&bad, "has 3 heads; it must have 1, num_kv_heads (2) or num_heads (4)");
    bad = good;
    bad.rows = 4;
    expect_refused(&bad, "has 4 rows; blocks of 16 queries make 3");
    bad = good;
    bad.row_begin = NULL;
    expect_refused(&bad, "row_begin must begin with 0");
    bad = good;
    bad.columns = NULL;
    expect_refused(&bad, "columns must not be NULL");
    columns[1] = 5;
    expect_refused(&good, "columns[1], of row 1, is 5; its sequence has 5 blocks of keys");
    columns[1] = 4;
    columns[3] = 1;
    expect_refused(&good, "columns[3], of row 2, is 1 after 1");
    columns[3] = 3;
    begin[1] = 2;
    begin[2] = 1;
    expect_refused(&good, "row_begin[2] is 1, less than row_begin[1], which is 2");

    hr_block_mask made;
    const uint8_t map[1] = {1};
    cr_expect_eq(hr_block_mask_from_map(map, 64, 0, 1, 1, one_q, one_kv, &made),
                 HR_ERROR_INVALID_ARGUMENT);
    cr_expect_eq(hr_block_mask_from_map(map, 64, 64, 0, 1, one_q, one_kv, &made),
                 HR_ERROR_INVALID_ARGUMENT);
    cr_expect_eq(hr_block_mask_from_pattern(&(hr_block_pattern){.block = 8, .window = -1}, 1, 1,
                                            one_q, one_kv, &made),
                 HR_ERROR_INVALID_ARGUMENT);
    cr_expect_null(made.row_begin);
}

Test(block_mask, keep_is_asked_for_only_where_keys_are_hidden)
{
    plan_setup *s = setup_make("bf16", 1, 1, 16, 8, 8);
    hr_kernel_query query;
    s->problem.mask.keep = 4;
    cr_assert_eq(hr_kernel_query_from(&s->problem, &s->recipe, &query), HR_OK);
    cr_expect_eq(query.features & HR_FEATURE_KEPT, 0);
    s->problem.mask.window_left = 2;
    cr_assert_eq(hr_kernel_query_from(&s->problem, &s->recipe, &query), HR_OK);
    cr_expect_neq(query.features & HR_FEATURE_KEPT, 0);
    s->problem.mask.keep = -1;
    cr_expect_eq(hr_kernel_query_from(&s->problem, &s->recipe, &query), HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), "keep is -1"), "%s", hr_last_error());
    setup_free(s);
}

/* A mask that shows everything changes no result but by rounding: here not a bit. */
Test(block_mask, a_full_mask_is_no_mask)
{
    for (int recipe = 0; recipe < 2; recipe++) {
        plan_setup *s = setup_make(recipe ? "int8" : "bf16", 4, 2, 64, 200, 700);
        const hr_block_pattern pattern = {.block = 50, .global = 100};
        hr_block_mask mask;
        cr_assert_eq(
            hr_block_mask_from_pattern(&pattern, 1, 1, s->cu_seqlens_q, s->cu_seqlens_kv, &mask),
            HR_OK);
        hr_plan *plan = setup_plan(s, NULL);
        hr_layer_layouts layouts = hr_plan_layouts(plan);
        setup_pack(s, &layouts);
        setup_run(s, plan);
        float *o = malloc(o_bytes(s));
        memcpy(o, s->o.data, o_bytes(s));
        const double flops = hr_plan_flops(plan);
        hr_plan_free(plan);
        s->problem.mask.blocks = &mask;
        plan = setup_plan(s, NULL);
        hr_block_mask_free(&mask); /* the plan keeps nothing of it */
        s->problem.mask.blocks = NULL;
        memset(s->o.data, 0xff, o_bytes(s));
        setup_run(s, plan);
        cr_expect_eq(memcmp(o, s->o.data, o_bytes(s)), 0, "%s", recipe ? "int8" : "bf16");
        cr_expect_eq(hr_plan_flops(plan), flops);
        hr_plan_free(plan);
        free(o);
        setup_free(s);
    }
}

/* Splits of the kv axis skip chunks without keys and still agree within rounding. */
Test(block_mask, splits_and_threads)
{
    static const char *const recipes[] = {"bf16", "int8", "int4"};
    for (size_t r = 0; r < sizeof recipes / sizeof recipes[0]; r++) {
        plan_setup *s = setup_make(recipes[r], 8, 2, 64, 2, 9000);
        s->recipe.q.transform = s->recipe.k.transform = 0;
        uint8_t map[2 * 141] = {0}; /* two KV heads; keys 0-63, some in the middle, the end */
        for (int i = 0; i < 2; i++) {
            map[i * 141] = map[i * 141 + 140] = 1;
            for (int c = 70; c < 90; c += 1 + i)
                map[i * 141 + c] = 1;
        }
        hr_block_mask mask;
        cr_assert_eq(
            hr_block_mask_from_map(map, 16, 64, 2, 1, s->cu_seqlens_q, s->cu_seqlens_kv, &mask),
            HR_OK);
        s->problem.mask.blocks = &mask;
        s->problem.mask.keep = 3;
        float *o = malloc(o_bytes(s)), *lse = malloc(lse_bytes(s));
        cr_assert(o && lse);
        for (int32_t splits = 1; splits <= 16; splits *= 4)
            for (int32_t threads = 1; threads <= 2; threads++) {
                hr_plan *plan =
                    setup_plan(s, &(hr_plan_options){.kv_splits = splits, .threads = threads});
                hr_layer_layouts layouts = hr_plan_layouts(plan);
                setup_pack(s, &layouts);
                memset(s->o.data, 0xff, o_bytes(s));
                setup_run(s, plan);
                hr_plan_free(plan);
                if (threads == 2)
                    cr_expect_eq(memcmp(o, s->o.data, o_bytes(s)), 0, "%s, %d splits", recipes[r],
                                 splits);
                for (size_t i = 0; splits > 1 && i < o_bytes(s) / sizeof(float); i++)
                    cr_assert_float_eq(((float *)s->o.data)[i], o[i], 2e-6, "%s, %d splits: %g %g",
                                       recipes[r], splits, (double)((float *)s->o.data)[i],
                                       (double)o[i]);
                if (splits > 1)
                    for (size_t i = 0; i < lse_bytes(s) / sizeof(float); i++)
                        cr_expect_float_eq(((float *)s->lse.data)[i], lse[i], 1e-5);
                memcpy(o, s->o.data, o_bytes(s));
                memcpy(lse, s->lse.data, lse_bytes(s));
            }
        free(o);
        free(lse);
        hr_block_mask_free(&mask);
        setup_free(s);
    }
}
