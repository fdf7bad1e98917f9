/*
 * Profiles in memory: access to layers and scales, and whether a profile fits a recipe or
 * recording.
 */
#include "profile.h"

#include <float.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calibrator.h"
#include "memory.h"
#include "status_internal.h"

#define MEMBER(name) offsetof(hr_profile_layer, name)

/* Scales are at least HR_SCALE_MIN where calibration made them; a reader needs them positive. */
const hr_profile_array hr_profile_arrays[HR_PROFILE_ARRAYS] = {
    {"q_scale", MEMBER(q_scale), HR_OPERAND_Q, false, FLT_TRUE_MIN},
    {"k_scale", MEMBER(k_scale), HR_OPERAND_K, false, FLT_TRUE_MIN},
    {"v_scale", MEMBER(v_scale), HR_OPERAND_V, false, FLT_TRUE_MIN},
    {"headroom.k_mean", MEMBER(k_mean), HR_OPERAND_K, true, -FLT_MAX},
    {"headroom.q_amax", MEMBER(q_amax), HR_OPERAND_Q, true, 0},
    {"headroom.k_amax", MEMBER(k_amax), HR_OPERAND_K, true, 0},
    {"headroom.v_amax", MEMBER(v_amax), HR_OPERAND_V, true, 0},
    {"headroom.v_channel_scale", MEMBER(v_channel_scale), HR_OPERAND_V, true, FLT_TRUE_MIN},
};

/* Where the layer keeps its pointer to the array. */
static const float **array_pointer(const hr_profile_layer *layer, hr_profile_array_id id)
{
    return (const float **)((char *)(uintptr_t)layer + hr_profile_arrays[id].offset);
}

float *hr_profile_array_data(const hr_profile_layer *layer, hr_profile_array_id id)
{
    /* The profile allocated it; only its users see it as const. */
    return (float *)(uintptr_t)*array_pointer(layer, id);
}

int32_t hr_profile_array_rows(const hr_profile_layer *layer, hr_profile_array_id id)
{
    return hr_profile_arrays[id].operand == HR_OPERAND_Q ? layer->num_heads : layer->num_kv_heads;
}

int64_t hr_profile_array_size(const hr_profile_layer *layer, hr_profile_array_id id)
{
    int64_t rows = hr_profile_array_rows(layer, id);
    return hr_profile_arrays[id].per_channel ? rows * layer->head_dim : rows;
}

hr_status hr_profile_array_allocate(hr_profile_layer *layer, hr_profile_array_id id)
{
    float *data = hr_alloc((size_t)hr_profile_array_size(layer, id), sizeof *data);
    if (!data) return HR_ERROR_OUT_OF_MEMORY;
    *array_pointer(layer, id) = data;
    return HR_OK;
}

hr_status hr_profile_create(int32_t layer_count, const char *model, const char *rope,
                            hr_profile **out)
{
    hr_profile *profile = hr_alloc(1, sizeof *profile);
    if (!profile) return HR_ERROR_OUT_OF_MEMORY;
    profile->layers = hr_alloc((size_t)layer_count, sizeof *profile->layers);
    profile->layer_count = profile->layers ? layer_count : 0;
    profile->model = strdup(model);
    profile->rope = strdup(rope);
    if (!profile->layers || !profile->model || !profile->rope) {
        hr_profile_free(profile);
        return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate a profile of %d layers",
                       layer_count);
    }
    *out = profile;
    return HR_OK;
}

void hr_profile_free(hr_profile *profile)
{
    if (!profile) return;
    for (int32_t i = 0; i < profile->layer_count; i++)
        for (hr_profile_array_id id = 0; id < HR_PROFILE_ARRAYS; id++)
            free(hr_profile_array_data(&profile->layers[i], id));
    for (int32_t i = 0; i < profile->warning_count; i++)
        free(profile->warnings[i]);
    free(profile->layers);
    free(profile->warnings);
    free(profile->model);
    free(profile->rope);
    free(profile);
}

