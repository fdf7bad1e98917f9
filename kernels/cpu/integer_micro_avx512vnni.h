/*
 * The two matrix products of the integer kernels on AVX-512 VNNI, as inline assembly: 6 rows x up
 * to 64 columns of int32 in 24 registers, so that neither compiler can spill an accumulator inside
 * the loop (gcc 12 does, and loses a quarter of the speed).
 *
 *     zmm0 .. zmm23    accumulators, row r and column vector c in zmm(4 r + c)
 *     zmm24 .. zmm27   64 columns of the operand that is read as vectors
 *     zmm28 .. zmm31   one dword of each row, broadcast, in rotation
 *
 * A step is 4 loads, 6 broadcasts (load ports) and 24 vpdpbusd, two a cycle: 12 cycles, so that
 * even vectors that come from the second-level cache hide behind the multiplies.
 */
#ifndef HEADROOM_INTEGER_MICRO_AVX512VNNI_H
#define HEADROOM_INTEGER_MICRO_AVX512VNNI_H

#include <stddef.h>
#include <stdint.h>

#include "integer_vector_avx512vnni.h"

enum { HR_MICRO_ROWS = 6 };

/* One instruction a macro reads better than what the formatter makes of it. */
/* clang-format off */
#define Z(n) "%%zmm" #n
#define LOAD(n, offset, base) "vmovdqa64 " #offset "(" base "), " Z(n) "\n\t"
#define BROADCAST(n, offset, base) "vpbroadcastd " #offset "(" base "), " Z(n) "\n\t"
#define CLEAR(n) "vpxord " Z(n) ", " Z(n) ", " Z(n) "\n\t"
#define STORE(n, offset, base) "vmovdqa64 " Z(n) ", " #offset "(" base ")\n\t"
/* times 2^bits */
#define SHIFT(bits, n) "vpslld $" #bits ", " Z(n) ", " Z(n) "\n\t"
#define SHIFT_4(bits, a0, a1, a2, a3)                                                              \
    SHIFT(bits, a0) SHIFT(bits, a1) SHIFT(bits, a2) SHIFT(bits, a3)
#define SHIFT_ALL(bits)                                                                            \
    SHIFT_4(bits, 0, 1, 2, 3) SHIFT_4(bits, 4, 5, 6, 7) SHIFT_4(bits, 8, 9, 10, 11)                \
    SHIFT_4(bits, 12, 13, 14, 15) SHIFT_4(bits, 16, 17, 18, 19) SHIFT_4(bits, 20, 21, 22, 23)
#define DOT(u8, i8, sum) "vpdpbusd " Z(i8) ", " Z(u8) ", " Z(sum) "\n\t"

#define ALL_VECTOR_REGISTERS                                                                       \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",       \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20",  \
        "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30",  \
        "xmm31"

/* Q.K^T: the vectors are unsigned (K + 128), the broadcasts signed (q). */
#define QK_ROW(b, q_offset, a0, a1, a2, a3)                                                        \
    BROADCAST(b, q_offset, "%[q]") DOT(24, b, a0) DOT(25, b, a1) DOT(26, b, a2) DOT(27, b, a3)
#define QK_INIT(offset, a0, a1, a2, a3)                                                            \
    BROADCAST(a0, offset, "%[init]") BROADCAST(a1, offset, "%[init]")                              \
    BROADCAST(a2, offset, "%[init]") BROADCAST(a3, offset, "%[init]")
#define QK_STORE(offset, a0, a1, a2, a3)                                                           \
    STORE(a0, 0 + offset, "%[x]") STORE(a1, 64 + offset, "%[x]")                                   \
    STORE(a2, 128 + offset, "%[x]") STORE(a3, 192 + offset, "%[x]")

#define QK_START                                                                                   \
    QK_INIT(0, 0, 1, 2, 3) QK_INIT(4, 4, 5, 6, 7) QK_INIT(8, 8, 9, 10, 11)                         \
    QK_INIT(12, 12, 13, 14, 15) QK_INIT(16, 16, 17, 18, 19) QK_INIT(20, 20, 21, 22, 23)
