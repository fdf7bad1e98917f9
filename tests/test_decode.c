/*
 * Decode over a million keys: offsets, int32 sums and the sum of weights hold, in one chunk and
 * split, with answers in closed form.
 */
#include "cpu/integer_softmax.h"
#include "integer_case.h"
#include "isa.h"

enum { KEYS = 1 << 20, DIM = 64, LATE = KEYS - 5 };

static void run(const integer_case *c, int32_t splits, float *o, float *lse)
{
    hr_plan *plan;
    hr_plan_options options = {.kv_splits = splits};
    cr_assert_eq(hr_plan_create(&c->problem, &c->recipe, &options, &plan), HR_OK, "%s",
                 hr_last_error());
    const hr_layer_layouts layouts = hr_plan_layouts(plan);
    hr_packed_layer packed = c->packed, moved = {0};
    if (layouts.k != HR_LAYOUT_ROWS) {
        cr_assert_eq(hr_packed_relayout(&c->packed.k, layouts.k, &moved.k), HR_OK);
        packed.k = moved.k;
    }
    if (layouts.v != HR_LAYOUT_ROWS) {
        cr_assert_eq(hr_packed_relayout(&c->packed.v, layouts.v, &moved.v), HR_OK);
        packed.v = moved.v;
    }
    const int64_t shape[3] = {1, 1, DIM};
    hr_tensor o_view = hr_tensor_view(HR_DTYPE_F32, 3, shape, o);
    hr_tensor lse_view = hr_tensor_view(HR_DTYPE_F32, 2, shape, lse);
    cr_assert_eq(hr_plan_run(plan, &packed, &o_view, &lse_view), HR_OK, "%s", hr_last_error());
    hr_packed_layer_free(&moved);
    hr_plan_free(plan);
}

static void check_a_million_keys(const char *recipe)
{
    integer_case c;
    make_integer_case(&c, recipe, 1, KEYS, DIM);
    set_token(&c.packed.q, 0, 127, 1);
    memset(c.packed.k.codes, 0, (size_t)KEYS * DIM);
    memset(c.packed.v.codes, 127, (size_t)KEYS * DIM);
    for (int64_t i = 0; i < KEYS; i++)
        c.packed.v.scale[i] = i % 4 == 3 ? 5 : 1;
    for (int32_t splits = 0; splits <= 1; splits++) {
        float o[DIM], lse;
        run(&c, splits, o, &lse);
        /* Weights are good to WEIGHT_ERROR and rounded to 1/1024 octave. */
        cr_expect_float_eq(lse, log(KEYS), HR_INTEGER_WEIGHT_ERROR + 0x1p-11, "%d splits: %g",
                           splits, (double)lse);
        /* The mean of 1, 1, 1 and 5; P rounds 51 to itself. 4096 tiles are added in FP32, which is
         * good to 2 * 4096 * 2^-24 of the sum. */
        for (int i = 0; i < DIM; i++)
            cr_expect_float_eq(o[i], 2 * 127, 254 * 0x1p-11, "%d splits: %g", splits, (double)o[i]);
    }
    /* One key near the end takes all the weight. */
    set_token(&c.packed.k, LATE, 100, 1);
    set_token(&c.packed.v, LATE, -100, 0.5f);
    for (int32_t splits = 0; splits <= 1; splits++) {
        float o[DIM], lse;
        run(&c, splits, o, &lse);
        cr_expect_float_eq(lse, 127.0 * 100 * DIM, 1);
        for (int i = 0; i < DIM; i++)
            cr_expect_float_eq(o[i], -50, 1e-4, "%d splits: %g", splits, (double)o[i]);
    }
    free_integer_case(&c);
}

Test(decode, a_million_keys)
{
    check_a_million_keys("int8:k.transform=none");
    check_a_million_keys("int8:k.transform=none,p.dtype=i16");
}

/* The same with floating-point codes: x is [KEYS][1][FLOAT_DIM]. */
enum { FLOAT_DIM = 8 };

