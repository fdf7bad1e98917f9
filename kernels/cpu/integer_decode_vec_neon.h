/*
 * Vectors of the integer decode kernels (integer_decode_tile.h) on NEON: rows of 16 bytes of codes
 * to the operands that integer_vec_neon.h multiplies. The functions of integer_decode_vec_avx2.h,
 * where they are described.
 */
#ifndef HEADROOM_INTEGER_DECODE_VEC_NEON_H
#define HEADROOM_INTEGER_DECODE_VEC_NEON_H

#include "integer_vec_neon.h"

/* 32 registers hold 16 sums and their operands. */
enum { SPLIT = 1, SUM_SHIFT = 0 };
enum { RAW = 16, KEY_ROWS = 4, VALUE_VECTORS = 4, FEW_VECTORS = 16 };

INLINE ivec ivec_add(ivec a, ivec b)
{
    return vaddq_s32(a, b);
}

INLINE ivec ivec_shift_right(ivec x, int bits)
{
    return vshlq_s32(x, vdupq_n_s32(-bits));
}

INLINE ivec bytes_set(int x)
{
    return vreinterpretq_s32_u8(vdupq_n_u8((uint8_t)x));
}

INLINE ivec bytes_sub(ivec a, ivec b)
{
    return vreinterpretq_s32_s8(vsubq_s8(vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)));
}

INLINE ivec bytes_xor(ivec a, ivec b)
{
    return veorq_s32(a, b);
}

INLINE ivec load_levels(const int8_t levels[16])
{
    return vreinterpretq_s32_s8(vld1q_s8(levels));
}

INLINE ivec look_up_levels(ivec levels, ivec bytes, int high)
{
    const uint8x16_t both = vreinterpretq_u8_s32(bytes);
    const uint8x16_t nibbles = high ? vshrq_n_u8(both, 4) : vandq_u8(both, vdupq_n_u8(15));
    return vreinterpretq_s32_s8(vqtbl1q_s8(vreinterpretq_s8_s32(levels), nibbles));
}

INLINE void split_bytes(ivec bytes, ivec out[SPLIT])
{
    out[0] = bytes;
}

INLINE ivec sum_dwords(const ivec v[4])
{
    return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
}

INLINE ivec join_sums(const ivec sum[WIDTH / 4])
{
    return sum[0];
}

INLINE void interleave_rows(ivec v[CODES])
{
    const int8x16_t v0 = vreinterpretq_s8_s32(v[0]), v1 = vreinterpretq_s8_s32(v[1]);
    const int8x16_t v2 = vreinterpretq_s8_s32(v[2]), v3 = vreinterpretq_s8_s32(v[3]);
    const int16x8_t a = vreinterpretq_s16_s8(vzip1q_s8(v0, v1));
    const int16x8_t b = vreinterpretq_s16_s8(vzip2q_s8(v0, v1));
    const int16x8_t c = vreinterpretq_s16_s8(vzip1q_s8(v2, v3));
    const int16x8_t d = vreinterpretq_s16_s8(vzip2q_s8(v2, v3));
    v[0] = vreinterpretq_s32_s16(vzip1q_s16(a, c));
    v[1] = vreinterpretq_s32_s16(vzip2q_s16(a, c));
    v[2] = vreinterpretq_s32_s16(vzip1q_s16(b, d));
    v[3] = vreinterpretq_s32_s16(vzip2q_s16(b, d));
}

#endif
