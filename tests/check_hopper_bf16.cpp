/*
 * attention_bf16_sm90.cu under the emulator against the FP64 oracle.
 */
#include "attention_bf16_sm90.cu"
#include "hopper_cases.h"

#include <criterion/criterion.h>
#include <cstdio>

static hopper_result run(hopper_case test)
{
    test.recipe = "bf16";
    return hopper_run_case(&test, hr_attention_bf16_sm90, HOPPER_BF16);
}

Test(hopper_bf16, shapes_0)
{
    hopper_run_shapes("bf16", hr_attention_bf16_sm90, HOPPER_BF16, 0, 2);
}

Test(hopper_bf16, shapes_1)
{
    hopper_run_shapes("bf16", hr_attention_bf16_sm90, HOPPER_BF16, 1, 2);
}

Test(hopper_bf16, nan_propagates)
{
    for (char operand : {'q', 'k', 'v'}) {
        hopper_case test = {};
        test.shape = "1 1 64 q=70 kv=200";
        test.seed = 9;
        test.nan = operand;
        run(test);
    }
}
