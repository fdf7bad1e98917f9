/*
 * The output file and the report of headroom run; see run_result.h.
 */
#include "run_result.h"

#include <stdlib.h>
#include <string.h>

/* The names of what ran: of a choice, of all its parts that have heads. */
static int name_result(run_result *result)
{
    if (result->part_count == 0) {
        result->kernel = strdup(result->layers[0].kernel);
        return result->kernel ? CLI_OK : cli_fail("out of memory");
    }
    char **texts[2] = {&result->recipe, &result->kernel};
    for (int i = 0; i < 2; i++) {
        size_t size;
        FILE *stream = open_memstream(texts[i], &size);
        if (!stream) return cli_fail("out of memory");
        const char *between = "";
        for (int32_t p = 0; p < result->part_count; p++) {
            const run_part *part = &result->parts[p];
            if (!part->kernel) continue;
            fprintf(stream, "%s%s", between, i ? part->kernel : part->config.recipe.name);
            between = "; ";
        }
        if (fclose(stream) != 0) return cli_fail("out of memory");
    }
    return CLI_OK;
}

static hr_status add_outputs(hr_safetensors_writer *writer, const run_result *result)
{
    hr_status status = hr_safetensors_set_metadata(writer, "headroom.kind", "output");
    if (status == HR_OK) status = hr_safetensors_set_metadata(writer, "headroom.version", "1");
    if (status == HR_OK)
        status = hr_safetensors_set_metadata(writer, "headroom.recipe", result->recipe);
    if (status == HR_OK)
        status = hr_safetensors_set_metadata(writer, "headroom.kernel", result->kernel);
    if (status == HR_OK)
        status = hr_safetensors_set_metadata(writer, "headroom.model", result->model);
    for (int32_t i = 0; i < result->count && status == HR_OK; i++) {
        const layer_output *layer = &result->layers[i];
        int64_t shape[3] = {layer->total_q, layer->num_heads, layer->head_dim};
        hr_tensor o = hr_tensor_view(HR_DTYPE_F32, 3, shape, layer->o);
        hr_tensor lse = hr_tensor_view(HR_DTYPE_F32, 2, shape, layer->lse);
        char name[64];
        snprintf(name, sizeof name, "model.layers.%d.self_attn.o", layer->layer);
        status = hr_safetensors_add(writer, name, &o);
        snprintf(name, sizeof name, "model.layers.%d.self_attn.lse", layer->layer);
        if (status == HR_OK) status = hr_safetensors_add(writer, name, &lse);
    }
    return status;
}

int run_result_write(run_result *result)
{
    int code = name_result(result);
    if (code != CLI_OK) return code;
    hr_safetensors_writer *writer;
    if (hr_safetensors_writer_create(&writer) != HR_OK) return cli_fail_library(NULL);
    hr_status status = add_outputs(writer, result);
    if (status == HR_OK) status = hr_safetensors_write(writer, result->output);
    hr_safetensors_writer_free(writer);
    return status == HR_OK ? CLI_OK : cli_fail_library(NULL);
}

static int report_json(const run_result *result)
{
    json_t *layers = json_array();
    for (int32_t i = 0; i < result->count; i++) {
        const layer_output *layer = &result->layers[i];
        json_array_append_new(
            layers,
            json_pack("{si ss? so}", "layer", layer->layer, "kernel", layer->kernel, "error",
                      result->checked ? cli_error_object(&layer->error) : json_null()));
    }
    json_t *configs = json_array();
    for (int32_t i = 0; i < result->part_count; i++) {
        const run_part *part = &result->parts[i];
        if (part->kernel)
            json_array_append_new(configs,
                                  json_pack("{ss ss ss sI}", "id", part->config.id, "recipe",
                                            part->config.recipe.name, "kernel", part->kernel,
                                            "kv_heads", (json_int_t)part->kv_heads));
    }
    return cli_print_json(json_pack("{so ss ss so ss? so so}", "output", cli_path(result->output),
                                    "model", result->model, "recipe", result->recipe, "choice",
                                    result->choice ? cli_path(result->choice) : json_null(),
                                    "error_against",
                                    !result->checked              ? NULL
                                    : result->against_dequantized ? "ref64(dequantized inputs)"
                                                                  : "ref64(original inputs)",
                                    "layers", layers, "configs", configs));
}

static int judge(const run_result *result)
{
    if (!result->checked) return CLI_OK;
    for (int32_t i = 0; i < result->count; i++) {
        const hr_error *e = &result->layers[i].error;
        if (e->nonfinite > 0)
            return cli_fail("layer %d: %lld of %lld output elements are not finite",
                            result->layers[i].layer, (long long)e->nonfinite, (long long)e->count);
        if (!(e->rel_l2 <= result->check_max))
            return cli_fail("layer %d: relative L2 error %.3e is above --check=%g",
                            result->layers[i].layer, e->rel_l2, result->check_max);
    }
    return CLI_OK;
}

static void print_parts(const run_result *result)
{
    int width = 0;
    for (int32_t i = 0; i < result->part_count; i++) {
        const int length = (int)strlen(result->parts[i].config.id);
        if (result->parts[i].kernel && length > width) width = length;
    }
    printf("%s: %d layer%s as %s says\n", result->output, result->count, cli_s(result->count),
           result->choice);
    for (int32_t i = 0; i < result->part_count; i++) {
        const run_part *part = &result->parts[i];
        if (part->kernel)
            printf("%6lld KV head%s %-*s with %s\n", (long long)part->kv_heads,
                   cli_s(part->kv_heads), width, part->config.id, part->kernel);
    }
}

int run_result_print(const run_result *result, bool json)
{
    if (json) {
        int code = report_json(result);
        return code == CLI_OK ? judge(result) : code;
    }
    if (result->choice)
        print_parts(result);
    else
        printf("%s: %d layer%s with %s (%s)\n", result->output, result->count, cli_s(result->count),
               result->kernel, result->recipe);
    if (!result->checked) return CLI_OK;
    printf("error of O against ref64(%s inputs):\n%5s %12s %12s %12s %12s\n",
           result->against_dequantized ? "dequantized" : "original", "layer", "rel L2", "cosine",
           "RMSE", "max abs");
    for (int32_t i = 0; i < result->count; i++) {
        const hr_error *e = &result->layers[i].error;
        printf("%5d %12.3e %12.8f %12.3e %12.3e\n", result->layers[i].layer, e->rel_l2, e->cosine,
               e->rmse, e->max_abs);
    }
    return judge(result);
}

void run_result_free(run_result *result)
{
    for (int32_t i = 0; i < result->count; i++) {
        free(result->layers[i].o);
        free(result->layers[i].lse);
    }
    free(result->layers);
    free(result->parts);
    free(result->recipe);
    free(result->kernel);
    free(result->model);
}
