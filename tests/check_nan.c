/*
 * NaN goes exactly where the formula takes it: a NaN code in Q spoils its row, one in K every row
 * that sees the key, one in V that channel of those rows, and no mask lets it through. Rows whose
 * formats hold NaN, against the oracle on the dequantized inputs. And the comparison that all
 * kernel checks rest on must itself fail on a NaN, on an error beyond the bound and on a stray
 * write.
 */
#include <criterion/criterion.h>

#include "check_run.h"

static bool holds_nan(hr_dtype dtype)
{
    return dtype == HR_DTYPE_BF16 || dtype == HR_DTYPE_E4M3;
}

static void poison(hr_packed *packed, int32_t head, int32_t slot, int32_t channel)
{
    unsigned char *codes = (unsigned char *)packed->codes + (size_t)head * packed->head_bytes;
    const size_t index = (size_t)slot * (size_t)packed->head_dim + (size_t)channel;
    if (packed->recipe.dtype == HR_DTYPE_BF16)
        ((uint16_t *)(void *)codes)[index] = 0x7fc0;
    else
        codes[index] = 0x7f;
}

/* The same in any layout. */
static void poison_row(hr_packed *packed, int32_t token, int32_t channel)
{
    if (packed->layout == HR_LAYOUT_ROWS) {
        poison(packed, 0, token, channel);
        return;
    }
    hr_packed rows, poisoned;
    cr_assert_eq(hr_packed_relayout(packed, HR_LAYOUT_ROWS, &rows), HR_OK, "%s", hr_last_error());
    poison(&rows, 0, token, channel);
    cr_assert_eq(hr_packed_relayout(&rows, packed->layout, &poisoned), HR_OK, "%s",
                 hr_last_error());
    hr_packed_free(&rows);
    hr_packed_free(packed);
    *packed = poisoned;
}

static int count_wrong_nans(const check_case *test, const guarded_output *output, int *nans)
{
    const int64_t heads = test->shape.num_heads, head_dim = test->shape.head_dim;
    int wrong = 0;
    for (int64_t t = 0; t < test->shape.cu_seqlens_q[test->shape.batch]; t++)
        for (int64_t head = 0; head < heads; head++) {
            const int64_t row = t * heads + head;
            wrong += isnan(*lse_of(output, t, head)) != isnan(test->lse[row]);
            for (int64_t c = 0; c < head_dim; c++) {
                bool expected = isnan(test->o[row * head_dim + c]);
                wrong += isnan(o_row(output, t, head)[c]) != expected;
                *nans += expected;
            }
        }
    return wrong;
}

static void check_poisoned(const hr_kernel_info *row, const hr_recipe *recipe, uint32_t features,
                           int operand)
{
    const bool decode = row->max_seqlen_q > 0;
    const int32_t queries = decode ? row->max_seqlen_q : 83;
    check_case test = {.shape = {.batch = 1,
                                 .num_heads = 2,
                                 .num_kv_heads = 1,
                                 .head_dim = 40,
                                 .cu_seqlens_q = {0, queries},
                                 .cu_seqlens_kv = {0, 300}},
                       .recipe = *recipe,
                       .features = features,
                       .seed = 7};
    make_case(&test);
    if (features & HR_FEATURE_WINDOW) test.problem.mask.window_left = 30;
    hr_plan *plan;
    hr_plan_options options = {.kernel = row->name};
    cr_assert_eq(hr_plan_create(&test.problem, recipe, &options, &plan), HR_OK, "%s",
                 hr_last_error());
    hr_layer_layouts layouts = hr_plan_layouts(plan);
    hr_packed_layer packed;
    pack_case(&test, &layouts, &packed);
    hr_packed *const operands[3] = {&packed.q, &packed.k, &packed.v};
    /* The query is in the middle of a block of rows; the key in that of a tile of keys, and some
     * queries see it, some do not. */
    poison_row(operands[operand], operand == 0 ? (decode ? 9 : 34) : (decode ? 290 : 251), 13);
    answer_case(&test, &packed);
    guarded_output output = make_output(&test.shape);
    cr_assert_eq(hr_plan_run(plan, &packed, &output.o, &output.lse), HR_OK, "%s", hr_last_error());

    int nans = 0, wrong = count_wrong_nans(&test, &output, &nans);
    cr_expect_gt(nans, 0);
    cr_expect_lt(nans, 2 * queries * 40);
    cr_expect_eq(wrong, 0, "%s, features 0x%x: NaN in %c gives NaN in %d wrong places", row->name,
                 features, "QKV"[operand], wrong);
    hr_plan_free(plan);
    hr_packed_layer_free(&packed);
    free(output.memory);
    free_case(&test);
}

