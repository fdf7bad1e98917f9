/*
 * Vectors of 4 floats, NEON. The functions of vec_portable.h, where they are described. 32
 * registers hold a product tile of 6 x 4 accumulators, 4 operands and a broadcast.
 */
#ifndef HEADROOM_VEC_NEON_H
#define HEADROOM_VEC_NEON_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

enum { VEC_WIDTH = 4, ROWS = 6, VECS = 4 };

typedef float32x4_t vec;

static inline vec vec_set(float value)
{
    return vdupq_n_f32(value);
}

static inline vec vec_load(const float *source)
{
    return vld1q_f32(source);
}

static inline void vec_store(float *target, vec value)
{
    vst1q_f32(target, value);
}

static inline vec vec_add(vec a, vec b)
{
    return vaddq_f32(a, b);
}

static inline vec vec_sub(vec a, vec b)
{
    return vsubq_f32(a, b);
}

static inline vec vec_mul(vec a, vec b)
{
    return vmulq_f32(a, b);
}

static inline vec vec_div(vec a, vec b)
{
    return vdivq_f32(a, b);
}

static inline vec vec_fma(vec a, vec b, vec c)
{
    return vfmaq_f32(c, a, b);
}

/* vmaxq_f32 would give NaN when either is. */
static inline vec vec_max(vec a, vec b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}

static inline vec vec_and(vec a, uint32_t mask)
{
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(mask)));
}

static inline vec vec_copysign(vec a, vec sign)
{
    return vbslq_f32(vdupq_n_u32(UINT32_C(1) << 31), sign, a);
}

static inline vec vec_shift_to_exponent(vec a)
{
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a), 23));
}

static inline float vec_reduce_max(vec a)
{
    return vmaxvq_f32(a);
}

static inline float vec_reduce_add(vec a)
{
    return vaddvq_f32(a);
}

static inline void vec_transpose(vec rows[VEC_WIDTH])
{
    float32x4x2_t low = vtrnq_f32(rows[0], rows[1]), high = vtrnq_f32(rows[2], rows[3]);
    rows[0] = vcombine_f32(vget_low_f32(low.val[0]), vget_low_f32(high.val[0]));
    rows[1] = vcombine_f32(vget_low_f32(low.val[1]), vget_low_f32(high.val[1]));
    rows[2] = vcombine_f32(vget_high_f32(low.val[0]), vget_high_f32(high.val[0]));
    rows[3] = vcombine_f32(vget_high_f32(low.val[1]), vget_high_f32(high.val[1]));
}

static inline vec vec_load_bf16(const uint16_t *source)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(source), 16));
}

/* The four bytes at source, sign-extended to 16 bits. */
static inline int16x4_t vec_load_bytes(const void *source)
{
    uint32_t four;
    memcpy(&four, source, sizeof four);
    return vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four))));
}

/* Through binary16, as in vec_avx512.h. */
static inline vec vec_load_e4m3(const uint8_t *source)
{
    uint16x4_t wide = vreinterpret_u16_s16(vec_load_bytes(source));
    uint16x4_t half = vand_u16(vshl_n_u16(wide, 7), vdup_n_u16(0xbf80));
    const uint16x4_t all_ones = vdup_n_u16(0x3f80);
    uint16x4_t nan = vceq_u16(vand_u16(half, all_ones), all_ones);
    half = vorr_u16(half, vand_u16(nan, vdup_n_u16(0x7e00)));
    return vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(half)), 256.0f);
}

static inline vec vec_load_i8(const int8_t *source)
{
    return vcvtq_f32_s32(vmovl_s16(vec_load_bytes(source)));
}

#endif
