/*
 * attention_int8_sm90.cu under the emulator against the FP64 oracle.
 */
#include "attention_int8_sm90.cu"
#include "hopper_cases.h"

#include <criterion/criterion.h>

static const char recipe[] = "int8";

Test(hopper_int8, shapes_0)
{
    hopper_run_shapes(recipe, hr_attention_int8_sm90, HOPPER_INT8, 0, 2);
}

Test(hopper_int8, shapes_1)
{
    hopper_run_shapes(recipe, hr_attention_int8_sm90, HOPPER_INT8, 1, 2);
}

Test(hopper_int8, scales_by_block)
{
    hopper_run_shapes("int8:q.granularity=block128,k.granularity=block64,v.granularity=block64",
                      hr_attention_int8_sm90, HOPPER_INT8, 2, 3);
}

Test(hopper_int8, error_on_gaussian_inputs)
{
    hopper_error_on_gaussian_inputs("int8", recipe, hr_attention_int8_sm90, HOPPER_INT8, .010,
                                    .016);
}

Test(hopper_int8, sums_of_128k_keys_at_head_dim_64)
{
    hopper_long_sums_lose_nothing("int8", recipe, hr_attention_int8_sm90, HOPPER_INT8, 64);
}

Test(hopper_int8, sums_of_128k_keys_at_head_dim_128)
{
    hopper_long_sums_lose_nothing("int8", recipe, hr_attention_int8_sm90, HOPPER_INT8, 128);
}
