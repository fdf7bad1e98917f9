/*
 * headroom run FILE -o OUT: attention over a recording (packed on the way) or over a packed file.
 * Writes O and LSE of every layer; --check prints the error against the FP64 reference, and
 * --check=MAX fails, after O is written, where a layer's is larger.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layer_input.h"
#include "mask_option.h"

typedef struct run_arguments {
    cli_common common;
    cli_mask mask;
    cli_files files;
    hr_device device;
    bool check;
    double check_max; /* of rel_l2; infinite: any */
} run_arguments;

enum { KEY_DEVICE = 256 };

static const struct argp_option options[] = {
    {"output", 'o', "OUT", 0, "The file to write O and LSE to (required)", 0},
    {"profile", 'p', "PROFILE", 0, "Profile with the static scales", 0},
    {"recipe", 'r', "RECIPE", 0, "Recipe (default: the profile's)", 0},
    {"kernel", 'k', "NAME", 0,
     "Run this kernel (default: the best one; headroom kernels lists them)", 0},
    {"check", 'c', "MAX", OPTION_ARG_OPTIONAL,
     "Print the error against the FP64 reference; fail when a layer's relative L2 is above MAX", 0},
    CLI_DEVICE_OPTION(KEY_DEVICE),
    {0},
};

static error_t parse(int key, char *text, struct argp_state *state)
{
    run_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[1] = &arguments->mask;
        return cli_child_input(state, &arguments->common);
    case 'c':
        arguments->check = true;
        if (text) arguments->check_max = cli_relative_error("--check", text);
        return 0;
    case KEY_DEVICE:
        arguments->device = cli_parse_device(text);
        return 0;
    default:
        return cli_parse_files(key, text, state, &arguments->files);
    }
}

/* One layer's result, kept until the file is written. */
typedef struct layer_output {
    int32_t layer, num_heads, head_dim;
    int64_t total_q;
    const char *kernel;
    float *o, *lse;
    hr_error error; /* with --check */
} layer_output;

typedef struct run_result {
    layer_output *layers;
    int32_t count;
    char recipe[HR_RECIPE_NAME_BYTES], *model;
    bool against_dequantized; /* a packed file has no originals: e_kernel, not e_total */
} run_result;

/* Compares with the FP64 reference on q, k, v: the recording's, or what the codes stand for. */
static int check_layer(const hr_attention_problem *problem, const hr_tensor *q, const hr_tensor *k,
                       const hr_tensor *v, layer_output *out)
{
    size_t elements = (size_t)out->total_q * (size_t)out->num_heads * (size_t)out->head_dim;
    double *reference = calloc(elements, sizeof *reference);
    if (!reference) return cli_fail("out of memory for the FP64 reference");
    int code = CLI_OK;
    if (hr_reference_attention(problem, q, k, v, reference, NULL) != HR_OK)
        code = cli_fail_library(NULL);
    else
        hr_error_measure(out->o, out->head_dim, reference, out->head_dim,
                         out->total_q * out->num_heads, out->head_dim, &out->error);
    free(reference);
    return code;
}

static int check_packed(const hr_attention_problem *problem, const hr_packed_layer *packed,
                        layer_output *out)
{
    const hr_packed *operands[3] = {&packed->q, &packed->k, &packed->v};
    hr_tensor views[3];
    float *values[3] = {NULL, NULL, NULL};
    int code = CLI_OK;
    for (int i = 0; i < 3 && code == CLI_OK; i++) {
        const hr_packed *p = operands[i];
        int64_t shape[3] = {p->total_tokens, p->num_heads, p->head_dim};
        values[i] = calloc((size_t)(shape[0] * shape[1] * shape[2]), sizeof(float));
        views[i] = hr_tensor_view(HR_DTYPE_F32, 3, shape, values[i]);
        if (!values[i])
            code = cli_fail("out of memory for the dequantized operands");
        else if (hr_unpack(p, values[i]) != HR_OK)
            code = cli_fail_library(NULL);
    }
    if (code == CLI_OK) code = check_layer(problem, &views[0], &views[1], &views[2], out);
    for (int i = 0; i < 3; i++)
        free(values[i]);
    return code;
}

