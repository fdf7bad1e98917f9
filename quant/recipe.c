/*
 * Recipes: the presets, the rules a recipe has to keep, and what a recipe costs in the KV cache.
 * The text form is in recipe_text.c.
 */
#include "headroom/recipe.h"

#include <math.h>
#include <string.h>

#include "recipe_internal.h"
#include "status_internal.h"

enum {
    MEAN = HR_TRANSFORM_MEAN,
    HADAMARD = HR_TRANSFORM_HADAMARD,
    MAX_BLOCK = 65536, /* tokens */
    MAX_GROUP = 256    /* channels: the largest head_dim */
};

#define PLAIN(type)                                                                                \
    {                                                                                              \
        .dtype = HR_DTYPE_##type                                                                   \
    }
#define STATIC(type, gran)                                                                         \
    {                                                                                              \
        .dtype = HR_DTYPE_##type, .granularity = HR_GRANULARITY_##gran                             \
    }
#define DYNAMIC(type, gran, transforms)                                                            \
    {                                                                                              \
        .dtype = HR_DTYPE_##type, .granularity = HR_GRANULARITY_##gran, .dynamic = true,           \
        .transform = (transforms)                                                                  \
    }

static const struct {
    hr_recipe recipe;
    const char *summary;
} presets[] = {
    {{"bf16", PLAIN(BF16), PLAIN(BF16), PLAIN(BF16), PLAIN(BF16), 0},
     "unquantized baseline that speed is quoted against"},
    {{"fp8", STATIC(E4M3, HEAD), STATIC(E4M3, HEAD), STATIC(E4M3, HEAD), PLAIN(E4M3), 0},
     "FP8 with static scales per head, for Hopper prefill and decode"},
    {{"int8", DYNAMIC(I8, TOKEN, 0), DYNAMIC(I8, TOKEN, MEAN), DYNAMIC(I8, TOKEN, 0), PLAIN(U8), 0},
     "INT8 with scales per token and smoothed keys, for CPUs (VNNI) and Hopper"},
    {{"int8-fp8", DYNAMIC(I8, TOKEN, 0), DYNAMIC(I8, TOKEN, MEAN), DYNAMIC(E4M3, CHANNEL, 0),
      PLAIN(E4M3), 0},
     "INT8 queries and smoothed keys, FP8 values per channel (SageAttention2's choice)"},
    {{"int4", DYNAMIC(I8, TOKEN, HADAMARD), DYNAMIC(C4, TOKEN, MEAN | HADAMARD),
      DYNAMIC(C4, TOKEN, 0), PLAIN(U8), 0},
     "4-bit keys and values on a gaussian codebook, for long-context decode"},
};

enum { PRESET_COUNT = sizeof presets / sizeof presets[0] };

int hr_recipe_preset_count(void)
{
    return PRESET_COUNT;
}

const hr_recipe *hr_recipe_preset(int index)
{
    return index >= 0 && index < PRESET_COUNT ? &presets[index].recipe : NULL;
}

const char *hr_recipe_preset_summary(int index)
{
    return index >= 0 && index < PRESET_COUNT ? presets[index].summary : "";
}

const char *hr_granularity_name(hr_granularity granularity)
{
    static const char *const names[HR_GRANULARITY_COUNT] = {"none",  "tensor",  "head", "token",
                                                            "block", "channel", "group"};
    bool known = (int)granularity >= 0 && granularity < HR_GRANULARITY_COUNT;
    return known ? names[granularity] : "unknown";
}

bool hr_dtype_is_plain_float(hr_dtype dtype)
{
    return dtype == HR_DTYPE_F32 || dtype == HR_DTYPE_F16 || dtype == HR_DTYPE_BF16;
}

bool hr_granularity_is_dynamic_only(hr_granularity granularity)
{
    return granularity == HR_GRANULARITY_TOKEN || granularity == HR_GRANULARITY_BLOCK ||
           granularity == HR_GRANULARITY_GROUP;
}

