/*
 * One layer of an audit: the FP64 reference on the original inputs, then for each config
 *
 *     pack -> run -> O, LSE            kernel output
 *     unpack -> ref64 -> O_quantized   what exact arithmetic makes of the codes
 *
 * and the three differences of include/headroom/audit.h, head by head.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "audit_internal.h"
#include "headroom/format.h"
#include "memory.h"
#include "status_internal.h"
#include "threads.h"

void hr_audit_sums_merge(hr_audit_sums *sums, const hr_audit_sums *other)
{
    hr_error_sums_merge(&sums->quant, &other->quant);
    hr_error_sums_merge(&sums->kernel, &other->kernel);
    hr_error_sums_merge(&sums->total, &other->total);
    hr_error_sums_merge(&sums->lse, &other->lse);
    sums->divergence.kl += other->divergence.kl;
    sums->divergence.agree += other->divergence.agree;
    sums->divergence.rows += other->divergence.rows;
}

hr_audit_scores hr_audit_sums_finish(const hr_audit_sums *sums)
{
    /* No rows: 0 / 0, NaN like the error figures. */
    double rows = (double)sums->divergence.rows;
    return (hr_audit_scores){
        .quant = hr_error_sums_finish(&sums->quant),
        .kernel = hr_error_sums_finish(&sums->kernel),
        .total = hr_error_sums_finish(&sums->total),
        .lse = hr_error_sums_finish(&sums->lse),
        .softmax_kl = sums->divergence.kl / rows,
        .top_k_agreement = sums->divergence.agree / rows,
    };
}

/* The recording's tensors are contiguous; F32 is copied too, so that one owner frees all three. */
static hr_status to_f32(const hr_tensor *tensor, float **out)
{
    int64_t count = hr_tensor_size(tensor);
    *out = hr_alloc((size_t)count, sizeof(float));
    if (!*out) return HR_ERROR_OUT_OF_MEMORY;
    if (tensor->dtype != HR_DTYPE_F32)
        return hr_decode(tensor->dtype, tensor->data, count, 1.0f, 0, *out);
    memcpy(*out, tensor->data, (size_t)count * sizeof(float));
    return HR_OK;
}

static hr_tensor f32_view(const hr_tensor *like, float *data)
{
    return hr_tensor_view(HR_DTYPE_F32, like->ndim, like->shape, data);
}

hr_status hr_audit_reference_create(const hr_recording_info *info, const hr_recording_layer *layer,
                                    const hr_mask *mask, hr_audit_reference *out)
{
    *out = (hr_audit_reference){.q = layer->q, .k = layer->k, .v = layer->v};
    hr_attention_problem *problem = &out->problem;
    hr_attention_problem_init(problem, layer->num_heads, layer->num_kv_heads, layer->head_dim);
    problem->batch = info->batch;
    problem->cu_seqlens_q = problem->cu_seqlens_kv = info->cu_seqlens;
    problem->softmax_scale = info->softmax_scale;
    if (mask) problem->mask = *mask;
    problem->mask.causal = info->causal;

    int64_t rows = (int64_t)info->total_tokens * layer->num_heads;
    HR_TRY(to_f32(&layer->q, &out->q_f32));
    HR_TRY(to_f32(&layer->k, &out->k_f32));
    HR_TRY(to_f32(&layer->v, &out->v_f32));
    out->o = hr_alloc((size_t)(rows * layer->head_dim), sizeof(double));
    out->lse = hr_alloc((size_t)rows, sizeof(double));
    if (!out->o || !out->lse) return HR_ERROR_OUT_OF_MEMORY;
    return hr_reference_attention(problem, &layer->q, &layer->k, &layer->v, out->o, out->lse);
}

void hr_audit_reference_free(hr_audit_reference *reference)
{
    free(reference->q_f32);
    free(reference->k_f32);
    free(reference->v_f32);
    free(reference->o);
    free(reference->lse);
    *reference = (hr_audit_reference){0};
}

/* Exact attention on what the codes stand for, and how its weights differ from the original's. */
typedef struct dequantized {
    float *q, *k, *v;
    double *o;
} dequantized;

static void dequantized_free(dequantized *values)
{
    free(values->q);
    free(values->k);
    free(values->v);
    free(values->o);
}

