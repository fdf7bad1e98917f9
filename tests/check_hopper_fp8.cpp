/*
 * attention_fp8_sm90.cu under the emulator against the FP64 oracle.
 */
#include "attention_fp8_sm90.cu"
#include "hopper_cases.h"

#include <criterion/criterion.h>

static const char recipe[] = "fp8:qkv.scale=dynamic";

Test(hopper_fp8, shapes_0)
{
    hopper_run_shapes(recipe, hr_attention_fp8_sm90, HOPPER_FP8, 0, 2);
}

Test(hopper_fp8, shapes_1)
{
    hopper_run_shapes(recipe, hr_attention_fp8_sm90, HOPPER_FP8, 1, 2);
}

Test(hopper_fp8, nan_propagates)
{
    hopper_nan_propagates(recipe, hr_attention_fp8_sm90, HOPPER_FP8);
}

Test(hopper_fp8, shapes_in_22_bits)
{
    hopper_run_shapes_fp22(recipe, hr_attention_fp8_sm90, HOPPER_FP8);
}

Test(hopper_fp8, error_on_gaussian_inputs)
{
    hopper_error_on_gaussian_inputs("fp8", recipe, hr_attention_fp8_sm90, HOPPER_FP8, .045, .060);
}

Test(hopper_fp8, error_does_not_grow_with_length)
{
    hopper_error_does_not_grow_with_length("fp8", recipe, hr_attention_fp8_sm90, HOPPER_FP8);
}