/* The registers += sum over 4 * quads channels; moves k and q on. */
#define QK_SUM(quad)                                                                               \
    ".p2align 6\n"                                                                                 \
    quad ":\n\t"                                                                                   \
    LOAD(24, 0, "%[k]") LOAD(25, 64, "%[k]") LOAD(26, 128, "%[k]") LOAD(27, 192, "%[k]")           \
    QK_ROW(28, 0, 0, 1, 2, 3) QK_ROW(29, 4, 4, 5, 6, 7) QK_ROW(30, 8, 8, 9, 10, 11)                \
    QK_ROW(31, 12, 12, 13, 14, 15) QK_ROW(28, 16, 16, 17, 18, 19)                                  \
    QK_ROW(29, 20, 20, 21, 22, 23)                                                                 \
    "add $256, %[k]\n\t"                                                                           \
    "add $24, %[q]\n\t"                                                                            \
    "dec %[quads]\n\t"                                                                             \
    "jnz " quad "b\n\t"
#define QK_MULTIPLY QK_START QK_SUM("1")
#define QK_STORE_ALL                                                                               \
    QK_STORE(0, 0, 1, 2, 3) QK_STORE(256, 4, 5, 6, 7) QK_STORE(512, 8, 9, 10, 11)                  \
    QK_STORE(768, 12, 13, 14, 15) QK_STORE(1024, 16, 17, 18, 19) QK_STORE(1280, 20, 21, 22, 23)

/*
 * x[r][0 .. 63] = init[r] + sum over i < 4 * quads of q[r][i] * k[i][column], as the bits of int32.
 *
 * q [quads][6] dwords of 4 signed bytes; k [quads][64][4] unsigned bytes; init [6]; x [6][64]. k
 * and x are 64-byte aligned; quads >= 1.
 */
static inline void micro_qk(const int32_t *q, const uint8_t *k, int64_t quads, const int32_t *init,
                            float *x)
{
    __asm__ volatile(
        QK_MULTIPLY
        QK_STORE_ALL
        : [k] "+r"(k), [q] "+r"(q), [quads] "+r"(quads)
        : [init] "r"(init), [x] "r"(x)
        : "cc", "memory", ALL_VECTOR_REGISTERS);
}

/* x of a row = sums * k, or that on top of x: k is in the registers 24 to 27. */
#define QK_SCALE(offset, a, column)                                                                \
    "vcvtdq2ps " Z(a) ", " Z(a) "\n\tvmulps " Z(column) ", " Z(a) ", " Z(a) "\n\t"                  \
    STORE(a, offset, "%[x]")
#define QK_ADD(offset, a, column)                                                                  \
    "vcvtdq2ps " Z(a) ", " Z(a) "\n\tvfmadd213ps " #offset "(%[x]), " Z(column) ", " Z(a) "\n\t"   \
    STORE(a, offset, "%[x]")
#define QK_JOIN_ROW(JOIN, a0, a1, a2, a3)                                                          \
    JOIN(0, a0, 24) JOIN(64, a1, 25) JOIN(128, a2, 26) JOIN(192, a3, 27) "add $256, %[x]\n\t"

/*
 * The products of one group of channels in FP32: x[r][column] = fma((float)S, k_scale[column],
 * x[r][column]), or S * k_scale (_first), with S as micro_qk makes it from q, k and init.
 */