static int make_plan(const run_arguments *arguments, const hr_attention_problem *problem,
                     const hr_recipe *recipe, hr_plan **plan)
{
    hr_plan_options plan_options = {.kernel = arguments->files.kernel,
                                    .threads = arguments->common.threads,
                                    .device = arguments->device};
    if (hr_plan_create(problem, recipe, &plan_options, plan) != HR_OK)
        return cli_fail_library(NULL);
    return CLI_OK;
}

static int run_plan(hr_plan *plan, const hr_packed_layer *packed, layer_output *out)
{
    int64_t shape[3] = {packed->q.total_tokens, packed->q.num_heads, packed->q.head_dim};
    out->total_q = shape[0];
    out->num_heads = (int32_t)shape[1];
    out->head_dim = (int32_t)shape[2];
    out->kernel = hr_plan_kernel(plan)->name;
    out->o = calloc((size_t)(shape[0] * shape[1] * shape[2]), sizeof *out->o);
    out->lse = calloc((size_t)(shape[0] * shape[1]), sizeof *out->lse);
    if (!out->o || !out->lse) return cli_fail("out of memory for the output");
    hr_device_run *run;
    hr_status status = hr_device_run_create(plan, packed, &run);
    if (status == HR_OK) status = hr_device_run_start(run);
    if (status == HR_OK) status = hr_device_run_fetch(run, out->o, out->lse);
    hr_device_run_free(run);
    return status == HR_OK ? CLI_OK : cli_fail_library(NULL);
}

static int run_recording_layer(const run_arguments *arguments, const layer_input *input,
                               int32_t index, layer_output *out)
{
    hr_recording_layer layer;
    hr_attention_problem problem;
    hr_plan *plan = NULL;
    hr_packed_layer packed = {0};
    hr_block_mask blocks = {0};
    int code = layer_input_get(input, index, &layer, &problem);
    if (code == CLI_OK) code = cli_mask_apply(&arguments->mask, &problem, &blocks);
    if (code == CLI_OK) code = make_plan(arguments, &problem, &input->recipe, &plan);
    if (code == CLI_OK) {
        hr_layer_layouts layouts = hr_plan_layouts(plan);
        code = layer_input_pack(input, &layer, &layouts, &packed);
    }
    if (code == CLI_OK) code = run_plan(plan, &packed, out);
    if (code == CLI_OK && arguments->check)
        code = check_layer(&problem, &layer.q, &layer.k, &layer.v, out);
    out->layer = input->layers[index];
    hr_block_mask_free(&blocks);
    hr_packed_layer_free(&packed);
    hr_plan_free(plan);
    return code;
}

static int run_recording(const run_arguments *arguments, run_result *result)
{
    layer_input input;
    int code = layer_input_open(&input, &arguments->common, arguments->files.input,
                                arguments->files.profile, arguments->files.recipe);
    if (code == CLI_OK) {
        snprintf(result->recipe, sizeof result->recipe, "%s", input.recipe.name);
        result->model = strdup(input.info.model);
        result->layers = calloc((size_t)input.layer_count, sizeof *result->layers);
        if (!result->model || !result->layers) code = cli_fail("out of memory");
    }
    for (int32_t i = 0; code == CLI_OK && i < input.layer_count; i++) {
        result->count = i + 1;
        code = run_recording_layer(arguments, &input, i, &result->layers[i]);
        cli_progress((i + 1.0) / input.layer_count, "attention");
    }
    cli_progress_end();
    layer_input_close(&input);
    return code;
}

/* Runs on the codes as they lie in the file, laid out anew where the kernel reads another layout.
 */
static int relayout(const hr_packed_layer *packed, const hr_layer_layouts *layouts,
                    hr_packed_layer *out)
{
    if (hr_packed_relayout(&packed->q, layouts->q, &out->q) != HR_OK ||
        hr_packed_relayout(&packed->k, layouts->k, &out->k) != HR_OK ||
        hr_packed_relayout(&packed->v, layouts->v, &out->v) != HR_OK)
        return cli_fail_library(NULL);
    return CLI_OK;
}

