/*
 * The register-tiled FP16 product of attention_fp8_avx512fp16.c, with query rows in the lanes:
 *
 *     C[8][32 vecs rows] = A[8][depth] * B[depth][32 vecs rows]        vecs 1, 2 or 3
 *
 *     S^T = K Q^T      A: 8 keys, depth: channels        B: the transposed queries
 *     O^T = V^T P^T    A: 8 channels, depth: keys        B: the weights
 *
 * An element of A is broadcast to all lanes. A broadcast of 16 bits from memory takes a shuffle
 * besides the load, one of 32 bits only the load, so A holds every FP16 value twice in a dword. A
 * step is 8 broadcasts and `vecs` loads for 8 vecs multiply-adds: 11 loads in 12 cycles. It is
 * assembly, so that the speed does not hang on a compiler's register allocator: 24 accumulators,
 * zmm24-26 for B and zmm27-30 for broadcasts.
 */
#ifndef HEADROOM_HALF_PRODUCT_AVX512FP16_H
#define HEADROOM_HALF_PRODUCT_AVX512FP16_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Rows of a block; rows of B and of C are BLOCK_ROWS values apart, whatever `vecs`. */
enum { HALF_LANES = 32, BLOCK_VECS = 3, BLOCK_ROWS = BLOCK_VECS * HALF_LANES, PRODUCT_LINES = 8 };

typedef struct half_product {
    const uint32_t *a;    /* element (i, k) at a[i * line + k * step] */
    ptrdiff_t line, step; /* in elements */
    const _Float16 *b;    /* [depth][BLOCK_ROWS] */
    _Float16 *c;          /* [8][BLOCK_ROWS] */
    int64_t depth, piece; /* >= 1: what is added up is products of `piece` steps or less */
    bool add;             /* C += A B instead of C = A B */
} half_product;

#define ZERO(n) "vpxord %%zmm" #n ", %%zmm" #n ", %%zmm" #n "\n\t"
#define MULTIPLY(factor, b, sum) "vfmadd231ph %%zmm" #b ", %%zmm" #factor ", %%zmm" #sum "\n\t"
#define BROADCAST(at, factor) "vpbroadcastd " at ", %%zmm" #factor "\n\t"
#define STORE(n, at) "vmovups %%zmm" #n ", " at "(%[c])\n\t"
#define ADD(n, at) "vaddph " at "(%[c]), %%zmm" #n ", %%zmm" #n "\n\t"

#define LINE_1(at, factor, x, y, z) BROADCAST(at, factor) MULTIPLY(factor, 24, x)
#define LINE_2(at, factor, x, y, z) LINE_1(at, factor, x, y, z) MULTIPLY(factor, 25, y)
#define LINE_3(at, factor, x, y, z) LINE_2(at, factor, x, y, z) MULTIPLY(factor, 26, z)
#define LOAD_1 "vmovups (%[b]), %%zmm24\n\t"
#define LOAD_2 LOAD_1 "vmovups 64(%[b]), %%zmm25\n\t"
#define LOAD_3 LOAD_2 "vmovups 128(%[b]), %%zmm26\n\t"
#define EACH_1(f, x, y, z, at0, at1, at2) f(x, at0)
#define EACH_2(f, x, y, z, at0, at1, at2) EACH_1(f, x, y, z, at0, at1, at2) f(y, at1)
#define EACH_3(f, x, y, z, at0, at1, at2) EACH_2(f, x, y, z, at0, at1, at2) f(z, at2)

/* f(accumulator, place in C) for all of the first `vecs` of each line. */
#define ALL(vecs, f)                                                                               \
    EACH_##vecs(f, 0, 1, 2, "0", "64", "128") EACH_##vecs(f, 3, 4, 5, "192", "256", "320")         \
        EACH_##vecs(f, 6, 7, 8, "384", "448", "512")                                               \
            EACH_##vecs(f, 9, 10, 11, "576", "640", "704")                                         \
                EACH_##vecs(f, 12, 13, 14, "768", "832", "896")                                    \
                    EACH_##vecs(f, 15, 16, 17, "960", "1024", "1088")                              \
                        EACH_##vecs(f, 18, 19, 20, "1152", "1216", "1280")                         \
                            EACH_##vecs(f, 21, 22, 23, "1344", "1408", "1472")

