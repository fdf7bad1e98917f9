/*
 * The integer kernels at the ends of their ranges: huge and tiny scales, logits in the thousands,
 * sums that would overflow, rows and tiles without keys. Every kernel of the recipe runs each case
 * and they must agree bit for bit.
 */
#include "cpu/integer_softmax.h"
#include "integer_case.h"

/* Logits are rounded to 1/1024 octave: half of that in nats, and a little for the rest. */
#define LOGIT_ROUNDING (0x1p-11 * HR_INTEGER_LN2 + 1e-5)

/* No smoothing: the operands are made by hand. */
#define INT8 "int8:k.transform=none"
#define INT8_P16 "int8:k.transform=none,p.dtype=i16"

static void fill_gaussian_scales(hr_packed *packed, float scale, float spread, uint64_t seed)
{
    test_random random = {seed};
    for (int64_t token = 0; token < packed->total_tokens; token++)
        packed->scale[token] = scale * exp2f(spread * random_gaussian(&random));
}

static void make_random(integer_case *c, const char *recipe, int32_t seqlen_q, int32_t seqlen_kv,
                        int32_t head_dim)
{
    make_integer_case(c, recipe, seqlen_q, seqlen_kv, head_dim);
    set_random_codes(&c->packed.q, 1);
    set_random_codes(&c->packed.k, 2);
    set_random_codes(&c->packed.v, 3);
    /* codes have variance 127^2 / 3, so logits have about that of a standard normal */
    float scale = (float)sqrt(3.0) / 127;
    fill_gaussian_scales(&c->packed.q, scale, 0.2f, 4);
    fill_gaussian_scales(&c->packed.k, scale, 0.2f, 5);
    fill_gaussian_scales(&c->packed.v, scale, 0.2f, 6);
    c->problem.softmax_scale = 1 / sqrtf((float)head_dim);
}

static int count_not_finite(const integer_case *c)
{
    int count = 0;
    for (int64_t i = 0; i < (int64_t)c->cu_seqlens_q[1] * c->problem.head_dim; i++)
        count += !isfinite(c->o[i]);
    for (int32_t i = 0; i < c->cu_seqlens_q[1]; i++)
        count += !isfinite(c->lse[i]);
    return count;
}

Test(integer_range, every_head_dim)
{
    for (int32_t head_dim = 8; head_dim <= 256; head_dim += 8) {
        integer_case c;
        make_random(&c, INT8, 13, 333, head_dim);
        run_integer_case(&c);
        double error = error_of_o(&c);
        cr_expect(error <= 0.015, "head_dim %d: relative error %.4f", head_dim, error);
        free_integer_case(&c);
        /* Quantizing is not counted here: what is left is the error of the weights. */
        make_random(&c, INT8_P16, 13, 333, head_dim);
        run_integer_case(&c);
        error = error_of_o(&c);
        cr_expect(error <= 0.002, "head_dim %d, P in I16: relative error %.4f", head_dim, error);
        free_integer_case(&c);
    }
}

/* Without the bound on q_scale * k_scale the logits are inf and O is inf - inf. */
Test(integer_range, huge_scales_pick_the_largest_logit)
{
    integer_case c;
    make_integer_case(&c, INT8, 7, 600, 16);
    for (int32_t i = 0; i < 7; i++)
        set_token(&c.packed.q, i, 127, 1e38f);
    for (int32_t j = 0; j < 600; j++) {
        set_token(&c.packed.k, j, j == 431 ? 3 : j % 3 - 2, 3e38f);
        set_token(&c.packed.v, j, j == 431 ? 100 : -50, 0.5f);
    }
    run_integer_case(&c);
    for (int i = 0; i < 7 * 16; i++)
        cr_assert_float_eq(c.o[i], 50, 1e-5);
    for (int i = 0; i < 7; i++)
        cr_assert(isfinite(c.lse[i]) && c.lse[i] > 1e30f);
    free_integer_case(&c);
}

/* Denormal scales: every logit is 0, O is the mean of V. */
Test(integer_range, tiny_scales_give_the_mean)
{
    integer_case c;
    make_integer_case(&c, INT8, 7, 512, 16);
    set_random_codes(&c.packed.q, 1);
    set_random_codes(&c.packed.k, 2);
    for (int32_t i = 0; i < 7; i++)
        c.packed.q.scale[i] = 1e-38f;
    for (int32_t j = 0; j < 512; j++) {
        c.packed.k.scale[j] = 1e-44f;
        set_token(&c.packed.v, j, j % 2 ? 3 : 1, 2e-40f); /* the output is denormal too */
    }
    run_integer_case(&c);
    for (int i = 0; i < 7 * 16; i++)
        cr_assert_float_eq(c.o[i], 4e-40f, 1e-44);
    for (int i = 0; i < 7; i++)
        cr_assert_float_eq(c.lse[i], logf(512), LOGIT_ROUNDING);
    free_integer_case(&c);
}

