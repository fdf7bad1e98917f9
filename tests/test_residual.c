/*
 * A KV cache that keeps its last tokens in BF16: what lies where, and that a paged run is the
 * attention of the dequantized old tokens and the BF16 recent ones, whatever the lengths, masks,
 * kernels, splits and the calls that tokens came in.
 */
#include <math.h>
#include <stdio.h>

#include "format_minifloat.h"
#include "isa.h"
#include "kv_cache_internal.h"
#include "plan_setup.h"
#include "transform.h"

enum { HEADS = 4, KV_HEADS = 2, DIM = 32, PAGE = 32, RESIDUAL = 48, BATCH = 3, MAX_PAGES = 20 };

typedef struct fixture {
    plan_setup *s;
    hr_kv_cache *cache;
    int32_t table[BATCH * MAX_PAGES], blocks[BATCH];
    int32_t positions_q[2000], positions_kv[2000], token_blocks[2000];
    int64_t slots[2000];
    hr_packed q, q_recent;
} fixture;

/* Sequences of these lengths; tokens are appended `chunk` at a time. */
static fixture *make_fixture(const char *recipe, const int32_t *q, const int32_t *kv, int64_t chunk)
{
    fixture *f = calloc(1, sizeof *f);
    cr_assert_not_null(f);
    plan_setup *s = f->s = calloc(1, sizeof *s);
    for (int b = 0; b < BATCH; b++) {
        s->cu_seqlens_q[b + 1] = s->cu_seqlens_q[b] + q[b];
        s->cu_seqlens_kv[b + 1] = s->cu_seqlens_kv[b] + kv[b];
        f->blocks[b] = BATCH - b; /* not the order of the batch */
        for (int i = 0; i < MAX_PAGES; i++)
            f->table[b * MAX_PAGES + i] = (b * MAX_PAGES + i) * 7 % (BATCH * MAX_PAGES);
        for (int32_t t = 0; t < kv[b]; t++) {
            const int32_t at = s->cu_seqlens_kv[b] + t;
            f->positions_kv[at] = t;
            f->token_blocks[at] = f->blocks[b];
            f->slots[at] = (int64_t)f->table[b * MAX_PAGES + t / PAGE] * PAGE + t % PAGE;
        }
        for (int32_t t = 0; t < q[b]; t++)
            f->positions_q[s->cu_seqlens_q[b] + t] = kv[b] - q[b] + t;
    }
    setup_fill(s, recipe, BATCH, HEADS, KV_HEADS, DIM);
    s->problem.mask.causal = true;
    s->problem.rope = (hr_rope){.rotary_dim = 16, .theta = 10000};
    s->problem.paging = (hr_paging){.page_size = PAGE,
                                    .max_pages = MAX_PAGES,
                                    .block_table = f->table,
                                    .residual_blocks = f->blocks};
    hr_paging *paging = &s->problem.paging;
    cr_assert_eq(hr_kv_cache_layouts(&s->recipe, DIM, &paging->k_layout, &paging->v_layout), HR_OK);
    const hr_kv_cache_options options = {.recipe = &s->recipe,
                                         .num_kv_heads = KV_HEADS,
                                         .head_dim = DIM,
                                         .page_size = PAGE,
                                         .num_pages = BATCH * MAX_PAGES,
                                         .rope = s->problem.rope,
                                         .max_sequences = BATCH + 1,
                                         .k_layout = paging->k_layout,
                                         .v_layout = paging->v_layout};
    cr_assert_eq(hr_kv_cache_create(&options, &f->cache), HR_OK, "%s", hr_last_error());
    const int64_t tokens = s->k.shape[0];
    for (int64_t first = 0; first < tokens; first += chunk) {
        hr_tensor k = s->k, v = s->v;
        k.shape[0] = v.shape[0] = tokens - first < chunk ? tokens - first : chunk;
        k.data = (float *)k.data + first * k.stride[0];
        v.data = (float *)v.data + first * v.stride[0];
        cr_assert_eq(hr_kv_cache_append_residual(f->cache, &k, &v, f->positions_kv + first,
                                                 f->slots + first, f->token_blocks + first),
                     HR_OK, "%s", hr_last_error());
    }
    return f;
}

static void free_fixture(fixture *f)
{
    hr_packed_free(&f->q);
    hr_packed_free(&f->q_recent);
    hr_kv_cache_free(f->cache);
    setup_free(f->s);
    free(f);
}

