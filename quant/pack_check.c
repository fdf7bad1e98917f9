/*
 * Validation of hr_pack's arguments.
 */
#include "pack_check.h"

#include <math.h>

#include "pack_layout.h"
#include "pack_scale.h"
#include "rope_internal.h"
#include "status_internal.h"
#include "tensor_rows.h"
#include "transform.h"

const char *hr_operand_name(hr_operand operand)
{
    static const char *const names[] = {"q", "k", "v"};
    return (unsigned)operand < 3 ? names[operand] : "unknown";
}

static hr_status check_granularity(const char *name, const hr_operand_recipe *recipe,
                                   int64_t head_dim)
{
    const char *dtype = hr_dtype_name(recipe->dtype);
    if ((unsigned)recipe->granularity >= HR_GRANULARITY_COUNT)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "no granularity has the number %d",
                       (int)recipe->granularity);
    const char *granularity = hr_granularity_name(recipe->granularity);
    int block = recipe->block, nibbles = hr_dtype_bits(recipe->dtype) == 4;
    switch (recipe->dtype) {
    case HR_DTYPE_F32:
    case HR_DTYPE_F16:
    case HR_DTYPE_BF16:
        if (recipe->granularity == HR_GRANULARITY_NONE) return HR_OK;
        return hr_fail(HR_ERROR_UNSUPPORTED, "%s in %s takes granularity none, not %s", name, dtype,
                       granularity);
    case HR_DTYPE_E4M3:
    case HR_DTYPE_E5M2:
    case HR_DTYPE_I8:
    case HR_DTYPE_I4:
    case HR_DTYPE_U4:
    case HR_DTYPE_C4:
        break;
    default:
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%s cannot be packed to %s; f32, f16, bf16, e4m3, e5m2, i8, i4, u4 and c4 "
                       "are accepted",
                       name, dtype);
    }
    switch (recipe->granularity) {
    case HR_GRANULARITY_NONE:
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%s in %s needs scales: granularity none is for f32, "
                       "f16 and bf16",
                       name, dtype);
    case HR_GRANULARITY_BLOCK:
        if (block >= 1) break;
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "%s has blocks of %d tokens; at least 1 is "
                       "accepted",
                       name, block);
    case HR_GRANULARITY_GROUP:
        if (block >= 1 && head_dim % block == 0 && !(nibbles && block % 2)) break;
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "%s has groups of %d channels; a divisor of head_dim %lld is accepted, even "
                       "for 4-bit formats",
                       name, block, (long long)head_dim);
    default:
        break;
    }
    return HR_OK;
}

hr_status hr_pack_check_recipe(hr_operand operand, const hr_operand_recipe *recipe,
                               int64_t head_dim)
{
    if ((unsigned)operand > HR_OPERAND_V)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "no operand has the number %d", (int)operand);
    const char *name = hr_operand_name(operand);
    if (head_dim < HR_HEAD_DIM_MULTIPLE || head_dim > HR_HEAD_DIM_MAX ||
        head_dim % HR_HEAD_DIM_MULTIPLE != 0)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%s has head_dim %lld; multiples of %d up to %d are accepted", name,
                       (long long)head_dim, HR_HEAD_DIM_MULTIPLE, HR_HEAD_DIM_MAX);
    HR_TRY(check_granularity(name, recipe, head_dim));
    hr_granularity granularity = recipe->granularity;
    if (granularity != HR_GRANULARITY_NONE && !recipe->dynamic) {
        if (granularity != HR_GRANULARITY_TENSOR && granularity != HR_GRANULARITY_HEAD &&
            granularity != HR_GRANULARITY_CHANNEL)
            return hr_fail(HR_ERROR_UNSUPPORTED,
                           "%s has static scales per %s; a profile has them per tensor, head or "
                           "channel",
                           name, hr_granularity_name(granularity));
        if (recipe->dtype == HR_DTYPE_U4)
            return hr_fail(HR_ERROR_UNSUPPORTED,
                           "%s in u4 needs dynamic scales: a profile has no zero points", name);
    }
    uint32_t allowed = operand == HR_OPERAND_K   ? HR_TRANSFORM_MEAN | HR_TRANSFORM_HADAMARD
                       : operand == HR_OPERAND_Q ? HR_TRANSFORM_HADAMARD
                                                 : HR_TRANSFORM_NONE;
    if (recipe->transform & ~allowed)
        return hr_fail(
            HR_ERROR_UNSUPPORTED,
            "%s has the transform bits %u; mean smoothing is for K, rotation for Q and K", name,
            recipe->transform);
    return HR_OK;
}

