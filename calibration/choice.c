/*
 * The choice of a recipe for every KV head; see headroom/choice.h.
 */
#include "headroom/choice.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "choice_internal.h"
#include "memory.h"
#include "status_internal.h"

void hr_choice_free(hr_choice *choice)
{
    if (!choice) return;
    for (int32_t i = 0; choice->layers && i < choice->layer_count; i++) {
        free(choice->layers[i].config);
        free(choice->layers[i].rel_l2);
    }
    for (int32_t i = 0; choice->owned && i < choice->config_count; i++)
        hr_profile_free(choice->owned[i]);
    free(choice->owned);
    free(choice->layers);
    free(choice->configs);
    free(choice->model);
    free(choice);
}

hr_status hr_choice_allocate(const char *model, int32_t configs, int32_t layers, hr_choice **out)
{
    hr_choice *choice = hr_alloc(1, sizeof *choice);
    if (!choice) return HR_ERROR_OUT_OF_MEMORY;
    choice->config_count = configs;
    choice->layer_count = layers;
    choice->model = hr_alloc(strlen(model) + 1, 1);
    choice->configs = hr_alloc((size_t)configs, sizeof *choice->configs);
    choice->owned = hr_alloc((size_t)configs, sizeof(hr_profile *));
    choice->layers = hr_alloc((size_t)layers, sizeof *choice->layers);
    if (!choice->model || !choice->configs || !choice->owned || !choice->layers) {
        hr_choice_free(choice);
        return HR_ERROR_OUT_OF_MEMORY;
    }
    strcpy(choice->model, model);
    *out = choice;
    return HR_OK;
}

hr_status hr_choice_allocate_heads(hr_choice_layer *layer)
{
    layer->config = hr_alloc((size_t)layer->num_kv_heads, sizeof *layer->config);
    layer->rel_l2 = hr_alloc((size_t)layer->num_kv_heads, sizeof *layer->rel_l2);
    return layer->config && layer->rel_l2 ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
}

/* The largest error of the heads that read one KV head; NaN, which is worse than any, stays. */
static double worst_of(const hr_audit_config *config, int32_t first, int32_t count)
{
    double worst = 0;
    for (int32_t h = first; h < first + count; h++) {
        const double error = config->heads[h].total.rel_l2;
        if (isnan(error)) return NAN;
        if (error > worst) worst = error;
    }
    return worst;
}

/* Whether errors a (config x) are to be taken rather than b (config y). */
static bool better(double budget, const hr_audit_config *x, double a, const hr_audit_config *y,
                   double b)
{
    const bool meets = a <= budget, other = b <= budget;
    if (meets != other) return meets;
    if (meets && x->kv_bits != y->kv_bits) return x->kv_bits < y->kv_bits;
    return a < b || (isnan(b) && !isnan(a));
}

static int32_t choose(const hr_audit *audit, double budget, int32_t first, int32_t count,
                      double *error)
{
    int32_t chosen = 0;
    *error = worst_of(&audit->configs[0], first, count);
    for (int32_t c = 1; c < audit->config_count; c++) {
        const double worst = worst_of(&audit->configs[c], first, count);
        if (!better(budget, &audit->configs[c], worst, &audit->configs[chosen], *error)) continue;
        chosen = c;
        *error = worst;
    }
    return chosen;
}

/* Leaves only the configs that a head has, in the audit's order. */
static void keep_used(const hr_audit *audit, hr_choice *choice)
{
    int32_t kept = 0;
    for (int32_t c = 0; c < audit->config_count; c++) {
        bool used = false;
        for (int32_t l = 0; l < choice->layer_count; l++)
            for (int32_t h = 0; h < choice->layers[l].num_kv_heads; h++)
                if (choice->layers[l].config[h] == c) {
                    used = true;
                    choice->layers[l].config[h] = kept; /* kept <= c: not met again */
                }
        if (!used) continue;
        hr_choice_config *config = &choice->configs[kept++];
        snprintf(config->id, sizeof config->id, "%s", audit->configs[c].id);
        config->recipe = audit->configs[c].recipe;
        config->profile = audit->configs[c].profile;
    }
    choice->config_count = kept;
}