static void run_float(const char *recipe_text, int32_t splits, hr_tensor *q, hr_tensor *k,
                      hr_tensor *v, float *o, float *lse)
{
    static const int32_t cu_q[2] = {0, 1}, cu_kv[2] = {0, KEYS};
    hr_recipe recipe;
    cr_assert_eq(hr_recipe_parse(recipe_text, &recipe), HR_OK, "%s", hr_last_error());
    hr_attention_problem problem;
    hr_attention_problem_init(&problem, 1, 1, FLOAT_DIM);
    problem.cu_seqlens_q = cu_q;
    problem.cu_seqlens_kv = cu_kv;
    problem.softmax_scale = 1;
    hr_plan *plan;
    hr_plan_options options = {.kv_splits = splits};
    cr_assert_eq(hr_plan_create(&problem, &recipe, &options, &plan), HR_OK, "%s", hr_last_error());
    const hr_layer_layouts layouts = hr_plan_layouts(plan);
    hr_packed_layer packed = {0};
    cr_assert_eq(hr_pack_layer(&recipe, &layouts, q, k, v, 1, cu_q, cu_kv, NULL, &packed), HR_OK,
                 "%s", hr_last_error());
    const int64_t shape[3] = {1, 1, FLOAT_DIM};
    hr_tensor o_view = hr_tensor_view(HR_DTYPE_F32, 3, shape, o);
    hr_tensor lse_view = hr_tensor_view(HR_DTYPE_F32, 2, shape, lse);
    cr_assert_eq(hr_plan_run(plan, &packed, &o_view, &lse_view), HR_OK, "%s", hr_last_error());
    hr_packed_layer_free(&packed);
    hr_plan_free(plan);
}

/*
 * Values of one sign: sums of 128 of them are what FP16 has to hold, at the largest code and the
 * largest weight. One key near the end then takes all the weight.
 */
Test(decode, a_million_keys_of_floats)
{
    static const char *const recipes[] = {"bf16", "fp8:qkv.scale=dynamic"};
    const int64_t shape_q[3] = {1, 1, FLOAT_DIM}, shape_kv[3] = {KEYS, 1, FLOAT_DIM};
    float *k_data = calloc((size_t)KEYS * FLOAT_DIM, sizeof *k_data);
    float *v_data = calloc((size_t)KEYS * FLOAT_DIM, sizeof *v_data);
    cr_assert(k_data && v_data);
    float q_data[FLOAT_DIM], o[FLOAT_DIM], lse;
    hr_tensor q = hr_tensor_view(HR_DTYPE_F32, 3, shape_q, q_data);
    hr_tensor k = hr_tensor_view(HR_DTYPE_F32, 3, shape_kv, k_data);
    hr_tensor v = hr_tensor_view(HR_DTYPE_F32, 3, shape_kv, v_data);
    for (int i = 0; i < FLOAT_DIM; i++)
        q_data[i] = 1;
    for (int32_t r = 0; r < 2; r++)
        for (int32_t splits = 0; splits <= 1; splits++) {
            memset(k_data, 0, (size_t)KEYS * FLOAT_DIM * sizeof *k_data);
            for (int64_t i = 0; i < (int64_t)KEYS * FLOAT_DIM; i++)
                v_data[i] = 448;
            run_float(recipes[r], splits, &q, &k, &v, o, &lse);
            cr_expect_float_eq(lse, log(KEYS), 1e-3, "%s: %g", recipes[r], (double)lse);
            for (int i = 0; i < FLOAT_DIM; i++) /* 128 roundings of 2^-11 at the worst */
                cr_expect_float_eq(o[i], 448, 448 * 0x1p-4, "%s: %g", recipes[r], (double)o[i]);

            for (int i = 0; i < FLOAT_DIM; i++) {
                k_data[(int64_t)LATE * FLOAT_DIM + i] = 8;
                v_data[(int64_t)LATE * FLOAT_DIM + i] = -224;
            }
            run_float(recipes[r], splits, &q, &k, &v, o, &lse);
            cr_expect_float_eq(lse, 64, 0.1, "%s: %g", recipes[r], (double)lse);
            for (int i = 0; i < FLOAT_DIM; i++)
                cr_expect_float_eq(o[i], -224, 0.5, "%s: %g", recipes[r], (double)o[i]);
        }
    free(k_data);
    free(v_data);
}
