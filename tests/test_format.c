/*
 * What format.h promises, checked against definitions written here in double: round to nearest
 * even over every tie and its neighbours, saturation, NaN and minus zero, integer and nibble
 * codes, the gaussian codebook, and every error.
 */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format_inputs.h"
#include "headroom/format.h"

static const hr_dtype minifloats[] = {HR_DTYPE_F16, HR_DTYPE_BF16, HR_DTYPE_E4M3, HR_DTYPE_E5M2};
static const hr_dtype integers[] = {HR_DTYPE_I8, HR_DTYPE_U8, HR_DTYPE_I4, HR_DTYPE_U4};

/* The code of one value; nibble formats encode the value twice and both nibbles must agree. */
static unsigned encode(hr_dtype dtype, float value, float scale, int zero_point)
{
    uint8_t codes[4] = {0};
    int nibbles = hr_dtype_bits(dtype) == 4;
    cr_assert_eq(hr_encode(dtype, (float[]){value, value}, 1 + nibbles, scale, zero_point, codes),
                 HR_OK);
    if (nibbles) cr_assert_eq(codes[0] & 15, codes[0] >> 4);
    uint16_t wide;
    memcpy(&wide, codes, sizeof wide);
    return hr_dtype_bits(dtype) == 16 ? wide : nibbles ? codes[0] & 15u : codes[0];
}

static float decode(hr_dtype dtype, unsigned code, float scale, int zero_point)
{
    uint16_t wide = (uint16_t)(hr_dtype_bits(dtype) == 4 ? code | code << 4 : code);
    int nibbles = hr_dtype_bits(dtype) == 4;
    float values[2];
    cr_assert_eq(hr_decode(dtype, &wide, 1 + nibbles, scale, zero_point, values), HR_OK);
    if (nibbles) cr_assert_eq(values[0], values[1]);
    return values[0];
}

static unsigned sign_bit(hr_dtype dtype)
{
    return 1u << (hr_dtype_bits(dtype) - 1);
}

/* Checks value and -value; codes of finite values ascend with the magnitude. */
static void expect_code(hr_dtype dtype, float value, unsigned code)
{
    unsigned positive = encode(dtype, value, 1.0f, 0), negative = encode(dtype, -value, 1.0f, 0);
    if (positive != code || negative != (code | sign_bit(dtype)))
        cr_assert_fail("%s: +-%a encodes to %x, %x; expected %x", hr_dtype_name(dtype),
                       (double)value, positive, negative, code);
}

Test(format, minifloats_round_to_nearest_even_at_every_tie)
{
    for (int f = 0; f < 4; f++) {
        hr_dtype dtype = minifloats[f];
        unsigned code = 0;
        float low = 0.0f;
        for (; low < hr_dtype_max(dtype); code++) {
            float high = decode(dtype, code + 1, 1.0f, 0);
            cr_assert(high > low);
            float tie = (float)(((double)low + high) / 2);
            expect_code(dtype, low, code);
            expect_code(dtype, tie, code + code % 2);
            expect_code(dtype, nextafterf(tie, 0.0f), code);
            expect_code(dtype, nextafterf(tie, INFINITY), code + 1);
            low = high;
        }
        cr_expect_eq(low, hr_dtype_max(dtype));
    }
}

Test(format, minifloats_saturate)
{
    for (int f = 0; f < 4; f++) {
        hr_dtype dtype = minifloats[f];
        unsigned largest = encode(dtype, hr_dtype_max(dtype), 1.0f, 0);
        expect_code(dtype, INFINITY, largest);
        expect_code(dtype, FLT_MAX, largest);
        expect_code(dtype, nextafterf(hr_dtype_max(dtype), INFINITY), largest);
        /* 1 / smallest denormal overflows to infinity before it is rounded */
        cr_expect_eq(encode(dtype, 1.0f, FLT_TRUE_MIN, 0), largest);
    }
}

Test(format, minifloats_keep_nan_and_minus_zero)
{
    for (int f = 0; f < 4; f++) {
        hr_dtype dtype = minifloats[f];
        unsigned nan_code = sign_bit(dtype) - 1;
        static const uint32_t nans[] = {0x7fc00000, 0xffc00000, 0x7f800001, 0xffffffff};
        for (int i = 0; i < 4; i++)
            cr_expect_eq(encode(dtype, hr_float_from_bits(nans[i]), 1.0f, 0), nan_code);
        cr_expect(isnan(decode(dtype, nan_code, 1.0f, 0)));
        cr_expect_eq(encode(dtype, -0.0f, 1.0f, 0), sign_bit(dtype));
        cr_expect_eq(hr_float_bits(decode(dtype, sign_bit(dtype), 1.0f, 0)), 0x80000000);
        cr_expect_eq(encode(dtype, -FLT_TRUE_MIN, 1.0f, 0), sign_bit(dtype));
    }
}

