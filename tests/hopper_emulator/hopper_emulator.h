/*
 * The Hopper emulator as a kernel sees it: included by kernels/cuda/hopper.cuh when a host compiler
 * builds a kernel with HR_HOPPER_EMULATOR. docs/hopper-emulator.md says what it proves.
 */
#ifndef HEADROOM_HOPPER_EMULATOR_H
#define HEADROOM_HOPPER_EMULATOR_H

#include "builtins.h"
#include "instructions.h"
#include "registers.h"
#include "report.h"

#endif
