/*
 * Memory that is on the wrong device, as an error.
 */
#ifndef HEADROOM_DEVICE_INTERNAL_H
#define HEADROOM_DEVICE_INTERNAL_H

#include "headroom/tensor.h"

/* HR_ERROR_MISMATCH, saying what moves memory, unless what is called `name` is where wanted. */
hr_status hr_device_expect(const char *name, hr_device has, hr_device wanted) HR_NODISCARD;

#endif
