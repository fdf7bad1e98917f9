/*
 * Layout names and sizes, and the permutation between rows form and each layout.
 */
#include "pack_layout.h"

#include <string.h>

#include "status_internal.h"

enum {
    VNNI_TILE = 64,
    BLOCK = 16,
    V_CHANNELS = 16, /* channels of V are padded to a multiple of these for vpdpbusd */
    SM90_TILE = 128,
    HEAD_ALIGNMENT = 64,
    HEAD_SLACK = 64
};

static const char *const layout_names[HR_LAYOUT_COUNT] = {
    [HR_LAYOUT_ROWS] = "rows",         [HR_LAYOUT_VNNI_K] = "vnni_k",
    [HR_LAYOUT_VNNI_V] = "vnni_v",     [HR_LAYOUT_SM90_V] = "sm90_v",
    [HR_LAYOUT_BLOCKS_K] = "blocks_k", [HR_LAYOUT_BLOCKS_V] = "blocks_v",
};

static size_t round_up(size_t value, size_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

const char *hr_layout_name(hr_layout layout)
{
    return (unsigned)layout < HR_LAYOUT_COUNT ? layout_names[layout] : "unknown";
}

hr_status hr_layout_parse(const char *name, hr_layout *out)
{
    if (!name || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "layout parse: name or out is NULL");
    for (int layout = 0; layout < HR_LAYOUT_COUNT; layout++) {
        if (strcmp(name, layout_names[layout]) == 0) {
            *out = (hr_layout)layout;
            return HR_OK;
        }
    }
    return hr_fail(
        HR_ERROR_NOT_FOUND,
        "no layout \"%.60s\"; layouts are rows, vnni_k, vnni_v, sm90_v, blocks_k, blocks_v", name);
}

int hr_layout_tile_tokens(hr_layout layout)
{
    switch (layout) {
    case HR_LAYOUT_VNNI_K:
    case HR_LAYOUT_VNNI_V:
        return VNNI_TILE;
    case HR_LAYOUT_SM90_V:
        return SM90_TILE;
    case HR_LAYOUT_BLOCKS_K:
    case HR_LAYOUT_BLOCKS_V:
        return BLOCK;
    case HR_LAYOUT_ROWS:
    case HR_LAYOUT_COUNT:
        break;
    }
    return 1;
}

/* Whether blocks can hold codes of a dtype: those of 8 and 4 bits. */
static bool fits_blocks(hr_dtype dtype)
{
    return dtype == HR_DTYPE_E4M3 || dtype == HR_DTYPE_I8 || hr_dtype_bits(dtype) == 4;
}

hr_status hr_layout_check(hr_layout layout, hr_operand operand, hr_dtype dtype)
{
    switch (layout) {
    case HR_LAYOUT_ROWS:
        return HR_OK;
    case HR_LAYOUT_VNNI_K:
        if (operand == HR_OPERAND_K && dtype == HR_DTYPE_I8) return HR_OK;
        break;
    case HR_LAYOUT_VNNI_V:
        if (operand == HR_OPERAND_V && dtype == HR_DTYPE_I8) return HR_OK;
        break;
    case HR_LAYOUT_SM90_V:
        if (operand == HR_OPERAND_V &&
            (dtype == HR_DTYPE_I8 || dtype == HR_DTYPE_E4M3 || dtype == HR_DTYPE_BF16))
            return HR_OK;
        break;
    case HR_LAYOUT_BLOCKS_K:
        if (operand == HR_OPERAND_K && fits_blocks(dtype)) return HR_OK;
        break;
    case HR_LAYOUT_BLOCKS_V:
        if (operand == HR_OPERAND_V && fits_blocks(dtype)) return HR_OK;
        break;
    case HR_LAYOUT_COUNT:
        break;
    }
    if ((unsigned)layout >= HR_LAYOUT_COUNT)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "no layout has the number %d", (int)layout);
    return hr_fail(
        HR_ERROR_UNSUPPORTED,
        "operand %c in %s has no layout %s; vnni_k is for K in i8, vnni_v for V in i8, "
        "sm90_v for V in i8, e4m3 and bf16, blocks_k and blocks_v for K and V in 8 and 4 bits, "
        "rows for everything",
        "QKV"[operand], hr_dtype_name(dtype), layout_names[layout]);
}

