/*
 * A calibrator's life: options, layers, passes. Observing is in calibrator_observe.c, merging in
 * calibrator_merge.c, the profile in calibrator_finish.c.
 */
#include "calibrator.h"

#include <stdlib.h>

#include "memory.h"
#include "status_internal.h"

const char *hr_operand_letter(hr_operand operand)
{
    static const char *const letters[HR_OPERANDS] = {"q", "k", "v"};
    return letters[operand];
}

const hr_operand_recipe *hr_operand_recipe_of(const hr_recipe *recipe, hr_operand operand)
{
    const hr_operand_recipe *operands[HR_OPERANDS] = {&recipe->q, &recipe->k, &recipe->v};
    return operands[operand];
}

int32_t hr_calibrator_layer_heads(const hr_calibrator_layer *layer, hr_operand operand)
{
    return operand == HR_OPERAND_Q ? layer->num_heads : layer->num_kv_heads;
}

static bool needs_second_pass(const hr_recipe *recipe)
{
    return (recipe->k.transform & HR_TRANSFORM_MEAN) && !recipe->k.dynamic &&
           recipe->k.granularity != HR_GRANULARITY_NONE;
}

hr_status hr_calibrator_create(const hr_calibrator_options *options, hr_calibrator **out)
{
    if (!options || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "hr_calibrator_create: options and out must not "
                                                  "be NULL");
    *out = NULL;
    hr_recipe recipe = options->recipe;
    hr_observer_config observer;
    HR_TRY(hr_recipe_normalize(&recipe));
    HR_TRY(hr_observer_parse(options->observer, &observer));
    if (options->min_tokens < 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "min_tokens is %lld; it must be 0 or more",
                       (long long)options->min_tokens);

    hr_calibrator *calibrator = hr_alloc(1, sizeof *calibrator);
    if (!calibrator) return HR_ERROR_OUT_OF_MEMORY;
    calibrator->recipe = recipe;
    calibrator->observer = observer;
    calibrator->hadamard_seed =
        options->hadamard_seed ? options->hadamard_seed : HR_HADAMARD_DEFAULT_SEED;
    calibrator->min_tokens = options->min_tokens ? options->min_tokens : HR_MIN_TOKENS_DEFAULT;
    calibrator->passes = needs_second_pass(&recipe) ? 2 : 1;
    calibrator->pass = 1;
    *out = calibrator;
    return HR_OK;
}

void hr_calibrator_free(hr_calibrator *calibrator)
{
    if (!calibrator) return;
    for (int32_t i = 0; i < calibrator->layer_count; i++)
        hr_calibrator_layer_free(calibrator, calibrator->layers[i]);
    free(calibrator->layers);
    hr_source_free(&calibrator->source);
    free(calibrator);
}

int hr_calibrator_passes(const hr_calibrator *calibrator)
{
    return calibrator->passes;
}

hr_status hr_calibrator_next_pass(hr_calibrator *calibrator)
{
    if (!calibrator) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the calibrator is NULL");
    if (calibrator->pass == calibrator->passes)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "recipe \"%s\" takes %d pass(es) over the data, and this is pass %d",
                       calibrator->recipe.name, calibrator->passes, calibrator->pass);
    for (int32_t i = 0; i < calibrator->layer_count; i++)
        hr_calibrator_layer_mean(calibrator->layers[i], calibrator->layers[i]->k_mean);
    calibrator->pass++;
    return HR_OK;
}

hr_status hr_calibrator_set_source(hr_calibrator *calibrator, const hr_recording_info *source)
{
    if (!calibrator || !source)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "hr_calibrator_set_source: the calibrator and "
                                                  "the source must not be NULL");
    if (calibrator->pass == 1) return hr_source_add(&calibrator->source, source);
    HR_TRY(hr_source_check(&calibrator->source, source));
    if (!hr_source_has(&calibrator->source, source->data_hash))
        return hr_fail(HR_ERROR_MISMATCH,
                       "%s: its data (hash %s) was not seen in the first pass; feed the same "
                       "recordings in both passes",
                       source->path, source->data_hash);
    return HR_OK;
}