#define DEFINE_MICRO_QK_GROUP(name, JOIN)                                                          \
    static inline void name(const int32_t *q, const uint8_t *k, int64_t quads,                     \
                            const int32_t *init, const float *k_scale, float *x)                   \
    {                                                                                              \
        __asm__ volatile(                                                                          \
            QK_MULTIPLY                                                                            \
            LOAD(24, 0, "%[scale]") LOAD(25, 64, "%[scale]")                                       \
            LOAD(26, 128, "%[scale]") LOAD(27, 192, "%[scale]")                                    \
            QK_JOIN_ROW(JOIN, 0, 1, 2, 3) QK_JOIN_ROW(JOIN, 4, 5, 6, 7)                            \
            QK_JOIN_ROW(JOIN, 8, 9, 10, 11) QK_JOIN_ROW(JOIN, 12, 13, 14, 15)                      \
            QK_JOIN_ROW(JOIN, 16, 17, 18, 19) QK_JOIN_ROW(JOIN, 20, 21, 22, 23)                    \
            : [k] "+r"(k), [q] "+r"(q), [quads] "+r"(quads), [x] "+r"(x)                           \
            : [init] "r"(init), [scale] "r"(k_scale)                                               \
            : "cc", "memory", ALL_VECTOR_REGISTERS);                                               \
    }

DEFINE_MICRO_QK_GROUP(micro_qk_group_first, QK_SCALE)
DEFINE_MICRO_QK_GROUP(micro_qk_group_next, QK_ADD)

#define QK_COLUMNS(k_offset, magic_offset, u_offset)                                               \
    LOAD(24, k_offset, "%[columns]") LOAD(25, magic_offset, "%[columns]")                          \
    LOAD(26, u_offset, "%[columns]")
#define QK_LOGIT(sum, a_offset)                                                                    \
    "vfmadd132ps " Z(24) ", " Z(25) ", " Z(sum) "\n\t"                                             \
    "vfnmadd132ps " #a_offset "(%[a])%{1to16%}, " Z(26) ", " Z(sum) "\n\t"                         \
    "vcvtps2dq " Z(sum) ", " Z(sum) "\n\t"
#define QK_LOGITS(a0, a1, a2, a3, a4, a5)                                                          \
    QK_LOGIT(a0, 0) QK_LOGIT(a1, 4) QK_LOGIT(a2, 8) QK_LOGIT(a3, 12) QK_LOGIT(a4, 16)              \
    QK_LOGIT(a5, 20)
/* 32 packed logits of a row. */
#define QK_PACK(low, high, y_offset)                                                               \
    "vpackusdw " Z(high) ", " Z(low) ", " Z(low) "\n\t" STORE(low, y_offset, "%[y]")
#define QK_LEAST_FIRST(low, high, offset)                                                          \
    "vpminuw " Z(high) ", " Z(low) ", " Z(low) "\n\t" STORE(low, offset, "%[least]")
#define QK_LEAST_NEXT(low, high, offset)                                                           \
    "vpminuw " #offset "(%[least]), " Z(low) ", " Z(low) "\n\t" QK_LEAST_FIRST(low, high, offset)

/*
 * As micro_qk, then logits y = fma(S * k[column], -a[r], u[column]) while the sums are in registers,
 * packed to 16 bits as round16 does: y [6][64], each half of a row in the order of vpackusdw; and
 * least[r] = min of y (_first), or of y and least[r] (_next), in 32 lanes. least [6][32] and y are
 * 64-byte aligned.
 */
#define DEFINE_MICRO_QK_LOGITS(name, LEAST)                                                        \
    static inline void name(const int32_t *q, const uint8_t *k, int64_t quads,                     \
                            const int32_t *init, const tile_columns *columns, const float *a,      \
                            uint16_t *y, uint16_t *least)                                          \
    {                                                                                              \
        __asm__ volatile(                                                                          \
            QK_MULTIPLY                                                                            \
            QK_COLUMNS(0, 256, 512) QK_LOGITS(0, 4, 8, 12, 16, 20)                                 \
            QK_COLUMNS(64, 320, 576) QK_LOGITS(1, 5, 9, 13, 17, 21)                                \
            QK_PACK(0, 1, 0) QK_PACK(4, 5, 128) QK_PACK(8, 9, 256) QK_PACK(12, 13, 384)            \
            QK_PACK(16, 17, 512) QK_PACK(20, 21, 640)                                              \
            QK_COLUMNS(128, 384, 640) QK_LOGITS(2, 6, 10, 14, 18, 22)                              \
            QK_COLUMNS(192, 448, 704) QK_LOGITS(3, 7, 11, 15, 19, 23)                              \
            QK_PACK(2, 3, 64) QK_PACK(6, 7, 192) QK_PACK(10, 11, 320) QK_PACK(14, 15, 448)         \
            QK_PACK(18, 19, 576) QK_PACK(22, 23, 704)                                              \
            LEAST(0, 2, 0) LEAST(4, 6, 64) LEAST(8, 10, 128) LEAST(12, 14, 192)                    \
            LEAST(16, 18, 256) LEAST(20, 22, 320)                                                  \
            : [k] "+r"(k), [q] "+r"(q), [quads] "+r"(quads)                                        \
            : [init] "r"(init), [columns] "r"(columns), [a] "r"(a), [y] "r"(y), [least] "r"(least) \
            : "cc", "memory", ALL_VECTOR_REGISTERS);                                               \
    }