size_t hr_layout_row_bytes(hr_dtype dtype, int32_t head_dim)
{
    return (size_t)head_dim * (size_t)hr_dtype_bits(dtype) / 8;
}

size_t hr_layout_tile_bytes(hr_layout layout, hr_dtype dtype, int32_t head_dim)
{
    switch (layout) {
    case HR_LAYOUT_VNNI_K:
        return VNNI_TILE * (size_t)head_dim;
    case HR_LAYOUT_VNNI_V:
        return VNNI_TILE * round_up((size_t)head_dim, V_CHANNELS);
    case HR_LAYOUT_SM90_V:
        return SM90_TILE * hr_layout_row_bytes(dtype, head_dim);
    case HR_LAYOUT_BLOCKS_K:
        return BLOCK * hr_layout_row_bytes(dtype, head_dim);
    case HR_LAYOUT_BLOCKS_V:
        return BLOCK * hr_layout_row_bytes(dtype, (int32_t)round_up((size_t)head_dim, V_CHANNELS));
    case HR_LAYOUT_ROWS:
    case HR_LAYOUT_COUNT:
        break;
    }
    return hr_layout_row_bytes(dtype, head_dim);
}

void hr_layout_measure(hr_packed *packed)
{
    int64_t tile_tokens = hr_layout_tile_tokens(packed->layout), slots = 0;
    for (int32_t b = 0; b < packed->batch; b++) {
        int64_t length = (int64_t)packed->cu_seqlens[b + 1] - packed->cu_seqlens[b];
        packed->slot_offset[b] = slots;
        slots += (length + tile_tokens - 1) / tile_tokens * tile_tokens;
    }
    packed->slot_offset[packed->batch] = slots;
    packed->total_slots = slots;
    /* A vector load that starts at the last code may read past it: hence the slack. */
    size_t tile_bytes =
        hr_layout_tile_bytes(packed->layout, packed->recipe.dtype, packed->head_dim);
    packed->head_bytes =
        round_up((size_t)(slots / tile_tokens) * tile_bytes + HEAD_SLACK, HEAD_ALIGNMENT);
}

hr_layout_map hr_layout_map_of(hr_layout layout, hr_dtype dtype, int32_t head_dim)
{
    const int bits = hr_dtype_bits(dtype);
    hr_layout_map map = {.layout = layout,
                         .head_dim = head_dim,
                         .channels = round_up((size_t)head_dim, V_CHANNELS),
                         .nibbles = bits == 4,
                         .code_bytes = bits == 16 ? 2 : 1};
    if (layout == HR_LAYOUT_VNNI_K || (layout == HR_LAYOUT_BLOCKS_K && dtype == HR_DTYPE_I8))
        map.added = 128;
    /* Channels whose codes lie side by side: in a dword, and in its low and high nibbles. */
    const size_t line = map.nibbles ? 8 : 4;
    for (size_t c = 0; c < (size_t)head_dim; c++) {
        if (layout == HR_LAYOUT_VNNI_K)
            map.channel[c] = c / 4 * (VNNI_TILE * 4) + c % 4;
        else if (layout == HR_LAYOUT_BLOCKS_K)
            map.channel[c] = c / line * (BLOCK * 4) + c % 4;
        else if (layout == HR_LAYOUT_SM90_V)
            map.channel[c] = c * SM90_TILE * map.code_bytes;
        else
            map.channel[c] = c * 4;
    }
    return map;
}

/* Where the codes of a token have their map's origin. */
static size_t token_offset(const hr_layout_map *map, size_t token)
{
    if (map->layout == HR_LAYOUT_VNNI_K || map->layout == HR_LAYOUT_BLOCKS_K) return token * 4;
    if (map->layout == HR_LAYOUT_SM90_V) {
        if (map->code_bytes == 2) return token * 2;
        return token / 16 * 16 + token % 8 / 2 * 4 + token % 16 / 8 * 2 + token % 2;
    }
    size_t quad = token / (map->nibbles ? 8 : 4);
    if (map->layout == HR_LAYOUT_VNNI_V) quad = token % 16 / 4 * 4 + token / 16;
    return quad * map->channels * 4 + token % 4;
}

/* How far a 4-bit code is shifted in its byte. */
static unsigned nibble_shift(const hr_layout_map *map, size_t token, size_t channel)
{
    const size_t four = map->layout == HR_LAYOUT_BLOCKS_K ? channel : token;
    return four / 4 % 2 * 4;
}

