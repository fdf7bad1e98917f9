/*
 * Writer of packed files: checks that the layers belong together, then hands views to the
 * safetensors writer. Codes of the ROWS layout are written without the slack between heads.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device_internal.h"
#include "headroom/safetensors.h"
#include "memory.h"
#include "metadata.h"
#include "pack_check.h"
#include "packed_file.h"
#include "status_internal.h"

static bool same_recipe(const hr_operand_recipe *a, const hr_operand_recipe *b)
{
    return a->dtype == b->dtype && a->granularity == b->granularity && a->block == b->block &&
           a->dynamic == b->dynamic && a->transform == b->transform;
}

static bool same_seqlens(const hr_packed *a, const hr_packed *b)
{
    return a->batch == b->batch &&
           !memcmp(a->cu_seqlens, b->cu_seqlens, ((size_t)a->batch + 1) * sizeof *a->cu_seqlens);
}

/* One operand against the recipe and against the same operand of the first layer. */
static hr_status check_operand(const hr_packed *at, hr_operand operand, const hr_recipe *recipe,
                               const hr_packed *first)
{
    const char *name = hr_operand_name(operand);
    if (!at->codes || at->operand != operand)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is not a packed %s", name, name);
    HR_TRY(hr_device_expect(name, at->device, HR_DEVICE_CPU));
    if (at->rope.rotary_dim)
        return hr_fail(
            HR_ERROR_UNSUPPORTED,
            "%s was rotated by rope when it was packed, which packed files do not record", name);
    if (!same_recipe(&at->recipe, hr_recipe_of_operand(recipe, operand)))
        return hr_fail(HR_ERROR_MISMATCH, "%s was not packed with the recipe %s", name,
                       recipe->name);
    if (at->layout != first->layout)
        return hr_fail(HR_ERROR_MISMATCH, "%s has layout %s, but %s in the first layer", name,
                       hr_layout_name(at->layout), hr_layout_name(first->layout));
    if (!same_seqlens(at, first))
        return hr_fail(HR_ERROR_MISMATCH, "%s has other sequences than in the first layer", name);
    return HR_OK;
}

static hr_status check_layer(const hr_packed_layer *at, const hr_recipe *recipe,
                             const hr_packed_layer *first)
{
    for (int x = HR_OPERAND_Q; x <= HR_OPERAND_V; x++)
        HR_TRY(check_operand(hr_packed_layer_operand(at, (hr_operand)x), (hr_operand)x, recipe,
                             hr_packed_layer_operand(first, (hr_operand)x)));
    if (at->k.head_dim != at->q.head_dim || at->v.head_dim != at->q.head_dim ||
        at->v.num_heads != at->k.num_heads || at->q.num_heads % at->k.num_heads != 0)
        return hr_fail(HR_ERROR_MISMATCH,
                       "q, k and v have %d, %d and %d heads of head_dim %d, %d and %d",
                       at->q.num_heads, at->k.num_heads, at->v.num_heads, at->q.head_dim,
                       at->k.head_dim, at->v.head_dim);
    if (!same_seqlens(&at->k, &at->v))
        return hr_fail(HR_ERROR_MISMATCH, "k and v have different sequences");
    if (at->k.batch != at->q.batch)
        return hr_fail(HR_ERROR_MISMATCH, "q has a batch of %d, but k of %d", at->q.batch,
                       at->k.batch);
    if (at->q.hadamard_seed != first->q.hadamard_seed ||
        at->k.hadamard_seed != first->k.hadamard_seed || at->q.hadamard_seed != at->k.hadamard_seed)
        return hr_fail(HR_ERROR_MISMATCH, "operands were rotated with different seeds");
    bool smoothed = recipe->k.transform & HR_TRANSFORM_MEAN;
    if (smoothed != (at->q.lse_bias != NULL))
        return hr_fail(HR_ERROR_MISMATCH, "q was %spacked against a smoothed k",
                       smoothed ? "not " : "");
    return HR_OK;
}

static hr_status check_layers(const hr_packed_file_info *info, const int32_t *layer,
                              const hr_packed_layer *layers, int32_t count)
{
    if (count < 1)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "layer_count is %d; at least 1 is accepted",
                       count);
    if (!(isfinite(info->softmax_scale) && info->softmax_scale > 0.0f))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "softmax_scale is %g; a finite number > 0 is accepted",
                       (double)info->softmax_scale);
    for (int32_t i = 0; i < count; i++) {
        if (layer[i] < 0 || (i > 0 && layer[i] <= layer[i - 1]))
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "layer number %d at %d; rising numbers from 0 are accepted", layer[i],
                           i);
        hr_status status = check_layer(&layers[i], &info->recipe, &layers[0]);
        if (status != HR_OK) return hr_fail_in(status, "layer %d", layer[i]);
    }
    return HR_OK;
}

/* Writes the codes of ROWS, head after head, without slack. */
static hr_status fill_codes(void *context, void *buffer)
{
    const hr_packed *packed = context;
    hr_tensor view;
    hr_packed_part_view(packed, false, HR_PART_CODES, &view);
    size_t bytes = (size_t)(view.shape[1] * view.shape[2]) * (size_t)hr_dtype_bits(view.dtype) / 8;
    for (int32_t head = 0; head < packed->num_heads; head++)
        memcpy((char *)buffer + (size_t)head * bytes,
               (const char *)packed->codes + (size_t)head * packed->head_bytes, bytes);
    return HR_OK;
}