static hr_status dequantize(const hr_audit_reference *reference, const hr_packed_layer *packed,
                            dequantized *out)
{
    int64_t q_count = hr_tensor_size(&reference->q), kv_count = hr_tensor_size(&reference->k);
    out->q = hr_alloc((size_t)q_count, sizeof(float));
    out->k = hr_alloc((size_t)kv_count, sizeof(float));
    out->v = hr_alloc((size_t)kv_count, sizeof(float));
    out->o = hr_alloc((size_t)q_count, sizeof(double));
    if (!out->q || !out->k || !out->v || !out->o) return HR_ERROR_OUT_OF_MEMORY;
    HR_TRY(hr_unpack(&packed->q, out->q));
    HR_TRY(hr_unpack(&packed->k, out->k));
    HR_TRY(hr_unpack(&packed->v, out->v));
    hr_tensor q = f32_view(&reference->q, out->q), k = f32_view(&reference->k, out->k),
              v = f32_view(&reference->v, out->v);
    return hr_reference_attention(&reference->problem, &q, &k, &v, out->o, NULL);
}

static void sum_head(const hr_audit_reference *reference, const hr_audit_run_state *state,
                     const double *o_quantized, int32_t head, hr_audit_sums *sums)
{
    int64_t rows = reference->q.shape[0], heads = reference->q.shape[1];
    int64_t head_dim = reference->q.shape[2], stride = heads * head_dim, at = head * head_dim;
    hr_error_sums_add_f64(&sums->quant, o_quantized + at, stride, reference->o + at, stride, rows,
                          head_dim);
    hr_error_sums_add(&sums->kernel, state->o + at, stride, o_quantized + at, stride, rows,
                      head_dim);
    hr_error_sums_add(&sums->total, state->o + at, stride, reference->o + at, stride, rows,
                      head_dim);
    hr_error_sums_add(&sums->lse, state->lse + head, heads, reference->lse + head, heads, rows, 1);
}

/* Heads are independent; a failure inside the region keeps its status but not its thread's message.
 */
static hr_status score(const hr_audit_reference *reference, const hr_audit_run_state *state,
                       const dequantized *values, int32_t top_k, hr_audit_sums *sums)
{
    hr_status status = HR_OK;
#pragma omp parallel for schedule(dynamic) num_threads(hr_threads())
    for (int32_t head = 0; head < reference->problem.num_heads; head++) {
        sum_head(reference, state, values->o, head, &sums[head]);
        hr_status failed =
            hr_divergence_add(&reference->problem, head, reference->q_f32, reference->k_f32,
                              values->q, values->k, top_k, &sums[head].divergence);
#pragma omp critical(hr_audit_score)
        if (failed != HR_OK) status = failed;
    }
    if (status != HR_OK)
        return hr_fail(status, "measuring the attention weights failed: %s",
                       hr_status_string(status));
    return HR_OK;
}

hr_status hr_audit_measure(const hr_audit_reference *reference, const hr_recipe *recipe,
                           const hr_layer_scales *scales, const hr_plan_options *options,
                           int32_t top_k, hr_audit_run_state *state, hr_audit_sums *heads)
{
    *state = (hr_audit_run_state){0};
    const hr_attention_problem *problem = &reference->problem;
    HR_TRY(hr_plan_create(problem, recipe, options, &state->plan));
    hr_layer_layouts layouts = hr_plan_layouts(state->plan);
    HR_TRY(hr_pack_layer(recipe, &layouts, &reference->q, &reference->k, &reference->v,
                         problem->batch, problem->cu_seqlens_q, problem->cu_seqlens_kv, scales,
                         &state->packed));
    int64_t rows = reference->q.shape[0] * reference->q.shape[1];
    state->o = hr_alloc((size_t)hr_tensor_size(&reference->q), sizeof(float));
    state->lse = hr_alloc((size_t)rows, sizeof(float));
    if (!state->o || !state->lse) return HR_ERROR_OUT_OF_MEMORY;
    HR_TRY(hr_device_run_create(state->plan, &state->packed, &state->run));
    HR_TRY(hr_device_run_start(state->run));
    HR_TRY(hr_device_run_fetch(state->run, state->o, state->lse));

    dequantized values = {0};
    hr_status status = dequantize(reference, &state->packed, &values);
    if (status == HR_OK) status = score(reference, state, &values, top_k, heads);
    dequantized_free(&values);
    return status;
}

void hr_audit_run_state_free(hr_audit_run_state *state)
{
    hr_device_run_free(state->run);
    hr_plan_free(state->plan);
    hr_packed_layer_free(&state->packed);
    free(state->o);
    free(state->lse);
    *state = (hr_audit_run_state){0};
}

hr_status hr_audit_time(hr_audit_run_state *state, double *seconds)
{
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    hr_status status = hr_device_run_start(state->run);
    if (status == HR_OK) status = hr_device_run_wait(state->run);
    clock_gettime(CLOCK_MONOTONIC, &end);
    *seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
    return status;
}