hr_status hr_choice_from_audit(const hr_audit *audit, double budget, hr_choice **out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out is NULL");
    *out = NULL;
    if (!audit) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the audit is NULL");
    if (!(budget > 0))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the error budget is %g; it is a relative L2 error and must be > 0", budget);
    hr_choice *choice;
    HR_TRY(hr_choice_allocate(audit->recording.model, audit->config_count, audit->layer_count,
                              &choice));
    choice->budget = budget;
    double bits = 0, elements = 0;
    for (int32_t l = 0; l < audit->layer_count; l++) {
        const hr_audit_layer *layer = &audit->layers[l];
        const int32_t group = layer->num_heads / layer->num_kv_heads;
        choice->layers[l] = (hr_choice_layer){.layer = layer->layer,
                                              .num_heads = layer->num_heads,
                                              .num_kv_heads = layer->num_kv_heads,
                                              .head_dim = layer->head_dim};
        hr_status status = hr_choice_allocate_heads(&choice->layers[l]);
        if (status != HR_OK) {
            hr_choice_free(choice);
            return status;
        }
        for (int32_t h = 0; h < layer->num_kv_heads; h++) {
            const int32_t c = choose(audit, budget, audit->head_offset[l] + h * group, group,
                                     &choice->layers[l].rel_l2[h]);
            choice->layers[l].config[h] = c;
            bits += hr_recipe_kv_bits(&audit->configs[c].recipe, layer->head_dim) * layer->head_dim;
            elements += layer->head_dim;
        }
    }
    choice->kv_bits = bits / elements;
    keep_used(audit, choice);
    *out = choice;
    return HR_OK;
}

const hr_choice_layer *hr_choice_find_layer(const hr_choice *choice, int32_t layer)
{
    for (int32_t l = 0; l < choice->layer_count; l++)
        if (choice->layers[l].layer == layer) return &choice->layers[l];
    return NULL;
}

void hr_choice_recipes(const hr_choice *choice, hr_recipe *recipes)
{
    for (int32_t c = 0; c < choice->config_count; c++)
        recipes[c] = choice->configs[c].recipe;
}

hr_status hr_choice_scales(const hr_choice *choice, int32_t layer, hr_layer_scales *scales)
{
    for (int32_t c = 0; c < choice->config_count; c++) {
        const hr_choice_config *config = &choice->configs[c];
        scales[c] = (hr_layer_scales){0};
        if (!config->profile) continue;
        hr_status status = hr_profile_scales(config->profile, layer, &config->recipe, &scales[c]);
        if (status != HR_OK) return hr_fail_in(status, "%s", config->id);
    }
    return HR_OK;
}

hr_status hr_choice_check(const hr_choice *choice, const hr_recording *recording,
                          const int32_t *layers, int32_t layer_count)
{
    if (!choice || !recording)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "choice and recording must not be NULL");
    const hr_recording_info info = hr_recording_get_info(recording);
    if (*choice->model && *info.model && strcmp(choice->model, info.model) != 0)
        return hr_fail(HR_ERROR_MISMATCH,
                       "the choice was made for model \"%s\"; %s has model \"%s\"", choice->model,
                       info.path, info.model);
    for (int32_t i = 0; i < (layers ? layer_count : info.layer_count); i++) {
        hr_recording_layer has;
        if (layers)
            HR_TRY(hr_recording_find_layer(recording, layers[i], &has));
        else
            HR_TRY(hr_recording_get_layer(recording, i, &has));
        const hr_choice_layer *made = hr_choice_find_layer(choice, has.layer);
        if (!made)
            return hr_fail(HR_ERROR_MISMATCH, "the choice has no layer %d, which %s has", has.layer,
                           info.path);
        if (made->num_heads != has.num_heads || made->num_kv_heads != has.num_kv_heads ||
            made->head_dim != has.head_dim)
            return hr_fail(HR_ERROR_MISMATCH,
                           "layer %d: the choice was made for %d heads, %d KV heads and head_dim "
                           "%d; %s has %d, %d and %d",
                           has.layer, made->num_heads, made->num_kv_heads, made->head_dim,
                           info.path, has.num_heads, has.num_kv_heads, has.head_dim);
    }
    return HR_OK;
}
