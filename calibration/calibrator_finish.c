/*
 * The end of calibration: observers -> amax -> scales, and what the profile should warn of.
 *
 * scale = amax / largest code, one a head; for tensor granularity the heads' observers are merged
 * first, so that one scale fits all heads' values together. Operands with dynamic scales get scales
 * per head all the same, for information.
 */
#include <stdlib.h>
#include <string.h>

#include "calibrator.h"
#include "memory.h"
#include "profile.h"
#include "status_internal.h"
#include "threads.h"

static hr_status check_complete(const hr_calibrator *calibrator, const int32_t *layers,
                                int32_t layer_count)
{
    if (calibrator->layer_count == 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "nothing was observed; a profile needs at least "
                                                  "one layer");
    for (int32_t i = 0; i < layer_count; i++)
        if (!hr_calibrator_find(calibrator, layers[i]))
            return hr_fail(HR_ERROR_NOT_FOUND, "layer %d was never observed", layers[i]);
    if (calibrator->pass < calibrator->passes)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "recipe \"%s\" smooths K before static scales and needs two passes; call "
                       "hr_calibrator_next_pass and feed the data again",
                       calibrator->recipe.name);
    for (int32_t i = 0; calibrator->pass == 2 && i < calibrator->layer_count; i++) {
        const hr_calibrator_layer *layer = calibrator->layers[i];
        if (layer->second_tokens != layer->tokens)
            return hr_fail(HR_ERROR_MISMATCH,
                           "layer %d: the first pass had %lld tokens, the second %lld; feed the "
                           "same data in both",
                           layer->layer, (long long)layer->tokens, (long long)layer->second_tokens);
    }
    return HR_OK;
}

/* One scale to find: that of a head, or with head -1 that of all heads of an operand. */
typedef struct search {
    const hr_calibrator_layer *layer;
    hr_operand operand;
    int32_t head;
    float amax;
    hr_status status;
} search;

static bool is_pooled(const hr_calibrator *calibrator, hr_operand operand)
{
    return hr_operand_recipe_of(&calibrator->recipe, operand)->granularity == HR_GRANULARITY_TENSOR;
}

/* Lists the scales to find by layer, operand and head; returns how many. NULL only counts them. */
static int64_t list_searches(const hr_calibrator *calibrator, search *searches)
{
    int64_t count = 0;
    for (int32_t i = 0; i < calibrator->layer_count; i++)
        for (hr_operand x = HR_OPERAND_Q; x <= HR_OPERAND_V; x++) {
            const hr_calibrator_layer *layer = calibrator->layers[i];
            bool pooled = is_pooled(calibrator, x);
            int32_t heads = pooled ? 1 : hr_calibrator_layer_heads(layer, x);
            for (int32_t head = 0; head < heads; head++, count++)
                if (searches)
                    searches[count] =
                        (search){.layer = layer, .operand = x, .head = pooled ? -1 : head};
        }
    return count;
}

static void run_search(const hr_calibrator *calibrator, search *s)
{
    const hr_observer_config *observer = &calibrator->observer;
    hr_dtype dtype = hr_operand_recipe_of(&calibrator->recipe, s->operand)->dtype;
    void *const *states = s->layer->observer[s->operand];
    if (s->head >= 0) {
        s->status = observer->type->result(states[s->head], observer->parameter, dtype, &s->amax);
        return;
    }
    void *pooled = observer->type->create();
    s->status = pooled ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
    if (!pooled) return;
    for (int32_t head = 0; head < hr_calibrator_layer_heads(s->layer, s->operand); head++)
        observer->type->merge(pooled, states[head]);
    s->status = observer->type->result(pooled, observer->parameter, dtype, &s->amax);
    observer->type->release(pooled);
}

/* Every scale's amax, in the order of list_searches. Free with free(). */
static hr_status find_all_amax(const hr_calibrator *calibrator, search **out)
{
    int64_t count = list_searches(calibrator, NULL);
    search *searches = hr_alloc((size_t)count, sizeof *searches);
    if (!searches) return HR_ERROR_OUT_OF_MEMORY;
    list_searches(calibrator, searches);
#pragma omp parallel for schedule(dynamic) num_threads(hr_threads())
    for (int64_t i = 0; i < count; i++)
        run_search(calibrator, &searches[i]);

    for (int64_t i = 0; i < count; i++) {
        const search *s = &searches[i];
        if (s->status == HR_OK) continue;
        /* The thread that failed has the message; this one can say where. */
        hr_status status = hr_fail(s->status, "layer %d, %s: observer %s failed: %s",
                                   s->layer->layer, hr_operand_letter(s->operand),
                                   calibrator->observer.text, hr_status_string(s->status));
        free(searches);
        return status;
    }
    *out = searches;
    return HR_OK;
}

static float largest(const float *values, int32_t count)
{
    float result = 0;
    for (int32_t i = 0; i < count; i++)
        if (values[i] > result) result = values[i];
    return result;
}

/* Warns of heads that have nothing, or next to nothing, to quantize. */
static hr_status warn_head(hr_profile *profile, const hr_calibrator_layer *layer,
                           hr_operand operand, int32_t head, float amax, float scale)
{
    const float *channels = layer->amax[operand] + (int64_t)head * layer->head_dim;
    float raw = largest(channels, layer->head_dim);
    const char *letter = hr_operand_letter(operand);
    const char *note =
        scale == HR_SCALE_MIN ? ", the smallest, so that any value other than zero would clip" : "";
    if (raw == 0)
        return hr_profile_warn(profile,
                               "layer %d: %s head %d is zero over all %lld tokens; its scale is "
                               "%.3g%s",
                               layer->layer, letter, head, (long long)layer->tokens, scale, note);
    if (amax == 0)
        return hr_profile_warn(profile,
                               "layer %d: %s head %d is the same for all %lld tokens, so that mean "
                               "smoothing leaves zero; its scale is %.3g%s",
                               layer->layer, letter, head, (long long)layer->tokens, scale, note);
    if (scale == HR_SCALE_MIN)
        return hr_profile_warn(profile,
                               "layer %d: %s head %d has values of at most %.3g; its scale is "
                               "%.3g, the smallest, which rounds them coarsely or to zero",
                               layer->layer, letter, head, raw, scale);
    return HR_OK;
}

