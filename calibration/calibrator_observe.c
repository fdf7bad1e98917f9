/*
 * Calibration, streaming: what hr_calibrator_observe does to one layer's Q, K and V.
 *
 *     pass 1   every operand: channel maxima; K: channel sums; and, but for a K that is smoothed
 *              with a static scale,  x -> rotation (if the recipe rotates) -> observer
 *     pass 2   that K:  x -> subtract the mean of pass 1 -> rotation -> observer
 *
 * so observers see what the quantizer will see. A K that is smoothed but has dynamic scales needs
 * no second pass; its observer sees unsmoothed values, and its scales are for information only.
 *
 * A call first scans all values and allocates all it needs; after that it cannot fail, so an error
 * leaves the state as it was. Heads are independent and each is fed in token order by one thread:
 * the result does not depend on the number of threads.
 */
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "calibrator.h"
#include "memory.h"
#include "status_internal.h"
#include "tensor_rows.h"
#include "threads.h"
#include "transform.h"

enum { CHUNK_TOKENS = 64 };

/* One call's input, with what it needs besides. */
typedef struct batch {
    const hr_calibrator *calibrator;
    hr_calibrator_layer *layer;
    const hr_tensor *tensor[HR_OPERANDS];
    int64_t tokens;
    float *rows;  /* [threads, CHUNK_TOKENS, head_dim] scratch */
    float *signs; /* [head_dim] of the rotation */
} batch;

/* Heads of Q, K and V are numbered through as items of work. */
static int32_t item_operand(const hr_calibrator_layer *layer, int32_t item, hr_operand *operand)
{
    *operand = HR_OPERAND_Q;
    if (item < layer->num_heads) return item;
    item -= layer->num_heads;
    *operand = item < layer->num_kv_heads ? HR_OPERAND_K : HR_OPERAND_V;
    return item % layer->num_kv_heads;
}

static int32_t item_count(const hr_calibrator_layer *layer)
{
    return layer->num_heads + 2 * layer->num_kv_heads;
}

static float *thread_rows(const batch *b)
{
    return b->rows + (int64_t)omp_get_thread_num() * CHUNK_TOKENS * b->layer->head_dim;
}

static int64_t chunk_size(const batch *b, int64_t first)
{
    return b->tokens - first < CHUNK_TOKENS ? b->tokens - first : CHUNK_TOKENS;
}

/* Index [token, channel] of the head's first value that is not finite, or -1. */
static int64_t scan_head(const batch *b, int32_t item)
{
    hr_operand operand;
    int32_t head = item_operand(b->layer, item, &operand);
    float *rows = thread_rows(b);
    for (int64_t first = 0; first < b->tokens; first += CHUNK_TOKENS) {
        int64_t bad =
            hr_tensor_rows_load(b->tensor[operand], head, first, chunk_size(b, first), rows);
        if (bad >= 0) return first * b->layer->head_dim + bad;
    }
    return -1;
}

static hr_status check_finite(const batch *b)
{
    int32_t items = item_count(b->layer);
    int64_t *bad = hr_alloc((size_t)items, sizeof *bad);
    if (!bad) return HR_ERROR_OUT_OF_MEMORY;
#pragma omp parallel for schedule(dynamic) num_threads(hr_threads())
    for (int32_t item = 0; item < items; item++)
        bad[item] = scan_head(b, item);

    hr_status status = HR_OK;
    for (int32_t item = 0; status == HR_OK && item < items; item++) {
        if (bad[item] < 0) continue;
        hr_operand operand;
        int32_t head = item_operand(b->layer, item, &operand);
        status = hr_fail(HR_ERROR_NUMERIC,
                         "layer %d: %s is not finite at token %lld, head %d, channel %lld; "
                         "calibration needs finite activations",
                         b->layer->layer, hr_operand_letter(operand),
                         (long long)(bad[item] / b->layer->head_dim), head,
                         (long long)(bad[item] % b->layer->head_dim));
    }
    free(bad);
    return status;
}

