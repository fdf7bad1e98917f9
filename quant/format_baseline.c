/*
 * The conversion loops compiled for the compiler's baseline (on 64-bit Arm that includes NEON); see
 * format_loops.h.
 */
#include "format_loops.h"

const hr_format_codec hr_format_codecs_baseline[HR_DTYPE_COUNT] = {
#include "formats.def"
};
