/*
 * Fused packing for Hopper; see pack_sm90.h. Limited by memory: 2 bytes are read and 1 written of
 * every element, so nothing is read twice and every access to global memory has 16 bytes.
 *
 *     block: 128 tokens of one head of Q, K or V       8 warps
 *     thread: 16 neighbouring channels of one token    head_dim / 16 threads a row
 *
 * The floor under scales of tokens (2^-16 of the head's largest) is known when a head's last block
 * is done; that block raises the few scales below it and encodes their tokens again.
 */
#include "pack_scale_sm90.cuh"

namespace pack_sm90
{

/* Largest scale of the warp's rows into the head's. */
HR_DEVICE void note_scale(const hr_sm90_pack_operand &x, const Place &place, float scale)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        scale = fmaxf(scale, __shfl_xor_sync(ALL, scale, step));
    if (threadIdx.x % 32 == 0 && scale > 0)
        atomicMax(&x.largest[place.head], __float_as_uint(scale));
}

template <bool TRANSFORM, bool BIAS>
HR_DEVICE void pack_tile(const hr_sm90_pack_args &args, const hr_sm90_pack_operand &x,
                         const Place &place, uint32_t base)
{
    const int warp = (int)threadIdx.x / 32;
    for (int first = 0; first < TILE; first += WARPS * place.rows()) {
        const int row = first + warp * place.rows() + place.row_in_warp;
        const bool mine = place.row_in_warp < place.rows() && row < TILE;
        const int64_t token = (int64_t)place.first + row;
        const bool real = mine && token < place.end;
        float v[PART], scale = 0;
        uint32_t code[PART / 2];
        load_row<TRANSFORM, BIAS>(args, x, place, real ? token : 0, real, v);
        if (x.format == HR_SM90_PACK_I8_BY_TOKEN) {
            scale = token_scale(place, v);
            if (!real) scale = 0;
            if (real && place.part == 0) x.scale[place.head * x.tokens + token] = scale;
            note_scale(x, place, scale);
        }
        if (!mine) continue;
        if (real) {
            encode(x, place, scale, v, code);
        } else {
#pragma unroll
            for (int i = 0; i < PART / 2; i++)
                code[i] = 0;
        }
        if (x.transposed)
            wait_row(x, place, base, row, code);
        else if (real)
            store_row(x, place, args.head_dim, token, code);
    }
}

/* Raises scales below the head's floor (hr_scale_floor), and encodes those tokens again. */
template <bool TRANSFORM>
HR_DEVICE void raise_scales(const hr_sm90_pack_args &args, const hr_sm90_pack_operand &x,
                            Place place)
{
    const int warp = (int)threadIdx.x / 32;
    const float largest = __uint_as_float(*(volatile uint32_t *)&x.largest[place.head]);
    const float floor = scale_floor(largest);
    for (int tile = 0; tile < x.tiles; tile++) {
        set_tile(args, x, tile, place);
        for (int first = 0; first < TILE; first += WARPS * place.rows()) {
            const int row = first + warp * place.rows() + place.row_in_warp;
            const int64_t token = (int64_t)place.first + row;
            const bool real = place.row_in_warp < place.rows() && row < TILE && token < place.end;
            volatile float *scale = x.scale + place.head * x.tokens + (real ? token : 0);
            const bool low = real && *scale < floor;
            __syncwarp(); /* all parts of a row have read the scale before part 0 changes it */
            if (!__any_sync(ALL, low)) continue;
            float v[PART];
            uint32_t code[PART / 2];
            load_row<TRANSFORM, false>(args, x, place, low ? token : 0, low, v);
            if (!low) continue;
            encode(x, place, floor, v, code);
            if (x.transposed)
                store_column(x, place, args.head_dim, tile, row, code);
            else
                store_row(x, place, args.head_dim, token, code);
            if (place.part == 0) *scale = floor;
        }
    }
}

/* Block b is a tile: all heads of q, tile after tile, then those of k, then those of v. */
template <bool TRANSFORM>
__global__ void __launch_bounds__(THREADS, TRANSFORM ? 2 : 3)
    pack_kernel(const __grid_constant__ hr_sm90_pack_args args, uint32_t flag_offset)
{
    int64_t block = blockIdx.x;
    const int64_t q_blocks = (int64_t)args.q.heads * args.q.tiles;
    const int64_t k_blocks = (int64_t)args.k.heads * args.k.tiles;
    const bool is_q = block < q_blocks, is_k = !is_q && block < q_blocks + k_blocks;
    const hr_sm90_pack_operand &x = is_q ? args.q : is_k ? args.k : args.v;
    block -= is_q ? 0 : is_k ? q_blocks : q_blocks + k_blocks;

    Place place = make_place(args.head_dim, (int)(block % x.heads));
    set_tile(args, x, (int)(block / x.heads), place);

    const uint32_t base = shared_base();
    if (is_q)
        pack_tile<TRANSFORM, true>(args, x, place, base);
    else
        pack_tile<TRANSFORM, false>(args, x, place, base);
    if (x.transposed) {
        __syncthreads();
        store_tile(x, place, base, args.head_dim);
    }
    if (x.format != HR_SM90_PACK_I8_BY_TOKEN ||
        !last_block(&x.finished[place.head], x.tiles, base + flag_offset))
        return;
    raise_scales<TRANSFORM>(args, x, place);
    __syncthreads();
    if (threadIdx.x == 0) {
        x.largest[place.head] = 0; /* for the next launch */
        x.finished[place.head] = 0;
    }
}

} // namespace pack_sm90

extern "C" int hr_pack_sm90(const hr_sm90_pack_args *args)
{
    using namespace pack_sm90;
    const int64_t blocks = (int64_t)args->q.heads * args->q.tiles +
                           (int64_t)args->k.heads * args->k.tiles +
                           (int64_t)args->v.heads * args->v.tiles;
    if (blocks == 0) return cudaSuccess;
    const uint32_t tile_bytes =
        (uint32_t)(TILE * args->head_dim) * (args->v.format == HR_SM90_PACK_BF16 ? 2 : 1);
    int64_t scale_blocks = 0;
    for (const hr_sm90_pack_operand *x : {&args->q, &args->k, &args->v})
        if (x->dynamic) scale_blocks += (int64_t)x->heads * x->tiles;
    const bool transform =
        args->q.rotate || args->k.rotate || args->q.positions || args->k.positions;
    if (scale_blocks > 0) {
        const uint32_t rows = WARPS * (32 / (uint32_t)(args->head_dim / PART));
        const uint32_t flag = 4 * rows * (uint32_t)args->head_dim + 4 * WARPS;
        const cudaError_t error = hopper::launch(
            transform ? scale_kernel<true> : scale_kernel<false>, dim3((unsigned)scale_blocks),
            dim3(THREADS), flag + 16, (cudaStream_t)args->stream, *args, flag);
        if (error != cudaSuccess) return error;
    }
    return hopper::launch(transform ? pack_kernel<true> : pack_kernel<false>,
                          dim3((unsigned)blocks), dim3(THREADS), tile_bytes + 16,
                          (cudaStream_t)args->stream, *args, tile_bytes);
}
