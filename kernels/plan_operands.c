/*
 * Do packed operands belong to a plan? Everything the kernel relies on is compared, so that a
 * kernel can trust its arguments, and the first difference is named.
 */
#include "device_internal.h"
#include "pack_layout.h"
#include "pack_scale.h"
#include "plan.h"
#include "rope_internal.h"
#include "status_internal.h"

static hr_status check_shape(const char *name, const hr_packed *packed,
                             const hr_attention_problem *problem, int32_t num_heads,
                             const int32_t *cu_seqlens)
{
    const struct {
        const char *field;
        int64_t has, wanted;
    } checks[] = {{"batch", packed->batch, problem->batch},
                  {"num_heads", packed->num_heads, num_heads},
                  {"head_dim", packed->head_dim, problem->head_dim},
                  {"total_tokens", packed->total_tokens, cu_seqlens[problem->batch]}};
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++)
        if (checks[i].has != checks[i].wanted)
            return hr_fail(HR_ERROR_MISMATCH, "%s was packed with %s %lld; the plan has %lld", name,
                           checks[i].field, (long long)checks[i].has, (long long)checks[i].wanted);
    if (!packed->cu_seqlens || !packed->slot_offset || (!packed->codes && packed->total_tokens > 0))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is not a packed operand: it has no %s", name,
                       !packed->cu_seqlens    ? "cu_seqlens"
                       : !packed->slot_offset ? "slot_offset"
                                              : "codes");
    for (int32_t b = 0; b <= problem->batch; b++)
        if (packed->cu_seqlens[b] != cu_seqlens[b])
            return hr_fail(HR_ERROR_MISMATCH,
                           "%s was packed with cu_seqlens[%d] %d; the plan has "
                           "%d",
                           name, b, packed->cu_seqlens[b], cu_seqlens[b]);
    return HR_OK;
}

/* `dynamic` is not compared: it says where scales came from, not how to read them. */
hr_status hr_plan_check_recipe(const char *name, const hr_operand_recipe *has,
                               const hr_operand_recipe *wanted)
{
    if (has->dtype != wanted->dtype)
        return hr_fail(HR_ERROR_MISMATCH, "%s was packed with dtype %s; the plan has %s", name,
                       hr_dtype_name(has->dtype), hr_dtype_name(wanted->dtype));
    if (has->granularity != wanted->granularity)
        return hr_fail(HR_ERROR_MISMATCH, "%s was packed with granularity %s; the plan has %s",
                       name, hr_granularity_name(has->granularity),
                       hr_granularity_name(wanted->granularity));
    if (has->block != wanted->block)
        return hr_fail(HR_ERROR_MISMATCH, "%s was packed with a block of %d; the plan has %d", name,
                       has->block, wanted->block);
    if (has->transform != wanted->transform)
        return hr_fail(HR_ERROR_MISMATCH, "%s was packed with %s and %s; the plan has %s and %s",
                       name, has->transform & HR_TRANSFORM_MEAN ? "mean smoothing" : "no smoothing",
                       has->transform & HR_TRANSFORM_HADAMARD ? "rotation" : "no rotation",
                       wanted->transform & HR_TRANSFORM_MEAN ? "mean smoothing" : "no smoothing",
                       wanted->transform & HR_TRANSFORM_HADAMARD ? "rotation" : "no rotation");
    return HR_OK;
}

hr_status hr_plan_check_rope(const char *name, const hr_rope *has, const hr_rope *wanted)
{
    if (hr_rope_equal(has, wanted)) return HR_OK;
    return hr_fail(HR_ERROR_MISMATCH,
                   "%s was rotated with rotary_dim %d, theta %g%s; the plan has rotary_dim %d, "
                   "theta %g%s",
                   name, has->rotary_dim, (double)has->theta,
                   has->interleaved ? ", interleaved" : "", wanted->rotary_dim,
                   (double)wanted->theta, wanted->interleaved ? ", interleaved" : "");
}

