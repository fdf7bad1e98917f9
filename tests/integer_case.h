/*
 * Hand-made integer operands for tests of the integer kernels: codes and scales are set directly,
 * so that a test can put them at the ends of their ranges. One head, one sequence, every key and
 * query with its own scale. Every kernel of the recipe that this machine has runs on the same data
 * and must give the same bits.
 */
#ifndef HEADROOM_TESTS_INTEGER_CASE_H
#define HEADROOM_TESTS_INTEGER_CASE_H

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/attention.h"
#include "kernel.h"
#include "test_random.h"

typedef struct integer_case {
    hr_recipe recipe;
    hr_attention_problem problem;
    int32_t cu_seqlens_q[2], cu_seqlens_kv[2];
    hr_packed_layer packed; /* layout rows; set codes and scales, then run_case */
    float *o, *lse;         /* of the last run_case */
} integer_case;

static inline hr_packed pack_ones(hr_operand operand, const hr_operand_recipe *recipe,
                                  const int32_t *cu_seqlens, int32_t head_dim)
{
    const int64_t extent[3] = {cu_seqlens[1], 1, head_dim};
    int64_t count = extent[0] * head_dim;
    float *data = malloc((size_t)count * sizeof *data);
    cr_assert_not_null(data);
    for (int64_t i = 0; i < count; i++)
        data[i] = 1;
    hr_tensor tensor = hr_tensor_view(HR_DTYPE_F32, 3, extent, data);
    hr_pack_options options = {.batch = 1, .cu_seqlens = cu_seqlens};
    hr_packed packed;
    cr_assert_eq(hr_pack(operand, recipe, &tensor, &options, &packed), HR_OK, "%s",
                 hr_last_error());
    free(data);
    return packed;
}

/* The recipe's scales must be dynamic and without smoothing or rotation. */
static inline void make_integer_case(integer_case *c, const char *recipe, int32_t seqlen_q,
                                     int32_t seqlen_kv, int32_t head_dim)
{
    memset(c, 0, sizeof *c);
    cr_assert_eq(hr_recipe_parse(recipe, &c->recipe), HR_OK, "%s", hr_last_error());
    c->cu_seqlens_q[1] = seqlen_q;
    c->cu_seqlens_kv[1] = seqlen_kv;
    hr_attention_problem_init(&c->problem, 1, 1, head_dim);
    c->problem.batch = 1;
    c->problem.cu_seqlens_q = c->cu_seqlens_q;
    c->problem.cu_seqlens_kv = c->cu_seqlens_kv;
    c->problem.softmax_scale = 1;
    c->packed.q = pack_ones(HR_OPERAND_Q, &c->recipe.q, c->cu_seqlens_q, head_dim);
    c->packed.k = pack_ones(HR_OPERAND_K, &c->recipe.k, c->cu_seqlens_kv, head_dim);
    c->packed.v = pack_ones(HR_OPERAND_V, &c->recipe.v, c->cu_seqlens_kv, head_dim);
}

static inline void free_integer_case(integer_case *c)
{
    hr_packed_layer_free(&c->packed);
    free(c->o);
    free(c->lse);
}

/* All I8 codes of one token, and its scale (recipes with a scale a token). */
static inline void set_token(hr_packed *packed, int64_t token, int code, float scale)
{
    memset((int8_t *)packed->codes + token * packed->head_dim, code, (size_t)packed->head_dim);
    packed->scale[token] = scale;
}

static inline int8_t *codes_of(hr_packed *packed, int64_t token)
{
    return (int8_t *)packed->codes + token * packed->head_dim;
}

static inline void set_random_codes(hr_packed *packed, uint64_t seed)
{
    test_random random = {seed};
    int8_t *codes = packed->codes;
    for (int64_t i = 0; i < packed->total_tokens * packed->head_dim; i++)
        codes[i] = (int8_t)((int)(random_bits(&random) % 255) - 127);
}

