/*
 * Running a plan: hand every task to the kernel, with the operands as its heads and sequence see
 * them; then merge what was split.
 *
 * Inside a caller's OpenMP region the tasks run on the calling thread alone: the caller has already
 * divided the machine, and a second team would only compete with the first.
 */
#include <math.h>
#include <omp.h>
#include <stdatomic.h>

#include "device_internal.h"
#include "epilogue.h"
#include "pack_layout.h"
#include "pack_scale.h"
#include "plan_device.h"
#include "plan_residual.h"
#include "status_internal.h"

/* Below this, starting a team costs more than it saves: about 20 microseconds of one core. */
#define SERIAL_FLOPS 2e6

/*
 * The first of a run's numbers of KV heads, hr_kernel_args.kv_id: what was made of the operands of
 * another run, which may lie at the same addresses, has another one. 64 bits do not run out.
 */
static uint64_t next_kv_ids(const hr_plan *plan)
{
    static atomic_uint_fast64_t next = 1;
    const int64_t count = (int64_t)plan->problem.batch * plan->problem.num_kv_heads;
    return atomic_fetch_add_explicit(&next, (uint64_t)count, memory_order_relaxed);
}

static hr_kernel_operand operand_of(const hr_packed *packed, int32_t head, int32_t sequence)
{
    int64_t tile_tokens = hr_layout_tile_tokens(packed->layout);
    size_t tile_bytes =
        hr_layout_tile_bytes(packed->layout, packed->recipe.dtype, packed->head_dim);
    size_t offset = (size_t)head * packed->head_bytes +
                    (size_t)(packed->slot_offset[sequence] / tile_tokens) * tile_bytes;
    hr_kernel_operand operand = {
        .codes = (const unsigned char *)packed->codes + offset,
        .dtype = packed->recipe.dtype,
        .granularity = packed->recipe.granularity,
        .block = packed->recipe.block,
    };
    int64_t first = packed->scale ? hr_scale_offset(packed, head, sequence) : 0;
    if (packed->scale) operand.scale = packed->scale + first;
    if (packed->zero_point) operand.zero_point = packed->zero_point + first;
    return operand;
}

/* Rows of one head that see no key: O = 0; LSE is that of the sink alone, -inf without one. */
static void fill_masked_rows(const hr_kernel_args *args)
{
    for (int32_t row = args->q_begin; row < args->q_end; row++) {
        float *o = args->o + row * args->o_stride;
        for (int32_t channel = 0; channel < args->head_dim; channel++)
            o[channel] = 0;
        if (args->lse) args->lse[row * args->lse_stride] = args->sink;
    }
}

/*
 * Where rows of a sequence and head go: the caller's O and LSE, or those of a part, or the tile of
 * a group that the epilogue will finish (not NULL then).
 */
static void set_output(const hr_plan *plan, const hr_plan_io *io, const hr_task *task, int32_t head,
                       float *tile, hr_kernel_args *args)
{
    const hr_attention_problem *problem = &plan->problem;
    const int64_t first_row = problem->cu_seqlens_q[task->sequence];
    if (task->part != HR_TASK_WHOLE) {
        const int64_t total_q = problem->cu_seqlens_q[problem->batch], heads = problem->num_heads;
        const int64_t vector = (task->part * total_q + first_row) * heads + head;
        args->sink = -INFINITY; /* joins once, when parts are merged */
        args->o = plan->part_o + vector * problem->head_dim;
        args->o_stride = heads * problem->head_dim;
        args->lse = plan->part_lse + vector;
        args->lse_stride = heads;
        return;
    }
    args->sink = problem->sinks ? problem->sinks[head] : -INFINITY;
    if (tile) {
        args->o_stride = (int64_t)problem->num_heads * problem->head_dim;
        args->o = tile + (int64_t)head * problem->head_dim - task->q_begin * args->o_stride;
    } else {
        args->o_stride = io->o->stride[0];
        args->o = (float *)io->o->data + first_row * io->o->stride[0] + head * io->o->stride[1];
    }
    if (!io->lse) return;
    args->lse_stride = io->lse->stride[0];
    args->lse = (float *)io->lse->data + first_row * io->lse->stride[0] + head * io->lse->stride[1];
}

