/*
 * Plans: copy the problem, choose the kernel, split the work into tasks.
 *
 * Tasks are sorted longest first, so that with dynamic scheduling no thread starts a long task when
 * the others are about to finish; equal ones keep the order (sequence, head, row), which reads a
 * head's K and V from cache for all its query tiles.
 */
#include "plan.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"
#include "isa.h"
#include "memory.h"
#include "status_internal.h"

static int64_t task_work(const hr_task *task)
{
    return (int64_t)(task->q_end - task->q_begin) * (task->kv_end - task->kv_begin);
}

static int compare_tasks(const void *left, const void *right)
{
    const hr_task *a = left, *b = right;
    int64_t work_a = task_work(a), work_b = task_work(b);
    if (work_a != work_b) return work_a > work_b ? -1 : 1;
    if (a->sequence != b->sequence) return a->sequence < b->sequence ? -1 : 1;
    if (a->head != b->head) return a->head < b->head ? -1 : 1;
    return a->q_begin < b->q_begin ? -1 : a->q_begin > b->q_begin;
}

/*
 * The keys that rows [q_begin, q_end) see. Both ends of a row's range grow with the row, so the
 * union runs from the first row's start to the last row's end, unless a window leaves gaps.
 */
static void set_key_range(hr_task *task, const hr_kernel_args *args, int32_t tile_kv)
{
    int32_t first_lo, first_hi, last_lo, last_hi;
    hr_kernel_row_range(args, task->q_begin, &first_lo, &first_hi);
    hr_kernel_row_range(args, task->q_end - 1, &last_lo, &last_hi);
    if (first_lo >= last_hi) return;
    task->kv_begin = first_lo / tile_kv * tile_kv;
    task->kv_end = last_hi;
}

static int64_t visible_pairs(const hr_kernel_args *args)
{
    int64_t pairs = 0;
    for (int32_t row = 0; row < args->seqlen_q; row++) {
        int32_t lo, hi;
        hr_kernel_row_range(args, row, &lo, &hi);
        if (hi > lo) pairs += hi - lo;
    }
    return pairs;
}

hr_status hr_plan_build_tasks(hr_plan *plan)
{
    const hr_attention_problem *problem = &plan->problem;
    const int32_t tile_q = plan->kernel->info.tile_q, tile_kv = plan->kernel->info.tile_kv;
    int64_t tiles = 0;
    double pairs = 0;
    for (int32_t b = 0; b < problem->batch; b++) {
        hr_kernel_args args = hr_sequence_args(problem, b);
        tiles += args.seqlen_q / tile_q + (args.seqlen_q % tile_q != 0);
        pairs += (double)visible_pairs(&args);
    }
    plan->flops = 4.0 * problem->head_dim * problem->num_heads * pairs;
    plan->task_count = tiles * problem->num_heads;
    plan->tasks = hr_alloc((size_t)plan->task_count, sizeof *plan->tasks);
    if (!plan->tasks) return HR_ERROR_OUT_OF_MEMORY;

    hr_task *task = plan->tasks;
    for (int32_t b = 0; b < problem->batch; b++) {
        hr_kernel_args args = hr_sequence_args(problem, b);
        for (int32_t head = 0; head < problem->num_heads; head++)
            for (int32_t row = 0; row < args.seqlen_q; row += tile_q) {
                *task = (hr_task){.sequence = b, .head = head, .q_begin = row};
                task->q_end = args.seqlen_q - row > tile_q ? row + tile_q : args.seqlen_q;
                set_key_range(task++, &args, tile_kv);
            }
    }
    qsort(plan->tasks, (size_t)plan->task_count, sizeof *plan->tasks, compare_tasks);
    return HR_OK;
}

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
    return HR_OK;
}

static hr_status choose_kernel(hr_plan *plan, const hr_attention_problem *problem,
                               const hr_recipe *recipe, const hr_plan_options *options)
{
    hr_kernel_query query;
    HR_TRY(hr_kernel_query_from(problem, recipe, &query));
    query.name = options->kernel;
    uint32_t usable;
    HR_TRY(hr_isa_usable(&usable));
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
    return HR_OK;
}

static hr_status build_plan(hr_plan *plan, const hr_attention_problem *problem,
                            const hr_recipe *recipe, const hr_plan_options *options)
{
    if (options->threads < 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "threads is %d; it must be 0 (OpenMP's default) or at least 1",
                       options->threads);
    HR_TRY(choose_kernel(plan, problem, recipe, options));
    if (options->stream)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "a stream was given, but %s runs on the CPU; stream must be NULL",
                       plan->kernel->info.name);
    HR_TRY(copy_problem(plan, problem));
    HR_TRY(hr_plan_build_tasks(plan));

    plan->threads = options->threads ? options->threads : omp_get_max_threads();
    if (plan->threads > plan->task_count)
        plan->threads = plan->task_count ? (int32_t)plan->task_count : 1;
    plan->scratch_stride = (plan->kernel->scratch_bytes(problem->head_dim) + 63) / 64 * 64;
    plan->scratch = hr_alloc((size_t)plan->threads, plan->scratch_stride);
    return plan->scratch ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
}

hr_status hr_plan_create(const hr_attention_problem *problem, const hr_recipe *recipe,
                         const hr_plan_options *options, hr_plan **out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out must not be NULL");
    *out = NULL;
    hr_plan_options defaults = {0};
    hr_plan *plan = hr_alloc(1, sizeof *plan);
    if (!plan) return HR_ERROR_OUT_OF_MEMORY;
    hr_status status = build_plan(plan, problem, recipe, options ? options : &defaults);
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
    free(plan->cu_seqlens_q);
    free(plan->cu_seqlens_kv);
    free(plan->block_table);
    free(plan->alibi_slopes);
    free(plan->sinks);
    free(plan->tasks);
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