/* isa_mask 0: all of the machine's. */
static inline void run_one(const integer_case *c, const char *kernel, uint32_t isa_mask, float *o,
                           float *lse)
{
    hr_plan *plan;
    hr_plan_options options = {.kernel = kernel, .isa_mask = isa_mask};
    cr_assert_eq(hr_plan_create(&c->problem, &c->recipe, &options, &plan), HR_OK, "%s",
                 hr_last_error());
    const hr_layer_layouts layouts = hr_plan_layouts(plan);
    hr_packed_layer packed;
    cr_assert_eq(hr_packed_relayout(&c->packed.q, layouts.q, &packed.q), HR_OK);
    cr_assert_eq(hr_packed_relayout(&c->packed.k, layouts.k, &packed.k), HR_OK);
    cr_assert_eq(hr_packed_relayout(&c->packed.v, layouts.v, &packed.v), HR_OK);
    const int64_t o_shape[3] = {c->cu_seqlens_q[1], 1, c->problem.head_dim};
    hr_tensor o_view = hr_tensor_view(HR_DTYPE_F32, 3, o_shape, o);
    hr_tensor lse_view = hr_tensor_view(HR_DTYPE_F32, 2, o_shape, lse);
    cr_assert_eq(hr_plan_run(plan, &packed, &o_view, &lse_view), HR_OK, "%s", hr_last_error());
    hr_packed_layer_free(&packed);
    hr_plan_free(plan);
}

static inline bool runs_here(const integer_case *c, const hr_kernel_info *row)
{
    hr_kernel_query query;
    const hr_kernel_info *found;
    cr_assert_eq(hr_kernel_query_from(&c->problem, &c->recipe, &query), HR_OK);
    query.name = row->name;
    return hr_kernel_find(&query, hr_isa_mask(), &found) == HR_OK;
}

/*
 * Runs every kernel that can, with and without AVX512-FP16, which the VNNI kernels use if it is
 * there; fails unless they agree bit for bit. Fills c->o and c->lse.
 */
static inline void run_integer_case(integer_case *c)
{
    const size_t rows = (size_t)c->cu_seqlens_q[1];
    const size_t o_bytes = rows * (size_t)c->problem.head_dim * sizeof(float);
    const size_t lse_bytes = rows * sizeof(float);
    float *o = malloc(o_bytes), *lse = malloc(lse_bytes);
    free(c->o);
    free(c->lse);
    c->o = malloc(o_bytes);
    c->lse = malloc(lse_bytes);
    cr_assert(o && lse && c->o && c->lse);
    int ran = 0;
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (!runs_here(c, row)) continue;
        const uint32_t masks[2] = {0, ~(UINT32_C(1) << HR_ISA_AVX512FP16)};
        for (int m = 0; m < 2; m++) {
            run_one(c, row->name, masks[m], ran ? o : c->o, ran ? lse : c->lse);
            if (ran++ == 0) continue;
            cr_expect_eq(memcmp(o, c->o, o_bytes), 0, "O of %s has other bits", row->name);
            cr_expect_eq(memcmp(lse, c->lse, lse_bytes), 0, "LSE of %s has other bits", row->name);
        }
    }
    cr_assert_gt(ran, 0);
    free(o);
    free(lse);
}

/* Relative L2 error of O against the FP64 oracle on the dequantized operands. */
static inline double error_of_o(const integer_case *c)
{
    const int64_t head_dim = c->problem.head_dim, tokens_q = c->cu_seqlens_q[1];
    float *dequantized[3];
    hr_tensor views[3];
    const hr_packed *operands[3] = {&c->packed.q, &c->packed.k, &c->packed.v};
    for (int i = 0; i < 3; i++) {
        const int64_t extent[3] = {operands[i]->total_tokens, 1, head_dim};
        dequantized[i] = malloc((size_t)(extent[0] * head_dim) * sizeof(float));
        cr_assert_not_null(dequantized[i]);
        cr_assert_eq(hr_unpack(operands[i], dequantized[i]), HR_OK, "%s", hr_last_error());
        views[i] = hr_tensor_view(HR_DTYPE_F32, 3, extent, dequantized[i]);
    }
    double *o = malloc((size_t)(tokens_q * head_dim) * sizeof *o);
    cr_assert_not_null(o);
    cr_assert_eq(hr_reference_attention(&c->problem, &views[0], &views[1], &views[2], o, NULL),
                 HR_OK, "%s", hr_last_error());
    double error = 0, norm = 0;
    for (int64_t i = 0; i < tokens_q * head_dim; i++) {
        error += ((double)c->o[i] - o[i]) * ((double)c->o[i] - o[i]);
        norm += o[i] * o[i];
    }
    free(o);
    for (int i = 0; i < 3; i++)
        free(dequantized[i]);
    return sqrt(error / norm);
}

#endif