DEFINE_MICRO_QK_LOGITS(micro_qk_logits_first, QK_LEAST_FIRST)
DEFINE_MICRO_QK_LOGITS(micro_qk_logits_next, QK_LEAST_NEXT)

/*
 * The first 32 or 48 of the 64 keys, for groups that see no more: y of the other keys is arbitrary,
 * and there is no least.
 */
#define QK_ROW_2(b, q_offset, a0, a1)                                                              \
    BROADCAST(b, q_offset, "%[q]") DOT(24, b, a0) DOT(25, b, a1)
#define QK_ROW_3(b, q_offset, a0, a1, a2) QK_ROW_2(b, q_offset, a0, a1) DOT(26, b, a2)
#define QK_NEXT                                                                                    \
    "add $256, %[k]\n\t"                                                                           \
    "add $24, %[q]\n\t"                                                                            \
    "dec %[quads]\n\t"                                                                             \
    "jnz 1b\n\t"
#define QK_SUM_2                                                                                   \
    ".p2align 6\n"                                                                                 \
    "1:\n\t"                                                                                       \
    LOAD(24, 0, "%[k]") LOAD(25, 64, "%[k]")                                                       \
    QK_ROW_2(28, 0, 0, 1) QK_ROW_2(29, 4, 4, 5) QK_ROW_2(30, 8, 8, 9)                              \
    QK_ROW_2(31, 12, 12, 13) QK_ROW_2(28, 16, 16, 17) QK_ROW_2(29, 20, 20, 21)                     \
    QK_NEXT
#define QK_SUM_3                                                                                   \
    ".p2align 6\n"                                                                                 \
    "1:\n\t"                                                                                       \
    LOAD(24, 0, "%[k]") LOAD(25, 64, "%[k]") LOAD(26, 128, "%[k]")                                 \
    QK_ROW_3(28, 0, 0, 1, 2) QK_ROW_3(29, 4, 4, 5, 6) QK_ROW_3(30, 8, 8, 9, 10)                    \
    QK_ROW_3(31, 12, 12, 13, 14) QK_ROW_3(28, 16, 16, 17, 18) QK_ROW_3(29, 20, 20, 21, 22)         \
    QK_NEXT
#define QK_PACK_LOW                                                                                \
    QK_PACK(0, 1, 0) QK_PACK(4, 5, 128) QK_PACK(8, 9, 256) QK_PACK(12, 13, 384)                    \
    QK_PACK(16, 17, 512) QK_PACK(20, 21, 640)
#define DEFINE_MICRO_QK_PART(name, SUM, MORE)                                                      \
    static inline void name(const int32_t *q, const uint8_t *k, int64_t quads,                     \
                            const int32_t *init, const tile_columns *columns, const float *a,      \
                            uint16_t *y)                                                           \
    {                                                                                              \
        __asm__ volatile(                                                                          \
            QK_START                                                                               \
            SUM                                                                                    \
            QK_COLUMNS(0, 256, 512) QK_LOGITS(0, 4, 8, 12, 16, 20)                                 \
            QK_COLUMNS(64, 320, 576) QK_LOGITS(1, 5, 9, 13, 17, 21)                                \
            QK_PACK_LOW                                                                            \
            MORE                                                                                   \
            : [k] "+r"(k), [q] "+r"(q), [quads] "+r"(quads)                                        \
            : [init] "r"(init), [columns] "r"(columns), [a] "r"(a), [y] "r"(y)                     \
            : "cc", "memory", ALL_VECTOR_REGISTERS);                                               \
    }