Test(format, every_finite_minifloat_code_survives_a_round_trip)
{
    for (int f = 0; f < 4; f++) {
        hr_dtype dtype = minifloats[f];
        for (unsigned code = 0; code < 2 * sign_bit(dtype); code++) {
            float value = decode(dtype, code, 0.25f, 0);
            if (isfinite(value)) cr_assert_eq(encode(dtype, value, 0.25f, 0), code);
        }
    }
}

/* round(value / scale) in the C library's round-to-nearest-even, clamped. */
static int integer_code(hr_dtype dtype, float value, float scale, int zero_point)
{
    int low = dtype == HR_DTYPE_I8 ? -127 : dtype == HR_DTYPE_I4 ? -7 : 0;
    int high = (int)hr_dtype_max(dtype);
    double rounded = rint((double)(value / scale)) + zero_point;
    return rounded < low ? low : rounded > high ? high : (int)rounded;
}

static void check_integer(hr_dtype dtype, float value, float scale, int zero_point)
{
    unsigned mask = hr_dtype_bits(dtype) == 4 ? 15 : 255;
    int expected = integer_code(dtype, value, scale, zero_point);
    unsigned code = encode(dtype, value, scale, zero_point);
    if (code != ((unsigned)expected & mask))
        cr_assert_fail("%s: %a / %a + %d encodes to %x, expected %d", hr_dtype_name(dtype),
                       (double)value, (double)scale, zero_point, code, expected);
    float decoded = decode(dtype, code, scale, zero_point);
    cr_assert_eq(decoded, scale * (float)(expected - zero_point));
}

Test(format, integers_round_to_nearest_even_at_every_tie)
{
    for (int f = 0; f < 4; f++)
        for (int zero_point = 0; zero_point <= (integers[f] == HR_DTYPE_U4 ? 15 : 0); zero_point++)
            for (int i = -600; i <= 600; i++) {
                float half = 0.5f * (float)i;
                check_integer(integers[f], half, 1.0f, zero_point);
                check_integer(integers[f], nextafterf(half, -INFINITY), 1.0f, zero_point);
                check_integer(integers[f], nextafterf(half, INFINITY), 1.0f, zero_point);
                check_integer(integers[f], half, 0.3f, zero_point);
            }
}

Test(format, integers_saturate_everything_that_is_not_nan)
{
    uint64_t seed = 3;
    for (int f = 0; f < 4; f++) {
        check_integer(integers[f], INFINITY, 1.0f, 0);
        check_integer(integers[f], -INFINITY, 1.0f, 0);
        check_integer(integers[f], FLT_MAX, FLT_TRUE_MIN, 0);
        for (int i = 0; i < 20000; i++) {
            uint32_t bits = (uint32_t)(random_bits(&seed) >> 32);
            if (!is_nan_bits(bits)) check_integer(integers[f], hr_float_from_bits(bits), 1.0f, 0);
        }
    }
}

Test(format, codes_that_encoding_never_produces_still_decode)
{
    cr_expect_eq(decode(HR_DTYPE_I8, 0x80, 2.0f, 0), -256.0f);
    cr_expect_eq(decode(HR_DTYPE_I4, 8, 2.0f, 0), -16.0f);
    cr_expect_eq(decode(HR_DTYPE_E5M2, 0xfc, 2.0f, 0), -INFINITY);
    cr_expect_eq(decode(HR_DTYPE_F16, 0x7c00, 2.0f, 0), INFINITY);
}

Test(format, nibbles_are_packed_low_first)
{
    uint8_t codes[2];
    float values[4];
    const float input[4] = {1.0f, -2.0f, 7.0f, -7.0f};
    cr_assert_eq(hr_encode(HR_DTYPE_I4, input, 4, 1.0f, 0, codes), HR_OK);
    cr_expect_eq(codes[0], 0xe1);
    cr_expect_eq(codes[1], 0x97);
    cr_assert_eq(hr_decode(HR_DTYPE_I4, codes, 4, 1.0f, 0, values), HR_OK);
    cr_expect_arr_eq(values, input, sizeof input);
}

Test(format, decoding_rounds_once)
{
    /* 127 * 0.1f is not a float: the nearest float of the exact product. */
    cr_expect_eq(decode(HR_DTYPE_I8, 127, 0.1f, 0), (float)(127.0 * (double)0.1f));
    cr_expect_eq(decode(HR_DTYPE_E4M3, 0x7e, 0.1f, 0), (float)(448.0 * (double)0.1f));
    cr_expect_eq(decode(HR_DTYPE_U4, 15, 0.1f, 4), (float)(11.0 * (double)0.1f));
}

