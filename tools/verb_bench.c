/*
 * headroom bench: times kernels on synthetic inputs beside the machine's own peaks.
 *
 * Every timed repeat is paired with a run of a register-only peak loop (and, for decode, a
 * streaming read) in the same process, because the clock of a shared machine drifts: the ratio is
 * the figure to trust. A kernel is timed only after its output agreed with the FP64 oracle on a
 * small problem.
 */
#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench_case.h"
#include "bench_choice.h"
#include "cli.h"

enum {
    LIST_MAX = 16,
    NAME_WIDTH = 62, /* at least */
    KEY_HEAD_DIM = 256,
    KEY_SEQLEN_Q,
    KEY_SEQLEN_KV,
    KEY_HEADS,
    KEY_KV_HEADS,
    KEY_REPEATS,
    KEY_MASK,
    KEY_COLD,
    KEY_BATCH,
    KEY_PAGE_SIZE,
    KEY_CHOICE,
    KEY_EPILOGUE,
    KEY_DEVICE
};

typedef struct bench_arguments {
    cli_common common;
    cli_mask mask;
    const char *filter;
    long head_dim[LIST_MAX], seqlen_q[LIST_MAX], seqlen_kv[LIST_MAX];
    int head_dims, seqlens_q, seqlens_kv;
    hr_recipe *recipes; /* [recipe_count]; 0: the preset of each kernel */
    int32_t recipe_count;
    char *recipe_list;
    const char *choice;
    const char *not_choice; /* an option given that does not go with --choice */
    long heads, kv_heads, batch, page_size, repeats, cold;
    hr_device device;
    bool full, causal;
    hr_norm norm;
} bench_arguments;

static const struct argp_option options[] = {
    {"filter", 'f', "GLOB", 0, "Only cases whose name matches, e.g. '*int8*/d64/*' (default: all)",
     0},
    {"head-dim", KEY_HEAD_DIM, "LIST", 0, "Head dims (default 64,128)", 0},
    {"seqlen-q", KEY_SEQLEN_Q, "LIST", 0, "Query lengths (default 1024)", 0},
    {"seqlen-kv", KEY_SEQLEN_KV, "LIST", 0, "Key lengths (default: as the query's)", 0},
    {"recipe", 'r', "LIST", 0,
     "Recipes separated by spaces or semicolons, each on every kernel that serves it (default: the "
     "preset of each kernel)",
     0},
    {"choice", KEY_CHOICE, "CHOICE", 0,
     "Time the layers of an audit's choice.json instead, each head with its recipe, beside bf16",
     0},
    {"batch", KEY_BATCH, "N", 0, "Sequences, each of these lengths (default 1)", 0},
    {"page-size", KEY_PAGE_SIZE, "N", 0,
     "Read K and V from a KV cache in pages of N tokens, a multiple of 16 up to 256 (default: they "
     "are contiguous)",
     0},
    {"heads", KEY_HEADS, "N", 0, "Query heads (default 8)", 0},
    {"kv-heads", KEY_KV_HEADS, "N", 0, "KV heads (default: as --heads)", 0},
    {"mask", KEY_MASK, "full|causal|both", 0, "Which masks (default both)", 0},
    {"repeats", KEY_REPEATS, "N", 0, "Timed runs of a case (default 7)", 0},
    {"cold", KEY_COLD, "MIB", 0,
     "Go through so many copies of K and V in turn that they take MIB of memory: with more than "
     "the caches hold, K and V come from memory, as in decode (default: one copy)",
     0},
    {"epilogue", KEY_EPILOGUE, "rms|layer", 0,
     "Also time residual add and this norm fused into attention against doing them after it", 0},
    CLI_DEVICE_OPTION(KEY_DEVICE),
    {0},
};

#define CASE_NAME                                                                                  \
    "KERNEL/d<head_dim>/q<seqlen_q>/kv<seqlen_kv>[/b<batch>][/page<size>]/<full|causal>"

static int parse_list(const char *option, char *text, long *list)
{
    int count = 0;
    char *rest = NULL;
    for (char *word = strtok_r(text, ",", &rest); word; word = strtok_r(NULL, ",", &rest)) {
        if (count == LIST_MAX) cli_bad_argument("%s lists more than %d values", option, LIST_MAX);
        list[count++] = cli_number(option, word, 1, 1 << 26);
    }
    if (count == 0) cli_bad_argument("%s is empty", option);
    return count;
}

