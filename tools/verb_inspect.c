/*
 * headroom inspect FILE: what kind of file it is, its metadata and its tensors.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"

typedef struct inspect_arguments {
    cli_common common;
    const char *file;
} inspect_arguments;

static error_t parse(int key, char *text, struct argp_state *state)
{
    inspect_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        return cli_child_input(state, &arguments->common);
    case ARGP_KEY_ARG:
        if (state->arg_num > 0) cli_bad_argument("takes one file, but also got \"%s\"", text);
        arguments->file = text;
        return 0;
    case ARGP_KEY_END:
        if (!arguments->file) cli_bad_argument("FILE is missing");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* True for a tensor of a layer outside --layers; tensors of no layer are always shown. */
static bool left_out(const cli_common *common, const char *name)
{
    int layer;
    if (sscanf(name, "model.layers.%d.", &layer) != 1) return false;
    return layer < common->first || layer > common->last;
}

static json_t *tensor_object(const char *name, const hr_tensor *tensor)
{
    json_t *shape = json_array();
    for (int i = 0; i < tensor->ndim; i++)
        json_array_append_new(shape, json_integer(tensor->shape[i]));
    return json_pack("{ss ss so}", "name", name, "dtype", hr_dtype_name(tensor->dtype), "shape",
                     shape);
}

static int print_document(const inspect_arguments *arguments, const hr_safetensors *file,
                          const char *hash)
{
    json_t *metadata = json_object(), *tensors = json_array();
    const char *key;
    for (int64_t i = 0; (key = hr_safetensors_metadata_key(file, i)); i++)
        json_object_set_new(metadata, key, json_string(hr_safetensors_metadata(file, key)));
    for (int64_t i = 0; i < hr_safetensors_count(file); i++) {
        hr_tensor tensor = hr_safetensors_tensor(file, i);
        const char *name = hr_safetensors_name(file, i);
        if (!left_out(&arguments->common, name))
            json_array_append_new(tensors, tensor_object(name, &tensor));
    }
    return cli_print_json(json_pack("{so so so ss}", "file", cli_path(arguments->file), "metadata",
                                    metadata, "tensors", tensors, "data_hash", hash));
}

/* Files are not trusted: their text must not reach the terminal as control sequences. */
static void print_column(const char *text, size_t width)
{
    cli_put_text(stdout, text);
    for (size_t used = strlen(text); used < width; used++)
        putchar(' ');
}

static void print_pair(const char *key, const char *value)
{
    printf("  ");
    print_column(key, 22);
    putchar(' ');
    cli_put_text(stdout, value);
    putchar('\n');
}

static void print_text(const inspect_arguments *arguments, const hr_safetensors *file,
                       const char *hash)
{
    const char *kind = hr_safetensors_metadata(file, "headroom.kind");
    cli_put_text(stdout, arguments->file);
    printf(": ");
    cli_put_text(stdout, kind ? kind : "a safetensors file of no kind");
    const long long count = hr_safetensors_count(file);
    printf(", %lld tensor%s\n", count, cli_s(count));
    const char *key;
    for (int64_t i = 0; (key = hr_safetensors_metadata_key(file, i)); i++)
        if (strcmp(key, "headroom.kind") != 0) print_pair(key, hr_safetensors_metadata(file, key));
    print_pair("data (xxh3-128)", hash);
    for (int64_t i = 0; i < hr_safetensors_count(file); i++) {
        hr_tensor tensor = hr_safetensors_tensor(file, i);
        const char *name = hr_safetensors_name(file, i);
        if (left_out(&arguments->common, name)) continue;
        char shape[96] = "";
        size_t used = 0;
        for (int d = 0; d < tensor.ndim; d++)
            used += (size_t)snprintf(shape + used, sizeof shape - used, "%s%lld", d ? ", " : "",
                                     (long long)tensor.shape[d]);
        double bytes = (double)hr_tensor_size(&tensor) * hr_dtype_bits(tensor.dtype) / 8;
        printf("  ");
        print_column(name, 44);
        printf(" %-5s [%s]  %s\n", hr_dtype_name(tensor.dtype), shape, cli_bytes(bytes));
    }
}

