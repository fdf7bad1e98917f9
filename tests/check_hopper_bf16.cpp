/*
 * attention_bf16_sm90.cu under the emulator against the FP64 oracle.
 */
#include "attention_bf16_sm90.cu"
#include "hopper_cases.h"

#include <criterion/criterion.h>

static const char recipe[] = "bf16";

Test(hopper_bf16, shapes_0)
{
    hopper_run_shapes(recipe, hr_attention_bf16_sm90, HOPPER_BF16, 0, 2);
}

Test(hopper_bf16, shapes_1)
{
    hopper_run_shapes(recipe, hr_attention_bf16_sm90, HOPPER_BF16, 1, 2);
}

Test(hopper_bf16, nan_propagates)
{
    hopper_nan_propagates(recipe, hr_attention_bf16_sm90, HOPPER_BF16);
}
