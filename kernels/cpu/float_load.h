/*
 * Decoding tiles of packed rows (HR_LAYOUT_ROWS) into FP32 for the tiled float kernels.
 *
 *     K tile  [tile_kv tokens][head_dim codes]  ->  [channels][tile_kv]   transposed: a product
 *                                                   with Q broadcasts Q and loads 16 keys at once
 *     V tile  [tile_kv tokens][head_dim codes]  ->  [tile_kv][channels]
 *     Q rows  [rows][head_dim codes]            ->  [rows][channels]
 *
 * with `channels` = head_dim rounded up to 16 and zeros in the padding. Scales that belong to a
 * token (tensor, head, token, block) are left to the caller; those that belong to a channel are
 * multiplied in here. Everything is always_inline, so that dtype and granularity are constants.
 */
#ifndef HEADROOM_FLOAT_LOAD_H
#define HEADROOM_FLOAT_LOAD_H

#include <string.h>

#include "kernel.h"

#define FLOAT_INLINE static inline __attribute__((always_inline))

enum { MAX_CHANNELS = 256 };

FLOAT_INLINE int32_t padded_channels(int32_t head_dim)
{
    return (head_dim + 15) / 16 * 16;
}

FLOAT_INLINE size_t code_bytes(hr_dtype dtype)
{
    return dtype == HR_DTYPE_BF16 ? 2 : 1;
}

FLOAT_INLINE vec load_codes(hr_dtype dtype, const void *codes)
{
    if (dtype == HR_DTYPE_BF16) return vec_load_bf16(codes);
    if (dtype == HR_DTYPE_E4M3) return vec_load_e4m3(codes);
    return vec_load_i8(codes);
}

/* VEC_WIDTH channels from `channel` on, zeros past head_dim, reading nothing past the row. */
FLOAT_INLINE vec load_channels(hr_dtype dtype, const unsigned char *row, int32_t channel,
                               int32_t head_dim)
{
    const unsigned char *codes = row + (size_t)channel * code_bytes(dtype);
    if (channel + VEC_WIDTH <= head_dim) return load_codes(dtype, codes);
    unsigned char tail[VEC_WIDTH * 2] = {0};
    if (channel < head_dim) memcpy(tail, codes, (size_t)(head_dim - channel) * code_bytes(dtype));
    return load_codes(dtype, tail);
}

/* The codes of a token, in a page or not. */
FLOAT_INLINE const unsigned char *row_of(const hr_kernel_operand *operand, size_t row_bytes,
                                         int32_t token)
{
    return (const unsigned char *)operand->codes +
           (size_t)hr_kernel_slot(operand, token) * row_bytes;
}

/* The part of a token's scale that is the same for all its channels. */
FLOAT_INLINE float token_scale(const hr_kernel_operand *operand, int32_t token)
{
    switch (operand->granularity) {
    case HR_GRANULARITY_TENSOR:
    case HR_GRANULARITY_HEAD:
        return operand->scale[0];
    case HR_GRANULARITY_TOKEN:
        return operand->scale[hr_kernel_slot(operand, token)];
    case HR_GRANULARITY_BLOCK:
        return operand->scale[token / operand->block];
    default:
        return 1;
    }
}

FLOAT_INLINE bool has_channel_scales(const hr_kernel_operand *operand)
{
    return operand->granularity == HR_GRANULARITY_CHANNEL ||
           operand->granularity == HR_GRANULARITY_GROUP;
}

/* The part that differs between channels, one value a channel; the padding gets 0. */
FLOAT_INLINE void channel_scales(const hr_kernel_operand *operand, int32_t token, int32_t head_dim,
                                 float *scales)
{
    const int32_t block = operand->granularity == HR_GRANULARITY_GROUP ? operand->block : 1;
    const float *source = operand->scale;
    if (operand->granularity == HR_GRANULARITY_GROUP)
        source += hr_kernel_slot(operand, token) * (head_dim / block);
    for (int32_t channel = 0; channel < padded_channels(head_dim); channel++)
        scales[channel] = channel < head_dim ? source[channel / block] : 0;
}

/*
 * Rows [token, token + count) to out [count][channels], times channel scales and, if `whole`, token
 * scales. True when every value is finite.
 */
FLOAT_INLINE bool load_rows(hr_dtype dtype, const hr_kernel_operand *operand, int32_t token,
                            int32_t count, int32_t head_dim, bool whole, float *out)
{
    const int32_t channels = padded_channels(head_dim);
    const bool scaled = dtype != HR_DTYPE_BF16 && has_channel_scales(operand);
    const size_t row_bytes = (size_t)head_dim * code_bytes(dtype);
    const vec zero = vec_set(0);
    vec poison = zero; /* 0 * x summed: NaN as soon as one x is not finite */
    float scales[MAX_CHANNELS];
    for (int32_t i = 0; i < count; i++) {
        const unsigned char *row = row_of(operand, row_bytes, token + i);
        if (scaled && (i == 0 || operand->granularity == HR_GRANULARITY_GROUP))
            channel_scales(operand, token + i, head_dim, scales);
        const vec scale = vec_set(token_scale(operand, token + i));
        for (int32_t channel = 0; channel < channels; channel += VEC_WIDTH) {
            vec x = load_channels(dtype, row, channel, head_dim);
            if (scaled) x = vec_mul(x, vec_load(scales + channel));
            if (whole && dtype != HR_DTYPE_BF16) x = vec_mul(x, scale);
            poison = vec_fma(x, zero, poison);
            vec_store(out + (int64_t)i * channels + channel, x);
        }
    }
    float sum = vec_reduce_add(poison);
    return sum == sum;
}

/*
 * K: rows [token, token + count) to out [channels][stride], one column a token; columns up to the
 * next multiple of VEC_WIDTH are zero.
 */
FLOAT_INLINE void load_keys(hr_dtype dtype, const hr_kernel_operand *operand, int32_t token,
                            int32_t count, int32_t head_dim, float *out, int32_t stride)
{
    const int32_t channels = padded_channels(head_dim);
    const bool scaled = dtype != HR_DTYPE_BF16 && has_channel_scales(operand);
    const size_t row_bytes = (size_t)head_dim * code_bytes(dtype);
    for (int32_t first = 0; first < count; first += VEC_WIDTH) {
        float scales[VEC_WIDTH][MAX_CHANNELS];
        const unsigned char *row[VEC_WIDTH]; /* those past the end repeat the first */
        for (int32_t i = 0; i < VEC_WIDTH; i++)
            row[i] = row_of(operand, row_bytes, token + (first + i < count ? first + i : first));
        if (scaled)
            for (int32_t i = 0; i < VEC_WIDTH; i++) {
                int32_t key = first + i < count ? first + i : first;
                channel_scales(operand, token + key, head_dim, scales[i]);
            }
        for (int32_t channel = 0; channel < channels; channel += VEC_WIDTH) {
            vec block[VEC_WIDTH];
            for (int32_t i = 0; i < VEC_WIDTH; i++) {
                bool present = first + i < count;
                block[i] = present ? load_channels(dtype, row[i], channel, head_dim) : vec_set(0);
                if (scaled) block[i] = vec_mul(block[i], vec_load(scales[i] + channel));
            }
            vec_transpose(block);
            for (int32_t i = 0; i < VEC_WIDTH; i++)
                vec_store(out + (int64_t)(channel + i) * stride + first, block[i]);
        }
    }
}

#endif
