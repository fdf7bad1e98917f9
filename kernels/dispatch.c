/*
 * The kernel table, generated from kernels.def, and the choice of a row: the first one that reads
 * the recipe's dtypes and granularities, takes the head_dim, has the features and whose instruction
 * set is in the mask. A pure function of its arguments, so the choice for any machine can be tested
 * on this one.
 */
#include "dispatch.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "isa.h"
#include "kernel_rows.h"
#include "plan_device.h"
#include "status_internal.h"

#define G(name) (1u << HR_GRANULARITY_##name)
#define F(name) ((uint32_t)HR_FEATURE_##name)
#define INFO(recipe, isa_suffix, ISA, q, k, v, p, q_gran, k_gran, v_gran, q_lay, k_lay, v_lay,     \
             multiple, max, feature_bits, rows, keys, longest_q)                                   \
    .info = {.name = "attention_" #recipe "_" #isa_suffix,                                         \
             .isa = HR_ISA_##ISA,                                                                  \
             .q_dtype = HR_DTYPE_##q,                                                              \
             .k_dtype = HR_DTYPE_##k,                                                              \
             .v_dtype = HR_DTYPE_##v,                                                              \
             .p_dtype = HR_DTYPE_##p,                                                              \
             .q_granularities = (q_gran),                                                          \
             .k_granularities = (k_gran),                                                          \
             .v_granularities = (v_gran),                                                          \
             .q_layout = HR_LAYOUT_##q_lay,                                                        \
             .k_layout = HR_LAYOUT_##k_lay,                                                        \
             .v_layout = HR_LAYOUT_##v_lay,                                                        \
             .head_dim_multiple = (multiple),                                                      \
             .head_dim_max = (max),                                                                \
             .features = (feature_bits),                                                           \
             .tile_q = (rows),                                                                     \
             .tile_kv = (keys),                                                                    \
             .max_seqlen_q = (longest_q)}
#define HR_DECODE_KERNEL(recipe, isa, ...)                                                         \
    {INFO(recipe, isa, __VA_ARGS__), .entry = hr_attention_##recipe##_##isa,                       \
     .scratch_bytes = hr_attention_##recipe##_##isa##_scratch,                                     \
     .device_kernel = hr_device_kernel_none},
#define HR_KERNEL(...) HR_DECODE_KERNEL(__VA_ARGS__, 0)
#define HR_DEVICE_KERNEL(recipe, ...)                                                              \
    {INFO(recipe, __VA_ARGS__, 0), .device_kernel = hr_device_kernel_##recipe},

const hr_kernel hr_kernels[] = {
#include "kernels.def"
};

#undef HR_KERNEL
#undef INFO
#undef F
#undef G

const int hr_kernels_count = sizeof hr_kernels / sizeof hr_kernels[0];

static const char *const feature_names[HR_FEATURE_COUNT] = {
    "causal", "window", "varlen", "gqa",  "softcap",      "alibi",
    "sinks",  "rope",   "paged",  "kept", "block_sparse",
};

const char *hr_feature_name(uint32_t feature)
{
    for (int bit = 0; bit < HR_FEATURE_COUNT; bit++)
        if (feature == 1u << bit) return feature_names[bit];
    return NULL;
}

int hr_kernel_count(void)
{
    return hr_kernels_count;
}

const hr_kernel_info *hr_kernel_at(int index)
{
    return index >= 0 && index < hr_kernels_count ? &hr_kernels[index].info : NULL;
}

const hr_kernel *hr_kernel_of(const hr_kernel_info *info)
{
    return (const hr_kernel *)info; /* info is the first member */
}

/* Appends "a, b" for the set bits of mask, named by `name`. */
static void join_names(char *text, size_t size, uint32_t mask, const char *(*name)(int bit))
{
    size_t used = strlen(text);
    const char *separator = "";
    for (int bit = 0; bit < 32 && used < size; bit++) {
        if (!(mask >> bit & 1)) continue;
        used += (size_t)snprintf(text + used, size - used, "%s%s", separator, name(bit));
        separator = ", ";
    }
}

static const char *granularity_name(int bit)
{
    return hr_granularity_name((hr_granularity)bit);
}

static const char *isa_name(int bit)
{
    return hr_isa_name((hr_isa)bit);
}

static bool check_dtypes(const hr_kernel_info *info, const hr_recipe *recipe, char *reason)
{
    const struct {
        const char *operand;
        hr_dtype has, wanted;
    } checks[] = {{"Q", info->q_dtype, recipe->q.dtype},
                  {"K", info->k_dtype, recipe->k.dtype},
                  {"V", info->v_dtype, recipe->v.dtype},
                  {"P", info->p_dtype, recipe->p.dtype}};
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        if (checks[i].has == checks[i].wanted) continue;
        snprintf(reason, HR_KERNEL_REASON_BYTES, "takes %s as %s, not %s", checks[i].operand,
                 hr_dtype_name(checks[i].has), hr_dtype_name(checks[i].wanted));
        return false;
    }
    return true;
}

