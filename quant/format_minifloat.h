/*
 * The floating formats of 8 and 16 bits: E4M3, E5M2 (OCP FP8 1.0), binary16 and BF16, one element
 * at a time.
 *
 * A format is E exponent bits of bias B and M mantissa bits. On the bits of |x|:
 *     normal      add half a unit of the last kept bit, minus one if that bit is even, then drop
 *                 23 - M bits and rebias: a carry out of the mantissa increments the exponent.
 *     subnormal   |x| + 2^(24 - B - M): the float adder rounds to multiples of 2^(1 - B - M), to
 *                 nearest even, and leaves the code in its low bits.
 * Both are computed and one is selected, so that the loops vectorise. Values above the largest
 * finite one are clamped to it first. NaN gives the positive NaN with all bits set, as the CUDA
 * toolkit's conversions do; the sign of every other value, zero included, is kept.
 */
#ifndef HEADROOM_FORMAT_MINIFLOAT_H
#define HEADROOM_FORMAT_MINIFLOAT_H

#include "float_bits.h"

/* Sign-less code of |x| whose float bits are `magnitude`, already at most the largest finite. */
static inline uint32_t hr_minifloat_round(uint32_t magnitude, int mantissa_bits, int bias)
{
    const int drop = 23 - mantissa_bits;
    const uint32_t smallest_normal = (uint32_t)(127 - bias + 1) << 23;
    const float magic = hr_float_from_bits((uint32_t)(127 + 24 - bias - mantissa_bits) << 23);
    const uint32_t rebias = (uint32_t)(127 - bias) << mantissa_bits;

    uint32_t odd = magnitude >> drop & 1;
    uint32_t normal = ((magnitude + ((1u << (drop - 1)) - 1) + odd) >> drop) - rebias;
    uint32_t subnormal =
        hr_float_bits(hr_float_from_bits(magnitude) + magic) - hr_float_bits(magic);
    return magnitude < smallest_normal ? subnormal : normal;
}

/*
 * Code of a sign-less `code` moved to binary32: subnormals as integer times 2^(1 - B - M), the rest
 * by rebiasing. Infinities and NaN are the caller's.
 */
static inline uint32_t hr_minifloat_widen(uint32_t code, int mantissa_bits, int bias)
{
    const float unit = hr_float_from_bits((uint32_t)(127 + 1 - bias - mantissa_bits) << 23);
    uint32_t normal = (code << (23 - mantissa_bits)) + ((uint32_t)(127 - bias) << 23);
    uint32_t subnormal = hr_float_bits((float)(int32_t)code * unit);
    return code < 1u << mantissa_bits ? subnormal : normal;
}

static inline uint32_t hr_minifloat_clamp(uint32_t magnitude, float largest)
{
    uint32_t limit = hr_float_bits(largest);
    return magnitude < limit ? magnitude : limit;
}

static inline uint8_t hr_e4m3_from_float(float value)
{
    uint32_t bits = hr_float_bits(value), magnitude = bits & 0x7fffffff;
    uint32_t code = hr_minifloat_round(hr_minifloat_clamp(magnitude, 448.0f), 3, 7);
    code |= bits >> 24 & 0x80;
    return (uint8_t)(magnitude > HR_FLOAT_INFINITY_BITS ? 0x7f : code);
}

static inline float hr_e4m3_to_float(uint8_t byte)
{
    uint32_t code = byte & 0x7f, sign = (uint32_t)(byte & 0x80) << 24;
    uint32_t bits = hr_minifloat_widen(code, 3, 7);
    return hr_float_from_bits(sign | (code == 0x7f ? 0x7fc00000 : bits));
}

static inline uint8_t hr_e5m2_from_float(float value)
{
    uint32_t bits = hr_float_bits(value), magnitude = bits & 0x7fffffff;
    uint32_t code = hr_minifloat_round(hr_minifloat_clamp(magnitude, 57344.0f), 2, 15);
    code |= bits >> 24 & 0x80;
    return (uint8_t)(magnitude > HR_FLOAT_INFINITY_BITS ? 0x7f : code);
}

static inline float hr_e5m2_to_float(uint8_t byte)
{
    uint32_t code = byte & 0x7f, sign = (uint32_t)(byte & 0x80) << 24;
    uint32_t bits = hr_minifloat_widen(code, 2, 15);
    uint32_t special = code == 0x7c ? HR_FLOAT_INFINITY_BITS : 0x7fc00000;
    return hr_float_from_bits(sign | (code >= 0x7c ? special : bits));
}

static inline uint16_t hr_f16_from_float(float value)
{
    uint32_t bits = hr_float_bits(value), magnitude = bits & 0x7fffffff;
    uint32_t code = hr_minifloat_round(hr_minifloat_clamp(magnitude, 65504.0f), 10, 15);
    code |= bits >> 16 & 0x8000;
    return (uint16_t)(magnitude > HR_FLOAT_INFINITY_BITS ? 0x7fff : code);
}

static inline float hr_f16_to_float(uint16_t half)
{
    uint32_t code = half & 0x7fff, sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t bits = hr_minifloat_widen(code, 10, 15);
    uint32_t special = code == 0x7c00 ? HR_FLOAT_INFINITY_BITS : 0x7fc00000;
    return hr_float_from_bits(sign | (code >= 0x7c00 ? special : bits));
}

/* BF16 has binary32's exponent: rounding is the normal case alone, for subnormals too. */
static inline uint16_t hr_bf16_from_float(float value)
{
    uint32_t bits = hr_float_bits(value), magnitude = bits & 0x7fffffff;
    uint32_t kept = hr_minifloat_clamp(magnitude, 0x1.fep127f);
    uint32_t code = (kept + 0x7fff + (kept >> 16 & 1)) >> 16 | (bits >> 16 & 0x8000);
    return (uint16_t)(magnitude > HR_FLOAT_INFINITY_BITS ? 0x7fff : code);
}

static inline float hr_bf16_to_float(uint16_t code)
{
    return hr_float_from_bits((uint32_t)code << 16);
}

#endif