/* Lines 0, 1, 2, 4 of A are reached from a0, lines 3, 5, 7 from a3 and line 6 from a6. */
/* clang-format off */
#define DEFINE_PRODUCT(vecs)                                                                       \
    static inline void half_multiply_##vecs(const half_product *p)                                 \
    {                                                                                              \
        const uint32_t *a0 = p->a, *a3 = a0 + 3 * p->line, *a6 = a0 + 6 * p->line;                 \
        const _Float16 *b = p->b;                                                                  \
        int64_t left = p->depth, n;                                                                \
        int add = p->add;                                                                             \
        __asm__ volatile(                                                                          \
            "1:\n\t"                                                                               \
            "mov %[piece], %[n]\n\t"                                                               \
            "cmp %[n], %[left]\n\t"                                                                \
            "cmovl %[left], %[n]\n\t"                                                              \
            "sub %[n], %[left]\n\t"                                                                \
            ALL(vecs, ZERO_AT)                                                                     \
            "2:\n\t"                                                                               \
            LOAD_##vecs                                                                            \
            LINE_##vecs("(%[a0])", 27, 0, 1, 2)                                                    \
            LINE_##vecs("(%[a0],%[line])", 28, 3, 4, 5)                                            \
            LINE_##vecs("(%[a0],%[line],2)", 29, 6, 7, 8)                                          \
            LINE_##vecs("(%[a3])", 30, 9, 10, 11)                                                  \
            LINE_##vecs("(%[a0],%[line],4)", 27, 12, 13, 14)                                       \
            LINE_##vecs("(%[a3],%[line],2)", 28, 15, 16, 17)                                       \
            LINE_##vecs("(%[a6])", 29, 18, 19, 20)                                                 \
            LINE_##vecs("(%[a3],%[line],4)", 30, 21, 22, 23)                                       \
            "add %[step], %[a0]\n\t"                                                               \
            "add %[step], %[a3]\n\t"                                                               \
            "add %[step], %[a6]\n\t"                                                               \
            "add $192, %[b]\n\t"                                                                   \
            "dec %[n]\n\t"                                                                         \
            "jnz 2b\n\t"                                                                           \
            "test %[add], %[add]\n\t"                                                              \
            "jz 3f\n\t"                                                                            \
            ALL(vecs, ADD)                                                                         \
            "3:\n\t"                                                                               \
            ALL(vecs, STORE)                                                                       \
            "mov $1, %[add]\n\t"                                                                   \
            "test %[left], %[left]\n\t"                                                            \
            "jnz 1b\n\t"                                                                           \
            : [a0] "+r"(a0), [a3] "+r"(a3), [a6] "+r"(a6), [b] "+r"(b), [left] "+r"(left),         \
              [add] "+r"(add), [n] "=&r"(n)                                                        \
            : [line] "r"(p->line * 4), [step] "r"(p->step * 4), [c] "r"(p->c),                     \
              [piece] "rm"(p->piece)                                                               \
            : "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",      \
              "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16",       \
              "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25",     \
              "xmm26", "xmm27", "xmm28", "xmm29", "xmm30");                                        \
    }
/* clang-format on */

#define ZERO_AT(n, at) ZERO(n)
DEFINE_PRODUCT(1)
DEFINE_PRODUCT(2)
DEFINE_PRODUCT(3)

static inline void half_multiply(const half_product *product, int32_t vecs)
{
    if (vecs == 3)
        half_multiply_3(product);
    else if (vecs == 2)
        half_multiply_2(product);
    else
        half_multiply_1(product);
}

#undef ZERO
#undef ZERO_AT
#undef MULTIPLY
#undef BROADCAST
#undef STORE
#undef ADD
#undef LINE_1
#undef LINE_2
#undef LINE_3
#undef LOAD_1
#undef LOAD_2
#undef LOAD_3
#undef EACH_1
#undef EACH_2
#undef EACH_3
#undef ALL
#undef DEFINE_PRODUCT

#endif
