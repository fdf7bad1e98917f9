/*
 * Layout names and sizes, and the permutation between rows form and each layout.
 */
#include "pack_layout.h"

#include <string.h>

#include "status_internal.h"
#include "transform.h"

enum {
    VNNI_TILE = 64,
    VNNI_V_CHANNELS = 16,
    SM90_TILE = 128,
    HEAD_ALIGNMENT = 64,
    HEAD_SLACK = 64
};

static const char *const layout_names[HR_LAYOUT_COUNT] = {
    [HR_LAYOUT_ROWS] = "rows",
    [HR_LAYOUT_VNNI_K] = "vnni_k",
    [HR_LAYOUT_VNNI_V] = "vnni_v",
    [HR_LAYOUT_SM90_V] = "sm90_v",
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
    return hr_fail(HR_ERROR_NOT_FOUND,
                   "no layout \"%.60s\"; layouts are rows, vnni_k, vnni_v, sm90_v", name);
}

int hr_layout_tile_tokens(hr_layout layout)
{
    return layout == HR_LAYOUT_ROWS ? 1 : layout == HR_LAYOUT_SM90_V ? SM90_TILE : VNNI_TILE;
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
    case HR_LAYOUT_COUNT:
        break;
    }
    if ((unsigned)layout >= HR_LAYOUT_COUNT)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "no layout has the number %d", (int)layout);
    return hr_fail(HR_ERROR_UNSUPPORTED,
                   "operand %c in %s has no layout %s; vnni_k is for K in i8, vnni_v for V in i8, "
                   "sm90_v for V in i8, e4m3 and bf16, rows for everything",
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
        return VNNI_TILE * round_up((size_t)head_dim, VNNI_V_CHANNELS);
    case HR_LAYOUT_SM90_V:
        return SM90_TILE * hr_layout_row_bytes(dtype, head_dim);
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

/*
 * Where codes lie in a tile: that of token i of the tile and channel c is at
 * tile[token_offset(map, i) + channel[c]], in bytes.
 */
typedef struct tile_map {
    hr_layout layout;
    size_t channel[HR_HEAD_DIM_MAX];
    size_t channels;   /* VNNI_V: head_dim with its padding */
    size_t code_bytes; /* 1, or 2 for BF16 */
    uint8_t added;     /* VNNI_K holds code + 128 */
} tile_map;

static tile_map map_tile(hr_layout layout, hr_dtype dtype, int32_t head_dim)
{
    tile_map map = {.layout = layout,
                    .channels = round_up((size_t)head_dim, VNNI_V_CHANNELS),
                    .code_bytes = (size_t)hr_dtype_bits(dtype) / 8,
                    .added = layout == HR_LAYOUT_VNNI_K ? 128 : 0};
    for (size_t c = 0; c < (size_t)head_dim; c++)
        map.channel[c] = layout == HR_LAYOUT_VNNI_K   ? c / 4 * (VNNI_TILE * 4) + c % 4
                         : layout == HR_LAYOUT_VNNI_V ? c * 4
                                                      : c * SM90_TILE * map.code_bytes;
    return map;
}

static size_t token_offset(const tile_map *map, size_t token)
{
    if (map->layout == HR_LAYOUT_VNNI_K) return token * 4;
    if (map->layout == HR_LAYOUT_SM90_V) {
        if (map->code_bytes == 2) return token * 2;
        return token / 16 * 16 + token % 8 / 2 * 4 + token % 16 / 8 * 2 + token % 2;
    }
    size_t quad = token % 16 / 4 * 4 + token / 16;
    return quad * map->channels * 4 + token % 4;
}

/* Where token i of a sequence has its tile_map's origin, from the start of all codes. */
static size_t token_origin(const hr_packed *packed, const tile_map *map, int32_t head,
                           int32_t sequence, int64_t i)
{
    size_t slot = (size_t)(packed->slot_offset[sequence] + i);
    size_t tile_tokens = (size_t)hr_layout_tile_tokens(packed->layout);
    size_t tile_bytes =
        hr_layout_tile_bytes(packed->layout, packed->recipe.dtype, packed->head_dim);
    return (size_t)head * packed->head_bytes + slot / tile_tokens * tile_bytes +
           token_offset(map, slot % tile_tokens);
}

void hr_layout_from_rows(hr_packed *packed, int32_t head, const uint8_t *rows)
{
    uint8_t *codes = packed->codes;
    int32_t head_dim = packed->head_dim;
    size_t row_bytes = hr_layout_row_bytes(packed->recipe.dtype, head_dim);
    if (packed->layout == HR_LAYOUT_ROWS) {
        memcpy(codes + (size_t)head * packed->head_bytes, rows,
               (size_t)packed->total_tokens * row_bytes);
        return;
    }
    const tile_map map = map_tile(packed->layout, packed->recipe.dtype, head_dim);
    memset(codes + (size_t)head * packed->head_bytes, map.added,
           (size_t)(packed->total_slots / hr_layout_tile_tokens(packed->layout)) *
               hr_layout_tile_bytes(packed->layout, packed->recipe.dtype, head_dim));
    for (int32_t b = 0; b < packed->batch; b++) {
        int64_t first = packed->cu_seqlens[b], length = packed->cu_seqlens[b + 1] - first;
        for (int64_t i = 0; i < length; i++) {
            const uint8_t *row = rows + (size_t)(first + i) * row_bytes;
            uint8_t *origin = codes + token_origin(packed, &map, head, b, i);
            for (int32_t c = 0; c < head_dim; c++) {
                uint8_t *code = origin + map.channel[c];
                code[0] = (uint8_t)(row[(size_t)c * map.code_bytes] + map.added);
                if (map.code_bytes == 2) code[1] = row[(size_t)c * 2 + 1];
            }
        }
    }
}

void hr_layout_to_rows(const hr_packed *packed, int32_t head, uint8_t *rows)
{
    const uint8_t *codes = packed->codes;
    int32_t head_dim = packed->head_dim;
    size_t row_bytes = hr_layout_row_bytes(packed->recipe.dtype, head_dim);
    if (packed->layout == HR_LAYOUT_ROWS) {
        memcpy(rows, codes + (size_t)head * packed->head_bytes,
               (size_t)packed->total_tokens * row_bytes);
        return;
    }
    const tile_map map = map_tile(packed->layout, packed->recipe.dtype, head_dim);
    for (int32_t b = 0; b < packed->batch; b++) {
        int64_t first = packed->cu_seqlens[b], length = packed->cu_seqlens[b + 1] - first;
        for (int64_t i = 0; i < length; i++) {
            uint8_t *row = rows + (size_t)(first + i) * row_bytes;
            const uint8_t *origin = codes + token_origin(packed, &map, head, b, i);
            for (int32_t c = 0; c < head_dim; c++) {
                const uint8_t *code = origin + map.channel[c];
                row[(size_t)c * map.code_bytes] = (uint8_t)(code[0] - map.added);
                if (map.code_bytes == 2) row[(size_t)c * 2 + 1] = code[1];
            }
        }
    }
}