hr_operand_recipe *hr_recipe_operand(hr_recipe *recipe, int index)
{
    hr_operand_recipe *operands[] = {&recipe->q, &recipe->k, &recipe->v, &recipe->p};
    return operands[index];
}

static bool is_storage_dtype(hr_dtype dtype)
{
    switch (dtype) {
    case HR_DTYPE_F32:
    case HR_DTYPE_F16:
    case HR_DTYPE_BF16:
    case HR_DTYPE_E4M3:
    case HR_DTYPE_E5M2:
    case HR_DTYPE_I8:
    case HR_DTYPE_I4:
    case HR_DTYPE_U4:
    case HR_DTYPE_C4:
        return true;
    default:
        return false;
    }
}

static hr_status check_block(const hr_operand_recipe *operand, char letter)
{
    int32_t block = operand->block;
    if (operand->granularity == HR_GRANULARITY_BLOCK && (block < 1 || block > MAX_BLOCK))
        return hr_fail(HR_ERROR_UNSUPPORTED, "%c.granularity=block%d: a block has 1 to %d tokens",
                       letter, (int)block, MAX_BLOCK);
    if (operand->granularity == HR_GRANULARITY_GROUP &&
        (block < 2 || block > MAX_GROUP || block % 2))
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%c.granularity=group%d: a group has an even number of channels, 2 to %d",
                       letter, (int)block, MAX_GROUP);
    return HR_OK;
}

/* Format and scales of Q, K or V. */
static hr_status check_scales(const hr_operand_recipe *operand, char letter)
{
    const char *dtype = hr_dtype_name(operand->dtype);
    const char *granularity = hr_granularity_name(operand->granularity);
    if (!is_storage_dtype(operand->dtype))
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%c.dtype=%s: q, k and v take f32, f16, bf16, e4m3, e5m2, i8, i4, u4 or c4",
                       letter, dtype);
    if ((int)operand->granularity < 0 || operand->granularity >= HR_GRANULARITY_COUNT)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%c: %d is not an hr_granularity", letter,
                       (int)operand->granularity);
    if (hr_dtype_is_plain_float(operand->dtype)) {
        if (operand->granularity != HR_GRANULARITY_NONE)
            return hr_fail(HR_ERROR_UNSUPPORTED,
                           "%c.granularity=%s: %s has no scale; its granularity is none", letter,
                           granularity, dtype);
        if (operand->dynamic)
            return hr_fail(HR_ERROR_UNSUPPORTED, "%c.scale=dynamic: %s has no scale", letter,
                           dtype);
        return HR_OK;
    }
    if (operand->granularity == HR_GRANULARITY_NONE)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%c.granularity=none: %s needs a scale; set %c.granularity to tensor, head, "
                       "token, block<N>, channel (v only) or group<N>",
                       letter, dtype, letter);
    if (operand->granularity == HR_GRANULARITY_CHANNEL && letter != 'v')
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%c.granularity=channel: the sum q.k runs over channels, so that a scale "
                       "per channel cannot be taken out of it; only v has channel scales",
                       letter);
    if (hr_granularity_is_dynamic_only(operand->granularity) && !operand->dynamic)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%c.scale=static: scales per %s depend on the data and are dynamic; static "
                       "scales are per tensor, head or channel",
                       letter, granularity);
    if (operand->dtype == HR_DTYPE_U4 && !operand->dynamic)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%c.scale=static: u4 also needs zero points, which profiles do not hold; "
                       "set %c.scale=dynamic",
                       letter, letter);
    return check_block(operand, letter);
}

