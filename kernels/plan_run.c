/*
 * Running a plan: hand every task to the kernel, with the operands as its head and sequence sees
 * them.
 *
 * Inside a caller's OpenMP region the tasks run on the calling thread alone: the caller has already
 * divided the machine, and a second team would only compete with the first.
 */
#include <math.h>
#include <omp.h>

#include "pack_layout.h"
#include "pack_scale.h"
#include "plan.h"
#include "status_internal.h"

/* Below this, starting a team costs more than it saves: about 20 microseconds of one core. */
#define SERIAL_FLOPS 2e6

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

typedef struct run_context {
    const hr_plan *plan;
    const hr_packed_layer *operands;
    const hr_tensor *o, *lse;
} run_context;

/* Rows that see no key: O = 0; LSE is that of the sink alone, -inf without one. */
static void fill_masked_rows(const hr_kernel_args *args)
{
    for (int32_t row = args->q_begin; row < args->q_end; row++) {
        float *o = args->o + row * args->o_stride;
        for (int32_t channel = 0; channel < args->head_dim; channel++)
            o[channel] = 0;
        if (args->lse) args->lse[row * args->lse_stride] = args->sink;
    }
}

static void run_task(const run_context *run, const hr_task *task, void *scratch)
{
    const hr_plan *plan = run->plan;
    const hr_attention_problem *problem = &plan->problem;
    const hr_packed_layer *operands = run->operands;
    int32_t head = task->head, sequence = task->sequence;
    int32_t kv_head = head / (problem->num_heads / problem->num_kv_heads);
    int64_t first_row = problem->cu_seqlens_q[sequence];

    hr_kernel_args args = hr_sequence_args(problem, sequence);
    args.q_begin = task->q_begin;
    args.q_end = task->q_end;
    args.kv_begin = task->kv_begin;
    args.kv_end = task->kv_end;
    args.p_dtype = plan->recipe.p.dtype;
    args.alibi_slope = problem->alibi_slopes ? problem->alibi_slopes[head] : 0;
    args.sink = problem->sinks ? problem->sinks[head] : -INFINITY;
    args.o_stride = run->o->stride[0];
    args.o = (float *)run->o->data + first_row * run->o->stride[0] + head * run->o->stride[1];
    if (run->lse) {
        args.lse_stride = run->lse->stride[0];
        args.lse =
            (float *)run->lse->data + first_row * run->lse->stride[0] + head * run->lse->stride[1];
    }
    args.scratch = scratch;
    if (task->kv_begin == task->kv_end) {
        fill_masked_rows(&args);
        return;
    }
    args.q = operand_of(&operands->q, head, sequence);
    args.k = operand_of(&operands->k, kv_head, sequence);
    args.v = operand_of(&operands->v, kv_head, sequence);
    if (operands->q.lse_bias)
        args.lse_bias = operands->q.lse_bias + head * operands->q.total_tokens + first_row;
    plan->kernel->entry(&args);
}

static hr_status check_output(const hr_plan *plan, const char *name, const hr_tensor *tensor,
                              int ndim)
{
    const hr_attention_problem *problem = &plan->problem;
    const int64_t expected[3] = {problem->cu_seqlens_q[problem->batch], problem->num_heads,
                                 problem->head_dim};
    if (tensor->dtype != HR_DTYPE_F32)
        return hr_fail(HR_ERROR_MISMATCH, "%s is %s; it must be f32", name,
                       hr_dtype_name(tensor->dtype));
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
    if (!tensor->data && expected[0] > 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the data of %s must not be NULL", name);
    return HR_OK;
}

hr_status hr_plan_run(hr_plan *plan, const hr_packed_layer *operands, const hr_tensor *o,
                      const hr_tensor *lse)
{
    if (!plan || !operands || !o)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "plan, operands and o must not be NULL");
    HR_TRY(hr_plan_check_operands(plan, operands));
    HR_TRY(check_output(plan, "o", o, 3));
    if (lse) HR_TRY(check_output(plan, "lse", lse, 2));

    const run_context run = {.plan = plan, .operands = operands, .o = o, .lse = lse};
    const int threads = omp_in_parallel() || plan->flops < SERIAL_FLOPS ? 1 : plan->threads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < plan->task_count; i++)
        run_task(&run, &plan->tasks[i],
                 plan->scratch +
                     (threads > 1 ? (size_t)omp_get_thread_num() : 0) * plan->scratch_stride);
    return HR_OK;
}