/* On Hopper a tile of E4M3 K or V has one scale. */
static bool check_blocks(const hr_kernel_info *info, const hr_recipe *recipe, char *reason)
{
    const hr_operand_recipe *operands[] = {&recipe->k, &recipe->v};
    if (info->isa != HR_ISA_SM90) return true;
    for (int i = 0; i < 2; i++) {
        const hr_operand_recipe *x = operands[i];
        if (x->granularity != HR_GRANULARITY_BLOCK || x->dtype != HR_DTYPE_E4M3 ||
            x->block % info->tile_kv == 0)
            continue;
        snprintf(reason, HR_KERNEL_REASON_BYTES,
                 "takes %s scales per block of a multiple of %d tokens, not %d", i ? "V" : "K",
                 info->tile_kv, x->block);
        return false;
    }
    return true;
}

static bool is_nibble(hr_dtype dtype)
{
    return dtype == HR_DTYPE_I4 || dtype == HR_DTYPE_U4 || dtype == HR_DTYPE_C4;
}

/*
 * The integer kernels but the portable one take groups of whole vectors of channels: of 16, or of
 * 16 bytes as they lie where K and V are multiplied so.
 */
static bool check_groups(const hr_kernel_info *info, const hr_recipe *recipe, char *reason)
{
    const hr_operand_recipe *operands[] = {&recipe->k, &recipe->v};
    if (info->isa == HR_ISA_PORTABLE) return true;
    if (info->p_dtype != HR_DTYPE_U8 && info->p_dtype != HR_DTYPE_I16) return true;
    for (int i = 0; i < 2; i++) {
        const hr_operand_recipe *x = operands[i];
        const bool as_it_lies = info->isa == HR_ISA_AVX512VNNI && info->max_seqlen_q > 0;
        const int32_t multiple = as_it_lies && is_nibble(x->dtype) ? 32 : 16;
        if (x->granularity != HR_GRANULARITY_GROUP || x->block % multiple == 0) continue;
        snprintf(reason, HR_KERNEL_REASON_BYTES,
                 "takes %s scales per group of a multiple of %d channels, not %d", i ? "V" : "K",
                 multiple, x->block);
        return false;
    }
    return true;
}

static bool check_granularities(const hr_kernel_info *info, const hr_recipe *recipe, char *reason)
{
    const struct {
        const char *operand;
        uint32_t has;
        hr_granularity wanted;
    } checks[] = {{"Q", info->q_granularities, recipe->q.granularity},
                  {"K", info->k_granularities, recipe->k.granularity},
                  {"V", info->v_granularities, recipe->v.granularity}};
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        bool known = (unsigned)checks[i].wanted < HR_GRANULARITY_COUNT;
        if (known && (checks[i].has >> checks[i].wanted & 1)) continue;
        snprintf(reason, HR_KERNEL_REASON_BYTES, "does not take %s scales per %s, only per ",
                 checks[i].operand, hr_granularity_name(checks[i].wanted));
        join_names(reason, HR_KERNEL_REASON_BYTES, checks[i].has, granularity_name);
        return false;
    }
    return check_blocks(info, recipe, reason) && check_groups(info, recipe, reason);
}

/* Packing makes the layout that a kernel reads; a cache has its own. */
static bool check_layouts(const hr_kernel_info *info, const hr_kernel_query *query, char *reason)
{
    if (!(query->features & HR_FEATURE_PAGED)) return true;
    const bool key = info->k_layout != query->k_layout;
    if (!key && info->v_layout == query->v_layout) return true;
    snprintf(reason, HR_KERNEL_REASON_BYTES, "reads a cache's %s in %s, not in %s", key ? "K" : "V",
             hr_layout_name(key ? info->k_layout : info->v_layout),
             hr_layout_name(key ? query->k_layout : query->v_layout));
    return false;
}

