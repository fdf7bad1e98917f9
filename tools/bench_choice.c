/*
 * Times a choice; see bench_choice.h. A repeat is the choice's kernels, then the bf16 kernel on the
 * same layer, so that the ratio is of neighbours in time.
 */
#include "bench_choice.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "median.h"

/* What is measured of a layer, or of all. */
typedef struct layer_times {
    double ms, bf16_ms, flops, kv_bytes, bf16_kv_bytes;
} layer_times;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int run_mixed(hr_mixed *mixed, int32_t rounds, double *seconds)
{
    hr_status status = HR_OK;
    const double begin = now();
    for (int32_t i = 0; i < rounds && status == HR_OK; i++)
        status = hr_mixed_start(mixed);
    if (status == HR_OK) status = hr_mixed_wait(mixed);
    *seconds = (now() - begin) / rounds;
    return status == HR_OK ? CLI_OK : cli_fail_library("--choice");
}

static int time_both(const bench_choice *bench, hr_mixed *mixed, bench_job *bf16, layer_times *out)
{
    const double least = 0.02; /* seconds of a timed run */
    double *seconds = calloc(2 * (size_t)bench->repeats, sizeof *seconds), once;
    if (!seconds) return cli_fail("out of memory");
    int code = run_mixed(mixed, 1, &once);
    const int32_t rounds = once < least ? (int32_t)ceil(least / fmax(once, 1e-6)) : 1;
    if (code == CLI_OK) code = bench_job_warm_up(bf16);
    for (int32_t r = 0; r < bench->repeats && code == CLI_OK; r++) {
        code = run_mixed(mixed, rounds, &seconds[r]);
        if (code == CLI_OK) code = bench_job_run(bf16, &seconds[bench->repeats + r]);
    }
    if (code == CLI_OK) {
        out->ms = 1e3 * bench_median(seconds, bench->repeats);
        out->bf16_ms = 1e3 * bench_median(seconds + bench->repeats, bench->repeats);
    }
    free(seconds);
    return code;
}

static int time_layer(const bench_choice *bench, const hr_choice *choice,
                      const hr_choice_layer *layer, layer_times *out)
{
    hr_recipe bf16_recipe;
    if (hr_recipe_parse("bf16", &bf16_recipe) != HR_OK) return cli_fail_library(NULL);
    const bench_job_options options = {.name = bench->path,
                                       .shape = {.head_dim = layer->head_dim,
                                                 .seqlen_q = bench->seqlen_q,
                                                 .seqlen_kv = bench->seqlen_kv,
                                                 .num_heads = layer->num_heads,
                                                 .num_kv_heads = layer->num_kv_heads,
                                                 .batch = bench->batch,
                                                 .causal = bench->causal},
                                       .mask = bench->mask,
                                       .recipe = &bf16_recipe,
                                       .device = bench->device,
                                       .threads = bench->threads};
    const hr_plan_options plan = {.threads = bench->threads, .device = bench->device};
    hr_recipe *recipes = calloc((size_t)choice->config_count, sizeof *recipes);
    hr_layer_scales *scales = calloc((size_t)choice->config_count, sizeof *scales);
    hr_mixed *mixed = NULL;
    bench_job bf16 = {0};
    int code = recipes && scales ? bench_job_create(&bf16, &options) : cli_fail("out of memory");
    if (code == CLI_OK) {
        hr_tensor q, k, v;
        bench_job_tensors(&bf16, &q, &k, &v);
        hr_choice_recipes(choice, recipes);
        if (hr_choice_scales(choice, layer->layer, scales) != HR_OK ||
            hr_mixed_create(&bf16.problem, recipes, choice->config_count, layer->config, &plan,
                            &mixed) != HR_OK ||
            hr_mixed_pack(mixed, &q, &k, &v, scales) != HR_OK)
            code = cli_fail("%s: layer %d: %s", bench->path, layer->layer, hr_last_error());
    }
    if (code == CLI_OK) code = time_both(bench, mixed, &bf16, out);
    if (code == CLI_OK) {
        out->flops = hr_mixed_flops(mixed);
        out->bf16_kv_bytes = bf16.kv_bytes;
        for (int32_t i = 0; i < hr_mixed_part_count(mixed); i++)
            out->kv_bytes += (double)hr_mixed_get_part(mixed, i).kv_bytes;
    }
    hr_mixed_free(mixed);
    bench_job_free(&bf16);
    free(recipes);
    free(scales);
    return code == BENCH_SKIPPED ? CLI_FAILED : code;
}

static void print_row(const char *name, const layer_times *times)
{
    printf("%6s %9.3f %8.1f %6.2f %10s %8.1f%%\n", name, times->ms, 1e-6 * times->flops / times->ms,
           times->bf16_ms / times->ms, cli_bytes(times->kv_bytes),
           100 * times->kv_bytes / times->bf16_kv_bytes);
}

static json_t *row_object(const hr_choice_layer *layer, const layer_times *times)
{
    return json_pack("{si so so so so so}", "layer", layer->layer, "median_ms",
                     cli_figure(times->ms), "gops", cli_figure(1e-6 * times->flops / times->ms),
                     "x_bf16", cli_figure(times->bf16_ms / times->ms), "kv_bytes",
                     cli_figure(times->kv_bytes), "bf16_kv_bytes",
                     cli_figure(times->bf16_kv_bytes));
}

int bench_choice_run(const bench_choice *bench, json_t *rows, bool json)
{
    hr_choice *choice;
    layer_times all = {0};
    if (hr_choice_read(bench->path, &choice) != HR_OK) return cli_fail_library(NULL);
    int code = CLI_OK;
    if (!json)
        printf(
            "%s: %d layer%s, seqlen_q %d, seqlen_kv %d, batch %d, %s\n%6s %9s %8s %6s %10s %9s\n",
            bench->path, choice->layer_count, cli_s(choice->layer_count), bench->seqlen_q,
            bench->seqlen_kv, bench->batch, bench->causal ? "causal" : "full", "layer", "ms",
            "GOP/s", "x bf16", "K and V", "of bf16");
    for (int32_t l = 0; l < choice->layer_count && code == CLI_OK; l++) {
        layer_times times = {0};
        char number[16];
        code = time_layer(bench, choice, &choice->layers[l], &times);
        if (code != CLI_OK) break;
        snprintf(number, sizeof number, "%d", choice->layers[l].layer);
        if (json)
            json_array_append_new(rows, row_object(&choice->layers[l], &times));
        else
            print_row(number, &times);
        fflush(stdout);
        all.ms += times.ms;
        all.bf16_ms += times.bf16_ms;
        all.flops += times.flops;
        all.kv_bytes += times.kv_bytes;
        all.bf16_kv_bytes += times.bf16_kv_bytes;
    }
    if (code == CLI_OK && !json) print_row("all", &all);
    hr_choice_free(choice);
    return code;
}
