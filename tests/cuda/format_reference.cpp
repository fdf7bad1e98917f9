/*
 * Calls cuda_fp8.h, cuda_fp16.h and cuda_bf16.h, compiled for the host.
 */
#include "format_reference.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

static float fp8_to_float(uint16_t code, __nv_fp8_interpretation_t kind)
{
    return __half2float(__half(__nv_cvt_fp8_to_halfraw((__nv_fp8_storage_t)code, kind)));
}

uint16_t cuda_e4m3_from_float(float value)
{
    return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}

uint16_t cuda_e5m2_from_float(float value)
{
    return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E5M2);
}

uint16_t cuda_f16_from_float(float value)
{
    return __half_raw(__float2half_rn(value)).x;
}

uint16_t cuda_bf16_from_float(float value)
{
    return __nv_bfloat16_raw(__float2bfloat16_rn(value)).x;
}

float cuda_e4m3_to_float(uint16_t code)
{
    return fp8_to_float(code, __NV_E4M3);
}

float cuda_e5m2_to_float(uint16_t code)
{
    return fp8_to_float(code, __NV_E5M2);
}

float cuda_f16_to_float(uint16_t code)
{
    __half_raw raw;
    raw.x = code;
    return __half2float(__half(raw));
}

float cuda_bf16_to_float(uint16_t code)
{
    __nv_bfloat16_raw raw;
    raw.x = code;
    return __bfloat162float(__nv_bfloat16(raw));
}
