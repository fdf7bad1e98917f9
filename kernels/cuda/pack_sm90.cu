/*
 * Fused packing for Hopper; see pack_sm90.h. Limited by memory: 2 bytes are read and 1 written of
 * every element, so nothing is read twice and every access to global memory has 16 bytes.
 *
 *     block: 128 tokens of one head of Q, K or V       8 warps
 *     thread: 16 neighbouring channels of one token    head_dim / 16 threads a row
 *
 *     row of 64 channels   |  thread 0  |  thread 1  |  thread 2  |  thread 3  |
 *
 * Sixteen channels a thread are two loads and, of 8-bit codes, one store of 16 bytes. A rotation
 * then takes three exchanges between threads at head_dim 128; eight channels would take four, in
 * double precision, as the host rotates, and 32 would not fit the registers. V turns over in shared
 * memory, [channel][128 tokens] with 16-byte chunks exchanged by channel group, so that neither the
 * writes (a byte for each channel) nor the reads meet in a bank.
 *
 * The floor under scales of tokens (2^-16 of the head's largest) is known when a head's last block
 * is done; that block raises the few scales below it and encodes their tokens again. Dynamic scales
 * by tensor, head or channel are known when all tokens have been seen: a launch before the other
 * finds them, from the same values after the same transforms.
 */
#include "pack_sm90.h"

#include <float.h>

#include "launch.cuh"

