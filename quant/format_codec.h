/*
 * The conversion loops of one instruction set, as a table indexed by hr_dtype. All tables give the
 * same bits; they differ in speed. Loops validate nothing: hr_encode and hr_decode do.
 */
#ifndef HEADROOM_FORMAT_CODEC_H
#define HEADROOM_FORMAT_CODEC_H

#include "headroom/format.h"

/*
 * encode: codes[i] = round(values[i] / scale), the quotient being the float nearest to the exact
 * one. decode: values[i] = scale * code[i]. count as in hr_encode; NULL entries mean "no such
 * format".
 */
typedef struct hr_format_codec {
    void (*encode)(const float *restrict values, int64_t count, float scale, int zero_point,
                   void *restrict codes);
    void (*decode)(const void *restrict codes, int64_t count, float scale, int zero_point,
                   float *restrict values);
} hr_format_codec;

extern const hr_format_codec hr_format_codecs_baseline[HR_DTYPE_COUNT];
#if defined(__x86_64__)
extern const hr_format_codec hr_format_codecs_avx2[HR_DTYPE_COUNT];
extern const hr_format_codec hr_format_codecs_avx512[HR_DTYPE_COUNT];
#endif

/* The fastest table this processor runs. */
const hr_format_codec *hr_format_codecs(void);

#endif
