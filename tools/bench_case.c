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

enum { CHECK_TOKENS = 192, CHECK_HEADS = 2, GPU_ROUNDS = 10, DECODE_SEQLEN_Q = 16 };

/* A timed run is repeated until it takes this long: a single one of a few milliseconds is noise. */
static const double MIN_SECONDS = 0.02;

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

static bool serves(const hr_kernel_info *kernel, const hr_recipe *recipe, int32_t head_dim,
                   int32_t seqlen_q)
{
    hr_kernel_query query = {
        .recipe = *recipe, .head_dim = head_dim, .seqlen_q = seqlen_q, .name = kernel->name};
    const hr_kernel_info *found;
    return hr_kernel_find(&query, UINT32_MAX, &found) == HR_OK;
}

bool bench_case_name(bench_case *c)
{
    for (int i = 0; i < hr_recipe_preset_count(); i++) {
        c->recipe = *hr_recipe_preset(i);
        c->recipe.p.dtype = c->kernel->p_dtype;
        if (hr_recipe_normalize(&c->recipe) != HR_OK) continue;
        if (!serves(c->kernel, &c->recipe, c->head_dim, c->seqlen_q)) continue;
        snprintf(c->name, sizeof c->name, "%s/d%d/q%d/kv%d/%s%s", c->kernel->name, c->head_dim,
                 c->seqlen_q, c->seqlen_kv, c->causal ? "causal" : "full",
                 c->mask->given ? "/masked" : "");
        return true;
    }
    return false;
}

/* Inputs, plan and output of one kernel on one shape. */
typedef struct job {
    hr_recipe recipe;
    hr_attention_problem problem;
    hr_block_mask blocks;
    int32_t cu_q[2], cu_kv[2];
    float *q, *k, *v, *o;
    hr_plan *plan;
    hr_device_run **run; /* [1 + copies] of packed and of the copies */
    hr_packed_layer packed;
    hr_packed_layer *copy; /* of K and V, with packed's Q; a run goes through packed and copies */
    int32_t copies;
    int32_t rounds; /* of all runs that are timed together; 0: one */
} job;

static void job_free(job *j)
{
    for (int32_t i = 0; j->run && i <= j->copies; i++)
        hr_device_run_free(j->run[i]);
    free(j->run);
    hr_plan_free(j->plan);
    hr_block_mask_free(&j->blocks);
    hr_packed_layer_free(&j->packed);
    for (int32_t i = 0; i < j->copies; i++) {
        hr_packed_free(&j->copy[i].k);
        hr_packed_free(&j->copy[i].v);
    }
    free(j->copy);
    free(j->q);
    free(j->k);
    free(j->v);
    free(j->o);
    memset(j, 0, sizeof *j);
}

static hr_tensor view(float *data, int64_t tokens, int32_t heads, int32_t head_dim)
{
    int64_t shape[3] = {tokens, heads, head_dim};
    return hr_tensor_view(HR_DTYPE_F32, 3, shape, data);
}

static int32_t job_tokens(const job *j)
{
    return j->cu_q[1] > j->cu_kv[1] ? j->cu_q[1] : j->cu_kv[1];
}

/* Q of the first seqlen_q tokens and K, V of the first seqlen_kv of one synthetic sequence. */
static int fill(job *j, const bench_case *c, int32_t heads, int32_t kv_heads)
{
    int32_t tokens = job_tokens(j);
    hr_synth_options synth;
    hr_synth_options_init(&synth);
    synth.mode = "gaussian";
    synth.num_heads = heads;
    synth.num_kv_heads = kv_heads;
    synth.head_dim = c->head_dim;
    synth.tokens = tokens;
    size_t q_count = (size_t)tokens * (size_t)heads * (size_t)c->head_dim;
    size_t kv_count = (size_t)tokens * (size_t)kv_heads * (size_t)c->head_dim;
    j->q = malloc(q_count * sizeof *j->q);
    j->k = malloc(kv_count * sizeof *j->k);
    j->v = malloc(kv_count * sizeof *j->v);
    j->o = malloc((size_t)j->cu_q[1] * (size_t)heads * (size_t)c->head_dim * sizeof *j->o);
    if (!j->q || !j->k || !j->v || !j->o) return cli_fail("out of memory for %s", c->name);
    if (hr_synth_fill(&synth, 0, j->q, j->k, j->v) != HR_OK) return cli_fail_library(c->name);
    return CLI_OK;
}