static void pack_q(const fixture *f, const hr_recipe *recipe, hr_packed *out)
{
    const hr_pack_options options = {.layout = HR_LAYOUT_ROWS,
                                     .batch = BATCH,
                                     .cu_seqlens = f->s->cu_seqlens_q,
                                     .num_kv_heads = KV_HEADS,
                                     .rope = f->s->problem.rope,
                                     .positions = f->positions_q};
    hr_packed_free(out);
    cr_assert_eq(hr_pack(HR_OPERAND_Q, &recipe->q, &f->s->q, &options, out), HR_OK, "%s",
                 hr_last_error());
}

static void run(fixture *f, const hr_plan_options *options)
{
    hr_recipe bf16;
    cr_assert_eq(hr_recipe_parse("bf16", &bf16), HR_OK);
    hr_plan *plan = setup_plan(f->s, options);
    pack_q(f, &f->s->recipe, &f->q);
    pack_q(f, &bf16, &f->q_recent);
    const hr_plan_tensors tensors = {
        .q = &f->q, .q_recent = &f->q_recent, .cache = f->cache, .o = &f->s->o, .lse = &f->s->lse};
    memset(f->s->o.data, 0xff, o_bytes(f->s));
    cr_assert_eq(hr_plan_run_tensors(plan, &tensors), HR_OK, "%s", hr_last_error());
    hr_plan_free(plan);
}

/* Unpacking leaves rows as they were quantized: takes the Hadamard rotation back. */
static void unrotate(const hr_operand_recipe *recipe, float *rows, size_t count)
{
    float signs[DIM];
    if (!(recipe->transform & HR_TRANSFORM_HADAMARD)) return;
    hr_hadamard_signs(0, DIM, signs);
    for (size_t i = 0; i < count; i += DIM)
        hr_hadamard_unrotate(signs, DIM, rows + i);
}

/*
 * K or V as attention must see it: [tokens][KV_HEADS][DIM], old tokens from their codes, the last
 * ones rounded to BF16; K rotated by rope. Which are which is written here in words: at least
 * RESIDUAL recent ones, if there are so many, and the old ones a multiple of 16.
 */
static float *visible_values(const fixture *f, hr_operand operand)
{
    const plan_setup *s = f->s;
    const bool key = operand == HR_OPERAND_K;
    const hr_paging paging = {.page_size = PAGE, .max_pages = MAX_PAGES, .block_table = f->table};
    hr_packed codes;
    cr_assert_eq(hr_kv_cache_gather(f->cache, operand, &paging, BATCH, s->cu_seqlens_kv,
                                    HR_LAYOUT_ROWS, &codes),
                 HR_OK, "%s", hr_last_error());
    const size_t count = (size_t)s->cu_seqlens_kv[BATCH] * KV_HEADS * DIM;
    float *values = calloc(count + 1, sizeof *values), *recent = calloc(count + 1, sizeof *recent);
    cr_assert(values && recent);
    cr_assert_eq(hr_unpack(&codes, values), HR_OK, "%s", hr_last_error());
    if (key) unrotate(&s->recipe.k, values, count);
    hr_packed_free(&codes);
    hr_recipe bf16;
    cr_assert_eq(hr_recipe_parse("bf16", &bf16), HR_OK);
    hr_pack_options options = {.batch = BATCH, .cu_seqlens = s->cu_seqlens_kv};
    if (key) options.rope = s->problem.rope;
    if (key) options.positions = f->positions_kv;
    cr_assert_eq(hr_pack(operand, key ? &bf16.k : &bf16.v, key ? &s->k : &s->v, &options, &codes),
                 HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_unpack(&codes, recent), HR_OK);
    hr_packed_free(&codes);
    for (int b = 0; b < BATCH; b++) {
        const int32_t first = s->cu_seqlens_kv[b], keys = s->cu_seqlens_kv[b + 1] - first;
        int32_t old = keys - RESIDUAL;
        while (old > 0 && old % 16)
            old--;
        if (old < 0) old = 0;
        const size_t at = (size_t)(first + old) * KV_HEADS * DIM;
        memcpy(values + at, recent + at, (size_t)(keys - old) * KV_HEADS * DIM * sizeof *values);
    }
    free(recent);
    return values;
}

