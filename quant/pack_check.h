/*
 * Validation of what packing is given; every message names the value and what would be accepted.
 */
#ifndef HEADROOM_PACK_CHECK_H
#define HEADROOM_PACK_CHECK_H

#include "headroom/pack.h"

/* "q", "k" or "v". */
const char *hr_operand_name(hr_operand operand);

/* head_dim, dtype, granularity, block, static or dynamic and transform go together. */
hr_status hr_pack_check_recipe(hr_operand operand, const hr_operand_recipe *recipe,
                               int64_t head_dim) HR_NODISCARD;

/* cu_seqlens [batch + 1] starts at 0, never falls and ends at total_tokens. */
hr_status hr_pack_check_seqlens(const char *name, int32_t batch, const int32_t *cu_seqlens,
                                int64_t total_tokens) HR_NODISCARD;

/* Static scales are given where the recipe has such, are valid, and are NULL otherwise. */
hr_status hr_pack_check_static_scales(const char *name, const hr_operand_recipe *recipe,
                                      int64_t heads, int64_t head_dim,
                                      const float *scale) HR_NODISCARD;

/* mean is NULL or [heads, head_dim] finite values. */
hr_status hr_pack_check_mean(const char *name, const float *mean, int64_t heads,
                             int64_t head_dim) HR_NODISCARD;

/* All of hr_pack's arguments. */
hr_status hr_pack_check(hr_operand operand, const hr_operand_recipe *recipe, const hr_tensor *x,
                        const hr_pack_options *options) HR_NODISCARD;

#endif