/* Static scales come from calibrating on the inputs themselves, all tokens of each. */
static hr_status calibrate(const job *j, hr_calibrator *calibrator, hr_profile **profile)
{
    int32_t tokens = job_tokens(j), head_dim = j->problem.head_dim;
    hr_tensor q = view(j->q, tokens, j->problem.num_heads, head_dim);
    hr_tensor k = view(j->k, tokens, j->problem.num_kv_heads, head_dim);
    hr_tensor v = view(j->v, tokens, j->problem.num_kv_heads, head_dim);
    hr_status status = hr_calibrator_observe(calibrator, 0, &q, &k, &v);
    if (status == HR_OK) status = hr_calibrator_finish(calibrator, NULL, 0, profile);
    return status;
}

static hr_status pack(job *j, const hr_tensor *q, const hr_tensor *k, const hr_tensor *v)
{
    hr_layer_layouts layouts = hr_plan_layouts(j->plan);
    hr_layer_scales scales = {0};
    hr_calibrator *calibrator = NULL;
    hr_profile *profile = NULL;
    hr_status status = HR_OK;
    bool is_static = hr_recipe_needs_profile(&j->recipe);
    if (is_static) {
        hr_calibrator_options calibration = {.recipe = j->recipe};
        status = hr_calibrator_create(&calibration, &calibrator);
        if (status == HR_OK) status = calibrate(j, calibrator, &profile);
        if (status == HR_OK) status = hr_profile_scales(profile, 0, &j->recipe, &scales);
    }
    if (status == HR_OK)
        status = hr_pack_layer(&j->recipe, &layouts, q, k, v, 1, j->cu_q, j->cu_kv,
                               is_static ? &scales : NULL, &j->packed);
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    return status;
}

/* `mask`: NULL for none but causality. */
static int job_create(job *j, const bench_case *c, const cli_mask *mask, const hr_recipe *recipe,
                      const char *kernel, int32_t heads, int32_t kv_heads, const bench_state *state)
{
    hr_attention_problem_init(&j->problem, heads, kv_heads, c->head_dim);
    j->recipe = *recipe;
    j->problem.batch = 1;
    j->problem.cu_seqlens_q = j->cu_q;
    j->problem.cu_seqlens_kv = j->cu_kv;
    j->problem.mask.causal = c->causal;
    int code = mask ? cli_mask_apply(mask, &j->problem, &j->blocks) : CLI_OK;
    if (code == CLI_OK) code = fill(j, c, heads, kv_heads);
    if (code != CLI_OK) return code;
    hr_plan_options plan_options = {
        .kernel = kernel, .threads = state->threads, .device = state->device};
    if (hr_plan_create(&j->problem, recipe, &plan_options, &j->plan) != HR_OK)
        return cli_fail_library(c->name);
    hr_tensor q = view(j->q, j->cu_q[1], heads, c->head_dim);
    hr_tensor k = view(j->k, j->cu_kv[1], kv_heads, c->head_dim);
    hr_tensor v = view(j->v, j->cu_kv[1], kv_heads, c->head_dim);
    if (pack(j, &q, &k, &v) != HR_OK) return cli_fail_library(c->name);
    return CLI_OK;
}

/* The runs of packed and of the copies, on the plan's device. */
static int create_runs(job *j, const char *name)
{
    j->run = calloc((size_t)j->copies + 1, sizeof *j->run);
    if (!j->run) return cli_fail("out of memory for %s", name);
    for (int32_t i = 0; i <= j->copies; i++)
        if (hr_device_run_create(j->plan, i ? &j->copy[i - 1] : &j->packed, &j->run[i]) != HR_OK)
            return cli_fail_library(name);
    return CLI_OK;
}

/* Copies K and V until together they take `bytes` of memory, and makes them ready to run. */
static int copy_operands(job *j, const char *name, int64_t bytes)
{
    const hr_packed *k = &j->packed.k, *v = &j->packed.v;
    const int64_t one = hr_packed_bytes(k) + hr_packed_bytes(v), wanted = (bytes - 1) / one;
    if (wanted < 1) return create_runs(j, name);
    j->copy = calloc((size_t)wanted, sizeof *j->copy);
    if (!j->copy) return cli_fail("out of memory for %s", name);
    for (; j->copies < wanted; j->copies++) {
        hr_packed_layer *copy = &j->copy[j->copies];
        copy->q = j->packed.q;
        if (hr_packed_relayout(k, k->layout, &copy->k) != HR_OK) return cli_fail_library(name);
        if (hr_packed_relayout(v, v->layout, &copy->v) != HR_OK) {
            hr_packed_free(&copy->k);
            return cli_fail_library(name);
        }
    }
    return create_runs(j, name);
}

