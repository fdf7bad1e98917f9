/*
 * The baselines of an audit on a GPU: run on the original inputs of each layer, compared with the
 * FP64 reference and timed in turn with the configs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "audit_internal.h"
#include "memory.h"
#include "status_internal.h"

hr_status hr_audit_baselines_begin(hr_audit *audit, hr_device device, int32_t repeats,
                                   hr_audit_baseline_state **out)
{
    if (device == HR_DEVICE_CPU) return HR_OK;
    const size_t layers = (size_t)audit->layer_count, heads = (size_t)audit->head_offset[layers];
    audit->baselines = hr_alloc(HR_BASELINE_COUNT, sizeof *audit->baselines);
    hr_audit_baseline_state *states = hr_alloc(HR_BASELINE_COUNT, sizeof *states);
    *out = states;
    if (!audit->baselines || !states) return HR_ERROR_OUT_OF_MEMORY;
    audit->baseline_count = HR_BASELINE_COUNT;
    for (int i = 0; i < HR_BASELINE_COUNT; i++) {
        hr_audit_baseline *baseline = &audit->baselines[i];
        baseline->id = hr_baseline_name((hr_baseline)i);
        baseline->layers = hr_alloc(layers, sizeof *baseline->layers);
        baseline->heads = hr_alloc(heads, sizeof *baseline->heads);
        states[i].heads = hr_alloc(heads, sizeof *states[i].heads);
        states[i].seconds = hr_alloc((size_t)repeats, sizeof *states[i].seconds);
        if (!baseline->layers || !baseline->heads || !states[i].heads || !states[i].seconds)
            return HR_ERROR_OUT_OF_MEMORY;
    }
    return HR_OK;
}

void hr_audit_baselines_layer_end(const hr_audit *audit, hr_audit_baseline_state *states)
{
    for (int32_t i = 0; i < audit->baseline_count; i++) {
        hr_device_baseline_free(states[i].run);
        states[i].run = NULL;
    }
}

void hr_audit_baselines_end(const hr_audit *audit, hr_audit_baseline_state *states)
{
    for (int32_t i = 0; i < audit->baseline_count; i++) {
        free(states[i].heads);
        free(states[i].seconds);
    }
    free(states);
}

static void score(const hr_audit_reference *reference, const float *o, const float *lse,
                  hr_error_sums *heads, hr_error_sums *lse_sums)
{
    const int64_t rows = reference->q.shape[0], head_count = reference->q.shape[1];
    const int64_t head_dim = reference->q.shape[2], stride = head_count * head_dim;
    for (int64_t h = 0; h < head_count; h++) {
        const int64_t at = h * head_dim;
        hr_error_sums_add(&heads[h], o + at, stride, reference->o + at, stride, rows, head_dim);
        hr_error_sums_add(lse_sums, lse + h, head_count, reference->lse + h, head_count, rows, 1);
    }
}

static hr_status run_and_score(const hr_audit_reference *reference, hr_error_sums *heads,
                               hr_audit_baseline_state *state)
{
    const int64_t count = hr_tensor_size(&reference->q);
    float *o = hr_alloc((size_t)count, sizeof *o);
    float *lse = hr_alloc((size_t)(count / reference->q.shape[2]), sizeof *lse);
    hr_status status = o && lse ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
    if (status == HR_OK) status = hr_device_baseline_start(state->run);
    if (status == HR_OK) status = hr_device_baseline_fetch(state->run, o, lse);
    if (status == HR_OK) score(reference, o, lse, heads, &state->lse);
    free(o);
    free(lse);
    return status;
}

/* What a baseline lacks is no fault of the audit; what breaks is. */
static bool is_lack(hr_status status)
{
    return status == HR_ERROR_UNSUPPORTED || status == HR_ERROR_NOT_FOUND ||
           status == HR_ERROR_OUT_OF_MEMORY;
}

static hr_status measure(hr_audit *audit, const hr_audit_reference *reference, int32_t at,
                         int32_t i, double flops, hr_audit_baseline_state *state)
{
    hr_audit_baseline *baseline = &audit->baselines[i];
    const int32_t first = audit->head_offset[at];
    HR_TRY(hr_device_baseline_create((hr_baseline)i, &reference->problem, reference->q_f32,
                                     reference->k_f32, reference->v_f32, &state->run));
    HR_TRY(run_and_score(reference, state->heads + first, state));
    hr_error_sums layer = {0};
    for (int32_t h = first; h < audit->head_offset[at + 1]; h++) {
        baseline->heads[h] = hr_error_sums_finish(&state->heads[h]);
        hr_error_sums_merge(&layer, &state->heads[h]);
    }
    baseline->layers[at] = hr_error_sums_finish(&layer);
    baseline->timing.kv_bytes += hr_device_baseline_kv_bytes(state->run);
    state->flops += flops;
    return HR_OK;
}

hr_status hr_audit_baselines_measure(hr_audit *audit, const hr_audit_reference *reference,
                                     int32_t at, double flops, hr_audit_baseline_state *states)
{
    for (int32_t i = 0; i < audit->baseline_count; i++) {
        hr_audit_baseline *baseline = &audit->baselines[i];
        if (*baseline->skipped) continue;
        const hr_status status = measure(audit, reference, at, i, flops, &states[i]);
        if (status == HR_OK) continue;
        hr_device_baseline_free(states[i].run);
        states[i].run = NULL;
        if (!is_lack(status))
            return hr_fail_in(status, "layer %d, %s", audit->layers[at].layer, baseline->id);
        snprintf(baseline->skipped, sizeof baseline->skipped, "%s", hr_last_error());
    }
    return HR_OK;
}

void hr_audit_baselines_finish(hr_audit *audit, int32_t repeats, hr_audit_baseline_state *states)
{
    for (int32_t i = 0; i < audit->baseline_count; i++) {
        hr_audit_baseline *baseline = &audit->baselines[i];
        hr_error_sums all = {0};
        if (*baseline->skipped) continue;
        for (int32_t h = 0; h < audit->head_offset[audit->layer_count]; h++)
            hr_error_sums_merge(&all, &states[i].heads[h]);
        baseline->total = hr_error_sums_finish(&all);
        baseline->lse = hr_error_sums_finish(&states[i].lse);
        hr_audit_timing_finish(states[i].seconds, repeats, states[i].flops,
                               audit->configs[0].timing.median_ms, &baseline->timing);
    }
}

hr_status hr_audit_baseline_time(hr_audit_baseline_state *state, double *seconds)
{
    struct timespec begin, end;
    *seconds = 0;
    if (!state->run) return HR_OK;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    hr_status status = hr_device_baseline_start(state->run);
    if (status == HR_OK) status = hr_device_baseline_wait(state->run);
    clock_gettime(CLOCK_MONOTONIC, &end);
    *seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
    return status;
}
