/*
 * Inputs, operands and runs of one kernel on one shape; see bench_job.h.
 *
 * All sequences have the same lengths. Their pages alternate in a cache, last ones first, so that
 * neighbouring pages of a sequence are never neighbours in memory, as after a while of use.
 */
#include "bench_job.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { GPU_ROUNDS = 10 };

/* A timed run is repeated until it takes this long: a single one of a few milliseconds is noise. */
static const double MIN_SECONDS = 0.02;

/* What the library does not do is skipped, and a reason said once; all else ends the benchmark. */
static int fail(const bench_job *job, hr_status status)
{
    static char said[512];
    if (status != HR_ERROR_UNSUPPORTED) return cli_fail_library(job->name);
    if (strncmp(said, hr_last_error(), sizeof said - 1) != 0)
        cli_fail("%s and others like it are skipped: %s", job->name, hr_last_error());
    snprintf(said, sizeof said, "%s", hr_last_error());
    return BENCH_SKIPPED;
}

static int out_of_memory(const bench_job *job)
{
    return cli_fail("out of memory for %s", job->name);
}

void bench_job_free(bench_job *job)
{
    for (int32_t i = 0; i < job->copies; i++) {
        if (job->run) hr_device_run_free(job->run[i]);
        if (job->cache) hr_kv_cache_free(job->cache[i]);
        if (job->copy && i > 0) { /* the first is packed's own */
            hr_packed_free(&job->copy[i].k);
            hr_packed_free(&job->copy[i].v);
        }
    }
    free(job->run);
    free(job->cache);
    free(job->copy);
    hr_plan_free(job->plan);
    hr_block_mask_free(&job->blocks);
    hr_packed_layer_free(&job->packed);
    free(job->cu_q);
    free(job->cu_kv);
    free(job->block_table);
    free(job->q);
    free(job->k);
    free(job->v);
    free(job->o);
    memset(job, 0, sizeof *job);
}

static hr_tensor view(float *data, int64_t tokens, int32_t heads, int32_t head_dim)
{
    int64_t shape[3] = {tokens, heads, head_dim};
    return hr_tensor_view(HR_DTYPE_F32, 3, shape, data);
}

static int32_t total_q(const bench_job *job)
{
    return job->shape.batch * job->shape.seqlen_q;
}

static int32_t total_kv(const bench_job *job)
{
    return job->shape.batch * job->shape.seqlen_kv;
}

void bench_job_tensors(const bench_job *job, hr_tensor *q, hr_tensor *k, hr_tensor *v)
{
    const bench_shape *s = &job->shape;
    *q = view(job->q, total_q(job), s->num_heads, s->head_dim);
    *k = view(job->k, total_kv(job), s->num_kv_heads, s->head_dim);
    *v = view(job->v, total_kv(job), s->num_kv_heads, s->head_dim);
}

static int32_t longer_total(const bench_job *job)
{
    return total_q(job) > total_kv(job) ? total_q(job) : total_kv(job);
}

static int32_t pages(const bench_job *job)
{
    return (job->shape.seqlen_kv + job->shape.page_size - 1) / job->shape.page_size;
}

/* The page that holds page i of a sequence. */
static int32_t page_of(const bench_job *job, int32_t sequence, int32_t i)
{
    return (pages(job) - 1 - i) * job->shape.batch + sequence;
}

static int set_problem(bench_job *job, const cli_mask *mask)
{
    const bench_shape *s = &job->shape;
    const size_t batch = (size_t)s->batch;
    job->cu_q = calloc(batch + 1, sizeof *job->cu_q);
    job->cu_kv = calloc(batch + 1, sizeof *job->cu_kv);
    if (!job->cu_q || !job->cu_kv) return out_of_memory(job);
    for (int32_t b = 0; b <= s->batch; b++) {
        job->cu_q[b] = b * s->seqlen_q;
        job->cu_kv[b] = b * s->seqlen_kv;
    }
    hr_attention_problem_init(&job->problem, s->num_heads, s->num_kv_heads, s->head_dim);
    job->problem.batch = s->batch;
    job->problem.cu_seqlens_q = job->cu_q;
    job->problem.cu_seqlens_kv = job->cu_kv;
    job->problem.mask.causal = s->causal;
    if (s->page_size > 0) {
        const int32_t count = pages(job);
        job->block_table = calloc(batch * (size_t)count, sizeof *job->block_table);
        if (!job->block_table) return out_of_memory(job);
        for (int32_t b = 0; b < s->batch; b++)
            for (int32_t i = 0; i < count; i++)
                job->block_table[(int64_t)b * count + i] = page_of(job, b, i);
        job->problem.paging = (hr_paging){
            .page_size = s->page_size, .max_pages = count, .block_table = job->block_table};
    }
    return mask ? cli_mask_apply(mask, &job->problem, &job->blocks) : CLI_OK;
}

