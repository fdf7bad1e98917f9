/*
 * The conversion loops compiled for AVX2, FMA and F16C; see format_loops.h.
 */
#include "format_loops.h"

const hr_format_codec hr_format_codecs_avx2[HR_DTYPE_COUNT] = {
#include "formats.def"
};
