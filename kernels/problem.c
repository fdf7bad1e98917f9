/*
 * The attention problem: defaults, validation and what it asks of a kernel.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kv_cache_internal.h"
#include "pack_layout.h"
#include "plan.h"
#include "status_internal.h"

void hr_attention_problem_init(hr_attention_problem *problem, int32_t num_heads,
                               int32_t num_kv_heads, int32_t head_dim)
{
    memset(problem, 0, sizeof *problem);
    problem->batch = 1;
    problem->num_heads = num_heads;
    problem->num_kv_heads = num_kv_heads;
    problem->head_dim = head_dim;
    problem->softmax_scale = head_dim > 0 ? 1.0f / sqrtf((float)head_dim) : 1.0f;
    problem->mask.window_left = -1;
    problem->mask.window_right = -1;
}

hr_status hr_cu_seqlens_check(const char *name, const int32_t *cu_seqlens, int32_t batch)
{
    if (!cu_seqlens) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s must not be NULL", name);
    if (cu_seqlens[0] != 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s[0] is %d; it must be 0", name, cu_seqlens[0]);
    for (int32_t b = 0; b < batch; b++)
        if (cu_seqlens[b + 1] < cu_seqlens[b])
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "%s[%d] is %d, less than %s[%d], which is %d; it must not decrease",
                           name, b + 1, cu_seqlens[b + 1], name, b, cu_seqlens[b]);
    return HR_OK;
}

static hr_status check_shape(const hr_attention_problem *problem)
{
    const struct {
        const char *name;
        int32_t value;
    } positive[] = {{"batch", problem->batch},
                    {"num_heads", problem->num_heads},
                    {"num_kv_heads", problem->num_kv_heads},
                    {"head_dim", problem->head_dim}};
    for (size_t i = 0; i < sizeof positive / sizeof positive[0]; i++)
        if (positive[i].value < 1)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is %d; it must be at least 1",
                           positive[i].name, positive[i].value);
    if (problem->num_heads % problem->num_kv_heads != 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "num_heads is %d, which num_kv_heads, %d, does not divide",
                       problem->num_heads, problem->num_kv_heads);
    HR_TRY(hr_cu_seqlens_check("cu_seqlens_q", problem->cu_seqlens_q, problem->batch));
    return hr_cu_seqlens_check("cu_seqlens_kv", problem->cu_seqlens_kv, problem->batch);
}

static hr_status check_mask(const hr_mask *mask)
{
    if (mask->window_left < -1)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "window_left is %d; it must be -1 (no limit) or at least 0",
                       mask->window_left);
    if (mask->window_right < -1)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "window_right is %d; it must be -1 (no limit) or at least 0",
                       mask->window_right);
    if (mask->causal && mask->window_right > 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "window_right is %d with a causal mask; it must be -1 or 0",
                       mask->window_right);
    if (mask->keep < 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "keep is %d; it must be 0 (none) or more",
                       mask->keep);
    return HR_OK;
}

static hr_status check_logits(const hr_attention_problem *problem)
{
    if (!(isfinite(problem->softmax_scale) && problem->softmax_scale > 0))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "softmax_scale is %g; it must be finite and greater than 0",
                       (double)problem->softmax_scale);
    if (!(isfinite(problem->softcap) && problem->softcap >= 0))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "softcap is %g; it must be 0 (none) or finite and greater than 0",
                       (double)problem->softcap);
    for (int32_t head = 0; head < problem->num_heads; head++) {
        if (problem->alibi_slopes && !isfinite(problem->alibi_slopes[head]))
            return hr_fail(HR_ERROR_INVALID_ARGUMENT, "alibi_slopes[%d] is %g; it must be finite",
                           head, (double)problem->alibi_slopes[head]);
        if (problem->sinks && !(problem->sinks[head] < INFINITY))
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "sinks[%d] is %g; it must be finite, or -infinity for none", head,
                           (double)problem->sinks[head]);
    }
    return HR_OK;
}

hr_status hr_attention_problem_check(const hr_attention_problem *problem)
{
    if (!problem) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "problem must not be NULL");
    HR_TRY(check_shape(problem));
    HR_TRY(check_mask(&problem->mask));
    if (problem->mask.blocks) HR_TRY(hr_block_mask_check(problem->mask.blocks, problem));
    HR_TRY(check_logits(problem));
    HR_TRY(hr_rope_check(&problem->rope, problem->head_dim));
    if (problem->paging.page_size == 0) return HR_OK;
    return hr_paging_check(&problem->paging, problem->batch, problem->cu_seqlens_kv, 0);
}

int32_t hr_longest_sequence(const int32_t *cu_seqlens, int32_t batch)
{
    int32_t longest = 0;
    for (int32_t b = 0; b < batch; b++)
        if (cu_seqlens[b + 1] - cu_seqlens[b] > longest)
            longest = cu_seqlens[b + 1] - cu_seqlens[b];
    return longest;
}

static uint32_t length_features(const int32_t *cu_seqlens, int32_t batch)
{
    int32_t first = cu_seqlens[1] - cu_seqlens[0];
    for (int32_t b = 0; b < batch; b++) {
        int32_t length = cu_seqlens[b + 1] - cu_seqlens[b];
        if (length == 0 || length != first) return HR_FEATURE_VARLEN;
    }
    return 0;
}

hr_status hr_kernel_query_from(const hr_attention_problem *problem, const hr_recipe *recipe,
                               hr_kernel_query *out)
{
    if (!recipe || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "recipe and out must not be NULL");
    HR_TRY(hr_attention_problem_check(problem));
    return hr_kernel_query_of_part(problem, recipe, out);
}

hr_status hr_kernel_query_of_part(const hr_attention_problem *problem, const hr_recipe *recipe,
                                  hr_kernel_query *out)
{
    memset(out, 0, sizeof *out);
    out->recipe = *recipe;
    HR_TRY(hr_recipe_normalize(&out->recipe));
    out->head_dim = problem->head_dim;
    out->seqlen_q = hr_longest_sequence(problem->cu_seqlens_q, problem->batch);

    const hr_mask *mask = &problem->mask;
    uint32_t features = length_features(problem->cu_seqlens_q, problem->batch) |
                        length_features(problem->cu_seqlens_kv, problem->batch);
    if (mask->causal) features |= HR_FEATURE_CAUSAL;
    if (mask->window_left >= 0 || (mask->window_right >= 0 && !mask->causal))
        features |= HR_FEATURE_WINDOW;
    if (mask->blocks) features |= HR_FEATURE_BLOCK_SPARSE;
    /* Where nothing else hides keys, keeping some changes nothing. */
    if (mask->keep > 0 && features & (HR_FEATURE_WINDOW | HR_FEATURE_BLOCK_SPARSE))
        features |= HR_FEATURE_KEPT;
    if (problem->num_heads != problem->num_kv_heads) features |= HR_FEATURE_GQA;
    if (problem->softcap > 0) features |= HR_FEATURE_SOFTCAP;
    if (problem->alibi_slopes) features |= HR_FEATURE_ALIBI;
    if (problem->sinks) features |= HR_FEATURE_SINKS;
    if (problem->rope.rotary_dim > 0) features |= HR_FEATURE_ROPE;
    if (problem->paging.page_size > 0) {
        features |= HR_FEATURE_PAGED;
        out->k_layout = problem->paging.k_layout;
        out->v_layout = problem->paging.v_layout;
        HR_TRY(hr_layout_check(out->k_layout, HR_OPERAND_K, out->recipe.k.dtype));
        HR_TRY(hr_layout_check(out->v_layout, HR_OPERAND_V, out->recipe.v.dtype));
    }
    out->features = features;
    return HR_OK;
}

hr_kernel_args hr_plan_sequence_args(const hr_plan *plan, int32_t sequence)
{
    hr_kernel_args args = hr_sequence_args(&plan->problem, sequence);
    if (plan->keys_after) args.shift += plan->keys_after[sequence];
    return args;
}

hr_kernel_args hr_sequence_args(const hr_attention_problem *problem, int32_t sequence)
{
    const hr_mask *mask = &problem->mask;
    hr_kernel_args args = {.heads = 1};
    args.head_dim = problem->head_dim;
    args.seqlen_q = problem->cu_seqlens_q[sequence + 1] - problem->cu_seqlens_q[sequence];
    args.seqlen_kv = problem->cu_seqlens_kv[sequence + 1] - problem->cu_seqlens_kv[sequence];
    args.shift = args.seqlen_kv - args.seqlen_q;
    args.window_left = mask->window_left >= 0 ? mask->window_left : HR_WINDOW_NONE;
    args.window_right = mask->window_right >= 0 ? mask->window_right : HR_WINDOW_NONE;
    args.kept_right = HR_WINDOW_NONE;
    if (mask->causal) args.window_right = args.kept_right = 0;
    args.softmax_scale = problem->softmax_scale;
    args.softcap = problem->softcap;
    return args;
}