/* Relative L2 distance of O, and the largest of LSE, from the oracle's. */
static void check(const fixture *f, double o_limit, double lse_limit, const char *what)
{
    plan_setup *s = f->s;
    float *k = visible_values(f, HR_OPERAND_K), *v = visible_values(f, HR_OPERAND_V);
    float *q = calloc((size_t)hr_tensor_size(&s->q) + 1, sizeof *q);
    cr_assert_not_null(q);
    cr_assert_eq(hr_unpack(&f->q, q), HR_OK);
    unrotate(&s->recipe.q, q, (size_t)hr_tensor_size(&s->q));
    hr_tensor q_view = s->q, k_view = s->k, v_view = s->v;
    q_view.data = q;
    k_view.data = k;
    v_view.data = v;
    hr_attention_problem problem = s->problem;
    problem.paging = (hr_paging){0};
    problem.rope = (hr_rope){0}; /* q and k are rotated */
    double *o = calloc((size_t)hr_tensor_size(&s->o) + 1, sizeof *o);
    double *lse = calloc((size_t)hr_tensor_size(&s->lse) + 1, sizeof *lse);
    cr_assert_eq(hr_reference_attention(&problem, &q_view, &k_view, &v_view, o, lse), HR_OK, "%s",
                 hr_last_error());
    double error = 0, size = 0;
    for (int64_t i = 0; i < hr_tensor_size(&s->o); i++) {
        const double x = (double)((float *)s->o.data)[i];
        error += (x - o[i]) * (x - o[i]);
        size += o[i] * o[i];
    }
    cr_expect(sqrt(error / size) <= o_limit, "%s: O is %g off", what, sqrt(error / size));
    for (int64_t i = 0; i < hr_tensor_size(&s->lse); i++) {
        const float x = ((float *)s->lse.data)[i];
        if (lse[i] == -INFINITY)
            cr_expect_eq(x, -INFINITY, "%s", what);
        else
            cr_expect(fabs((double)x - lse[i]) <= lse_limit, "%s: LSE is %g, not %g", what,
                      (double)x, lse[i]);
    }
    free(q);
    free(k);
    free(v);
    free(o);
    free(lse);
}

/*
 * Lengths around the residual and its pages of 16. Q of the old part is the recipe's, of the recent
 * part BF16, and the oracle takes the recipe's for both: 2^-8 apart for bf16 (0) and int8 (2^-7).
 */
static const int32_t lengths_q[][BATCH] = {{1, 1, 1}, {3, 40, 7}, {1, 0, 100}};
static const int32_t lengths_kv[][BATCH] = {{48, 49, 400}, {600, 63, 64}, {17, 0, 100}};

/*
 * A random map of blocks, whose edges are not those of the residual (multiples of 16) nor of pages;
 * some rows see no block.
 */
static void make_blocks(const fixture *f, int32_t heads, int32_t block_q, int32_t block_kv,
                        hr_block_mask *out)
{
    const plan_setup *s = f->s;
    check_random random = {(uint64_t)(heads * block_kv)};
    int32_t rows = 0, columns = 0;
    for (int b = 0; b < BATCH; b++) {
        const int32_t n = s->cu_seqlens_q[b + 1] - s->cu_seqlens_q[b];
        const int32_t m = s->cu_seqlens_kv[b + 1] - s->cu_seqlens_kv[b];
        rows += (n + block_q - 1) / block_q;
        if ((m + block_kv - 1) / block_kv > columns) columns = (m + block_kv - 1) / block_kv;
    }
    uint8_t *map = calloc((size_t)(heads * rows * columns) + 1, 1);
    cr_assert_not_null(map);
    for (int32_t row = 0; row < heads * rows; row++) {
        const int32_t per_five = random_below(&random, 5);
        for (int32_t c = 0; c < columns; c++)
            map[row * columns + c] = random_below(&random, 5) < per_five;
    }
    cr_assert_eq(hr_block_mask_from_map(map, block_q, block_kv, heads, BATCH, s->cu_seqlens_q,
                                        s->cu_seqlens_kv, out),
                 HR_OK, "%s", hr_last_error());
    free(map);
}

