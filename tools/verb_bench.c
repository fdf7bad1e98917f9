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
#include "cli.h"

enum {
    LIST_MAX = 16,
    KEY_HEAD_DIM = 256,
    KEY_SEQLEN_Q,
    KEY_SEQLEN_KV,
    KEY_HEADS,
    KEY_KV_HEADS,
    KEY_REPEATS,
    KEY_MASK,
    KEY_COLD,
    KEY_EPILOGUE,
    KEY_DEVICE
};

typedef struct bench_arguments {
    cli_common common;
    cli_mask mask;
    const char *filter;
    long head_dim[LIST_MAX], seqlen_q[LIST_MAX], seqlen_kv[LIST_MAX];
    int head_dims, seqlens_q, seqlens_kv;
    long heads, kv_heads, repeats, cold;
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

static error_t parse(int key, char *text, struct argp_state *state)
{
    bench_arguments *a = state->input;
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
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static json_t *row_object(const bench_case *c, const bench_result *r)
{
    return json_pack(
        "{ss ss ss ss si si si si si sb si si so so so so so so so so so so so so so so}", "case",
        c->name, "kernel", c->kernel->name, "isa", hr_isa_name(c->kernel->isa), "recipe",
        c->recipe.name, "head_dim", c->head_dim, "seqlen_q", c->seqlen_q, "seqlen_kv", c->seqlen_kv,
        "num_heads", c->num_heads, "num_kv_heads", c->num_kv_heads, "causal", c->causal, "threads",
        r->threads, "repeats", r->repeats, "median_ms", cli_figure(r->median_ms), "min_ms",
        cli_figure(r->min_ms), "max_ms", cli_figure(r->max_ms), "gops", cli_figure(r->gops),
        "roof_gops", cli_figure(r->roof_gops), "roof_ratio", cli_figure(r->roof_ratio), "kv_gbps",
        cli_figure(r->kv_gbps), "roof_gbps", cli_figure(r->roof_gbps), "kv_ratio",
        cli_figure(r->kv_ratio), "x_bf16", cli_figure(r->x_bf16), "density", cli_figure(r->density),
        "x_dense", cli_figure(r->x_dense), "x_after", cli_figure(r->x_after), "check_rel_l2",
        cli_figure(r->check.rel_l2));
}

static void print_heading(bool masked, bool epilogue)
{
    printf("%-62s %9s %6s %8s %8s %6s %6s %7s %7s %6s %9s%s%s\n", "case", "ms", "spread", "GOP/s",
           "peak", "ratio", "x bf16", "KV GB/s", "read", "ratio", "e_kernel",
           masked ? " density x dense" : "", epilogue ? " x after" : "");
}

static void print_row(const bench_case *c, const bench_result *r, bool first)
{
    if (first) print_heading(c->mask->given, c->norm != HR_NORM_NONE);
    printf("%-62s %9.3f %5.1f%% %8.1f %8.1f %5.1f%% %6.2f %7.2f %7.2f %5.1f%% %9.2e", c->name,
           r->median_ms, 100 * (r->max_ms - r->min_ms) / r->median_ms, r->gops, r->roof_gops,
           100 * r->roof_ratio, r->x_bf16, r->kv_gbps, r->roof_gbps, 100 * r->kv_ratio,
           r->check.rel_l2);
    if (c->mask->given) printf(" %6.1f%% %7.2f", 100 * r->density, r->x_dense);
    if (c->norm != HR_NORM_NONE) printf(" %7.3f", r->x_after);
    putchar('\n');
}

/* All combinations of the arguments with one kernel, in the order they are printed. */
static int bench_kernel(const bench_arguments *a, const hr_kernel_info *kernel, bench_state *state,
                        json_t *rows)
{
    for (int d = 0; d < a->head_dims; d++) {
        for (int q = 0; q < a->seqlens_q; q++) {
            int kv_count = a->seqlens_kv ? a->seqlens_kv : 1;
            for (int kv = 0; kv < kv_count; kv++) {
                for (int causal = 0; causal <= 1; causal++) {
                    if (!(causal ? a->causal : a->full)) continue;
                    long keys = a->seqlens_kv ? a->seqlen_kv[kv] : a->seqlen_q[q];
                    bench_case c = {.kernel = kernel,
                                    .head_dim = (int32_t)a->head_dim[d],
                                    .seqlen_q = (int32_t)a->seqlen_q[q],
                                    .seqlen_kv = (int32_t)keys,
                                    .num_heads = (int32_t)a->heads,
                                    .num_kv_heads = (int32_t)a->kv_heads,
                                    .causal = causal,
                                    .norm = a->norm,
                                    .mask = &a->mask};
                    if (!bench_case_name(&c)) continue;
                    if (a->filter && fnmatch(a->filter, c.name, 0) != 0) continue;
                    bench_result result;
                    if (bench_case_run(&c, state, &result) != CLI_OK) return CLI_FAILED;
                    if (a->common.json)
                        json_array_append_new(rows, row_object(&c, &result));
                    else
                        print_row(&c, &result, state->cases == 1);
                    fflush(stdout);
                }
            }
        }
    }
    return CLI_OK;
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

int verb_bench(int argc, char **argv)
{
    static const struct argp_child children[] = {
        {&cli_output_argp, 0, NULL, 0}, {&cli_mask_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .doc = "Time the kernels this machine runs on synthetic gaussian inputs, each beside the "
               "machine's own peak measured in between: GOP/s against a register-only multiply-add "
               "loop, and K and V bytes a second against a streaming read. A case is named "
               "KERNEL/d<head_dim>/q<seqlen_q>/kv<seqlen_kv>/<full|causal>, with /masked after it "
               "when other options hide keys too: then the same kernel without them is timed "
               "beside it.\v"
               "Example: headroom bench --filter '*int8*' --seqlen-q 1024,4096 --threads 1",
        .children = children,
    };
    bench_arguments arguments = {.common = cli_common_defaults(),
                                 .mask = cli_mask_defaults(),
                                 .head_dim = {64, 128},
                                 .head_dims = 2,
                                 .seqlen_q = {1024},
                                 .seqlens_q = 1,
                                 .heads = 8,
                                 .repeats = 7,
                                 .full = true,
                                 .causal = true};
    cli_parse(&argp, argc, argv, &arguments);

    bench_state state = {.device = arguments.device,
                         .repeats = (int32_t)arguments.repeats,
                         .threads = arguments.common.threads,
                         .cold_bytes = (int64_t)arguments.cold << 20};
    if (hr_isa_mask() == 0 || hr_device_check(state.device) != HR_OK) return cli_fail_library(NULL);
    int code = bench_state_init(&state);
    json_t *rows = json_array();
    for (int k = 0; k < hr_kernel_count() && code == CLI_OK; k++) {
        const hr_kernel_info *kernel = hr_kernel_at(k);
        const bool of_device = (kernel->isa == HR_ISA_SM90) == (state.device == HR_DEVICE_CUDA);
        if (of_device && hr_isa_mask() >> kernel->isa & 1)
            code = bench_kernel(&arguments, kernel, &state, rows);
    }
    if (code == CLI_OK && state.cases == 0)
        code = arguments.filter
                   ? cli_fail("no case matches --filter \"%s\"; cases are named "
                              "KERNEL/d<head_dim>/q<seqlen_q>/kv<seqlen_kv>/<full|causal>",
                              arguments.filter)
                   : cli_fail("no kernel takes a --head-dim given; multiples of 8 up to 256 "
                              "are accepted");
    if (code == CLI_OK && arguments.common.json) code = print_result(&state, json_incref(rows));
    json_decref(rows);
    bench_state_free(&state);
    return code;
}
