/*
 * The scalar functions of the integer kernels' specification (kernels/cpu/integer_softmax.h):
 * errors measured on dense grids, exactness where it is promised, and the order of sums.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "cpu/integer_softmax.h"

Test(integer_softmax, exp2_is_within_its_error)
{
    double worst = 0;
    for (int64_t i = 0; i <= 100 * 65536; i++) {
        float z = -(float)i / 65536;
        double error = fabs((double)hr_integer_exp2(z) / exp2((double)z) - 1);
        if (!(error <= worst)) worst = error;
    }
    cr_assert(worst <= 3.1e-6 && worst >= 2e-6, "relative error %.3g", worst);
}

Test(integer_softmax, exp2_is_exact_at_integers)
{
    for (int n = -100; n <= 126; n++)
        cr_assert_eq(hr_integer_exp2((float)n), ldexpf(1, n));
}

Test(integer_softmax, exp2_stops_at_its_lower_end)
{
    const float below[] = {-100, -100.5f, -150, -1000, -0x1p123f, -INFINITY, NAN};
    for (size_t i = 0; i < sizeof below / sizeof below[0]; i++)
        cr_assert_eq(hr_integer_exp2(below[i]), 0x1p-100f);
}

/* On a grid finer than any logit's unit, and of all magnitudes: small x keep their sign and bits.
 */
Test(integer_softmax, tanh_is_within_its_error)
{
    const float cap = 50;
    const hr_integer_cap factors = hr_integer_cap_of(cap);
    double worst = 0;
    for (int64_t i = -(20 << 16); i <= 20 << 16; i++) {
        const float x = cap * (float)i / 65536;
        const double exact = tanh((double)x / (double)cap);
        const double error = fabs((double)hr_integer_tanh(x, factors.argument) - exact);
        if (!(error <= worst * fabs(exact))) worst = error / fabs(exact);
    }
    cr_assert(worst <= 9e-7, "relative error %.3g", worst);
    for (int n = -120; n < 0; n++) {
        const float x = ldexpf(-1.75f, n);
        const double exact = tanh((double)x / (double)cap);
        const double error = (double)hr_integer_tanh(x, factors.argument) / exact - 1;
        cr_assert(fabs(error) <= 9e-7, "2^%d: relative error %.3g", n, error);
    }
    cr_assert_eq(hr_integer_tanh(0, factors.argument), 0);
    cr_assert_eq(hr_integer_tanh(1e38f, factors.argument), 1);
    cr_assert_eq(hr_integer_tanh(-1e38f, factors.argument), -1);
}

/* Caps that no logit can come near still have finite factors. */
Test(integer_softmax, caps_of_all_magnitudes_are_finite)
{
    const float caps[] = {1e-45f, 1e-30f, 1e-3f, 30, 1e30f, 3e38f};
    for (size_t i = 0; i < sizeof caps / sizeof caps[0]; i++) {
        const hr_integer_cap cap = hr_integer_cap_of(caps[i]);
        cr_assert(isfinite(cap.argument) && isfinite(cap.units), "%g", (double)caps[i]);
        cr_assert(cap.argument < 0 && cap.units > 0, "%g", (double)caps[i]);
    }
}

/* A larger z never gives a smaller power, but for the rounding of one operation. */
static void check_step(float *previous, float z)
{
    float value = hr_integer_exp2(z);
    cr_assert(value >= nextafterf(*previous, 0), "at %a", (double)z);
    if (value > *previous) *previous = value;
}

/* Every float around the seams of the polynomial pieces, and a grid in between. */
Test(integer_softmax, exp2_does_not_decrease)
{
    for (int half = 0; half < 40; half++) {
        float z = -(float)half / 2;
        float from = z, previous = 0;
        for (int i = 0; i < 20000; i++)
            from = nextafterf(from, -INFINITY);
        for (float at = from; at <= 0 && at < z + 0.002f; at = nextafterf(at, INFINITY))
            check_step(&previous, at);
    }
    float previous = 0;
    for (int64_t i = -(INT64_C(101) << 17); i <= 0; i++)
        check_step(&previous, (float)i / (1 << 17));
    cr_assert_eq(previous, 1);
}

