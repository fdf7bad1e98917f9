/*
 * A choice: which recipe each KV head of a model is to have, as an audit found them within an error
 * budget. It is a file that hr_mixed (headroom/mixed.h) and `headroom run --choice` run:
 *
 *     choice.json                       which head has which config; JSON, described in
 * docs/files.md choice-fp8-mse.safetensors, ...   beside it: the profile of each config with static
 * scales
 */
#ifndef HEADROOM_CHOICE_H
#define HEADROOM_CHOICE_H

#include "headroom/audit.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A recipe, and where its static scales come from. */
typedef struct hr_choice_config {
    char id[HR_RECIPE_NAME_BYTES + 64]; /* as in the audit: "fp8/mse", "int8" */
    hr_recipe recipe;
    const hr_profile *profile; /* NULL: the recipe needs none */
} hr_choice_config;

typedef struct hr_choice_layer {
    int32_t layer; /* number in the model */
    int32_t num_heads, num_kv_heads, head_dim;
    int32_t *config; /* [num_kv_heads] index into configs */
    double *rel_l2;  /* [num_kv_heads] worst of the query heads that read it; NaN: not known */
} hr_choice_layer;

typedef struct hr_choice {
    char *model;
    double budget;
    double kv_bits; /* an element of K and V, scales included: mean over all KV heads' elements */
    int32_t config_count;
    hr_choice_config *configs; /* those that a head has */
    int32_t layer_count;
    hr_choice_layer *layers; /* in ascending order of number */
    hr_profile **owned;      /* [config_count] profiles that hr_choice_read read; NULL entries */
} hr_choice;

/*
 * The choice of an audit, which must outlive it: for every KV head the config of fewest bits whose
 * e_total is within the budget on all query heads that read it (ties: the least of their largest).
 * Where none is, the config whose largest error is least. A budget that is not > 0 is
 * HR_ERROR_INVALID_ARGUMENT. Release with hr_choice_free.
 */
HR_API hr_status hr_choice_from_audit(const hr_audit *audit, double budget,
                                      hr_choice **out) HR_NODISCARD;
HR_API void hr_choice_free(hr_choice *choice);

/* Writes the profiles, then the JSON; names of profiles begin as path does, up to ".json". */
HR_API hr_status hr_choice_write(const hr_choice *choice, const char *path) HR_NODISCARD;

/*
 * Reads both and checks them: heads without a config or with two, configs that no list has, recipes
 * that need a profile and have none, profiles that do not fit. HR_ERROR_FORMAT or what reading the
 * profile gave, and the message names file, layer and head.
 */
HR_API hr_status hr_choice_read(const char *path, hr_choice **out) HR_NODISCARD;

/* The layer of that number; NULL when the choice has none. */
HR_API const hr_choice_layer *hr_choice_find_layer(const hr_choice *choice, int32_t layer);

/* For hr_mixed: recipes [config_count], and the static scales of one layer, for hr_mixed_pack. */
HR_API void hr_choice_recipes(const hr_choice *choice, hr_recipe *recipes);
HR_API hr_status hr_choice_scales(const hr_choice *choice, int32_t layer,
                                  hr_layer_scales *scales) HR_NODISCARD;

/*
 * HR_ERROR_MISMATCH unless the recording is of the choice's model (where both say) and its layers,
 * as far as they are in `layers` (NULL: all), are in the choice with the same heads and head_dim.
 */
HR_API hr_status hr_choice_check(const hr_choice *choice, const hr_recording *recording,
                                 const int32_t *layers, int32_t layer_count) HR_NODISCARD;

#ifdef __cplusplus
}
#endif

#endif
