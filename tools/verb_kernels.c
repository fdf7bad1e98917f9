/*
 * headroom kernels: every row of kernels.def with what it needs and whether this machine runs it.
 */
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"

typedef struct kernels_arguments {
    cli_common common;
    const char *filter;
} kernels_arguments;

static const struct argp_option options[] = {
    {"filter", 'f', "GLOB", 0, "Only kernels whose name matches, e.g. '*int4*' (default: all)", 0},
    {0},
};

static error_t parse(int key, char *text, struct argp_state *state)
{
    kernels_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        return cli_child_input(state, &arguments->common);
    case 'f':
        arguments->filter = text;
        return 0;
    case ARGP_KEY_ARG:
        cli_bad_argument("takes no argument, but got \"%s\"", text);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static json_t *feature_array(uint32_t features)
{
    json_t *array = json_array();
    for (int bit = 0; bit < HR_FEATURE_COUNT; bit++)
        if (features >> bit & 1)
            json_array_append_new(array, json_string(hr_feature_name(UINT32_C(1) << bit)));
    return array;
}

static json_t *granularity_array(uint32_t granularities)
{
    json_t *array = json_array();
    for (int g = 0; g < HR_GRANULARITY_COUNT; g++)
        if (granularities >> g & 1)
            json_array_append_new(array, json_string(hr_granularity_name((hr_granularity)g)));
    return array;
}

static json_t *operand_object(hr_dtype dtype, uint32_t granularities, hr_layout layout)
{
    return json_pack("{ss so ss}", "dtype", hr_dtype_name(dtype), "granularities",
                     granularity_array(granularities), "layout", hr_layout_name(layout));
}

static json_t *kernel_object(const hr_kernel_info *kernel, bool runnable)
{
    return json_pack(
        "{ss ss sb so so so ss so si si si si si}", "kernel", kernel->name, "isa",
        hr_isa_name(kernel->isa), "runnable", runnable, "q",
        operand_object(kernel->q_dtype, kernel->q_granularities, kernel->q_layout), "k",
        operand_object(kernel->k_dtype, kernel->k_granularities, kernel->k_layout), "v",
        operand_object(kernel->v_dtype, kernel->v_granularities, kernel->v_layout), "p_dtype",
        hr_dtype_name(kernel->p_dtype), "features", feature_array(kernel->features),
        "head_dim_multiple", kernel->head_dim_multiple, "head_dim_max", kernel->head_dim_max,
        "tile_q", kernel->tile_q, "tile_kv", kernel->tile_kv, "max_seqlen_q", kernel->max_seqlen_q);
}

static bool wanted(const kernels_arguments *arguments, const hr_kernel_info *kernel)
{
    return !arguments->filter || fnmatch(arguments->filter, kernel->name, 0) == 0;
}

static void print_row(const hr_kernel_info *kernel, bool runnable, int width)
{
    char features[256] = "";
    size_t used = 0;
    for (int bit = 0; bit < HR_FEATURE_COUNT; bit++)
        if (kernel->features >> bit & 1 && used < sizeof features)
            used += (size_t)snprintf(features + used, sizeof features - used, "%s%s",
                                     used ? "," : "", hr_feature_name(UINT32_C(1) << bit));
    char formats[64];
    snprintf(formats, sizeof formats, "%s.%s.%s.%s", hr_dtype_name(kernel->q_dtype),
             hr_dtype_name(kernel->k_dtype), hr_dtype_name(kernel->v_dtype),
             hr_dtype_name(kernel->p_dtype));
    printf("%-*s %-10s %-4s %-19s %4d x %-4d %s\n", width, kernel->name, hr_isa_name(kernel->isa),
           runnable ? "yes" : "no", formats, kernel->tile_q, kernel->tile_kv, features);
}

static void print_table(const kernels_arguments *arguments, uint32_t mask)
{
    int width = 0;
    for (int i = 0; i < hr_kernel_count(); i++) {
        const int length = (int)strlen(hr_kernel_at(i)->name);
        if (wanted(arguments, hr_kernel_at(i)) && length > width) width = length;
    }
    printf("%-*s %-10s %-4s %-19s %-11s %s\n", width, "kernel", "isa", "here", "q.k.v.p",
           "tile q x kv", "features");
    for (int i = 0; i < hr_kernel_count(); i++)
        if (wanted(arguments, hr_kernel_at(i)))
            print_row(hr_kernel_at(i), mask >> hr_kernel_at(i)->isa & 1, width);
}

static int print_document(const kernels_arguments *arguments, uint32_t mask)
{
    json_t *rows = json_array();
    for (int i = 0; i < hr_kernel_count(); i++)
        if (wanted(arguments, hr_kernel_at(i)))
            json_array_append_new(rows,
                                  kernel_object(hr_kernel_at(i), mask >> hr_kernel_at(i)->isa & 1));
    return cli_print_json(json_pack("{so}", "kernels", rows));
}

int verb_kernels(int argc, char **argv)
{
    static const struct argp_child children[] = {{&cli_output_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = children,
        .doc = "List the attention kernels of this build, best first for their recipe, and whether "
               "this machine runs them. HEADROOM_ISA limits the instruction sets.\v"
               "Example: headroom kernels --filter '*int4*'",
    };
    kernels_arguments arguments = {.common = cli_common_defaults()};
    cli_parse(&argp, argc, argv, &arguments);

    uint32_t mask = hr_isa_mask();
    if (mask == 0) return cli_fail_library(NULL);
    int matches = 0;
    for (int i = 0; i < hr_kernel_count(); i++)
        matches += wanted(&arguments, hr_kernel_at(i));
    if (matches == 0) return cli_fail("no kernel's name matches --filter \"%s\"", arguments.filter);
    if (arguments.common.json) return print_document(&arguments, mask);
    print_table(&arguments, mask);
    return CLI_OK;
}