Test(format, codebook_takes_the_nearest_level)
{
    const int8_t *levels = hr_codebook_c4();
    for (int i = -1300; i <= 1300; i++) {
        float value = 0.1f * (float)i;
        unsigned code = encode(HR_DTYPE_C4, value, 1.0f, 0);
        double error = fabs((double)value - levels[code]);
        for (int other = 0; other < 16; other++)
            cr_assert(error <= fabs((double)value - levels[other]), "%g", (double)value);
        if (i) cr_assert_eq(encode(HR_DTYPE_C4, -value, 1.0f, 0), 15 - code);
    }
    for (unsigned code = 0; code < 16; code++) {
        cr_expect_eq(encode(HR_DTYPE_C4, levels[code], 1.0f, 0), code);
        cr_expect_eq(decode(HR_DTYPE_C4, code, 0.5f, 0), 0.5f * levels[code]);
    }
    for (unsigned code = 8; code < 15; code++) {
        float tie = 0.5f * (float)(levels[code] + levels[code + 1]);
        cr_expect_eq(encode(HR_DTYPE_C4, tie, 1.0f, 0), code);
        cr_expect_eq(encode(HR_DTYPE_C4, nextafterf(tie, 128.0f), 1.0f, 0), code + 1);
        cr_expect_eq(encode(HR_DTYPE_C4, -tie, 1.0f, 0), 15 - code);
    }
    cr_expect_eq(encode(HR_DTYPE_C4, 0.0f, 1.0f, 0), 8);
    cr_expect_eq(encode(HR_DTYPE_C4, -0.0f, 1.0f, 0), 8);
    cr_expect_eq(encode(HR_DTYPE_C4, INFINITY, 1.0f, 0), 15);
    cr_expect_eq(encode(HR_DTYPE_C4, -INFINITY, 1.0f, 0), 0);
}

/* E[X | low < X < high] of a standard gaussian. */
static double centroid(double low, double high)
{
    const double inverse_sqrt_2pi = 0.398942280401432678;
    double mass = 0.5 * (erf(high / sqrt(2)) - erf(low / sqrt(2)));
    return inverse_sqrt_2pi * (exp(-0.5 * low * low) - exp(-0.5 * high * high)) / mass;
}

/* One Lloyd iteration on the eight positive levels; the largest move. */
static double lloyd(const double level[8], double out[8])
{
    double moved = 0;
    for (int i = 0; i < 8; i++) {
        double low = i ? 0.5 * (level[i - 1] + level[i]) : 0;
        double high = i < 7 ? 0.5 * (level[i] + level[i + 1]) : 40;
        out[i] = centroid(low, high);
        moved = fmax(moved, fabs(out[i] - level[i]));
    }
    return moved;
}

Test(format, codebook_is_the_lloyd_max_quantizer_of_a_gaussian)
{
    const int8_t *levels = hr_codebook_c4();
    double level[8], next[8];
    for (int i = 0; i < 8; i++) {
        cr_expect_eq(levels[8 + i], -levels[7 - i]);
        level[i] = levels[8 + i];
    }
    cr_assert_eq(level[7], 127);
    /*
     * The codebook in units of sigma: the outermost level is 2.7326 (Max 1960, table I). Rounding a
     * level to an integer moves it by at most half a unit, and a centroid by less, so that every
     * level is within one unit of the centroid of its cell.
     */
    const double unit = 2.7326 / 127;
    for (int i = 0; i < 8; i++)
        level[i] *= unit;
    cr_expect(lloyd(level, next) <= unit);

    /* Lloyd's iteration from there ends at the optimum, whose levels round to the codebook. */
    double moved = 1;
    for (int step = 0; step < 100000 && !(moved <= 1e-13); step++) {
        moved = lloyd(level, next);
        memcpy(level, next, sizeof level);
    }
    cr_assert(moved <= 1e-13);
    cr_expect(fabs(level[7] - 2.7326) <= 5e-5);
    for (int i = 0; i < 8; i++)
        cr_expect_eq(rint(level[i] / level[7] * 127), levels[8 + i]);
}

