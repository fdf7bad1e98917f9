/*
 * One benchmark case; see bench_case.h. A repeat is: peak loop, kernel, peak loop, bf16 kernel on
 * the same shape, so that each ratio is of neighbours in time. Decode has a streaming read in each
 * repeat too; prefill has it once, because it leaves the caches empty, which prefill would pay for.
 */
#include "bench_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench_epilogue.h"
#include "median.h"
#include "peak.h"

/* Larger than the last-level cache share of a core, so that the stream comes from memory. */
static const size_t STREAM_BYTES = (size_t)512 << 20;

enum { CHECK_TOKENS = 192, CHECK_HEADS = 2, CHECK_BATCH = 2, DECODE_SEQLEN_Q = 16 };

/*
 * The small problem's e_kernel may not exceed what rounding P alone costs: E4M3 keeps 4 significant
 * bits (relative error <= 2^-4, rms below .03), U8 and BF16 much more. check_kernels holds the
 * sharp, derived bounds; this only refuses to time a kernel that is wrong on this machine.
 */
static const double CHECK_LIMIT = 0.0625;

int bench_state_init(bench_state *state)
{
    if (state->threads == 0) state->threads = hr_machine_threads();
    state->stream_bytes = STREAM_BYTES;
    state->stream = hr_peak_memory(STREAM_BYTES);
    if (!state->stream) return cli_fail("out of memory for the streaming read");
    return CLI_OK;
}

void bench_state_free(bench_state *state)
{
    free(state->stream);
}

/* What the case asks of a kernel besides formats. */
static uint32_t features(const bench_case *c)
{
    const bench_shape *s = &c->shape;
    const cli_mask *mask = c->mask;
    const bool window = mask->left >= 0 || (mask->right >= 0 && !s->causal);
    const bool hides = window || mask->block_sparse;
    return (s->causal ? HR_FEATURE_CAUSAL : 0u) | (window ? HR_FEATURE_WINDOW : 0u) |
           (mask->block_sparse ? HR_FEATURE_BLOCK_SPARSE : 0u) |
           (mask->keep > 0 && hides ? HR_FEATURE_KEPT : 0u) |
           (s->num_heads != s->num_kv_heads ? HR_FEATURE_GQA : 0u) |
           (s->page_size > 0 ? HR_FEATURE_PAGED : 0u);
}

hr_status bench_case_find(const bench_case *c, const char *kernel)
{
    hr_kernel_query query = {.recipe = c->recipe,
                             .head_dim = c->shape.head_dim,
                             .seqlen_q = c->shape.seqlen_q,
                             .features = features(c),
                             .name = kernel};
    if (c->shape.page_size > 0) {
        hr_status status =
            bench_layouts(&c->recipe, c->shape.head_dim, kernel, &query.k_layout, &query.v_layout);
        if (status != HR_OK) return status;
    }
    const hr_kernel_info *found;
    return hr_kernel_find(&query, kernel ? UINT32_MAX : hr_isa_mask(), &found);
}

/* "attention_int8_avx512vnni/d128/q1/kv4096/b8/page16/causal/masked/int8:p.dtype=i16" */
static void name_case(bench_case *c)
{
    const bench_shape *s = &c->shape;
    char batch[16] = "", page[24] = "";
    if (s->batch > 1) snprintf(batch, sizeof batch, "/b%d", s->batch);
    if (s->page_size > 0) snprintf(page, sizeof page, "/page%d", s->page_size);
    snprintf(c->name, sizeof c->name, "%s/d%d/q%d/kv%d%s%s/%s%s%s%s", c->kernel->name, s->head_dim,
             s->seqlen_q, s->seqlen_kv, batch, page, s->causal ? "causal" : "full",
             c->mask->given ? "/masked" : "", c->given ? "/" : "", c->given ? c->recipe.name : "");
}

