/*
 * The epilogue of a query tile, on rows that attention has just written and that are still in
 * cache:
 *
 *     y = scale * o + residual       (-> stream)
 *     RMS:    out = y / sqrt(mean(y^2) + eps) * weight + bias
 *     LAYER:  out = (y - mean(y)) / sqrt(mean((y - mean(y))^2) + eps) * weight + bias
 *
 * Sums go through 16 partial sums, so that compilers can use vectors without reordering anything;
 * a row's result depends on the row alone. Per element it takes a few operations and, in memory,
 * one read of the residual and one write of each output, against head_dim multiply-adds a key
 * before it.
 */
#include "epilogue.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "device_internal.h"
#include "format_minifloat.h"
#include "memory.h"
#include "status_internal.h"
#include "threads.h"

enum { LANES = 16 };

hr_status hr_epilogue_check(const hr_epilogue *epilogue)
{
    if (!isfinite(epilogue->scale))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the epilogue's scale is %g; it must be finite",
                       (double)epilogue->scale);
    if (epilogue->norm != HR_NORM_NONE && epilogue->norm != HR_NORM_RMS &&
        epilogue->norm != HR_NORM_LAYER)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the epilogue's norm is %d; it must be HR_NORM_NONE, _RMS or _LAYER",
                       (int)epilogue->norm);
    if (epilogue->norm == HR_NORM_NONE && (epilogue->weight || epilogue->bias))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the epilogue has a weight or bias but no norm; both must be NULL then");
    if (epilogue->norm != HR_NORM_NONE && !(isfinite(epilogue->eps) && epilogue->eps >= 0))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the epilogue's eps is %g; it must be finite and at least 0",
                       (double)epilogue->eps);
    return HR_OK;
}

/* Loops over a row count in 32 bits. */
static hr_status check_hidden(int64_t hidden)
{
    if (hidden <= INT32_MAX) return HR_OK;
    return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                   "all heads of a token have %lld elements; an epilogue takes 2^31 - 1 at most",
                   (long long)hidden);
}

hr_status hr_epilogue_copy(const hr_epilogue *epilogue, const hr_attention_problem *problem,
                           hr_epilogue **out)
{
    const size_t hidden = (size_t)problem->num_heads * (size_t)problem->head_dim;
    HR_TRY(hr_epilogue_check(epilogue));
    HR_TRY(check_hidden((int64_t)hidden));
    /* The struct, then weight and bias [hidden] each. */
    unsigned char *memory = hr_alloc(1, sizeof *epilogue + 2 * hidden * sizeof(float));
    if (!memory) return HR_ERROR_OUT_OF_MEMORY;
    float *weight = (float *)(memory + sizeof *epilogue), *bias = weight + hidden;
    *out = (hr_epilogue *)memory;
    **out = *epilogue;
    if (epilogue->weight) (*out)->weight = memcpy(weight, epilogue->weight, hidden * sizeof(float));
    if (epilogue->bias) (*out)->bias = memcpy(bias, epilogue->bias, hidden * sizeof(float));
    return HR_OK;
}

static float sum_lanes(const float lane[LANES])
{
    float sum[LANES];
    memcpy(sum, lane, sizeof sum);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int k = 0; k < half; k++)
            sum[k] += sum[k + half];
    return sum[0];
}

/* y = scale * y + residual */
static void add_residual(float *restrict y, float scale, const hr_tensor *residual, int64_t token,
                         int32_t hidden)
{
    if (!residual) {
        for (int32_t c = 0; c < hidden; c++)
            y[c] *= scale;
        return;
    }
    const int64_t offset = token * residual->stride[0];
    if (residual->dtype == HR_DTYPE_F32) {
        const float *restrict r = (const float *)residual->data + offset;
        for (int32_t c = 0; c < hidden; c++)
            y[c] = scale * y[c] + r[c];
    } else {
        const uint16_t *restrict r = (const uint16_t *)residual->data + offset;
        for (int32_t c = 0; c < hidden; c++)
            y[c] = scale * y[c] + hr_bf16_to_float(r[c]);
    }
}

static void store_row(const hr_tensor *out, int64_t token, const float *restrict y, int32_t hidden)
{
    const int64_t offset = token * out->stride[0];
    if (out->dtype == HR_DTYPE_F32) {
        memcpy((float *)out->data + offset, y, (size_t)hidden * sizeof *y);
    } else {
        uint16_t *restrict codes = (uint16_t *)out->data + offset;
        for (int32_t c = 0; c < hidden; c++)
            codes[c] = hr_bf16_from_float(y[c]);
    }
}

