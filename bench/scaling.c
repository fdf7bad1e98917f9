/*
 * What one attention problem costs in time and memory, measured in a process of its own:
 *
 *     scaling --recipe int8 --seqlen-q 65536 --seqlen-kv 65536 --head-dim 128 --causal
 *
 * prints one line of JSON. Peak memory of a process only grows, so every point of a curve is a
 * fresh process; bench/scaling.py runs them. rss_run is what attention itself takes: how far the
 * resident set rose when the plan, which holds the scratch memory, was made, and then during the
 * runs (all operands and O had been touched by then). rss_peak is the whole process, inputs in FP32
 * and packing included; operand_bytes are those inputs, the packed operands and O.
 */
#include <argp.h>
#include <headroom/headroom.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "median.h"

enum {
    KEY_RECIPE = 256,
    KEY_SEQLEN_Q,
    KEY_SEQLEN_KV,
    KEY_HEAD_DIM,
    KEY_HEADS,
    KEY_KV_HEADS,
    KEY_BATCH,
    KEY_THREADS,
    KEY_WINDOW,
    KEY_CAUSAL,
    KEY_RUNS,
    RUNS_MAX = 100
};

/* Runs are repeated until they have taken so long together, or as often as --runs says. */
static const double SECONDS = 0.5;

typedef struct scaling_case {
    const char *recipe;
    int seqlen_q, seqlen_kv, head_dim, heads, kv_heads, batch, threads, window, runs;
    bool causal;
} scaling_case;

typedef struct scaling_job {
    hr_recipe recipe;
    int32_t *cu_q, *cu_kv; /* [batch + 1] */
    float *q, *k, *v, *o;
    hr_plan *plan;
    long plan_bytes; /* by which the plan's creation raised the resident set */
    hr_packed_layer packed;
} scaling_job;

static void check(hr_status status)
{
    if (status == HR_OK) return;
    fprintf(stderr, "scaling: %s: %s\n", hr_status_string(status), hr_last_error());
    exit(1);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (memory) return memory;
    fprintf(stderr, "scaling: out of memory for %zu elements\n", count);
    exit(1);
}

/* A figure of /proc/self/status in bytes: "VmRSS:" now, "VmHWM:" the most so far. */
static long memory_now(const char *field)
{
    char line[256];
    long kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, field, strlen(field)) == 0) sscanf(line + strlen(field), "%ld", &kib);
    if (file) fclose(file);
    return kib * 1024;
}

/* Lets VmHWM start again from VmRSS (proc(5), clear_refs); false where the kernel refuses. */
static bool forget_peak(void)
{
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (!file) return false;
    const bool written = fputs("5", file) >= 0;
    return fclose(file) == 0 && written;
}

static int32_t *equal_sequences(int batch, int seqlen)
{
    int32_t *cu = allocate((size_t)batch + 1, sizeof *cu);
    for (int i = 0; i <= batch; i++)
        cu[i] = i * seqlen;
    return cu;
}

static hr_tensor view(float *data, int64_t tokens, int64_t heads, int64_t head_dim)
{
    int64_t shape[3] = {tokens, heads, head_dim};
    return hr_tensor_view(HR_DTYPE_F32, 3, shape, data);
}

/* Static scales for fp8 from the inputs; queries are repeated where they are fewer than keys. */
static hr_profile *calibrate(const scaling_job *job, const hr_tensor *q, const hr_tensor *k,
                             const hr_tensor *v)
{
    hr_calibrator_options options = {.recipe = job->recipe};
    hr_calibrator *calibrator;
    hr_profile *profile;
    hr_tensor as_many = *q;
    if (q->shape[0] != k->shape[0]) {
        as_many.shape[0] = k->shape[0];
        as_many.stride[0] = 0;
    }
    check(hr_calibrator_create(&options, &calibrator));
    check(hr_calibrator_observe(calibrator, 0, &as_many, k, v));
    check(hr_calibrator_finish(calibrator, NULL, 0, &profile));
    hr_calibrator_free(calibrator);
    return profile;
}

