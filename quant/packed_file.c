/*
 * Packed files: names and shapes of their tensors, and access to one that was read.
 */
#include "packed_file.h"

#include <stdio.h>
#include <stdlib.h>

#include "pack_check.h"
#include "pack_layout.h"

void hr_packed_part_name(int32_t layer, hr_operand operand, hr_packed_part part,
                         char name[HR_PACKED_NAME_BYTES])
{
    static const char *const suffixes[HR_PART_COUNT] = {"", ".scale", ".zero_point", ".mean",
                                                        ".lse_bias"};
    snprintf(name, HR_PACKED_NAME_BYTES, "model.layers.%d.self_attn.%s%s", layer,
             hr_operand_name(operand), suffixes[part]);
}

static hr_tensor codes_view(const hr_packed *packed)
{
    hr_dtype dtype = packed->recipe.dtype;
    int64_t heads = packed->num_heads;
    if (packed->layout != HR_LAYOUT_ROWS)
        return hr_tensor_view(HR_DTYPE_U8, 2, (int64_t[]){heads, (int64_t)packed->head_bytes},
                              NULL);
    int64_t row = packed->head_dim;
    if (hr_dtype_bits(dtype) == 4) {
        row = (int64_t)hr_layout_row_bytes(dtype, packed->head_dim);
        dtype = HR_DTYPE_U8;
    }
    return hr_tensor_view(dtype, 3, (int64_t[]){heads, packed->total_tokens, row}, NULL);
}

/* Shapes as hr_granularity lists them. */
static hr_tensor scale_view(const hr_packed *packed, hr_dtype dtype)
{
    int64_t heads = packed->num_heads, tokens = packed->total_tokens, head_dim = packed->head_dim;
    switch (packed->recipe.granularity) {
    case HR_GRANULARITY_TOKEN:
        return hr_tensor_view(dtype, 2, (int64_t[]){heads, tokens}, NULL);
    case HR_GRANULARITY_BLOCK:
        return hr_tensor_view(dtype, 2, (int64_t[]){heads, packed->scale_count / heads}, NULL);
    case HR_GRANULARITY_CHANNEL:
        return hr_tensor_view(dtype, 2, (int64_t[]){heads, head_dim}, NULL);
    case HR_GRANULARITY_GROUP:
        return hr_tensor_view(dtype, 3, (int64_t[]){heads, tokens, head_dim / packed->recipe.block},
                              NULL);
    default:
        return hr_tensor_view(dtype, 1, &packed->scale_count, NULL);
    }
}

bool hr_packed_part_view(const hr_packed *packed, bool smoothed, hr_packed_part part,
                         hr_tensor *out)
{
    int64_t heads = packed->num_heads;
    switch (part) {
    case HR_PART_CODES:
        *out = codes_view(packed);
        return true;
    case HR_PART_SCALE:
        *out = scale_view(packed, HR_DTYPE_F32);
        return packed->recipe.granularity != HR_GRANULARITY_NONE;
    case HR_PART_ZERO_POINT:
        *out = scale_view(packed, HR_DTYPE_U8);
        return packed->recipe.dtype == HR_DTYPE_U4;
    case HR_PART_MEAN:
        *out = hr_tensor_view(HR_DTYPE_F32, 2, (int64_t[]){heads, packed->head_dim}, NULL);
        return packed->operand == HR_OPERAND_K && smoothed;
    case HR_PART_LSE_BIAS:
        *out = hr_tensor_view(HR_DTYPE_F32, 2, (int64_t[]){heads, packed->total_tokens}, NULL);
        return packed->operand == HR_OPERAND_Q && smoothed;
    case HR_PART_COUNT:
        break;
    }
    return false;
}

void *hr_packed_part_data(const hr_packed *packed, hr_packed_part part)
{
    switch (part) {
    case HR_PART_SCALE:
        return packed->scale;
    case HR_PART_ZERO_POINT:
        return packed->zero_point;
    case HR_PART_MEAN:
        return packed->mean;
    case HR_PART_LSE_BIAS:
        return packed->lse_bias;
    default:
        return NULL;
    }
}

const hr_packed *hr_packed_layer_operand(const hr_packed_layer *layer, hr_operand operand)
{
    return operand == HR_OPERAND_Q ? &layer->q : operand == HR_OPERAND_K ? &layer->k : &layer->v;
}

const hr_operand_recipe *hr_recipe_of_operand(const hr_recipe *recipe, hr_operand operand)
{
    return operand == HR_OPERAND_Q ? &recipe->q : operand == HR_OPERAND_K ? &recipe->k : &recipe->v;
}

void hr_packed_file_free(hr_packed_file *file)
{
    if (!file) return;
    for (int32_t i = 0; file->layers && i < file->info.layer_count; i++)
        hr_packed_layer_free(&file->layers[i]);
    free(file->layers);
    free(file->layer);
    free(file->path);
    free(file->model);
    free(file);
}

hr_packed_file_info hr_packed_file_get_info(const hr_packed_file *file)
{
    return file->info;
}

const hr_packed_layer *hr_packed_file_layer(const hr_packed_file *file, int32_t index,
                                            int32_t *layer)
{
    if (index < 0 || index >= file->info.layer_count) return NULL;
    if (layer) *layer = file->layer[index];
    return &file->layers[index];
}
