/*
 * Vectors of 4 floats in GNU C (gcc and clang), for any architecture: SSE2, NEON, or scalars. The
 * same functions as vec_avx2.h and vec_avx512.h; the tiled kernels are written once against them.
 *
 * VEC_WIDTH    floats a vector
 * ROWS, VECS   the register tile of a matrix product: ROWS x VECS accumulators, VECS operands and
 *              one broadcast fit the register file (16 registers here)
 */
#ifndef HEADROOM_VEC_PORTABLE_H
#define HEADROOM_VEC_PORTABLE_H

#include <stdint.h>
#include <string.h>

#include "float_bits.h"
#include "format_minifloat.h"

enum { VEC_WIDTH = 4, ROWS = 6, VECS = 2 };

typedef float vec __attribute__((vector_size(16)));
typedef int32_t vec_bits __attribute__((vector_size(16)));

static inline vec vec_set(float value)
{
    return (vec){value, value, value, value};
}

static inline vec vec_load(const float *source)
{
    vec value;
    memcpy(&value, source, sizeof value);
    return value;
}

static inline void vec_store(float *target, vec value)
{
    memcpy(target, &value, sizeof value);
}

static inline vec vec_add(vec a, vec b)
{
    return a + b;
}

static inline vec vec_sub(vec a, vec b)
{
    return a - b;
}

static inline vec vec_mul(vec a, vec b)
{
    return a * b;
}

static inline vec vec_div(vec a, vec b)
{
    return a / b;
}

/* a * b + c; two roundings here, one where the machine fuses. */
static inline vec vec_fma(vec a, vec b, vec c)
{
    return a * b + c;
}

/* The larger; b when either is NaN. */
static inline vec vec_max(vec a, vec b)
{
    vec_bits greater = a > b;
    return (vec)(((vec_bits)a & greater) | ((vec_bits)b & ~greater));
}

static inline vec vec_and(vec a, uint32_t mask)
{
    return (vec)((vec_bits)a & (int32_t)mask);
}

/* Bits of `sign` where its top bit is, of `a` elsewhere. */
static inline vec vec_copysign(vec a, vec sign)
{
    return (vec)(((vec_bits)a & INT32_MAX) | ((vec_bits)sign & INT32_MIN));
}

/* The low 9 bits of a's representation as a binary32's sign and exponent. */
static inline vec vec_shift_to_exponent(vec a)
{
    return (vec)((vec_bits)a << 23);
}

static inline float vec_reduce_max(vec a)
{
    float lo = a[0] > a[1] ? a[0] : a[1], hi = a[2] > a[3] ? a[2] : a[3];
    return lo > hi ? lo : hi;
}

static inline float vec_reduce_add(vec a)
{
    return (a[0] + a[2]) + (a[1] + a[3]);
}

/* rows[i][j] <-> rows[j][i] */
static inline void vec_transpose(vec rows[VEC_WIDTH])
{
    vec t[4];
    memcpy(t, rows, sizeof t);
    for (int i = 0; i < 4; i++)
        rows[i] = (vec){t[0][i], t[1][i], t[2][i], t[3][i]};
}

static inline vec vec_load_bf16(const uint16_t *source)
{
    typedef uint32_t words __attribute__((vector_size(16)));
    words bits = {source[0], source[1], source[2], source[3]};
    return (vec)(bits << 16);
}

static inline vec vec_load_e4m3(const uint8_t *source)
{
    return (vec){hr_e4m3_to_float(source[0]), hr_e4m3_to_float(source[1]),
                 hr_e4m3_to_float(source[2]), hr_e4m3_to_float(source[3])};
}

static inline vec vec_load_i8(const int8_t *source)
{
    return (vec){source[0], source[1], source[2], source[3]};
}

#endif