static hr_status check_storage(const char *name, const hr_packed *packed, hr_layout layout,
                               hr_device device)
{
    HR_TRY(hr_device_expect(name, packed->device, device));
    if (packed->layout != layout)
        return hr_fail(HR_ERROR_MISMATCH, "%s was packed in layout %s; the plan's kernel reads %s",
                       name, hr_layout_name(packed->layout), hr_layout_name(layout));
    int64_t scales = hr_scale_count(&packed->recipe, packed->num_heads, packed->head_dim,
                                    packed->batch, packed->cu_seqlens);
    if (packed->scale_count != scales || (scales > 0 && !packed->scale))
        return hr_fail(HR_ERROR_MISMATCH, "%s has %lld scales; its recipe and shape need %lld",
                       name, packed->scale ? (long long)packed->scale_count : 0, (long long)scales);
    if (packed->recipe.dtype == HR_DTYPE_U4 && scales > 0 && !packed->zero_point)
        return hr_fail(HR_ERROR_MISMATCH, "%s is u4 but has no zero points", name);
    size_t tile_bytes = hr_layout_tile_bytes(layout, packed->recipe.dtype, packed->head_dim);
    size_t needed = (size_t)(packed->total_slots / hr_layout_tile_tokens(layout)) * tile_bytes;
    if (packed->head_bytes < needed)
        return hr_fail(HR_ERROR_MISMATCH, "%s has %zu bytes a head; its slots need %zu", name,
                       packed->head_bytes, needed);
    return HR_OK;
}

hr_status hr_plan_check_operands(const hr_plan *plan, const hr_plan_io *io)
{
    static const hr_rope no_rope = {0};
    const hr_attention_problem *problem = &plan->problem;
    const hr_kernel_info *info = &plan->kernel->info;
    const hr_device device = plan->device ? HR_DEVICE_CUDA : HR_DEVICE_CPU;
    const struct {
        const char *name;
        const hr_packed *packed;
        const hr_operand_recipe *recipe;
        hr_layout layout;
        int32_t num_heads;
        const int32_t *cu_seqlens;
        const hr_rope *rope;
    } checks[] = {{"q", io->q, &plan->recipe.q, info->q_layout, problem->num_heads,
                   problem->cu_seqlens_q, &problem->rope},
                  {"k", io->k, &plan->recipe.k, info->k_layout, problem->num_kv_heads,
                   problem->cu_seqlens_kv, &problem->rope},
                  {"v", io->v, &plan->recipe.v, info->v_layout, problem->num_kv_heads,
                   problem->cu_seqlens_kv, &no_rope}};
    for (int i = 0; i < (io->cache ? 1 : 3); i++) {
        if (checks[i].packed->operand != (hr_operand)i)
            return hr_fail(HR_ERROR_MISMATCH, "%s was packed as another operand", checks[i].name);
        HR_TRY(check_shape(checks[i].name, checks[i].packed, problem, checks[i].num_heads,
                           checks[i].cu_seqlens));
        HR_TRY(hr_plan_check_recipe(checks[i].name, &checks[i].packed->recipe, checks[i].recipe));
        HR_TRY(hr_plan_check_rope(checks[i].name, &checks[i].packed->rope, checks[i].rope));
        HR_TRY(check_storage(checks[i].name, checks[i].packed, checks[i].layout, device));
    }
    if (io->cache) HR_TRY(hr_plan_check_cache(plan, io));
    uint64_t k_seed =
        io->cache ? hr_kv_cache_view(io->cache, HR_OPERAND_K).hadamard_seed : io->k->hadamard_seed;
    if (io->q->hadamard_seed != k_seed)
        return hr_fail(HR_ERROR_MISMATCH,
                       "q was rotated with seed %llu and k with seed %llu; they must be equal",
                       (unsigned long long)io->q->hadamard_seed, (unsigned long long)k_seed);
    if (plan->recipe.k.transform & HR_TRANSFORM_MEAN && !io->q->lse_bias && io->q->total_tokens > 0)
        return hr_fail(HR_ERROR_MISMATCH,
                       "k was smoothed by its mean, but q has no lse_bias: pack q with k_mean");
    return HR_OK;
}
