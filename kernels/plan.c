/*
 * Plans: copy the problem, choose the kernel, have the work split into tasks (plan_tasks.c), and
 * allocate all that runs need.
 */
#include "plan.h"

#include <stdlib.h>
#include <string.h>

#include "dispatch.h"
#include "epilogue.h"
#include "headroom/machine.h"
#include "isa.h"
#include "memory.h"
#include "plan_device.h"
#include "plan_residual.h"
#include "status_internal.h"
#include "threads.h"

static hr_status copy_array(const void *source, size_t count, size_t size, void *out)
{
    void *copy = NULL;
    if (source) {
        copy = hr_alloc(count, size);
        if (!copy) return HR_ERROR_OUT_OF_MEMORY;
        memcpy(copy, source, count * size);
    }
    memcpy(out, &copy, sizeof copy);
    return HR_OK;
}

static hr_status copy_problem(hr_plan *plan, const hr_attention_problem *problem)
{
    size_t offsets = (size_t)problem->batch + 1, heads = (size_t)problem->num_heads;
    plan->problem = *problem;
    HR_TRY(copy_array(problem->cu_seqlens_q, offsets, sizeof(int32_t), &plan->cu_seqlens_q));
    HR_TRY(copy_array(problem->cu_seqlens_kv, offsets, sizeof(int32_t), &plan->cu_seqlens_kv));
    if (problem->paging.page_size)
        HR_TRY(copy_array(problem->paging.block_table,
                          (size_t)problem->batch * (size_t)problem->paging.max_pages,
                          sizeof(int32_t), &plan->block_table));
    HR_TRY(copy_array(problem->alibi_slopes, heads, sizeof(float), &plan->alibi_slopes));
    HR_TRY(copy_array(problem->sinks, heads, sizeof(float), &plan->sinks));
    plan->problem.cu_seqlens_q = plan->cu_seqlens_q;
    plan->problem.cu_seqlens_kv = plan->cu_seqlens_kv;
    plan->problem.paging.block_table = plan->block_table;
    plan->problem.alibi_slopes = plan->alibi_slopes;
    plan->problem.sinks = plan->sinks;
    plan->problem.paging.residual_blocks = NULL;
    return HR_OK;
}

static hr_status choose_kernel(hr_plan *plan, const hr_attention_problem *problem,
                               const hr_recipe *recipe, const hr_plan_options *options,
                               const hr_plan_place *place)
{
    hr_kernel_query query;
    HR_TRY(place->before || place->after ? hr_kernel_query_of_part(problem, recipe, &query)
                                         : hr_kernel_query_from(problem, recipe, &query));
    query.name = options->kernel;
    uint32_t usable;
    HR_TRY(hr_isa_usable(options->device, &usable));
    /* A caller's mask can only narrow: running what the machine lacks would be a crash. */
    uint32_t isa_mask = options->isa_mask ? options->isa_mask & usable : usable;

    const hr_kernel_info *info;
    hr_status status = hr_kernel_find(&query, isa_mask, &info);
    hr_status logged = hr_kernel_log_choice(&query, isa_mask, info);
    /* A log that cannot be written must not hide why no kernel was found: say that again. */
    if (status != HR_OK && logged != HR_OK) return hr_kernel_find(&query, isa_mask, &info);
    if (status == HR_OK) status = logged;
    if (status != HR_OK) return status;
    plan->recipe = query.recipe;
    plan->kernel = hr_kernel_of(info);
    plan->isa_mask = isa_mask;
    return HR_OK;
}

static hr_status allocate_parts(hr_plan *plan)
{
    if (plan->parts == 0) return HR_OK;
    const hr_attention_problem *problem = &plan->problem;
    const size_t vectors = (size_t)problem->cu_seqlens_q[problem->batch] *
                           (size_t)problem->num_heads * (size_t)plan->parts;
    plan->part_o = hr_alloc(vectors, (size_t)problem->head_dim * sizeof *plan->part_o);
    plan->part_lse = hr_alloc(vectors, sizeof *plan->part_lse);
    return plan->part_o && plan->part_lse ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
}

static hr_status copy_place(hr_plan *plan, const hr_plan_place *place, size_t batch)
{
    HR_TRY(copy_array(place->before, batch, sizeof(int32_t), &plan->keys_before));
    return copy_array(place->after, batch, sizeof(int32_t), &plan->keys_after);
}

/* Bytes of a thread's tile for the epilogue: the rows of a group, all heads. */
static size_t group_tile_bytes(const hr_plan *plan)
{
    return (size_t)plan->group_rows * (size_t)plan->problem.num_heads *
           (size_t)plan->problem.head_dim * sizeof(float);
}

