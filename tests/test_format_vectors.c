/*
 * FP8, FP16 and BF16 against vectors/formats.txt, which ml_dtypes and NumPy made: all 256 and all
 * 65,536 codes decoded, and 18 x 65,536 floats encoded, every FP8 tie and its neighbours among
 * them.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "format_inputs.h"
#include "headroom/format.h"

static float values[UPPER_HALVES];
static uint16_t codes[UPPER_HALVES];

/* The hashes are of little-endian arrays. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "little-endian hosts only");

static void check_code(hr_dtype dtype, uint8_t code, const char *expected)
{
    float value;
    cr_assert_eq(hr_decode(dtype, (uint8_t[]){code}, 1, 1.0f, 0, &value), HR_OK);
    char text[16];
    snprintf(text, sizeof text, "%08" PRIx32, hr_float_bits(value));
    cr_expect_str_eq(isnan(value) ? "nan" : text, expected, "%s code %02x", hr_dtype_name(dtype),
                     code);
}

static uint64_t decoded_hash(hr_dtype dtype, unsigned first)
{
    enum { BLOCK = 4096 };
    for (unsigned i = 0; i < BLOCK; i++)
        codes[i] = (uint16_t)(first + i);
    cr_assert_eq(hr_decode(dtype, codes, BLOCK, 1.0f, 0, values), HR_OK);
    for (unsigned i = 0; i < BLOCK; i++)
        if (isnan(values[i])) values[i] = hr_float_from_bits(0x7fc00000);
    return XXH3_64bits(values, BLOCK * sizeof values[0]);
}

static uint64_t encoded_hash(hr_dtype dtype, unsigned low)
{
    fill_upper_halves(values, low);
    cr_assert_eq(hr_encode(dtype, values, UPPER_HALVES, 1.0f, 0, codes), HR_OK);
    return XXH3_64bits(codes, UPPER_HALVES * (size_t)hr_dtype_bits(dtype) / 8);
}

Test(format_vectors, decode_and_encode_agree_with_ml_dtypes)
{
    FILE *file = fopen(HEADROOM_SOURCE_DIR "/tests/vectors/formats.txt", "r");
    cr_assert_not_null(file);
    char line[128];
    int checked[3] = {0, 0, 0};
    while (fgets(line, sizeof line, file)) {
        char what[8], name[8], expected[24];
        unsigned number;
        if (line[0] == '#') continue;
        cr_assert_eq(sscanf(line, "%7s %7s %x %23s", what, name, &number, expected), 4, "%s", line);
        hr_dtype dtype;
        cr_assert_eq(hr_dtype_parse(name, &dtype), HR_OK);
        if (!strcmp(what, "code")) {
            check_code(dtype, (uint8_t)number, expected);
            checked[0]++;
            continue;
        }
        int decode = !strcmp(what, "decode");
        char text[24];
        snprintf(text, sizeof text, "%016" PRIx64,
                 decode ? decoded_hash(dtype, number) : encoded_hash(dtype, number));
        cr_expect_str_eq(text, expected, "%s %s %04x", what, name, number);
        checked[decode ? 1 : 2]++;
    }
    fclose(file);
    cr_expect_eq(checked[0], 2 * 256);
    cr_expect_eq(checked[1], 2 * 16);
    cr_expect_eq(checked[2], 4 * 18);
}
