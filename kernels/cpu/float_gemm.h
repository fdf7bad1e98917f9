/*
 * The register-tiled FP32 product of the float kernels:
 *
 *     C[rows][columns] = A[rows][depth] * B[depth][columns]
 *
 * ROWS x VECS accumulators stay in registers; each step of the depth loads VECS vectors of B and
 * broadcasts one element of A a row, so ROWS * VECS multiply-adds cost VECS + ROWS loads. Used for
 * S = Q K^T (B is the transposed K tile) and for O = alpha * O + beta * P V.
 */
#ifndef HEADROOM_FLOAT_GEMM_H
#define HEADROOM_FLOAT_GEMM_H

#include "float_load.h"

typedef struct float_product {
    const float *a; /* [rows][depth], rows lda apart */
    const float *b; /* [depth][columns], rows ldb apart */
    float *c;       /* [rows][columns], rows ldc apart */
    int64_t lda, ldb, ldc;
    int32_t depth, columns;    /* columns: a multiple of VEC_WIDTH */
    const float *alpha, *beta; /* one a row: C = alpha * C + beta * A B. NULL: C = A B */
} float_product;

/* One tile of rows x vecs vectors at the given row and column; the counts are constants. */
FLOAT_INLINE void product_tile(const float_product *product, int rows, int vecs, int32_t row,
                               int32_t column)
{
    const float *a = product->a + row * product->lda;
    const float *b = product->b + column;
    const int64_t lda = product->lda, ldb = product->ldb;
    vec sum[ROWS][VECS];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vecs; v++)
            sum[i][v] = vec_set(0);
    for (int32_t k = 0; k < product->depth; k++, b += ldb) {
        vec operand[VECS];
        for (int v = 0; v < vecs; v++)
            operand[v] = vec_load(b + v * VEC_WIDTH);
        for (int i = 0; i < rows; i++) {
            vec factor = vec_set(a[i * lda + k]);
            for (int v = 0; v < vecs; v++)
                sum[i][v] = vec_fma(factor, operand[v], sum[i][v]);
        }
    }
    for (int i = 0; i < rows; i++) {
        float *c = product->c + (row + i) * product->ldc + column;
        for (int v = 0; v < vecs; v++) {
            vec result = sum[i][v];
            if (product->alpha) {
                vec old = vec_mul(vec_load(c + v * VEC_WIDTH), vec_set(product->alpha[row + i]));
                result = vec_fma(result, vec_set(product->beta[row + i]), old);
            }
            vec_store(c + v * VEC_WIDTH, result);
        }
    }
}

FLOAT_INLINE void product_rows(const float_product *product, int rows, int32_t row)
{
    int32_t column = 0;
    for (; column + VECS * VEC_WIDTH <= product->columns; column += VECS * VEC_WIDTH)
        product_tile(product, rows, VECS, row, column);
    for (; VECS > 2 && column + 2 * VEC_WIDTH <= product->columns; column += 2 * VEC_WIDTH)
        product_tile(product, rows, 2, row, column);
    for (; column < product->columns; column += VEC_WIDTH)
        product_tile(product, rows, 1, row, column);
}

/* Any number of rows up to ROWS, as full tiles of 6, 4, 2 and 1. */
static inline void multiply(const float_product *product, int32_t rows)
{
    int32_t row = 0;
    if (rows == ROWS) {
        product_rows(product, ROWS, 0);
        return;
    }
    for (; rows - row >= 4; row += 4)
        product_rows(product, 4, row);
    for (; rows - row >= 2; row += 2)
        product_rows(product, 2, row);
    if (rows > row) product_rows(product, 1, row);
}

#endif