namespace pack_sm90
{

using namespace hopper;

constexpr int THREADS = 256, WARPS = THREADS / 32, PART = HR_SM90_PACK_PART,
              TILE = HR_SM90_PACK_TILE;
constexpr unsigned ALL = 0xFFFFFFFFu;

/* What a block works on, and where in a row its thread is. */
struct Place {
    int head;
    int64_t first, end;    /* tokens */
    int64_t tile_offset;   /* transposed: of the tile's codes in the head */
    int parts, part;       /* threads a row; this one's number */
    int rows, row_in_warp; /* rows a warp takes at once; this thread's, `rows` when it has none */
    int lane_of_row;       /* lane of part 0 */
};

HR_DEVICE float bf16_to_float(uint32_t bits)
{
    return __uint_as_float(bits << 16);
}

HR_DEVICE float saturate(float x)
{
    return fminf(fmaxf(x, -FLT_MAX), FLT_MAX);
}

HR_DEVICE float saturate(double x)
{
    return x > (double)FLT_MAX ? FLT_MAX : x < -(double)FLT_MAX ? -FLT_MAX : (float)x;
}

/* Eight channels; `bad` gets a bit that stays set when one is a NaN or infinity. */
HR_DEVICE void load_chunk(const uint16_t *x, float *out, uint32_t &bad)
{
    const uint4 word = __ldg((const uint4 *)x);
    const uint32_t pair[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        bad |= (pair[i] & 0x7F80u) == 0x7F80u || (pair[i] & 0x7F800000u) == 0x7F800000u;
        out[2 * i] = bf16_to_float(pair[i] & 0xFFFFu);
        out[2 * i + 1] = bf16_to_float(pair[i] >> 16);
    }
}

/* (a, b) -> (a cos - b sin, a sin + b cos), rounded once: products of floats are exact in double.
 */
HR_DEVICE float turn_first(float a, float b, float cosine, float sine)
{
    return saturate((double)a * (double)cosine - (double)b * (double)sine);
}

HR_DEVICE float turn_second(float a, float b, float cosine, float sine)
{
    return saturate((double)a * (double)sine + (double)b * (double)cosine);
}

/* Eight channels from `channel` on; the other half of a half-split pair is read once more. */
HR_DEVICE void turn_chunk(const hr_sm90_pack_args &args, const float *turns, const uint16_t *row,
                          int channel, float *v)
{
    if (args.interleaved) {
#pragma unroll
        for (int i = 0; i < 8; i += 2)
            if (channel + i < args.rotary_dim) {
                const float a = v[i], b = v[i + 1];
                const float cosine = turns[channel + i], sine = turns[channel + i + 1];
                v[i] = turn_first(a, b, cosine, sine);
                v[i + 1] = turn_second(a, b, cosine, sine);
            }
        return;
    }
    if (channel >= args.rotary_dim) return;
    const int half = args.rotary_dim / 2;
    const bool first = channel < half;
    float other[8];
    uint32_t bad = 0;
    load_chunk(row + (first ? channel + half : channel - half), other, bad);
    turns += 2 * (first ? channel : channel - half);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = first ? turn_first(v[i], other[i], turns[2 * i], turns[2 * i + 1])
                     : turn_second(other[i], v[i], turns[2 * i], turns[2 * i + 1]);
}

HR_DEVICE double exchange(double value, int lane)
{
    union {
        double value;
        uint32_t word[2];
    } mine = {value};
    mine.word[0] = __shfl_sync(ALL, mine.word[0], lane);
    mine.word[1] = __shfl_sync(ALL, mine.word[1], lane);
    return mine.value;
}

/* row = H D row, one Hadamard block of the row after another (quant/transform.h). */
HR_DEVICE void rotate_row(const hr_sm90_pack_args &args, const Place &place, float (&v)[PART])
{
    double x[PART];
#pragma unroll
    for (int i = 0; i < PART; i++)
        x[i] = (double)(v[i] * args.signs[place.part * PART + i]);
#pragma unroll
    for (int half = 1; half < PART; half *= 2)
#pragma unroll
        for (int i = 0; i < PART; i++)
            if ((i & half) == 0) {
                const double a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
    for (int step = 1; step < args.hadamard_block / PART; step *= 2) {
        const bool upper = place.part & step;
        const int lane = place.lane_of_row + (place.part ^ step);
#pragma unroll
        for (int i = 0; i < PART; i++) {
            const double other = exchange(x[i], lane);
            x[i] = upper ? other - x[i] : x[i] + other;
        }
    }
    const double normalizer = 1.0 / sqrt((double)args.hadamard_block);
#pragma unroll
    for (int i = 0; i < PART; i++)
        v[i] = saturate(x[i] * normalizer);
}

/* q . mean(k) of the row, to the thread of part 0. */
HR_DEVICE void write_bias(const hr_sm90_pack_args &args, const Place &place, int64_t token,
                          bool real, const float (&v)[PART])
{
    const float *mean = args.k_mean +
                        (int64_t)(place.head / (args.q.heads / args.k.heads)) * args.head_dim +
                        place.part * PART;
    double sum = 0, all = 0;
#pragma unroll
    for (int i = 0; i < PART; i++)
        sum += (double)v[i] * (double)mean[i];
    for (int part = 0; part < place.parts; part++)
        all += exchange(sum, place.lane_of_row + part);
    if (real && place.part == 0) args.lse_bias[place.head * args.q.tokens + token] = saturate(all);
}

/*
 * The thread's channels of a token after all transforms; zeros where there is no token. All threads
 * of a warp call together. TRANSFORM: may turn and rotate; BIAS: also writes lse_bias.
 */
template <bool TRANSFORM, bool BIAS>
HR_DEVICE void load_row(const hr_sm90_pack_args &args, const hr_sm90_pack_operand &x,
                        const Place &place, int64_t token, bool real, float (&v)[PART])
{
    const uint16_t *row =
        (const uint16_t *)x.x + token * x.token_stride + place.head * x.head_stride;
    const int first = place.part * PART;
    uint32_t bad = 0;
#pragma unroll
    for (int i = 0; i < PART; i++)
        v[i] = 0;
    if (real) {
#pragma unroll
        for (int i = 0; i < PART; i += 8)
            load_chunk(row + first + i, v + i, bad);
        if (bad) *args.nonfinite = 1;
        if (TRANSFORM && x.positions) {
            const float *turns = args.turns + (int64_t)x.positions[token] * args.rotary_dim;
#pragma unroll
            for (int i = 0; i < PART; i += 8)
                turn_chunk(args, turns, row, first + i, v + i);
        }
    }
    if (BIAS && args.lse_bias) write_bias(args, place, token, real, v);
    if (x.mean) {
        const float *mean = x.mean + (int64_t)place.head * args.head_dim + first;
#pragma unroll
        for (int i = 0; i < PART; i++)
            v[i] = saturate(v[i] - mean[i]);
    }
    if constexpr (TRANSFORM)
        if (x.rotate) rotate_row(args, place, v);
}

/* The scale that maps `largest` to code `steps`; 0 for 0 (valid_scale of quant/pack_scale.c). */
HR_DEVICE float scale_for(float largest, float steps)
{
    if (largest == 0) return 0;
    const float scale = fmaxf(largest / steps, FLT_MIN);
    return scale * steps <= FLT_MAX ? scale : __uint_as_float(__float_as_uint(scale) - 1);
}

/* What no scale of a head may be below, from its largest (hr_scale_floor). */
HR_DEVICE float scale_floor(float largest)
{
    return largest == 0 ? 1.0f : fmaxf(largest * 0x1p-16f, FLT_MIN);
}

HR_DEVICE float token_scale(const Place &place, const float (&v)[PART])
{
    float largest = 0;
#pragma unroll
    for (int i = 0; i < PART; i++)
        largest = fmaxf(largest, fabsf(v[i]));
    float all = 0;
    for (int part = 0; part < place.parts; part++)
        all = fmaxf(all, __shfl_sync(ALL, largest, place.lane_of_row + part));
    return scale_for(all, 127.0f);
}

HR_DEVICE uint32_t encode_i8(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: the adder rounds to an integer, ties to even */
    return __float_as_uint(fminf(fmaxf(x, -127.0f), 127.0f) + magic) & 0xFFu;
}

/* Codes of the thread's channels, lowest first: 4 words, or 8 of BF16. */
HR_DEVICE void encode(const hr_sm90_pack_operand &x, const Place &place, float scale,
                      const float (&v)[PART], uint32_t (&code)[PART / 2])
{
    if (x.format == HR_SM90_PACK_BF16) {
        const float most = 0x1.fep127f;
#pragma unroll
        for (int i = 0; i < PART; i += 2)
            code[i / 2] =
                cvt_bf16x2(fminf(fmaxf(v[i + 1], -most), most), fminf(fmaxf(v[i], -most), most));
    } else if (x.format == HR_SM90_PACK_I8) {
        const float divisor = scale > 0 ? scale : 1;
#pragma unroll
        for (int i = 0; i < PART; i += 4)
            code[i / 4] = encode_i8(v[i] / divisor) | encode_i8(v[i + 1] / divisor) << 8 |
                          encode_i8(v[i + 2] / divisor) << 16 | encode_i8(v[i + 3] / divisor) << 24;
    } else {
        const float *s =
            x.scale + place.head * x.scale_head_stride + place.part * PART * x.scale_channel_stride;
        const int64_t step = x.scale_channel_stride;
#pragma unroll
        for (int i = 0; i < PART; i += 4)
            code[i / 4] = cvt_e4m3x2(v[i + 1] / s[(i + 1) * step], v[i] / s[i * step]) |
                          cvt_e4m3x2(v[i + 3] / s[(i + 3) * step], v[i + 2] / s[(i + 2) * step])
                              << 16;
    }
}

/* Position of a tile's token in a channel of HR_LAYOUT_SM90_V (headroom/pack.h). */
HR_DEVICE int position_of(const hr_sm90_pack_operand &x, int token)
{
    if (x.format == HR_SM90_PACK_BF16) return token;
    return (token & ~15) + ((token & 7) >> 1) * 4 + ((token & 15) >> 3) * 2 + (token & 1);
}

/* Where a code of V waits in shared memory; chunks of 16 bytes change places by channel group. */
HR_DEVICE uint32_t waiting_place(uint32_t base, int bytes, int channel, int position)
{
    const int pitch = TILE * bytes, at = position * bytes;
    const int chunk = (at / 16) ^ (channel / PART & 7);
    return base + channel * pitch + chunk * 16 + at % 16;
}

HR_DEVICE int code_bytes(const hr_sm90_pack_operand &x)
{
    return x.format == HR_SM90_PACK_BF16 ? 2 : 1;
}

HR_DEVICE uint32_t code_at(const uint32_t (&code)[PART / 2], int bytes, int i)
{
    return bytes == 2 ? code[i / 2] >> 16 * (i % 2) & 0xFFFFu : code[i / 4] >> 8 * (i % 4) & 0xFFu;
}

HR_DEVICE void store_row(const hr_sm90_pack_operand &x, const Place &place, int head_dim,
                         int64_t token, const uint32_t (&code)[PART / 2])
{
    const int bytes = code_bytes(x);
    uint4 *out = (uint4 *)((char *)x.codes + place.head * x.head_bytes +
                           (token * head_dim + place.part * PART) * bytes);
    out[0] = make_uint4(code[0], code[1], code[2], code[3]);
    if (bytes == 2) out[1] = make_uint4(code[4], code[5], code[6], code[7]);
}

/* The row's codes to where the whole tile is turned over. */
HR_DEVICE void wait_row(const hr_sm90_pack_operand &x, const Place &place, uint32_t base, int token,
                        const uint32_t (&code)[PART / 2])
{
    const int bytes = code_bytes(x), position = position_of(x, token);
#pragma unroll
    for (int i = 0; i < PART; i++) {
        const uint32_t at = waiting_place(base, bytes, place.part * PART + i, position);
        if (bytes == 2)
            store_shared<uint16_t>(at, (uint16_t)code_at(code, 2, i));
        else
            store_shared<uint8_t>(at, (uint8_t)code_at(code, 1, i));
    }
}

/* The turned tile to global memory, 16 bytes a thread. */
HR_DEVICE void store_tile(const hr_sm90_pack_operand &x, const Place &place, uint32_t base,
                          int head_dim)
{
    const int bytes = code_bytes(x), chunks = TILE * bytes / 16;
    char *out = (char *)x.codes + place.head * x.head_bytes + place.tile_offset;
    for (int i = (int)threadIdx.x; i < head_dim * chunks; i += THREADS) {
        const int channel = i / chunks, chunk = i % chunks;
        const uint32_t at = waiting_place(base, bytes, channel, chunk * 16 / bytes);
        ((uint4 *)out)[i] = load_shared<uint4>(at);
    }
}

/* One token's codes of V directly into global memory: for the few that are encoded again. */
HR_DEVICE void store_column(const hr_sm90_pack_operand &x, const Place &place, int head_dim,
                            int64_t tile, int token, const uint32_t (&code)[PART / 2])
{
    char *out = (char *)x.codes + place.head * x.head_bytes + tile * TILE * head_dim;
#pragma unroll
    for (int i = 0; i < PART; i++)
        out[(place.part * PART + i) * TILE + position_of(x, token)] = (char)code_at(code, 1, i);
}

/* The sequence that has tile `tile` of V; equal offsets are sequences without tiles. */
HR_DEVICE int sequence_of(const int32_t *tile_offset, int batch, int64_t tile)
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

HR_DEVICE void set_tile(const hr_sm90_pack_args &args, const hr_sm90_pack_operand &x, int64_t tile,
                        Place &place)
{
    const int bytes = x.format == HR_SM90_PACK_BF16 ? 2 : 1;
    place.first = tile * TILE;
    place.end = x.tokens;
    place.tile_offset = tile * TILE * args.head_dim * bytes;
    if (x.transposed) {
        const int sequence = sequence_of(args.kv_tile_offset, args.batch, tile);
        place.first = args.cu_seqlens_kv[sequence] + (tile - args.kv_tile_offset[sequence]) * TILE;
        place.end = args.cu_seqlens_kv[sequence + 1];
    }
    if (place.end > place.first + TILE) place.end = place.first + TILE;
}

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
    for (int first = 0; first < TILE; first += WARPS * place.rows) {
        const int row = first + warp * place.rows + place.row_in_warp;
        const bool mine = place.row_in_warp < place.rows && row < TILE;
        const int64_t token = place.first + row;
        const bool real = mine && token < place.end;
        float v[PART], scale = 0;
        uint32_t code[PART / 2];
        load_row<TRANSFORM, BIAS>(args, x, place, real ? token : 0, real, v);
        if (x.format == HR_SM90_PACK_I8) {
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
    for (int64_t tile = 0; tile < x.tiles; tile++) {
        set_tile(args, x, tile, place);
        for (int first = 0; first < TILE; first += WARPS * place.rows) {
            const int row = first + warp * place.rows + place.row_in_warp;
            const int64_t token = place.first + row;
            const bool real = place.row_in_warp < place.rows && row < TILE && token < place.end;
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

/* Where this thread is in rows of head_dim, and the block's head. */
HR_DEVICE Place make_place(int head_dim, int head)
{
    Place place;
    const int lane = (int)threadIdx.x % 32;
    place.head = head;
    place.parts = head_dim / PART;
    place.part = lane % place.parts;
    place.rows = 32 / place.parts;
    place.row_in_warp = lane / place.parts;
    place.lane_of_row = place.row_in_warp * place.parts;
    return place;
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
    for (int first = 0; first < TILE; first += WARPS * place.rows) {
        const int row = first + warp * place.rows + place.row_in_warp;
        const int64_t token = place.first + row;
        const bool real = place.row_in_warp < place.rows && row < TILE && token < place.end;
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
    for (int row = 0; row < WARPS * place.rows; row++)
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
    const int64_t at = head * x.scale_head_stride + (int64_t)threadIdx.x * x.scale_channel_stride;
    const bool mine = (int)threadIdx.x < (x.scale_channel_stride ? head_dim : 1);
    float scale = 0;
    if (mine) {
        scale = scale_for(__uint_as_float(*(volatile uint32_t *)&x.largest[at]), 448.0f);
        x.largest[at] = 0; /* for the next launch */
    }
    const float floor = scale_floor(combine_block(base, scale));
    if (mine) x.scale[at] = fmaxf(scale, floor);
}

/*
 * Dynamic scales of E4M3. Block b is a tile of an operand that has them, in the order of
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
    set_tile(args, x, block / x.heads, place);
    float most[PART];
    observe_tile<TRANSFORM>(args, x, place, most);
    if (place.row_in_warp < place.rows) {
        const int row = thread / 32 * place.rows + place.row_in_warp;
#pragma unroll
        for (int i = 0; i < PART; i++)
            store_shared<float>(base + 4 * (row * args.head_dim + place.part * PART + i), most[i]);
    }
    __syncthreads();
    float mine = thread < args.head_dim ? combine_channel(place, base, args.head_dim, thread) : 0;
    if (!channels) mine = combine_block(base + flag_offset - 4 * WARPS, mine);
    if (thread < (channels ? args.head_dim : 1))
        atomicMax(&x.largest[place.head * x.scale_head_stride + thread * x.scale_channel_stride],
                  __float_as_uint(mine));
    uint32_t *finished = &x.finished[one ? 0 : place.head];
    if (!last_block(finished, one ? (int64_t)x.tiles * x.heads : x.tiles, base + flag_offset))
        return;
    finish_scales(x, place.head, args.head_dim, base + flag_offset - 4 * WARPS);
    if (thread == 0) *finished = 0;
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
    set_tile(args, x, block / x.heads, place);

    const uint32_t base = shared_base();
    if (is_q)
        pack_tile<TRANSFORM, true>(args, x, place, base);
    else
        pack_tile<TRANSFORM, false>(args, x, place, base);
    if (x.transposed) {
        __syncthreads();
        store_tile(x, place, base, args.head_dim);
    }
    if (x.format != HR_SM90_PACK_I8 ||
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
