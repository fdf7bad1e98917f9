/*
 * Paged plans: what a run refuses, and that a rotated, quantized, paged run is the attention of the
 * original tensors under the problem's rope.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"
#include "test_random.h"

enum { HEADS = 4, KV_HEADS = 2, HEAD_DIM = 64, QUERIES = 21, KEYS = 90, PAGE = 16, PAGES = 8 };

static const int32_t cu_q[] = {0, QUERIES}, cu_kv[] = {0, KEYS};
static const int32_t table[] = {6, 0, 3, 7, 1, 4};

/* A plan's inputs, in a recipe without loss but the rotation's. */
typedef struct fixture {
    float q[QUERIES * HEADS * HEAD_DIM], k[KEYS * KV_HEADS * HEAD_DIM];
    float v[KEYS * KV_HEADS * HEAD_DIM], o[QUERIES * HEADS * HEAD_DIM], lse[QUERIES * HEADS];
    int32_t positions_q[QUERIES], positions_kv[KEYS];
    int64_t slots[KEYS];
    hr_recipe recipe;
    hr_attention_problem problem;
    hr_kv_cache_options options;
    hr_tensor q_view, k_view, v_view, o_view, lse_view;
} fixture;

static fixture *make_fixture(const char *recipe, bool interleaved)
{
    static fixture f;
    memset(&f, 0, sizeof f);
    test_random random = {5};
    random_gaussians(&random, f.q, QUERIES * HEADS * HEAD_DIM);
    random_gaussians(&random, f.k, KEYS * KV_HEADS * HEAD_DIM);
    random_gaussians(&random, f.v, KEYS * KV_HEADS * HEAD_DIM);
    for (int32_t i = 0; i < QUERIES; i++)
        f.positions_q[i] = KEYS - QUERIES + i;
    for (int32_t j = 0; j < KEYS; j++) {
        f.positions_kv[j] = j;
        f.slots[j] = table[j / PAGE] * PAGE + j % PAGE;
    }
    cr_assert_eq(hr_recipe_parse(recipe, &f.recipe), HR_OK, "%s", hr_last_error());
    hr_attention_problem_init(&f.problem, HEADS, KV_HEADS, HEAD_DIM);
    f.problem.cu_seqlens_q = cu_q;
    f.problem.cu_seqlens_kv = cu_kv;
    f.problem.mask.causal = true;
    f.problem.rope = (hr_rope){.rotary_dim = 48, .interleaved = interleaved, .theta = 10000};
    f.problem.paging = (hr_paging){.page_size = PAGE, .max_pages = 6, .block_table = table};
    f.options = (hr_kv_cache_options){.recipe = &f.recipe,
                                      .num_kv_heads = KV_HEADS,
                                      .head_dim = HEAD_DIM,
                                      .page_size = PAGE,
                                      .num_pages = PAGES,
                                      .rope = f.problem.rope};
    const int64_t q[] = {QUERIES, HEADS, HEAD_DIM}, kv[] = {KEYS, KV_HEADS, HEAD_DIM};
    f.q_view = hr_tensor_view(HR_DTYPE_F32, 3, q, f.q);
    f.k_view = hr_tensor_view(HR_DTYPE_F32, 3, kv, f.k);
    f.v_view = hr_tensor_view(HR_DTYPE_F32, 3, kv, f.v);
    f.o_view = hr_tensor_view(HR_DTYPE_F32, 3, q, f.o);
    f.lse_view = hr_tensor_view(HR_DTYPE_F32, 2, q, f.lse);
    return &f;
}

static hr_kv_cache *make_cache(const fixture *f, const hr_kv_cache_options *options)
{
    hr_kv_cache *cache;
    cr_assert_eq(hr_kv_cache_create(options, &cache), HR_OK, "%s", hr_last_error());
    if (options->num_kv_heads == KV_HEADS && options->head_dim == HEAD_DIM &&
        options->num_pages == PAGES && options->page_size == PAGE)
        cr_assert_eq(hr_kv_cache_append(cache, &f->k_view, &f->v_view, f->positions_kv, f->slots),
                     HR_OK, "%s", hr_last_error());
    return cache;
}

