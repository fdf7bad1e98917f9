/*
 * Products of the integer kernels (integer_tile.h) by the 8-bit matrix instructions (FEAT_I8MM);
 * included by integer_vec_neon.h. An instruction multiplies two rows of 8 codes with two columns of
 * 8, twice the work of a dot product:
 *
 *     [ r0: 8 codes ]   [ c0: 8 codes ]       [ r0 . c0   r0 . c1 ]
 *     [ r1: 8 codes ] x [ c1: 8 codes ]^T  =  [ r1 . c0   r1 . c1 ]
 *
 * so rows of Q and of P stand in pairs. smmla multiplies Q and K, usmmla P, which is unsigned, and
 * V: no operand needs an offset.
 */
#ifndef HEADROOM_INTEGER_MMLA_NEON_H
#define HEADROOM_INTEGER_MMLA_NEON_H

/* 32 registers hold 3 x 8 accumulators, 3 pairs of rows and up to 5 of columns. */
enum { CODES = 8, UNITS = 2, PAIR = 2, K_OFFSET = 0, V_OFFSET = 0 };

/*
 * In assembly, and in the order written: compilers load all columns of a step at once and then keep
 * sums in memory.
 */
INLINE void add_products(ivec *sum, ivec a, ivec b, bool a_unsigned)
{
    if (a_unsigned)
        __asm__ volatile("usmmla %0.4s, %1.16b, %2.16b" : "+w"(*sum) : "w"(a), "w"(b));
    else
        __asm__ volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(*sum) : "w"(a), "w"(b));
}

/* The next four columns: two operands. */
INLINE void load_columns(ivec columns[2], const product_code **b)
{
    const product_code(*codes)[4 * CODES] = (const void *)*b;
    __asm__ volatile("ldp %q0, %q1, [%2], #32"
                     : "=w"(columns[0]), "=w"(columns[1]), "+r"(*b)
                     : "m"(*codes));
}

/*
 * sum += a [6 rows] . b [16 columns], `steps` times 8 codes deep; rows of a are `stride` codes
 * apart, less what they share with the other of their pair. Until they are arranged, sums of rows
 * 2 i and 2 i + 1 with columns 4 v to 4 v + 3 are two squares: sum[2 i][v] has the first two
 * columns, sum[2 i + 1][v] the others.
 */
INLINE void multiply(const product_code *a, int64_t stride, const product_code *b, int32_t steps,
                     ivec sum[ROWS][VECS], bool a_unsigned)
{
    for (int32_t step = 0; step < steps; step++, a += PAIR * CODES) {
        ivec factor[ROWS / PAIR], columns[2][2];
        for (int i = 0; i < ROWS / PAIR; i++)
            factor[i] = ivec_load(a + i * PAIR * stride);
        load_columns(columns[0], &b);
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) {
            if (v + 1 < VECS) load_columns(columns[(v + 1) % 2], &b);
#pragma GCC unroll 3
            for (int i = 0; i < ROWS; i += PAIR) {
                add_products(&sum[i][v], factor[i / PAIR], columns[v % 2][0], a_unsigned);
                add_products(&sum[i + 1][v], factor[i / PAIR], columns[v % 2][1], a_unsigned);
            }
        }
    }
}

/* Sums of multiply as rows of columns. */
INLINE void arrange(ivec sum[ROWS][VECS])
{
    for (int r = 0; r < ROWS; r += PAIR)
        for (int v = 0; v < VECS; v++) {
            const int64x2_t left = vreinterpretq_s64_s32(sum[r][v]);
            const int64x2_t right = vreinterpretq_s64_s32(sum[r + 1][v]);
            sum[r][v] = vreinterpretq_s32_s64(vzip1q_s64(left, right));
            sum[r + 1][v] = vreinterpretq_s32_s64(vzip2q_s64(left, right));
        }
}

/* 16 codes of a row of P. */
INLINE void store_codes(product_code *p, uint8x16_t codes)
{
    vst1_u8((uint8_t *)p, vget_low_u8(codes));
    vst1_u8((uint8_t *)p + PAIR * CODES, vget_high_u8(codes));
}

INLINE void transpose(ivec v[UNITS])
{
    const int64x2_t a = vreinterpretq_s64_s32(v[0]), b = vreinterpretq_s64_s32(v[1]);
    v[0] = vreinterpretq_s32_s64(vzip1q_s64(a, b));
    v[1] = vreinterpretq_s32_s64(vzip2q_s64(a, b));
}

#endif
