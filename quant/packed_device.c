/*
 * Packed operands in the memory of another device.
 */
#include <string.h>

#include "headroom/device.h"
#include "memory.h"
#include "status_internal.h"

/* A copy of `bytes` on `to`; NULL stays NULL. */
static hr_status duplicate(hr_device to, void *out, hr_device from, const void *source,
                           size_t bytes)
{
    void *copy = NULL;
    if (source) HR_TRY(hr_device_alloc(to, bytes, 1, &copy));
    memcpy(out, &copy, sizeof copy); /* first, so that the owner frees it if the copy fails */
    return source ? hr_device_copy(to, copy, from, source, bytes, NULL) : HR_OK;
}

static hr_status copy_fields(const hr_packed *packed, hr_packed *out)
{
    const hr_device to = out->device, from = packed->device;
    const size_t sequences = (size_t)packed->batch + 1, heads = (size_t)packed->num_heads;
    HR_TRY(duplicate(HR_DEVICE_CPU, &out->cu_seqlens, HR_DEVICE_CPU, packed->cu_seqlens,
                     sequences * sizeof *out->cu_seqlens));
    HR_TRY(duplicate(HR_DEVICE_CPU, &out->slot_offset, HR_DEVICE_CPU, packed->slot_offset,
                     sequences * sizeof *out->slot_offset));
    HR_TRY(duplicate(to, &out->codes, from, packed->codes, heads * packed->head_bytes));
    HR_TRY(duplicate(to, &out->scale, from, packed->scale,
                     (size_t)packed->scale_count * sizeof *out->scale));
    HR_TRY(duplicate(to, &out->zero_point, from, packed->zero_point, (size_t)packed->scale_count));
    HR_TRY(duplicate(to, &out->mean, from, packed->mean,
                     heads * (size_t)packed->head_dim * sizeof *out->mean));
    return duplicate(to, &out->lse_bias, from, packed->lse_bias,
                     heads * (size_t)packed->total_tokens * sizeof *out->lse_bias);
}

hr_status hr_packed_copy(const hr_packed *packed, hr_device device, hr_packed *out)
{
    if (!packed || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "packed and out must not be NULL");
    hr_packed copy = *packed;
    copy.device = device;
    copy.cu_seqlens = NULL;
    copy.slot_offset = NULL;
    copy.codes = NULL;
    copy.scale = NULL;
    copy.zero_point = NULL;
    copy.mean = NULL;
    copy.lse_bias = NULL;
    hr_status status = copy_fields(packed, &copy);
    if (status != HR_OK) hr_packed_free(&copy);
    *out = copy;
    return status;
}

hr_status hr_packed_layer_copy(const hr_packed_layer *layer, hr_device device, hr_packed_layer *out)
{
    if (!layer || !out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "layer and out must not be NULL");
    hr_packed_layer copy = {.q = {.batch = 0}};
    hr_status status = hr_packed_copy(&layer->q, device, &copy.q);
    if (status == HR_OK) status = hr_packed_copy(&layer->k, device, &copy.k);
    if (status == HR_OK) status = hr_packed_copy(&layer->v, device, &copy.v);
    if (status != HR_OK) hr_packed_layer_free(&copy);
    *out = copy;
    return status;
}
