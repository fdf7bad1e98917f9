/*
 * Profile files, reading. The file is hostile until it has passed: every tensor must be one that
 * headroom/calibration.h lists, every layer complete and consistent in its shapes, every value in
 * range, every scale of a tensor-granular operand the same, every metadata string well formed.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calibrator.h"
#include "headroom/safetensors.h"
#include "memory.h"
#include "metadata.h"
#include "printable.h"
#include "profile.h"
#include "status_internal.h"

void hr_profile_tensor_name(char name[HR_PROFILE_NAME_BYTES], int32_t layer, const char *suffix)
{
    snprintf(name, HR_PROFILE_NAME_BYTES, "model.layers.%d.self_attn.%s", layer, suffix);
}

/* Whether `name` is that of a profile's tensor; sets the layer number and the suffix. */
static bool parse_name(const char *name, int32_t *layer, const char **suffix)
{
    static const char prefix[] = "model.layers.";
    static const char infix[] = ".self_attn.";
    if (strncmp(name, prefix, sizeof prefix - 1)) return false;
    const char *digits = name + sizeof prefix - 1;
    int64_t number = 0;
    int length = 0;
    for (; digits[length] >= '0' && digits[length] <= '9'; length++) {
        number = number * 10 + (digits[length] - '0');
        if (number > INT32_MAX) return false;
    }
    if (length == 0 || (length > 1 && digits[0] == '0')) return false;
    if (strncmp(digits + length, infix, sizeof infix - 1)) return false;
    *layer = (int32_t)number;
    *suffix = digits + length + sizeof infix - 1;
    if (!strcmp(*suffix, HR_PROFILE_TOKENS_SUFFIX)) return true;
    for (hr_profile_array_id id = 0; id < HR_PROFILE_ARRAYS; id++)
        if (!strcmp(*suffix, hr_profile_arrays[id].suffix)) return true;
    return false;
}