/* Takes the operand's scales from *next on and moves it past them. */
static hr_status finish_operand(const hr_calibrator *calibrator, const hr_calibrator_layer *layer,
                                hr_operand operand, const search **next, hr_profile *profile,
                                float *scale)
{
    hr_dtype dtype = hr_operand_recipe_of(&calibrator->recipe, operand)->dtype;
    const search *s = *next;
    for (int32_t head = 0; head < hr_calibrator_layer_heads(layer, operand); head++) {
        float amax = s->head < 0 ? s[0].amax : s[head].amax;
        scale[head] = hr_scale_of_amax(dtype, amax);
        HR_TRY(warn_head(profile, layer, operand, head, amax, scale[head]));
    }
    *next += s->head < 0 ? 1 : hr_calibrator_layer_heads(layer, operand);
    return HR_OK;
}

static hr_status finish_layer(const hr_calibrator *calibrator, const hr_calibrator_layer *layer,
                              const search **next, hr_profile *profile, hr_profile_layer *out)
{
    static const hr_profile_array_id scale_id[HR_OPERANDS] = {
        HR_PROFILE_Q_SCALE, HR_PROFILE_K_SCALE, HR_PROFILE_V_SCALE};
    static const hr_profile_array_id amax_id[HR_OPERANDS] = {HR_PROFILE_Q_AMAX, HR_PROFILE_K_AMAX,
                                                             HR_PROFILE_V_AMAX};
    out->layer = layer->layer;
    out->num_heads = layer->num_heads;
    out->num_kv_heads = layer->num_kv_heads;
    out->head_dim = layer->head_dim;
    out->tokens = layer->tokens;
    for (hr_profile_array_id id = 0; id < HR_PROFILE_ARRAYS; id++)
        HR_TRY(hr_profile_array_allocate(out, id));
    hr_calibrator_layer_mean(layer, hr_profile_array_data(out, HR_PROFILE_K_MEAN));
    float *channel_scale = hr_profile_array_data(out, HR_PROFILE_V_CHANNEL_SCALE);
    for (int64_t i = 0; i < hr_profile_array_size(out, HR_PROFILE_V_CHANNEL_SCALE); i++)
        channel_scale[i] =
            hr_scale_of_amax(calibrator->recipe.v.dtype, layer->amax[HR_OPERAND_V][i]);
    for (hr_operand x = HR_OPERAND_Q; x <= HR_OPERAND_V; x++) {
        memcpy(hr_profile_array_data(out, amax_id[x]), layer->amax[x],
               (size_t)hr_profile_array_size(out, amax_id[x]) * sizeof(float));
        HR_TRY(finish_operand(calibrator, layer, x, next, profile,
                              hr_profile_array_data(out, scale_id[x])));
    }
    return HR_OK;
}

/* One warning for all layers that saw few tokens: they usually all did. */
static hr_status warn_tokens(const hr_calibrator *calibrator, hr_profile *profile)
{
    int32_t few = 0, first = 0;
    for (int32_t i = calibrator->layer_count - 1; i >= 0; i--)
        if (calibrator->layers[i]->tokens < calibrator->min_tokens) {
            few++;
            first = i;
        }
    if (!few) return HR_OK;
    return hr_profile_warn(profile,
                           "%d of %d layers saw fewer than %lld tokens (layer %d: %lld); scales "
                           "from so few may clip other inputs",
                           few, calibrator->layer_count, (long long)calibrator->min_tokens,
                           calibrator->layers[first]->layer,
                           (long long)calibrator->layers[first]->tokens);
}

static hr_status fill_profile(const hr_calibrator *calibrator, hr_profile *profile)
{
    profile->recipe = calibrator->recipe;
    profile->hadamard_seed = calibrator->hadamard_seed;
    profile->causal = calibrator->source.causal;
    profile->softmax_scale = calibrator->source.softmax_scale;
    memcpy(profile->observer, calibrator->observer.text, sizeof profile->observer);
    hr_source_hash(&calibrator->source, profile->data_hash);
    HR_TRY(warn_tokens(calibrator, profile));
    search *searches = NULL;
    HR_TRY(find_all_amax(calibrator, &searches));
    const search *next = searches;
    hr_status status = HR_OK;
    for (int32_t i = 0; status == HR_OK && i < calibrator->layer_count; i++)
        status =
            finish_layer(calibrator, calibrator->layers[i], &next, profile, &profile->layers[i]);
    free(searches);
    return status;
}

hr_status hr_calibrator_finish(hr_calibrator *calibrator, const int32_t *layers,
                               int32_t layer_count, hr_profile **out)
{
    if (!calibrator || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "hr_calibrator_finish: the calibrator and out "
                                                  "must not be NULL");
    *out = NULL;
    HR_TRY(check_complete(calibrator, layers, layers ? layer_count : 0));
    const hr_source *source = &calibrator->source;
    hr_profile *profile;
    HR_TRY(hr_profile_create(calibrator->layer_count, source->model ? source->model : "",
                             source->rope ? source->rope : "", &profile));
    hr_status status = fill_profile(calibrator, profile);
    if (status != HR_OK) {
        hr_profile_free(profile);
        return status;
    }
    *out = profile;
    return HR_OK;
}