Test(residual, attention_of_old_codes_and_recent_tokens)
{
    static const char *const recipes[] = {"bf16:residual=48", "int8:k.transform=none,residual=48",
                                          "int4:k.transform=hadamard,residual=48",
                                          "int8:k.transform=none,v.dtype=c4,residual=48"};
    static const float sinks[HEADS] = {0.5f, -INFINITY, 1, -2};
    static const float slopes[HEADS] = {0.5f, 0.1f, 0.01f, 0.3f};
    for (size_t r = 0; r < sizeof recipes / sizeof recipes[0]; r++)
        for (int shape = 0; shape < 3; shape++)
            for (int feature = 0; feature < 8; feature++) {
                fixture *f = make_fixture(recipes[r], lengths_q[shape], lengths_kv[shape],
                                          40 + 50 * feature);
                hr_attention_problem *problem = &f->s->problem;
                if (feature == 1) problem->mask.window_left = 60;
                if (feature == 2) problem->mask.window_left = 20;
                if (feature == 2) problem->mask.keep = 70;
                if (feature == 3) problem->sinks = sinks;
                if (feature == 4) problem->alibi_slopes = slopes;
                hr_block_mask blocks = {0};
                if (feature == 5) make_blocks(f, 1, 16, 40, &blocks);
                if (feature == 6) make_blocks(f, KV_HEADS, 7, 3, &blocks);
                if (feature == 6) problem->mask.keep = 70;
                if (feature == 7) make_blocks(f, HEADS, 64, 64, &blocks);
                if (feature == 7) problem->mask.window_left = 90;
                if (feature >= 5) problem->mask.blocks = &blocks;
                hr_plan_options options = {.kv_splits = feature == 1 || feature == 6 ? 3 : 0};
                run(f, &options);
                char what[160];
                snprintf(what, sizeof what, "%s, shape %d, feature %d", recipes[r], shape, feature);
                check(f, 0.02, 0.05, what);
                hr_block_mask_free(&blocks);
                free_fixture(f);
            }
}

/* O of the caller's type, all heads of a token side by side. */
static hr_tensor make_stream(const fixture *f, hr_dtype dtype)
{
    hr_tensor tensor = hr_tensor_view(dtype, 3, f->s->o.shape, NULL);
    tensor.data = calloc((size_t)hr_tensor_size(&tensor) + 1, sizeof(float));
    cr_assert_not_null(tensor.data);
    for (int64_t i = 0; i < hr_tensor_size(&tensor); i++)
        if (dtype == HR_DTYPE_F32)
            ((float *)tensor.data)[i] = 0.01f * (float)(i % 97);
        else
            ((uint16_t *)tensor.data)[i] = (uint16_t)(0x3e00 + i % 97);
    return tensor;
}

/* Fused into the merge, an epilogue gives the bits that it gives on the merged O. */
Test(residual, an_epilogue_follows_the_merge)
{
    enum { HIDDEN = HEADS * DIM };
    float weight[HIDDEN], bias[HIDDEN];
    for (int c = 0; c < HIDDEN; c++) {
        weight[c] = 1 + 0.01f * (float)c;
        bias[c] = 0.5f - 0.02f * (float)c;
    }
    const hr_epilogue epilogues[] = {
        {.scale = 0.5f},
        {.scale = 1, .norm = HR_NORM_RMS, .eps = 1e-3f, .weight = weight},
        {.scale = 2, .norm = HR_NORM_LAYER, .eps = 1e-3f, .weight = weight, .bias = bias}};
    const hr_dtype dtypes[2] = {HR_DTYPE_F32, HR_DTYPE_BF16};
    for (int variant = 0; variant < 12; variant++) {
        fixture *f = make_fixture("int8:k.transform=none,residual=48", lengths_q[variant % 3],
                                  lengths_kv[variant % 3], 64);
        const hr_epilogue *epilogue = &epilogues[variant % 3];
        hr_block_mask blocks = {0};
        if (variant >= 6) make_blocks(f, HEADS, 16, 40, &blocks);
        if (variant >= 6) f->s->problem.mask.blocks = &blocks;
        const hr_tensor residual = make_stream(f, dtypes[variant % 2]);
        const hr_tensor stream = make_stream(f, dtypes[variant / 2 % 2]);
        const hr_tensor out = make_stream(f, dtypes[variant / 4 % 2]);
        const hr_tensor stream_after = make_stream(f, stream.dtype);
        const hr_tensor out_after = make_stream(f, out.dtype);
        run(f, NULL);
        cr_assert_eq(hr_epilogue_run(epilogue, &f->s->o, &residual, &stream_after, &out_after),
                     HR_OK, "%s", hr_last_error());
        float *lse = calloc(lse_bytes(f->s) + 1, 1);
        cr_assert_not_null(lse);
        memcpy(lse, f->s->lse.data, lse_bytes(f->s));
        for (int32_t threads = 1; threads <= 4; threads += 3) {
            hr_plan *plan =
                setup_plan(f->s, &(hr_plan_options){.threads = threads, .epilogue = epilogue});
            const hr_plan_tensors tensors = {.q = &f->q,
                                             .q_recent = &f->q_recent,
                                             .cache = f->cache,
                                             .o = &out,
                                             .lse = &f->s->lse,
                                             .residual = &residual,
                                             .stream = &stream};
            cr_assert_eq(hr_plan_run_tensors(plan, &tensors), HR_OK, "%s", hr_last_error());
            hr_plan_free(plan);
            const size_t count = (size_t)hr_tensor_size(&out);
            cr_expect_arr_eq(out.data, out_after.data,
                             count * (out.dtype == HR_DTYPE_F32 ? 4u : 2u), "variant %d", variant);
            cr_expect_arr_eq(stream.data, stream_after.data,
                             count * (stream.dtype == HR_DTYPE_F32 ? 4u : 2u), "variant %d",
                             variant);
            cr_expect_arr_eq(f->s->lse.data, lse, lse_bytes(f->s), "variant %d", variant);
        }
        free(lse);
        free(residual.data);
        free(stream.data);
        free(out.data);
        free(stream_after.data);
        free(out_after.data);
        hr_block_mask_free(&blocks);
        free_fixture(f);
    }
}

