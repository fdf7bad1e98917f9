/*
 * Packing for Hopper: which tokens and channels a thread has, and these channels in FP32 after all
 * transforms.
 *
 *     x -> rope -> (lse_bias) -> subtract mean -> rotate
 *
 *     row of 64 channels   |  thread 0  |  thread 1  |  thread 2  |  thread 3  |
 *
 * Sixteen channels a thread: a rotation then takes three exchanges between threads at head_dim 128;
 * eight channels would take four, in double precision, as the host rotates, and 32 would not fit
 * the registers.
 */
#ifndef HEADROOM_PACK_ROW_SM90_CUH
#define HEADROOM_PACK_ROW_SM90_CUH

#include <float.h>

#include "launch.cuh"
#include "pack_sm90.h"
#include "sequence_sm90.cuh"

namespace pack_sm90
{

using namespace hopper;

constexpr int THREADS = 256, WARPS = THREADS / 32, PART = HR_SM90_PACK_PART,
              TILE = HR_SM90_PACK_TILE;
constexpr unsigned ALL = 0xFFFFFFFFu;

/* What a block works on, and where in a row its thread is. */
struct Place {
    int head;
    int tile, first, end; /* the tile's number in the head; tokens */
    int scale;            /* index of the tile's scale, or of that of its channel 0 */
    int parts, part;      /* threads a row; this one's number */
    int row_in_warp;      /* this thread's, `rows` when it has none */

    HR_DEVICE int rows() const /* that a warp takes at once */ { return 32 / parts; }
    HR_DEVICE int lane_of_row() const /* lane of part 0 */ { return (int)threadIdx.x % 32 - part; }
};

HR_DEVICE void set_tile(const hr_sm90_pack_args &args, const hr_sm90_pack_operand &x, int tile,
                        Place &place)
{
    place.tile = tile;
    place.scale = place.head * (int)x.scale_head_stride + (x.tile_block ? x.tile_block[tile] : 0);
    place.first = tile * TILE;
    place.end = (int)x.tokens;
    if (x.tile_offset) {
        const int sequence = sequence_of(x.tile_offset, args.batch, tile);
        const int within = tile - x.tile_offset[sequence];
        place.first = x.cu_seqlens[sequence] + within * TILE;
        place.end = x.cu_seqlens[sequence + 1];
    }
    if (place.end - place.first > TILE) place.end = place.first + TILE;
}

/* Where this thread is in rows of head_dim, and the block's head. */
HR_DEVICE Place make_place(int head_dim, int head)
{
    Place place;
    const int lane = (int)threadIdx.x % 32;
    place.head = head;
    place.parts = head_dim / PART;
    place.part = lane % place.parts;
    place.row_in_warp = lane / place.parts;
    return place;
}

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
        const int lane = place.lane_of_row() + (place.part ^ step);
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
        all += exchange(sum, place.lane_of_row() + part);
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

} // namespace pack_sm90

#endif
