/*
 * The product of the integer kernels (integer_tile.h) with instructions that multiply dwords of
 * codes: add_products of a vector header, which includes this file. A row's dword meets WIDTH
 * columns at once, so rows stand alone (PAIR is 1) and sums are as they are wanted.
 */
#ifndef HEADROOM_INTEGER_DOT_H
#define HEADROOM_INTEGER_DOT_H

/* sum += a [6 rows] . b [16 columns], `steps` dwords deep; rows of a are `stride` codes apart. */
INLINE void multiply(const product_code *a, int64_t stride, const product_code *b, int32_t steps,
                     ivec sum[ROWS][VECS], bool a_unsigned)
{
    for (int32_t step = 0; step < steps; step++, a += CODES, b += VECS * WIDTH * CODES) {
        ivec operand[VECS];
        for (int v = 0; v < VECS; v++)
            operand[v] = ivec_load(b + v * WIDTH * CODES);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            int32_t dword;
            memcpy(&dword, a + r * stride, sizeof dword);
            const ivec factor = ivec_set(dword);
            for (int v = 0; v < VECS; v++)
                add_products(&sum[r][v], factor, operand[v], a_unsigned);
        }
    }
}

/* Sums of multiply as rows of columns. */
INLINE void arrange(ivec sum[ROWS][VECS])
{
    (void)sum;
}

#endif
