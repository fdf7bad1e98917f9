/*
 * headroom run FILE -o OUT: attention over a recording (packed on the way) or over a packed file.
 * Writes O and LSE of every layer; --check prints the error against the FP64 reference, and
 * --check=MAX fails, after O is written, where a layer's is larger. With --choice every head has
 * the recipe that an audit chose for it.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layer_input.h"
#include "mask_option.h"
#include "run_result.h"

typedef struct run_arguments {
    cli_common common;
    cli_mask mask;
    cli_files files;
    hr_device device;
    const char *choice; /* NULL: one recipe for all heads */
    bool check;
    double check_max; /* of rel_l2; infinite: any */
} run_arguments;

enum { KEY_DEVICE = 256, KEY_CHOICE };

static const struct argp_option options[] = {
    {"output", 'o', "OUT", 0, "The file to write O and LSE to (required)", 0},
    {"profile", 'p', "PROFILE", 0, "Profile with the static scales", 0},
    {"recipe", 'r', "RECIPE", 0,
     "Recipe: bf16, fp8, int8, int8-fp8, int4 or a change of one, such as int8:p.dtype=i16 "
     "(default: the profile's)",
     0},
    {"kernel", 'k', "NAME", 0,
     "Run this kernel (default: the best one; headroom kernels lists them)", 0},
    {"choice", KEY_CHOICE, "CHOICE", 0,
     "A recipe for each head: choice.json of an audit (in place of --profile, --recipe, --kernel)",
     0},
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
    case KEY_CHOICE:
        arguments->choice = text;
        return 0;
    default:
        return cli_parse_files(key, text, state, &arguments->files);
    }
}

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

static int allocate_output(layer_output *out, int64_t total_q, int32_t num_heads, int32_t head_dim)
{
    const size_t rows = (size_t)total_q * (size_t)num_heads;
    out->total_q = total_q;
    out->num_heads = num_heads;
    out->head_dim = head_dim;
    out->o = calloc(rows * (size_t)head_dim, sizeof *out->o);
    out->lse = calloc(rows, sizeof *out->lse);
    return out->o && out->lse ? CLI_OK : cli_fail("out of memory for the output");
}

static int run_plan(hr_plan *plan, const hr_packed_layer *packed, layer_output *out)
{
    int code =
        allocate_output(out, packed->q.total_tokens, packed->q.num_heads, packed->q.head_dim);
    if (code != CLI_OK) return code;
    out->kernel = hr_plan_kernel(plan)->name;
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

/* Adds what the layer's heads ran with. */
static void count_parts(const hr_mixed *mixed, run_result *result)
{
    for (int32_t i = 0; i < hr_mixed_part_count(mixed); i++) {
        const hr_mixed_part part = hr_mixed_get_part(mixed, i);
        run_part *sum = &result->parts[part.recipe];
        sum->kv_heads += part.num_kv_heads;
        if (!sum->kernel) sum->kernel = part.kernel->name;
    }
}

static int run_choice_layer(const run_arguments *arguments, const layer_input *input, int32_t index,
                            run_result *result)
{
    layer_output *out = &result->layers[index];
    hr_recording_layer layer;
    hr_attention_problem problem;
    hr_mixed *mixed = NULL;
    hr_block_mask blocks = {0};
    const hr_plan_options plan_options = {.threads = arguments->common.threads,
                                          .device = arguments->device};
    int code = layer_input_get(input, index, &layer, &problem);
    if (code == CLI_OK) code = cli_mask_apply(&arguments->mask, &problem, &blocks);
    if (code == CLI_OK) code = layer_input_mix(input, &layer, &problem, &plan_options, &mixed);
    if (code == CLI_OK)
        code = allocate_output(out, layer.q.shape[0], layer.num_heads, layer.head_dim);
    if (code == CLI_OK &&
        (hr_mixed_start(mixed) != HR_OK || hr_mixed_fetch(mixed, out->o, out->lse) != HR_OK))
        code = cli_fail_library(NULL);
    if (code == CLI_OK && arguments->check)
        code = check_layer(&problem, &layer.q, &layer.k, &layer.v, out);
    if (code == CLI_OK) count_parts(mixed, result);
    out->layer = input->layers[index];
    hr_block_mask_free(&blocks);
    hr_mixed_free(mixed);
    return code;
}

/* Opens what the arguments name and makes room for the result. */
static int open_input(const run_arguments *arguments, layer_input *input, run_result *result)
{
    const char *choice = arguments->choice;
    int code =
        choice ? layer_input_open_choice(input, &arguments->common, arguments->files.input, choice)
               : layer_input_open(input, &arguments->common, arguments->files.input,
                                  arguments->files.profile, arguments->files.recipe);
    if (code != CLI_OK) return code;
    result->model = strdup(input->info.model);
    result->layers = calloc((size_t)input->layer_count, sizeof *result->layers);
    if (!result->model || !result->layers) return cli_fail("out of memory");
    if (!choice) {
        result->recipe = strdup(input->recipe.name);
        return result->recipe ? CLI_OK : cli_fail("out of memory");
    }
    result->part_count = input->choice->config_count;
    result->parts = calloc((size_t)result->part_count, sizeof *result->parts);
    if (!result->parts) return cli_fail("out of memory");
    for (int32_t i = 0; i < result->part_count; i++)
        result->parts[i].config = input->choice->configs[i];
    return CLI_OK;
}

static int run_recording(const run_arguments *arguments, run_result *result)
{
    layer_input input;
    int code = open_input(arguments, &input, result);
    for (int32_t i = 0; code == CLI_OK && i < input.layer_count; i++) {
        result->count = i + 1;
        code = arguments->choice ? run_choice_layer(arguments, &input, i, result)
                                 : run_recording_layer(arguments, &input, i, &result->layers[i]);
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
    if (arguments->files.profile || arguments->files.recipe || arguments->choice)
        return cli_usage("%s is packed already; --profile, --recipe and --choice have no say",
                         arguments->files.input);
    hr_packed_file *file;
    if (hr_packed_read(arguments->files.input, &file) != HR_OK) return cli_fail_library(NULL);
    hr_packed_file_info info = hr_packed_file_get_info(file);
    result->recipe = strdup(info.recipe.name);
    result->model = strdup(info.model);
    result->against_dequantized = true;
    result->layers = calloc((size_t)info.layer_count, sizeof *result->layers);
    int code =
        result->recipe && result->model && result->layers ? CLI_OK : cli_fail("out of memory");
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

    if (arguments.choice &&
        (arguments.files.profile || arguments.files.recipe || arguments.files.kernel))
        return cli_usage("--choice has recipes, profiles and kernels of its own; --%s has no say",
                         arguments.files.profile  ? "profile"
                         : arguments.files.recipe ? "recipe"
                                                  : "kernel");
    run_result result = {0};
    bool packed = false;
    int code = cli_check_output(
        arguments.files.output,
        (const char *[]){arguments.files.input, arguments.files.profile, arguments.choice}, 3);
    if (code == CLI_OK) code = is_packed(arguments.files.input, &packed);
    if (code == CLI_OK)
        code = packed ? run_packed(&arguments, &result) : run_recording(&arguments, &result);
    result.output = arguments.files.output;
    result.choice = arguments.choice;
    result.checked = arguments.check;
    result.check_max = arguments.check_max;
    if (code == CLI_OK) code = run_result_write(&result);
    if (code == CLI_OK) code = run_result_print(&result, arguments.common.json);
    run_result_free(&result);
    return code;
}