bool bench_case_name(bench_case *c)
{
    for (int i = 0; i < (c->given ? 1 : hr_recipe_preset_count()); i++) {
        c->recipe = c->given ? *c->given : *hr_recipe_preset(i);
        if (!c->given) {
            c->recipe.p.dtype = c->kernel->p_dtype;
            if (hr_recipe_normalize(&c->recipe) != HR_OK) continue;
        }
        if (bench_case_find(c, c->kernel->name) != HR_OK) continue;
        name_case(c);
        return true;
    }
    return false;
}

static bench_job_options job_options(const bench_case *c, const bench_state *state)
{
    return (bench_job_options){.name = c->name,
                               .shape = c->shape,
                               .mask = c->mask,
                               .recipe = &c->recipe,
                               .kernel = c->kernel->name,
                               .device = state->device,
                               .threads = state->threads,
                               .cold_bytes = state->cold_bytes};
}

static int check_case(const bench_case *c, const bench_state *state, hr_error *error)
{
    const int32_t longest = c->kernel->max_seqlen_q;
    bench_job_options options = job_options(c, state);
    /* A mask from a file is for the case's own lengths. */
    if (c->mask->block_sparse && !strchr(c->mask->block_sparse, ':')) options.mask = NULL;
    options.shape.seqlen_q = longest ? longest : CHECK_TOKENS;
    options.shape.seqlen_kv = CHECK_TOKENS;
    options.shape.num_heads = options.shape.num_kv_heads = CHECK_HEADS;
    if (options.shape.batch > CHECK_BATCH) options.shape.batch = CHECK_BATCH;
    options.cold_bytes = 0;
    bench_job job;
    int code = bench_job_create(&job, &options);
    if (code == CLI_OK) code = bench_job_check(&job, error);
    bench_job_free(&job);
    if (code == CLI_OK && !(error->rel_l2 <= CHECK_LIMIT))
        code = cli_fail("%s: not timed: its output is off by a relative L2 of %g on this machine",
                        c->name, error->rel_l2);
    return code;
}

/* What one repeat measures. */
enum { SECONDS, BASELINE, DENSE, ROOF, RATIO, READ, READ_RATIO, COLUMNS };

/* The kernel, the bf16 kernel and the kernel without the mask's options; the latter two may be
 * without a plan, and are then not run. */
typedef struct jobs {
    bench_job kernel, baseline, dense;
} jobs;

static int sample(const bench_case *c, bench_state *state, jobs *all, double *columns[COLUMNS],
                  int32_t r)
{
    bench_job *kernel = &all->kernel;
    const hr_dtype p = c->kernel->p_dtype;
    hr_peak_kind kind = p == HR_DTYPE_U8 || p == HR_DTYPE_I16 ? HR_PEAK_INT8
                        : c->kernel->isa == HR_ISA_AVX512FP16 ? HR_PEAK_FP16
                                                              : HR_PEAK_FP32;
    double flops = hr_plan_flops(kernel->plan);
    const bool cpu = state->device == HR_DEVICE_CPU; /* the peaks are the processor's */
    int code = CLI_OK;
    if (r > 0 && c->shape.seqlen_q > DECODE_SEQLEN_Q) {
        columns[READ][r] = columns[READ][0];
    } else {
        columns[READ][r] =
            cpu ? hr_peak_read_gbps(state->stream, state->stream_bytes, state->threads) : NAN;
        if (c->shape.seqlen_q > DECODE_SEQLEN_Q) code = bench_job_warm_up(kernel);
    }
    const double before = cpu ? hr_peak_gops(kind, c->kernel->isa, state->threads) : NAN;
    if (code == CLI_OK) code = bench_job_run(kernel, &columns[SECONDS][r]);
    if (code != CLI_OK) return code;
    columns[ROOF][r] =
        cpu ? (before + hr_peak_gops(kind, c->kernel->isa, state->threads)) / 2 : NAN;
    columns[RATIO][r] = 1e-9 * flops / columns[SECONDS][r] / columns[ROOF][r];
    columns[READ_RATIO][r] = 1e-9 * kernel->kv_bytes / columns[SECONDS][r] / columns[READ][r];
    if (all->baseline.plan) code = bench_job_run(&all->baseline, &columns[BASELINE][r]);
    if (code == CLI_OK && all->dense.plan) code = bench_job_run(&all->dense, &columns[DENSE][r]);
    return code;
}