static void fill(scaling_job *job, const scaling_case *c)
{
    hr_synth_options synth;
    hr_synth_options_init(&synth);
    synth.mode = "gaussian";
    synth.head_dim = c->head_dim;
    const int64_t tokens_q = job->cu_q[c->batch], tokens_kv = job->cu_kv[c->batch];
    job->q = allocate((size_t)(tokens_q * c->heads), sizeof(float) * (size_t)c->head_dim);
    job->k = allocate((size_t)(tokens_kv * c->kv_heads), sizeof(float) * (size_t)c->head_dim);
    job->v = allocate((size_t)(tokens_kv * c->kv_heads), sizeof(float) * (size_t)c->head_dim);
    job->o = allocate((size_t)(tokens_q * c->heads), sizeof(float) * (size_t)c->head_dim);
    memset(job->o, 1, (size_t)(tokens_q * c->heads) * (size_t)c->head_dim * sizeof(float));
    /* Q has other lengths and heads than K and V, so each comes of a recording of its own. */
    float *spare = allocate((size_t)(tokens_q * c->heads), sizeof(float) * (size_t)c->head_dim);
    synth.num_heads = synth.num_kv_heads = c->heads;
    synth.tokens = (int32_t)tokens_q;
    check(hr_synth_fill(&synth, 0, job->q, spare, spare));
    free(spare);
    spare = allocate((size_t)(tokens_kv * c->kv_heads), sizeof(float) * (size_t)c->head_dim);
    synth.num_heads = synth.num_kv_heads = c->kv_heads;
    synth.tokens = (int32_t)tokens_kv;
    check(hr_synth_fill(&synth, 0, spare, job->k, job->v));
    free(spare);
}