hr_calibrator_layer *hr_calibrator_find(const hr_calibrator *calibrator, int32_t layer)
{
    for (int32_t i = 0; i < calibrator->layer_count; i++)
        if (calibrator->layers[i]->layer == layer) return calibrator->layers[i];
    return NULL;
}

hr_status hr_calibrator_layer_create(const hr_calibrator *calibrator, int32_t number,
                                     int32_t num_heads, int32_t num_kv_heads, int32_t head_dim,
                                     hr_calibrator_layer **out)
{
    hr_calibrator_layer *layer = hr_alloc(1, sizeof *layer);
    if (!layer) return HR_ERROR_OUT_OF_MEMORY;
    layer->layer = number;
    layer->num_heads = num_heads;
    layer->num_kv_heads = num_kv_heads;
    layer->head_dim = head_dim;
    size_t dim = (size_t)head_dim;
    size_t kv = (size_t)num_kv_heads * dim;
    layer->k_sum = hr_alloc(kv, sizeof(double));
    layer->k_sum_error = hr_alloc(kv, sizeof(double));
    layer->k_mean = hr_alloc(kv, sizeof(float));
    bool complete = layer->k_sum && layer->k_sum_error && layer->k_mean;
    for (hr_operand x = HR_OPERAND_Q; complete && x <= HR_OPERAND_V; x++) {
        int32_t heads = hr_calibrator_layer_heads(layer, x);
        layer->amax[x] = hr_alloc((size_t)heads * dim, sizeof(float));
        layer->observer[x] = hr_alloc((size_t)heads, sizeof(void *));
        complete = layer->amax[x] && layer->observer[x];
        for (int32_t head = 0; complete && head < heads; head++) {
            layer->observer[x][head] = calibrator->observer.type->create();
            complete = layer->observer[x][head] != NULL;
        }
    }
    if (!complete) {
        hr_calibrator_layer_free(calibrator, layer);
        return HR_ERROR_OUT_OF_MEMORY;
    }
    *out = layer;
    return HR_OK;
}

void hr_calibrator_layer_free(const hr_calibrator *calibrator, hr_calibrator_layer *layer)
{
    if (!layer) return;
    for (hr_operand x = HR_OPERAND_Q; x <= HR_OPERAND_V; x++) {
        int32_t heads = hr_calibrator_layer_heads(layer, x);
        for (int32_t head = 0; layer->observer[x] && head < heads; head++)
            if (layer->observer[x][head])
                calibrator->observer.type->release(layer->observer[x][head]);
        free(layer->observer[x]);
        free(layer->amax[x]);
    }
    free(layer->k_sum);
    free(layer->k_sum_error);
    free(layer->k_mean);
    free(layer);
}

hr_status hr_calibrator_reserve(hr_calibrator *calibrator, int32_t more)
{
    int32_t needed;
    if (__builtin_add_overflow(calibrator->layer_count, more, &needed))
        return hr_fail(HR_ERROR_OUT_OF_MEMORY, "too many layers");
    if (needed <= calibrator->layer_capacity) return HR_OK;
    int32_t capacity = needed < 16 ? 16 : needed + needed / 2;
    void *layers = realloc(calibrator->layers, (size_t)capacity * sizeof *calibrator->layers);
    if (!layers) return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate %d layers", capacity);
    calibrator->layers = layers;
    calibrator->layer_capacity = capacity;
    return HR_OK;
}

void hr_calibrator_insert(hr_calibrator *calibrator, hr_calibrator_layer *layer)
{
    int32_t i = calibrator->layer_count++;
    for (; i > 0 && calibrator->layers[i - 1]->layer > layer->layer; i--)
        calibrator->layers[i] = calibrator->layers[i - 1];
    calibrator->layers[i] = layer;
}

void hr_calibrator_layer_mean(const hr_calibrator_layer *layer, float *mean)
{
    int64_t count = (int64_t)layer->num_kv_heads * layer->head_dim;
    for (int64_t i = 0; i < count; i++)
        mean[i] = layer->tokens
                      ? (float)((layer->k_sum[i] + layer->k_sum_error[i]) / (double)layer->tokens)
                      : 0;
}