hr_status hr_profile_warn(hr_profile *profile, const char *format, ...)
{
    size_t count = (size_t)profile->warning_count + 1;
    char **warnings = realloc(profile->warnings, count * sizeof *warnings);
    if (!warnings) return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate %zu warnings", count);
    profile->warnings = warnings;
    va_list arguments;
    va_start(arguments, format);
    int length = vasprintf(&warnings[count - 1], format, arguments);
    va_end(arguments);
    if (length < 0) return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate a warning");
    profile->warning_count = (int32_t)count;
    return HR_OK;
}

hr_profile_info hr_profile_get_info(const hr_profile *profile)
{
    int64_t tokens = profile->layers[0].tokens;
    for (int32_t i = 1; i < profile->layer_count; i++)
        if (profile->layers[i].tokens < tokens) tokens = profile->layers[i].tokens;
    return (hr_profile_info){
        .model = profile->model,
        .observer = profile->observer,
        .data_hash = profile->data_hash,
        .recipe = profile->recipe,
        .layer_count = profile->layer_count,
        .tokens = tokens,
        .warning_count = profile->warning_count,
        .causal = profile->causal,
        .softmax_scale = profile->softmax_scale,
    };
}

const char *hr_profile_warning(const hr_profile *profile, int32_t index)
{
    return index >= 0 && index < profile->warning_count ? profile->warnings[index] : "";
}

hr_status hr_profile_get_layer(const hr_profile *profile, int32_t index, hr_profile_layer *out)
{
    if (!profile || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "hr_profile_get_layer: profile and out must not "
                                                  "be NULL");
    if (index < 0 || index >= profile->layer_count)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "layer index %d; the profile has %d layers",
                       index, profile->layer_count);
    *out = profile->layers[index];
    return HR_OK;
}

static const hr_profile_layer *find_layer(const hr_profile *profile, int32_t layer)
{
    for (int32_t i = 0; i < profile->layer_count; i++)
        if (profile->layers[i].layer == layer) return &profile->layers[i];
    return NULL;
}

hr_status hr_profile_find_layer(const hr_profile *profile, int32_t layer, hr_profile_layer *out)
{
    if (!profile || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "hr_profile_find_layer: profile and out must not "
                                                  "be NULL");
    const hr_profile_layer *found = find_layer(profile, layer);
    if (!found) {
        char numbers[256] = "";
        size_t used = 0;
        for (int32_t i = 0; i < profile->layer_count && used < sizeof numbers - 16; i++)
            used += (size_t)snprintf(numbers + used, sizeof numbers - used, "%s%d", i ? ", " : "",
                                     profile->layers[i].layer);
        return hr_fail(HR_ERROR_NOT_FOUND, "the profile has no layer %d; it has %d: %s%s", layer,
                       profile->layer_count, numbers, used >= sizeof numbers - 16 ? ", ..." : "");
    }
    *out = *found;
    return HR_OK;
}

static const char *transform_text(uint32_t transform)
{
    static const char *const names[] = {"no transform", "mean smoothing", "rotation",
                                        "mean smoothing and rotation"};
    return names[transform & (HR_TRANSFORM_MEAN | HR_TRANSFORM_HADAMARD)];
}

/* "e4m3, static per head, rotation" */
static void describe(const hr_operand_recipe *r, char *text, size_t size)
{
    snprintf(text, size, "%s, %s per %s, %s", hr_dtype_name(r->dtype),
             r->dynamic ? "dynamic" : "static", hr_granularity_name(r->granularity),
             transform_text(r->transform));
}

static bool is_static(const hr_operand_recipe *r)
{
    return !r->dynamic && r->granularity != HR_GRANULARITY_NONE;
}

/*
 * Whether the profile holds the operand's static scales. V's channel scales come from channel
 * maxima and are in every profile of the same dtype; the others depend on all of the operand's
 * recipe.
 */
static bool fits(const hr_operand_recipe *made, const hr_operand_recipe *wanted)
{
    if (made->dtype != wanted->dtype) return false;
    if (wanted->granularity == HR_GRANULARITY_CHANNEL) return true;
    return is_static(made) && made->granularity == wanted->granularity &&
           made->transform == wanted->transform;
}