static int compare_layers(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/*
 * The numbers of the layers that have a q_scale, ascending. Names in a file are unique, so that the
 * file has nothing but whole layers when the count of tensors is right and none is missing.
 */
static hr_status list_layers(const hr_safetensors *file, int32_t **out, int32_t *out_count)
{
    int64_t tensors = hr_safetensors_count(file);
    int32_t *layers = hr_alloc((size_t)tensors, sizeof *layers);
    if (!layers) return HR_ERROR_OUT_OF_MEMORY;
    int32_t count = 0;
    hr_status status = HR_OK;
    for (int64_t i = 0; status == HR_OK && i < tensors; i++) {
        const char *name = hr_safetensors_name(file, i);
        const char *suffix;
        int32_t layer;
        if (!parse_name(name, &layer, &suffix))
            status = hr_fail(HR_ERROR_FORMAT, "tensor \"%s\" does not belong in a profile",
                             hr_print(name).text);
        else if (!strcmp(suffix, hr_profile_arrays[HR_PROFILE_Q_SCALE].suffix))
            layers[count++] = layer;
    }
    if (status == HR_OK && count == 0)
        status = hr_fail(HR_ERROR_FORMAT, "the profile has no layer (no tensor "
                                          "model.layers.{i}.self_attn.q_scale)");
    if (status == HR_OK && tensors != (int64_t)count * (HR_PROFILE_ARRAYS + 1))
        status = hr_fail(HR_ERROR_FORMAT,
                         "%lld tensors; the %d layers with a q_scale should have %d each",
                         (long long)tensors, count, HR_PROFILE_ARRAYS + 1);
    if (status != HR_OK) {
        free(layers);
        return status;
    }
    qsort(layers, (size_t)count, sizeof *layers, compare_layers);
    *out = layers;
    *out_count = count;
    return HR_OK;
}

/* The tensor of that suffix, which must have this dtype and, where positive, these dimensions. */
static hr_status find_tensor(const hr_safetensors *file, int32_t layer, const char *suffix,
                             hr_dtype dtype, int ndim, const int64_t *shape, hr_tensor *out)
{
    char name[HR_PROFILE_NAME_BYTES];
    hr_profile_tensor_name(name, layer, suffix);
    HR_TRY(hr_safetensors_find(file, name, out));
    bool good = out->dtype == dtype && out->ndim == ndim;
    for (int i = 0; good && i < ndim; i++)
        good = shape[i] ? out->shape[i] == shape[i]
                        : out->shape[i] >= 1 && out->shape[i] <= INT32_MAX / 4;
    if (good) return HR_OK;
    char wanted[64] = "";
    for (int i = 0, used = 0; i < ndim; i++)
        used += snprintf(wanted + used, sizeof wanted - (size_t)used, shape[i] ? "%s%lld" : "%s*",
                         i ? ", " : "", (long long)shape[i]);
    return hr_fail(HR_ERROR_FORMAT, "%s: must be %s of shape [%s]", name, hr_dtype_name(dtype),
                   wanted);
}

/* Heads and head_dim, from the shapes of q_scale, k_scale and k_mean. */
static hr_status read_shape(const hr_safetensors *file, hr_profile_layer *layer)
{
    const int64_t heads[] = {0, 1, 1}, channels[] = {0, 0};
    hr_tensor q, k, mean;
    HR_TRY(find_tensor(file, layer->layer, hr_profile_arrays[HR_PROFILE_Q_SCALE].suffix,
                       HR_DTYPE_F32, 3, heads, &q));
    HR_TRY(find_tensor(file, layer->layer, hr_profile_arrays[HR_PROFILE_K_SCALE].suffix,
                       HR_DTYPE_F32, 3, heads, &k));
    HR_TRY(find_tensor(file, layer->layer, hr_profile_arrays[HR_PROFILE_K_MEAN].suffix,
                       HR_DTYPE_F32, 2, channels, &mean));
    layer->num_heads = (int32_t)q.shape[0];
    layer->num_kv_heads = (int32_t)k.shape[0];
    layer->head_dim = (int32_t)mean.shape[1];
    if (layer->num_heads % layer->num_kv_heads)
        return hr_fail(HR_ERROR_FORMAT, "layer %d: %d heads is not a multiple of %d KV heads",
                       layer->layer, layer->num_heads, layer->num_kv_heads);
    return HR_OK;
}

static hr_status read_array(const hr_safetensors *file, hr_profile_layer *layer,
                            hr_profile_array_id id)
{
    const hr_profile_array *array = &hr_profile_arrays[id];
    int64_t shape[] = {hr_profile_array_rows(layer, id), array->per_channel ? layer->head_dim : 1,
                       1};
    hr_tensor tensor;
    HR_TRY(find_tensor(file, layer->layer, array->suffix, HR_DTYPE_F32, array->per_channel ? 2 : 3,
                       shape, &tensor));
    const float *values = tensor.data;
    int64_t count = hr_profile_array_size(layer, id);
    for (int64_t i = 0; i < count; i++)
        if (!(isfinite(values[i]) && values[i] >= array->least))
            return hr_fail(HR_ERROR_FORMAT, "layer %d: %s[%lld] is %.9g; it must be finite%s",
                           layer->layer, array->suffix, (long long)i, values[i],
                           array->least > 0    ? " and > 0"
                           : array->least == 0 ? " and >= 0"
                                               : "");
    HR_TRY(hr_profile_array_allocate(layer, id));
    memcpy(hr_profile_array_data(layer, id), values, (size_t)count * sizeof *values);
    return HR_OK;
}

static hr_status read_layer(const hr_safetensors *file, hr_profile_layer *layer)
{
    const int64_t one = 1;
    hr_tensor tokens;
    HR_TRY(read_shape(file, layer));
    HR_TRY(
        find_tensor(file, layer->layer, HR_PROFILE_TOKENS_SUFFIX, HR_DTYPE_I64, 1, &one, &tokens));
    layer->tokens = *(const int64_t *)tokens.data;
    if (layer->tokens < 1)
        return hr_fail(HR_ERROR_FORMAT, "layer %d: %lld tokens; there must be at least 1",
                       layer->layer, (long long)layer->tokens);
    for (hr_profile_array_id id = 0; id < HR_PROFILE_ARRAYS; id++)
        HR_TRY(read_array(file, layer, id));
    return HR_OK;
}

/* Tensor granularity means one value, repeated. */
static hr_status check_tensor_scales(const hr_profile *profile, const hr_profile_layer *layer)
{
    for (hr_operand x = HR_OPERAND_Q; x <= HR_OPERAND_V; x++) {
        if (hr_operand_recipe_of(&profile->recipe, x)->granularity != HR_GRANULARITY_TENSOR)
            continue;
        hr_profile_array_id id = x == HR_OPERAND_Q   ? HR_PROFILE_Q_SCALE
                                 : x == HR_OPERAND_K ? HR_PROFILE_K_SCALE
                                                     : HR_PROFILE_V_SCALE;
        const float *scale = hr_profile_array_data(layer, id);
        for (int64_t i = 1; i < hr_profile_array_size(layer, id); i++)
            if (!(scale[i] == scale[0]))
                return hr_fail(HR_ERROR_FORMAT,
                               "layer %d: %s has different values (%.9g, %.9g) though the recipe "
                               "has one scale a tensor",
                               layer->layer, hr_profile_arrays[id].suffix, scale[0], scale[i]);
    }
    return HR_OK;
}

/* A metadata string that must be there. */
static hr_status metadata(const hr_safetensors *file, const char *key, const char **out)
{
    *out = hr_safetensors_metadata(file, key);
    return *out ? HR_OK : hr_fail(HR_ERROR_FORMAT, "metadata %s is missing", key);
}

static hr_status check_kind(const hr_safetensors *file)
{
    const char *kind = hr_safetensors_metadata(file, "headroom.kind");
    if (!kind || strcmp(kind, "profile"))
        return hr_fail(HR_ERROR_FORMAT,
                       "not a profile: metadata headroom.kind is %s; headroom calibrate makes "
                       "profiles",
                       kind ? hr_print(kind).text : "missing");
    const char *version;
    char wanted[16];
    HR_TRY(metadata(file, "headroom.version", &version));
    snprintf(wanted, sizeof wanted, "%d", HR_PROFILE_VERSION);
    if (strcmp(version, wanted))
        return hr_fail(HR_ERROR_FORMAT, "profile version \"%s\"; this library reads version %s",
                       hr_print(version).text, wanted);
    return HR_OK;
}

static hr_status read_seed(const hr_safetensors *file, hr_profile *profile)
{
    const char *text;
    char again[32];
    HR_TRY(metadata(file, "headroom.hadamard_seed", &text));
    profile->hadamard_seed = strtoull(text, NULL, 16);
    snprintf(again, sizeof again, "0x%016" PRIx64, profile->hadamard_seed);
    if (strcmp(text, again) || profile->hadamard_seed == 0)
        return hr_fail(HR_ERROR_FORMAT,
                       "metadata headroom.hadamard_seed is \"%s\"; it must be 0x, 16 "
                       "hexadecimal digits, and not 0",
                       hr_print(text).text);
    return HR_OK;
}

/* What the profile says of the recordings it came from: all keys, or none. */
static hr_status read_source(const hr_safetensors *file, hr_profile *profile)
{
    static const char *const keys[] = {"headroom.model", "headroom.rope", "headroom.causal",
                                       "headroom.softmax_scale", "headroom.data_hash"};
    bool any = false;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        any |= hr_safetensors_metadata(file, keys[i]) != NULL;
    if (!any) return HR_OK;
    const char *causal, *hash, *unused;
    HR_TRY(metadata(file, keys[0], &unused));
    HR_TRY(metadata(file, keys[1], &unused));
    HR_TRY(metadata(file, keys[2], &causal));
    HR_TRY(metadata(file, keys[4], &hash));
    if (strcmp(causal, "true") && strcmp(causal, "false"))
        return hr_fail(HR_ERROR_FORMAT,
                       "metadata headroom.causal is \"%s\"; true and false are accepted",
                       hr_print(causal).text);
    profile->causal = !strcmp(causal, "true");
    HR_TRY(hr_metadata_softmax_scale(file, &profile->softmax_scale));
    if (!hr_hash_is_valid(hash))
        return hr_fail(HR_ERROR_FORMAT,
                       "metadata headroom.data_hash is \"%s\"; it must be 32 hexadecimal digits",
                       hr_print(hash).text);
    memcpy(profile->data_hash, hash, HR_HASH_BYTES);
    return HR_OK;
}

static hr_status read_warnings(const hr_safetensors *file, hr_profile *profile)
{
    const char *text;
    HR_TRY(metadata(file, "headroom.warnings", &text));
    errno = 0;
    json_t *array = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    hr_status status = HR_OK;
    if (errno == ENOMEM)
        status = hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate the warnings");
    else if (!json_is_array(array))
        status = hr_fail(HR_ERROR_FORMAT, "metadata headroom.warnings is not a JSON array");
    for (size_t i = 0; status == HR_OK && i < json_array_size(array); i++) {
        const char *warning = json_string_value(json_array_get(array, i));
        status = warning ? hr_profile_warn(profile, "%s", warning)
                         : hr_fail(HR_ERROR_FORMAT,
                                   "metadata headroom.warnings: entry %zu is not a string", i);
    }
    json_decref(array);
    return status;
}

static hr_status read_metadata(const hr_safetensors *file, hr_profile *profile)
{
    const char *recipe, *observer;
    hr_observer_config config;
    HR_TRY(metadata(file, "headroom.recipe", &recipe));
    HR_TRY(metadata(file, "headroom.observer", &observer));
    hr_status status = hr_recipe_parse(recipe, &profile->recipe);
    if (status != HR_OK) return hr_fail_in(HR_ERROR_FORMAT, "metadata headroom.recipe");
    status = hr_observer_parse(observer, &config);
    if (status != HR_OK) return hr_fail_in(HR_ERROR_FORMAT, "metadata headroom.observer");
    memcpy(profile->observer, config.text, sizeof profile->observer);
    HR_TRY(read_seed(file, profile));
    HR_TRY(read_source(file, profile));
    return read_warnings(file, profile);
}

static hr_status read_file(const hr_safetensors *file, hr_profile **out)
{
    HR_TRY(check_kind(file));
    int32_t *layers;
    int32_t count;
    HR_TRY(list_layers(file, &layers, &count));
    const char *model = hr_safetensors_metadata(file, "headroom.model");
    const char *rope = hr_safetensors_metadata(file, "headroom.rope");
    hr_status status = hr_profile_create(count, model ? model : "", rope ? rope : "", out);
    if (status == HR_OK) status = read_metadata(file, *out);
    for (int32_t i = 0; status == HR_OK && i < count; i++) {
        hr_profile_layer *layer = &(*out)->layers[i];
        layer->layer = layers[i];
        status = read_layer(file, layer);
        if (status == HR_OK) status = check_tensor_scales(*out, layer);
    }
    free(layers);
    return status;
}

hr_status hr_profile_read(const char *path, hr_profile **out)
{
    if (!path || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "hr_profile_read: path and out must not be NULL");
    *out = NULL;
    hr_safetensors *file;
    HR_TRY(hr_safetensors_open(path, &file));
    hr_profile *profile = NULL;
    hr_status status = read_file(file, &profile);
    if (status != HR_OK) {
        hr_profile_free(profile);
        hr_fail_in(status, "%s", path);
    }
    hr_safetensors_close(file);
    if (status == HR_OK) *out = profile;
    return status;
}