static void prepare(scaling_job *job, const scaling_case *c)
{
    hr_attention_problem problem;
    hr_attention_problem_init(&problem, c->heads, c->kv_heads, c->head_dim);
    check(hr_recipe_parse(c->recipe, &job->recipe));
    problem.batch = c->batch;
    problem.cu_seqlens_q = job->cu_q = equal_sequences(c->batch, c->seqlen_q);
    problem.cu_seqlens_kv = job->cu_kv = equal_sequences(c->batch, c->seqlen_kv);
    problem.mask.causal = c->causal;
    problem.mask.window_left = c->window;
    fill(job, c);
    hr_plan_options options = {.threads = c->threads};
    job->plan_bytes = memory_now("VmRSS:");
    check(hr_plan_create(&problem, &job->recipe, &options, &job->plan));
    job->plan_bytes = memory_now("VmRSS:") - job->plan_bytes;
    hr_layer_layouts layouts = hr_plan_layouts(job->plan);
    hr_tensor q = view(job->q, job->cu_q[c->batch], c->heads, c->head_dim);
    hr_tensor k = view(job->k, job->cu_kv[c->batch], c->kv_heads, c->head_dim);
    hr_tensor v = view(job->v, job->cu_kv[c->batch], c->kv_heads, c->head_dim);
    hr_layer_scales scales = {0};
    hr_profile *profile = NULL;
    if (hr_recipe_needs_profile(&job->recipe)) {
        profile = calibrate(job, &q, &k, &v);
        check(hr_profile_scales(profile, 0, &job->recipe, &scales));
    }
    check(hr_pack_layer(&job->recipe, &layouts, &q, &k, &v, c->batch, job->cu_q, job->cu_kv,
                        profile ? &scales : NULL, &job->packed));
    hr_profile_free(profile);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* The median of some runs. */
static double run(scaling_job *job, const scaling_case *c, int *runs)
{
    hr_tensor o = view(job->o, job->cu_q[c->batch], c->heads, c->head_dim);
    double seconds[RUNS_MAX], total = 0;
    for (*runs = 0; *runs < c->runs && total < SECONDS; ++*runs) {
        const double begin = now();
        check(hr_plan_run(job->plan, &job->packed, &o, NULL));
        seconds[*runs] = now() - begin;
        total += seconds[*runs];
    }
    return bench_median(seconds, (size_t)*runs);
}

static long operand_bytes(const scaling_job *job, const scaling_case *c)
{
    const int64_t rows_q = (int64_t)job->cu_q[c->batch] * c->heads,
                  rows_kv = (int64_t)job->cu_kv[c->batch] * c->kv_heads;
    return (long)((2 * rows_q + 2 * rows_kv) * c->head_dim * (int64_t)sizeof(float) +
                  hr_packed_bytes(&job->packed.q) + hr_packed_bytes(&job->packed.k) +
                  hr_packed_bytes(&job->packed.v));
}

static const struct argp_option options[] = {
    {"recipe", KEY_RECIPE, "RECIPE", 0, "Recipe (default int8)", 0},
    {"seqlen-q", KEY_SEQLEN_Q, "N", 0, "Queries of a sequence (default 1024)", 0},
    {"seqlen-kv", KEY_SEQLEN_KV, "N", 0, "Keys of a sequence (default 1024)", 0},
    {"head-dim", KEY_HEAD_DIM, "N", 0, "Head dim (default 64)", 0},
    {"heads", KEY_HEADS, "N", 0, "Query heads (default 1)", 0},
    {"kv-heads", KEY_KV_HEADS, "N", 0, "KV heads (default 1)", 0},
    {"batch", KEY_BATCH, "N", 0, "Sequences (default 1)", 0},
    {"threads", KEY_THREADS, "N", 0, "Threads (default 1)", 0},
    {"window", KEY_WINDOW, "N", 0, "Keys before its own that a query sees (default: all)", 0},
    {"runs", KEY_RUNS, "N", 0, "Runs at most (default 5, up to 100)", 0},
    {"causal", KEY_CAUSAL, NULL, 0, "Causal mask", 0},
    {0},
};

static error_t parse(int key, char *text, struct argp_state *state)
{
    scaling_case *c = state->input;
    int *number = key == KEY_SEQLEN_Q    ? &c->seqlen_q
                  : key == KEY_SEQLEN_KV ? &c->seqlen_kv
                  : key == KEY_HEAD_DIM  ? &c->head_dim
                  : key == KEY_HEADS     ? &c->heads
                  : key == KEY_KV_HEADS  ? &c->kv_heads
                  : key == KEY_BATCH     ? &c->batch
                  : key == KEY_THREADS   ? &c->threads
                  : key == KEY_WINDOW    ? &c->window
                  : key == KEY_RUNS      ? &c->runs
                                         : NULL;
    if (number) {
        *number = atoi(text);
        if (*number < 1) argp_error(state, "%s is not a positive number", text);
    } else if (key == KEY_RECIPE) {
        c->recipe = text;
    } else if (key == KEY_CAUSAL) {
        c->causal = true;
    } else {
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

int main(int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .doc = "Time and memory of one attention problem, as one line of JSON.",
    };
    scaling_case c = {.recipe = "int8",
                      .seqlen_q = 1024,
                      .seqlen_kv = 1024,
                      .head_dim = 64,
                      .heads = 1,
                      .kv_heads = 1,
                      .batch = 1,
                      .threads = 1,
                      .window = -1,
                      .runs = 5};
    argp_parse(&argp, argc, argv, 0, NULL, &c);
    if (c.runs > RUNS_MAX) c.runs = RUNS_MAX;
    scaling_job job = {0};
    prepare(&job, &c);
    const long peak_before = memory_now("VmHWM:");
    if (!forget_peak()) {
        fputs("scaling: /proc/self/clear_refs cannot be written\n", stderr);
        return 1;
    }
    const long before = memory_now("VmRSS:");
    int runs;
    const double seconds = run(&job, &c, &runs);
    const long after = memory_now("VmHWM:");
    printf("{\"recipe\": \"%s\", \"kernel\": \"%s\", \"seqlen_q\": %d, \"seqlen_kv\": %d, "
           "\"head_dim\": %d, \"num_heads\": %d, \"num_kv_heads\": %d, \"batch\": %d, "
           "\"threads\": %d, \"causal\": %s, \"seconds\": %.9g, \"runs\": %d, \"flops\": %.0f, "
           "\"kv_bytes\": %lld, \"operand_bytes\": %ld, \"rss_peak\": %ld, \"rss_run\": %ld}\n",
           job.recipe.name, hr_plan_kernel(job.plan)->name, c.seqlen_q, c.seqlen_kv, c.head_dim,
           c.heads, c.kv_heads, c.batch, c.threads, c.causal ? "true" : "false", seconds, runs,
           hr_plan_flops(job.plan),
           (long long)(hr_packed_bytes(&job.packed.k) + hr_packed_bytes(&job.packed.v)),
           operand_bytes(&job, &c), after > peak_before ? after : peak_before,
           job.plan_bytes + after - before);
    return 0;
}
