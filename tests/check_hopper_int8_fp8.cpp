/*
 * attention_int8_fp8_sm90.cu under the emulator against the FP64 oracle.
 */
#include "attention_int8_fp8_sm90.cu"
#include "hopper_cases.h"

#include <criterion/criterion.h>

Test(hopper_int8_fp8, shapes_0)
{
    hopper_run_shapes("int8-fp8", hr_attention_int8_fp8_sm90, HOPPER_INT8_FP8, 0, 2);
}

Test(hopper_int8_fp8, shapes_1)
{
    hopper_run_shapes("int8-fp8", hr_attention_int8_fp8_sm90, HOPPER_INT8_FP8, 1, 2);
}
