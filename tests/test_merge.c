/*
 * Merging attention states: closed forms, the parts of a split problem against the whole, plans
 * that split their keys themselves, and that their results do not depend on the number of threads.
 */
#include <string.h>

#include "check_run.h"
#include "isa.h"

enum { DIM = 3 };

static hr_tensor view(float *data, int ndim, int64_t a, int64_t b, int64_t c, int64_t d)
{
    const int64_t shape[4] = {a, b, c, d};
    return hr_tensor_view(HR_DTYPE_F32, ndim, shape, data);
}

/* One query and one head: `parts` values of O (the same in each channel) and of LSE. */
static float merge_one(int parts, const float *values, const float *lses, const float *sink,
                       float *lse)
{
    float o_parts[8 * DIM], lse_parts[8], o[DIM];
    for (int p = 0; p < parts; p++) {
        lse_parts[p] = lses[p];
        for (int c = 0; c < DIM; c++)
            o_parts[p * DIM + c] = values[p];
    }
    hr_tensor parts_view = view(o_parts, 4, parts, 1, 1, DIM);
    hr_tensor lse_view = view(lse_parts, 3, parts, 1, 1, 0);
    hr_tensor o_view = view(o, 3, 1, 1, DIM, 0), out_lse = view(lse, 2, 1, 1, 0, 0);
    cr_assert_eq(hr_merge_states(&parts_view, &lse_view, sink, &o_view, &out_lse), HR_OK, "%s",
                 hr_last_error());
    for (int c = 1; c < DIM; c++)
        cr_assert_eq(memcmp(&o[c], &o[0], sizeof *o), 0);
    return o[0];
}

Test(merge, closed_forms)
{
    const float inf = INFINITY;
    float lse;
    cr_expect_eq(merge_one(1, (float[]){3}, (float[]){7}, NULL, &lse), 3);
    cr_expect_eq(lse, 7);
    cr_expect_eq(merge_one(2, (float[]){1, 3}, (float[]){5, 5}, NULL, &lse), 2);
    cr_expect_float_eq(lse, 5 + log(2), 1e-6);
    /* weights 1/4 and 3/4 */
    cr_expect_float_eq(merge_one(2, (float[]){4, 8}, (float[]){0, logf(3)}, NULL, &lse), 7, 1e-6);
    cr_expect_float_eq(lse, log(4), 1e-6);
    /* LSEs that overflow exp, far from each other */
    cr_expect_eq(merge_one(2, (float[]){4, 8}, (float[]){-2e4f, 1e4f}, NULL, &lse), 8);
    cr_expect_eq(lse, 1e4f);
    /* a part without keys leaves the other as it is */
    cr_expect_eq(merge_one(3, (float[]){0, 8, 0}, (float[]){-inf, 2, -inf}, NULL, &lse), 8);
    cr_expect_eq(lse, 2);
}

Test(merge, parts_without_keys)
{
    const float inf = INFINITY, none = -INFINITY, sink = 2;
    float lse;
    cr_expect_eq(merge_one(2, (float[]){0, 0}, (float[]){-inf, -inf}, NULL, &lse), 0);
    cr_expect_eq(lse, -inf);
    cr_expect_eq(merge_one(2, (float[]){0, 0}, (float[]){-inf, -inf}, &none, &lse), 0);
    cr_expect_eq(lse, -inf);
    cr_expect_eq(merge_one(2, (float[]){0, 0}, (float[]){-inf, -inf}, &sink, &lse), 0);
    cr_expect_eq(lse, 2);
}

/* However many parts there are, the sink is one term of the sum. */
Test(merge, the_sink_joins_once)
{
    for (int parts = 1; parts <= 8; parts++) {
        float values[8], lses[8], lse, sink = 1;
        for (int p = 0; p < parts; p++) {
            values[p] = 6;
            lses[p] = 1 - logf((float)parts);
        }
        cr_expect_float_eq(merge_one(parts, values, lses, &sink, &lse), 3, 1e-6);
        cr_expect_float_eq(lse, 1 + log(2), 1e-6);
    }
}

Test(merge, nan_propagates)
{
    float lse;
    cr_expect(isnan(merge_one(2, (float[]){1, 2}, (float[]){NAN, 1}, NULL, &lse)));
    cr_expect(isnan(lse));
    cr_expect(isnan(merge_one(2, (float[]){0, 2}, (float[]){-INFINITY, NAN}, NULL, &lse)));
    cr_expect(isnan(lse));
    cr_expect(isnan(merge_one(2, (float[]){NAN, 2}, (float[]){1, 1}, NULL, &lse)));
    cr_expect_not(isnan(lse));
}