hr_kernel_fit hr_kernel_check(const hr_kernel_info *info, const hr_kernel_query *query,
                              uint32_t isa_mask, char reason[HR_KERNEL_REASON_BYTES])
{
    reason[0] = 0;
    if (!check_dtypes(info, &query->recipe, reason)) return HR_KERNEL_LACKS_DTYPE;
    if (!check_granularities(info, &query->recipe, reason)) return HR_KERNEL_LACKS_GRANULARITY;
    if (query->head_dim < 1 || query->head_dim > info->head_dim_max ||
        query->head_dim % info->head_dim_multiple != 0) {
        snprintf(reason, HR_KERNEL_REASON_BYTES,
                 "takes a head_dim that is a multiple of %d up to %d, not %d",
                 info->head_dim_multiple, info->head_dim_max, query->head_dim);
        return HR_KERNEL_LACKS_HEAD_DIM;
    }
    if (info->max_seqlen_q && (query->seqlen_q < 1 || query->seqlen_q > info->max_seqlen_q)) {
        snprintf(reason, HR_KERNEL_REASON_BYTES, "takes a seqlen_q of 1 to %d, not %d",
                 info->max_seqlen_q, query->seqlen_q);
        return HR_KERNEL_LACKS_SEQLEN_Q;
    }
    uint32_t missing = query->features & ~info->features;
    if (missing) {
        const char *name = hr_feature_name(missing & -missing);
        snprintf(reason, HR_KERNEL_REASON_BYTES, "does not support %s",
                 name ? name : "an unknown feature bit");
        return HR_KERNEL_LACKS_FEATURE;
    }
    if (!check_layouts(info, query, reason)) return HR_KERNEL_LACKS_LAYOUT;
    if (!(isa_mask >> info->isa & 1)) {
        snprintf(reason, HR_KERNEL_REASON_BYTES,
                 "needs %s; usable instruction sets: ", hr_isa_name(info->isa));
        join_names(reason, HR_KERNEL_REASON_BYTES, isa_mask, isa_name);
        return HR_KERNEL_LACKS_ISA;
    }
    return HR_KERNEL_FITS;
}

static hr_status fail_unnamed(const hr_kernel_query *query, uint32_t isa_mask)
{
    char accepted[1024] = "", reason[HR_KERNEL_REASON_BYTES];
    size_t used = 0;
    for (int i = 0; i < hr_kernels_count && used < sizeof accepted; i++) {
        const hr_kernel_info *info = &hr_kernels[i].info;
        if (hr_kernel_check(info, query, isa_mask, reason) != HR_KERNEL_FITS) continue;
        used += (size_t)snprintf(accepted + used, sizeof accepted - used, "%s%s", used ? ", " : "",
                                 info->name);
    }
    return hr_fail(HR_ERROR_NOT_FOUND,
                   "no kernel is named \"%.64s\"; those that run recipe %s here: %s", query->name,
                   query->recipe.name, used ? accepted : "none");
}

static hr_status find_named(const hr_kernel_query *query, uint32_t isa_mask,
                            const hr_kernel_info **out)
{
    for (int i = 0; i < hr_kernels_count; i++) {
        const hr_kernel_info *info = &hr_kernels[i].info;
        if (strcmp(info->name, query->name) != 0) continue;
        char reason[HR_KERNEL_REASON_BYTES];
        if (hr_kernel_check(info, query, isa_mask, reason) != HR_KERNEL_FITS)
            return hr_fail(HR_ERROR_UNSUPPORTED, "kernel %s cannot run recipe %s: it %s",
                           info->name, query->recipe.name, reason);
        *out = info;
        return HR_OK;
    }
    return fail_unnamed(query, isa_mask);
}

/* The check that failed counts most, then the dtypes that fit, then the features that do. */
static int closeness(const hr_kernel_info *info, const hr_kernel_query *query, hr_kernel_fit fit)
{
    const hr_recipe *recipe = &query->recipe;
    int dtypes = (info->q_dtype == recipe->q.dtype) + (info->k_dtype == recipe->k.dtype) +
                 (info->v_dtype == recipe->v.dtype) + (info->p_dtype == recipe->p.dtype);
    int missing = __builtin_popcount(query->features & ~info->features);
    return (int)fit * 1024 + dtypes * 64 - missing;
}

/* A kernel of another device is no answer to what would be accepted. */
static bool on_device_of(const hr_kernel_info *info, uint32_t isa_mask)
{
    const hr_device device = info->isa == HR_ISA_SM90 ? HR_DEVICE_CUDA : HR_DEVICE_CPU;
    return isa_mask & hr_isa_of_device(device);
}

hr_status hr_kernel_find(const hr_kernel_query *query, uint32_t isa_mask,
                         const hr_kernel_info **out)
{
    if (!query || !out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "query and out must not be NULL");
    *out = NULL;
    if (query->name) return find_named(query, isa_mask, out);

    const hr_kernel_info *closest = NULL;
    char closest_reason[HR_KERNEL_REASON_BYTES] = "";
    int closest_score = INT_MIN;
    for (int i = 0; i < hr_kernels_count; i++) {
        const hr_kernel_info *info = &hr_kernels[i].info;
        char reason[HR_KERNEL_REASON_BYTES];
        hr_kernel_fit fit = hr_kernel_check(info, query, isa_mask, reason);
        if (fit == HR_KERNEL_FITS) {
            *out = info;
            return HR_OK;
        }
        int score = closeness(info, query, fit);
        if (score <= closest_score || !on_device_of(info, isa_mask)) continue;
        closest = info;
        closest_score = score;
        memcpy(closest_reason, reason, sizeof reason);
    }
    return hr_fail(
        HR_ERROR_UNSUPPORTED, "no kernel runs recipe %s with head_dim %d: the closest, %s, %s",
        query->recipe.name, query->head_dim, closest ? closest->name : "none", closest_reason);
}
