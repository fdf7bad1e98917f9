/*
 * Profile files, writing; the layout is in headroom/calibration.h at hr_profile_read. What a
 * calibration without hr_calibrator_set_source does not know is left out of the metadata.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "headroom/safetensors.h"
#include "metadata.h"
#include "profile.h"
#include "status_internal.h"

static hr_status add_layer(hr_safetensors_writer *writer, const hr_profile_layer *layer)
{
    char name[HR_PROFILE_NAME_BYTES];
    for (hr_profile_array_id id = 0; id < HR_PROFILE_ARRAYS; id++) {
        bool per_channel = hr_profile_arrays[id].per_channel;
        int64_t shape[] = {hr_profile_array_rows(layer, id), per_channel ? layer->head_dim : 1, 1};
        hr_tensor tensor = hr_tensor_view(HR_DTYPE_F32, per_channel ? 2 : 3, shape,
                                          hr_profile_array_data(layer, id));
        hr_profile_tensor_name(name, layer->layer, hr_profile_arrays[id].suffix);
        HR_TRY(hr_safetensors_add(writer, name, &tensor));
    }
    int64_t one = 1;
    hr_tensor tokens = hr_tensor_view(HR_DTYPE_I64, 1, &one, (int64_t *)(uintptr_t)&layer->tokens);
    hr_profile_tensor_name(name, layer->layer, HR_PROFILE_TOKENS_SUFFIX);
    return hr_safetensors_add(writer, name, &tokens);
}

static hr_status set_warnings(hr_safetensors_writer *writer, const hr_profile *profile)
{
    json_t *array = json_array();
    bool complete = array != NULL;
    for (int32_t i = 0; complete && i < profile->warning_count; i++)
        complete = json_array_append_new(array, json_string(profile->warnings[i])) == 0;
    char *text = complete ? json_dumps(array, JSON_COMPACT) : NULL;
    json_decref(array);
    if (!text) return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate the warnings");
    hr_status status = hr_safetensors_set_metadata(writer, "headroom.warnings", text);
    free(text);
    return status;
}

static hr_status set_source(hr_safetensors_writer *writer, const hr_profile *profile)
{
    HR_TRY(hr_metadata_set_softmax_scale(writer, profile->softmax_scale));
    HR_TRY(
        hr_safetensors_set_metadata(writer, "headroom.causal", profile->causal ? "true" : "false"));
    HR_TRY(hr_safetensors_set_metadata(writer, "headroom.model", profile->model));
    HR_TRY(hr_safetensors_set_metadata(writer, "headroom.rope", profile->rope));
    return hr_safetensors_set_metadata(writer, "headroom.data_hash", profile->data_hash);
}

static hr_status fill_writer(hr_safetensors_writer *writer, const hr_profile *profile)
{
    char seed[32], version[16];
    snprintf(seed, sizeof seed, "0x%016" PRIx64, profile->hadamard_seed);
    snprintf(version, sizeof version, "%d", HR_PROFILE_VERSION);
    HR_TRY(hr_safetensors_set_metadata(writer, "headroom.kind", "profile"));
    HR_TRY(hr_safetensors_set_metadata(writer, "headroom.version", version));
    HR_TRY(hr_safetensors_set_metadata(writer, "headroom.recipe", profile->recipe.name));
    HR_TRY(hr_safetensors_set_metadata(writer, "headroom.observer", profile->observer));
    HR_TRY(hr_safetensors_set_metadata(writer, "headroom.hadamard_seed", seed));
    HR_TRY(set_warnings(writer, profile));
    if (profile->softmax_scale > 0) HR_TRY(set_source(writer, profile));
    for (int32_t i = 0; i < profile->layer_count; i++)
        HR_TRY(add_layer(writer, &profile->layers[i]));
    return HR_OK;
}

hr_status hr_profile_write(const hr_profile *profile, const char *path)
{
    if (!profile || !path)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "hr_profile_write: profile and path must not be "
                                                  "NULL");
    hr_safetensors_writer *writer;
    HR_TRY(hr_safetensors_writer_create(&writer));
    hr_status status = fill_writer(writer, profile);
    if (status == HR_OK) status = hr_safetensors_write(writer, path);
    hr_safetensors_writer_free(writer);
    return status;
}