DEFINE_MICRO_QK_PART(micro_qk_logits_32, QK_SUM_2, )
DEFINE_MICRO_QK_PART(micro_qk_logits_48, QK_SUM_3,
    QK_COLUMNS(128, 384, 640) QK_LOGITS(2, 6, 10, 14, 18, 22)
    QK_PACK(2, 2, 64) QK_PACK(6, 6, 192) QK_PACK(10, 10, 320) QK_PACK(14, 14, 448)
    QK_PACK(18, 18, 576) QK_PACK(22, 22, 704))

/*
 * P.V: the broadcasts are unsigned (P), the vectors signed (V). One function for each number of
 * column vectors, since a head_dim that is not a multiple of 64 leaves fewer than 4.
 */
#define PV_LOAD_1 LOAD(24, 0, "%[v]")
#define PV_LOAD_2 PV_LOAD_1 LOAD(25, 64, "%[v]")
#define PV_LOAD_3 PV_LOAD_2 LOAD(26, 128, "%[v]")
#define PV_LOAD_4 PV_LOAD_3 LOAD(27, 192, "%[v]")
#define PV_DOT_1(b, a0, a1, a2, a3) DOT(b, 24, a0)
#define PV_DOT_2(b, a0, a1, a2, a3) PV_DOT_1(b, a0, a1, a2, a3) DOT(b, 25, a1)
#define PV_DOT_3(b, a0, a1, a2, a3) PV_DOT_2(b, a0, a1, a2, a3) DOT(b, 26, a2)
#define PV_DOT_4(b, a0, a1, a2, a3) PV_DOT_3(b, a0, a1, a2, a3) DOT(b, 27, a3)
#define PV_ROW(n, b, p_offset, a0, a1, a2, a3)                                                     \
    BROADCAST(b, p_offset, "%[p]") PV_DOT_##n(b, a0, a1, a2, a3)
#define PV_CLEAR(a0, a1, a2, a3) CLEAR(a0) CLEAR(a1) CLEAR(a2) CLEAR(a3)
/* O of a row = T * beta + O * alpha; then the next row. */
#define PV_OUTPUT(offset, old, sum)                                                                \
    "vcvtdq2ps " Z(sum) ", " Z(sum) "\n\t"                                                         \
    "vmulps " #offset "(%[o]), " Z(24) ", " Z(old) "\n\t"                                          \
    "vfmadd213ps " Z(old) ", " Z(25) ", " Z(sum) "\n\t"                                            \
    "vmovaps " Z(sum) ", " #offset "(%[o])\n\t"
#define PV_OUTPUT_1(a0, a1, a2, a3) PV_OUTPUT(0, 26, a0)
#define PV_OUTPUT_2(a0, a1, a2, a3) PV_OUTPUT_1(a0, a1, a2, a3) PV_OUTPUT(64, 27, a1)
#define PV_OUTPUT_3(a0, a1, a2, a3) PV_OUTPUT_2(a0, a1, a2, a3) PV_OUTPUT(128, 28, a2)
#define PV_OUTPUT_4(a0, a1, a2, a3) PV_OUTPUT_3(a0, a1, a2, a3) PV_OUTPUT(192, 29, a3)
#define PV_FIRST(offset, sum)                                                                      \
    "vcvtdq2ps " Z(sum) ", " Z(sum) "\n\t"                                                         \
    "vmovaps " Z(sum) ", " #offset "(%[o])\n\t"