hr_status hr_pack_check_seqlens(const char *name, int32_t batch, const int32_t *cu_seqlens,
                                int64_t total_tokens)
{
    if (batch < 1)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "batch is %d; at least 1 is accepted", batch);
    if (!cu_seqlens) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is NULL", name);
    if (cu_seqlens[0] != 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s[0] is %d, not 0", name, cu_seqlens[0]);
    for (int32_t b = 0; b < batch; b++)
        if (cu_seqlens[b + 1] < cu_seqlens[b])
            return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s falls from %d to %d at %d", name,
                           cu_seqlens[b], cu_seqlens[b + 1], b + 1);
    if (cu_seqlens[batch] != total_tokens)
        return hr_fail(HR_ERROR_MISMATCH, "%s ends at %d, but there are %lld tokens", name,
                       cu_seqlens[batch], (long long)total_tokens);
    return HR_OK;
}

hr_status hr_pack_check_static_scales(const char *name, const hr_operand_recipe *recipe,
                                      int64_t heads, int64_t head_dim, const float *scale)
{
    if (recipe->granularity == HR_GRANULARITY_NONE || recipe->dynamic) {
        if (scale)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "%s was given static scales, but its recipe takes none", name);
        return HR_OK;
    }
    if (!scale)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "%s needs static scales per %s from a profile, but none were given", name,
                       hr_granularity_name(recipe->granularity));
    int64_t count = recipe->granularity == HR_GRANULARITY_TENSOR ? 1
                    : recipe->granularity == HR_GRANULARITY_HEAD ? heads
                                                                 : heads * head_dim;
    for (int64_t i = 0; i < count; i++)
        if (!hr_scale_is_valid(recipe->dtype, scale[i]))
            return hr_fail(HR_ERROR_NUMERIC,
                           "static scale %lld of %s is %g; finite values above 0 whose reciprocal "
                           "and largest code stay finite are accepted",
                           (long long)i, name, (double)scale[i]);
    return HR_OK;
}

hr_status hr_pack_check_mean(const char *name, const float *mean, int64_t heads, int64_t head_dim)
{
    for (int64_t i = 0; mean && i < heads * head_dim; i++)
        if (!isfinite(mean[i]))
            return hr_fail(HR_ERROR_NUMERIC, "%s of head %lld, channel %lld is %g", name,
                           (long long)(i / head_dim), (long long)(i % head_dim), (double)mean[i]);
    return HR_OK;
}

static hr_status check_rope(hr_operand operand, const hr_pack_options *options, int64_t tokens,
                            int32_t head_dim)
{
    HR_TRY(hr_rope_check(&options->rope, head_dim));
    if (options->rope.rotary_dim == 0) return HR_OK;
    if (operand == HR_OPERAND_V)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "rope is for Q and K, not for v");
    return hr_rope_check_positions(options->positions, tokens);
}

hr_status hr_pack_check(hr_operand operand, const hr_operand_recipe *recipe, const hr_tensor *x,
                        const hr_pack_options *options)
{
    if (!recipe || !options)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is NULL", recipe ? "options" : "recipe");
    if ((unsigned)operand > HR_OPERAND_V)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "no operand has the number %d", (int)operand);
    const char *name = hr_operand_name(operand);
    HR_TRY(hr_tensor_rows_check(x, name));
    int64_t tokens = x->shape[0], heads = x->shape[1], head_dim = x->shape[2];
    if (heads < 1 || heads > INT32_MAX || tokens > INT32_MAX)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "%s has %lld tokens of %lld heads; 0 to 2^31 - 1 tokens and 1 to 2^31 - 1 "
                       "heads are accepted",
                       name, (long long)tokens, (long long)heads);
    HR_TRY(hr_pack_check_recipe(operand, recipe, head_dim));
    HR_TRY(hr_layout_check(options->layout, operand, recipe->dtype));
    HR_TRY(hr_pack_check_seqlens("cu_seqlens", options->batch, options->cu_seqlens, tokens));
    HR_TRY(hr_pack_check_static_scales(name, recipe, heads, head_dim, options->static_scale));
    if (options->mean && !(recipe->transform & HR_TRANSFORM_MEAN))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "%s was given a mean, but its recipe does not smooth it", name);
    HR_TRY(hr_pack_check_mean("mean", options->mean, heads, head_dim));
    HR_TRY(check_rope(operand, options, tokens, (int32_t)head_dim));
    if (!options->k_mean) return HR_OK;
    if (operand != HR_OPERAND_Q)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "k_mean is for Q, not for %s", name);
    if (options->num_kv_heads < 1 || heads % options->num_kv_heads != 0)
        return hr_fail(HR_ERROR_MISMATCH, "num_kv_heads %d does not divide the %lld heads of q",
                       options->num_kv_heads, (long long)heads);
    return hr_pack_check_mean("k_mean", options->k_mean, options->num_kv_heads, head_dim);
}