static void add_channel_amax(const float *rows, int64_t tokens, int32_t head_dim, float *amax)
{
    for (int64_t token = 0; token < tokens; token++)
        for (int32_t c = 0; c < head_dim; c++) {
            float magnitude = fabsf(rows[token * head_dim + c]);
            amax[c] = magnitude > amax[c] ? magnitude : amax[c];
        }
}

/* Neumaier's compensated summation, channel by channel. */
static void add_channel_sum(const float *rows, int64_t tokens, int32_t head_dim, double *sum,
                            double *error)
{
    for (int64_t token = 0; token < tokens; token++)
        for (int32_t c = 0; c < head_dim; c++) {
            double x = rows[token * head_dim + c];
            double total = sum[c] + x;
            error[c] += fabs(sum[c]) >= fabs(x) ? (sum[c] - total) + x : (x - total) + sum[c];
            sum[c] = total;
        }
}

static void transform_rows(const batch *b, hr_operand operand, int32_t head, int64_t tokens,
                           float *rows)
{
    int32_t dim = b->layer->head_dim;
    bool smooth = operand == HR_OPERAND_K && b->calibrator->pass == 2;
    bool rotate =
        hr_operand_recipe_of(&b->calibrator->recipe, operand)->transform & HR_TRANSFORM_HADAMARD;
    for (int64_t token = 0; token < tokens; token++) {
        if (smooth)
            hr_mean_subtract(b->layer->k_mean + (int64_t)head * dim, dim, rows + token * dim);
        if (rotate) hr_hadamard_rotate(b->signs, dim, rows + token * dim);
    }
}

static void observe_head(const batch *b, int32_t item)
{
    hr_operand operand;
    int32_t head = item_operand(b->layer, item, &operand);
    int32_t dim = b->layer->head_dim;
    int pass = b->calibrator->pass;
    int observed_in = operand == HR_OPERAND_K ? b->calibrator->passes : 1;
    if (pass == 2 && observed_in != 2) return;

    float *rows = thread_rows(b);
    int64_t channel = (int64_t)head * dim;
    for (int64_t first = 0; first < b->tokens; first += CHUNK_TOKENS) {
        int64_t tokens = chunk_size(b, first);
        hr_tensor_rows_load(b->tensor[operand], head, first, tokens, rows);
        if (pass == 1) {
            add_channel_amax(rows, tokens, dim, b->layer->amax[operand] + channel);
            if (operand == HR_OPERAND_K)
                add_channel_sum(rows, tokens, dim, b->layer->k_sum + channel,
                                b->layer->k_sum_error + channel);
        }
        if (pass == observed_in) {
            transform_rows(b, operand, head, tokens, rows);
            b->calibrator->observer.type->observe(b->layer->observer[operand][head], rows,
                                                  tokens * dim);
        }
    }
}

static hr_status check_shapes(int32_t layer, const hr_tensor *q, const hr_tensor *k,
                              const hr_tensor *v)
{
    if (layer < 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "layer is %d; it must be 0 or more", layer);
    const hr_tensor *tensors[HR_OPERANDS] = {q, k, v};
    for (hr_operand x = HR_OPERAND_Q; x <= HR_OPERAND_V; x++) {
        if (!tensors[x])
            return hr_fail(HR_ERROR_INVALID_ARGUMENT, "layer %d: %s is NULL", layer,
                           hr_operand_letter(x));
        hr_status status = hr_tensor_rows_check(tensors[x], hr_operand_letter(x));
        if (status != HR_OK) return hr_fail_in(status, "layer %d", layer);
    }
    if (q->shape[0] != k->shape[0] || q->shape[0] != v->shape[0])
        return hr_fail(HR_ERROR_MISMATCH, "layer %d: q, k and v have %lld, %lld and %lld tokens",
                       layer, (long long)q->shape[0], (long long)k->shape[0],
                       (long long)v->shape[0]);
    if (q->shape[0] == 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "layer %d has no tokens to observe", layer);
    if (k->shape[1] != v->shape[1] || k->shape[1] < 1 || q->shape[1] < 1 ||
        q->shape[1] % k->shape[1] || q->shape[1] > INT32_MAX / 4)
        return hr_fail(HR_ERROR_MISMATCH,
                       "layer %d: q, k and v have %lld, %lld and %lld heads; k and v must have as "
                       "many, and q a multiple of that",
                       layer, (long long)q->shape[1], (long long)k->shape[1],
                       (long long)v->shape[1]);
    int64_t dim = q->shape[2];
    if (dim != k->shape[2] || dim != v->shape[2] || dim < HR_HEAD_DIM_MULTIPLE ||
        dim % HR_HEAD_DIM_MULTIPLE || dim > HR_HEAD_DIM_MAX)
        return hr_fail(HR_ERROR_MISMATCH,
                       "layer %d: q, k and v have head_dim %lld, %lld and %lld; it must be the "
                       "same multiple of %d up to %d",
                       layer, (long long)dim, (long long)k->shape[2], (long long)v->shape[2],
                       HR_HEAD_DIM_MULTIPLE, HR_HEAD_DIM_MAX);
    return HR_OK;
}

