/*
 * From a plan and packed operands in device memory to the arguments of
 * kernels/cuda/attention_sm90.h.
 */
#include "plan_device.h"

#include <stdlib.h>
#include <string.h>

#include "cuda/prepare_sm90.h"
#include "cuda_api.h"
#include "memory.h"
#include "pack_layout.h"
#include "status_internal.h"

struct hr_plan_device {
    void *memory; /* on the GPU: offsets and sinks, as copy_arrays lays them out */
    const int32_t *block_offset[3]; /* in memory: of Q, K, V with scales by block */
    float *tile_scale;              /* on the GPU; NULL where the kernel reads none */
    hr_sm90_args args;              /* without what a run gives */
};

static bool by_block(const hr_operand_recipe *operand)
{
    return operand->granularity == HR_GRANULARITY_BLOCK;
}

/* Floats a tile has in tile_scale; 0: the kernel reads none. */
static size_t tile_scales(const hr_plan *plan)
{
    if (plan->kernel->info.k_dtype == HR_DTYPE_I8) return HR_SM90_TILE_SCALES;
    return by_block(&plan->recipe.k) || by_block(&plan->recipe.v) ? HR_SM90_BLOCK_SCALES : 0;
}

/* First part of `size` tokens that each sequence has, and behind the last the number of parts. */
static void fill_offsets(const int32_t *cu_seqlens, int32_t batch, int32_t size, int32_t *offset)
{
    offset[0] = 0;
    for (int32_t b = 0; b < batch; b++)
        offset[b + 1] =
            offset[b] + (int32_t)(((int64_t)cu_seqlens[b + 1] - cu_seqlens[b] + size - 1) / size);
}

/*
 * [6][batch + 1] offsets, of which the last three are of blocks of Q, K and V and only read where
 * these have scales by block, then [num_heads] sinks, in one allocation and one copy.
 */
static hr_status copy_arrays(const hr_plan *plan, hr_plan_device *device)
{
    const hr_attention_problem *problem = &plan->problem;
    const hr_operand_recipe *operands[3] = {&plan->recipe.q, &plan->recipe.k, &plan->recipe.v};
    const size_t offsets = (size_t)problem->batch + 1, heads = (size_t)problem->num_heads;
    const size_t count = 6 * offsets + heads;
    int32_t *staged = hr_alloc(count, sizeof *staged);
    if (!staged) return HR_ERROR_OUT_OF_MEMORY;
    memcpy(staged, problem->cu_seqlens_q, offsets * sizeof *staged);
    memcpy(staged + offsets, problem->cu_seqlens_kv, offsets * sizeof *staged);
    fill_offsets(problem->cu_seqlens_kv, problem->batch, HR_SM90_TILE_KV, staged + 2 * offsets);
    device->args.kv_tiles = staged[3 * offsets - 1];
    for (size_t i = 0; i < 3; i++)
        fill_offsets(i ? problem->cu_seqlens_kv : problem->cu_seqlens_q, problem->batch,
                     by_block(operands[i]) ? operands[i]->block : HR_SM90_TILE_KV,
                     staged + (3 + i) * offsets);
    if (problem->sinks) memcpy(staged + 6 * offsets, problem->sinks, heads * sizeof(float));
    hr_status status = hr_device_alloc(HR_DEVICE_CUDA, count, sizeof *staged, &device->memory);
    if (status == HR_OK)
        status = hr_device_copy(HR_DEVICE_CUDA, device->memory, HR_DEVICE_CPU, staged,
                                count * sizeof *staged, NULL);
    free(staged);
    if (status != HR_OK) return status;
    const int32_t *there = device->memory;
    device->args.cu_seqlens_q = there;
    device->args.cu_seqlens_kv = there + offsets;
    device->args.kv_tile_offset = there + 2 * offsets;
    for (size_t i = 0; i < 3; i++)
        device->block_offset[i] = there + (3 + i) * offsets;
    device->args.sinks = problem->sinks ? (const float *)(there + 6 * offsets) : NULL;
    return HR_OK;
}

static hr_status prepare(const hr_plan *plan, void *stream, hr_plan_device *device)
{
    const hr_attention_problem *problem = &plan->problem;
    hr_cuda_device found;
    HR_TRY(hr_cuda_find(&found));
    const hr_kernel_args mask = hr_sequence_args(problem, 0);
    device->args = (hr_sm90_args){
        .total_q = problem->cu_seqlens_q[problem->batch],
        .total_kv = problem->cu_seqlens_kv[problem->batch],
        .batch = problem->batch,
        .num_heads = problem->num_heads,
        .num_kv_heads = problem->num_kv_heads,
        .head_dim = problem->head_dim,
        .max_seqlen_q = hr_longest_sequence(problem->cu_seqlens_q, problem->batch),
        .max_seqlen_kv = hr_longest_sequence(problem->cu_seqlens_kv, problem->batch),
        .softmax_scale = problem->softmax_scale,
        .softcap = problem->softcap,
        .window_left = mask.window_left,
        .window_right = mask.window_right,
        .multiprocessors = found.multiprocessors,
        .stream = stream,
    };
    HR_TRY(copy_arrays(plan, device));
    if (tile_scales(plan) == 0) return HR_OK;
    void *memory;
    HR_TRY(hr_device_alloc(HR_DEVICE_CUDA,
                           (size_t)problem->num_kv_heads * (size_t)device->args.kv_tiles,
                           tile_scales(plan) * sizeof(float), &memory));
    device->tile_scale = memory;
    device->args.tile_scale = device->tile_scale;
    return HR_OK;
}

