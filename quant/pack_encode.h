/*
 * One head between floats and codes in rows form (pack_layout.h), all granularities.
 *
 * `rows` is [total_tokens, head_dim] after the transforms; `codes` [total_tokens][row_bytes].
 */
#ifndef HEADROOM_PACK_ENCODE_H
#define HEADROOM_PACK_ENCODE_H

#include "headroom/pack.h"

/*
 * Fills the dynamic scales and zero points of one head. Not for TENSOR, whose scale is chosen over
 * all heads.
 */
void hr_head_choose_scales(hr_packed *packed, int32_t head, const float *rows);

hr_status hr_head_encode(const hr_packed *packed, int32_t head, const float *rows,
                         uint8_t *codes) HR_NODISCARD;

/* Decodes to out + token * stride for every token; stride in floats. */
hr_status hr_head_decode(const hr_packed *packed, int32_t head, const uint8_t *codes, float *out,
                         int64_t stride) HR_NODISCARD;

#endif
