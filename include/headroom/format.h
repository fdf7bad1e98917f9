/*
 * Number formats: encode float to codes and back, one call for an array.
 *
 * Encoding is round-to-nearest-even and saturating; NaN stays NaN where the format has one and is
 * HR_ERROR_NUMERIC where it has none (integers), before anything is written. Minus zero is kept
 * where the format has one. `scale` is the dequantization multiplier: x = scale * code (symmetric),
 * x = scale * (code - zero_point) (asymmetric U4). The formats: OCP "8-bit Floating Point
 * Specification" 1.0 (E4M3, E5M2); IEEE 754-2019 (binary16); Lloyd 1982 / Max 1960 (C4).
 */
#ifndef HEADROOM_FORMAT_H
#define HEADROOM_FORMAT_H

#include "headroom/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * codes[i] = round(values[i] / scale) for i in 0..count-1, where the quotient is the float nearest
 * to the exact one; every instruction set gives the same codes. scale > 0 and finite. For U4,
 * round(value / scale) + zero_point, with zero_point in [0, 15]; other dtypes need zero_point 0.
 * For nibble types count must be even and codes holds count/2 bytes. Floating formats accept
 * infinities and saturate them to the largest finite value (E5M2, F16 and BF16 too: the formats are
 * used saturating throughout); integers reject NaN and saturate infinities. A
 * NaN code is the positive one with all bits set (0x7f, 0x7fff), as in the CUDA toolkit. C4 takes
 * the nearest level, the one of smaller magnitude on a tie. values and codes must not overlap.
 * Errors: HR_ERROR_UNSUPPORTED for a dtype that is not a coded format (F32, I32, ...).
 */
HR_API hr_status hr_encode(hr_dtype dtype, const float *values, int64_t count, float scale,
                           int zero_point, void *codes) HR_NODISCARD;

/*
 * values[i] = scale * (codes[i] - zero_point), exactly rounded once to float. Codes that encoding
 * never produces (I8 -128, I4 -8, infinities) have the value their format gives them.
 */
HR_API hr_status hr_decode(hr_dtype dtype, const void *codes, int64_t count, float scale,
                           int zero_point, float *values) HR_NODISCARD;

/*
 * The largest finite magnitude a code stands for at scale 1: 448, 57344, 65504, 127, 7, ... ; for
 * C4 the largest codebook entry (127); for U8 255 and U4 15; FLT_MAX for F32. 0 for other dtypes.
 */
HR_API float hr_dtype_max(hr_dtype dtype);

/*
 * The 16 INT8 levels of C4, ascending and antisymmetric: the Lloyd-Max quantizer of N(0,1) with the
 * outermost level scaled to 127. Static storage.
 */
HR_API const int8_t *hr_codebook_c4(void);

#ifdef __cplusplus
}
#endif

#endif