static hr_plan *make_plan(const fixture *f, const hr_attention_problem *problem)
{
    hr_plan *plan;
    cr_assert_eq(hr_plan_create(problem, &f->recipe, NULL, &plan), HR_OK, "%s", hr_last_error());
    return plan;
}

static hr_packed pack_queries(const fixture *f, const hr_plan *plan, const hr_rope *rope)
{
    const hr_pack_options options = {.layout = hr_plan_layouts(plan).q,
                                     .batch = 1,
                                     .cu_seqlens = cu_q,
                                     .rope = *rope,
                                     .positions = f->positions_q};
    hr_packed q;
    cr_assert_eq(hr_pack(HR_OPERAND_Q, &f->recipe.q, &f->q_view, &options, &q), HR_OK, "%s",
                 hr_last_error());
    return q;
}

/*
 * The oracle rotates in double. BF16 rounds Q, K, V and P by 2^-9 each: a logit of N(0, 1) data,
 * |q| |k| / sqrt(head_dim) about sqrt(head_dim), moves by at most 2 * 2^-9 * 1.5 * 8 = 2^-4.4, and
 * outputs by that, relative to max |v|. A wrong pairing, angle or page moves them by about 1.
 */
Test(plan_paged, a_run_is_the_attention_of_the_unrotated_tensors)
{
    for (int interleaved = 0; interleaved < 2; interleaved++) {
        fixture *f = make_fixture("bf16", interleaved);
        hr_kv_cache *cache = make_cache(f, &f->options);
        hr_plan *plan = make_plan(f, &f->problem);
        hr_packed q = pack_queries(f, plan, &f->problem.rope);
        cr_assert_eq(hr_plan_run_paged(plan, &q, cache, &f->o_view, &f->lse_view), HR_OK, "%s",
                     hr_last_error());
        static double o[QUERIES * HEADS * HEAD_DIM], lse[QUERIES * HEADS];
        hr_attention_problem contiguous = f->problem;
        contiguous.paging = (hr_paging){0};
        cr_assert_eq(
            hr_reference_attention(&contiguous, &f->q_view, &f->k_view, &f->v_view, o, lse), HR_OK,
            "%s", hr_last_error());
        double error = 0, size = 0;
        for (int i = 0; i < QUERIES * HEADS * HEAD_DIM; i++) {
            error += ((double)f->o[i] - o[i]) * ((double)f->o[i] - o[i]);
            size += o[i] * o[i];
        }
        cr_expect(sqrt(error / size) <= 0x1p-7, "relative error %g", sqrt(error / size));
        for (int i = 0; i < QUERIES * HEADS; i++)
            cr_expect(fabs((double)f->lse[i] - lse[i]) <= 0x1p-4);
        hr_packed_free(&q);
        hr_plan_free(plan);
        hr_kv_cache_free(cache);
    }
}

static double longest_row(const float *x, int64_t rows)
{
    double longest = 0;
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int c = 0; c < HEAD_DIM; c++)
            sum += (double)x[r * HEAD_DIM + c] * (double)x[r * HEAD_DIM + c];
        longest = fmax(longest, sqrt(sum));
    }
    return longest;
}

/*
 * What rotating in FP32 costs, alone: the oracle on rotated F32 operands against the oracle that
 * rotates in double. Each pair of q and of k is off by at most 2^-22 of its length, so a logit by
 * D = softmax_scale |q| |k| 2^-21, every weight by a factor within e^(2 D), and an output by at
 * most (e^(2 D) - 1) max |v|.
 */
