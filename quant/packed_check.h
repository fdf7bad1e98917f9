/*
 * Whether the content of a packed operand is one that packing could have made.
 */
#ifndef HEADROOM_PACKED_CHECK_H
#define HEADROOM_PACKED_CHECK_H

#include "headroom/pack.h"

/*
 * HR_ERROR_FORMAT names the head, token and channel of a code that no value has (I8 -128, I4 -8, a
 * NaN or infinity), padding that is not code 0, a scale that is not finite and > 0 (or whose
 * reciprocal or largest value is not finite), a zero point above 15, a mean or lse_bias that is not
 * finite.
 */
hr_status hr_packed_check(const hr_packed *packed) HR_NODISCARD;

#endif
