/*
 * What the recipe rules (recipe.c) and the recipe text (recipe_text.c) share.
 */
#ifndef HEADROOM_RECIPE_INTERNAL_H
#define HEADROOM_RECIPE_INTERNAL_H

#include "headroom/recipe.h"

/* F32, F16, BF16: stored as they are, without a scale. */
bool hr_dtype_is_plain_float(hr_dtype dtype);

/* TOKEN, BLOCK and GROUP: their scales depend on the data, so that they are always dynamic. */
bool hr_granularity_is_dynamic_only(hr_granularity granularity);

/* Operand 0 .. 2 of a recipe (q, k, v), and 3 for p. */
hr_operand_recipe *hr_recipe_operand(hr_recipe *recipe, int index);

/* The rules of recipe.h. Fills in nothing but fields without meaning (`block` of a granularity that
 * has none; all of p but its dtype), which it sets to 0. */
hr_status hr_recipe_check(hr_recipe *recipe) HR_NODISCARD;

/* Writes the canonical name of a recipe that passes hr_recipe_check. */
void hr_recipe_write_name(hr_recipe *recipe);

#endif
