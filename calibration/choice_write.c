/*
 * Writes a choice: its profiles, then the JSON that names them, a layer a line.
 */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "choice_internal.h"
#include "headroom/safetensors.h" /* hr_file_write_atomic */
#include "status_internal.h"

enum { PATH_BYTES = 4096 };

/*
 * STEM-ID.safetensors, where STEM is the JSON's path up to ".json" and all but letters, digits, '.'
 * and '_' of the id becomes '-': ids have one '/', so two that differ stay apart.
 */
static hr_status profile_path(const char *path, const char *id, char out[PATH_BYTES])
{
    size_t stem = strlen(path);
    if (stem > 5 && strcmp(path + stem - 5, ".json") == 0) stem -= 5;
    const int used = snprintf(out, PATH_BYTES, "%.*s-%s.safetensors", (int)stem, path, id);
    if (used < 0 || used >= PATH_BYTES)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s: the path is too long", path);
    for (char *at = out + stem + 1; *at; at++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._", *at))
            *at = '-';
    return HR_OK;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static json_t *config_object(const hr_choice_config *config, const char *path)
{
    char profile[PATH_BYTES];
    if (config->profile && profile_path(path, config->id, profile) != HR_OK) return NULL;
    return json_pack("{ss ss ss?}", "id", config->id, "recipe", config->recipe.name, "profile",
                     config->profile ? base_name(profile) : NULL);
}

/* NULL where memory runs out, also for one entry of a list. */
static json_t *layer_object(const hr_choice *choice, const hr_choice_layer *layer)
{
    json_t *configs = json_array(), *errors = json_array();
    bool whole = true;
    for (int32_t h = 0; h < layer->num_kv_heads; h++) {
        const double error = layer->rel_l2[h];
        const char *id = choice->configs[layer->config[h]].id;
        whole = json_array_append_new(configs, json_string(id)) == 0 && whole;
        whole =
            json_array_append_new(errors, isfinite(error) ? json_real(error) : json_null()) == 0 &&
            whole;
    }
    json_t *object = json_pack("{si si si si so so}", "layer", layer->layer, "num_heads",
                               layer->num_heads, "num_kv_heads", layer->num_kv_heads, "head_dim",
                               layer->head_dim, "configs", configs, "rel_l2", errors);
    if (whole) return object;
    json_decref(object);
    return NULL;
}

/* One line of a list; false when the object is NULL or cannot be printed. */
static bool put(FILE *stream, json_t *object, const char *before)
{
    fputs(before, stream);
    const bool done =
        object && json_dumpf(object, stream, JSON_ENCODE_ANY | JSON_REAL_PRECISION(7)) == 0;
    json_decref(object);
    return done;
}

static bool put_document(FILE *stream, const hr_choice *choice, const char *path)
{
    json_t *model = json_string(choice->model);
    fprintf(stream, "{\"schema\": \"headroom-choice\", \"schema_version\": %d,\n\"model\": ",
            HR_CHOICE_VERSION);
    bool good = model && json_dumpf(model, stream, JSON_ENCODE_ANY) == 0;
    json_decref(model);
    good = good && put(stream, json_real(choice->budget), ",\n\"budget\": ");
    good = good && put(stream, json_real(choice->kv_bits), ",\n\"kv_bits\": ");
    fputs(",\n\"configs\": [", stream);
    for (int32_t c = 0; good && c < choice->config_count; c++)
        good = put(stream, config_object(&choice->configs[c], path), c ? ",\n  " : "\n  ");
    fputs("],\n\"layers\": [", stream);
    for (int32_t l = 0; good && l < choice->layer_count; l++)
        good = put(stream, layer_object(choice, &choice->layers[l]), l ? ",\n  " : "\n  ");
    fputs("]}\n", stream);
    return good;
}

hr_status hr_choice_write(const hr_choice *choice, const char *path)
{
    if (!choice || !path)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "choice and path must not be NULL");
    for (int32_t c = 0; c < choice->config_count; c++) {
        char profile[PATH_BYTES];
        if (!choice->configs[c].profile) continue;
        HR_TRY(profile_path(path, choice->configs[c].id, profile));
        HR_TRY(hr_profile_write(choice->configs[c].profile, profile));
    }
    char *text = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&text, &size);
    bool good = stream && put_document(stream, choice, path) && !ferror(stream);
    if (stream && fclose(stream) != 0) good = false;
    hr_status status =
        good ? hr_file_write_atomic(path, text, size)
             : hr_fail(HR_ERROR_OUT_OF_MEMORY, "out of memory for the text of %s", path);
    free(text);
    return status;
}