Test(merge, errors_name_what_differs)
{
    float data[64] = {0};
    hr_tensor o_parts = view(data, 4, 2, 3, 1, 4), lse_parts = view(data, 3, 2, 3, 1, 0);
    hr_tensor o = view(data + 32, 3, 3, 1, 4, 0), bad = o_parts;
    cr_expect_eq(hr_merge_states(NULL, &lse_parts, NULL, &o, NULL), HR_ERROR_INVALID_ARGUMENT);
    bad.dtype = HR_DTYPE_F16;
    cr_expect_eq(hr_merge_states(&bad, &lse_parts, NULL, &o, NULL), HR_ERROR_MISMATCH);
    cr_expect(strstr(hr_last_error(), "o_parts is f16"));
    bad = lse_parts;
    bad.shape[0] = 3;
    cr_expect_eq(hr_merge_states(&o_parts, &bad, NULL, &o, NULL), HR_ERROR_MISMATCH);
    cr_expect(strstr(hr_last_error(), "lse_parts has shape[0] 3"));
    bad = o;
    bad.stride[2] = 2;
    cr_expect_eq(hr_merge_states(&o_parts, &lse_parts, NULL, &bad, NULL), HR_ERROR_MISMATCH);
    bad = o;
    bad.data = NULL;
    cr_expect_eq(hr_merge_states(&o_parts, &lse_parts, NULL, &bad, NULL),
                 HR_ERROR_INVALID_ARGUMENT);
    o_parts.shape[0] = lse_parts.shape[0] = 0;
    cr_expect_eq(hr_merge_states(&o_parts, &lse_parts, NULL, &o, NULL), HR_ERROR_INVALID_ARGUMENT);
    o_parts.shape[0] = lse_parts.shape[0] = -1;
    cr_expect_eq(hr_merge_states(&o_parts, &lse_parts, NULL, &o, NULL), HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), "negative extent, -1"));
    o_parts.shape[0] = lse_parts.shape[0] = 2;
    const float sink = INFINITY;
    cr_expect_eq(hr_merge_states(&o_parts, &lse_parts, &sink, &o, NULL), HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), "sinks[0] is inf"));
}

/* 2^64 elements are not none: the product of the extents must not wrap around. */
Test(merge, more_elements_than_64_bits_count)
{
    enum { MANY = 1 << 30 };
    const hr_tensor o_parts = {
        .dtype = HR_DTYPE_F32, .ndim = 4, .shape = {2, MANY, MANY, 8}, .stride = {8, 8, 8, 1}};
    const hr_tensor lse_parts = {.dtype = HR_DTYPE_F32, .ndim = 3, .shape = {2, MANY, MANY}};
    const hr_tensor o = {
        .dtype = HR_DTYPE_F32, .ndim = 3, .shape = {MANY, MANY, 8}, .stride = {8, 8, 1}};
    cr_expect_eq(hr_merge_states(&o_parts, &lse_parts, NULL, &o, NULL), HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), "the data of o_parts"));
}

/* Runs one kernel into guarded memory with the given split and threads. */
static guarded_output run_split(const check_case *test, const char *kernel, int32_t splits,
                                int32_t threads)
{
    hr_plan *plan;
    hr_plan_options options = {.kernel = kernel, .kv_splits = splits, .threads = threads};
    cr_assert_eq(hr_plan_create(&test->problem, &test->recipe, &options, &plan), HR_OK, "%s",
                 hr_last_error());
    hr_layer_layouts layouts = hr_plan_layouts(plan);
    hr_packed_layer packed;
    pack_case(test, &layouts, &packed);
    guarded_output output = make_output(&test->shape);
    cr_assert_eq(hr_plan_run(plan, &packed, &output.o, &output.lse), HR_OK, "%s", hr_last_error());
    cr_expect(guards_intact(&output, &test->shape));
    hr_packed_layer_free(&packed);
    hr_plan_free(plan);
    return output;
}

/* Sequences with many (two of them are cut from three parts on), few and no keys; rows that see
 * all, some and none of a chunk. */
static void make_long_case(check_case *test, uint32_t features, const char *recipe)
{
    *test = (check_case){.shape = {.batch = 4,
                                   .num_heads = 6,
                                   .num_kv_heads = 2,
                                   .head_dim = 40,
                                   .cu_seqlens_q = {0, 3, 4, 14, 15},
                                   .cu_seqlens_kv = {0, 5000, 7300, 7307, 7307}},
                         .features = features,
                         .seed = 11};
    cr_assert_eq(hr_recipe_parse(recipe, &test->recipe), HR_OK, "%s", hr_last_error());
    make_case(test);
}