/* The distance at which no weight is left, and all before it. */
Test(integer_softmax, weights_are_within_their_error)
{
    double worst = 0, squares = 0;
    const int octaves = 12;
    for (int d = 0; d < 16 * 1024; d++) {
        double exact = 32640 * exp2(-d / 1024.0), weight = hr_integer_weight(d);
        double error = fabs(weight - exact);
        cr_assert(error <= HR_INTEGER_WEIGHT_ERROR * exact + 0.5, "distance %d", d);
        if (d >= octaves * 1024) continue;
        worst = fmax(worst, (error - 0.5) / exact);
        if (d < 1024) squares += error / exact * (error / exact);
    }
    cr_assert_geq(worst, 0.8 * HR_INTEGER_WEIGHT_ERROR, "the bound is loose: %.3g", worst);
    cr_assert_leq(sqrt(squares / 1024), 1e-3);
    cr_assert_eq(hr_integer_weight(0), 32640);
    /* so that 15 bits hold P in I16, 8 and 7 of them */
    for (int d = 0; d < 16 * 1024; d++)
        cr_assert(hr_integer_weight(d) <= 32640 && hr_integer_weight(d) >> 7 <= 255);
    cr_assert_eq(hr_integer_weight(16 * 1024), 0);
    cr_assert_eq(hr_integer_weight(65535), 0);
    /* the first key that stopped at 65535, from the largest N that 16 bits hold */
    cr_assert_eq(hr_integer_weight(65535 - HR_INTEGER_MAX_LEAST), 0);
    cr_assert_eq(HR_INTEGER_TOP + HR_INTEGER_MAX_LEAST, 65535);
}

Test(integer_softmax, binary16_numbers_become_integers)
{
    for (int32_t half = 0; half < 30 << 10; half++) {
        double value =
            half >> 10 ? ldexp((half & 1023) + 1024, (half >> 10) - 25) : ldexp(half, -24);
        cr_assert_eq(hr_integer_from_half(half), (int32_t)nearbyint(value), "%#x", half);
    }
}

Test(integer_softmax, p_is_the_weight_rounded)
{
    cr_assert_eq(hr_integer_p(32640), 255);
    cr_assert_eq(hr_integer_p(64), 1);
    cr_assert_eq(hr_integer_p(63), 0);
    for (int32_t weight = 0; weight <= 32640; weight++)
        cr_assert_eq(hr_integer_p(weight), (int32_t)floor(weight / 128.0 + 0.5));
}

Test(integer_softmax, logits_round_and_stop)
{
    cr_assert_eq(hr_integer_round16(0.5f), 0);
    cr_assert_eq(hr_integer_round16(1.5f), 2);
    cr_assert_eq(hr_integer_round16(-3), 0);
    cr_assert_eq(hr_integer_round16(-INFINITY), 0);
    cr_assert_eq(hr_integer_round16(65534.4f), 65534);
    cr_assert_eq(hr_integer_round16(65535), 65535);
    cr_assert_eq(hr_integer_round16(0x1p100f), 65535);
    cr_assert_eq(hr_integer_round16(INFINITY), 65535);
}

/* Every lane gets 16 keys of a tile, so that its sum of weights times 4096 fits int32. */
Test(integer_softmax, lanes_share_the_keys)
{
    int keys[HR_INTEGER_LANES] = {0};
    for (int32_t j = 0; j < HR_INTEGER_TILE; j++)
        keys[hr_integer_lane(j)]++;
    for (int k = 0; k < HR_INTEGER_LANES; k++)
        cr_assert_eq(keys[k], 16);
    cr_assert_lt(16.0 * 32640 * 4096, 0x1p31);
}

Test(integer_softmax, numbers_round_to_nearest_even)
{
    cr_assert_eq(hr_integer_round(0.5f), 0);
    cr_assert_eq(hr_integer_round(1.5f), 2);
    cr_assert_eq(hr_integer_round(2.5f), 2);
    cr_assert_eq(hr_integer_round(254.5f), 254);
    cr_assert_eq(hr_integer_round(nextafterf(254.5f, 255)), 255);
    cr_assert_eq(hr_integer_round(255), 255);
    cr_assert_eq(hr_integer_round(0x1p-92f), 0);
    cr_assert_eq(hr_integer_round(-32512), -32512); /* fixed-point codes use it too */
}

Test(integer_softmax, log2_is_within_its_error)
{
    double worst = 0;
    for (uint32_t bits = 0x3f800000; bits < 0x40000000; bits += 3) { /* [1, 2) */
        float w = hr_integer_float(bits);
        double error = fabs((double)hr_integer_log2(w) - log2((double)w));
        if (!(error <= worst)) worst = error;
    }
    cr_assert(worst <= 5e-7, "absolute error %.3g in [1, 2)", worst);
    for (int n = -64; n <= 0; n++) {
        cr_assert_eq(hr_integer_log2(ldexpf(1, n)), n);
        for (int i = 1; i < 4096; i++) {
            float w = ldexpf(1 + (float)i / 4096, n);
            /* the exponent's own rounding on top */
            double bound = 5e-7 + 0x1p-24 * fabs(log2((double)w));
            double error = fabs((double)hr_integer_log2(w) - log2((double)w));
            cr_assert(error <= bound, "log2(%a) is %.3g off", (double)w, error);
        }
    }
}