/* The mean of y - shift, or of its square; hidden is a multiple of 8. */
static float mean_of(const float *restrict y, float shift, bool squared, int32_t hidden)
{
    float lane[LANES] = {0};
    const int32_t whole = hidden / LANES * LANES;
    for (int32_t c = 0; c < whole; c += LANES)
        for (int k = 0; k < LANES; k++) {
            const float x = y[c + k] - shift;
            lane[k] += squared ? x * x : x;
        }
    for (int32_t c = whole; c < hidden; c++) {
        const float x = y[c] - shift;
        lane[c - whole] += squared ? x * x : x;
    }
    return sum_lanes(lane) / (float)hidden;
}

static void normalize_row(const hr_epilogue *epilogue, float *restrict y, int32_t hidden)
{
    const float mean = epilogue->norm == HR_NORM_LAYER ? mean_of(y, 0, false, hidden) : 0;
    const float inverse = 1 / sqrtf(mean_of(y, mean, true, hidden) + epilogue->eps);
    const float *restrict weight = epilogue->weight, *restrict bias = epilogue->bias;
    if (weight && bias)
        for (int32_t c = 0; c < hidden; c++)
            y[c] = (y[c] - mean) * inverse * weight[c] + bias[c];
    else if (weight)
        for (int32_t c = 0; c < hidden; c++)
            y[c] = (y[c] - mean) * inverse * weight[c];
    else
        for (int32_t c = 0; c < hidden; c++)
            y[c] = (y[c] - mean) * inverse + (bias ? bias[c] : 0);
}

void hr_epilogue_apply(const hr_epilogue *epilogue, const hr_epilogue_rows *rows)
{
    for (int64_t i = 0; i < rows->count; i++) {
        float *y = rows->o + i * rows->hidden;
        const int64_t token = rows->first + i;
        add_residual(y, epilogue->scale, rows->residual, token, rows->hidden);
        if (rows->stream) store_row(rows->stream, token, y, rows->hidden);
        if (epilogue->norm != HR_NORM_NONE) normalize_row(epilogue, y, rows->hidden);
        store_row(rows->out, token, y, rows->hidden);
    }
}

static hr_status check_tensor(const char *name, const hr_tensor *tensor, const hr_tensor *o)
{
    if (tensor->dtype != HR_DTYPE_F32 && (tensor == o || tensor->dtype != HR_DTYPE_BF16))
        return hr_fail(HR_ERROR_MISMATCH, "%s is %s; it must be f32%s", name,
                       hr_dtype_name(tensor->dtype), tensor == o ? "" : " or bf16");
    if (tensor->ndim != 3)
        return hr_fail(HR_ERROR_MISMATCH, "%s has %d dimensions; it must have 3", name,
                       tensor->ndim);
    for (int i = 0; i < 3; i++)
        if (tensor->shape[i] != o->shape[i])
            return hr_fail(HR_ERROR_MISMATCH, "%s has shape[%d] %lld; o has %lld", name, i,
                           (long long)tensor->shape[i], (long long)o->shape[i]);
    if (tensor->stride[2] != 1 || tensor->stride[1] != tensor->shape[2])
        return hr_fail(HR_ERROR_MISMATCH,
                       "%s has strides %lld and %lld; its hidden dimension must be contiguous",
                       name, (long long)tensor->stride[1], (long long)tensor->stride[2]);
    if (!tensor->data && tensor->shape[0] > 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the data of %s must not be NULL", name);
    return hr_device_expect(name, tensor->device, HR_DEVICE_CPU);
}

hr_status hr_epilogue_run(const hr_epilogue *epilogue, const hr_tensor *o,
                          const hr_tensor *residual, const hr_tensor *stream, const hr_tensor *out)
{
    if (!epilogue || !o || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "epilogue, o and out must not be NULL");
    HR_TRY(hr_epilogue_check(epilogue));
    HR_TRY(check_tensor("o", o, o));
    if (residual) HR_TRY(check_tensor("residual", residual, o));
    if (stream) HR_TRY(check_tensor("stream", stream, o));
    HR_TRY(check_tensor("out", out, o));
    const int64_t hidden = o->shape[1] * o->shape[2], tokens = o->shape[0];
    if (tokens == 0) return HR_OK;
    HR_TRY(check_hidden(hidden));
    const int threads = omp_in_parallel() || tokens * hidden < 1 << 16 ? 1 : hr_threads();
    float *memory = hr_alloc((size_t)threads, (size_t)hidden * sizeof *memory);
    if (!memory) return HR_ERROR_OUT_OF_MEMORY;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t token = 0; token < tokens; token++) {
        float *row = memory + (threads > 1 ? omp_get_thread_num() : 0) * hidden;
        memcpy(row, (const float *)o->data + token * o->stride[0], (size_t)hidden * sizeof *row);
        hr_epilogue_apply(epilogue, &(hr_epilogue_rows){.o = row,
                                                        .first = token,
                                                        .count = 1,
                                                        .hidden = (int32_t)hidden,
                                                        .residual = residual,
                                                        .stream = stream,
                                                        .out = out});
    }
    free(memory);
    return HR_OK;
}
