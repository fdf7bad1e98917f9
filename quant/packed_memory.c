/*
 * Sizes, allocation and release of an hr_packed.
 */
#include "packed_memory.h"

#include <stdlib.h>
#include <string.h>

#include "headroom/device.h"
#include "memory.h"
#include "pack_layout.h"
#include "pack_scale.h"

hr_status hr_packed_measure(hr_packed *packed, const int32_t *cu_seqlens)
{
    size_t sequences = (size_t)packed->batch + 1;
    packed->cu_seqlens = hr_alloc(sequences, sizeof *packed->cu_seqlens);
    packed->slot_offset = hr_alloc(sequences, sizeof *packed->slot_offset);
    if (!packed->cu_seqlens || !packed->slot_offset) return HR_ERROR_OUT_OF_MEMORY;
    memcpy(packed->cu_seqlens, cu_seqlens, sequences * sizeof *cu_seqlens);
    hr_layout_measure(packed);
    packed->scale_count = hr_scale_count(&packed->recipe, packed->num_heads, packed->head_dim,
                                         packed->batch, cu_seqlens);
    return HR_OK;
}

hr_status hr_packed_allocate(hr_packed *packed, bool lse_bias)
{
    size_t heads = (size_t)packed->num_heads, scales = (size_t)packed->scale_count;
    bool scaled = packed->recipe.granularity != HR_GRANULARITY_NONE;
    bool asymmetric = packed->recipe.dtype == HR_DTYPE_U4;
    bool smoothed = packed->recipe.transform & HR_TRANSFORM_MEAN;
    packed->codes = hr_alloc(heads, packed->head_bytes);
    if (scaled) packed->scale = hr_alloc(scales, sizeof *packed->scale);
    if (asymmetric) packed->zero_point = hr_alloc(scales, 1);
    if (smoothed) packed->mean = hr_alloc(heads * (size_t)packed->head_dim, sizeof *packed->mean);
    if (lse_bias)
        packed->lse_bias = hr_alloc(heads * (size_t)packed->total_tokens, sizeof *packed->lse_bias);
    bool complete = packed->codes && (!scaled || packed->scale) &&
                    (!asymmetric || packed->zero_point) && (!smoothed || packed->mean) &&
                    (!lse_bias || packed->lse_bias);
    return complete ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
}

void hr_packed_free(hr_packed *packed)
{
    if (!packed) return;
    free(packed->cu_seqlens);
    free(packed->slot_offset);
    hr_device_free(packed->device, packed->codes);
    hr_device_free(packed->device, packed->scale);
    hr_device_free(packed->device, packed->zero_point);
    hr_device_free(packed->device, packed->mean);
    hr_device_free(packed->device, packed->lse_bias);
    *packed = (hr_packed){0};
}
