/*
 * Float inputs that reach every corner of the 8- and 16-bit formats: all 65,536 upper halves of a
 * binary32 with one lower half, and seeded random bit patterns.
 */
#ifndef HEADROOM_FORMAT_INPUTS_H
#define HEADROOM_FORMAT_INPUTS_H

#include <stdint.h>

#include "float_bits.h"

enum { UPPER_HALVES = 65536 };

/* Lower halves at which some format has a tie, and the float neighbours of ties. */
static const uint32_t format_low_halves[] = {0,      1,      0x0fff, 0x1000, 0x1001, 0x3000,
                                             0x7fff, 0x8000, 0x8001, 0xd000, 0xefff, 0xffff};
enum { LOW_HALVES = sizeof format_low_halves / sizeof format_low_halves[0] };

static inline void fill_upper_halves(float *out, uint32_t low)
{
    for (uint32_t i = 0; i < UPPER_HALVES; i++)
        out[i] = hr_float_from_bits(i << 16 | low);
}

/* splitmix64 (Steele, Lea, Flood 2014) */
static inline uint64_t random_bits(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static inline void fill_random_bits(float *out, int count, uint64_t seed)
{
    for (int i = 0; i < count; i++)
        out[i] = hr_float_from_bits((uint32_t)(random_bits(&seed) >> 32));
}

static inline int is_nan_bits(uint32_t bits)
{
    return (bits & 0x7fffffff) > HR_FLOAT_INFINITY_BITS;
}

#endif