/* A file that says it is Headroom's is validated by the reader of its kind. */
static int validate(const char *path, const char *kind)
{
    hr_status status = HR_OK;
    if (kind && strcmp(kind, "recording") == 0) {
        hr_recording *recording;
        status = hr_recording_open(path, &recording);
        if (status == HR_OK) hr_recording_close(recording);
    } else if (kind && strcmp(kind, "profile") == 0) {
        hr_profile *profile;
        status = hr_profile_read(path, &profile);
        if (status == HR_OK) hr_profile_free(profile);
    } else if (kind && strcmp(kind, "packed") == 0) {
        hr_packed_file *packed;
        status = hr_packed_read(path, &packed);
        if (status == HR_OK) hr_packed_file_free(packed);
    }
    return status == HR_OK ? CLI_OK : cli_fail_library(NULL);
}

/* How many KV heads have a config. */
static int64_t heads_of(const hr_choice *choice, int32_t config)
{
    int64_t count = 0;
    for (int32_t l = 0; l < choice->layer_count; l++)
        for (int32_t h = 0; h < choice->layers[l].num_kv_heads; h++)
            count += choice->layers[l].config[h] == config;
    return count;
}

static int inspect_choice(const inspect_arguments *arguments)
{
    hr_choice *choice;
    if (hr_choice_read(arguments->file, &choice) != HR_OK) return cli_fail_library(NULL);
    json_t *configs = json_array();
    if (!arguments->common.json) {
        cli_put_text(stdout, arguments->file);
        printf(": choice, %d layer%s\n", choice->layer_count, cli_s(choice->layer_count));
        print_pair("model", choice->model);
        if (isfinite(choice->budget)) printf("  %-22s %g\n", "budget", choice->budget);
        if (isfinite(choice->kv_bits))
            printf("  %-22s %.2f\n", "K and V, mean bits", choice->kv_bits);
    }
    for (int32_t c = 0; c < choice->config_count; c++) {
        const hr_choice_config *config = &choice->configs[c];
        const long long heads = heads_of(choice, c);
        if (arguments->common.json) {
            json_array_append_new(configs,
                                  json_pack("{ss ss sI}", "id", config->id, "recipe",
                                            config->recipe.name, "kv_heads", (json_int_t)heads));
            continue;
        }
        printf("  ");
        print_column(config->id, 44);
        printf(" %lld KV head%s\n", heads, cli_s(heads));
    }
    const int code =
        arguments->common.json
            ? cli_print_json(json_pack(
                  "{so ss si so so so}", "file", cli_path(arguments->file), "model", choice->model,
                  "layers", choice->layer_count, "budget", cli_figure(choice->budget), "kv_bits",
                  cli_figure(choice->kv_bits), "configs", json_incref(configs)))
            : CLI_OK;
    json_decref(configs);
    hr_choice_free(choice);
    return code;
}

int verb_inspect(int argc, char **argv)
{
    static const struct argp_child children[] = {{&cli_common_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        .parser = parse,
        .args_doc = "FILE",
        .doc = "Say what a file is, validate it as what it says it is, and list its metadata and "
               "tensors; of a choice (.json), how many KV heads have which recipe.\v"
               "Example: headroom inspect data/minilm.safetensors --layers 0",
        .children = children,
    };
    inspect_arguments arguments = {.common = cli_common_defaults()};
    cli_parse(&argp, argc, argv, &arguments);

    const size_t length = strlen(arguments.file);
    if (length > 5 && strcmp(arguments.file + length - 5, ".json") == 0)
        return inspect_choice(&arguments);
    hr_safetensors *file;
    if (hr_safetensors_open(arguments.file, &file) != HR_OK) return cli_fail_library(NULL);
    int code = validate(arguments.file, hr_safetensors_metadata(file, "headroom.kind"));
    char hash[33];
    hr_safetensors_hash(file, hash);
    if (code == CLI_OK && arguments.common.json)
        code = print_document(&arguments, file, hash);
    else if (code == CLI_OK)
        print_text(&arguments, file, hash);
    hr_safetensors_close(file);
    return code;
}
