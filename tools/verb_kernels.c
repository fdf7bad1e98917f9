/*
 * headroom kernels: every row of kernels.def with what it needs and whether this machine runs it.
 */
#include <stdio.h>
#include <string.h>

#include "cli.h"

static error_t parse(int key, char *argument, struct argp_state *state)
{
    (void)argument;
    switch (key) {
    case ARGP_KEY_INIT:
        return cli_child_input(state, state->input);
    case ARGP_KEY_ARG:
        cli_bad_argument("takes no argument, but got \"%s\"", argument);
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

static void print_row(const hr_kernel_info *kernel, bool runnable)
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
    printf("%-37s %-11s %-5s %-20s %3d x %-4d %s\n", kernel->name, hr_isa_name(kernel->isa),
           runnable ? "yes" : "no", formats, kernel->tile_q, kernel->tile_kv, features);
}

int verb_kernels(int argc, char **argv)
{
    static const struct argp_child children[] = {{&cli_common_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        .parser = parse,
        .children = children,
        .doc = "List every attention kernel of this build, best first for its recipe, and whether "
               "this machine runs it. HEADROOM_ISA limits the instruction sets.\v"
               "Example: headroom kernels --json",
    };
    cli_common common = cli_common_defaults();
    cli_parse(&argp, argc, argv, &common);

    uint32_t mask = hr_isa_mask();
    if (mask == 0) return cli_fail_library(NULL);
    if (common.json) {
        json_t *rows = json_array();
        for (int i = 0; i < hr_kernel_count(); i++)
            json_array_append_new(rows,
                                  kernel_object(hr_kernel_at(i), mask >> hr_kernel_at(i)->isa & 1));
        return cli_print_json(json_pack("{so}", "kernels", rows));
    }
    printf("%-37s %-11s %-5s %-20s %-10s %s\n", "kernel", "isa", "here", "q.k.v.p", "tile q x kv",
           "features");
    for (int i = 0; i < hr_kernel_count(); i++)
        print_row(hr_kernel_at(i), mask >> hr_kernel_at(i)->isa & 1);
    return CLI_OK;
}