static int run_packed_layer(const run_arguments *arguments, const hr_packed_file_info *info,
                            const hr_packed_layer *packed, layer_output *out)
{
    hr_attention_problem problem;
    hr_attention_problem_init(&problem, packed->q.num_heads, packed->k.num_heads,
                              packed->q.head_dim);
    problem.batch = packed->q.batch;
    problem.cu_seqlens_q = packed->q.cu_seqlens;
    problem.cu_seqlens_kv = packed->k.cu_seqlens;
    problem.softmax_scale = info->softmax_scale;
    problem.mask.causal = info->causal;
    hr_plan *plan = NULL;
    hr_packed_layer laid_out = {0};
    hr_block_mask blocks = {0};
    int code = cli_mask_apply(&arguments->mask, &problem, &blocks);
    if (code == CLI_OK) code = make_plan(arguments, &problem, &info->recipe, &plan);
    if (code == CLI_OK) {
        hr_layer_layouts layouts = hr_plan_layouts(plan);
        code = relayout(packed, &layouts, &laid_out);
    }
    if (code == CLI_OK) code = run_plan(plan, &laid_out, out);
    if (code == CLI_OK && arguments->check) code = check_packed(&problem, packed, out);
    hr_block_mask_free(&blocks);
    hr_packed_layer_free(&laid_out);
    hr_plan_free(plan);
    return code;
}

static int run_packed(const run_arguments *arguments, run_result *result)
{
    if (arguments->files.profile || arguments->files.recipe)
        return cli_usage("%s is packed already; --profile and --recipe have no say",
                         arguments->files.input);
    hr_packed_file *file;
    if (hr_packed_read(arguments->files.input, &file) != HR_OK) return cli_fail_library(NULL);
    hr_packed_file_info info = hr_packed_file_get_info(file);
    snprintf(result->recipe, sizeof result->recipe, "%s", info.recipe.name);
    result->model = strdup(info.model);
    result->against_dequantized = true;
    result->layers = calloc((size_t)info.layer_count, sizeof *result->layers);
    int code = result->model && result->layers ? CLI_OK : cli_fail("out of memory");
    for (int32_t i = 0; code == CLI_OK && i < info.layer_count; i++) {
        int32_t number;
        const hr_packed_layer *packed = hr_packed_file_layer(file, i, &number);
        if (number < arguments->common.first || number > arguments->common.last) continue;
        layer_output *out = &result->layers[result->count++];
        out->layer = number;
        code = run_packed_layer(arguments, &info, packed, out);
        cli_progress((i + 1.0) / info.layer_count, "attention");
    }
    cli_progress_end();
    if (code == CLI_OK && result->count == 0)
        code = cli_fail("%s: --layers %d-%d is not in the file", arguments->files.input,
                        arguments->common.first, arguments->common.last);
    hr_packed_file_free(file);
    return code;
}