/*
 * Seconds a run takes, the mean over the copies. On a GPU runs are queued one behind the other, so
 * that launching them costs nothing as long as it takes less than they do.
 */
static int job_run(job *j, const char *name, double *seconds)
{
    const int rounds = hr_plan_kernel(j->plan)->isa == HR_ISA_SM90 ? GPU_ROUNDS
                       : j->rounds                                 ? j->rounds
                                                                   : 1;
    hr_status status = HR_OK;
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int round = 0; round < rounds; round++)
        for (int32_t i = 0; i <= j->copies && status == HR_OK; i++)
            status = hr_device_run_start(j->run[i]);
    if (status == HR_OK) status = hr_device_run_wait(j->run[0]);
    clock_gettime(CLOCK_MONOTONIC, &end);
    *seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
    *seconds /= rounds * (1 + j->copies);
    return status == HR_OK ? CLI_OK : cli_fail_library(name);
}

/* The kernel's output on a small problem against the oracle on the dequantized inputs. */
static int check_output(job *j, const char *name, hr_error *error)
{
    int32_t heads = j->problem.num_heads, head_dim = j->problem.head_dim;
    double seconds, *reference = malloc(sizeof(double) * (size_t)(j->cu_q[1] * heads * head_dim));
    if (!reference) return cli_fail("out of memory for %s", name);
    hr_tensor q = view(j->q, j->cu_q[1], heads, head_dim);
    hr_tensor k = view(j->k, j->cu_kv[1], j->problem.num_kv_heads, head_dim);
    hr_tensor v = view(j->v, j->cu_kv[1], j->problem.num_kv_heads, head_dim);
    int code = create_runs(j, name);
    if (code == CLI_OK) code = job_run(j, name, &seconds);
    if (code == CLI_OK && hr_device_run_fetch(j->run[0], j->o, NULL) != HR_OK)
        code = cli_fail_library(name);
    if (code == CLI_OK &&
        (hr_unpack(&j->packed.q, j->q) != HR_OK || hr_unpack(&j->packed.k, j->k) != HR_OK ||
         hr_unpack(&j->packed.v, j->v) != HR_OK ||
         hr_reference_attention(&j->problem, &q, &k, &v, reference, NULL)))
        code = cli_fail_library(name);
    if (code == CLI_OK)
        hr_error_measure(j->o, head_dim, reference, head_dim, (int64_t)j->cu_q[1] * heads, head_dim,
                         error);
    free(reference);
    return code;
}

static int check_case(const bench_case *c, const bench_state *state, hr_error *error)
{
    const int32_t longest = c->kernel->max_seqlen_q;
    /* A mask from a file is for the case's own lengths. */
    const bool from_file = c->mask->block_sparse && !strchr(c->mask->block_sparse, ':');
    const cli_mask *mask = from_file ? NULL : c->mask;
    job j = {.cu_q = {0, longest ? longest : CHECK_TOKENS}, .cu_kv = {0, CHECK_TOKENS}};
    int code =
        job_create(&j, c, mask, &c->recipe, c->kernel->name, CHECK_HEADS, CHECK_HEADS, state);
    if (code == CLI_OK) code = check_output(&j, c->name, error);
    job_free(&j);
    if (code == CLI_OK && !(error->rel_l2 <= CHECK_LIMIT))
        code = cli_fail("%s: not timed: its output is off by a relative L2 of %g on this machine",
                        c->name, error->rel_l2);
    return code;
}

/* What one repeat measures. */
enum { SECONDS, BASELINE, DENSE, ROOF, RATIO, READ, READ_RATIO, COLUMNS };

static double kv_bytes(const job *j)
{
    return (double)(hr_packed_bytes(&j->packed.k) + hr_packed_bytes(&j->packed.v));
}

/* The kernel, the bf16 kernel and the kernel without the mask's options; the latter two may be
 * without a plan, and are then not run. */
typedef struct jobs {
    job kernel, baseline, dense;
} jobs;

/* Runs a job once, untimed, and finds how many runs a timed one has. */
static int warm_up(job *j, const char *name)
{
    double seconds;
    int code = job_run(j, name, &seconds);
    if (code != CLI_OK) return code;
    seconds *= 1 + j->copies;
    j->rounds = seconds < MIN_SECONDS ? (int32_t)ceil(MIN_SECONDS / fmax(seconds, 1e-6)) : 1;
    return CLI_OK;
}