/* The calls that tokens come in leave no trace, and threads none either. */
Test(residual, chunks_and_threads_give_the_same_bits)
{
    const char *recipe = "int4:k.transform=hadamard,residual=48";
    fixture *f = make_fixture(recipe, lengths_q[1], lengths_kv[1], 1);
    run(f, &(hr_plan_options){.threads = 1});
    for (int64_t chunk = 7; chunk < 1000; chunk *= 4)
        for (int32_t threads = 1; threads <= 4; threads++) {
            fixture *other = make_fixture(recipe, lengths_q[1], lengths_kv[1], chunk);
            run(other, &(hr_plan_options){.threads = threads});
            cr_expect_eq(memcmp(f->s->o.data, other->s->o.data, o_bytes(f->s)), 0,
                         "chunks of %d, %d threads", (int)chunk, threads);
            cr_expect_eq(memcmp(f->s->lse.data, other->s->lse.data, lse_bytes(f->s)), 0);
            free_fixture(other);
        }
    free_fixture(f);
}

/* Two 4-bit caches, one with a residual: recent keys hold most of a local head's weight. */
Test(residual, recent_tokens_are_more_exact)
{
    const int32_t q[BATCH] = {1, 1, 1}, kv[BATCH] = {60, 55, 50}; /* all of it recent */
    fixture *f = make_fixture("int4:k.transform=hadamard,residual=64", q, kv, 5);
    run(f, NULL);
    hr_attention_problem problem = f->s->problem;
    problem.paging = (hr_paging){0};
    const hr_tensor *s[3] = {&f->s->q, &f->s->k, &f->s->v};
    double o[BATCH * HEADS * DIM], error = 0, size = 0;
    cr_assert_eq(hr_reference_attention(&problem, s[0], s[1], s[2], o, NULL), HR_OK);
    for (int i = 0; i < BATCH * HEADS * DIM; i++) {
        error += pow((double)((float *)f->s->o.data)[i] - o[i], 2);
        size += o[i] * o[i];
    }
    cr_expect(sqrt(error / size) <= 0x1p-7, "%g", sqrt(error / size)); /* BF16; 4 bits: 0.1 */
    cr_expect_gt(hr_kv_cache_bytes(f->cache), 0);
    free_fixture(f);
}

static void expect_failure(hr_status status, hr_status wanted, const char *message)
{
    cr_expect_eq(status, wanted, "%s", message);
    cr_expect(strstr(hr_last_error(), message), "\"%s\" is not in \"%s\"", message,
              hr_last_error());
}