static void parse_mask(const char *text, bench_arguments *arguments)
{
    arguments->full = strcmp(text, "causal") != 0;
    arguments->causal = strcmp(text, "full") != 0;
    if (arguments->full && arguments->causal && strcmp(text, "both") != 0)
        cli_bad_argument("--mask is \"%s\"; it takes full, causal or both", text);
}

/* cu_seqlens are 32-bit numbers. */
static void check_totals(const bench_arguments *a)
{
    for (int i = 0; i < a->seqlens_q; i++)
        if (a->seqlen_q[i] * a->batch > INT32_MAX)
            cli_bad_argument("--batch %ld of --seqlen-q %ld is more than %d queries", a->batch,
                             a->seqlen_q[i], INT32_MAX);
    for (int i = 0; i < a->seqlens_kv; i++)
        if (a->seqlen_kv[i] * a->batch > INT32_MAX)
            cli_bad_argument("--batch %ld of --seqlen-kv %ld is more than %d keys", a->batch,
                             a->seqlen_kv[i], INT32_MAX);
}

/* The option's name where it says what a choice says by itself, or what is timed of cases only. */
static const char *own_shape(int key)
{
    switch (key) {
    case 'f':
        return "filter";
    case 'r':
        return "recipe";
    case KEY_HEAD_DIM:
        return "head-dim";
    case KEY_HEADS:
        return "heads";
    case KEY_KV_HEADS:
        return "kv-heads";
    case KEY_PAGE_SIZE:
        return "page-size";
    case KEY_COLD:
        return "cold";
    case KEY_EPILOGUE:
        return "epilogue";
    default:
        return NULL;
    }
}

