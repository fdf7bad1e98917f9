/*
 * Every instruction set's conversion loops give the bits of the scalar element conversions: all
 * codes, all upper halves of float, random floats, several scales, every tail length, and nothing
 * is written past the end.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format_c4.h"
#include "format_codec.h"
#include "format_inputs.h"
#include "format_integer.h"
#include "format_minifloat.h"

typedef struct codec_set {
    const char *isa;
    const hr_format_codec *codecs;
    int available;
} codec_set;

static int codec_sets(codec_set out[3])
{
    int count = 0;
    out[count++] = (codec_set){"baseline", hr_format_codecs_baseline, 1};
#if defined(__x86_64__)
    out[count++] = (codec_set){"avx2", hr_format_codecs_avx2,
                               __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")};
    out[count++] =
        (codec_set){"avx512", hr_format_codecs_avx512,
                    __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")};
#endif
    return count;
}

/* One element at a time: the code of value / scale, and the value of a code. */
static uint32_t scalar_encode(hr_dtype dtype, float value, float scale, int zero_point)
{
    float quotient = value / scale;
    switch (dtype) {
#define HR_FORMAT(DTYPE, name, type, max, traits)                                                  \
    case HR_DTYPE_##DTYPE:                                                                         \
        return (type)hr_##name##_from_float(quotient) & 0xffffu;
#define HR_FORMAT_NIBBLE(DTYPE, name, max, traits) HR_FORMAT(DTYPE, name, uint8_t, max, traits)
#define HR_FORMAT_NIBBLE_ASYMMETRIC(DTYPE, name, max, traits)                                      \
    case HR_DTYPE_##DTYPE:                                                                         \
        return hr_##name##_from_float(quotient, zero_point);
#include "formats.def"
#undef HR_FORMAT
#undef HR_FORMAT_NIBBLE
#undef HR_FORMAT_NIBBLE_ASYMMETRIC
    default:
        cr_assert_fail("no such format");
        return 0;
    }
}

static float scalar_decode(hr_dtype dtype, uint32_t code, float scale, int zero_point)
{
    switch (dtype) {
#define HR_FORMAT(DTYPE, name, type, max, traits)                                                  \
    case HR_DTYPE_##DTYPE:                                                                         \
        return scale * hr_##name##_to_float((type)code);
#define HR_FORMAT_NIBBLE(DTYPE, name, max, traits) HR_FORMAT(DTYPE, name, uint8_t, max, traits)
#define HR_FORMAT_NIBBLE_ASYMMETRIC(DTYPE, name, max, traits)                                      \
    case HR_DTYPE_##DTYPE:                                                                         \
        return scale * hr_##name##_to_float((uint8_t)code, zero_point);
#include "formats.def"
    default:
        cr_assert_fail("no such format");
        return 0;
    }
}

static uint32_t get_code(const uint8_t *codes, int bits, int i)
{
    if (bits == 4) return i % 2 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
    if (bits == 8) return codes[i];
    uint16_t code;
    memcpy(&code, codes + 2 * (size_t)i, 2);
    return code;
}

enum { MAX_COUNT = 65536, CANARY = 64 };
static float inputs[MAX_COUNT];
static float outputs[MAX_COUNT + CANARY];
static uint8_t bytes[2 * MAX_COUNT + CANARY];

static void check_encode(codec_set set, hr_dtype dtype, const float *values, int count, float scale,
                         int zero_point)
{
    int bits = hr_dtype_bits(dtype);
    size_t size = (size_t)count * (size_t)bits / 8;
    memset(bytes, 0xa5, size + CANARY);
    set.codecs[dtype].encode(values, count, scale, zero_point, bytes);
    for (int i = 0; i < count; i++) {
        uint32_t expected = scalar_encode(dtype, values[i], scale, zero_point);
        uint32_t code = get_code(bytes, bits, i);
        if (bits < 16) expected &= (1u << bits) - 1;
        if (code != expected)
            cr_assert_fail("%s %s: encode(%a / %a) is %x, scalar %x (i = %d of %d)", set.isa,
                           hr_dtype_name(dtype), (double)values[i], (double)scale, code, expected,
                           i, count);
    }
    for (int i = 0; i < CANARY; i++)
        cr_assert_eq(bytes[size + (size_t)i], 0xa5, "%s %s: wrote past %d codes", set.isa,
                     hr_dtype_name(dtype), count);
}

