/*
 * The conversion loops compiled for AVX-512 F, BW, VL and DQ; see format_loops.h.
 */
#include "format_loops.h"

const hr_format_codec hr_format_codecs_avx512[HR_DTYPE_COUNT] = {
#include "formats.def"
};
