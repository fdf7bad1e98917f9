/*
 * The bits of a binary32 and back, and selection without a branch, for conversions that the
 * compiler turns into vector code.
 */
#ifndef HEADROOM_FLOAT_BITS_H
#define HEADROOM_FLOAT_BITS_H

#include <stdint.h>
#include <string.h>

static inline uint32_t hr_float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float hr_float_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define HR_FLOAT_INFINITY_BITS UINT32_C(0x7f800000)

#endif