static void check_decode(codec_set set, hr_dtype dtype, int count, float scale, int zero_point)
{
    int bits = hr_dtype_bits(dtype);
    for (int i = 0; i < count * bits / 8; i++)
        bytes[i] = (uint8_t)(bits == 16 && i % 2 ? i / 2 >> 8 : bits == 16 ? i / 2 : i);
    for (int i = 0; i < CANARY; i++)
        outputs[count + i] = 12345.0f;
    set.codecs[dtype].decode(bytes, count, scale, zero_point, outputs);
    for (int i = 0; i < count; i++) {
        float expected = scalar_decode(dtype, get_code(bytes, bits, i), scale, zero_point);
        uint32_t want = hr_float_bits(expected), got = hr_float_bits(outputs[i]);
        if (want != got && !(is_nan_bits(want) && is_nan_bits(got)))
            cr_assert_fail("%s %s: decode(%x, scale %a) is %a, scalar %a", set.isa,
                           hr_dtype_name(dtype), get_code(bytes, bits, i), (double)scale,
                           (double)outputs[i], (double)expected);
    }
    for (int i = 0; i < CANARY; i++)
        cr_assert_eq(outputs[count + i], 12345.0f, "%s %s: wrote past %d values", set.isa,
                     hr_dtype_name(dtype), count);
}

static int zero_point_of(hr_dtype dtype)
{
    return dtype == HR_DTYPE_U4 ? 6 : 0;
}

static void check_codecs(codec_set set, hr_dtype dtype)
{
    static const float scales[] = {1.0f, 0.37f, 3e-39f, 1e30f};
    int zero_point = zero_point_of(dtype);
    for (int s = 0; s < 4; s++) {
        for (int low = 0; low < (s ? 2 : LOW_HALVES); low++) {
            fill_upper_halves(inputs, format_low_halves[low]);
            check_encode(set, dtype, inputs, MAX_COUNT, scales[s], zero_point);
        }
        fill_random_bits(inputs, MAX_COUNT, 7 + (uint64_t)s);
        check_encode(set, dtype, inputs, MAX_COUNT, scales[s], zero_point);
        check_decode(set, dtype, MAX_COUNT, scales[s], zero_point);
    }
    for (int count = 0; count <= 130; count += hr_dtype_bits(dtype) == 4 ? 2 : 1) {
        check_encode(set, dtype, inputs + 1, count, 1e36f, zero_point);
        check_decode(set, dtype, count, 2.5f, zero_point);
    }
}

Test(format_isa, vector_loops_equal_scalar_conversions)
{
    codec_set sets[3];
    int count = codec_sets(sets);
    for (int i = 0; i < count; i++) {
        if (!sets[i].available) {
            fprintf(stderr, "SKIP %s: this processor lacks it\n", sets[i].isa);
            continue;
        }
        for (int dtype = 0; dtype < HR_DTYPE_COUNT; dtype++)
            if (hr_format_codecs_baseline[dtype].encode) check_codecs(sets[i], (hr_dtype)dtype);
    }
}

Test(format_isa, every_table_has_every_format)
{
    codec_set sets[3];
    int count = codec_sets(sets);
    for (int i = 0; i < count; i++)
        for (int dtype = 0; dtype < HR_DTYPE_COUNT; dtype++) {
            int known = dtype >= HR_DTYPE_F16 && dtype <= HR_DTYPE_C4;
            cr_expect_eq(sets[i].codecs[dtype].encode != NULL, known, "%s %s", sets[i].isa,
                         hr_dtype_name((hr_dtype)dtype));
            cr_expect_eq(sets[i].codecs[dtype].decode != NULL, known);
        }
}

Test(format_isa, the_best_available_table_is_chosen)
{
    codec_set sets[3];
    int count = codec_sets(sets);
    const hr_format_codec *best = NULL;
    for (int i = 0; i < count; i++)
        if (sets[i].available) best = sets[i].codecs;
    cr_assert_eq(hr_format_codecs(), best);
}