void hr_layout_put_row(const hr_layout_map *map, uint8_t *tile, size_t token, const uint8_t *row)
{
    uint8_t *origin = tile + token_offset(map, token);
    for (size_t c = 0; c < (size_t)map->head_dim; c++) {
        uint8_t *code = origin + map->channel[c];
        if (map->nibbles) {
            const unsigned shift = nibble_shift(map, token, c);
            const unsigned value = row[c / 2] >> (c % 2 * 4) & 15u;
            *code = (uint8_t)((*code & ~(15u << shift)) | value << shift);
        } else if (map->code_bytes == 2) {
            memcpy(code, row + c * 2, 2);
        } else {
            *code = (uint8_t)(row[c] + map->added);
        }
    }
}

void hr_layout_get_row(const hr_layout_map *map, const uint8_t *tile, size_t token, uint8_t *row)
{
    const uint8_t *origin = tile + token_offset(map, token);
    for (size_t c = 0; c < (size_t)map->head_dim; c++) {
        const uint8_t *code = origin + map->channel[c];
        if (map->nibbles) {
            const unsigned value = *code >> nibble_shift(map, token, c) & 15u;
            row[c / 2] = (uint8_t)(c % 2 ? row[c / 2] | value << 4 : value);
        } else if (map->code_bytes == 2) {
            memcpy(row + c * 2, code, 2);
        } else {
            row[c] = (uint8_t)(*code - map->added);
        }
    }
}

/* The tile of token i of a sequence, from the start of all codes, and the token's place in it. */
static size_t tile_of(const hr_packed *packed, int32_t head, int32_t sequence, int64_t i,
                      size_t *token)
{
    const size_t slot = (size_t)(packed->slot_offset[sequence] + i);
    const size_t tile_tokens = (size_t)hr_layout_tile_tokens(packed->layout);
    *token = slot % tile_tokens;
    return (size_t)head * packed->head_bytes +
           slot / tile_tokens *
               hr_layout_tile_bytes(packed->layout, packed->recipe.dtype, packed->head_dim);
}

void hr_layout_from_rows(hr_packed *packed, int32_t head, const uint8_t *rows)
{
    uint8_t *codes = packed->codes;
    const hr_dtype dtype = packed->recipe.dtype;
    const size_t row_bytes = hr_layout_row_bytes(dtype, packed->head_dim);
    if (packed->layout == HR_LAYOUT_ROWS) {
        memcpy(codes + (size_t)head * packed->head_bytes, rows,
               (size_t)packed->total_tokens * row_bytes);
        return;
    }
    const hr_layout_map map = hr_layout_map_of(packed->layout, dtype, packed->head_dim);
    memset(codes + (size_t)head * packed->head_bytes, map.added,
           (size_t)(packed->total_slots / hr_layout_tile_tokens(packed->layout)) *
               hr_layout_tile_bytes(packed->layout, dtype, packed->head_dim));
    for (int32_t b = 0; b < packed->batch; b++) {
        const int64_t first = packed->cu_seqlens[b], end = packed->cu_seqlens[b + 1];
        for (int64_t i = first; i < end; i++) {
            size_t token, tile = tile_of(packed, head, b, i - first, &token);
            hr_layout_put_row(&map, codes + tile, token, rows + (size_t)i * row_bytes);
        }
    }
}

void hr_layout_to_rows(const hr_packed *packed, int32_t head, uint8_t *rows)
{
    const uint8_t *codes = packed->codes;
    const hr_dtype dtype = packed->recipe.dtype;
    const size_t row_bytes = hr_layout_row_bytes(dtype, packed->head_dim);
    if (packed->layout == HR_LAYOUT_ROWS) {
        memcpy(rows, codes + (size_t)head * packed->head_bytes,
               (size_t)packed->total_tokens * row_bytes);
        return;
    }
    const hr_layout_map map = hr_layout_map_of(packed->layout, dtype, packed->head_dim);
    for (int32_t b = 0; b < packed->batch; b++) {
        const int64_t first = packed->cu_seqlens[b], end = packed->cu_seqlens[b + 1];
        for (int64_t i = first; i < end; i++) {
            size_t token, tile = tile_of(packed, head, b, i - first, &token);
            hr_layout_get_row(&map, codes + tile, token, rows + (size_t)i * row_bytes);
        }
    }
}
