/*
 * What the sixteen nibbles of a 4-bit format stand for, as INT8: the integer kernels expand nibbles
 * through this table and then do the arithmetic of the `int8` recipe.
 */
#ifndef HEADROOM_INTEGER_NIBBLES_H
#define HEADROOM_INTEGER_NIBBLES_H

#include <stdint.h>

#include "headroom/format.h"

/* I4, U4 or C4; zero_point is 0 for all but U4. */
static inline void hr_nibble_levels(hr_dtype dtype, int zero_point, int8_t levels[16])
{
    const int8_t *codebook = hr_codebook_c4();
    for (int nibble = 0; nibble < 16; nibble++) {
        if (dtype == HR_DTYPE_C4)
            levels[nibble] = codebook[nibble];
        else if (dtype == HR_DTYPE_I4)
            levels[nibble] = (int8_t)((nibble ^ 8) - 8);
        else
            levels[nibble] = (int8_t)(nibble - zero_point);
    }
}

#endif
