/*
 * Packing for Hopper: a row's scale, its codes, and where they go.
 *
 * V turns over in shared memory, [channel][128 tokens] with 16-byte chunks exchanged by channel
 * group, so that neither the writes (a byte for each channel) nor the reads meet in a bank.
 */
#ifndef HEADROOM_PACK_CODE_SM90_CUH
#define HEADROOM_PACK_CODE_SM90_CUH

#include "pack_row_sm90.cuh"

namespace pack_sm90
{

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
        all = fmaxf(all, __shfl_sync(ALL, largest, place.lane_of_row() + part));
    return scale_for(all, 127.0f);
}

HR_DEVICE uint32_t encode_i8(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: the adder rounds to an integer, ties to even */
    return __float_as_uint(fminf(fmaxf(x, -127.0f), 127.0f) + magic) & 0xFFu;
}

/* Codes of the thread's channels, lowest first: 4 words, or 8 of BF16. `scale`: by token. */
HR_DEVICE void encode(const hr_sm90_pack_operand &x, const Place &place, float scale,
                      const float (&v)[PART], uint32_t (&code)[PART / 2])
{
    if (x.format == HR_SM90_PACK_BF16) {
        const float most = 0x1.fep127f;
#pragma unroll
        for (int i = 0; i < PART; i += 2)
            code[i / 2] =
                cvt_bf16x2(fminf(fmaxf(v[i + 1], -most), most), fminf(fmaxf(v[i], -most), most));
    } else if (x.format != HR_SM90_PACK_E4M3) {
        if (x.format == HR_SM90_PACK_I8) scale = x.scale[place.scale];
        const float divisor = scale > 0 ? scale : 1;
#pragma unroll
        for (int i = 0; i < PART; i += 4)
            code[i / 4] = encode_i8(v[i] / divisor) | encode_i8(v[i + 1] / divisor) << 8 |
                          encode_i8(v[i + 2] / divisor) << 16 | encode_i8(v[i + 3] / divisor) << 24;
    } else {
        const float *s = x.scale + place.scale + place.part * PART * (int)x.scale_channel_stride;
        const int step = (int)x.scale_channel_stride;
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
    char *out =
        (char *)x.codes + place.head * x.head_bytes + (int64_t)place.tile * TILE * head_dim * bytes;
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

} // namespace pack_sm90

#endif