Test(residual, refusals)
{
    fixture *f = make_fixture("int8:k.transform=none,residual=48", lengths_q[0], lengths_kv[0], 99);
    plan_setup *s = f->s;
    hr_plan *plan;
    hr_attention_problem problem = s->problem;
    problem.paging.residual_blocks = NULL;
    expect_failure(hr_plan_create(&problem, &s->recipe, NULL, &plan), HR_ERROR_INVALID_ARGUMENT,
                   "paging.residual_blocks must not be NULL");
    const int32_t far[BATCH] = {0, 1, BATCH + 1};
    problem.paging.residual_blocks = far;
    cr_assert_eq(hr_plan_create(&problem, &s->recipe, NULL, &plan), HR_OK, "%s", hr_last_error());
    run(f, NULL);
    hr_plan_tensors tensors = {.q = &f->q, .cache = f->cache, .o = &s->o};
    expect_failure(hr_plan_run_tensors(plan, &tensors), HR_ERROR_INVALID_ARGUMENT, "q_recent");
    tensors.q_recent = &f->q_recent;
    expect_failure(hr_plan_run_tensors(plan, &tensors), HR_ERROR_INVALID_ARGUMENT,
                   "reads residual block 4; the cache has 4");
    hr_plan_free(plan);
    const int32_t beyond[BATCH] = {0, INT32_MAX, 1}; /* the number after it is no int32_t */
    problem.paging.residual_blocks = beyond;
    expect_failure(hr_plan_create(&problem, &s->recipe, NULL, &plan), HR_ERROR_INVALID_ARGUMENT,
                   "residual_blocks[1] is 2147483647, more than a cache can have");
    problem.paging = (hr_paging){0};
    expect_failure(hr_plan_create(&problem, &s->recipe, NULL, &plan), HR_ERROR_UNSUPPORTED,
                   "which a paged KV cache keeps");
    const hr_epilogue endless = {.scale = INFINITY};
    expect_failure(
        hr_plan_create(&s->problem, &s->recipe, &(hr_plan_options){.epilogue = &endless}, &plan),
        HR_ERROR_INVALID_ARGUMENT, "the epilogue's scale is inf");
    cr_expect_null(plan);
    cr_assert_eq(hr_plan_create(&s->problem, &s->recipe, NULL, &plan), HR_OK, "%s",
                 hr_last_error());
    hr_plan_tensors stray = {
        .q = &f->q, .q_recent = &f->q_recent, .cache = f->cache, .o = &s->o, .stream = &s->o};
    expect_failure(hr_plan_run_tensors(plan, &stray), HR_ERROR_INVALID_ARGUMENT,
                   "stream was given, but the plan has no epilogue");
    hr_plan_free(plan);
    hr_block_mask blocks;
    make_blocks(f, 1, 16, 16, &blocks);
    blocks.rows++;
    problem = s->problem;
    problem.mask.blocks = &blocks;
    expect_failure(hr_plan_create(&problem, &s->recipe, NULL, &plan), HR_ERROR_INVALID_ARGUMENT,
                   "the block mask has 4 rows; blocks of 16 queries make 3");
    hr_block_mask_free(&blocks);

    hr_recipe wide = s->recipe;
    wide.residual = 64;
    cr_assert_eq(hr_plan_create(&s->problem, &wide, NULL, &plan), HR_OK, "%s", hr_last_error());
    expect_failure(hr_plan_run_tensors(plan, &tensors), HR_ERROR_MISMATCH,
                   "the cache has a residual of 48; the plan has 64");
    hr_plan_free(plan);

    hr_tensor one_k = s->k, one_v = s->v;
    one_k.shape[0] = one_v.shape[0] = 1;
    const int32_t block = BATCH + 1, position = -1;
    expect_failure(hr_kv_cache_append(f->cache, &one_k, &one_v, f->positions_kv, f->slots),
                   HR_ERROR_INVALID_ARGUMENT, "hr_kv_cache_append_residual");
    expect_failure(
        hr_kv_cache_append_residual(f->cache, &one_k, &one_v, f->positions_kv, f->slots, &block),
        HR_ERROR_INVALID_ARGUMENT, "blocks[0] is 4; the cache has 4");
    expect_failure(
        hr_kv_cache_append_residual(f->cache, &one_k, &one_v, &position, f->slots, f->blocks),
        HR_ERROR_INVALID_ARGUMENT, "positions[0] is -1");
    hr_kv_cache *cache;
    hr_kv_cache_options options = {
        .recipe = &s->recipe, .num_kv_heads = 1, .head_dim = 8, .page_size = 16, .num_pages = 1};
    expect_failure(hr_kv_cache_create(&options, &cache), HR_ERROR_INVALID_ARGUMENT,
                   "max_sequences is 0");
    free_fixture(f);
}