/* Largest difference of O and LSE, relative to 1 and to the larger LSE; NaN where one is not. */
static double difference(const guarded_output *a, const guarded_output *b)
{
    double worst = 0;
    for (size_t i = 0; i < a->count; i++) {
        if (memcmp(&a->memory[i], &b->memory[i], sizeof(float)) == 0) continue;
        double scale = fmax(1, fabs((double)a->memory[i]));
        double error = fabs((double)a->memory[i] - (double)b->memory[i]) / scale;
        if (!(error <= worst)) worst = error;
    }
    return worst;
}

static const uint32_t case_features[] = {0, HR_FEATURE_CAUSAL, HR_FEATURE_SINKS,
                                         HR_FEATURE_CAUSAL | HR_FEATURE_WINDOW | HR_FEATURE_SINKS};

enum { CASES = sizeof case_features / sizeof case_features[0] };

/*
 * P is rounded relative to the largest weight of a tile, and tiles are the same in a part: the
 * merge alone adds error, one rounding of each O and of each LSE, which is below 16 here.
 */
Test(split, agrees_with_the_whole)
{
    static const char *const recipes[] = {"bf16", "int8", "int4", "fp8:qkv.granularity=token"};
    for (int r = 0; r < 4; r++)
        for (int f = 0; f < CASES; f++) {
            check_case test;
            make_long_case(&test, case_features[f], recipes[r]);
            guarded_output whole = run_split(&test, NULL, 1, 1);
            for (int32_t splits = 0; splits <= 19; splits += splits < 3 ? 1 : 16) {
                guarded_output split = run_split(&test, NULL, splits, 1);
                double error = difference(&whole, &split);
                cr_expect(error <= 2e-5, "%s, features 0x%x, %d splits: %g", recipes[r],
                          case_features[f], splits, error);
                free(split.memory);
            }
            free(whole.memory);
            free_case(&test);
        }
}

Test(split, results_do_not_depend_on_the_number_of_threads)
{
    static const char *const recipes[] = {"bf16", "int8", "int4"};
    for (int r = 0; r < 3; r++) {
        check_case test;
        make_long_case(&test, HR_FEATURE_CAUSAL, recipes[r]);
        for (int32_t splits = 0; splits <= 7; splits += 7) {
            guarded_output one = run_split(&test, NULL, splits, 1);
            for (int32_t threads = 2; threads <= 3; threads++) {
                guarded_output more = run_split(&test, NULL, splits, threads);
                cr_expect_eq(memcmp(one.memory, more.memory, one.count * sizeof(float)), 0,
                             "%s, %d splits, %d threads", recipes[r], splits, threads);
                free(more.memory);
            }
            free(one.memory);
        }
        free_case(&test);
    }
}

/* What an automatic split leaves alone and what it cuts. */
Test(split, is_made_where_there_are_few_tasks)
{
    static const struct {
        int32_t seqlen_q, seqlen_kv, kv_heads, splits, parts;
    } cases[] = {{1, 4095, 1, 0, 0},   {1, 4096, 1, 0, 2},   {1, 1 << 20, 1, 0, 32},
                 {17, 65536, 1, 0, 0}, {16, 65536, 8, 0, 4}, {1, 65536, 32, 0, 0},
                 {1, 65536, 1, 1, 0},  {1, 1000, 1, 4, 4},   {100, 1000, 1, 2, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int32_t q[2] = {0, cases[i].seqlen_q}, kv[2] = {0, cases[i].seqlen_kv};
        hr_attention_problem problem;
        hr_attention_problem_init(&problem, 2 * cases[i].kv_heads, cases[i].kv_heads, 64);
        problem.cu_seqlens_q = q;
        problem.cu_seqlens_kv = kv;
        hr_plan_options options = {.kv_splits = cases[i].splits};
        hr_plan *plan;
        cr_assert_eq(hr_plan_create(&problem, hr_recipe_preset(0), &options, &plan), HR_OK);
        cr_expect_eq(plan->parts, cases[i].parts, "case %zu: %d parts", i, plan->parts);
        hr_plan_free(plan);
    }
    hr_attention_problem problem;
    const int32_t lengths[2] = {0, 1};
    hr_attention_problem_init(&problem, 1, 1, 64);
    problem.cu_seqlens_q = problem.cu_seqlens_kv = lengths;
    hr_plan_options options = {.kv_splits = -1};
    hr_plan *plan;
    cr_expect_eq(hr_plan_create(&problem, hr_recipe_preset(0), &options, &plan),
                 HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), "kv_splits is -1"));
}
