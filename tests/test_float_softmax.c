/*
 * The elementwise steps of the float kernels, on their own: an error bound over whole dot products
 * cannot tell exact rounding from nearly exact. P against the number formats' own conversions, and
 * 2^x and tanh against the C library in double precision.
 */
#include <criterion/criterion.h>
#include <math.h>

#include "cpu/vec_portable.h"

#include "cpu/float_softmax.h"

static float first(vec x)
{
    float lanes[VEC_WIDTH];
    vec_store(lanes, x);
    return lanes[0];
}

static float rounded(float p, hr_dtype dtype)
{
    return first(round_weight(vec_set(p), dtype));
}

Test(float_softmax, weights_round_as_e4m3_does)
{
    /* Every code, every midpoint between codes, and the floats on both sides of each. */
    for (int code = 0; code < 0x7e; code++) {
        float low = hr_e4m3_to_float((uint8_t)code), high = hr_e4m3_to_float((uint8_t)(code + 1));
        float middle = low / 2 + high / 2;
        const float values[] = {low,    nextafterf(low, INFINITY),    nextafterf(middle, 0),
                                middle, nextafterf(middle, INFINITY), nextafterf(high, 0),
                                high};
        for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
            float expected = hr_e4m3_to_float(hr_e4m3_from_float(values[i]));
            cr_expect_eq(rounded(values[i], HR_DTYPE_E4M3), expected, "%a: %a, not %a",
                         (double)values[i], (double)rounded(values[i], HR_DTYPE_E4M3),
                         (double)expected);
        }
    }
    cr_expect(isnan(rounded(NAN, HR_DTYPE_E4M3)));
}

Test(float_softmax, weights_round_as_bf16_does)
{
    /* From 2^-100, below which a weight no longer matters, to 1. */
    for (uint32_t code = 27u << 7; code <= 127u << 7; code++)
        for (int32_t offset = -1; offset <= 1; offset++)
            for (uint32_t half = 0; half < 2; half++) {
                float value = hr_float_from_bits((code << 16) + half * 0x8000 + (uint32_t)offset);
                float expected = hr_bf16_to_float(hr_bf16_from_float(value));
                cr_expect_eq(rounded(value, HR_DTYPE_BF16), expected, "%a", (double)value);
            }
    cr_expect_eq(rounded(0, HR_DTYPE_BF16), 0);
    cr_expect(isnan(rounded(NAN, HR_DTYPE_BF16)));
}

Test(float_softmax, exponential_keeps_its_promise)
{
    const float tops[] = {1, 448};
    for (int i = 0; i < 2; i++) {
        double worst = 0;
        for (float x = 0; x > -126; x -= 0x1.23p-10f) {
            double expected = (double)tops[i] * exp2((double)x);
            double error = fabs((double)first(vec_exp2_times(vec_set(x), tops[i])) / expected - 1);
            if (!(error <= worst)) worst = error;
        }
        cr_expect(worst <= 0x1p-22, "relative error %g", worst);
        cr_expect_eq(first(vec_exp2_times(vec_set(0), tops[i])), tops[i]);
        cr_expect_eq(first(vec_exp2_times(vec_set(-126.6f), tops[i])), 0);
        cr_expect_eq(first(vec_exp2_times(vec_set(-INFINITY), tops[i])), 0);
        cr_expect(isnan(first(vec_exp2_times(vec_set(NAN), tops[i]))));
    }
}

Test(float_softmax, hyperbolic_tangent_keeps_its_promise)
{
    double worst = 0;
    for (float x = -20; x < 20; x += 0x1.23p-10f) {
        double error = fabs((double)first(vec_tanh(vec_set(x))) - tanh((double)x));
        if (!(error <= worst)) worst = error;
    }
    cr_expect(worst <= 8 * 0x1p-24, "absolute error %g", worst);
    cr_expect_eq(first(vec_tanh(vec_set(1e30f))), 1);
    cr_expect_eq(first(vec_tanh(vec_set(-INFINITY))), -1);
    cr_expect(isnan(first(vec_tanh(vec_set(NAN)))));
}