Test(format, largest_magnitudes)
{
    static const struct {
        hr_dtype dtype;
        float max;
    } expected[] = {{HR_DTYPE_F64, 0},     {HR_DTYPE_F32, FLT_MAX},
                    {HR_DTYPE_F16, 65504}, {HR_DTYPE_BF16, 0x1.fep127f},
                    {HR_DTYPE_E4M3, 448},  {HR_DTYPE_E5M2, 57344},
                    {HR_DTYPE_I8, 127},    {HR_DTYPE_U8, 255},
                    {HR_DTYPE_I4, 7},      {HR_DTYPE_U4, 15},
                    {HR_DTYPE_C4, 127},    {HR_DTYPE_I16, 0},
                    {HR_DTYPE_I32, 0},     {HR_DTYPE_I64, 0},
                    {HR_DTYPE_COUNT, 0},   {(hr_dtype)-1, 0}};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++)
        cr_expect_eq(hr_dtype_max(expected[i].dtype), expected[i].max);
}

static void expect_error(hr_status status, hr_status expected, const char *message)
{
    cr_expect_eq(status, expected, "%s", hr_last_error());
    cr_expect_str_eq(hr_last_error(), message);
}

Test(format, bad_arguments_are_named)
{
    const float x[4] = {1, 2, 3, 4};
    float y[4];
    uint8_t c[8];
    hr_status bad = HR_ERROR_INVALID_ARGUMENT;
    expect_error(hr_encode(HR_DTYPE_COUNT, x, 4, 1, 0, c), bad, "encode: 14 is not an hr_dtype");
    expect_error(hr_encode(HR_DTYPE_I32, x, 4, 1, 0, c), HR_ERROR_UNSUPPORTED,
                 "encode: i32 is not a coded format; formats: f16 bf16 e4m3 e5m2 i8 u8 i4 u4 c4");
    expect_error(hr_decode(HR_DTYPE_F32, c, 4, 1, 0, y), HR_ERROR_UNSUPPORTED,
                 "decode: f32 is not a coded format; formats: f16 bf16 e4m3 e5m2 i8 u8 i4 u4 c4");
    expect_error(hr_encode(HR_DTYPE_I8, x, -1, 1, 0, c), bad, "encode: count -1 is negative");
    expect_error(hr_encode(HR_DTYPE_C4, x, 3, 1, 0, c), bad,
                 "encode: count 3 is odd; c4 packs two codes a byte and needs an even count");
    expect_error(hr_encode(HR_DTYPE_I8, NULL, 4, 1, 0, c), bad,
                 "encode: values is NULL with count 4");
    expect_error(hr_decode(HR_DTYPE_I8, NULL, 4, 1, 0, y), bad,
                 "decode: codes is NULL with count 4");
    expect_error(hr_encode(HR_DTYPE_I8, x, 4, 0, 0, c), bad,
                 "encode: scale 0; it must be finite and > 0");
    expect_error(hr_encode(HR_DTYPE_I8, x, 4, -1, 0, c), bad,
                 "encode: scale -1; it must be finite and > 0");
    expect_error(hr_decode(HR_DTYPE_I8, c, 4, INFINITY, 0, y), bad,
                 "decode: scale inf; it must be finite and > 0");
    cr_expect_eq(hr_encode(HR_DTYPE_I8, x, 4, NAN, 0, c), bad);
    expect_error(hr_encode(HR_DTYPE_I8, x, 4, 1, 3, c), bad,
                 "encode: zero_point 3; i8 accepts 0 only");
    expect_error(hr_encode(HR_DTYPE_U4, x, 4, 1, 16, c), bad,
                 "encode: zero_point 16; u4 accepts 0 to 15");
    expect_error(hr_encode(HR_DTYPE_U4, x, 4, 1, -1, c), bad,
                 "encode: zero_point -1; u4 accepts 0 to 15");
    cr_expect_eq(hr_encode(HR_DTYPE_I8, NULL, 0, 1, 0, NULL), HR_OK);
}

Test(format, nan_in_an_integer_is_an_error_and_writes_nothing)
{
    static const hr_dtype without_nan[] = {HR_DTYPE_I8, HR_DTYPE_U8, HR_DTYPE_I4, HR_DTYPE_U4,
                                           HR_DTYPE_C4};
    for (int f = 0; f < 5; f++) {
        float x[40] = {0};
        uint8_t codes[40];
        x[37] = NAN;
        x[39] = -NAN;
        memset(codes, 0xa5, sizeof codes);
        char message[80];
        snprintf(message, sizeof message, "encode: values[37] is NaN, which %s cannot hold",
                 hr_dtype_name(without_nan[f]));
        expect_error(hr_encode(without_nan[f], x, 40, 1, 0, codes), HR_ERROR_NUMERIC, message);
        for (int i = 0; i < 40; i++)
            cr_expect_eq(codes[i], 0xa5);
    }
}
