/*
 * Scales and codes of one head; see pack_encode.h. Scales are chosen in two passes: the best scale
 * of every group, then the floor that the head's largest scale sets (hr_scale_floor), which moves
 * the zero points of the groups it raises.
 */
#include "pack_encode.h"

#include <math.h>
#include <string.h>

#include "headroom/format.h"
#include "pack_layout.h"
#include "pack_scale.h"
#include "status_internal.h"
#include "transform.h"

enum { TILE = 64 }; /* tokens of a channel that are gathered at a time */

/* The best scale of contiguous values; leaves their statistics in *group. */
static float best_scale(hr_scale_group *group, hr_dtype dtype, const float *values, int64_t count)
{
    *group = (hr_scale_group){0};
    hr_scale_group_observe(group, values, count);
    hr_scale_group_candidates(group, dtype);
    if (group->candidates > 1) hr_scale_group_measure(group, dtype, values, count);
    return hr_scale_group_choose(group);
}

/* Scale and zero point `index`, of `count` contiguous values. */
static void choose_run(hr_packed *packed, int64_t index, const float *values, int64_t count)
{
    hr_scale_group group;
    hr_dtype dtype = packed->recipe.dtype;
    packed->scale[index] = best_scale(&group, dtype, values, count);
    if (packed->zero_point)
        packed->zero_point[index] =
            hr_scale_zero_point(dtype, group.lo, group.hi, packed->scale[index]);
}

static void choose_sequence(hr_packed *packed, int32_t head, int32_t sequence, const float *rows)
{
    const hr_operand_recipe *recipe = &packed->recipe;
    int64_t first = packed->cu_seqlens[sequence], length = packed->cu_seqlens[sequence + 1] - first;
    int64_t head_dim = packed->head_dim, scale = hr_scale_offset(packed, head, sequence);
    const float *values = rows + first * head_dim;
    int64_t tokens = recipe->granularity == HR_GRANULARITY_BLOCK ? recipe->block : 1;
    int64_t run = recipe->granularity == HR_GRANULARITY_GROUP ? recipe->block : head_dim * tokens;
    for (int64_t done = 0; done < length * head_dim; done += run, scale++) {
        int64_t left = length * head_dim - done;
        choose_run(packed, scale, values + done, left < run ? left : run);
    }
}

/* part[c][i] = channel c of row i, for up to TILE rows. */
static void gather_channels(const float *rows, int64_t tokens, int64_t head_dim, float part[][TILE])
{
    for (int64_t i = 0; i < tokens; i++)
        for (int64_t c = 0; c < head_dim; c++)
            part[c][i] = rows[i * head_dim + c];
}

static void choose_channels(hr_packed *packed, int32_t head, const float *rows)
{
    float part[HR_HEAD_DIM_MAX][TILE];
    hr_scale_group groups[HR_HEAD_DIM_MAX];
    memset(groups, 0, sizeof groups);
    hr_dtype dtype = packed->recipe.dtype;
    int64_t head_dim = packed->head_dim, tokens = packed->total_tokens;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t t = 0; t < tokens; t += TILE) {
            int64_t count = tokens - t < TILE ? tokens - t : TILE;
            gather_channels(rows + t * head_dim, count, head_dim, part);
            for (int64_t c = 0; c < head_dim; c++) {
                if (pass == 0)
                    hr_scale_group_observe(&groups[c], part[c], count);
                else if (groups[c].candidates > 1)
                    hr_scale_group_measure(&groups[c], dtype, part[c], count);
            }
        }
        for (int64_t c = 0; pass == 0 && c < head_dim; c++)
            hr_scale_group_candidates(&groups[c], dtype);
    }
    for (int64_t c = 0; c < head_dim; c++) {
        int64_t index = (int64_t)head * head_dim + c;
        packed->scale[index] = hr_scale_group_choose(&groups[c]);
        if (packed->zero_point)
            packed->zero_point[index] =
                hr_scale_zero_point(dtype, groups[c].lo, groups[c].hi, packed->scale[index]);
    }
}

/* Raises small scales. A raised U4 scale keeps zero representable: its zero point moves with it. */
static void apply_floor(hr_packed *packed, int32_t head)
{
    int64_t count = packed->scale_count / packed->num_heads;
    float *scale = packed->scale + count * head, largest = 0.0f;
    for (int64_t i = 0; i < count; i++)
        largest = scale[i] > largest ? scale[i] : largest;
    float floor = hr_scale_floor(packed->recipe.dtype, largest);
    for (int64_t i = 0; i < count; i++) {
        if (scale[i] >= floor) continue;
        if (packed->zero_point) {
            uint8_t *zero = packed->zero_point + count * head + i;
            *zero = (uint8_t)rint((double)*zero * scale[i] / floor);
        }
        scale[i] = floor;
    }
}