#define PV_FIRST_1(a0, a1, a2, a3) PV_FIRST(0, a0)
#define PV_FIRST_2(a0, a1, a2, a3) PV_FIRST_1(a0, a1, a2, a3) PV_FIRST(64, a1)
#define PV_FIRST_3(a0, a1, a2, a3) PV_FIRST_2(a0, a1, a2, a3) PV_FIRST(128, a2)
#define PV_FIRST_4(a0, a1, a2, a3) PV_FIRST_3(a0, a1, a2, a3) PV_FIRST(192, a3)
#define PV_START(n, alpha, beta, a0, a1, a2, a3)                                                   \
    PV_FIRST_##n(a0, a1, a2, a3)                                                                   \
    "add %[o_stride], %[o]\n\t"
#define PV_JOIN(n, alpha, beta, a0, a1, a2, a3)                                                    \
    BROADCAST(24, alpha, "%[scalars]") BROADCAST(25, beta, "%[scalars]")                           \
    PV_OUTPUT_##n(a0, a1, a2, a3)                                                                  \
    "add %[o_stride], %[o]\n\t"

/* The registers += sum over 64 * tiles keys of p * v; moves p and v on. */
#define PV_SUM(n, tile, quad)                                                                      \
    tile ":\n\t"                                                                                   \
    "mov $16, %[quads]\n\t"                                                                        \
    ".p2align 6\n"                                                                                 \
    quad ":\n\t"                                                                                   \
    PV_LOAD_##n                                                                                    \
    PV_ROW(n, 28, 0, 0, 1, 2, 3) PV_ROW(n, 29, 64, 4, 5, 6, 7)                                     \
    PV_ROW(n, 30, 128, 8, 9, 10, 11) PV_ROW(n, 31, 192, 12, 13, 14, 15)                            \
    PV_ROW(n, 28, 256, 16, 17, 18, 19) PV_ROW(n, 29, 320, 20, 21, 22, 23)                          \
    "add %[stride], %[v]\n\t"                                                                      \
    "add $4, %[p]\n\t"                                                                             \
    "dec %[quads]\n\t"                                                                             \
    "jnz " quad "b\n\t"                                                                            \
    "add $320, %[p]\n\t"                                                                           \
    "dec %[tiles]\n\t"                                                                             \
    "jnz " tile "b\n\t"

/*
 * The registers += sum over the first 16 * tail keys of the 64 next, whose quads are every first
 * `tail` of four.
 */
#define PV_TAIL(n, four, quad, end)                                                                \
    "cmpq $0, %[tail]\n\t"                                                                         \
    "je " end "f\n\t"                                                                              \
    "mov $4, %[tiles]\n\t"                                                                         \
    four ":\n\t"                                                                                   \
    "mov %[tail], %[quads]\n\t"                                                                    \
    ".p2align 6\n"                                                                                 \
    quad ":\n\t"                                                                                   \
    PV_LOAD_##n                                                                                    \
    PV_ROW(n, 28, 0, 0, 1, 2, 3) PV_ROW(n, 29, 64, 4, 5, 6, 7)                                     \
    PV_ROW(n, 30, 128, 8, 9, 10, 11) PV_ROW(n, 31, 192, 12, 13, 14, 15)                            \
    PV_ROW(n, 28, 256, 16, 17, 18, 19) PV_ROW(n, 29, 320, 20, 21, 22, 23)                          \
    "add %[stride], %[v]\n\t"                                                                      \
    "add $4, %[p]\n\t"                                                                             \
    "dec %[quads]\n\t"                                                                             \
    "jnz " quad "b\n\t"                                                                            \
    "add %[p_skip], %[p]\n\t"                                                                      \
    "add %[v_skip], %[v]\n\t"                                                                      \
    "dec %[tiles]\n\t"                                                                             \
    "jnz " four "b\n"                                                                              \
    end ":\n\t"

/* What multiplies six rows' old O and their T: rows 0 .. 5 from alpha and beta on. */
typedef struct micro_scalars {
    ALIGNED float alpha[16], beta[16];
} micro_scalars;