/* What makes fma(1.5 * 2^23 + S, k, -(1.5 * 2^23 * k)) equal S * k rounded once. */
Test(integer_softmax, rounded_key_scales_multiply_the_magic_number_exactly)
{
    const int32_t sums[] = {0, 1, -1, 77777, -4129024, 4129024, 1234567, -4194303};
    for (uint32_t bits = 0x33000000; bits < 0x40000000; bits += 9973) {
        float k = hr_integer_round22(hr_integer_float(bits));
        cr_assert(fabs((double)k / (double)hr_integer_float(bits) - 1) <= 0x1p-22);
        float product = HR_INTEGER_MAGIC * k;
        cr_assert_eq((double)product, (double)HR_INTEGER_MAGIC * (double)k, "k = %a", (double)k);
        for (size_t i = 0; i < sizeof sums / sizeof sums[0]; i++) {
            float accumulator =
                hr_integer_float(hr_integer_bits(HR_INTEGER_MAGIC) + (uint32_t)sums[i]);
            cr_assert_eq(fmaf(accumulator, k, -product), (float)sums[i] * k);
        }
    }
    cr_assert_eq(hr_integer_round22(1 + 0x1p-23f), 1);            /* down */
    cr_assert_eq(hr_integer_round22(1 + 0x1p-22f), 1);            /* tie to even */
    cr_assert_eq(hr_integer_round22(1 + 0x3p-22f), 1 + 0x1p-20f); /* tie to even */
    cr_assert_eq(hr_integer_round22(nextafterf(2, 0)), 2);        /* carries out */
    cr_assert_eq(hr_integer_round22(0), 0);
}

Test(integer_softmax, exponents_of_normal_and_denormal_scales)
{
    cr_assert_eq(hr_integer_exponent(1), 0);
    cr_assert_eq(hr_integer_exponent(nextafterf(1, 0)), -1);
    cr_assert_eq(hr_integer_exponent(0x1.fffffep127f), 127);
    cr_assert_eq(hr_integer_exponent(0x1p-149f), -149);
    cr_assert_eq(hr_integer_exponent(0x3p-149f), -148);
}

Test(integer_softmax, row_factors_are_bounded)
{
    cr_assert_eq(hr_integer_tile_factor(3, 4), 12);
    cr_assert_eq(hr_integer_tile_factor(1e38 * 1e38, 0x1p127), 0x1p100f);
    cr_assert_eq(hr_integer_tile_factor(1e-76, 0x1p-149), 0);
}

/* The sixteen lanes as a tree of halves: 2^24 absorbs a single 1, but not 1 + 1. */
Test(integer_softmax, lanes_are_summed_as_a_tree_of_halves)
{
    float pairs_first[16] = {[0] = 0x1p24f, [4] = 1, [12] = 1};
    cr_assert_eq(hr_integer_sum(pairs_first), 0x1p24f + 2);
    float absorbed[16] = {[0] = 0x1p24f, [4] = 1, [8] = 1};
    cr_assert_eq(hr_integer_sum(absorbed), 0x1p24f);
    float quarters[16] = {[0] = 0x1p24f, [2] = 1, [6] = 1};
    cr_assert_eq(hr_integer_sum(quarters), 0x1p24f + 2);
}

Test(integer_softmax, finish_gives_lse_bias_and_sink)
{
    float lse = 0;
    hr_kernel_args args = {.sink = -INFINITY, .lse = &lse};
    const float none = 0, one = 255;
    cr_assert_eq(hr_integer_finish(&args, 0, -INFINITY, none, 0.5), 0);
    cr_assert_eq(lse, -INFINITY);
    cr_assert_eq(hr_integer_finish(&args, 0, 3 * HR_INTEGER_OCTAVE, one, 0.5), 1 / 255.0f);
    cr_assert_float_eq(lse, 3 * HR_INTEGER_LN2 + 0.5, 1e-6);

    args.sink = 2;
    cr_assert_eq(hr_integer_finish(&args, 0, -INFINITY, none, 0.5), 0);
    cr_assert_eq(lse, 2);
    /* logits: 3 ln 2 + bias for the key, 2 for the sink */
    double key = exp(3 * HR_INTEGER_LN2 + 0.5), sink = exp(2);
    float factor = hr_integer_finish(&args, 0, 3 * HR_INTEGER_OCTAVE, one, 0.5);
    cr_assert_float_eq(lse, log(key + sink), 1e-6);
    cr_assert_float_eq(255 * factor, key / (key + sink), 1e-6);

    args.sink = 0x1p127f; /* drowns the keys; 2^1000 stands for everything beyond */
    cr_assert_eq(hr_integer_finish(&args, 0, 3 * HR_INTEGER_OCTAVE, one, 0), 0);
    cr_assert(isfinite(lse));
    args.sink = -0x1p127f;
    cr_assert_eq(hr_integer_finish(&args, 0, 3 * HR_INTEGER_OCTAVE, one, 0), 1 / 255.0f);
}
