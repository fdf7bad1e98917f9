/*
 * Products of the integer kernels (integer_tile.h) by NEON's dot-product instructions; included by
 * integer_vec_neon.h. Operands are bytes, four to a dword. sdot multiplies Q and K as they are; P
 * is unsigned, so V is code + 128 and udot multiplies those.
 */
#ifndef HEADROOM_INTEGER_DOT_NEON_H
#define HEADROOM_INTEGER_DOT_NEON_H

/* 32 registers hold 6 x 4 accumulators, 4 operands and a broadcast. */
enum { CODES = 4, UNITS = 4, PAIR = 1, K_OFFSET = 0, V_OFFSET = 128 };

INLINE void add_products(ivec *sum, ivec a, ivec b, bool a_unsigned)
{
    if (a_unsigned)
        *sum = vreinterpretq_s32_u32(vdotq_u32(vreinterpretq_u32_s32(*sum), vreinterpretq_u8_s32(b),
                                               vreinterpretq_u8_s32(a)));
    else
        *sum = vdotq_s32(*sum, vreinterpretq_s8_s32(b), vreinterpretq_s8_s32(a));
}

/* 16 codes of a row of P. */
INLINE void store_codes(product_code *p, uint8x16_t codes)
{
    vst1q_u8((uint8_t *)p, codes);
}

INLINE void transpose(ivec v[UNITS])
{
    const int32x4x2_t a = vtrnq_s32(v[0], v[1]), b = vtrnq_s32(v[2], v[3]);
    v[0] = vcombine_s32(vget_low_s32(a.val[0]), vget_low_s32(b.val[0]));
    v[1] = vcombine_s32(vget_low_s32(a.val[1]), vget_low_s32(b.val[1]));
    v[2] = vcombine_s32(vget_high_s32(a.val[0]), vget_high_s32(b.val[0]));
    v[3] = vcombine_s32(vget_high_s32(a.val[1]), vget_high_s32(b.val[1]));
}

#include "integer_dot.h"

#endif