/* Q of the first tokens and K, V of the first of one synthetic sequence. */
static int fill(bench_job *job)
{
    const bench_shape *s = &job->shape;
    hr_synth_options synth;
    hr_synth_options_init(&synth);
    synth.mode = "gaussian";
    synth.num_heads = s->num_heads;
    synth.num_kv_heads = s->num_kv_heads;
    synth.head_dim = s->head_dim;
    synth.tokens = longer_total(job);
    const size_t row = (size_t)s->head_dim * sizeof(float), tokens = (size_t)synth.tokens;
    job->q = malloc(tokens * (size_t)s->num_heads * row);
    job->k = malloc(tokens * (size_t)s->num_kv_heads * row);
    job->v = malloc(tokens * (size_t)s->num_kv_heads * row);
    job->o = malloc((size_t)total_q(job) * (size_t)s->num_heads * row);
    if (!job->q || !job->k || !job->v || !job->o) return out_of_memory(job);
    if (hr_synth_fill(&synth, 0, job->q, job->k, job->v) != HR_OK)
        return cli_fail_library(job->name);
    return CLI_OK;
}

/* Static scales come from calibrating on the inputs themselves, all tokens of each. */
static hr_status calibrate(const bench_job *job, hr_profile **profile)
{
    const bench_shape *s = &job->shape;
    const int32_t tokens = longer_total(job);
    const hr_tensor q = view(job->q, tokens, s->num_heads, s->head_dim);
    const hr_tensor k = view(job->k, tokens, s->num_kv_heads, s->head_dim);
    const hr_tensor v = view(job->v, tokens, s->num_kv_heads, s->head_dim);
    const hr_calibrator_options options = {.recipe = job->recipe};
    hr_calibrator *calibrator = NULL;
    hr_status status = hr_calibrator_create(&options, &calibrator);
    const int passes = status == HR_OK ? hr_calibrator_passes(calibrator) : 0;
    for (int pass = 0; pass < passes && status == HR_OK; pass++) {
        if (pass > 0) status = hr_calibrator_next_pass(calibrator);
        if (status == HR_OK) status = hr_calibrator_observe(calibrator, 0, &q, &k, &v);
    }
    if (status == HR_OK) status = hr_calibrator_finish(calibrator, NULL, 0, profile);
    hr_calibrator_free(calibrator);
    return status;
}

/* A cache that holds K and V of all sequences. */
static hr_status make_cache(const bench_job *job, const hr_layer_scales *scales,
                            hr_kv_cache **cache)
{
    const bench_shape *s = &job->shape;
    const hr_kv_cache_options options = {.recipe = &job->recipe,
                                         .num_kv_heads = s->num_kv_heads,
                                         .head_dim = s->head_dim,
                                         .page_size = s->page_size,
                                         .num_pages = s->batch * pages(job),
                                         .k_scale = scales->k,
                                         .v_scale = scales->v,
                                         .k_mean = scales->k_mean,
                                         .hadamard_seed = scales->hadamard_seed,
                                         .k_layout = job->problem.paging.k_layout,
                                         .v_layout = job->problem.paging.v_layout};
    int64_t *slots = malloc((size_t)total_kv(job) * sizeof *slots);
    if (!slots) return HR_ERROR_OUT_OF_MEMORY;
    for (int32_t t = 0; t < total_kv(job); t++) {
        const int32_t at = t % s->seqlen_kv;
        slots[t] = (int64_t)page_of(job, t / s->seqlen_kv, at / s->page_size) * s->page_size +
                   at % s->page_size;
    }
    const hr_tensor k = view(job->k, total_kv(job), s->num_kv_heads, s->head_dim);
    const hr_tensor v = view(job->v, total_kv(job), s->num_kv_heads, s->head_dim);
    hr_status status = hr_kv_cache_create(&options, cache);
    if (status == HR_OK) status = hr_kv_cache_append(*cache, &k, &v, NULL, slots);
    free(slots);
    return status;
}

