/*
 * Packed operand -> floats, and the same codes in another layout.
 */
#include <stdlib.h>
#include <string.h>

#include "device_internal.h"
#include "headroom/pack.h"
#include "memory.h"
#include "pack_encode.h"
#include "pack_layout.h"
#include "status_internal.h"
#include "transform.h"

hr_status hr_unpack(const hr_packed *packed, float *out)
{
    if (!packed || !packed->codes || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is NULL or empty", out ? "packed" : "out");
    HR_TRY(hr_device_expect("packed", packed->device, HR_DEVICE_CPU));
    int64_t stride = (int64_t)packed->num_heads * packed->head_dim;
    uint8_t *rows = hr_alloc((size_t)packed->total_tokens,
                             hr_layout_row_bytes(packed->recipe.dtype, packed->head_dim));
    if (!rows) return HR_ERROR_OUT_OF_MEMORY;
    hr_status status = HR_OK;
    for (int32_t head = 0; head < packed->num_heads && status == HR_OK; head++) {
        hr_layout_to_rows(packed, head, rows);
        status = hr_head_decode(packed, head, rows, out + (int64_t)head * packed->head_dim, stride);
    }
    free(rows);
    return status;
}

hr_status hr_unpack_original(const hr_packed *packed, float *out)
{
    HR_TRY(hr_unpack(packed, out));
    float signs[HR_HEAD_DIM_MAX];
    int32_t head_dim = packed->head_dim;
    bool rotated = packed->recipe.transform & HR_TRANSFORM_HADAMARD;
    if (rotated) hr_hadamard_signs(packed->hadamard_seed, head_dim, signs);
    for (int64_t t = 0; t < packed->total_tokens; t++) {
        for (int32_t head = 0; head < packed->num_heads; head++) {
            float *row = out + (t * packed->num_heads + head) * head_dim;
            if (rotated) hr_hadamard_unrotate(signs, head_dim, row);
            if (packed->mean) hr_mean_add(packed->mean + (int64_t)head * head_dim, head_dim, row);
        }
    }
    return HR_OK;
}

/* A copy of count * size bytes, or NULL for NULL; *failed is set when memory runs out. */
static void *duplicate(const void *source, size_t count, size_t size, bool *failed)
{
    if (!source) return NULL;
    void *copy = hr_alloc(count, size);
    if (copy)
        memcpy(copy, source, count * size);
    else
        *failed = true;
    return copy;
}

hr_status hr_packed_relayout(const hr_packed *packed, hr_layout layout, hr_packed *out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out is NULL");
    if (!packed || !packed->codes || packed == out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "packed is NULL, empty or the same object as out");
    *out = (hr_packed){0};
    HR_TRY(hr_device_expect("packed", packed->device, HR_DEVICE_CPU));
    HR_TRY(hr_layout_check(layout, packed->operand, packed->recipe.dtype));
    *out = *packed;
    out->layout = layout;
    bool failed = false;
    size_t sequences = (size_t)packed->batch + 1, heads = (size_t)packed->num_heads;
    size_t scales = (size_t)packed->scale_count;
    out->cu_seqlens = duplicate(packed->cu_seqlens, sequences, sizeof *out->cu_seqlens, &failed);
    out->slot_offset = duplicate(packed->slot_offset, sequences, sizeof *out->slot_offset, &failed);
    out->scale = duplicate(packed->scale, scales, sizeof *out->scale, &failed);
    out->zero_point = duplicate(packed->zero_point, scales, 1, &failed);
    out->mean =
        duplicate(packed->mean, heads * (size_t)packed->head_dim, sizeof *out->mean, &failed);
    out->lse_bias = duplicate(packed->lse_bias, heads * (size_t)packed->total_tokens,
                              sizeof *out->lse_bias, &failed);
    out->codes = NULL;
    uint8_t *rows = hr_alloc((size_t)packed->total_tokens,
                             hr_layout_row_bytes(packed->recipe.dtype, packed->head_dim));
    if (!failed && rows) {
        hr_layout_measure(out);
        out->codes = hr_alloc(heads, out->head_bytes);
    }
    for (int32_t head = 0; out->codes && head < packed->num_heads; head++) {
        hr_layout_to_rows(packed, head, rows);
        hr_layout_from_rows(out, head, rows);
    }
    free(rows);
    if (out->codes) return HR_OK;
    hr_packed_free(out);
    return HR_ERROR_OUT_OF_MEMORY;
}

int64_t hr_packed_bytes(const hr_packed *packed)
{
    if (!packed || !packed->codes) return 0;
    int64_t codes = packed->num_heads * packed->total_tokens *
                    (int64_t)hr_layout_row_bytes(packed->recipe.dtype, packed->head_dim);
    int64_t zero_points = packed->zero_point ? packed->scale_count : 0;
    return codes + packed->scale_count * (int64_t)sizeof(float) + zero_points;
}
