/*
 * The small launches of prepare_sm90.h. Both are a few microseconds: tile_scale is 2 KiB for every
 * 128 keys of a head, whose codes are 128 * head_dim * 2 bytes.
 */
#include "prepare_sm90.h"

#include "launch.cuh"
#include "sequence_sm90.cuh"

namespace
{

constexpr int NO_KEYS_THREADS = 256;

/* A key's place: its head, its sequence, its token there, and whether there is one. */
struct Key {
    int head, sequence;
    int32_t first, token;
    bool real;
};

HR_DEVICE Key find_key(const hr_sm90_tile_scale_args &args, int head, int tile, int key)
{
    const int sequence = hopper::sequence_of(args.kv_tile_offset, args.batch, tile);
    const int32_t first = args.cu_seqlens_kv[sequence];
    const int32_t token = (tile - args.kv_tile_offset[sequence]) * HR_SM90_TILE_KV + key;
    return {head, sequence, first, token, token < args.cu_seqlens_kv[sequence + 1] - first};
}

HR_DEVICE float scale_of(const hr_sm90_scale &scale, const Key &key)
{
    if (!scale.base || !key.real) return 1.0f;
    return scale.base[hr_sm90_scale_index(&scale, key.head, key.sequence, key.first, key.token)];
}

/* V's scale of the tile behind that of `key` over its own; 1 where there is none. */
HR_DEVICE float v_step(const hr_sm90_tile_scale_args &args, const Key &key, int tile)
{
    if (!args.v_block_scale.base || tile + 1 >= args.kv_tile_offset[key.sequence + 1]) return 1.0f;
    const Key behind = find_key(args, key.head, tile + 1, 0);
    return scale_of(args.v_block_scale, behind) / scale_of(args.v_block_scale, key);
}

/* The largest of V's scales in the tile that `key`, the thread's own, is in. */
HR_DEVICE float largest_v_scale(const hr_sm90_tile_scale_args &args, const Key &key)
{
    const int32_t begin = key.token - (int32_t)threadIdx.x;
    const int32_t length = args.cu_seqlens_kv[key.sequence + 1] - key.first;
    float largest = 0;
    for (int i = (int)threadIdx.x % 32; i < HR_SM90_TILE_KV && begin + i < length; i += 32)
        largest = fmaxf(
            largest, scale_of(args.v_scale, {key.head, key.sequence, key.first, begin + i, true}));
    for (int lanes = 16; lanes > 0; lanes /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, lanes));
    return largest;
}

/* INT8 keys: a block is a tile of a head, a thread one of its keys. */
__global__ void __launch_bounds__(HR_SM90_TILE_KV)
    tile_scale_kernel(const __grid_constant__ hr_sm90_tile_scale_args args)
{
    const int tile = (int)blockIdx.x, head = (int)blockIdx.y;
    const Key key = find_key(args, head, tile, (int)threadIdx.x);
    float *out = args.tile_scale + (head * args.kv_tiles + tile) * HR_SM90_TILE_SCALES;
    const float v_unit = hr_sm90_v_unit(largest_v_scale(args, key));
    hr_sm90_set_tile_scale(out, (int)threadIdx.x, scale_of(args.k_scale, key),
                           key.real ? scale_of(args.v_scale, key) : v_unit, v_unit);
    if (threadIdx.x > 0) return;
    hr_sm90_end_tile_scale(out, v_unit, args.v_block_scale.base ? v_step(args, key, tile) : 1.0f);
}

/* E4M3 keys: a thread is a tile of a head. */
__global__ void __launch_bounds__(HR_SM90_TILE_KV)
    block_scale_kernel(const __grid_constant__ hr_sm90_tile_scale_args args)
{
    const int64_t tile = (int64_t)blockIdx.x * HR_SM90_TILE_KV + threadIdx.x;
    if (tile >= args.kv_tiles) return;
    const Key key = find_key(args, (int)blockIdx.y, (int)tile, 0);
    float *out = args.tile_scale + (blockIdx.y * args.kv_tiles + tile) * HR_SM90_BLOCK_SCALES;
    out[0] = scale_of(args.k_scale, key);
    out[HR_SM90_BLOCK_V_STEP] = v_step(args, key, (int)tile);
    out[2] = out[3] = 0;
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
    if (args->k_is_e4m3)
        return hopper::launch(
            block_scale_kernel,
            dim3((unsigned)((args->kv_tiles + HR_SM90_TILE_KV - 1) / HR_SM90_TILE_KV),
                 (unsigned)args->num_kv_heads),
            dim3(HR_SM90_TILE_KV), 0, (cudaStream_t)args->stream, *args);
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
