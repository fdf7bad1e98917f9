/*
 * Which instruction sets this process may use: what the machine and the operating system offer,
 * limited by the environment variable HEADROOM_ISA (names, comma separated; "portable" is always
 * kept, so that every recipe still runs).
 */
#ifndef HEADROOM_ISA_H
#define HEADROOM_ISA_H

#include <stdint.h>

#include "headroom/attention.h"

/* Bit i set: the machine and its operating system can run hr_isa i. Reads no environment. */
uint32_t hr_isa_detect(void);

/* The instruction sets that kernels of a device are written in. */
uint32_t hr_isa_of_device(hr_device device);

/*
 * Parses a comma-separated list of ISA names into a mask that always has portable. An unknown or
 * empty name is HR_ERROR_INVALID_ARGUMENT and the message lists the names accepted.
 */
hr_status hr_isa_parse(const char *names, uint32_t *mask) HR_NODISCARD;

/*
 * hr_isa_mask with errors, for one device: HEADROOM_ISA naming something unknown fails, and so does
 * a device that kernels cannot run on. Asks nothing of CUDA for the CPU, as that takes a while.
 */
hr_status hr_isa_usable(hr_device device, uint32_t *mask) HR_NODISCARD;

#endif