/* `memory` is this thread's: an array of arguments, the kernel's scratch, then the group's tile. */
static void run_task(const hr_plan *plan, const hr_plan_io *io, uint64_t first_kv_id,
                     const hr_task *task, unsigned char *memory)
{
    float *tile = plan->epilogue ? (float *)(memory + plan->tile_offset) : NULL;
    const hr_attention_problem *problem = &plan->problem;
    const int32_t kv_head = task->head / (problem->num_heads / problem->num_kv_heads);

    hr_kernel_args args = hr_plan_sequence_args(plan, task->sequence);
    args.heads = task->heads;
    args.q_begin = task->q_begin;
    args.q_end = task->q_end;
    args.kv_begin = task->kv_begin;
    args.kv_end = task->kv_end;
    args.ranges = plan->ranges + task->first_range;
    args.range_count = task->range_count;
    args.p_dtype = plan->recipe.p.dtype;
    args.isa_mask = plan->isa_mask;
    args.kv_id =
        first_kv_id + (uint64_t)((int64_t)task->sequence * problem->num_kv_heads + kv_head);
    args.scratch = memory + plan->args_bytes;
    const bool empty = task->kv_begin == task->kv_end;
    if (!empty && io->cache) {
        args.k = hr_plan_paged_operand(plan, io->cache, HR_OPERAND_K, kv_head, task->sequence);
        args.v = hr_plan_paged_operand(plan, io->cache, HR_OPERAND_V, kv_head, task->sequence);
    } else if (!empty) {
        args.k = operand_of(io->k, kv_head, task->sequence);
        args.v = operand_of(io->v, kv_head, task->sequence);
    }

    hr_kernel_args *heads = (hr_kernel_args *)memory;
    for (int32_t i = 0; i < task->heads; i++) {
        const int32_t head = task->head + i;
        args.q = operand_of(io->q, head, task->sequence);
        args.alibi_slope = problem->alibi_slopes ? problem->alibi_slopes[head] : 0;
        if (io->q->lse_bias)
            args.lse_bias = io->q->lse_bias + head * io->q->total_tokens +
                            problem->cu_seqlens_q[task->sequence];
        set_output(plan, io, task, head, tile, &args);
        if (empty) fill_masked_rows(&args);
        heads[i] = args;
    }
    if (!empty) plan->kernel->entry(heads);
}

static void run_merge(const hr_plan *plan, const hr_plan_io *io, const hr_merge *merge,
                      unsigned char *memory)
{
    float *tile = plan->epilogue ? (float *)(memory + plan->tile_offset) : NULL;
    const hr_attention_problem *problem = &plan->problem;
    const int64_t heads = problem->num_heads, first_row = problem->cu_seqlens_q[merge->sequence];
    const int64_t part_stride = problem->cu_seqlens_q[problem->batch] * heads;
    for (int32_t head = merge->head; head < merge->head + merge->heads; head++)
        for (int64_t row = first_row + merge->q_begin; row < first_row + merge->q_end; row++) {
            const int64_t vector = row * heads + head;
            float *o, *lse = NULL;
            if (tile)
                o = tile + ((row - first_row - merge->q_begin) * heads + head) * problem->head_dim;
            else
                o = (float *)io->o->data + row * io->o->stride[0] + head * io->o->stride[1];
            if (io->lse)
                lse = (float *)io->lse->data + row * io->lse->stride[0] + head * io->lse->stride[1];
            hr_merge_row(plan->part_o + vector * problem->head_dim, part_stride * problem->head_dim,
                         plan->part_lse + vector, part_stride, merge->parts, problem->head_dim,
                         problem->sinks ? problem->sinks[head] : -INFINITY, o, lse);
        }
}

/* All heads of a query tile, and then the epilogue on its rows. */
static void run_group(const hr_plan *plan, const hr_plan_io *io, uint64_t first_kv_id,
                      const hr_group *group, unsigned char *memory)
{
    for (int64_t i = group->first; i < group->first + group->count; i++) {
        if (plan->parts > 0)
            run_merge(plan, io, &plan->merges[i], memory);
        else
            run_task(plan, io, first_kv_id, &plan->tasks[i], memory);
    }
    const hr_attention_problem *problem = &plan->problem;
    const hr_epilogue_rows rows = {.o = (float *)(memory + plan->tile_offset),
                                   .first = (int64_t)problem->cu_seqlens_q[group->sequence] +
                                            group->q_begin,
                                   .count = group->q_end - group->q_begin,
                                   .hidden = problem->num_heads * problem->head_dim,
                                   .residual = io->residual,
                                   .stream = io->stream,
                                   .out = io->o};
    hr_epilogue_apply(plan->epilogue, &rows);
}

static bool has_epilogue(const hr_plan *plan)
{
    return plan->epilogue || (plan->residual && hr_plan_residual_epilogue(plan->residual));
}