Test(plan_paged, rotation_in_fp32_is_within_its_bound)
{
    for (int interleaved = 0; interleaved < 2; interleaved++) {
        fixture *f = make_fixture("bf16:qkv.dtype=f32", interleaved);
        hr_kv_cache *cache = make_cache(f, &f->options);
        hr_packed k, q;
        cr_assert_eq(hr_kv_cache_gather(cache, HR_OPERAND_K, &f->problem.paging, 1, cu_kv,
                                        HR_LAYOUT_ROWS, &k),
                     HR_OK, "%s", hr_last_error());
        const hr_pack_options options = {
            .batch = 1, .cu_seqlens = cu_q, .rope = f->problem.rope, .positions = f->positions_q};
        cr_assert_eq(hr_pack(HR_OPERAND_Q, &f->recipe.q, &f->q_view, &options, &q), HR_OK);
        static float rotated_q[QUERIES * HEADS * HEAD_DIM], rotated_k[KEYS * KV_HEADS * HEAD_DIM];
        cr_assert_eq(hr_unpack(&q, rotated_q), HR_OK);
        cr_assert_eq(hr_unpack(&k, rotated_k), HR_OK);
        hr_tensor q_view = f->q_view, k_view = f->k_view;
        q_view.data = rotated_q;
        k_view.data = rotated_k;

        static double o[2][QUERIES * HEADS * HEAD_DIM], lse[2][QUERIES * HEADS];
        hr_attention_problem problem = f->problem;
        problem.paging = (hr_paging){0};
        cr_assert_eq(
            hr_reference_attention(&problem, &f->q_view, &f->k_view, &f->v_view, o[0], lse[0]),
            HR_OK);
        problem.rope = (hr_rope){0};
        cr_assert_eq(hr_reference_attention(&problem, &q_view, &k_view, &f->v_view, o[1], lse[1]),
                     HR_OK);
        double logit = (double)problem.softmax_scale * longest_row(f->q, QUERIES * HEADS) *
                       longest_row(f->k, KEYS * KV_HEADS) * 0x1p-21;
        double largest = 0, o_error = 0, lse_error = 0;
        for (int i = 0; i < KEYS * KV_HEADS * HEAD_DIM; i++)
            largest = fmax(largest, fabs((double)f->v[i]));
        for (int i = 0; i < QUERIES * HEADS * HEAD_DIM; i++)
            o_error = fmax(o_error, fabs(o[0][i] - o[1][i]));
        for (int i = 0; i < QUERIES * HEADS; i++)
            lse_error = fmax(lse_error, fabs(lse[0][i] - lse[1][i]));
        cr_expect(o_error <= expm1(2 * logit) * largest, "%g", o_error);
        cr_expect(lse_error <= logit, "%g, not %g", lse_error, logit);
        cr_expect(o_error > 0, "nothing was rotated");
        hr_packed_free(&q);
        hr_packed_free(&k);
        hr_kv_cache_free(cache);
    }
}

static void expect_run_fails(const fixture *f, const hr_attention_problem *problem,
                             const hr_rope *q_rope, const hr_kv_cache *cache, hr_status status,
                             const char *text)
{
    hr_plan *plan = make_plan(f, problem);
    hr_packed q = pack_queries(f, plan, q_rope);
    cr_expect_eq(hr_plan_run_paged(plan, &q, cache, &f->o_view, NULL), status, "%s", text);
    cr_expect(strstr(hr_last_error(), text), "\"%s\" is not in: %s", text, hr_last_error());
    hr_packed_free(&q);
    hr_plan_free(plan);
}