/*
 * O[r][0 .. 16 n - 1] = T * beta[r] + O * alpha[r] or just T, T = sum over 64 * tiles keys of p[r][key] *
 * v[key][column], and over 16 * tail more.
 *
 * p [tiles][6][64] unsigned bytes in the key order of HR_LAYOUT_VNNI_V; v quads of 4 keys, `stride`
 * bytes apart, each [16 n][4] signed bytes, 64-byte aligned; o rows `o_stride` bytes apart, 64-byte
 * aligned; scalars points at the alpha of row 0 in a micro_scalars. tail is 0 to 3, and one of
 * tiles and tail at least 1.
 */
#define DEFINE_MICRO_PV(name, n, ROW)                                                              \
    static inline void name(const uint8_t *p, const int8_t *v, int64_t stride,                     \
                                    int64_t tiles, int64_t tail, float *o, int64_t o_stride,       \
                                    const float *scalars)                                          \
    {                                                                                              \
        const int64_t p_skip = 4 * (4 - tail), v_skip = stride * (4 - tail);                       \
        int64_t quads;                                                                             \
        __asm__ volatile(                                                                          \
            PV_CLEAR(0, 1, 2, 3) PV_CLEAR(4, 5, 6, 7) PV_CLEAR(8, 9, 10, 11)                       \
            PV_CLEAR(12, 13, 14, 15) PV_CLEAR(16, 17, 18, 19) PV_CLEAR(20, 21, 22, 23)             \
            "test %[tiles], %[tiles]\n\t"                                                          \
            "jz 3f\n\t"                                                                            \
            PV_SUM(n, "1", "2")                                                                    \
            "3:\n\t"                                                                               \
            PV_TAIL(n, "4", "5", "6")                                                              \
            ROW(n, 0, 64, 0, 1, 2, 3) ROW(n, 4, 68, 4, 5, 6, 7)                                    \
            ROW(n, 8, 72, 8, 9, 10, 11) ROW(n, 12, 76, 12, 13, 14, 15)                             \
            ROW(n, 16, 80, 16, 17, 18, 19) ROW(n, 20, 84, 20, 21, 22, 23)                          \
            : [p] "+r"(p), [v] "+r"(v), [tiles] "+r"(tiles), [quads] "=&r"(quads), [o] "+r"(o)     \
            : [stride] "r"(stride), [o_stride] "r"(o_stride), [scalars] "r"(scalars),              \
              [tail] "m"(tail), [p_skip] "m"(p_skip), [v_skip] "m"(v_skip)                         \
            : "cc", "memory", ALL_VECTOR_REGISTERS);                                               \
    }

DEFINE_MICRO_PV(micro_pv_1, 1, PV_JOIN)
DEFINE_MICRO_PV(micro_pv_2, 2, PV_JOIN)
DEFINE_MICRO_PV(micro_pv_3, 3, PV_JOIN)
DEFINE_MICRO_PV(micro_pv_4, 4, PV_JOIN)
DEFINE_MICRO_PV(micro_pv_first_1, 1, PV_START)
DEFINE_MICRO_PV(micro_pv_first_2, 2, PV_START)
DEFINE_MICRO_PV(micro_pv_first_3, 3, PV_START)
DEFINE_MICRO_PV(micro_pv_first_4, 4, PV_START)

