/*
 * attention_int8_fp8_sm90.cu under the emulator against the FP64 oracle.
 */
#include "attention_int8_fp8_sm90.cu"
#include "hopper_cases.h"

#include <criterion/criterion.h>

static const char recipe[] = "int8-fp8";

Test(hopper_int8_fp8, shapes_0)
{
    hopper_run_shapes(recipe, hr_attention_int8_fp8_sm90, HOPPER_INT8_FP8, 0, 2);
}

Test(hopper_int8_fp8, shapes_1)
{
    hopper_run_shapes(recipe, hr_attention_int8_fp8_sm90, HOPPER_INT8_FP8, 1, 2);
}

Test(hopper_int8_fp8, shapes_in_22_bits)
{
    hopper_run_shapes_fp22(recipe, hr_attention_int8_fp8_sm90, HOPPER_INT8_FP8);
}

Test(hopper_int8_fp8, scales_by_block)
{
    hopper_run_shapes("int8-fp8:q.granularity=block64,k.granularity=block64,v.granularity=block128",
                      hr_attention_int8_fp8_sm90, HOPPER_INT8_FP8, 2, 3);
}

Test(hopper_int8_fp8, error_on_gaussian_inputs)
{
    hopper_error_on_gaussian_inputs("int8_fp8", recipe, hr_attention_int8_fp8_sm90, HOPPER_INT8_FP8,
                                    .030, .042);
}

Test(hopper_int8_fp8, sums_of_128k_keys_at_head_dim_64)
{
    hopper_long_sums_lose_nothing("int8_fp8", recipe, hr_attention_int8_fp8_sm90, HOPPER_INT8_FP8,
                                  64);
}

Test(hopper_int8_fp8, sums_of_128k_keys_at_head_dim_128)
{
    hopper_long_sums_lose_nothing("int8_fp8", recipe, hr_attention_int8_fp8_sm90, HOPPER_INT8_FP8,
                                  128);
}