static hr_status operand_scale(const hr_profile *profile, const hr_profile_layer *layer,
                               const hr_recipe *recipe, hr_operand operand, const float **out)
{
    const hr_operand_recipe *wanted = hr_operand_recipe_of(recipe, operand);
    const hr_operand_recipe *made = hr_operand_recipe_of(&profile->recipe, operand);
    *out = NULL;
    if (!is_static(wanted)) return HR_OK;
    bool channel = wanted->granularity == HR_GRANULARITY_CHANNEL;
    if (!fits(made, wanted) || (channel && operand != HR_OPERAND_V)) {
        char made_text[96], wanted_text[96];
        describe(made, made_text, sizeof made_text);
        describe(wanted, wanted_text, sizeof wanted_text);
        return hr_fail(HR_ERROR_MISMATCH,
                       "the profile (recipe \"%s\") has %s scales for %s; recipe \"%s\" needs %s. "
                       "Make a fitting one with: headroom calibrate RECORDING -o PROFILE "
                       "--recipe '%s'",
                       profile->recipe.name, hr_operand_letter(operand), made_text, recipe->name,
                       wanted_text, recipe->name);
    }
    const float *scales[HR_OPERANDS] = {layer->q_scale, layer->k_scale, layer->v_scale};
    *out = channel ? layer->v_channel_scale : scales[operand];
    return HR_OK;
}

hr_status hr_profile_scales(const hr_profile *profile, int32_t layer, const hr_recipe *recipe,
                            hr_layer_scales *out)
{
    if (!profile || !recipe || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "hr_profile_scales: profile, recipe and out must not be NULL");
    hr_profile_layer found;
    hr_layer_scales scales = {.hadamard_seed = profile->hadamard_seed};
    HR_TRY(hr_profile_find_layer(profile, layer, &found));
    HR_TRY(operand_scale(profile, &found, recipe, HR_OPERAND_Q, &scales.q));
    HR_TRY(operand_scale(profile, &found, recipe, HR_OPERAND_K, &scales.k));
    HR_TRY(operand_scale(profile, &found, recipe, HR_OPERAND_V, &scales.v));
    if (recipe->k.transform & HR_TRANSFORM_MEAN) scales.k_mean = found.k_mean;
    *out = scales;
    return HR_OK;
}

static hr_status check_recorded_layer(const hr_profile_layer *made, const hr_recording_layer *has)
{
    if (made->num_heads == has->num_heads && made->num_kv_heads == has->num_kv_heads &&
        made->head_dim == has->head_dim)
        return HR_OK;
    return hr_fail(HR_ERROR_MISMATCH,
                   "layer %d: the profile was made for %d heads, %d KV heads and head_dim %d; the "
                   "recording has %d, %d and %d",
                   made->layer, made->num_heads, made->num_kv_heads, made->head_dim, has->num_heads,
                   has->num_kv_heads, has->head_dim);
}

hr_status hr_profile_check(const hr_profile *profile, const hr_recording *recording)
{
    if (!profile || !recording)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "hr_profile_check: profile and recording must not be NULL");
    hr_recording_info info = hr_recording_get_info(recording);
    if (profile->model[0] && info.model[0] && strcmp(profile->model, info.model))
        return hr_fail(HR_ERROR_MISMATCH,
                       "%s: the profile was made for model \"%s\"; the recording has model \"%s\"",
                       info.path, profile->model, info.model);
    if (profile->rope[0] && strcmp(profile->rope, info.rope))
        return hr_fail(HR_ERROR_MISMATCH,
                       "%s: the profile was made for rope stage \"%s\"; the recording has \"%s\"",
                       info.path, profile->rope, info.rope);
    int32_t common = 0;
    for (int32_t i = 0; i < info.layer_count; i++) {
        hr_recording_layer recorded;
        HR_TRY(hr_recording_get_layer(recording, i, &recorded));
        const hr_profile_layer *made = find_layer(profile, recorded.layer);
        if (!made) continue; /* hr_profile_scales reports it, if that layer is asked for */
        hr_status status = check_recorded_layer(made, &recorded);
        if (status != HR_OK) return hr_fail_in(status, "%s", info.path);
        common++;
    }
    if (!common)
        return hr_fail(HR_ERROR_MISMATCH, "%s: the profile has none of the recording's layers",
                       info.path);
    return HR_OK;
}
