/*
 * A small attention problem with packed operands and outputs, for the tests of plans.
 */
#ifndef HEADROOM_PLAN_SETUP_H
#define HEADROOM_PLAN_SETUP_H

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "check_fill.h"
#include "headroom/attention.h"

typedef struct plan_setup {
    hr_attention_problem problem;
    hr_recipe recipe;
    int32_t cu_seqlens_q[4], cu_seqlens_kv[4];
    hr_tensor q, k, v;
    hr_packed_layer packed;
    hr_tensor o, lse;
} plan_setup;

static inline hr_tensor setup_tensor(int ndim, int64_t tokens, int64_t heads, int64_t head_dim,
                                     check_random *random)
{
    const int64_t shape[3] = {tokens, heads, head_dim};
    hr_tensor tensor = hr_tensor_view(HR_DTYPE_F32, ndim, shape, NULL);
    float *data = calloc((size_t)hr_tensor_size(&tensor) + 1, sizeof *data);
    cr_assert_not_null(data);
    for (int64_t i = 0; random && i < hr_tensor_size(&tensor); i++)
        data[i] = (float)random_normal(random);
    tensor.data = data;
    return tensor;
}

/* Gaussian data; the cumulative lengths of the setup are set by the caller first. */
static inline void setup_fill(plan_setup *s, const char *recipe, int32_t batch, int32_t heads,
                              int32_t kv_heads, int32_t head_dim)
{
    check_random random = {5};
    cr_assert_eq(hr_recipe_parse(recipe, &s->recipe), HR_OK, "%s", hr_last_error());
    hr_attention_problem_init(&s->problem, heads, kv_heads, head_dim);
    s->problem.batch = batch;
    s->problem.cu_seqlens_q = s->cu_seqlens_q;
    s->problem.cu_seqlens_kv = s->cu_seqlens_kv;
    const int32_t total_q = s->cu_seqlens_q[batch], total_kv = s->cu_seqlens_kv[batch];
    s->q = setup_tensor(3, total_q, heads, head_dim, &random);
    s->k = setup_tensor(3, total_kv, kv_heads, head_dim, &random);
    s->v = setup_tensor(3, total_kv, kv_heads, head_dim, &random);
    s->o = setup_tensor(3, total_q, heads, head_dim, NULL);
    s->lse = setup_tensor(2, total_q, heads, 0, NULL);
}

static inline void setup_pack(plan_setup *s, const hr_layer_layouts *layouts)
{
    hr_packed_layer_free(&s->packed);
    cr_assert_eq(hr_pack_layer(&s->recipe, layouts, &s->q, &s->k, &s->v, s->problem.batch,
                               s->cu_seqlens_q, s->cu_seqlens_kv, NULL, &s->packed),
                 HR_OK, "%s", hr_last_error());
}

static inline hr_plan *setup_plan(plan_setup *s, const hr_plan_options *options)
{
    hr_plan *plan;
    cr_assert_eq(hr_plan_create(&s->problem, &s->recipe, options, &plan), HR_OK, "%s",
                 hr_last_error());
    return plan;
}

static inline void setup_run(plan_setup *s, hr_plan *plan)
{
    cr_assert_eq(hr_plan_run(plan, &s->packed, &s->o, &s->lse), HR_OK, "%s", hr_last_error());
}

static inline size_t o_bytes(const plan_setup *s)
{
    return (size_t)hr_tensor_size(&s->o) * sizeof(float);
}

static inline size_t lse_bytes(const plan_setup *s)
{
    return (size_t)hr_tensor_size(&s->lse) * sizeof(float);
}

static inline void setup_free(plan_setup *s)
{
    hr_packed_layer_free(&s->packed);
    free(s->q.data);
    free(s->k.data);
    free(s->v.data);
    free(s->o.data);
    free(s->lse.data);
    free(s);
}

/* One sequence of the given lengths. */
static inline plan_setup *setup_make(const char *recipe, int32_t heads, int32_t kv_heads,
                                     int32_t head_dim, int32_t seqlen_q, int32_t seqlen_kv)
{
    plan_setup *s = calloc(1, sizeof *s);
    cr_assert_not_null(s);
    s->cu_seqlens_q[1] = seqlen_q;
    s->cu_seqlens_kv[1] = seqlen_kv;
    setup_fill(s, recipe, 1, heads, kv_heads, head_dim);
    return s;
}

enum { SETUP_GROUP = 32 }; /* channels a group of scales has in recipe_for */

/* The granularity of recipe_for: TOKEN where the kernel takes it, else the first it takes. */
static inline hr_granularity granularity_for(uint32_t accepted)
{
    if (accepted >> HR_GRANULARITY_TOKEN & 1) return HR_GRANULARITY_TOKEN;
    return (hr_granularity)__builtin_ctz(accepted);
}

/* head_dim, or the next that has whole groups where the kernel takes scales in groups only. */
static inline int32_t head_dim_for(const hr_kernel_info *row, int32_t head_dim)
{
    const bool groups = granularity_for(row->k_granularities) == HR_GRANULARITY_GROUP;
    return groups ? (head_dim + SETUP_GROUP - 1) / SETUP_GROUP * SETUP_GROUP : head_dim;
}

/* A recipe for a kernel's dtypes, with scales that need no profile. */
static inline void recipe_for(const hr_kernel_info *row, hr_recipe *recipe)
{
    const hr_dtype dtypes[3] = {row->q_dtype, row->k_dtype, row->v_dtype};
    const uint32_t masks[3] = {row->q_granularities, row->k_granularities, row->v_granularities};
    hr_operand_recipe *operands[3] = {&recipe->q, &recipe->k, &recipe->v};
    memset(recipe, 0, sizeof *recipe);
    for (int i = 0; i < 3; i++) {
        const hr_granularity granularity = granularity_for(masks[i]);
        *operands[i] =
            (hr_operand_recipe){.dtype = dtypes[i],
                                .granularity = granularity,
                                .block = granularity == HR_GRANULARITY_GROUP ? SETUP_GROUP : 0,
                                .dynamic = granularity != HR_GRANULARITY_NONE};
    }
    recipe->p.dtype = row->p_dtype;
    cr_assert_eq(hr_recipe_normalize(recipe), HR_OK, "%s", hr_last_error());
}

#endif