void hr_head_choose_scales(hr_packed *packed, int32_t head, const float *rows)
{
    switch (packed->recipe.granularity) {
    case HR_GRANULARITY_HEAD:
        choose_run(packed, head, rows, packed->total_tokens * packed->head_dim);
        break;
    case HR_GRANULARITY_CHANNEL:
        choose_channels(packed, head, rows);
        break;
    case HR_GRANULARITY_TOKEN:
    case HR_GRANULARITY_BLOCK:
    case HR_GRANULARITY_GROUP:
        for (int32_t b = 0; b < packed->batch; b++)
            choose_sequence(packed, head, b, rows);
        break;
    default:
        return;
    }
    apply_floor(packed, head);
}

/* One token whose channels have a scale each: divided here, then encoded with scale 1. */
static hr_status encode_channels(const hr_packed *packed, int64_t scale, const float *row,
                                 uint8_t *codes)
{
    float scaled[HR_HEAD_DIM_MAX];
    for (int32_t c = 0; c < packed->head_dim; c++) {
        scaled[c] = row[c] / packed->scale[scale + c];
        if (packed->zero_point) scaled[c] = rintf(scaled[c]) + packed->zero_point[scale + c];
    }
    return hr_encode(packed->recipe.dtype, scaled, packed->head_dim, 1.0f, 0, codes);
}

static hr_status decode_channels(const hr_packed *packed, int64_t scale, const uint8_t *codes,
                                 float *out)
{
    HR_TRY(hr_decode(packed->recipe.dtype, codes, packed->head_dim, 1.0f, 0, out));
    for (int32_t c = 0; c < packed->head_dim; c++) {
        if (packed->zero_point) out[c] -= packed->zero_point[scale + c];
        out[c] *= packed->scale[scale + c];
    }
    return HR_OK;
}

/* Channels of a token that share a scale. */
static int64_t run_channels(const hr_packed *packed)
{
    return packed->recipe.granularity == HR_GRANULARITY_GROUP ? packed->recipe.block
                                                              : packed->head_dim;
}

/* One token; `scale` is the index of its first scale. F32 codes are the values themselves. */
static hr_status encode_row(const hr_packed *packed, int64_t scale, const float *row,
                            uint8_t *codes)
{
    hr_dtype dtype = packed->recipe.dtype;
    int64_t run = run_channels(packed);
    if (dtype == HR_DTYPE_F32) {
        memcpy(codes, row, (size_t)packed->head_dim * sizeof *row);
        return HR_OK;
    }
    if (packed->recipe.granularity == HR_GRANULARITY_CHANNEL)
        return encode_channels(packed, scale, row, codes);
    for (int64_t c = 0; c < packed->head_dim; c += run, scale++)
        HR_TRY(hr_encode(dtype, row + c, run, packed->scale ? packed->scale[scale] : 1.0f,
                         packed->zero_point ? packed->zero_point[scale] : 0,
                         codes + c * hr_dtype_bits(dtype) / 8));
    return HR_OK;
}

static hr_status decode_row(const hr_packed *packed, int64_t scale, const uint8_t *codes,
                            float *row)
{
    hr_dtype dtype = packed->recipe.dtype;
    int64_t run = run_channels(packed);
    if (dtype == HR_DTYPE_F32) {
        memcpy(row, codes, (size_t)packed->head_dim * sizeof *row);
        return HR_OK;
    }
    if (packed->recipe.granularity == HR_GRANULARITY_CHANNEL)
        return decode_channels(packed, scale, codes, row);
    for (int64_t c = 0; c < packed->head_dim; c += run, scale++)
        HR_TRY(hr_decode(dtype, codes + c * hr_dtype_bits(dtype) / 8, run,
                         packed->scale ? packed->scale[scale] : 1.0f,
                         packed->zero_point ? packed->zero_point[scale] : 0, row + c));
    return HR_OK;
}

hr_status hr_head_encode(const hr_packed *packed, int32_t head, const float *rows, uint8_t *codes)
{
    size_t row_bytes = hr_layout_row_bytes(packed->recipe.dtype, packed->head_dim);
    for (int32_t b = 0; b < packed->batch; b++) {
        int64_t base = hr_scale_offset(packed, head, b), first = packed->cu_seqlens[b];
        for (int64_t t = first; t < packed->cu_seqlens[b + 1]; t++)
            HR_TRY(encode_row(packed, base + hr_scale_step(packed, t - first),
                              rows + t * packed->head_dim, codes + (size_t)t * row_bytes));
    }
    return HR_OK;
}

hr_status hr_head_decode(const hr_packed *packed, int32_t head, const uint8_t *codes, float *out,
                         int64_t stride)
{
    size_t row_bytes = hr_layout_row_bytes(packed->recipe.dtype, packed->head_dim);
    for (int32_t b = 0; b < packed->batch; b++) {
        int64_t base = hr_scale_offset(packed, head, b), first = packed->cu_seqlens[b];
        for (int64_t t = first; t < packed->cu_seqlens[b + 1]; t++)
            HR_TRY(decode_row(packed, base + hr_scale_step(packed, t - first),
                              codes + (size_t)t * row_bytes, out + t * stride));
    }
    return HR_OK;
}
