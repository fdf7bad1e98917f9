/*
 * Attention with a recipe for each KV head, as an audit chooses them (headroom/choice.h). The heads
 * of a layer that have a recipe in common make one part: they are packed together and run through
 * one plan, part after part on all threads.
 *
 *     create -> pack -> (start, any number of times) -> wait or fetch -> free
 *
 * Every head's O and LSE are what a plan of its recipe over all heads would give; the same bits,
 * unless scales are computed per tensor or a kv axis is split, which look at the heads of the plan.
 */
#ifndef HEADROOM_MIXED_H
#define HEADROOM_MIXED_H

#include "headroom/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hr_mixed hr_mixed; /* opaque; one run at a time */

/*
 * problem as for hr_plan_create, without paging. KV head h, with the query heads that read it, has
 * recipes[of_head[h]]; of_head has num_kv_heads entries in 0 .. recipe_count - 1. Recipes that no
 * head has are not looked at. options may be NULL; kernel and epilogue must be. An entry of of_head
 * that is out of range is HR_ERROR_INVALID_ARGUMENT, paging HR_ERROR_UNSUPPORTED.
 */
HR_API hr_status hr_mixed_create(const hr_attention_problem *problem, const hr_recipe *recipes,
                                 int32_t recipe_count, const int32_t *of_head,
                                 const hr_plan_options *options, hr_mixed **out) HR_NODISCARD;
HR_API void hr_mixed_free(hr_mixed *mixed);

/* What one part is; pointers belong to the hr_mixed. */
typedef struct hr_mixed_part {
    int32_t recipe;          /* which of the recipes */
    int32_t num_kv_heads;    /* of the part */
    const int32_t *kv_heads; /* their numbers in the problem, ascending */
    const hr_kernel_info *kernel;
    int64_t kv_bytes; /* of packed K and V, scales included; 0 before hr_mixed_pack */
} hr_mixed_part;

HR_API int32_t hr_mixed_part_count(const hr_mixed *mixed);
HR_API hr_mixed_part hr_mixed_get_part(const hr_mixed *mixed, int32_t index);

/* Floating-point operations the mask leaves, as hr_plan_flops. */
HR_API double hr_mixed_flops(const hr_mixed *mixed);

/*
 * Packs all heads of q, k and v [total, heads, head_dim], F32, F16 or BF16, each part with its
 * recipe. scales: NULL, or for each recipe those of the whole layer, as hr_profile_scales gives
 * them (zeroed where a recipe needs none). Packs anew when called again.
 */
HR_API hr_status hr_mixed_pack(hr_mixed *mixed, const hr_tensor *q, const hr_tensor *k,
                               const hr_tensor *v, const hr_layer_scales *scales) HR_NODISCARD;

/*
 * As those of hr_device_run. fetch puts the heads in the problem's order: o F32 [total_q,
 * num_heads, head_dim] and lse F32 [total_q, num_heads], contiguous, either NULL.
 */
HR_API hr_status hr_mixed_start(hr_mixed *mixed) HR_NODISCARD;
HR_API hr_status hr_mixed_wait(hr_mixed *mixed) HR_NODISCARD;
HR_API hr_status hr_mixed_fetch(hr_mixed *mixed, float *o, float *lse) HR_NODISCARD;

#ifdef __cplusplus
}
#endif

#endif