static hr_status check_output(const hr_plan *plan, const char *name, const hr_tensor *tensor,
                              int ndim)
{
    const hr_attention_problem *problem = &plan->problem;
    const int64_t expected[3] = {problem->cu_seqlens_q[problem->batch], problem->num_heads,
                                 problem->head_dim};
    const bool may_be_bf16 = (plan->device || has_epilogue(plan)) && ndim == 3;
    if (tensor->dtype != HR_DTYPE_F32 && !(may_be_bf16 && tensor->dtype == HR_DTYPE_BF16))
        return hr_fail(HR_ERROR_MISMATCH, "%s is %s; it must be f32%s", name,
                       hr_dtype_name(tensor->dtype), may_be_bf16 ? " or bf16" : "");
    if (tensor->ndim != ndim)
        return hr_fail(HR_ERROR_MISMATCH, "%s has %d dimensions; it must have %d", name,
                       tensor->ndim, ndim);
    for (int i = 0; i < ndim; i++)
        if (tensor->shape[i] != expected[i])
            return hr_fail(HR_ERROR_MISMATCH, "%s has shape[%d] %lld; the plan has %lld", name, i,
                           (long long)tensor->shape[i], (long long)expected[i]);
    if (ndim == 3 && tensor->stride[2] != 1)
        return hr_fail(HR_ERROR_MISMATCH, "the last stride of %s is %lld; it must be 1", name,
                       (long long)tensor->stride[2]);
    if (has_epilogue(plan) && ndim == 3 && tensor->stride[1] != problem->head_dim)
        return hr_fail(HR_ERROR_MISMATCH,
                       "the heads of %s are %lld elements apart; with an epilogue they must be "
                       "head_dim, %d, apart",
                       name, (long long)tensor->stride[1], problem->head_dim);
    if (!tensor->data && expected[0] > 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the data of %s must not be NULL", name);
    return hr_device_expect(name, tensor->device, plan->device ? HR_DEVICE_CUDA : HR_DEVICE_CPU);
}

hr_status hr_plan_check_outputs(const hr_plan *plan, const hr_plan_io *io)
{
    HR_TRY(check_output(plan, "o", io->o, 3));
    if (io->lse) HR_TRY(check_output(plan, "lse", io->lse, 2));
    if ((io->residual || io->stream) && !has_epilogue(plan))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "%s was given, but the plan has no epilogue; it must be NULL",
                       io->residual ? "residual" : "stream");
    if (io->residual) HR_TRY(check_output(plan, "residual", io->residual, 3));
    if (io->stream) HR_TRY(check_output(plan, "stream", io->stream, 3));
    return HR_OK;
}

hr_status hr_plan_run_io(const hr_plan *plan, const hr_plan_io *io)
{
    HR_TRY(hr_plan_check_operands(plan, io));
    HR_TRY(hr_plan_check_outputs(plan, io));
    if (plan->device) return hr_plan_device_run(plan, io);
    const uint64_t first_kv_id = next_kv_ids(plan);
    const int threads = omp_in_parallel() || plan->flops < SERIAL_FLOPS ? 1 : plan->threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const size_t thread = threads > 1 ? (size_t)omp_get_thread_num() : 0;
        unsigned char *memory = plan->scratch + thread * plan->scratch_stride;
        const int64_t tasks = plan->epilogue && plan->parts == 0 ? 0 : plan->task_count;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < tasks; i++)
            run_task(plan, io, first_kv_id, &plan->tasks[i], memory);
        const int64_t merges = plan->epilogue ? 0 : plan->merge_count;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < merges; i++)
            run_merge(plan, io, &plan->merges[i], memory);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < plan->group_count; i++)
            run_group(plan, io, first_kv_id, &plan->groups[i], memory);
    }
    return HR_OK;
}

hr_status hr_plan_run_tensors(hr_plan *plan, const hr_plan_tensors *tensors)
{
    if (!plan || !tensors || !tensors->o)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "plan, tensors and o must not be NULL");
    const bool paged = plan->problem.paging.page_size;
    if (!paged && !tensors->operands && (tensors->q || tensors->cache))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the plan's problem has no paging: hr_plan_run runs it, on packed k and v");
    if (paged && tensors->operands)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the plan's problem has paging: hr_plan_run_paged runs it, on a cache");
    if (paged ? !tensors->q || !tensors->cache : !tensors->operands)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s must not be NULL",
                       paged ? "q and cache" : "operands");
    if (tensors->q_recent && !plan->residual)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "q_recent was given, but the plan's recipe has no residual; it must be "
                       "NULL");
    if (plan->residual) return hr_plan_run_residual(plan, tensors);
    const hr_packed_layer *operands = tensors->operands;
    const hr_plan_io io = {.q = paged ? tensors->q : &operands->q,
                           .k = paged ? NULL : &operands->k,
                           .v = paged ? NULL : &operands->v,
                           .cache = paged ? tensors->cache : NULL,
                           .o = tensors->o,
                           .lse = tensors->lse,
                           .residual = tensors->residual,
                           .stream = tensors->stream};
    return hr_plan_run_io(plan, &io);
}

hr_status hr_plan_run(hr_plan *plan, const hr_packed_layer *operands, const hr_tensor *o,
                      const hr_tensor *lse)
{
    if (!plan || !operands || !o)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "plan, operands and o must not be NULL");
    return hr_plan_run_tensors(plan, &(hr_plan_tensors){.operands = operands, .o = o, .lse = lse});
}

hr_status hr_plan_run_paged(hr_plan *plan, const hr_packed *q, const hr_kv_cache *cache,
                            const hr_tensor *o, const hr_tensor *lse)
{
    if (!plan || !q || !cache || !o)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "plan, q, cache and o must not be NULL");
    return hr_plan_run_tensors(plan,
                               &(hr_plan_tensors){.q = q, .cache = cache, .o = o, .lse = lse});
}