Test(plan_paged, a_run_names_what_does_not_belong)
{
    const fixture *f = make_fixture("bf16", false);
    const hr_rope *rope = &f->problem.rope, none = {0};
    hr_kv_cache *cache = make_cache(f, &f->options);
    expect_run_fails(f, &f->problem, &none, cache, HR_ERROR_MISMATCH,
                     "q was rotated with rotary_dim 0");
    hr_attention_problem problem = f->problem;
    problem.rope.theta = 500000;
    expect_run_fails(f, &problem, &problem.rope, cache, HR_ERROR_MISMATCH,
                     "the cache's k was rotated with rotary_dim 48, theta 10000");
    problem = f->problem;
    problem.rope.interleaved = true;
    expect_run_fails(f, &problem, rope, cache, HR_ERROR_MISMATCH, "48, theta 10000, interleaved");

    const int32_t outside[] = {6, 0, 3, PAGES, 1, 4};
    problem = f->problem;
    problem.paging.block_table = outside;
    expect_run_fails(f, &problem, rope, cache, HR_ERROR_INVALID_ARGUMENT,
                     "block_table[0][3] is 8, but the cache has 8 pages");
    problem = f->problem;
    problem.paging = (hr_paging){0};
    expect_run_fails(f, &problem, rope, cache, HR_ERROR_INVALID_ARGUMENT, "hr_plan_run runs it");
    hr_kv_cache_free(cache);

    hr_kv_cache_options options = f->options;
    options.page_size = 32;
    cache = make_cache(f, &options);
    expect_run_fails(f, &f->problem, rope, cache, HR_ERROR_MISMATCH,
                     "the cache has page_size 32; the plan has 16");
    hr_kv_cache_free(cache);
    options = f->options;
    options.num_kv_heads = 1;
    cache = make_cache(f, &options);
    expect_run_fails(f, &f->problem, rope, cache, HR_ERROR_MISMATCH, "num_kv_heads 1");
    hr_kv_cache_free(cache);
    hr_recipe other;
    cr_assert_eq(hr_recipe_parse("bf16:v.dtype=f16", &other), HR_OK);
    options = f->options;
    options.recipe = &other;
    cache = make_cache(f, &options);
    expect_run_fails(f, &f->problem, rope, cache, HR_ERROR_MISMATCH, "the cache's v");
    hr_kv_cache_free(cache);
}

/* A plan is for a cache of its problem's layouts; a kernel reads one pair of them. */
Test(plan_paged, layouts_that_differ_are_named)
{
    fixture *f = make_fixture("int8:k.transform=none", false);
    f->options.k_layout = HR_LAYOUT_BLOCKS_K;
    hr_kv_cache *cache = make_cache(f, &f->options);
    expect_run_fails(f, &f->problem, &f->problem.rope, cache, HR_ERROR_MISMATCH,
                     "the cache holds k in layout blocks_k; the plan reads rows, as its problem's "
                     "paging.k_layout says");
    hr_kv_cache_free(cache);
    f->options.k_layout = HR_LAYOUT_ROWS;
    f->options.v_layout = HR_LAYOUT_BLOCKS_V;
    cache = make_cache(f, &f->options);
    expect_run_fails(f, &f->problem, &f->problem.rope, cache, HR_ERROR_MISMATCH,
                     "the cache holds v in layout blocks_v");
    hr_kv_cache_free(cache);

    const struct {
        hr_layout k, v;
        hr_status status;
        const char *text;
    } refused[] = {
        {HR_LAYOUT_VNNI_K, HR_LAYOUT_ROWS, HR_ERROR_UNSUPPORTED, "reads a cache's K in "},
        {HR_LAYOUT_ROWS, HR_LAYOUT_VNNI_V, HR_ERROR_UNSUPPORTED, "not in vnni_v"},
        {HR_LAYOUT_BLOCKS_V, HR_LAYOUT_ROWS, HR_ERROR_UNSUPPORTED, "has no layout blocks_v"},
        {HR_LAYOUT_ROWS, (hr_layout)77, HR_ERROR_INVALID_ARGUMENT, "no layout has the number 77"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        hr_attention_problem problem = f->problem;
        problem.paging.k_layout = refused[i].k;
        problem.paging.v_layout = refused[i].v;
        hr_plan *plan;
        cr_expect_eq(hr_plan_create(&problem, &f->recipe, NULL, &plan), refused[i].status);
        cr_expect_null(plan);
        cr_expect(strstr(hr_last_error(), refused[i].text), "\"%s\" is not in: %s", refused[i].text,
                  hr_last_error());
    }
}

Test(plan_paged, smoothed_and_rotated_keys_need_a_query_packed_for_them)
{
    fixture *f = make_fixture("int4", false);
    static float mean[KV_HEADS * HEAD_DIM];
    f->options.k_mean = mean;
    hr_kv_cache *cache = make_cache(f, &f->options);
    expect_run_fails(f, &f->problem, &f->problem.rope, cache, HR_ERROR_MISMATCH,
                     "pack q with k_mean");
    hr_kv_cache_free(cache);
    f->options.hadamard_seed = 42;
    cache = make_cache(f, &f->options);
    expect_run_fails(f, &f->problem, &f->problem.rope, cache, HR_ERROR_MISMATCH, "seed 42");
    hr_kv_cache_free(cache);
}

Test(plan_paged, packed_keys_and_values_are_for_contiguous_plans)
{
    const fixture *f = make_fixture("bf16", false);
    hr_plan *plan = make_plan(f, &f->problem);
    hr_packed_layer layer = {0};
    cr_expect_eq(hr_plan_run(plan, &layer, &f->o_view, NULL), HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), "hr_plan_run_paged runs it"), "%s", hr_last_error());
    hr_plan_free(plan);
}