/* Copies, so many that together they take `bytes` of memory; the first is there anyway. */
static int set_copies(bench_job *job, int64_t bytes)
{
    const double more = floor((double)(bytes - 1) / job->kv_bytes);
    job->copies = more >= 1 ? (int32_t)fmin(more, 1 << 24) + 1 : 1;
    const size_t count = (size_t)job->copies;
    if (job->shape.page_size > 0) {
        job->cache = calloc(count, sizeof(hr_kv_cache *));
        return job->cache ? CLI_OK : out_of_memory(job);
    }
    job->copy = calloc(count, sizeof *job->copy);
    job->run = calloc(count, sizeof(hr_device_run *));
    return job->copy && job->run ? CLI_OK : out_of_memory(job);
}

static int store_in_pages(bench_job *job, const hr_layer_scales *scales, int64_t cold_bytes)
{
    const bench_shape *s = &job->shape;
    const hr_tensor q = view(job->q, total_q(job), s->num_heads, s->head_dim);
    const hr_pack_options options = {.layout = hr_plan_layouts(job->plan).q,
                                     .batch = s->batch,
                                     .cu_seqlens = job->cu_q,
                                     .static_scale = scales->q,
                                     .k_mean = scales->k_mean,
                                     .num_kv_heads = s->num_kv_heads,
                                     .hadamard_seed = scales->hadamard_seed};
    hr_status status = hr_pack(HR_OPERAND_Q, &job->recipe.q, &q, &options, &job->packed.q);
    if (status != HR_OK) return fail(job, status);
    job->kv_bytes = 2.0 * total_kv(job) * s->num_kv_heads * s->head_dim *
                    hr_recipe_kv_bits(&job->recipe, s->head_dim) / 8;
    int code = set_copies(job, cold_bytes);
    for (int32_t i = 0; i < job->copies && code == CLI_OK; i++) {
        status = make_cache(job, scales, &job->cache[i]);
        if (status != HR_OK) code = fail(job, status);
    }
    return code;
}

static int pack(bench_job *job, const hr_layer_scales *scales, int64_t cold_bytes)
{
    const bench_shape *s = &job->shape;
    const hr_layer_layouts layouts = hr_plan_layouts(job->plan);
    hr_tensor q, k, v;
    bench_job_tensors(job, &q, &k, &v);
    hr_status status = hr_pack_layer(&job->recipe, &layouts, &q, &k, &v, s->batch, job->cu_q,
                                     job->cu_kv, scales, &job->packed);
    if (status != HR_OK) return fail(job, status);
    job->kv_bytes = (double)(hr_packed_bytes(&job->packed.k) + hr_packed_bytes(&job->packed.v));
    int code = set_copies(job, cold_bytes);
    for (int32_t i = 0; i < job->copies && code == CLI_OK; i++) {
        hr_packed_layer *copy = &job->copy[i];
        if (i == 0) {
            *copy = job->packed;
        } else {
            copy->q = job->packed.q;
            status = hr_packed_relayout(&job->packed.k, job->packed.k.layout, &copy->k);
            if (status == HR_OK)
                status = hr_packed_relayout(&job->packed.v, job->packed.v.layout, &copy->v);
        }
        if (status == HR_OK) status = hr_device_run_create(job->plan, copy, &job->run[i]);
        if (status != HR_OK) code = fail(job, status);
    }
    return code;
}

/* Scales, where the recipe has static ones or a cache has to know K's mean; then the operands. */
static int make_operands(bench_job *job, int64_t cold_bytes)
{
    const bool paged = job->shape.page_size > 0;
    const bool mean = job->recipe.k.transform & HR_TRANSFORM_MEAN;
    hr_profile *profile = NULL;
    hr_layer_scales scales = {0};
    hr_status status = HR_OK;
    if (hr_recipe_needs_profile(&job->recipe) || (paged && mean)) {
        status = calibrate(job, &profile);
        if (status == HR_OK) status = hr_profile_scales(profile, 0, &job->recipe, &scales);
    }
    int code = status != HR_OK ? fail(job, status)
               : paged         ? store_in_pages(job, &scales, cold_bytes)
                               : pack(job, &scales, cold_bytes);
    hr_profile_free(profile);
    return code;
}

hr_status bench_layouts(const hr_recipe *recipe, int32_t head_dim, const char *kernel, hr_layout *k,
                        hr_layout *v)
{
    for (int i = 0; kernel && i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (strcmp(row->name, kernel) != 0) continue;
        *k = row->k_layout;
        *v = row->v_layout;
        return HR_OK;
    }
    return hr_kv_cache_layouts(recipe, head_dim, k, v);
}

