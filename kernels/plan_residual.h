/*
 * Plans over a cache with a residual: two plans, of the quantized tokens and of the recent ones.
 */
#ifndef HEADROOM_PLAN_RESIDUAL_H
#define HEADROOM_PLAN_RESIDUAL_H

#include "plan.h"

/* Where a plan's keys lie in their sequences: how many others come before and after, [batch]. */
typedef struct hr_plan_place {
    const int32_t *before, *after; /* NULL: none */
} hr_plan_place;

/* hr_plan_create for the keys of a place; the arrays are copied. */
hr_status hr_plan_create_placed(const hr_attention_problem *problem, const hr_recipe *recipe,
                                const hr_plan_options *options, const hr_plan_place *place,
                                hr_plan **out) HR_NODISCARD;

/* The plan of a normalized recipe with a residual. */
hr_status hr_plan_create_residual(const hr_attention_problem *problem, const hr_recipe *recipe,
                                  const hr_plan_options *options, hr_plan **out) HR_NODISCARD;

/* q, cache and o of the tensors are there. */
hr_status hr_plan_run_residual(const hr_plan *plan, const hr_plan_tensors *tensors) HR_NODISCARD;

/* What follows attention; NULL: nothing. */
const hr_epilogue *hr_plan_residual_epilogue(const hr_plan_residual *residual);

void hr_plan_residual_free(hr_plan_residual *residual);

#endif
