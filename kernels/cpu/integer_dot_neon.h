/*
 * Products of the integer kernels (integer_tile.h) by NEON's dot-product instructions; included by
 * integer_vec_neon.h. Operands are bytes, four to a dword. sdot multiplies Q and K as they are; P
 * is unsigned, so V is code + 128 and udot multiplies those.
 */
#ifndef HEADROOM_INTEGER_DOT_NEON_H
#define HEADROOM_INTEGER_DOT_NEON_H

/* 32 registers hold 6 x 4 accumulators, 4 operands and a broadcast. */
enum { CODES = 4, UNITS = 4, PAIR = 1, K_OFFSET = 0, V_OFFSET = 128 };

/* For dot products one by one, as decode kernels need them. */
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

/*
 * sum[r] += the first or the second dword of row r times 4 columns. In assembly, and in the order
 * written: compilers load more columns ahead than the sums leave registers for.
 */
INLINE void add_lane_products(ivec *sum, int32x2_t row, ivec columns, int lane, bool a_unsigned)
{
    if (a_unsigned && lane == 0)
        __asm__ volatile("udot %0.4s, %1.16b, %2.4b[0]" : "+w"(*sum) : "w"(columns), "w"(row));
    else if (a_unsigned)
        __asm__ volatile("udot %0.4s, %1.16b, %2.4b[1]" : "+w"(*sum) : "w"(columns), "w"(row));
    else if (lane == 0)
        __asm__ volatile("sdot %0.4s, %1.16b, %2.4b[0]" : "+w"(*sum) : "w"(columns), "w"(row));
    else
        __asm__ volatile("sdot %0.4s, %1.16b, %2.4b[1]" : "+w"(*sum) : "w"(columns), "w"(row));
}

/* The next 8 columns. */
INLINE void load_columns(ivec columns[2], const product_code **b)
{
    const product_code(*codes)[8 * CODES] = (const void *)*b;
    __asm__ volatile("ldp %q0, %q1, [%2], #32"
                     : "=w"(columns[0]), "=w"(columns[1]), "+r"(*b)
                     : "m"(*codes));
}

/*
 * sum += a [6 rows] . b [16 columns], `steps` dwords deep, an even number; rows of a are `stride`
 * codes apart. A row's load serves two steps.
 */
INLINE void multiply(const product_code *a, int64_t stride, const product_code *b, int32_t steps,
                     ivec sum[ROWS][VECS], bool a_unsigned)
{
    for (int32_t step = 0; step < steps; step += 2, a += 2 * CODES) {
        int32x2_t row[ROWS];
        for (int r = 0; r < ROWS; r++)
            row[r] = vreinterpret_s32_s8(vld1_s8(a + r * stride));
#pragma GCC unroll 4
        for (int n = 0; n < 4; n++) {
            ivec columns[2];
            load_columns(columns, &b);
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; r++)
                for (int i = 0; i < 2; i++)
                    add_lane_products(&sum[r][n % 2 * 2 + i], row[r], columns[i], n / 2,
                                      a_unsigned);
        }
    }
}

/* Sums of multiply as rows of columns. */
INLINE void arrange(ivec sum[ROWS][VECS])
{
    (void)sum;
}

#endif
