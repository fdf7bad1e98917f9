/*
 * Layouts of packed codes, for one head; the pictures are in headroom/pack.h (hr_layout).
 *
 * Rows form ("rows" below) is what every layout is made from: the codes of the real tokens,
 * [total_tokens][row_bytes], no padding. Everything here is lossless and moves bytes only.
 */
#ifndef HEADROOM_PACK_LAYOUT_H
#define HEADROOM_PACK_LAYOUT_H

#include "headroom/pack.h"

/* HR_ERROR_UNSUPPORTED unless `dtype` codes of `operand` can be laid out so. */
hr_status hr_layout_check(hr_layout layout, hr_operand operand, hr_dtype dtype) HR_NODISCARD;

/* Bytes of one token's codes in rows form. */
size_t hr_layout_row_bytes(hr_dtype dtype, int32_t head_dim);

/* Bytes one tile of hr_layout_tile_tokens(layout) token slots takes. */
size_t hr_layout_tile_bytes(hr_layout layout, hr_dtype dtype, int32_t head_dim);

/*
 * Fills total_slots, head_bytes and slot_offset[batch + 1] of a struct whose layout, recipe,
 * head_dim, batch and cu_seqlens are set.
 */
void hr_layout_measure(hr_packed *packed);

/*
 * Codes of head `head` to and from rows form. from_rows writes padding too (code 0), for all tiles;
 * the slack after the last tile is left alone.
 */
void hr_layout_from_rows(hr_packed *packed, int32_t head, const uint8_t *rows);
void hr_layout_to_rows(const hr_packed *packed, int32_t head, uint8_t *rows);

#endif