/* The multiplication that stands for a division, at the edges of pages up to the largest token. */
Test(plan_paged, every_token_is_found_in_its_page)
{
    static int32_t pages[1 << 16];
    for (int32_t i = 0; i < 1 << 16; i++)
        pages[i] = i;
    for (int32_t page_size = 1; page_size <= 256; page_size++) {
        hr_kernel_operand operand = {0};
        hr_kernel_set_pages(&operand, pages, page_size, page_size);
        for (int32_t token = 0; token < 3000; token++)
            cr_assert_eq(hr_kernel_slot(&operand, token), token, "%d of %d", token, page_size);
        for (int64_t page = INT32_MAX / page_size; page > INT32_MAX / page_size - 1000; page--)
            for (int64_t token = page * page_size - 1; token <= page * page_size + 1; token++) {
                if (token < 0 || token > INT32_MAX) continue;
                uint64_t found = (uint64_t)token * operand.page_inverse >> operand.page_shift;
                cr_assert_eq((int64_t)found, token / page_size, "%lld of %d", (long long)token,
                             page_size);
            }
    }
}

Test(plan_paged, packing_checks_rope)
{
    const fixture *f = make_fixture("bf16", false);
    hr_pack_options options = {.batch = 1, .cu_seqlens = cu_q, .rope = f->problem.rope};
    hr_packed out;
    cr_expect_eq(hr_pack(HR_OPERAND_Q, &f->recipe.q, &f->q_view, &options, &out),
                 HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), "positions is NULL"), "%s", hr_last_error());
    options.positions = f->positions_q;
    options.cu_seqlens = cu_kv;
    cr_expect_eq(hr_pack(HR_OPERAND_V, &f->recipe.v, &f->v_view, &options, &out),
                 HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), "not for v"), "%s", hr_last_error());
    options.rope.theta = NAN;
    cr_expect_eq(hr_pack(HR_OPERAND_K, &f->recipe.k, &f->k_view, &options, &out),
                 HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), "rope theta is nan"), "%s", hr_last_error());
}

/* A packed file holds no positions, so rotated operands are not written. */
Test(plan_paged, rotated_operands_are_not_written_to_files)
{
    const fixture *f = make_fixture("bf16", false);
    const hr_layer_layouts layouts = {HR_LAYOUT_ROWS, HR_LAYOUT_ROWS, HR_LAYOUT_ROWS};
    hr_packed_layer layer;
    cr_assert_eq(hr_pack_layer(&f->recipe, &layouts, &f->q_view, &f->k_view, &f->v_view, 1, cu_q,
                               cu_kv, NULL, &layer),
                 HR_OK, "%s", hr_last_error());
    layer.q.rope = f->problem.rope;
    const hr_packed_file_info info = {.recipe = f->recipe, .softmax_scale = 1, .model = "m"};
    cr_expect_eq(hr_packed_write("/nonexistent/x", &info, (int32_t[]){0}, &layer, 1),
                 HR_ERROR_UNSUPPORTED);
    cr_expect(strstr(hr_last_error(), "rotated by rope"), "%s", hr_last_error());
    hr_packed_layer_free(&layer);
}