/*
 * V scales from 1e-38 to 1e32 within one sequence, rising and falling, in tiles of their own and
 * mixed in every tile. Sums in units of a fixed scale overflow or vanish.
 */
Test(integer_range, v_scales_of_all_magnitudes)
{
    for (int order = 0; order < 3; order++) {
        integer_case c;
        make_random(&c, INT8, 9, 1500, 24);
        for (int32_t j = 0; j < 1500; j++) {
            int step = order == 0 ? j / 256 : order == 1 ? 5 - j / 256 : j % 6;
            c.packed.v.scale[j] = powf(10, -38 + 14 * (float)step);
        }
        run_integer_case(&c);
        double error = error_of_o(&c);
        cr_expect_eq(count_not_finite(&c), 0, "order %d", order);
        cr_expect(error <= 0.02, "order %d: relative error %.4f", order, error);
        free_integer_case(&c);
    }
}

/*
 * The token that matters has a V scale 2^-100 of another's in the same tile, which has no weight to
 * speak of: 1 / w must not be inf, nor the row sum.
 */
Test(integer_range, v_scale_far_below_its_neighbour)
{
    integer_case c;
    make_integer_case(&c, INT8, 6, 256, 8);
    for (int32_t i = 0; i < 6; i++)
        set_token(&c.packed.q, i, 127, 1);
    for (int32_t j = 0; j < 256; j++) {
        set_token(&c.packed.k, j, j == 5 ? 0 : 127, 1);
        set_token(&c.packed.v, j, 127, j == 5 ? 1e30f : 1e-38f);
    }
    run_integer_case(&c);
    cr_expect_eq(count_not_finite(&c), 0);
    for (int i = 0; i < 6; i++)
        cr_expect_float_eq(c.lse[i], 127 * 127 * 8 + logf(255), 0.02);
    free_integer_case(&c);
}

/* Logits of +-thousands, and whole tiles thousands below or above the ones before. */
Test(integer_range, logits_in_the_thousands)
{
    for (int order = 0; order < 3; order++) {
        integer_case c;
        make_random(&c, INT8, 9, 1100, 32);
        for (int32_t j = 0; j < 1100; j++) {
            int level = order == 0 ? j / 256 : order == 1 ? 4 - j / 256 : (j * 7 / 256) % 5;
            memset(codes_of(&c.packed.k, j), 30 * (level - 2), 16);
        }
        for (int32_t i = 0; i < 9; i++)
            memset(codes_of(&c.packed.q, i), i % 2 ? 100 : -100, 16);
        c.problem.softmax_scale = 500;
        run_integer_case(&c);
        double error = error_of_o(&c);
        cr_expect_eq(count_not_finite(&c), 0, "order %d", order);
        /* ulp(8000) * ln 2 is 3e-4: the logits' own rounding in binary32 */
        cr_expect(error <= 0.01, "order %d: relative error %.4f", order, error);
        cr_expect(c.lse[0] > 3000, "order %d: LSE %g", order, (double)c.lse[0]);
        free_integer_case(&c);
    }
}

/* All weights 255 and all V codes 127 for a million keys: int32 sums over 66,313 keys overflow, and
 * with P in I16 over 519. */
static void check_a_million_keys(const char *recipe)
{
    const int32_t keys = 1 << 20;
    integer_case c;
    make_integer_case(&c, recipe, 2, keys, 8);
    for (int32_t i = 0; i < 2; i++)
        set_token(&c.packed.q, i, 1, 0.01f);
    for (int32_t j = 0; j < keys; j++) {
        set_token(&c.packed.k, j, 1, 0.01f);
        set_token(&c.packed.v, j, 127, 1);
    }
    run_integer_case(&c);
    /* one rounding of O a tile, all in the same direction: 4096 * 2^-24 */
    for (int i = 0; i < 16; i++)
        cr_assert_float_eq(c.o[i], 127, 127 * 2.5e-4);
    cr_assert_float_eq(c.lse[0], 20 * log(2) + 8e-4, 2.5e-4);
    free_integer_case(&c);
}

Test(integer_range, a_million_keys_do_not_overflow)
{
    check_a_million_keys(INT8);
    check_a_million_keys(INT8_P16);
}