static hr_status build_device_plan(hr_plan *plan, const hr_attention_problem *problem,
                                   const hr_plan_options *options)
{
    if (options->kv_splits != 0 && options->kv_splits != 1)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "kv_splits is %d; %s does not split the kv axis, 0 and 1 are accepted",
                       options->kv_splits, plan->kernel->info.name);
    if (options->epilogue)
        return hr_fail(HR_ERROR_UNSUPPORTED, "%s has no epilogue; the CPU's kernels have",
                       plan->kernel->info.name);
    HR_TRY(copy_problem(plan, problem));
    HR_TRY(hr_plan_build_ranges(plan)); /* by which operations are counted */
    plan->flops = hr_plan_count_flops(plan);
    return hr_plan_device_create(plan, options->stream);
}

static hr_status build_plan(hr_plan *plan, const hr_attention_problem *problem,
                            const hr_recipe *recipe, const hr_plan_options *options,
                            const hr_plan_place *place)
{
    if (options->threads < 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "threads is %d; it must be 0 (hr_machine_threads) or at least 1",
                       options->threads);
    if (!options->threads && !hr_machine_threads()) return HR_ERROR_INVALID_ARGUMENT;
    HR_TRY(choose_kernel(plan, problem, recipe, options, place));
    if (options->device == HR_DEVICE_CUDA) return build_device_plan(plan, problem, options);
    if (options->stream)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "a stream was given, but %s runs on the CPU; stream must be NULL",
                       plan->kernel->info.name);
    if (options->kv_splits < 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "kv_splits is %d; it must be 0 (as the problem needs) or at least 1",
                       options->kv_splits);
    HR_TRY(copy_problem(plan, problem));
    HR_TRY(copy_place(plan, place, (size_t)problem->batch));
    plan->kv_splits = options->kv_splits;
    if (options->epilogue) HR_TRY(hr_epilogue_copy(options->epilogue, problem, &plan->epilogue));
    HR_TRY(hr_plan_build_ranges(plan));
    plan->threads = options->threads ? options->threads : hr_threads();
    HR_TRY(hr_plan_build_tasks(plan));
    plan->problem.mask.blocks = NULL; /* the caller's, and all in the ranges now */
    if (plan->epilogue) HR_TRY(hr_plan_build_groups(plan));
    HR_TRY(allocate_parts(plan));

    if (plan->threads > plan->task_count)
        plan->threads = plan->task_count ? (int32_t)plan->task_count : 1;
    plan->args_bytes = hr_plan_args_bytes(plan);
    plan->scratch_stride =
        plan->args_bytes + (plan->kernel->scratch_bytes(problem->head_dim) + 63) / 64 * 64;
    plan->tile_offset = plan->scratch_stride;
    plan->scratch_stride += (group_tile_bytes(plan) + 63) / 64 * 64;
    plan->scratch = hr_alloc((size_t)plan->threads, plan->scratch_stride);
    return plan->scratch ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
}

hr_status hr_plan_create(const hr_attention_problem *problem, const hr_recipe *recipe,
                         const hr_plan_options *options, hr_plan **out)
{
    static const hr_plan_place alone = {0};
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out must not be NULL");
    *out = NULL;
    if (!recipe || !recipe->residual)
        return hr_plan_create_placed(problem, recipe, options, &alone, out);
    hr_recipe normalized = *recipe;
    HR_TRY(hr_recipe_normalize(&normalized));
    return hr_plan_create_residual(problem, &normalized, options, out);
}

hr_status hr_plan_create_placed(const hr_attention_problem *problem, const hr_recipe *recipe,
                                const hr_plan_options *options, const hr_plan_place *place,
                                hr_plan **out)
{
    *out = NULL;
    hr_plan_options defaults = {0};
    hr_plan *plan = hr_alloc(1, sizeof *plan);
    if (!plan) return HR_ERROR_OUT_OF_MEMORY;
    hr_status status = build_plan(plan, problem, recipe, options ? options : &defaults, place);
    if (status != HR_OK) {
        hr_plan_free(plan);
        return status;
    }
    *out = plan;
    return HR_OK;
}

void hr_plan_free(hr_plan *plan)
{
    if (!plan) return;
    hr_plan_device_free(plan->device);
    free(plan->cu_seqlens_q);
    free(plan->cu_seqlens_kv);
    free(plan->block_table);
    free(plan->alibi_slopes);
    free(plan->sinks);
    free(plan->ranges);
    free(plan->range_begin);
    free(plan->tasks);
    free(plan->merges);
    free(plan->part_o);
    free(plan->part_lse);
    free(plan->epilogue);
    free(plan->groups);
    free(plan->keys_before);
    free(plan->keys_after);
    hr_plan_residual_free(plan->residual);
    free(plan->scratch);
    free(plan);
}

const hr_kernel_info *hr_plan_kernel(const hr_plan *plan)
{
    return &plan->kernel->info;
}

hr_layer_layouts hr_plan_layouts(const hr_plan *plan)
{
    const hr_kernel_info *info = &plan->kernel->info;
    return (hr_layer_layouts){.q = info->q_layout, .k = info->k_layout, .v = info->v_layout};
}

double hr_plan_flops(const hr_plan *plan)
{
    return plan->flops;
}
