/*
 * The CUDA toolkit's host conversions behind a C interface. Floats go and come as they are; codes
 * are saturating where the toolkit offers that (FP8) and IEEE (infinity on overflow) elsewhere.
 */
#ifndef HEADROOM_FORMAT_REFERENCE_H
#define HEADROOM_FORMAT_REFERENCE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

uint16_t cuda_e4m3_from_float(float value);
uint16_t cuda_e5m2_from_float(float value);
uint16_t cuda_f16_from_float(float value);
uint16_t cuda_bf16_from_float(float value);

float cuda_e4m3_to_float(uint16_t code);
float cuda_e5m2_to_float(uint16_t code);
float cuda_f16_to_float(uint16_t code);
float cuda_bf16_to_float(uint16_t code);

#ifdef __cplusplus
}
#endif

#endif
