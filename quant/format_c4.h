/*
 * C4: four bits index a 16-entry INT8 codebook, the Lloyd-Max quantizer of N(0,1).
 *
 * The optimum has levels +-(.1284 .3880 .6568 .9423 1.2562 1.6180 2.0690 2.7326) (Max 1960,
 * table I, N = 16), here times 127 / 2.7326 and rounded to integers. Codes ascend with the level:
 * code 8 + i is level[i], code 7 - i is -level[i]. There is no level 0.
 */
#ifndef HEADROOM_FORMAT_C4_H
#define HEADROOM_FORMAT_C4_H

#include "float_bits.h"

static const int8_t hr_c4_levels[16] = {-127, -96, -75, -58, -44, -31, -18, -6,
                                        6,    18,  31,  44,  58,  75,  96,  127};

/*
 * The nearest level: a magnitude's index is the number of midpoints below it. A tie goes to the
 * level of smaller magnitude, and 0 to +6, so that encode(-x) = 15 - encode(x) for every x but 0.
 */
static inline uint8_t hr_c4_from_float(float value)
{
    float magnitude = hr_float_from_bits(hr_float_bits(value) & 0x7fffffff);
    int32_t index = (magnitude > 12.0f) + (magnitude > 24.5f) + (magnitude > 37.5f) +
                    (magnitude > 51.0f) + (magnitude > 66.5f) + (magnitude > 85.5f) +
                    (magnitude > 111.5f);
    return (uint8_t)(value < 0.0f ? 7 - index : 8 + index);
}

static inline float hr_c4_to_float(uint8_t nibble)
{
    return (float)hr_c4_levels[nibble & 15];
}

#endif
