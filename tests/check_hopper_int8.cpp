/*
 * attention_int8_sm90.cu under the emulator against the FP64 oracle.
 */
#include "attention_int8_sm90.cu"
#include "hopper_cases.h"

#include <criterion/criterion.h>
#include <cstdio>

static hopper_result run(hopper_case test)
{
    test.recipe = "int8";
    return hopper_run_case(&test, hr_attention_int8_sm90, HOPPER_INT8);
}

Test(hopper_int8, shapes_0)
{
    hopper_run_shapes("int8", hr_attention_int8_sm90, HOPPER_INT8, 0, 2);
}

Test(hopper_int8, shapes_1)
{
    hopper_run_shapes("int8", hr_attention_int8_sm90, HOPPER_INT8, 1, 2);
}

/* N(0, 1) inputs, 2048 keys: quantization and kernel together, against the original inputs. */
Test(hopper_int8, error_on_gaussian_inputs)
{
    for (const char *shape : {"1 1 64 q=64 kv=2048", "1 1 128 q=64 kv=2048"}) {
        hopper_case test = {};
        test.shape = shape;
        test.seed = 21;
        const hopper_result result = run(test);
        std::fprintf(stderr, "int8, %s: relative L2 %.4f, the kernel's own %.4f\n", shape,
                     result.total_l2, result.relative_l2);
        cr_expect(result.total_l2 <= .016 && result.total_l2 >= .010, "%s: %g", shape,
                  result.total_l2);
    }
}

/* Sums over many keys lose nothing, also with the E4M3 accumulator as the hardware has it. */
Test(hopper_int8, error_does_not_grow_with_length)
{
    hopper_case test = {};
    test.seed = 31;
    test.fp22 = 1;
    test.shape = "1 1 64 q=64 kv=1024";
    const double brief = run(test).relative_l2;
    test.shape = "1 1 64 q=64 kv=16384";
    const double extended = run(test).relative_l2;
    std::fprintf(stderr, "int8: relative L2 %.5f at 1k keys, %.5f at 16k\n", brief, extended);
    cr_expect(extended <= 1.1 * brief, "%g against %g", extended, brief);
}