int bench_job_create(bench_job *job, const bench_job_options *options)
{
    memset(job, 0, sizeof *job);
    job->name = options->name;
    job->shape = options->shape;
    job->recipe = *options->recipe;
    int code = set_problem(job, options->mask);
    if (code == CLI_OK && job->shape.page_size > 0) {
        hr_paging *paging = &job->problem.paging;
        hr_status status = bench_layouts(&job->recipe, job->shape.head_dim, options->kernel,
                                         &paging->k_layout, &paging->v_layout);
        if (status != HR_OK) code = fail(job, status);
    }
    const hr_plan_options plan_options = {
        .kernel = options->kernel, .threads = options->threads, .device = options->device};
    if (code == CLI_OK) {
        hr_status status = hr_plan_create(&job->problem, &job->recipe, &plan_options, &job->plan);
        if (status != HR_OK) code = fail(job, status);
    }
    if (code == CLI_OK) code = fill(job);
    return code == CLI_OK ? make_operands(job, options->cold_bytes) : code;
}

static hr_status run_copy(const bench_job *job, int32_t i)
{
    if (!job->cache) return hr_device_run_start(job->run[i]);
    const hr_tensor o = view(job->o, total_q(job), job->shape.num_heads, job->shape.head_dim);
    return hr_plan_run_paged(job->plan, &job->packed.q, job->cache[i], &o, NULL);
}

/* On a GPU runs are queued one behind the other, so that launching them costs nothing as long as
 * it takes less than they do. */
int bench_job_run(bench_job *job, double *seconds)
{
    const int rounds = hr_plan_kernel(job->plan)->isa == HR_ISA_SM90 ? GPU_ROUNDS
                       : job->rounds                                 ? job->rounds
                                                                     : 1;
    hr_status status = HR_OK;
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int round = 0; round < rounds; round++)
        for (int32_t i = 0; i < job->copies && status == HR_OK; i++)
            status = run_copy(job, i);
    if (status == HR_OK && job->run) status = hr_device_run_wait(job->run[0]);
    clock_gettime(CLOCK_MONOTONIC, &end);
    *seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
    *seconds /= (double)rounds * job->copies;
    return status == HR_OK ? CLI_OK : fail(job, status);
}

int bench_job_warm_up(bench_job *job)
{
    double seconds;
    int code = bench_job_run(job, &seconds);
    if (code != CLI_OK) return code;
    seconds *= job->copies;
    job->rounds = seconds < MIN_SECONDS ? (int32_t)ceil(MIN_SECONDS / fmax(seconds, 1e-6)) : 1;
    return CLI_OK;
}

/* What the codes of one operand stand for. */
static hr_status dequantize(const bench_job *job, hr_operand operand, float *out)
{
    if (operand == HR_OPERAND_Q) return hr_unpack(&job->packed.q, out);
    if (!job->cache)
        return hr_unpack(operand == HR_OPERAND_K ? &job->packed.k : &job->packed.v, out);
    hr_packed gathered;
    hr_status status = hr_kv_cache_gather(job->cache[0], operand, &job->problem.paging,
                                          job->shape.batch, job->cu_kv, HR_LAYOUT_ROWS, &gathered);
    if (status == HR_OK) status = hr_unpack(&gathered, out);
    if (status == HR_OK) hr_packed_free(&gathered);
    return status;
}

int bench_job_check(bench_job *job, hr_error *error)
{
    const bench_shape *s = &job->shape;
    const int64_t rows = (int64_t)total_q(job) * s->num_heads;
    double seconds, *reference = malloc((size_t)(rows * s->head_dim) * sizeof *reference);
    if (!reference) return out_of_memory(job);
    int code = bench_job_run(job, &seconds);
    hr_status status = HR_OK;
    if (code == CLI_OK && job->run) status = hr_device_run_fetch(job->run[0], job->o, NULL);
    if (status == HR_OK) status = dequantize(job, HR_OPERAND_Q, job->q);
    if (status == HR_OK) status = dequantize(job, HR_OPERAND_K, job->k);
    if (status == HR_OK) status = dequantize(job, HR_OPERAND_V, job->v);
    if (code == CLI_OK && status == HR_OK) {
        hr_attention_problem problem = job->problem;
        problem.paging = (hr_paging){0};
        hr_tensor q, k, v;
        bench_job_tensors(job, &q, &k, &v);
        status = hr_reference_attention(&problem, &q, &k, &v, reference, NULL);
        if (status == HR_OK)
            hr_error_measure(job->o, s->head_dim, reference, s->head_dim, rows, s->head_dim, error);
    }
    if (code == CLI_OK && status != HR_OK) code = fail(job, status);
    free(reference);
    return code;
}