/* The largest dot product, 256 * 127 * 127, of both signs: the accumulators start at 1.5 * 2^23. */
Test(integer_range, extreme_codes)
{
    integer_case c;
    make_integer_case(&c, INT8, 8, 300, 256);
    for (int32_t i = 0; i < 8; i++)
        set_token(&c.packed.q, i, i % 2 ? 127 : -127, 1e-3f);
    for (int32_t j = 0; j < 300; j++) {
        set_token(&c.packed.k, j, j % 5 ? 127 : -127, 1e-3f * (float)(1 + j % 7));
        set_token(&c.packed.v, j, j % 3 ? 127 : -127, 1);
    }
    run_integer_case(&c);
    double error = error_of_o(&c);
    cr_assert(error <= 0.006, "relative error %.4f", error);
    free_integer_case(&c);
}

/*
 * A causal problem with more queries than keys: rows without keys share groups of rows with others,
 * and windows leave rows that first see a key in a later tile than their neighbours.
 */
Test(integer_range, rows_and_tiles_without_keys)
{
    for (int32_t seqlen_q = 290; seqlen_q < 302; seqlen_q++) {
        integer_case c;
        make_random(&c, INT8, seqlen_q, 100, 24);
        c.problem.mask.causal = true;
        run_integer_case(&c);
        for (int32_t i = 0; i < seqlen_q; i++) {
            bool empty = i < seqlen_q - 100;
            cr_assert_eq(isinf(c.lse[i]) != 0, empty, "row %d of %d", i, seqlen_q);
            int zeros = 0; /* a sum of integers may be 0 by chance, but not most of a row's */
            for (int channel = 0; channel < 24; channel++)
                zeros += c.o[i * 24 + channel] == 0;
            cr_assert(empty ? zeros == 24 : zeros < 12, "row %d of %d: %d", i, seqlen_q, zeros);
        }
        cr_expect(error_of_o(&c) <= 0.01);
        free_integer_case(&c);
    }
    for (int32_t window = 0; window < 90; window += 17) {
        integer_case c;
        make_random(&c, INT8, 150, 900, 24);
        c.problem.mask.causal = true;
        c.problem.mask.window_left = window;
        run_integer_case(&c);
        cr_expect_eq(count_not_finite(&c), 0, "window %d", window);
        cr_expect(error_of_o(&c) <= 0.01, "window %d", window);
        free_integer_case(&c);
    }
}

/* Keys 500 log2 units below the others add nothing: no weight reaches the denormals. */
Test(integer_range, vanishing_weights)
{
    integer_case c;
    make_integer_case(&c, INT8, 6, 700, 8);
    for (int32_t i = 0; i < 6; i++)
        set_token(&c.packed.q, i, 100, 1);
    for (int32_t j = 0; j < 700; j++) {
        /* logits 0, and -98 to -8000 log2 units */
        set_token(&c.packed.k, j, j % 100 == 50 ? 0 : -1 - j % 100, 0.085f);
        set_token(&c.packed.v, j, j % 100 == 50 ? 64 : -127, 2);
    }
    run_integer_case(&c);
    for (int i = 0; i < 6 * 8; i++)
        cr_assert_float_eq(c.o[i], 128, 1e-4);
    cr_assert_float_eq(c.lse[0], log(7), 1e-5);
    free_integer_case(&c);
}

Test(integer_range, sinks_with_and_without_keys)
{
    integer_case c;
    make_random(&c, INT8, 120, 60, 16);
    const float sink = 1.25f;
    c.problem.sinks = &sink;
    c.problem.mask.causal = true;
    run_integer_case(&c);
    cr_expect_eq(c.lse[0], sink);
    cr_expect_eq(c.o[0], 0);
    cr_expect_gt(c.lse[119], sink);
    cr_expect(error_of_o(&c) <= 0.01);
    free_integer_case(&c);
}

/* The largest fixed-point codes under group scales: 255 * 127 * 2^8 * 256 is 99% of int32. */
Test(integer_range, group_scales_at_the_ends_of_int32)
{
    static const char *const recipes[] = {
        "int8:k.transform=none,kv.granularity=group8",
        "int4:q.transform=none,k.transform=none,kv.granularity=group8",
        "int4:q.transform=none,k.transform=none,kv.granularity=group8,kv.dtype=i4",
        "int4:q.transform=none,k.transform=none,kv.granularity=group8,kv.dtype=u4"};
    for (int r = 0; r < 4; r++) {
        integer_case c;
        make_integer_case(&c, recipes[r], 3, 512, 16);
        hr_packed *v = &c.packed.v;
        /* the highest code of each format; U4's zero point is 0 for a tensor of ones */
        const int highest[4] = {127, 0xff, 0x77, 0xff};
        const float level[4] = {127, 127, 7, 15};
        memset(v->codes, highest[r], (size_t)(v->total_tokens * 16) * (r ? 1 : 2) / 2);
        for (int64_t i = 0; i < v->scale_count; i++)
            v->scale[i] = 0.5f;
        if (v->zero_point) memset(v->zero_point, 0, (size_t)v->scale_count);
        run_integer_case(&c);
        for (int i = 0; i < 3 * 16; i++)
            cr_expect_float_eq(c.o[i], 0.5f * level[r], 1e-3 * (double)level[r], "%s: %g",
                               recipes[r], (double)c.o[i]);
        free_integer_case(&c);
    }
}