/* The same in two passes, T = T of p * 2^7 + T of p_low: P of 15 bits, its high 8 and its low 7. */
#define DEFINE_MICRO_PV_TWICE(name, n, ROW)                                                 \
    static inline void name(const uint8_t *p, const uint8_t *p_low, const int8_t *v,               \
                            int64_t stride, int64_t tiles, float *o, int64_t o_stride,             \
                            const float *scalars)                                                  \
    {                                                                                              \
        const int8_t *v_again = v;                                                                 \
        int64_t quads, left = tiles;                                                               \
        __asm__ volatile(                                                                          \
            PV_CLEAR(0, 1, 2, 3) PV_CLEAR(4, 5, 6, 7) PV_CLEAR(8, 9, 10, 11)                       \
            PV_CLEAR(12, 13, 14, 15) PV_CLEAR(16, 17, 18, 19) PV_CLEAR(20, 21, 22, 23)             \
            PV_SUM(n, "1", "2")                                                                    \
            SHIFT_ALL(7)                                                                           \
            "mov %[p_low], %[p]\n\t"                                                               \
            "mov %[v_again], %[v]\n\t"                                                             \
            "mov %[left], %[tiles]\n\t"                                                            \
            PV_SUM(n, "3", "4")                                                                    \
            ROW(n, 0, 64, 0, 1, 2, 3) ROW(n, 4, 68, 4, 5, 6, 7)                                    \
            ROW(n, 8, 72, 8, 9, 10, 11) ROW(n, 12, 76, 12, 13, 14, 15)                             \
            ROW(n, 16, 80, 16, 17, 18, 19) ROW(n, 20, 84, 20, 21, 22, 23)                          \
            : [p] "+r"(p), [v] "+r"(v), [tiles] "+r"(tiles), [quads] "=&r"(quads), [o] "+r"(o)     \
            : [stride] "r"(stride), [o_stride] "r"(o_stride), [scalars] "r"(scalars),              \
              [p_low] "m"(p_low), [v_again] "m"(v_again), [left] "m"(left)                         \
            : "cc", "memory", ALL_VECTOR_REGISTERS);                                               \
    }

DEFINE_MICRO_PV_TWICE(micro_pv_precise_1, 1, PV_JOIN)
DEFINE_MICRO_PV_TWICE(micro_pv_precise_2, 2, PV_JOIN)
DEFINE_MICRO_PV_TWICE(micro_pv_precise_3, 3, PV_JOIN)
DEFINE_MICRO_PV_TWICE(micro_pv_precise_4, 4, PV_JOIN)
DEFINE_MICRO_PV_TWICE(micro_pv_precise_first_1, 1, PV_START)
DEFINE_MICRO_PV_TWICE(micro_pv_precise_first_2, 2, PV_START)
DEFINE_MICRO_PV_TWICE(micro_pv_precise_first_3, 3, PV_START)
DEFINE_MICRO_PV_TWICE(micro_pv_precise_first_4, 4, PV_START)

/* clang-format on */

/* `first`: O = T, whatever it was. */
static inline void micro_pv(int vectors, bool first, const uint8_t *p, const int8_t *v,
                            int64_t stride, int64_t tiles, int64_t tail, float *o, int64_t o_stride,
                            const float *scalars)
{
    static void (*const micro[2][4])(const uint8_t *, const int8_t *, int64_t, int64_t, int64_t,
                                     float *, int64_t, const float *) = {
        {micro_pv_1, micro_pv_2, micro_pv_3, micro_pv_4},
        {micro_pv_first_1, micro_pv_first_2, micro_pv_first_3, micro_pv_first_4},
    };
    micro[first][vectors - 1](p, v, stride, tiles, tail, o, o_stride, scalars);
}

/* P of 15 bits. */
static inline void micro_pv_precise(int vectors, bool first, const uint8_t *p, const uint8_t *p_low,
                                    const int8_t *v, int64_t stride, int64_t tiles, float *o,
                                    int64_t o_stride, const float *scalars)
{
    static void (*const micro[2][4])(const uint8_t *, const uint8_t *, const int8_t *, int64_t,
                                     int64_t, float *, int64_t, const float *) = {
        {micro_pv_precise_1, micro_pv_precise_2, micro_pv_precise_3, micro_pv_precise_4},
        {micro_pv_precise_first_1, micro_pv_precise_first_2, micro_pv_precise_first_3,
         micro_pv_precise_first_4},
    };
    micro[first][vectors - 1](p, p_low, v, stride, tiles, o, o_stride, scalars);
}

#undef Z
#undef LOAD
#undef BROADCAST
#undef CLEAR
#undef STORE
#undef DOT
#undef SHIFT

#endif
