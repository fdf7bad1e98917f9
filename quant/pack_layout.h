/*
 * Layouts of packed codes, for one head; the pictures are in headroom/pack.h (hr_layout).
 *
 * Rows form ("rows" below) is what every layout is made from: the codes of the real tokens,
 * [total_tokens][row_bytes], no padding. Everything here is lossless and moves bytes only.
 */
#ifndef HEADROOM_PACK_LAYOUT_H
#define HEADROOM_PACK_LAYOUT_H

#include <stdbool.h>

#include "headroom/pack.h"
#include "transform.h"

/* HR_ERROR_UNSUPPORTED unless `dtype` codes of `operand` can be laid out so. */
hr_status hr_layout_check(hr_layout layout, hr_operand operand, hr_dtype dtype) HR_NODISCARD;

/* Bytes of one token's codes in rows form. */
size_t hr_layout_row_bytes(hr_dtype dtype, int32_t head_dim);

/* Bytes one tile of hr_layout_tile_tokens(layout) token slots takes. */
size_t hr_layout_tile_bytes(hr_layout layout, hr_dtype dtype, int32_t head_dim);

/*
 * Where codes lie in a tile of a layout other than ROWS, and how. A tile's codes of one token are
 * put from and got into rows form; a 4-bit code leaves the other half of its byte alone, which in
 * BLOCKS_V belongs to the token four places away.
 */
typedef struct hr_layout_map {
    hr_layout layout;
    int32_t head_dim;
    size_t channel[HR_HEAD_DIM_MAX]; /* bytes from the token's origin */
    size_t channels;                 /* of V: head_dim with its padding */
    size_t code_bytes;               /* 1, or 2 for BF16 */
    bool nibbles;
    uint8_t added; /* VNNI_K, and BLOCKS_K in I8: 128 */
} hr_layout_map;

hr_layout_map hr_layout_map_of(hr_layout layout, hr_dtype dtype, int32_t head_dim);
void hr_layout_put_row(const hr_layout_map *map, uint8_t *tile, size_t token, const uint8_t *row);
void hr_layout_get_row(const hr_layout_map *map, const uint8_t *tile, size_t token, uint8_t *row);

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