static hr_status check_transforms(const hr_recipe *recipe)
{
    const uint32_t known = HR_TRANSFORM_MEAN | HR_TRANSFORM_HADAMARD;
    const hr_operand_recipe *operands[] = {&recipe->q, &recipe->k, &recipe->v};
    for (int i = 0; i < 3; i++)
        if (operands[i]->transform & ~known)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%c: transform bits 0x%x are not known",
                           "qkv"[i], (unsigned)(operands[i]->transform & ~known));
    if (recipe->v.transform)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "v has no transform: the output is a sum of v, which neither smoothing nor "
                       "rotation leaves unchanged");
    if (recipe->q.transform & HR_TRANSFORM_MEAN)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "q.transform=mean: mean smoothing is for k, where softmax cancels it");
    if ((recipe->q.transform ^ recipe->k.transform) & HR_TRANSFORM_HADAMARD)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%c.transform=hadamard without %c: q.k is unchanged only when both are "
                       "rotated",
                       recipe->q.transform ? 'q' : 'k', recipe->q.transform ? 'k' : 'q');
    return HR_OK;
}

hr_status hr_recipe_check(hr_recipe *recipe)
{
    for (int i = 0; i < 3; i++) {
        hr_operand_recipe *operand = hr_recipe_operand(recipe, i);
        if (operand->granularity != HR_GRANULARITY_BLOCK &&
            operand->granularity != HR_GRANULARITY_GROUP)
            operand->block = 0;
        HR_TRY(check_scales(operand, "qkv"[i]));
    }
    hr_dtype p = recipe->p.dtype;
    if (p != HR_DTYPE_F32 && p != HR_DTYPE_BF16 && p != HR_DTYPE_E4M3 && p != HR_DTYPE_U8 &&
        p != HR_DTYPE_I16)
        return hr_fail(HR_ERROR_UNSUPPORTED, "p.dtype=%s: p takes f32, bf16, e4m3, u8 or i16",
                       hr_dtype_name(p));
    recipe->p = (hr_operand_recipe){.dtype = p};
    if (recipe->residual < 0 || recipe->residual > HR_RESIDUAL_MAX ||
        recipe->residual % HR_RESIDUAL_MULTIPLE != 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "residual=%d: it is a multiple of %d tokens up to %d, or 0 for none",
                       recipe->residual, HR_RESIDUAL_MULTIPLE, HR_RESIDUAL_MAX);
    return check_transforms(recipe);
}

hr_status hr_recipe_normalize(hr_recipe *recipe)
{
    if (!recipe) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "recipe normalize: recipe is NULL");
    hr_recipe checked = *recipe;
    hr_status status = hr_recipe_check(&checked);
    if (status != HR_OK) return hr_fail_in(status, "recipe");
    hr_recipe_write_name(&checked);
    *recipe = checked;
    return HR_OK;
}

/* Bits an element takes with its share of the scale (FP32) and zero point (one byte). */
static double element_bits(const hr_operand_recipe *operand, int head_dim)
{
    double scale = 32 + (operand->dtype == HR_DTYPE_U4 ? 8 : 0);
    double share = 0; /* scales that do not grow with the sequence cost nothing per element */
    if (operand->granularity == HR_GRANULARITY_TOKEN) share = scale / head_dim;
    if (operand->granularity == HR_GRANULARITY_BLOCK)
        share = scale / ((double)operand->block * head_dim);
    if (operand->granularity == HR_GRANULARITY_GROUP) share = scale / operand->block;
    return hr_dtype_bits(operand->dtype) + share;
}

double hr_recipe_kv_bits(const hr_recipe *recipe, int head_dim)
{
    if (!recipe || head_dim < 1) return NAN;
    return 0.5 * (element_bits(&recipe->k, head_dim) + element_bits(&recipe->v, head_dim));
}

bool hr_recipe_needs_profile(const hr_recipe *recipe)
{
    const hr_operand_recipe *operands[] = {&recipe->q, &recipe->k, &recipe->v};
    for (int i = 0; i < 3; i++)
        if (operands[i]->granularity != HR_GRANULARITY_NONE && !operands[i]->dynamic) return true;
    return false;
}