hr_status hr_plan_device_create(hr_plan *plan, void *stream)
{
    plan->device = hr_alloc(1, sizeof *plan->device);
    return plan->device ? prepare(plan, stream, plan->device) : HR_ERROR_OUT_OF_MEMORY;
}

void hr_plan_device_free(hr_plan_device *device)
{
    if (!device) return;
    hr_device_free(HR_DEVICE_CUDA, device->memory);
    hr_device_free(HR_DEVICE_CUDA, device->tile_scale);
    free(device);
}

void *hr_plan_device_stream(const hr_plan_device *device)
{
    return device ? device->args.stream : NULL;
}

/* Scales by token have stride 1 along tokens, by channel along channels. */
static hr_sm90_scale scale_of(const hr_plan *plan, const hr_packed *packed)
{
    hr_sm90_scale scale = {.base = packed->scale};
    switch (packed->recipe.granularity) {
    case HR_GRANULARITY_HEAD:
        scale.head_stride = 1;
        break;
    case HR_GRANULARITY_TOKEN:
        scale.head_stride = packed->total_tokens;
        scale.stride = 1;
        break;
    case HR_GRANULARITY_BLOCK:
        scale.head_stride = packed->scale_count / packed->num_heads;
        scale.block = packed->recipe.block;
        scale.block_offset = plan->device->block_offset[packed->operand];
        break;
    case HR_GRANULARITY_CHANNEL:
        scale.head_stride = packed->head_dim;
        scale.stride = 1;
        break;
    default: /* one for the tensor, or none */
        break;
    }
    return scale;
}

/* The kernels store two neighbouring channels at once. */
static hr_status check_alignment(const hr_tensor *o)
{
    if ((uintptr_t)o->data % 8 != 0 || o->stride[0] % 2 != 0 || o->stride[1] % 2 != 0)
        return hr_fail(HR_ERROR_MISMATCH,
                       "o is at %p with strides %lld and %lld; a kernel on cuda needs an address "
                       "that is a multiple of 8 and even strides",
                       o->data, (long long)o->stride[0], (long long)o->stride[1]);
    return HR_OK;
}

static hr_sm90_args run_args(const hr_plan *plan, const hr_plan_io *io)
{
    hr_sm90_args args = plan->device->args;
    args.q = io->q->codes;
    args.k = io->k->codes;
    args.v = io->v->codes;
    args.q_head_bytes = (int64_t)io->q->head_bytes;
    args.k_head_bytes = (int64_t)io->k->head_bytes;
    args.v_head_bytes = (int64_t)io->v->head_bytes;
    args.q_scale = scale_of(plan, io->q);
    /* Kernels apply these as well as tile_scale, which has the scales of INT8 operands. */
    if (io->k->recipe.dtype == HR_DTYPE_E4M3) args.k_scale = scale_of(plan, io->k);
    if (io->v->recipe.dtype == HR_DTYPE_E4M3) args.v_scale = scale_of(plan, io->v);
    args.lse_bias = io->q->lse_bias;
    args.o = io->o->data;
    args.o_token_stride = io->o->stride[0];
    args.o_head_stride = io->o->stride[1];
    args.o_is_bf16 = io->o->dtype == HR_DTYPE_BF16;
    if (io->lse) {
        args.lse = io->lse->data;
        args.lse_token_stride = io->lse->stride[0];
        args.lse_head_stride = io->lse->stride[1];
    }
    return args;
}

static hr_status fill_tile_scale(const hr_plan *plan, const hr_plan_io *io,
                                 const hr_sm90_args *args)
{
    const hr_sm90_scale none = {.base = NULL}, v_scale = scale_of(plan, io->v);
    const bool k_is_e4m3 = plan->kernel->info.k_dtype == HR_DTYPE_E4M3;
    const bool v_is_e4m3 = plan->kernel->info.v_dtype == HR_DTYPE_E4M3;
    const hr_sm90_tile_scale_args scales = {
        /* The kernel itself applies one E4M3 scale a head. */
        .k_scale = k_is_e4m3 && !by_block(&io->k->recipe) ? none : scale_of(plan, io->k),
        .v_scale = v_is_e4m3 ? none : v_scale,
        .v_block_scale = v_is_e4m3 && by_block(&io->v->recipe) ? v_scale : none,
        .k_is_e4m3 = k_is_e4m3,
        .cu_seqlens_kv = args->cu_seqlens_kv,
        .kv_tile_offset = args->kv_tile_offset,
        .batch = args->batch,
        .num_kv_heads = args->num_kv_heads,
        .kv_tiles = args->kv_tiles,
        .tile_scale = plan->device->tile_scale,
        .stream = args->stream,
    };
    return hr_cuda_status(hr_cuda()->tile_scale(&scales), "launch the kernel of tile scales");
}

hr_status hr_plan_device_run(const hr_plan *plan, const hr_plan_io *io)
{
    HR_TRY(check_alignment(io->o));
    const hr_sm90_args args = run_args(plan, io);
    const hr_cuda_api *api = hr_cuda();
    if (args.total_q == 0) return HR_OK;
    if (args.total_kv == 0)
        return hr_cuda_status(api->no_keys(&args), "launch the kernel of problems without keys");
    if (plan->device->tile_scale) HR_TRY(fill_tile_scale(plan, io, &args));
    const int error = api->attention(plan->kernel->device_kernel, &args);
    hr_status status = hr_cuda_status(error, "launch the kernel");
    return status == HR_OK ? HR_OK : hr_fail_in(status, "%s", plan->kernel->info.name);
}
