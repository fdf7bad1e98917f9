/*
 * Reads a choice and the profiles it names, which lie beside it. As hostile as any file: sizes,
 * types, names and numbers are checked before they are used.
 */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "choice_internal.h"
#include "memory.h"
#include "printable.h"
#include "status_internal.h"

enum { MAX_BYTES = 1 << 24, MAX_HEADS = 65536, PATH_BYTES = 4096 };

static hr_status load(const char *path, json_t **out)
{
    struct stat status;
    if (stat(path, &status) != 0) return hr_fail(HR_ERROR_IO, "cannot open: %s", strerror(errno));
    if (!S_ISREG(status.st_mode)) return hr_fail(HR_ERROR_IO, "is not a regular file");
    if (status.st_size > MAX_BYTES)
        return hr_fail(HR_ERROR_FORMAT, "has %lld bytes; at most %d are accepted",
                       (long long)status.st_size, MAX_BYTES);
    json_error_t error = {.text = ""};
    *out = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (*out) return HR_OK;
    return hr_fail(HR_ERROR_FORMAT, "is not a choice in JSON: %s, in line %d",
                   hr_print(error.text).text, error.line);
}

/* "choice-fp8-mse.safetensors" in the folder of the choice's path. */
static hr_status read_profile(const char *path, const char *name, hr_profile **out)
{
    const char *slash = strrchr(path, '/');
    char file[PATH_BYTES];
    if (!*name || strchr(name, '/'))
        return hr_fail(HR_ERROR_FORMAT,
                       "profile is \"%s\"; the name of a file beside the choice is accepted",
                       hr_print(name).text);
    const int used =
        snprintf(file, sizeof file, "%.*s%s", slash ? (int)(slash - path) + 1 : 0, path, name);
    if (used < 0 || used >= (int)sizeof file)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the path of its profile is too long");
    return hr_profile_read(file, out);
}

static hr_status read_config(const char *path, json_t *object, hr_choice *choice, int32_t index)
{
    hr_choice_config *config = &choice->configs[index];
    const char *id, *recipe, *profile = NULL;
    json_error_t error;
    json_t *profile_value = NULL;
    if (json_unpack_ex(object, &error, 0, "{s:s, s:s, s?o !}", "id", &id, "recipe", &recipe,
                       "profile", &profile_value) != 0)
        return hr_fail(HR_ERROR_FORMAT,
                       "configs[%d]: %s; id, recipe and profile (or null) are accepted", index,
                       hr_print(error.text).text);
    if (profile_value && !json_is_null(profile_value)) {
        profile = json_string_value(profile_value);
        if (!profile) return hr_fail(HR_ERROR_FORMAT, "configs[%d]: profile is no text", index);
    }
    if (strlen(id) >= sizeof config->id)
        return hr_fail(HR_ERROR_FORMAT, "configs[%d]: its id is too long", index);
    strcpy(config->id, id);
    for (int32_t i = 0; i < index; i++)
        if (strcmp(choice->configs[i].id, id) == 0)
            return hr_fail(HR_ERROR_FORMAT, "configs[%d] and [%d] are both \"%s\"", i, index,
                           hr_print(id).text);
    hr_status status = hr_recipe_parse(recipe, &config->recipe);
    if (status == HR_OK && profile) status = read_profile(path, profile, &choice->owned[index]);
    if (status == HR_OK && !profile && hr_recipe_needs_profile(&config->recipe))
        status = hr_fail(HR_ERROR_FORMAT, "recipe %s has static scales and needs a profile",
                         config->recipe.name);
    config->profile = choice->owned[index];
    return status == HR_OK ? HR_OK : hr_fail_in(status, "configs[%d]", index);
}

static hr_status find_config(const hr_choice *choice, json_t *value, int32_t head, int32_t *out)
{
    const char *id = json_string_value(value);
    for (int32_t c = 0; id && c < choice->config_count; c++)
        if (strcmp(choice->configs[c].id, id) == 0) return *out = c, HR_OK;
    return hr_fail(HR_ERROR_FORMAT, "KV head %d has config \"%s\", which is none of configs", head,
                   hr_print(id).text);
}

