/*
 * headroom pack REC -o PACKED: quantizes a recording's Q, K and V into a packed file.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layer_input.h"

typedef struct pack_arguments {
    cli_common common;
    cli_files files;
} pack_arguments;

static const struct argp_option options[] = {
    {"output", 'o', "PACKED", 0, "The packed file to write (required)", 0},
    {"profile", 'p', "PROFILE", 0, "Profile with the static scales", 0},
    {"recipe", 'r', "RECIPE", 0,
     "Recipe: bf16, fp8, int8, int8-fp8, int4 or a change of one, such as int8:p.dtype=i16 "
     "(default: the profile's)",
     0},
    {"kernel", 'k', "NAME", 0,
     "Lay codes out as this kernel reads them (default: plain rows, which every tool can read)", 0},
    {0},
};

static error_t parse(int key, char *text, struct argp_state *state)
{
    pack_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        return cli_child_input(state, &arguments->common);
    default:
        return cli_parse_files(key, text, state, &arguments->files);
    }
}

static int find_layouts(const pack_arguments *arguments, const layer_input *input,
                        const hr_attention_problem *problem, hr_layer_layouts *layouts)
{
    *layouts = (hr_layer_layouts){HR_LAYOUT_ROWS, HR_LAYOUT_ROWS, HR_LAYOUT_ROWS};
    if (!arguments->files.kernel) return CLI_OK;
    hr_plan_options plan_options = {.kernel = arguments->files.kernel, .threads = 1};
    hr_plan *plan;
    if (hr_plan_create(problem, &input->recipe, &plan_options, &plan) != HR_OK)
        return cli_fail_library(NULL);
    *layouts = hr_plan_layouts(plan);
    hr_plan_free(plan);
    return CLI_OK;
}

static int pack_layers(const pack_arguments *arguments, const layer_input *input,
                       hr_packed_layer *packed)
{
    for (int32_t i = 0; i < input->layer_count; i++) {
        hr_recording_layer layer;
        hr_attention_problem problem;
        hr_layer_layouts layouts;
        int code = layer_input_get(input, i, &layer, &problem);
        if (code == CLI_OK) code = find_layouts(arguments, input, &problem, &layouts);
        if (code == CLI_OK) code = layer_input_pack(input, &layer, &layouts, &packed[i]);
        if (code != CLI_OK) return code;
        cli_progress((i + 1.0) / input->layer_count, "packing");
    }
    cli_progress_end();
    return CLI_OK;
}

static int report(const pack_arguments *arguments, const layer_input *input,
                  const hr_packed_layer *packed)
{
    int64_t bytes = 0, elements = 0;
    for (int32_t i = 0; i < input->layer_count; i++) {
        const hr_packed *k = &packed[i].k, *v = &packed[i].v;
        bytes += hr_packed_bytes(k) + hr_packed_bytes(v);
        elements += 2 * k->total_tokens * k->num_heads * k->head_dim;
    }
    double bits = 8.0 * (double)bytes / (double)elements;
    if (arguments->common.json)
        return cli_print_json(json_pack("{so ss si sI sf}", "packed",
                                        cli_path(arguments->files.output), "recipe",
                                        input->recipe.name, "layers", input->layer_count,
                                        "kv_bytes", (json_int_t)bytes, "kv_bits", bits));
    printf("%s: %s, %d layer%s, K and V take %s, %.2f bits an element (BF16: 16)\n",
           arguments->files.output, input->recipe.name, input->layer_count,
           cli_s(input->layer_count), cli_bytes((double)bytes), bits);
    return CLI_OK;
}

static int pack(const pack_arguments *arguments, const layer_input *input)
{
    hr_packed_layer *packed = calloc((size_t)input->layer_count, sizeof *packed);
    if (!packed) return cli_fail("out of memory");
    hr_packed_file_info info = {.model = input->info.model,
                                .recipe = input->recipe,
                                .causal = input->info.causal,
                                .softmax_scale = input->info.softmax_scale};
    int code = pack_layers(arguments, input, packed);
    if (code == CLI_OK && hr_packed_write(arguments->files.output, &info, input->layers, packed,
                                          input->layer_count) != HR_OK)
        code = cli_fail_library(NULL);
    if (code == CLI_OK) code = report(arguments, input, packed);
    for (int32_t i = 0; i < input->layer_count; i++)
        hr_packed_layer_free(&packed[i]);
    free(packed);
    return code;
}

int verb_pack(int argc, char **argv)
{
    static const struct argp_child children[] = {{&cli_common_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "REC",
        .doc = "Quantize a recording's Q, K and V with a recipe.\v"
               "Example: headroom pack data/minilm.safetensors --profile profile.safetensors -o "
               "packed.safetensors",
        .children = children,
    };
    pack_arguments arguments = {
        .common = cli_common_defaults(),
        .files = {.input_name = "recording", .output_name = "PACKED"},
    };
    cli_parse(&argp, argc, argv, &arguments);
    layer_input input = {0};
    int code =
        cli_check_output(arguments.files.output,
                         (const char *[]){arguments.files.input, arguments.files.profile}, 2);
    if (code == CLI_OK)
        code = layer_input_open(&input, &arguments.common, arguments.files.input,
                                arguments.files.profile, arguments.files.recipe);
    if (code == CLI_OK) code = pack(&arguments, &input);
    layer_input_close(&input);
    return code;
}