static int sample(const bench_case *c, bench_state *state, jobs *all, double *columns[COLUMNS],
                  int32_t r)
{
    job *kernel = &all->kernel;
    const hr_dtype p = c->kernel->p_dtype;
    hr_peak_kind kind = p == HR_DTYPE_U8 || p == HR_DTYPE_I16 ? HR_PEAK_INT8
                        : c->kernel->isa == HR_ISA_AVX512FP16 ? HR_PEAK_FP16
                                                              : HR_PEAK_FP32;
    double flops = hr_plan_flops(kernel->plan);
    const bool cpu = state->device == HR_DEVICE_CPU; /* the peaks are the processor's */
    int code = CLI_OK;
    if (r > 0 && c->seqlen_q > DECODE_SEQLEN_Q) {
        columns[READ][r] = columns[READ][0];
    } else {
        columns[READ][r] =
            cpu ? hr_peak_read_gbps(state->stream, state->stream_bytes, state->threads) : NAN;
        if (c->seqlen_q > DECODE_SEQLEN_Q) code = warm_up(kernel, c->name);
    }
    const double before = cpu ? hr_peak_gops(kind, c->kernel->isa, state->threads) : NAN;
    if (code == CLI_OK) code = job_run(kernel, c->name, &columns[SECONDS][r]);
    if (code != CLI_OK) return code;
    columns[ROOF][r] =
        cpu ? (before + hr_peak_gops(kind, c->kernel->isa, state->threads)) / 2 : NAN;
    columns[RATIO][r] = 1e-9 * flops / columns[SECONDS][r] / columns[ROOF][r];
    columns[READ_RATIO][r] = 1e-9 * kv_bytes(kernel) / columns[SECONDS][r] / columns[READ][r];
    if (all->baseline.plan) code = job_run(&all->baseline, c->name, &columns[BASELINE][r]);
    if (code == CLI_OK && all->dense.plan) code = job_run(&all->dense, c->name, &columns[DENSE][r]);
    return code;
}

static int time_case(const bench_case *c, bench_state *state, jobs *all, bench_result *out)
{
    job *kernel = &all->kernel;
    int32_t n = state->repeats;
    double *samples = calloc((size_t)n * COLUMNS, sizeof *samples), *columns[COLUMNS];
    if (!samples) return cli_fail("out of memory for %s", c->name);
    for (int i = 0; i < COLUMNS; i++)
        columns[i] = samples + (ptrdiff_t)i * n;
    int code = warm_up(kernel, c->name);
    if (code == CLI_OK && all->baseline.plan) code = warm_up(&all->baseline, c->name);
    if (code == CLI_OK && all->dense.plan) code = warm_up(&all->dense, c->name);
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
        out->kv_gbps = 1e-9 * kv_bytes(kernel) / seconds;
        out->roof_gbps = bench_median(columns[READ], n);
        out->kv_ratio = bench_median(columns[READ_RATIO], n);
        out->x_bf16 = all->baseline.plan ? bench_median(columns[BASELINE], n) / seconds
                      : c->kernel->q_dtype == HR_DTYPE_BF16 ? 1
                                                            : NAN;
        const job *dense = all->dense.plan ? &all->dense : kernel;
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
    state->cases++;
    int code = check_case(c, state, &out->check);
    if (code != CLI_OK) return code;
    const job lengths = {.cu_q = {0, c->seqlen_q}, .cu_kv = {0, c->seqlen_kv}};
    jobs all = {lengths, lengths, lengths};
    code = job_create(&all.kernel, c, c->mask, &c->recipe, c->kernel->name, c->num_heads,
                      c->num_kv_heads, state);
    if (code == CLI_OK) code = copy_operands(&all.kernel, c->name, state->cold_bytes);
    if (code == CLI_OK && c->mask->given) {
        code = job_create(&all.dense, c, NULL, &c->recipe, c->kernel->name, c->num_heads,
                          c->num_kv_heads, state);
        if (code == CLI_OK) code = copy_operands(&all.dense, c->name, state->cold_bytes);
    }
    hr_recipe bf16;
    if (code == CLI_OK && c->kernel->q_dtype != HR_DTYPE_BF16) {
        if (hr_recipe_parse("bf16", &bf16) != HR_OK) code = cli_fail_library(c->name);
        if (code == CLI_OK)
            code = job_create(&all.baseline, c, c->mask, &bf16, NULL, c->num_heads, c->num_kv_heads,
                              state);
        if (code == CLI_OK) code = copy_operands(&all.baseline, c->name, state->cold_bytes);
    }
    if (code == CLI_OK) code = time_case(c, state, &all, out);
    job_free(&all.kernel);
    job_free(&all.baseline);
    job_free(&all.dense);
    return code;
}