static hr_status add_outputs(hr_safetensors_writer *writer, const run_result *result)
{
    hr_status status = hr_safetensors_set_metadata(writer, "headroom.kind", "output");
    if (status == HR_OK) status = hr_safetensors_set_metadata(writer, "headroom.version", "1");
    if (status == HR_OK)
        status = hr_safetensors_set_metadata(writer, "headroom.recipe", result->recipe);
    if (status == HR_OK)
        status = hr_safetensors_set_metadata(writer, "headroom.kernel", result->layers[0].kernel);
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

static int write_result(const char *path, const run_result *result)
{
    hr_safetensors_writer *writer;
    if (hr_safetensors_writer_create(&writer) != HR_OK) return cli_fail_library(NULL);
    hr_status status = add_outputs(writer, result);
    if (status == HR_OK) status = hr_safetensors_write(writer, path);
    hr_safetensors_writer_free(writer);
    return status == HR_OK ? CLI_OK : cli_fail_library(NULL);
}

static int report_json(const run_arguments *arguments, const run_result *result)
{
    json_t *layers = json_array();
    for (int32_t i = 0; i < result->count; i++) {
        const layer_output *layer = &result->layers[i];
        json_array_append_new(
            layers, json_pack("{si ss so}", "layer", layer->layer, "kernel", layer->kernel, "error",
                              arguments->check ? cli_error_object(&layer->error) : json_null()));
    }
    return cli_print_json(json_pack("{so ss ss ss? so}", "output",
                                    cli_path(arguments->files.output), "model", result->model,
                                    "recipe", result->recipe, "error_against",
                                    !arguments->check             ? NULL
                                    : result->against_dequantized ? "ref64(dequantized inputs)"
                                                                  : "ref64(original inputs)",
                                    "layers", layers));
}

static int judge(const run_arguments *arguments, const run_result *result)
{
    if (!arguments->check) return CLI_OK;
    for (int32_t i = 0; i < result->count; i++) {
        const hr_error *e = &result->layers[i].error;
        if (e->nonfinite > 0)
            return cli_fail("layer %d: %lld of %lld output elements are not finite",
                            result->layers[i].layer, (long long)e->nonfinite, (long long)e->count);
        if (!(e->rel_l2 <= arguments->check_max))
            return cli_fail("layer %d: relative L2 error %.3e is above --check=%g",
                            result->layers[i].layer, e->rel_l2, arguments->check_max);
    }
    return CLI_OK;
}

static int report(const run_arguments *arguments, const run_result *result)
{
    if (arguments->common.json) {
        int code = report_json(arguments, result);
        return code == CLI_OK ? judge(arguments, result) : code;
    }
    printf("%s: %d layer%s with %s (%s)\n", arguments->files.output, result->count,
           cli_s(result->count), result->layers[0].kernel, result->recipe);
    if (!arguments->check) return CLI_OK;
    printf("error of O against ref64(%s inputs):\n%5s %12s %12s %12s %12s\n",
           result->against_dequantized ? "dequantized" : "original", "layer", "rel L2", "cosine",
           "RMSE", "max abs");
    for (int32_t i = 0; i < result->count; i++) {
        const hr_error *e = &result->layers[i].error;
        printf("%5d %12.3e %12.8f %12.3e %12.3e\n", result->layers[i].layer, e->rel_l2, e->cosine,
               e->rmse, e->max_abs);
    }
    return judge(arguments, result);
}

/* Which of the two inputs a file is, by the kind it says it is. */
static int is_packed(const char *path, bool *packed)
{
    hr_safetensors *file;
    if (hr_safetensors_open(path, &file) != HR_OK) return cli_fail_library(NULL);
    const char *kind = hr_safetensors_metadata(file, "headroom.kind");
    *packed = kind && strcmp(kind, "packed") == 0;
    hr_safetensors_close(file);
    return CLI_OK;
}

int verb_run(int argc, char **argv)
{
    static const struct argp_child children[] = {
        {&cli_common_argp, 0, NULL, 0}, {&cli_mask_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "REC|PACKED",
        .doc = "Run attention over a recording (quantized on the way) or a packed file.\v"
               "Example: headroom run data/minilm.safetensors --recipe int8 --check -o "
               "out.safetensors",
        .children = children,
    };
    run_arguments arguments = {
        .common = cli_common_defaults(),
        .mask = cli_mask_defaults(),
        .files = {.input_name = "recording or packed file", .output_name = "OUT"},
        .check_max = INFINITY,
    };
    cli_parse(&argp, argc, argv, &arguments);

    run_result result = {0};
    bool packed = false;
    int code =
        cli_check_output(arguments.files.output,
                         (const char *[]){arguments.files.input, arguments.files.profile}, 2);
    if (code == CLI_OK) code = is_packed(arguments.files.input, &packed);
    if (code == CLI_OK)
        code = packed ? run_packed(&arguments, &result) : run_recording(&arguments, &result);
    if (code == CLI_OK) code = write_result(arguments.files.output, &result);
    if (code == CLI_OK) code = report(&arguments, &result);
    for (int32_t i = 0; i < result.count; i++) {
        free(result.layers[i].o);
        free(result.layers[i].lse);
    }
    free(result.layers);
    free(result.model);
    return code;
}
