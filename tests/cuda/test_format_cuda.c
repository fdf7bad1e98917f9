/*
 * FP8, FP16 and BF16 bit for bit against the CUDA toolkit's host conversions: every code decoded,
 * 12 x 65,536 structured and a million random floats encoded. The toolkit's 16-bit conversions
 * overflow to infinity; there, and only there, ours saturate.
 */
#include <criterion/criterion.h>
#include <math.h>

#include "format_inputs.h"
#include "format_reference.h"
#include "headroom/format.h"

static const struct {
    hr_dtype dtype;
    uint16_t (*from_float)(float);
    float (*to_float)(uint16_t);
    uint16_t infinity; /* code the toolkit overflows to; 0: it saturates */
} formats[] = {
    {HR_DTYPE_E4M3, cuda_e4m3_from_float, cuda_e4m3_to_float, 0},
    {HR_DTYPE_E5M2, cuda_e5m2_from_float, cuda_e5m2_to_float, 0},
    {HR_DTYPE_F16, cuda_f16_from_float, cuda_f16_to_float, 0x7c00},
    {HR_DTYPE_BF16, cuda_bf16_from_float, cuda_bf16_to_float, 0x7f80},
};
enum { FORMATS = sizeof formats / sizeof formats[0], RANDOM_ROUNDS = 16 };

static float values[UPPER_HALVES];
static uint16_t codes[UPPER_HALVES];

static uint16_t get_code(hr_dtype dtype, int i)
{
    return hr_dtype_bits(dtype) == 8 ? ((const uint8_t *)codes)[i] : codes[i];
}

static void check_encode(int format)
{
    hr_dtype dtype = formats[format].dtype;
    uint16_t infinity = formats[format].infinity;
    cr_assert_eq(hr_encode(dtype, values, UPPER_HALVES, 1.0f, 0, codes), HR_OK);
    for (int i = 0; i < UPPER_HALVES; i++) {
        uint16_t expected = formats[format].from_float(values[i]);
        if (infinity && (expected & 0x7fff) == infinity) expected--; /* the largest finite */
        if (get_code(dtype, i) != expected)
            cr_assert_fail("%s: %a encodes to %x, CUDA %x", hr_dtype_name(dtype), (double)values[i],
                           get_code(dtype, i), expected);
    }
}

Test(format_cuda, encoding_agrees)
{
    for (int format = 0; format < FORMATS; format++) {
        for (int low = 0; low < LOW_HALVES; low++) {
            fill_upper_halves(values, format_low_halves[low]);
            check_encode(format);
        }
        for (uint64_t round = 0; round < RANDOM_ROUNDS; round++) {
            fill_random_bits(values, UPPER_HALVES, 100 + round);
            check_encode(format);
        }
    }
}

Test(format_cuda, decoding_agrees_for_every_code)
{
    for (int format = 0; format < FORMATS; format++) {
        hr_dtype dtype = formats[format].dtype;
        int count = 1 << hr_dtype_bits(dtype);
        for (int i = 0; i < count; i++) {
            if (hr_dtype_bits(dtype) == 8)
                ((uint8_t *)codes)[i] = (uint8_t)i;
            else
                codes[i] = (uint16_t)i;
        }
        cr_assert_eq(hr_decode(dtype, codes, count, 1.0f, 0, values), HR_OK);
        for (int i = 0; i < count; i++) {
            float expected = formats[format].to_float((uint16_t)i);
            int same = hr_float_bits(values[i]) == hr_float_bits(expected) ||
                       (isnan(values[i]) && isnan(expected));
            cr_assert(same, "%s: code %x is %a, CUDA %a", hr_dtype_name(dtype), i,
                      (double)values[i], (double)expected);
        }
    }
}
