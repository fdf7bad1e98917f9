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

Test(hopper_fp8, scales_by_block)
{
    hopper_run_shapes("fp8:qkv.granularity=block128", hr_attention_fp8_sm90, HOPPER_FP8, 1, 4);
    hopper_run_shapes("fp8:q.granularity=block48,k.granularity=block256,v.granularity=block128",
                      hr_attention_fp8_sm90, HOPPER_FP8, 2, 4);
}

Test(hopper_fp8, error_on_gaussian_inputs)
{
    hopper_error_on_gaussian_inputs("fp8", recipe, hr_attention_fp8_sm90, HOPPER_FP8, .045, .060);
}

Test(hopper_fp8, sums_of_128k_keys_at_head_dim_64)
{
    hopper_long_sums_lose_nothing("fp8", recipe, hr_attention_fp8_sm90, HOPPER_FP8, 64);
}

Test(hopper_fp8, sums_of_128k_keys_at_head_dim_128)
{
    hopper_long_sums_lose_nothing("fp8", recipe, hr_attention_fp8_sm90, HOPPER_FP8, 128);
}

/*
 * FlashAttention-3's table 3 has 2.4e-2 by tensor, 9.3e-3 with rotation and 9.1e-3 with scales by
 * block as well. It does not say at which shape; bench/table3.py finds these figures for head_dim
 * 128 or 256 and 8k to 16k keys. At head_dim 64, where an outlier of Q or K is spread over half as
 * many channels, E4M3 operands alone cost 1.2e-2 and more, and int8_fp8 is the recipe that has less
 * (check_hopper_int8_fp8.cpp).
 */
Test(hopper_fp8, outliers_are_rotated_away)
{
    static const char rotated[] = "fp8:qkv.scale=dynamic,qk.transform=hadamard";
    const double plain = hopper_table3_rmse(recipe, hr_attention_fp8_sm90, HOPPER_FP8, 128, 2048);
    const double turned = hopper_table3_rmse(rotated, hr_attention_fp8_sm90, HOPPER_FP8, 128, 2048);
    const double longer = hopper_table3_rmse(rotated, hr_attention_fp8_sm90, HOPPER_FP8, 128, 8192);
    const double narrow = hopper_table3_rmse(rotated, hr_attention_fp8_sm90, HOPPER_FP8, 64, 2048);
    cr_expect(turned <= 9.1e-3, "%g", turned);
    cr_expect(longer <= 9.3e-3, "%g", longer);
    cr_expect(narrow <= 2.0e-2, "%g", narrow);
    cr_expect(plain >= 1.3 * turned && plain <= 2.4e-2, "%g without rotation, %g with", plain,
              turned);
}
