/*
 * Scales by token from where they lie, in pages or not, to an array: shared by the decode kernels
 * and the integer kernels on AVX-512.
 */
#ifndef HEADROOM_TOKEN_SCALES_AVX512_H
#define HEADROOM_TOKEN_SCALES_AVX512_H

#include <immintrin.h>

#include "kernel.h"

/* scale[j] of the keys [first, first + count) with scales by token, page run by page run. */
static inline void copy_token_scales(const hr_kernel_operand *operand, int64_t first, int32_t count,
                                     float *scale)
{
    int32_t run;
    for (int32_t j = 0; j < count; j += run) {
        run = hr_kernel_run(operand, first + j, count - j);
        const float *source = operand->scale + hr_kernel_slot(operand, first + j);
        for (int32_t i = 0; i < run; i += 16) {
            __mmask16 mask = (__mmask16)(run - i < 16 ? (1 << (run - i)) - 1 : 0xffff);
            _mm512_mask_storeu_ps(scale + j + i, mask, _mm512_maskz_loadu_ps(mask, source + i));
        }
    }
}

#endif