Test(nan, reaches_exactly_the_rows_that_see_it)
{
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (!(hr_isa_mask() >> row->isa & 1) || row->isa == HR_ISA_SM90) continue;
        recipe_list recipes = {.count = 0};
        list_recipes(row, &recipes);
        const hr_dtype dtypes[3] = {row->q_dtype, row->k_dtype, row->v_dtype};
        for (int operand = 0; operand < 3; operand++)
            for (int r = 0; r < recipes.count; r++) {
                if (!holds_nan(dtypes[operand])) continue;
                if (operand != 0)
                    check_poisoned(row, &recipes.recipe[r], HR_FEATURE_CAUSAL, operand);
                if (row->features & HR_FEATURE_WINDOW)
                    check_poisoned(row, &recipes.recipe[r], HR_FEATURE_CAUSAL | HR_FEATURE_WINDOW,
                                   operand);
            }
    }
}

/* A small case with its correct output: the oracle's, rounded to FP32. */
static guarded_output correct_output(check_case *test)
{
    *test = (check_case){.shape = {.batch = 1,
                                   .num_heads = 2,
                                   .num_kv_heads = 1,
                                   .head_dim = 16,
                                   .cu_seqlens_q = {0, 5},
                                   .cu_seqlens_kv = {0, 3}},
                         .features = HR_FEATURE_CAUSAL,
                         .seed = 3};
    cr_assert_eq(hr_recipe_parse("bf16", &test->recipe), HR_OK, "%s", hr_last_error());
    make_case(test);
    hr_packed_layer packed;
    pack_case(test, &(hr_layer_layouts){HR_LAYOUT_ROWS, HR_LAYOUT_ROWS, HR_LAYOUT_ROWS}, &packed);
    answer_case(test, &packed);
    hr_kernel_query query;
    const hr_kernel_info *row;
    cr_assert_eq(hr_kernel_query_from(&test->problem, &test->recipe, &query), HR_OK);
    cr_assert_eq(hr_kernel_find(&query, 1u << HR_ISA_PORTABLE, &row), HR_OK);
    bound_case(test, &packed, row);
    hr_packed_layer_free(&packed);
    guarded_output output = make_output(&test->shape);
    for (int t = 0; t < 5; t++)
        for (int head = 0; head < 2; head++) {
            *lse_of(&output, t, head) = (float)test->lse[t * 2 + head];
            for (int c = 0; c < 16; c++)
                o_row(&output, t, head)[c] = (float)test->o[(t * 2 + head) * 16 + c];
        }
    return output;
}

Test(comparison, fails_on_nan_excess_and_stray_writes)
{
    check_case test;
    guarded_output output = correct_output(&test);
    comparison worst = compare_output(&test, &output);
    cr_assert(worst.o <= 1 && worst.lse <= 1 && guards_intact(&output, &test.shape));

    float *o = o_row(&output, 3, 1) + 7, good = *o;
    double bound = test.o_bound[(3 * 2 + 1) * 16 + 7];
    *o = NAN;
    cr_assert(!(compare_output(&test, &output).o <= 1));
    *o = good + (float)(2 * bound);
    cr_assert(!(compare_output(&test, &output).o <= 1));
    cr_assert_eq(compare_output(&test, &output).token, 3);
    cr_assert_eq(compare_output(&test, &output).channel, 7);
    *o = good;
    float *lse = lse_of(&output, 4, 0);
    good = *lse;
    *lse = NAN;
    cr_assert(!(compare_output(&test, &output).lse <= 1));
    *lse = good;

    /* Row 1 of 5 sees no key of 3: only 0 and -inf will do. */
    cr_assert_eq(*lse_of(&output, 1, 0), -INFINITY);
    *lse_of(&output, 1, 0) = -1e30f;
    cr_assert(!(compare_output(&test, &output).lse <= 1));
    *lse_of(&output, 1, 0) = -INFINITY;
    *o_row(&output, 1, 0) = 1e-30f;
    cr_assert(!(compare_output(&test, &output).o <= 1));
    *o_row(&output, 1, 0) = 0;

    cr_assert(compare_output(&test, &output).o <= 1);
    output.memory[0] = 0;
    cr_assert(!guards_intact(&output, &test.shape));
    free(output.memory);
    free_case(&test);
}