static hr_status add_operand(hr_safetensors_writer *writer, int32_t layer, const hr_packed *packed,
                             bool smoothed)
{
    for (int part = 0; part < HR_PART_COUNT; part++) {
        hr_tensor view;
        if (!hr_packed_part_view(packed, smoothed, (hr_packed_part)part, &view)) continue;
        char name[HR_PACKED_NAME_BYTES];
        hr_packed_part_name(layer, packed->operand, (hr_packed_part)part, name);
        if (part == HR_PART_CODES && packed->layout == HR_LAYOUT_ROWS) {
            HR_TRY(hr_safetensors_add_source(writer, name, &view, fill_codes, (void *)packed));
            continue;
        }
        view.data = part == HR_PART_CODES ? packed->codes
                                          : hr_packed_part_data(packed, (hr_packed_part)part);
        HR_TRY(hr_safetensors_add(writer, name, &view));
    }
    return HR_OK;
}

static hr_status add_seqlens(hr_safetensors_writer *writer, const hr_packed_layer *first)
{
    hr_tensor view =
        hr_tensor_view(HR_DTYPE_I32, 1, (int64_t[]){first->q.batch + 1}, first->q.cu_seqlens);
    HR_TRY(hr_safetensors_add(writer, "cu_seqlens", &view));
    if (same_seqlens(&first->q, &first->k)) return HR_OK;
    view.data = first->k.cu_seqlens;
    return hr_safetensors_add(writer, "cu_seqlens_kv", &view);
}

/* "0,1,2": which layers the file has, in order. */
static hr_status set_layer_list(hr_safetensors_writer *writer, const int32_t *layer, int32_t count)
{
    enum { NUMBER_BYTES = 12 };
    char *text = hr_alloc((size_t)count, NUMBER_BYTES);
    if (!text) return HR_ERROR_OUT_OF_MEMORY;
    size_t used = 0;
    for (int32_t i = 0; i < count; i++)
        used += (size_t)snprintf(text + used, NUMBER_BYTES, "%s%d", i ? "," : "", layer[i]);
    hr_status status = hr_safetensors_set_metadata(writer, "headroom.layers", text);
    free(text);
    return status;
}

static hr_status set_metadata(hr_safetensors_writer *writer, const hr_packed_file_info *info,
                              const int32_t *layer, const hr_packed_layer *first, int32_t count)
{
    hr_recipe recipe = info->recipe;
    HR_TRY(hr_recipe_normalize(&recipe));
    char seed[32];
    snprintf(seed, sizeof seed, "%" PRIu64, first->k.hadamard_seed);
    const char *const pairs[][2] = {
        {"headroom.kind", "packed"},
        {"headroom.version", HR_PACKED_FILE_VERSION},
        {"headroom.recipe", recipe.name},
        {"headroom.q_layout", hr_layout_name(first->q.layout)},
        {"headroom.k_layout", hr_layout_name(first->k.layout)},
        {"headroom.v_layout", hr_layout_name(first->v.layout)},
        {"headroom.causal", info->causal ? "true" : "false"},
        {"headroom.hadamard_seed", seed},
        {"headroom.model", info->model ? info->model : ""},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        HR_TRY(hr_safetensors_set_metadata(writer, pairs[i][0], pairs[i][1]));
    HR_TRY(hr_metadata_set_softmax_scale(writer, info->softmax_scale));
    return set_layer_list(writer, layer, count);
}

static hr_status fill_writer(hr_safetensors_writer *writer, const hr_packed_file_info *info,
                             const int32_t *layer, const hr_packed_layer *layers, int32_t count)
{
    bool smoothed = info->recipe.k.transform & HR_TRANSFORM_MEAN;
    HR_TRY(set_metadata(writer, info, layer, &layers[0], count));
    HR_TRY(add_seqlens(writer, &layers[0]));
    for (int32_t i = 0; i < count; i++)
        for (int x = HR_OPERAND_Q; x <= HR_OPERAND_V; x++)
            HR_TRY(add_operand(writer, layer[i], hr_packed_layer_operand(&layers[i], (hr_operand)x),
                               smoothed));
    return HR_OK;
}

hr_status hr_packed_write(const char *path, const hr_packed_file_info *info, const int32_t *layer,
                          const hr_packed_layer *layers, int32_t layer_count)
{
    if (!path || !info || !layer || !layers)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is NULL",
                       !path   ? "path"
                       : !info ? "info"
                               : "layer or layers");
    hr_status status = check_layers(info, layer, layers, layer_count);
    if (status != HR_OK) return hr_fail_in(status, "%s", path);
    hr_safetensors_writer *writer;
    HR_TRY(hr_safetensors_writer_create(&writer));
    status = fill_writer(writer, info, layer, layers, layer_count);
    if (status == HR_OK) status = hr_safetensors_write(writer, path);
    hr_safetensors_writer_free(writer);
    return status;
}
