/*
 * The small launches of prepare_sm90.h. Both are a few microseconds: tile_scale is 2 KiB for every
 * 128 keys of a head, whose codes are 128 * head_dim * 2 bytes.
 */
#include "prepare_sm90.h"

#include "launch.cuh"

namespace
{

constexpr int NO_KEYS_THREADS = 256;

/* The sequence that has tile `tile`; offsets rise, and equal ones are sequences without tiles. */
HR_DEVICE int sequence_of(const int32_t *tile_offset, int batch, int tile)
{
    int low = 0, high = batch - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (tile_offset[middle] <= tile)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

HR_DEVICE float scale_of(const hr_sm90_scale &scale, int head, int64_t token)
{
    return scale.base ? scale.base[head * scale.head_stride + token * scale.stride] : 1.0f;
}

/* A block is a tile of a head, a thread one of its keys. */
__global__ void __launch_bounds__(HR_SM90_TILE_KV)
    tile_scale_kernel(const __grid_constant__ hr_sm90_tile_scale_args args)
{
    const int tile = (int)blockIdx.x, head = (int)blockIdx.y, key = (int)threadIdx.x;
    const int sequence = sequence_of(args.kv_tile_offset, args.batch, tile);
    const int64_t token = args.cu_seqlens_kv[sequence] +
                          (int64_t)(tile - args.kv_tile_offset[sequence]) * HR_SM90_TILE_KV + key;
    const bool real = token < args.cu_seqlens_kv[sequence + 1];
    float *out = args.tile_scale + (head * args.kv_tiles + tile) * HR_SM90_TILE_SCALES;
    hr_sm90_set_tile_scale(out, key, real ? scale_of(args.k_scale, head, token) : 1.0f,
                           real ? scale_of(args.v_scale, head, token) : 1.0f);
}

/* A block is a query of a head. */
__global__ void __launch_bounds__(NO_KEYS_THREADS)
    no_keys_kernel(const __grid_constant__ hr_sm90_args args)
{
    const int64_t token = blockIdx.x;
    const int head = (int)blockIdx.y, channel = (int)threadIdx.x;
    if (channel == 0 && args.lse)
        args.lse[token * args.lse_token_stride + head * args.lse_head_stride] =
            args.sinks ? args.sinks[head] : -INFINITY;
    if (channel >= args.head_dim) return;
    const int64_t at = token * args.o_token_stride + head * args.o_head_stride + channel;
    if (args.o_is_bf16)
        ((uint16_t *)args.o)[at] = 0;
    else
        ((float *)args.o)[at] = 0;
}

} // namespace

extern "C" int hr_tile_scale_sm90(const hr_sm90_tile_scale_args *args)
{
    if (args->kv_tiles == 0) return cudaSuccess;
    return hopper::launch(tile_scale_kernel,
                          dim3((unsigned)args->kv_tiles, (unsigned)args->num_kv_heads),
                          dim3(HR_SM90_TILE_KV), 0, (cudaStream_t)args->stream, *args);
}

extern "C" int hr_no_keys_sm90(const hr_sm90_args *args)
{
    if (args->total_q == 0) return cudaSuccess;
    return hopper::launch(no_keys_kernel, dim3((unsigned)args->total_q, (unsigned)args->num_heads),
                          dim3(NO_KEYS_THREADS), 0, (cudaStream_t)args->stream, *args);
}
