/*
 * Which recipes and which features the kernel check asks of a group of rows (rows with the same
 * dtypes). Both are derived from what the rows claim in kernels.def, so a row cannot claim
 * something that is not run.
 */
#ifndef HEADROOM_CHECK_RECIPES_H
#define HEADROOM_CHECK_RECIPES_H

#include <criterion/criterion.h>

#include "kernel.h"

enum { RECIPES_MAX = 64 };

typedef struct recipe_list {
    hr_recipe recipe[RECIPES_MAX];
    int count;
} recipe_list;

static inline bool same_dtypes(const hr_kernel_info *a, const hr_kernel_info *b)
{
    return a->q_dtype == b->q_dtype && a->k_dtype == b->k_dtype && a->v_dtype == b->v_dtype &&
           a->p_dtype == b->p_dtype;
}

static inline bool is_integer(hr_dtype dtype)
{
    return dtype == HR_DTYPE_I8 || dtype == HR_DTYPE_U8 || dtype == HR_DTYPE_I4 ||
           dtype == HR_DTYPE_U4 || dtype == HR_DTYPE_C4 || dtype == HR_DTYPE_I16;
}

/*
 * Channels a group has: 8, which divides every head_dim, but where rows take larger groups only.
 * Shapes that those do not divide are run with groups of 8.
 */
static inline int32_t group_width(const hr_kernel_info *row)
{
    if (row->isa == HR_ISA_PORTABLE) return 8;
    if (row->p_dtype != HR_DTYPE_U8 && row->p_dtype != HR_DTYPE_I16) return 8;
    return row->isa == HR_ISA_AVX512VNNI && row->max_seqlen_q > 0 ? 32 : 16;
}

static inline hr_operand_recipe operand_recipe(const hr_kernel_info *row, hr_dtype dtype,
                                               int granularity)
{
    hr_operand_recipe operand = {.dtype = dtype, .granularity = (hr_granularity)granularity};
    operand.dynamic = granularity != HR_GRANULARITY_NONE;
    if (granularity == HR_GRANULARITY_BLOCK) operand.block = 48; /* divides no tile */
    if (operand.block && row->isa == HR_ISA_SM90 && dtype == HR_DTYPE_E4M3) operand.block = 128;
    if (granularity == HR_GRANULARITY_GROUP) operand.block = group_width(row);
    return operand;
}

/* True unless the recipe has groups of channels that a head has no whole number of. */
static inline bool groups_divide(const hr_recipe *recipe, int32_t head_dim)
{
    const hr_operand_recipe *operands[] = {&recipe->q, &recipe->k, &recipe->v};
    for (int i = 0; i < 3; i++)
        if (operands[i]->granularity == HR_GRANULARITY_GROUP && head_dim % operands[i]->block)
            return false;
    return true;
}

static inline void add_recipe(recipe_list *list, const hr_recipe *recipe)
{
    hr_recipe checked = *recipe;
    cr_assert_eq(hr_recipe_normalize(&checked), HR_OK, "%s", hr_last_error());
    for (int i = 0; i < list->count; i++)
        if (strcmp(list->recipe[i].name, checked.name) == 0) return;
    cr_assert_lt(list->count, RECIPES_MAX);
    list->recipe[list->count++] = checked;
}

/*
 * The row's dtypes with: the first granularity of each operand; every other one of each operand,
 * one operand at a time; and smoothing, rotation and both for quantized keys.
 */
static inline void list_recipes(const hr_kernel_info *row, recipe_list *list)
{
    const uint32_t masks[3] = {row->q_granularities, row->k_granularities, row->v_granularities};
    const hr_dtype dtypes[3] = {row->q_dtype, row->k_dtype, row->v_dtype};
    hr_operand_recipe first[3];
    for (int i = 0; i < 3; i++) {
        uint32_t preferred = masks[i] & 1u << HR_GRANULARITY_TOKEN;
        first[i] = operand_recipe(row, dtypes[i], __builtin_ctz(preferred ? preferred : masks[i]));
    }
    const hr_recipe base = {
        .q = first[0], .k = first[1], .v = first[2], .p = {.dtype = row->p_dtype}};
    add_recipe(list, &base);
    for (int i = 0; i < 3; i++)
        for (int granularity = 0; granularity < HR_GRANULARITY_COUNT; granularity++) {
            if (!(masks[i] >> granularity & 1)) continue;
            hr_recipe recipe = base;
            hr_operand_recipe *operand[3] = {&recipe.q, &recipe.k, &recipe.v};
            *operand[i] = operand_recipe(row, dtypes[i], granularity);
            add_recipe(list, &recipe);
        }
    if (masks[1] & masks[2] & 1u << HR_GRANULARITY_GROUP) {
        hr_recipe recipe = base;
        recipe.k = operand_recipe(row, dtypes[1], HR_GRANULARITY_GROUP);
        recipe.v = operand_recipe(row, dtypes[2], HR_GRANULARITY_GROUP);
        add_recipe(list, &recipe);
    }
    if (row->k_dtype == HR_DTYPE_BF16) return;
    for (uint32_t transform = 1; transform < 4; transform++) {
        hr_recipe recipe = base;
        recipe.k.transform = transform;
        recipe.q.transform = transform & HR_TRANSFORM_HADAMARD;
        add_recipe(list, &recipe);
    }
}

/* Feature sets, besides those that come with a shape (GQA, VARLEN). */
static const uint32_t feature_sets[] = {
    0,
    HR_FEATURE_CAUSAL,
    HR_FEATURE_WINDOW,
    HR_FEATURE_CAUSAL | HR_FEATURE_WINDOW,
    HR_FEATURE_SOFTCAP,
    HR_FEATURE_ALIBI,
    HR_FEATURE_SINKS,
    HR_FEATURE_CAUSAL | HR_FEATURE_SOFTCAP | HR_FEATURE_SINKS,
    HR_FEATURE_WINDOW | HR_FEATURE_ALIBI | HR_FEATURE_SINKS,
    HR_FEATURE_CAUSAL | HR_FEATURE_WINDOW | HR_FEATURE_SOFTCAP | HR_FEATURE_ALIBI |
        HR_FEATURE_SINKS,
    HR_FEATURE_WINDOW | HR_FEATURE_KEPT,
    HR_FEATURE_CAUSAL | HR_FEATURE_WINDOW | HR_FEATURE_KEPT | HR_FEATURE_SINKS,
    HR_FEATURE_BLOCK_SPARSE,
    HR_FEATURE_CAUSAL | HR_FEATURE_BLOCK_SPARSE | HR_FEATURE_KEPT,
    HR_FEATURE_CAUSAL | HR_FEATURE_WINDOW | HR_FEATURE_BLOCK_SPARSE | HR_FEATURE_SINKS,
    HR_FEATURE_BLOCK_SPARSE | HR_FEATURE_SOFTCAP | HR_FEATURE_ALIBI | HR_FEATURE_SINKS,
};

enum { FEATURE_SET_COUNT = sizeof feature_sets / sizeof feature_sets[0] };

/*
 * All features that some case exercises; a row that claims another one fails the check. Paged and
 * rope are check_paged's.
 */
static inline uint32_t exercised_features(void)
{
    uint32_t all = HR_FEATURE_GQA | HR_FEATURE_VARLEN | HR_FEATURE_PAGED | HR_FEATURE_ROPE;
    for (int i = 0; i < FEATURE_SET_COUNT; i++)
        all |= feature_sets[i];
    return all;
}

#endif
