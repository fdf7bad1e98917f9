/*
 * The conversion loops of every row of formats.def, for the instruction set the including file is
 * compiled with. The element conversions have no branches, so the compiler vectorises these loops;
 * there is one definition of every format, and all instruction sets agree by construction.
 *
 * Include in one .c file an instruction set; the macros it leaves defined make formats.def the
 * initializer of that file's table.
 */
#include "format_c4.h"
#include "format_codec.h"
#include "format_integer.h"
#include "format_minifloat.h"

#define ENCODE(name)                                                                               \
    static void encode_##name(const float *restrict values, int64_t count, float scale,            \
                              int zero_point, void *restrict codes)
#define DECODE(name)                                                                               \
    static void decode_##name(const void *restrict codes, int64_t count, float scale,              \
                              int zero_point, float *restrict values)

#define HR_FORMAT(DTYPE, name, type, max, traits)                                                  \
    ENCODE(name)                                                                                   \
    {                                                                                              \
        (void)zero_point;                                                                          \
        type *restrict out = codes;                                                                \
        for (int64_t i = 0; i < count; i++)                                                        \
            out[i] = hr_##name##_from_float(values[i] / scale);                                    \
    }                                                                                              \
    DECODE(name)                                                                                   \
    {                                                                                              \
        (void)zero_point;                                                                          \
        const type *restrict in = codes;                                                           \
        for (int64_t i = 0; i < count; i++)                                                        \
            values[i] = scale * hr_##name##_to_float(in[i]);                                       \
    }

#define NIBBLE_LOOPS(name, ...)                                                                    \
    ENCODE(name)                                                                                   \
    {                                                                                              \
        (void)zero_point;                                                                          \
        uint8_t *restrict out = codes;                                                             \
        for (int64_t i = 0; i < count / 2; i++) {                                                  \
            uint8_t low = hr_##name##_from_float(values[2 * i] / scale __VA_ARGS__);               \
            uint8_t high = hr_##name##_from_float(values[2 * i + 1] / scale __VA_ARGS__);          \
            out[i] = (uint8_t)(low | high << 4);                                                   \
        }                                                                                          \
    }                                                                                              \
    DECODE(name)                                                                                   \
    {                                                                                              \
        (void)zero_point;                                                                          \
        const uint8_t *restrict in = codes;                                                        \
        for (int64_t i = 0; i < count / 2; i++) {                                                  \
            values[2 * i] = scale * hr_##name##_to_float(in[i] & 15 __VA_ARGS__);                  \
            values[2 * i + 1] = scale * hr_##name##_to_float(in[i] >> 4 __VA_ARGS__);              \
        }                                                                                          \
    }

#define HR_FORMAT_NIBBLE(DTYPE, name, max, traits) NIBBLE_LOOPS(name)
#define HR_FORMAT_NIBBLE_ASYMMETRIC(DTYPE, name, max, traits) NIBBLE_LOOPS(name, , zero_point)
#include "formats.def"
#undef HR_FORMAT
#undef HR_FORMAT_NIBBLE
#undef HR_FORMAT_NIBBLE_ASYMMETRIC

#define HR_FORMAT(DTYPE, name, type, max, traits)                                                  \
    [HR_DTYPE_##DTYPE] = {encode_##name, decode_##name},
#define HR_FORMAT_NIBBLE(DTYPE, name, max, traits) HR_FORMAT(DTYPE, name, uint8_t, max, traits)
#define HR_FORMAT_NIBBLE_ASYMMETRIC(DTYPE, name, max, traits)                                      \
    HR_FORMAT(DTYPE, name, uint8_t, max, traits)
