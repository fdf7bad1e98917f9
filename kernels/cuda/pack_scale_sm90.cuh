/*
 * Packing for Hopper: dynamic scales by tensor, head, channel or block, which are known when all of
 * their tokens have been seen: a launch before the packing itself finds them, from the same values
 * after the same transforms. A tile's maxima go to global memory by one atomicMax a channel (or one
 * a tile); a head's last block makes its scales.
 */
#ifndef HEADROOM_PACK_SCALE_SM90_CUH
#define HEADROOM_PACK_SCALE_SM90_CUH

#include "pack_code_sm90.cuh"

namespace pack_sm90
{

/* Is this the last of the `blocks` that count here? Then all that the others wrote can be seen. */
HR_DEVICE bool last_block(uint32_t *finished, int64_t blocks, uint32_t flag)
{
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        store_shared<uint32_t>(flag, atomicAdd(finished, 1u) + 1 == (uint32_t)blocks ? 1u : 0u);
    __syncthreads();
    const bool last = load_shared<uint32_t>(flag) != 0;
    if (last) __threadfence();
    return last;
}

/* Largest magnitude of each of the thread's channels, of the tokens its warp takes of a tile. */
template <bool TRANSFORM>
HR_DEVICE void observe_tile(const hr_sm90_pack_args &args, const hr_sm90_pack_operand &x,
                            const Place &place, float (&most)[PART])
{
    const int warp = (int)threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < PART; i++)
        most[i] = 0;
    for (int first = 0; first < TILE; first += WARPS * place.rows()) {
        const int row = first + warp * place.rows() + place.row_in_warp;
        const int64_t token = (int64_t)place.first + row;
        const bool real = place.row_in_warp < place.rows() && row < TILE && token < place.end;
        float v[PART];
        load_row<TRANSFORM, false>(args, x, place, real ? token : 0, real, v);
#pragma unroll
        for (int i = 0; i < PART; i++)
            if (real) most[i] = fmaxf(most[i], fabsf(v[i]));
    }
}

/* The tile's largest magnitude of `channel`, from what the warps' rows left in shared memory. */
HR_DEVICE float combine_channel(const Place &place, uint32_t base, int head_dim, int channel)
{
    float most = 0;
    for (int row = 0; row < WARPS * place.rows(); row++)
        most = fmaxf(most, load_shared<float>(base + 4 * (row * head_dim + channel)));
    return most;
}

/* The largest of what the block's threads hold; `base` has a word a warp. */
HR_DEVICE float combine_block(uint32_t base, float value)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL, value, step));
    __syncthreads();
    if (threadIdx.x % 32 == 0) store_shared<float>(base + threadIdx.x / 32 * 4, value);
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++)
        value = fmaxf(value, load_shared<float>(base + 4 * warp));
    return value;
}

/* The scales of a head, or the one of all, from the largest magnitudes; these become 0 again. */
HR_DEVICE void finish_scales(const hr_sm90_pack_operand &x, int head, int head_dim, uint32_t base)
{
    const int64_t count = x.scale_channel_stride ? head_dim
                          : x.tile_block         ? x.scale_head_stride
                                                 : 1;
    const float steps = x.format == HR_SM90_PACK_I8 ? 127.0f : 448.0f;
    float *scale = x.scale + head * x.scale_head_stride;
    uint32_t *largest = x.largest + head * x.scale_head_stride;
    float most = 0;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
        scale[i] = scale_for(__uint_as_float(*(volatile uint32_t *)&largest[i]), steps);
        largest[i] = 0; /* for the next launch */
        most = fmaxf(most, scale[i]);
    }
    const float floor = scale_floor(combine_block(base, most));
    for (int64_t i = threadIdx.x; i < count; i += THREADS)
        scale[i] = fmaxf(scale[i], floor);
}

/*
 * Dynamic scales. Block b is a tile of an operand that has them, in the order of
 * pack_kernel. The last block of a head, or of all where they share a scale, makes the scales.
 */
template <bool TRANSFORM>
__global__ void __launch_bounds__(THREADS, TRANSFORM ? 2 : 3)
    scale_kernel(const __grid_constant__ hr_sm90_pack_args args, uint32_t flag_offset)
{
    int64_t block = blockIdx.x;
    const int64_t q_blocks = args.q.dynamic ? (int64_t)args.q.heads * args.q.tiles : 0;
    const int64_t k_blocks = args.k.dynamic ? (int64_t)args.k.heads * args.k.tiles : 0;
    const bool is_q = block < q_blocks, is_k = !is_q && block < q_blocks + k_blocks;
    const hr_sm90_pack_operand &x = is_q ? args.q : is_k ? args.k : args.v;
    block -= is_q ? 0 : is_k ? q_blocks : q_blocks + k_blocks;
    const bool channels = x.scale_channel_stride != 0, one = x.scale_head_stride == 0;
    const uint32_t base = shared_base();
    const int thread = (int)threadIdx.x;

    Place place = make_place(args.head_dim, (int)(block % x.heads));
    set_tile(args, x, (int)(block / x.heads), place);
    float most[PART];
    observe_tile<TRANSFORM>(args, x, place, most);
    if (place.row_in_warp < place.rows()) {
        const int row = thread / 32 * place.rows() + place.row_in_warp;
#pragma unroll
        for (int i = 0; i < PART; i++)
            store_shared<float>(base + 4 * (row * args.head_dim + place.part * PART + i), most[i]);
    }
    __syncthreads();
    float mine = thread < args.head_dim ? combine_channel(place, base, args.head_dim, thread) : 0;
    if (!channels) mine = combine_block(base + flag_offset - 4 * WARPS, mine);
    if (thread < (channels ? args.head_dim : 1))
        atomicMax(&x.largest[place.scale + thread * x.scale_channel_stride], __float_as_uint(mine));
    uint32_t *finished = &x.finished[one ? 0 : place.head];
    if (!last_block(finished, one ? (int64_t)x.tiles * x.heads : x.tiles, base + flag_offset))
        return;
    finish_scales(x, place.head, args.head_dim, base + flag_offset - 4 * WARPS);
    if (thread == 0) *finished = 0;
}

} // namespace pack_sm90

#endif
