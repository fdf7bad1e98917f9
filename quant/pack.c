/*
 * hr_pack: one operand in floating point -> codes and scales, head by head.
 *
 *     load head -> rope -> (lse_bias) -> subtract mean -> rotate -> choose scales -> encode -> lay
 * out
 *
 * Heads run in parallel and touch nothing of each other; what joins them (the scale of a whole
 * tensor, the error that is reported) is combined in head order, so that results do not depend on
 * the number of threads.
 */
#include "headroom/pack.h"

#include <float.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "pack_check.h"
#include "pack_encode.h"
#include "pack_layout.h"
#include "pack_scale.h"
#include "packed_memory.h"
#include "rope_internal.h"
#include "status_internal.h"
#include "tensor_rows.h"
#include "threads.h"
#include "transform.h"

/* One call of hr_pack. */
typedef struct pack_job {
    const hr_tensor *x;
    const hr_pack_options *options;
    hr_packed *out;
    int threads;
    float *rows;        /* [threads][total_tokens, head_dim] */
    uint8_t *row_codes; /* [threads] heads of codes in rows form */
    size_t head_elements, head_row_bytes;
    int64_t *bad;           /* [heads] index of the first NaN or infinity of a head, or -1 */
    hr_status *status;      /* [heads] of encoding */
    hr_scale_group *groups; /* [heads], for one scale over all heads; NULL otherwise */
    float signs[HR_HEAD_DIM_MAX];
    float *turns; /* [total_tokens][rotary_dim], for rope; NULL otherwise */
} pack_job;

/* lse_bias[t] = q[t] . mean of q's KV head, before any transform but rope. */
static void fill_lse_bias(const pack_job *job, int32_t head, const float *rows)
{
    int32_t head_dim = job->out->head_dim;
    int32_t kv_head = head / (job->out->num_heads / job->options->num_kv_heads);
    const float *mean = job->options->k_mean + (int64_t)kv_head * head_dim;
    float *bias = job->out->lse_bias + head * job->out->total_tokens;
    for (int64_t t = 0; t < job->out->total_tokens; t++) {
        double sum = 0.0;
        for (int32_t c = 0; c < head_dim; c++)
            sum += (double)rows[t * head_dim + c] * mean[c];
        bias[t] = (float)(sum > FLT_MAX ? FLT_MAX : sum < -FLT_MAX ? -FLT_MAX : sum);
    }
}

/*
 * Loads a head into this thread's rows and transforms it. NULL, with job->bad set, when a value is
 * not finite.
 */
static const float *prepare_head(pack_job *job, int32_t head)
{
    hr_packed *out = job->out;
    int64_t tokens = out->total_tokens;
    int32_t head_dim = out->head_dim;
    float *rows = job->rows + (size_t)omp_get_thread_num() * job->head_elements;
    job->bad[head] = hr_tensor_rows_load(job->x, head, 0, tokens, rows);
    if (job->bad[head] >= 0) return NULL;
    for (int64_t t = 0; job->turns && t < tokens; t++)
        hr_rope_rotate(&out->rope, job->turns + t * out->rope.rotary_dim, rows + t * head_dim);
    if (out->lse_bias) fill_lse_bias(job, head, rows);
    if (out->mean) {
        float *mean = out->mean + (int64_t)head * head_dim;
        if (job->options->mean) {
            memcpy(mean, job->options->mean + (int64_t)head * head_dim,
                   (size_t)head_dim * sizeof *mean);
        } else {
            double sum[HR_HEAD_DIM_MAX] = {0};
            hr_channel_sum(rows, tokens, head_dim, sum);
            hr_channel_mean(sum, tokens, head_dim, mean);
        }
        for (int64_t t = 0; t < tokens; t++)
            hr_mean_subtract(mean, head_dim, rows + t * head_dim);
    }
    if (out->recipe.transform & HR_TRANSFORM_HADAMARD)
        for (int64_t t = 0; t < tokens; t++)
            hr_hadamard_rotate(job->signs, head_dim, rows + t * head_dim);
    return rows;
}

static void pack_head(pack_job *job, int32_t head)
{
    hr_packed *out = job->out;
    const float *rows = prepare_head(job, head);
    if (!rows) return;
    if (out->recipe.dynamic && out->scale) hr_head_choose_scales(out, head, rows);
    uint8_t *codes = job->row_codes + (size_t)omp_get_thread_num() * job->head_row_bytes;
    job->status[head] = hr_head_encode(out, head, rows, codes);
    if (job->status[head] == HR_OK) hr_layout_from_rows(out, head, codes);
}

/* The failure of the lowest head; messages of worker threads are not this thread's. */
static hr_status job_status(const pack_job *job)
{
    const char *name = hr_operand_name(job->out->operand);
    int32_t head_dim = job->out->head_dim;
    for (int32_t head = 0; head < job->out->num_heads; head++) {
        if (job->bad[head] >= 0)
            return hr_fail(HR_ERROR_NUMERIC,
                           "%s has a NaN or infinity at token %lld, head %d, channel %lld; packing "
                           "takes finite values",
                           name, (long long)(job->bad[head] / head_dim), head,
                           (long long)(job->bad[head] % head_dim));
        if (job->status[head] != HR_OK)
            return hr_fail(job->status[head], "%s: head %d cannot be encoded to %s", name, head,
                           hr_dtype_name(job->out->recipe.dtype));
    }
    return HR_OK;
}