/*
 * Tokens whose V is 0 next to others, their scales less by 2 (an even tile), 50 (a wide one) or
 * much more: their contribution vanishes, their weight does not.
 */
Test(integer_range, weights_of_tiny_values_stay_in_the_sum)
{
    const float scales[] = {0.5f, 0.02f, 0.001f, 1e-30f};
    for (int s = 0; s < 4; s++) {
        integer_case c;
        make_integer_case(&c, INT8, 7, 300, 16);
        for (int32_t i = 0; i < 7; i++)
            set_token(&c.packed.q, i, 100, 1e-3f);
        for (int32_t j = 0; j < 300; j++) {
            set_token(&c.packed.k, j, 1, 1e-3f);
            set_token(&c.packed.v, j, j % 2 ? 100 : 0, j % 2 ? 1.0f : scales[s]);
        }
        run_integer_case(&c);
        /* what rounding weights to integers costs those of the small scales */
        const double rounding = s < 2 ? 0.25 / 32640 / (double)scales[s] : 0;
        const double bound = LOGIT_ROUNDING + HR_INTEGER_WEIGHT_ERROR + rounding;
        for (int i = 0; i < 7 * 16; i++)
            cr_expect_float_eq(c.o[i], 50, 50 * bound, "scale %g: %g", (double)scales[s],
                               (double)c.o[i]);
        cr_expect_float_eq(c.lse[0], log(300) + 16e-4, bound, "scale %g", (double)scales[s]);
        free_integer_case(&c);
    }
}

/* Logits of 24 octaves and more, and all below -6: 16 bits hold neither without a second look. */
Test(integer_range, logits_beyond_sixteen_bits)
{
    for (int sign = -1; sign <= 1; sign += 2) {
        integer_case c;
        make_integer_case(&c, INT8, 9, 600, 32);
        for (int32_t i = 0; i < 9; i++)
            set_token(&c.packed.q, i, 100, 1);
        for (int32_t j = 0; j < 600; j++) {
            /* logits 50 to 50.99 or -50.99 to -50 nats, and every seventh far from them */
            float logit = (float)sign * (50 + (float)(j % 100) / 100);
            set_token(&c.packed.k, j, 100, (j % 7 ? logit : -100.0f) / (32 * 100 * 100));
            set_token(&c.packed.v, j, j % 127 - 63, 1);
            if (c.packed.k.scale[j] < 0) { /* scales are positive, codes have the sign */
                set_token(&c.packed.k, j, -100, -c.packed.k.scale[j]);
            }
        }
        run_integer_case(&c);
        double error = error_of_o(&c);
        cr_assert(error <= 0.02, "sign %d: relative error %.4f", sign, error);
        cr_assert_eq(count_not_finite(&c), 0);
        free_integer_case(&c);
    }
}

/*
 * Caps of all magnitudes, logits far beyond them, and ALiBi that takes distant keys past int32 in
 * units of a logit: 2^31 / 1024 octaves is 1.5 million nats.
 */
Test(integer_range, caps_and_slopes_of_all_magnitudes)
{
    const float caps[] = {0, 1e-3f, 30, 1e6f, 1e30f}, slopes[] = {0, 0.01f, 1e4f};
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 3; k++) {
            integer_case c;
            make_random(&c, i % 2 ? INT8 : INT8_P16, 40, 700, 24);
            c.problem.softcap = caps[i];
            if (k) c.problem.alibi_slopes = &slopes[k];
            for (int32_t j = 0; j < 700; j += 50)
                c.packed.k.scale[j] = 40; /* logits of hundreds */
            run_integer_case(&c);
            const double error = error_of_o(&c);
            cr_expect_eq(count_not_finite(&c), 0, "softcap %g, slope %g", (double)caps[i],
                         (double)slopes[k]);
            cr_expect(error <= 0.02, "softcap %g, slope %g: relative error %.4f", (double)caps[i],
                      (double)slopes[k], error);
            free_integer_case(&c);
        }
}