static hr_status check_layer(const hr_calibrator *calibrator, const hr_calibrator_layer *known,
                             int32_t layer, const hr_tensor *q, const hr_tensor *k)
{
    if (!known && calibrator->pass == 2)
        return hr_fail(HR_ERROR_MISMATCH,
                       "layer %d was not observed in the first pass; feed the same data in both "
                       "passes",
                       layer);
    if (known && (known->num_heads != q->shape[1] || known->num_kv_heads != k->shape[1] ||
                  known->head_dim != q->shape[2]))
        return hr_fail(HR_ERROR_MISMATCH,
                       "layer %d: %lld heads, %lld KV heads, head_dim %lld, but it was first "
                       "observed with %d, %d and %d",
                       layer, (long long)q->shape[1], (long long)k->shape[1],
                       (long long)q->shape[2], known->num_heads, known->num_kv_heads,
                       known->head_dim);
    return HR_OK;
}

/* Scans and then observes; b->layer is complete but, when new, not yet in the calibrator. */
static hr_status observe_batch(batch *b)
{
    size_t dim = (size_t)b->layer->head_dim;
    b->rows = hr_alloc((size_t)hr_threads() * CHUNK_TOKENS * dim, sizeof(float));
    b->signs = hr_alloc(dim, sizeof(float));
    hr_status status = b->rows && b->signs ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
    if (status == HR_OK) status = check_finite(b);
    if (status == HR_OK) {
        hr_hadamard_signs(b->calibrator->hadamard_seed, b->layer->head_dim, b->signs);
        int32_t items = item_count(b->layer);
#pragma omp parallel for schedule(dynamic) num_threads(hr_threads())
        for (int32_t item = 0; item < items; item++)
            observe_head(b, item);
        if (b->calibrator->pass == 1)
            b->layer->tokens += b->tokens;
        else
            b->layer->second_tokens += b->tokens;
    }
    free(b->rows);
    free(b->signs);
    return status;
}

hr_status hr_calibrator_observe(hr_calibrator *calibrator, int32_t number, const hr_tensor *q,
                                const hr_tensor *k, const hr_tensor *v)
{
    if (!calibrator) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the calibrator is NULL");
    HR_TRY(check_shapes(number, q, k, v));
    hr_calibrator_layer *known = hr_calibrator_find(calibrator, number);
    HR_TRY(check_layer(calibrator, known, number, q, k));

    hr_calibrator_layer *layer = known;
    if (!known) {
        HR_TRY(hr_calibrator_reserve(calibrator, 1));
        HR_TRY(hr_calibrator_layer_create(calibrator, number, (int32_t)q->shape[1],
                                          (int32_t)k->shape[1], (int32_t)q->shape[2], &layer));
    }
    batch b = {
        .calibrator = calibrator, .layer = layer, .tensor = {q, k, v}, .tokens = q->shape[0]};
    hr_status status = observe_batch(&b);
    if (known) return status;
    if (status == HR_OK)
        hr_calibrator_insert(calibrator, layer);
    else
        hr_calibrator_layer_free(calibrator, layer);
    return status;
}