/* One dynamic scale over all heads: observe, then measure the candidates if there are several. */
static hr_status choose_tensor_scale(pack_job *job)
{
    hr_packed *out = job->out;
    hr_dtype dtype = out->recipe.dtype;
    hr_scale_group all = {0};
#pragma omp parallel for num_threads(job->threads) schedule(static)
    for (int32_t head = 0; head < out->num_heads; head++) {
        const float *rows = prepare_head(job, head);
        if (rows) hr_scale_group_observe(&job->groups[head], rows, (int64_t)job->head_elements);
    }
    HR_TRY(job_status(job));
    for (int32_t head = 0; head < out->num_heads; head++)
        hr_scale_group_merge(&all, &job->groups[head]);
    hr_scale_group_candidates(&all, dtype);
    if (all.candidates > 1) {
#pragma omp parallel for num_threads(job->threads) schedule(static)
        for (int32_t head = 0; head < out->num_heads; head++) {
            job->groups[head] = all;
            hr_scale_group_measure(&job->groups[head], dtype, prepare_head(job, head),
                                   (int64_t)job->head_elements);
        }
        for (int32_t head = 0; head < out->num_heads; head++)
            for (int i = 0; i < all.candidates; i++)
                all.error[i] += job->groups[head].error[i];
    }
    float scale = hr_scale_group_choose(&all);
    float floor = hr_scale_floor(dtype, scale);
    out->scale[0] = scale > floor ? scale : floor;
    if (out->zero_point)
        out->zero_point[0] = hr_scale_zero_point(dtype, all.lo, all.hi, out->scale[0]);
    return HR_OK;
}

static hr_status run_job(pack_job *job)
{
    if (job->groups) HR_TRY(choose_tensor_scale(job));
#pragma omp parallel for num_threads(job->threads) schedule(static)
    for (int32_t head = 0; head < job->out->num_heads; head++)
        pack_head(job, head);
    return job_status(job);
}

static hr_status allocate_job(pack_job *job)
{
    const hr_packed *out = job->out;
    size_t heads = (size_t)out->num_heads, threads;
    int available = hr_threads();
    job->threads = out->num_heads < available ? out->num_heads : available;
    threads = (size_t)job->threads;
    job->head_elements = (size_t)out->total_tokens * (size_t)out->head_dim;
    job->head_row_bytes =
        (size_t)out->total_tokens * hr_layout_row_bytes(out->recipe.dtype, out->head_dim);
    job->rows = hr_alloc(threads * job->head_elements, sizeof *job->rows);
    job->row_codes = hr_alloc(threads, job->head_row_bytes);
    job->bad = hr_alloc(heads, sizeof *job->bad);
    job->status = hr_alloc(heads, sizeof *job->status);
    bool whole_tensor = out->recipe.granularity == HR_GRANULARITY_TENSOR && out->recipe.dynamic;
    if (whole_tensor) job->groups = hr_alloc(heads, sizeof *job->groups);
    size_t rotary_dim = (size_t)out->rope.rotary_dim;
    if (rotary_dim)
        job->turns = hr_alloc((size_t)out->total_tokens, rotary_dim * sizeof *job->turns);
    bool failed = !job->rows || !job->row_codes || !job->bad || !job->status ||
                  (whole_tensor && !job->groups) || (rotary_dim && !job->turns);
    return failed ? HR_ERROR_OUT_OF_MEMORY : HR_OK;
}

static void fill_turns(pack_job *job)
{
    const hr_rope *rope = &job->out->rope;
    double rates[HR_ROPE_PAIRS];
    hr_rope_rates(rope, rates);
#pragma omp parallel for num_threads(job->threads) schedule(static)
    for (int64_t t = 0; t < job->out->total_tokens; t++)
        hr_rope_turns(rope, rates, job->options->positions[t], job->turns + t * rope->rotary_dim);
}

static hr_status pack_allocated(pack_job *job)
{
    hr_packed *out = job->out;
    HR_TRY(hr_packed_measure(out, job->options->cu_seqlens));
    HR_TRY(hr_packed_allocate(out, job->options->k_mean != NULL));
    HR_TRY(allocate_job(job));
    memset(job->bad, 0xff, (size_t)out->num_heads * sizeof *job->bad); /* -1: nothing found */
    if (job->options->static_scale)
        memcpy(out->scale, job->options->static_scale,
               (size_t)out->scale_count * sizeof *out->scale);
    if (out->recipe.transform & HR_TRANSFORM_HADAMARD) {
        uint64_t seed = job->options->hadamard_seed;
        out->hadamard_seed = seed ? seed : HR_HADAMARD_DEFAULT_SEED;
        hr_hadamard_signs(out->hadamard_seed, out->head_dim, job->signs);
    }
    if (job->turns) fill_turns(job);
    return run_job(job);
}

hr_status hr_pack(hr_operand operand, const hr_operand_recipe *recipe, const hr_tensor *x,
                  const hr_pack_options *options, hr_packed *out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out is NULL");
    *out = (hr_packed){0};
    HR_TRY(hr_pack_check(operand, recipe, x, options));
    *out = (hr_packed){
        .operand = operand,
        .recipe = *recipe,
        .layout = options->layout,
        .batch = options->batch,
        .num_heads = (int32_t)x->shape[1],
        .head_dim = (int32_t)x->shape[2],
        .total_tokens = x->shape[0],
        .rope = options->rope,
    };
    pack_job job = {.x = x, .options = options, .out = out};
    hr_status status = pack_allocated(&job);
    free(job.rows);
    free(job.row_codes);
    free(job.bad);
    free(job.status);
    free(job.groups);
    free(job.turns);
    if (status != HR_OK) hr_packed_free(out);
    return status;
}
