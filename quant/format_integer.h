/*
 * The integer formats, one element at a time: I8, U8, I4, U4.
 *
 * Rounding: a value clamped to the codes' range plus 1.5 * 2^23 is rounded to an integer, nearest
 * even, by the float adder, and the integer is in the sum's low bits. NaN has no code; callers
 * reject it, and these functions give it the lowest code.
 */
#ifndef HEADROOM_FORMAT_INTEGER_H
#define HEADROOM_FORMAT_INTEGER_H

#include "float_bits.h"

#define HR_ROUND_MAGIC                                                                             \
    0x1.8p23f /* half-integers are ties and even integers win, for |x| < 2^22                      \
               */

static inline float hr_clamp(float value, float low, float high)
{
    value = value > low ? value : low;
    return value < high ? value : high;
}

static inline int32_t hr_integer_round(float value, float low, float high)
{
    float sum = hr_clamp(value, low, high) + HR_ROUND_MAGIC;
    return (int32_t)(hr_float_bits(sum) - hr_float_bits(HR_ROUND_MAGIC));
}

static inline int8_t hr_i8_from_float(float value)
{
    return (int8_t)hr_integer_round(value, -127.0f, 127.0f);
}

static inline float hr_i8_to_float(int8_t code)
{
    return (float)code;
}

static inline uint8_t hr_u8_from_float(float value)
{
    return (uint8_t)hr_integer_round(value, 0.0f, 255.0f);
}

static inline float hr_u8_to_float(uint8_t code)
{
    return (float)code;
}

/* A nibble in two's complement, -7 .. 7; the code 8 (-8) is decoded but never produced. */
static inline uint8_t hr_i4_from_float(float value)
{
    return (uint8_t)(hr_integer_round(value, -7.0f, 7.0f) & 15);
}

static inline float hr_i4_to_float(uint8_t nibble)
{
    return (float)((int32_t)(nibble ^ 8) - 8);
}

/* `value` is rounded before the zero point is added, so that the zero point never moves a tie. */
static inline uint8_t hr_u4_from_float(float value, int zero_point)
{
    float zero = (float)zero_point;
    return (uint8_t)(hr_integer_round(value, -zero, 15.0f - zero) + zero_point);
}

static inline float hr_u4_to_float(uint8_t nibble, int zero_point)
{
    return (float)((int32_t)nibble - zero_point);
}

#endif