static int time_case(const bench_case *c, bench_state *state, jobs *all, bench_result *out)
{
    bench_job *kernel = &all->kernel;
    int32_t n = state->repeats;
    double *samples = calloc((size_t)n * COLUMNS, sizeof *samples), *columns[COLUMNS];
    if (!samples) return cli_fail("out of memory for %s", c->name);
    for (int i = 0; i < COLUMNS; i++)
        columns[i] = samples + (ptrdiff_t)i * n;
    int code = bench_job_warm_up(kernel);
    if (code == CLI_OK && all->baseline.plan) code = bench_job_warm_up(&all->baseline);
    if (code == CLI_OK && all->dense.plan) code = bench_job_warm_up(&all->dense);
    for (int32_t r = 0; r < n && code == CLI_OK; r++)
        code = sample(c, state, all, columns, r);
    if (code == CLI_OK) {
        double seconds = bench_median(columns[SECONDS], n);
        out->repeats = n;
        out->threads = state->threads;
        out->median_ms = 1e3 * seconds;
        out->min_ms = 1e3 * columns[SECONDS][0];
        out->max_ms = 1e3 * columns[SECONDS][n - 1];
        out->gops = 1e-9 * hr_plan_flops(kernel->plan) / seconds;
        out->roof_gops = bench_median(columns[ROOF], n);
        out->roof_ratio = bench_median(columns[RATIO], n);
        out->kv_gbps = 1e-9 * kernel->kv_bytes / seconds;
        out->roof_gbps = bench_median(columns[READ], n);
        out->kv_ratio = bench_median(columns[READ_RATIO], n);
        out->x_bf16 = all->baseline.plan ? bench_median(columns[BASELINE], n) / seconds
                      : c->kernel->q_dtype == HR_DTYPE_BF16 ? 1
                                                            : NAN;
        const bench_job *dense = all->dense.plan ? &all->dense : kernel;
        out->density = hr_plan_flops(kernel->plan) / hr_plan_flops(dense->plan);
        out->x_dense = all->dense.plan ? bench_median(columns[DENSE], n) / seconds : 1;
        out->x_after = NAN;
    }
    if (code == CLI_OK && c->norm != HR_NORM_NONE)
        code = bench_epilogue_run(&(bench_epilogue){.problem = &kernel->problem,
                                                    .recipe = &kernel->recipe,
                                                    .kernel = c->kernel->name,
                                                    .operands = &kernel->packed,
                                                    .norm = c->norm,
                                                    .threads = state->threads,
                                                    .repeats = n},
                                  &out->x_after);
    free(samples);
    return code;
}

int bench_case_run(const bench_case *c, bench_state *state, bench_result *out)
{
    memset(out, 0, sizeof *out);
    int code = check_case(c, state, &out->check);
    if (code != CLI_OK) return code;
    bench_job_options options = job_options(c, state);
    jobs all = {0};
    code = bench_job_create(&all.kernel, &options);
    if (code == CLI_OK && c->mask->given) {
        options.mask = NULL;
        code = bench_job_create(&all.dense, &options);
        options.mask = c->mask;
    }
    hr_recipe bf16;
    if (code == CLI_OK && c->kernel->q_dtype != HR_DTYPE_BF16) {
        if (hr_recipe_parse("bf16", &bf16) != HR_OK) code = cli_fail_library(c->name);
        options.recipe = &bf16;
        options.kernel = NULL;
        if (code == CLI_OK) code = bench_job_create(&all.baseline, &options);
    }
    if (code == CLI_OK) code = time_case(c, state, &all, out);
    if (code == CLI_OK) state->cases++;
    bench_job_free(&all.kernel);
    bench_job_free(&all.baseline);
    bench_job_free(&all.dense);
    return code;
}
