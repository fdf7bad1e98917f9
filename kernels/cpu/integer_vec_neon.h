/*
 * Vectors of the integer kernels (integer_tile.h) on NEON: 4 words of 32 bits, or 8 of 16 bits. The
 * functions of integer_vec_avx2.h, where they are described. What multiplies bytes is in
 * integer_dot_neon.h or, where there are matrix instructions, integer_mmla_neon.h.
 */
#ifndef HEADROOM_INTEGER_VEC_NEON_H
#define HEADROOM_INTEGER_VEC_NEON_H

#include <arm_neon.h>
#include <stdint.h>

#include "integer_softmax.h"

#define INLINE static inline __attribute__((always_inline))

typedef int32x4_t ivec;
typedef float32x4_t fvec;
typedef uint16x8_t wvec;
typedef int8_t product_code;

enum { WIDTH = 4, ROWS = 6, VECS = 4 };

INLINE ivec ivec_set(int32_t x)
{
    return vdupq_n_s32(x);
}

INLINE ivec ivec_load(const void *source)
{
    return vreinterpretq_s32_u8(vld1q_u8(source));
}

INLINE void ivec_store(void *target, ivec x)
{
    vst1q_u8(target, vreinterpretq_u8_s32(x));
}

INLINE ivec ivec_shift_left(ivec x, int bits)
{
    return vshlq_s32(x, vdupq_n_s32(bits));
}

INLINE fvec fvec_of(ivec x)
{
    return vcvtq_f32_s32(x);
}

INLINE fvec fvec_set(float x)
{
    return vdupq_n_f32(x);
}

INLINE fvec fvec_load(const float *source)
{
    return vld1q_f32(source);
}

INLINE void fvec_store(float *target, fvec x)
{
    vst1q_f32(target, x);
}

INLINE fvec fvec_mul(fvec a, fvec b)
{
    return vmulq_f32(a, b);
}

INLINE fvec fvec_sub(fvec a, fvec b)
{
    return vsubq_f32(a, b);
}

INLINE fvec fvec_fma(fvec a, fvec b, fvec c)
{
    return vfmaq_f32(c, a, b);
}

INLINE wvec wvec_set(uint16_t x)
{
    return vdupq_n_u16(x);
}

INLINE wvec wvec_load(const void *source)
{
    return vreinterpretq_u16_u8(vld1q_u8(source));
}

INLINE void wvec_store(void *target, wvec x)
{
    vst1q_u8(target, vreinterpretq_u8_u16(x));
}

INLINE wvec wvec_min(wvec a, wvec b)
{
    return vminq_u16(a, b);
}

INLINE wvec wvec_sub(wvec a, wvec b)
{
    return vqsubq_u16(a, b);
}

INLINE wvec wvec_max(wvec a, wvec b)
{
    return vmaxq_u16(a, b);
}

/* hr_integer_product. */
INLINE wvec wvec_product(wvec a, wvec b)
{
    return vreinterpretq_u16_s16(vqrdmulhq_s16(vreinterpretq_s16_u16(a), vreinterpretq_s16_u16(b)));
}

INLINE uint16_t wvec_least(wvec x)
{
    return vminvq_u16(x);
}

INLINE wvec wvec_hide(wvec x, wvec key, int16_t lo, int16_t hi)
{
    const int16x8_t at = vreinterpretq_s16_u16(key);
    const uint16x8_t before = vcltq_s16(at, vdupq_n_s16(lo));
    return vorrq_u16(x, vorrq_u16(before, vcgeq_s16(at, vdupq_n_s16(hi))));
}

/* Conversion and narrowing both stop at the ends of their ranges. */
INLINE wvec round_logits(fvec low, fvec high)
{
    return vcombine_u16(vqmovun_s32(vcvtnq_s32_f32(low)), vqmovun_s32(vcvtnq_s32_f32(high)));
}

INLINE ivec add_weights(ivec sum, wvec e, wvec factor)
{
    const int16x8_t a = vreinterpretq_s16_u16(e), b = vreinterpretq_s16_u16(factor);
    const ivec low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
    return vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(a, b)));
}

INLINE uint16x4_t from_half(uint16x4_t x)
{
    return vmovn_u32(vcvtnq_u32_f32(vcvt_f32_f16(vreinterpret_f16_u16(x))));
}

/* The table's index is the low byte of a word; 255 in the high one reads as 0. */
INLINE void weights_of(wvec e[VECS])
{
    const uint8x16x4_t table = vld1q_u8_x4(hr_integer_bend);
    for (int w = 0; w < VECS; w++) {
        const uint16x8_t index =
            vorrq_u16(vandq_u16(vshrq_n_u16(e[w], 4), vdupq_n_u16(63)), vdupq_n_u16(0xff00));
        const uint8x16_t bend = vqtbl4q_u8(table, vreinterpretq_u8_u16(index));
        const uint16x8_t half = vqsubq_u16(e[w], vreinterpretq_u16_u8(bend));
        e[w] = vcombine_u16(from_half(vget_low_u16(half)), from_half(vget_high_u16(half)));
    }
}

#ifdef __ARM_FEATURE_MATMUL_INT8
#include "integer_mmla_neon.h"
#else
#include "integer_dot_neon.h"
#endif

/* P of 32 keys; returns total with their sums. */
INLINE ivec store_weights(product_code *p, const wvec e[VECS], ivec total)
{
    for (int w = 0; w < VECS; w += 2) {
        const uint8x16_t codes = vcombine_u8(vqrshrn_n_u16(e[w], 7), vqrshrn_n_u16(e[w + 1], 7));
        store_codes(p + w * 8 * PAIR, codes);
        total =
            vreinterpretq_s32_u32(vdotq_u32(vreinterpretq_u32_s32(total), codes, vdupq_n_u8(1)));
    }
    return total;
}

/* P of 32 keys, hr_integer_product of e and factor. */
INLINE void store_shared_weights(product_code *p, const wvec e[VECS], wvec factor)
{
    for (int w = 0; w < VECS; w += 2)
        store_codes(p + w * 8 * PAIR, vcombine_u8(vmovn_u16(wvec_product(e[w], factor)),
                                                  vmovn_u16(wvec_product(e[w + 1], factor))));
}

/* The same in 15 bits: the upper 8 to `high`, the lower 7 to `low`. */
INLINE ivec store_split_weights(product_code *high, product_code *low, const wvec e[VECS],
                                ivec total)
{
    const uint16x8_t lower = vdupq_n_u16(127);
    uint32x4_t sum = vreinterpretq_u32_s32(total);
    for (int w = 0; w < VECS; w += 2) {
        const uint8x16_t upper = vcombine_u8(vshrn_n_u16(e[w], 7), vshrn_n_u16(e[w + 1], 7));
        const uint8x16_t rest =
            vcombine_u8(vmovn_u16(vandq_u16(e[w], lower)), vmovn_u16(vandq_u16(e[w + 1], lower)));
        store_codes(high + w * 8 * PAIR, upper);
        store_codes(low + w * 8 * PAIR, rest);
        sum = vdotq_u32(vdotq_u32(sum, upper, vdupq_n_u8(128)), rest, vdupq_n_u8(1));
    }
    return vreinterpretq_s32_u32(sum);
}

#endif