static hr_status read_heads(const hr_choice *choice, json_t *configs, json_t *errors,
                            hr_choice_layer *layer)
{
    HR_TRY(hr_choice_allocate_heads(layer));
    if (!json_is_array(configs) || json_array_size(configs) != (size_t)layer->num_kv_heads)
        return hr_fail(HR_ERROR_FORMAT, "configs is not a list of %d, one for each KV head",
                       layer->num_kv_heads);
    if (errors && (!json_is_array(errors) || json_array_size(errors) != json_array_size(configs)))
        return hr_fail(HR_ERROR_FORMAT, "rel_l2 is not a list of %d, one for each KV head",
                       layer->num_kv_heads);
    for (int32_t h = 0; h < layer->num_kv_heads; h++) {
        HR_TRY(find_config(choice, json_array_get(configs, (size_t)h), h, &layer->config[h]));
        const json_t *error = json_array_get(errors, (size_t)h);
        if (error && !json_is_number(error) && !json_is_null(error))
            return hr_fail(HR_ERROR_FORMAT, "rel_l2[%d] is neither a number nor null", h);
        layer->rel_l2[h] = json_is_number(error) ? json_number_value(error) : NAN;
    }
    return HR_OK;
}

static hr_status read_layer(const hr_choice *choice, json_t *object, int32_t index)
{
    hr_choice_layer *layer = &choice->layers[index];
    json_t *configs, *errors = NULL;
    json_error_t error;
    if (json_unpack_ex(object, &error, 0, "{s:i, s:i, s:i, s:i, s:o, s?o !}", "layer",
                       &layer->layer, "num_heads", &layer->num_heads, "num_kv_heads",
                       &layer->num_kv_heads, "head_dim", &layer->head_dim, "configs", &configs,
                       "rel_l2", &errors) != 0)
        return hr_fail(HR_ERROR_FORMAT, "layers[%d]: %s", index, hr_print(error.text).text);
    const int32_t before = index ? choice->layers[index - 1].layer : -1;
    if (layer->layer <= before)
        return hr_fail(HR_ERROR_FORMAT,
                       "layers[%d] is layer %d after %d; ascending numbers are accepted", index,
                       layer->layer, before);
    if (layer->num_kv_heads < 1 || layer->num_heads > MAX_HEADS ||
        layer->num_heads < layer->num_kv_heads || layer->num_heads % layer->num_kv_heads != 0)
        return hr_fail(HR_ERROR_FORMAT, "layer %d: %d heads and %d KV heads are not a layer's",
                       layer->layer, layer->num_heads, layer->num_kv_heads);
    hr_status status = read_heads(choice, configs, errors, layer);
    return status == HR_OK ? HR_OK : hr_fail_in(status, "layer %d", layer->layer);
}

static hr_status parse(const char *path, json_t *document, hr_choice **out)
{
    const char *schema = json_string_value(json_object_get(document, "schema"));
    const json_t *version = json_object_get(document, "schema_version");
    if (!schema || strcmp(schema, "headroom-choice") != 0)
        return hr_fail(HR_ERROR_FORMAT, "is not a choice: its schema is not \"headroom-choice\"");
    if (!json_is_integer(version) || json_integer_value(version) != HR_CHOICE_VERSION)
        return hr_fail(HR_ERROR_FORMAT, "schema_version is not %d", HR_CHOICE_VERSION);
    const char *model = "";
    double budget = NAN, bits = NAN;
    json_t *configs, *layers;
    json_error_t error;
    if (json_unpack_ex(document, &error, 0, "{s:s, s:i, s?s, s?F, s?F, s:o, s:o !}", "schema",
                       &schema, "schema_version", &(int){0}, "model", &model, "budget", &budget,
                       "kv_bits", &bits, "configs", &configs, "layers", &layers) != 0)
        return hr_fail(HR_ERROR_FORMAT, "%s", hr_print(error.text).text);
    if (!json_is_array(configs) || !json_is_array(layers) || json_array_size(configs) == 0 ||
        json_array_size(layers) == 0)
        return hr_fail(HR_ERROR_FORMAT, "configs and layers must be lists that are not empty");
    HR_TRY(hr_choice_allocate(model, (int32_t)json_array_size(configs),
                              (int32_t)json_array_size(layers), out));
    (*out)->budget = budget;
    (*out)->kv_bits = bits;
    for (int32_t c = 0; c < (*out)->config_count; c++)
        HR_TRY(read_config(path, json_array_get(configs, (size_t)c), *out, c));
    for (int32_t l = 0; l < (*out)->layer_count; l++)
        HR_TRY(read_layer(*out, json_array_get(layers, (size_t)l), l));
    return HR_OK;
}

hr_status hr_choice_read(const char *path, hr_choice **out)
{
    if (!path || !out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "path and out must not be NULL");
    *out = NULL;
    json_t *document = NULL;
    hr_status status = load(path, &document);
    if (status == HR_OK) status = parse(path, document, out);
    json_decref(document);
    if (status == HR_OK) return HR_OK;
    hr_choice_free(*out);
    *out = NULL;
    return hr_fail_in(status, "%s", path);
}
