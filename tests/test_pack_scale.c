/*
 * How dynamic scales are chosen: of the candidates of a 4-bit group, the one under which the real
 * quantizer's squared error is least, and a zero point that clipping does not move.
 */
#include <criterion/criterion.h>
#include <math.h>

#include "headroom/format.h"
#include "pack_scale.h"
#include "test_random.h"

enum { COUNT = 64 };

/* The squared error of coding the values with this scale, by the format's own conversions. */
static double squared_error(hr_dtype dtype, const float *values, float lo, float hi, float scale)
{
    uint8_t codes[COUNT / 2];
    float decoded[COUNT];
    double sum = 0;
    const uint8_t zero = hr_scale_zero_point(dtype, lo, hi, scale);
    cr_assert_eq(hr_encode(dtype, values, COUNT, scale, zero, codes), HR_OK);
    cr_assert_eq(hr_decode(dtype, codes, COUNT, scale, zero, decoded), HR_OK);
    for (int i = 0; i < COUNT; i++)
        sum += ((double)values[i] - (double)decoded[i]) * ((double)values[i] - (double)decoded[i]);
    return sum;
}

Test(pack_scale, four_bit_groups_take_the_candidate_of_least_error)
{
    static const hr_dtype dtypes[] = {HR_DTYPE_I4, HR_DTYPE_U4, HR_DTYPE_C4};
    test_random random = {11};
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) {
        int clipped = 0;
        for (int trial = 0; trial < 200; trial++) {
            float values[COUNT];
            random_gaussians(&random, values, COUNT);
            for (int i = 0; i < COUNT; i++)
                values[i] += dtypes[d] == HR_DTYPE_U4 ? 2.0f : 0.0f;
            hr_scale_group group = {0};
            hr_scale_group_observe(&group, values, COUNT);
            hr_scale_group_candidates(&group, dtypes[d]);
            cr_assert_eq(group.candidates, HR_SCALE_CANDIDATES);
            hr_scale_group_measure(&group, dtypes[d], values, COUNT);
            const float chosen = hr_scale_group_choose(&group);
            const double error = squared_error(dtypes[d], values, group.lo, group.hi, chosen);
            for (int i = 0; i < group.candidates; i++) {
                const double other =
                    squared_error(dtypes[d], values, group.lo, group.hi, group.candidate[i]);
                /* Errors are measured in FP32: 2^-20 is some rounding errors of a square. */
                cr_assert(error <= other * (1 + 0x1p-20), "%s: %g chosen, %g with candidate %d",
                          hr_dtype_name(dtypes[d]), error, other, i);
                clipped += chosen == group.candidate[i] && i > 1;
            }
        }
        cr_assert(clipped > 20, "%s: only %d of 200 groups clip", hr_dtype_name(dtypes[d]),
                  clipped);
    }
}

/* A clipped range loses as much at either end: its zero point is the whole range's. */
Test(pack_scale, clipping_does_not_move_the_zero_point)
{
    cr_assert_eq(hr_scale_zero_point(HR_DTYPE_U4, -3, 12, 1.0f), 3);
    cr_assert_eq(hr_scale_zero_point(HR_DTYPE_U4, -3, 12, 0.7f), 3);
    cr_assert_eq(hr_scale_zero_point(HR_DTYPE_U4, -3, 12, 1.5f), 2, "a floor raised the scale");
    cr_assert_eq(hr_scale_zero_point(HR_DTYPE_U4, -6, 0, 0.4f), 15);
    cr_assert_eq(hr_scale_zero_point(HR_DTYPE_U4, 0, 0, 1.0f), 0);
    cr_assert_eq(hr_scale_zero_point(HR_DTYPE_I4, -3, 12, 1.0f), 0);
}