static error_t parse(int key, char *text, struct argp_state *state)
{
    bench_arguments *a = state->input;
    const char *shape = own_shape(key);
    if (shape) a->not_choice = shape;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[1] = &a->mask;
        return cli_child_input(state, &a->common);
    case 'f':
        a->filter = text;
        return 0;
    case KEY_HEAD_DIM:
        a->head_dims = parse_list("--head-dim", text, a->head_dim);
        return 0;
    case KEY_SEQLEN_Q:
        a->seqlens_q = parse_list("--seqlen-q", text, a->seqlen_q);
        return 0;
    case KEY_SEQLEN_KV:
        a->seqlens_kv = parse_list("--seqlen-kv", text, a->seqlen_kv);
        return 0;
    case KEY_HEADS:
        a->heads = cli_number("--heads", text, 1, 65536);
        return 0;
    case KEY_KV_HEADS:
        a->kv_heads = cli_number("--kv-heads", text, 1, 65536);
        return 0;
    case 'r':
        a->recipe_list = text;
        return 0;
    case KEY_CHOICE:
        a->choice = text;
        return 0;
    case KEY_BATCH:
        a->batch = cli_number("--batch", text, 1, 1 << 20);
        return 0;
    case KEY_PAGE_SIZE:
        a->page_size = cli_number("--page-size", text, HR_PAGE_SIZE_MULTIPLE, HR_PAGE_SIZE_MAX);
        if (a->page_size % HR_PAGE_SIZE_MULTIPLE != 0)
            cli_bad_argument("--page-size is %ld; it takes a multiple of %d up to %d", a->page_size,
                             HR_PAGE_SIZE_MULTIPLE, HR_PAGE_SIZE_MAX);
        return 0;
    case KEY_REPEATS:
        a->repeats = cli_number("--repeats", text, 1, 10000);
        return 0;
    case KEY_COLD:
        a->cold = cli_number("--cold", text, 1, 1 << 20);
        return 0;
    case KEY_EPILOGUE:
        if (strcmp(text, "rms") != 0 && strcmp(text, "layer") != 0)
            cli_bad_argument("--epilogue is \"%s\"; it takes rms or layer", text);
        a->norm = text[0] == 'r' ? HR_NORM_RMS : HR_NORM_LAYER;
        return 0;
    case KEY_DEVICE:
        a->device = cli_parse_device(text);
        return 0;
    case KEY_MASK:
        parse_mask(text, a);
        return 0;
    case ARGP_KEY_ARG:
        cli_bad_argument("takes no argument, but got \"%s\"", text);
        return 0;
    case ARGP_KEY_END:
        if (a->kv_heads == 0) a->kv_heads = a->heads;
        if (a->heads % a->kv_heads)
            cli_bad_argument("--kv-heads %ld does not divide --heads %ld", a->kv_heads, a->heads);
        if (a->page_size > 0 && a->norm != HR_NORM_NONE)
            cli_bad_argument(
                "--epilogue is timed on contiguous K and V only; leave --page-size out");
        if (a->choice && a->not_choice)
            cli_bad_argument("--choice has shapes and recipes of its own, in memory as they are; "
                             "leave --%s out",
                             a->not_choice);
        check_totals(a);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static json_t *row_object(const bench_case *c, const bench_result *r)
{
    return json_pack(
        "{ss ss ss ss si si si si si si si sb si si so so so so so so so so so so so so so so}",
        "case", c->name, "kernel", c->kernel->name, "isa", hr_isa_name(c->kernel->isa), "recipe",
        c->recipe.name, "head_dim", c->shape.head_dim, "seqlen_q", c->shape.seqlen_q, "seqlen_kv",
        c->shape.seqlen_kv, "batch", c->shape.batch, "page_size", c->shape.page_size, "num_heads",
        c->shape.num_heads, "num_kv_heads", c->shape.num_kv_heads, "causal", c->shape.causal,
        "threads", r->threads, "repeats", r->repeats, "median_ms", cli_figure(r->median_ms),
        "min_ms", cli_figure(r->min_ms), "max_ms", cli_figure(r->max_ms), "gops",
        cli_figure(r->gops), "roof_gops", cli_figure(r->roof_gops), "roof_ratio",
        cli_figure(r->roof_ratio), "kv_gbps", cli_figure(r->kv_gbps), "roof_gbps",
        cli_figure(r->roof_gbps), "kv_ratio", cli_figure(r->kv_ratio), "x_bf16",
        cli_figure(r->x_bf16), "density", cli_figure(r->density), "x_dense", cli_figure(r->x_dense),
        "x_after", cli_figure(r->x_after), "check_rel_l2", cli_figure(r->check.rel_l2));
}

static void print_heading(int width, bool masked, bool epilogue)
{
    printf("%-*s %9s %6s %8s %8s %6s %6s %7s %7s %6s %9s%s%s\n", width, "case", "ms", "spread",
           "GOP/s", "peak", "ratio", "x bf16", "KV GB/s", "read", "ratio", "e_kernel",
           masked ? " density x dense" : "", epilogue ? " x after" : "");
}

static void print_row(const bench_case *c, const bench_result *r, int width, bool first)
{
    if (first) print_heading(width, c->mask->given, c->norm != HR_NORM_NONE);
    printf("%-*s %9.3f %5.1f%% %8.1f %8.1f %5.1f%% %6.2f %7.2f %7.2f %5.1f%% %9.2e", width, c->name,
           r->median_ms, 100 * (r->max_ms - r->min_ms) / r->median_ms, r->gops, r->roof_gops,
           100 * r->roof_ratio, r->x_bf16, r->kv_gbps, r->roof_gbps, 100 * r->kv_ratio,
           r->check.rel_l2);
    if (c->mask->given) printf(" %6.1f%% %7.2f", 100 * r->density, r->x_dense);
    if (c->norm != HR_NORM_NONE) printf(" %7.3f", r->x_after);
    putchar('\n');
}

/* One shape and recipe (NULL: the kernel's preset) on one kernel. */
static int bench_one(const bench_arguments *a, const hr_kernel_info *kernel,
                     const bench_shape *shape, const hr_recipe *recipe, bench_state *state,
                     json_t *rows)
{
    bench_case c = {
        .kernel = kernel, .shape = *shape, .norm = a->norm, .mask = &a->mask, .given = recipe};
    if (!bench_case_name(&c)) return CLI_OK;
    if (a->filter && fnmatch(a->filter, c.name, 0) != 0) return CLI_OK;
    if (state->naming) {
        const int length = (int)strlen(c.name);
        if (length > state->name_width) state->name_width = length;
        return CLI_OK;
    }
    bench_result result;
    int code = bench_case_run(&c, state, &result);
    if (code == BENCH_SKIPPED) state->skipped++;
    if (code != CLI_OK) return code == BENCH_SKIPPED ? CLI_OK : code;
    if (a->common.json)
        json_array_append_new(rows, row_object(&c, &result));
    else
        print_row(&c, &result, state->name_width, state->cases == 1);
    fflush(stdout);
    return CLI_OK;
}

/* All shapes and recipes of the arguments, in the order of printing. */
static int for_each_shape(const bench_arguments *a, const hr_kernel_info *kernel,
                          bench_state *state, json_t *rows)
{
    const int kv_count = a->seqlens_kv ? a->seqlens_kv : 1;
    const int recipes = a->recipe_count ? a->recipe_count : 1;
    const int count = a->head_dims * a->seqlens_q * kv_count * 2 * recipes;
    int code = CLI_OK;
    for (int i = 0; i < count && code == CLI_OK; i++) {
        const int recipe = i % recipes, causal = i / recipes % 2, kv = i / recipes / 2 % kv_count;
        const int q = i / recipes / 2 / kv_count % a->seqlens_q;
        const int d = i / recipes / 2 / kv_count / a->seqlens_q;
        if (!(causal ? a->causal : a->full)) continue;
        const bench_shape shape = {.head_dim = (int32_t)a->head_dim[d],
                                   .seqlen_q = (int32_t)a->seqlen_q[q],
                                   .seqlen_kv =
                                       (int32_t)(a->seqlens_kv ? a->seqlen_kv[kv] : a->seqlen_q[q]),
                                   .num_heads = (int32_t)a->heads,
                                   .num_kv_heads = (int32_t)a->kv_heads,
                                   .batch = (int32_t)a->batch,
                                   .page_size = (int32_t)a->page_size,
                                   .causal = causal};
        code =
            bench_one(a, kernel, &shape, a->recipe_count ? &a->recipes[recipe] : NULL, state, rows);
    }
    return code;
}

static int print_result(const bench_state *state, json_t *rows)
{
    char cpu[256], os[256], time_text[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(time_text, sizeof time_text, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    return cli_print_json(json_pack(
        "{ss ss? ss ss? ss? ss si sI so}", "headroom", hr_version(), "commit", hr_machine_commit(),
        "compiler", hr_machine_compiler(), "cpu", hr_machine_cpu(cpu, sizeof cpu), "os",
        hr_machine_os(os, sizeof os), "date", time_text, "threads", state->threads, "cold_bytes",
        (json_int_t)state->cold_bytes, "rows", rows));
}

static int for_each_kernel(const bench_arguments *a, bench_state *state, json_t *rows)
{
    int code = CLI_OK;
    for (int k = 0; k < hr_kernel_count() && code == CLI_OK; k++) {
        const hr_kernel_info *kernel = hr_kernel_at(k);
        const bool of_device = (kernel->isa == HR_ISA_SM90) == (state->device == HR_DEVICE_CUDA);
        if (of_device && hr_isa_mask() >> kernel->isa & 1)
            code = for_each_shape(a, kernel, state, rows);
    }
    return code;
}

/* Why nothing was timed: what was skipped has been said already. */
static int say_nothing_ran(const bench_arguments *a, const bench_state *state)
{
    if (state->skipped > 0) return CLI_FAILED;
    for (int i = 0; i < a->recipe_count; i++) {
        const bench_case first = {.recipe = a->recipes[i],
                                  .mask = &a->mask,
                                  .shape = {.head_dim = (int32_t)a->head_dim[0],
                                            .seqlen_q = (int32_t)a->seqlen_q[0],
                                            .num_heads = (int32_t)a->heads,
                                            .num_kv_heads = (int32_t)a->kv_heads,
                                            .page_size = (int32_t)a->page_size,
                                            .causal = !a->full}};
        if (bench_case_find(&first, NULL) != HR_OK) return cli_fail_library(NULL);
    }
    if (a->filter)
        return cli_fail("no case matches --filter \"%s\"; cases are named " CASE_NAME, a->filter);
    return cli_fail("no kernel takes the shapes given; head dims that are multiples of 8 up to 256 "
                    "are accepted");
}

/* All lengths and masks of the arguments on a choice. */
static int bench_choices(const bench_arguments *a, const bench_state *state, json_t *rows)
{
    const int kv_count = a->seqlens_kv ? a->seqlens_kv : 1;
    int code = CLI_OK;
    for (int i = 0; i < a->seqlens_q * kv_count * 2 && code == CLI_OK; i++) {
        const int causal = i % 2, kv = i / 2 % kv_count, q = i / 2 / kv_count;
        if (!(causal ? a->causal : a->full)) continue;
        const bench_choice bench = {
            .path = a->choice,
            .seqlen_q = (int32_t)a->seqlen_q[q],
            .seqlen_kv = (int32_t)(a->seqlens_kv ? a->seqlen_kv[kv] : a->seqlen_q[q]),
            .batch = (int32_t)a->batch,
            .causal = causal,
            .mask = &a->mask,
            .device = state->device,
            .repeats = state->repeats,
            .threads = state->threads};
        json_t *layers = json_array();
        code = bench_choice_run(&bench, layers, a->common.json);
        json_array_append_new(rows,
                              json_pack("{so si si si sb so}", "choice", cli_path(a->choice),
                                        "seqlen_q", bench.seqlen_q, "seqlen_kv", bench.seqlen_kv,
                                        "batch", bench.batch, "causal", causal, "layers", layers));
    }
    return code;
}

int verb_bench(int argc, char **argv)
{
    static const struct argp_child children[] = {
        {&cli_output_argp, 0, NULL, 0}, {&cli_mask_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .doc =
            "Time the kernels this machine runs on synthetic gaussian inputs, each beside the "
            "machine's own peak measured in between: GOP/s against a register-only multiply-add "
            "loop, and K and V bytes a second against a streaming read. A case is named " CASE_NAME
            ", with /masked after it when other options hide keys too (then the same kernel "
            "without them is timed beside it) and with the recipe after that when --recipe is "
            "given. What a kernel or the cache does not do is skipped with a reason.\v"
            "Example: headroom bench --filter '*int8*' --seqlen-q 1024,4096 --threads 1\n"
            "Decode from memory: headroom bench --recipe 'int4; int8' --heads 32 --kv-heads 8 "
            "--head-dim 128 --seqlen-q 1 --seqlen-kv 8192 --batch 4 --page-size 16 --cold 1024",
        .children = children,
    };
    bench_arguments arguments = {.common = cli_common_defaults(),
                                 .mask = cli_mask_defaults(),
                                 .head_dim = {64, 128},
                                 .head_dims = 2,
                                 .seqlen_q = {1024},
                                 .seqlens_q = 1,
                                 .heads = 8,
                                 .batch = 1,
                                 .repeats = 7,
                                 .full = true,
                                 .causal = true};
    cli_parse(&argp, argc, argv, &arguments);

    static hr_recipe recipes[CLI_RECIPES_MAX];
    arguments.recipes = recipes;
    int code = cli_parse_recipes(arguments.recipe_list, recipes, &arguments.recipe_count);
    for (int i = 0; i < arguments.recipe_count && code == CLI_OK; i++)
        if (recipes[i].residual > 0)
            code = cli_usage("--recipe %s: bench keeps no tokens in BF16 beside a cache; leave "
                             "residual=%d out",
                             recipes[i].name, recipes[i].residual);
    if (code != CLI_OK) return code;
    bench_state state = {.name_width = NAME_WIDTH,
                         .device = arguments.device,
                         .repeats = (int32_t)arguments.repeats,
                         .threads = arguments.common.threads,
                         .cold_bytes = (int64_t)arguments.cold << 20};
    if (hr_isa_mask() == 0 || hr_device_check(state.device) != HR_OK) return cli_fail_library(NULL);
    code = bench_state_init(&state);
    json_t *rows = json_array();
    if (code == CLI_OK && arguments.choice) {
        code = bench_choices(&arguments, &state, rows);
        if (code == CLI_OK && arguments.common.json) code = print_result(&state, json_incref(rows));
        json_decref(rows);
        bench_state_free(&state);
        return code;
    }
    state.naming = true; /* first how wide the names are */
    if (code == CLI_OK) code = for_each_kernel(&arguments, &state, rows);
    state.naming = false;
    if (code == CLI_OK) code = for_each_kernel(&arguments, &state, rows);
    if (code == CLI_OK && state.cases == 0) code = say_nothing_ran(&arguments, &state);
    if (code == CLI_OK && arguments.common.json) code = print_result(&state, json_incref(rows));
    json_decref(rows);
    bench_state_free(&state);
    return code;
}
