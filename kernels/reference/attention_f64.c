/*
 * The FP64 oracle: attention as the formula says, in two passes, nothing fused.
 *
 *     s_j = softmax_scale * q . k_j        (q and k_j rotated by position when RoPE is asked for)
 *     s_j = softcap * tanh(s_j / softcap)  s_j -= alibi_slope * |i + d - j|     d = kv - q lengths
 *     m = max_j s_j,  l = sum_j exp(s_j - m) (+ exp(sink - m)),  o = sum_j exp(s_j - m) v_j / l
 *     lse = m + ln l
 *
 * j runs over the keys the mask lets row i see; the sink takes part in m too. Positions: key j is
 * at j, query i at i + d. Every other result in Headroom is measured against this one.
 *
 * K is interleaved (dot_keys.h); 8 rows go through K and V together, which a head of some thousand
 * keys would otherwise have to bring from memory for every row.
 */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "device_internal.h"
#include "format_minifloat.h"
#include "memory.h"
#include "plan.h"
#include "reference/dot_keys.h"
#include "status_internal.h"
#include "threads.h"

enum {
    KEYS = HR_DOT_KEYS,
    ROWS = 8,
    SERIAL_WORK = 1 << 20 /* multiply-adds below which starting a team costs more than it saves */
};

static double element(const hr_tensor *tensor, int64_t index)
{
    switch (tensor->dtype) {
    case HR_DTYPE_F64:
        return ((const double *)tensor->data)[index];
    case HR_DTYPE_F32:
        return (double)((const float *)tensor->data)[index];
    case HR_DTYPE_F16:
        return (double)hr_f16_to_float(((const uint16_t *)tensor->data)[index]);
    default:
        return (double)hr_bf16_to_float(((const uint16_t *)tensor->data)[index]);
    }
}

/* Rotates x [head_dim] in place to `position`. */
static void rotate(double *x, const hr_rope *rope, double position)
{
    const int32_t half = rope->rotary_dim / 2;
    for (int32_t i = 0; i < half; i++) {
        int32_t first = rope->interleaved ? 2 * i : i;
        int32_t second = rope->interleaved ? 2 * i + 1 : i + half;
        double angle = position * pow((double)rope->theta, -2.0 * i / rope->rotary_dim);
        double c = cos(angle), s = sin(angle), a = x[first], b = x[second];
        x[first] = a * c - b * s;
        x[second] = a * s + b * c;
    }
}

/* One head of one sequence, decoded: [tokens][head_dim], rotated from position0 on if rope. */
static void load_head(const hr_tensor *tensor, int64_t first, int32_t tokens, int32_t head,
                      const hr_rope *rope, double position0, double *out)
{
    const int64_t head_dim = tensor->shape[2];
    for (int32_t t = 0; t < tokens; t++) {
        int64_t base = (first + t) * tensor->stride[0] + head * tensor->stride[1];
        for (int64_t channel = 0; channel < head_dim; channel++)
            out[t * head_dim + channel] = element(tensor, base + channel * tensor->stride[2]);
        if (rope && rope->rotary_dim) rotate(out + t * head_dim, rope, position0 + t);
    }
}

static void interleave_keys(const double *rows, int32_t tokens, int32_t head_dim, double *out)
{
    for (int32_t t = 0; t < tokens; t++)
        for (int32_t channel = 0; channel < head_dim; channel++)
            out[hr_interleaved_at(t, channel, head_dim)] = rows[(int64_t)t * head_dim + channel];
}

typedef struct head_problem {
    const hr_attention_problem *problem;
    hr_kernel_args args; /* lengths only */
    int32_t sequence, head;
    const double *q, *v; /* [tokens][head_dim] */
    const double *k;     /* interleaved */
    double *o, *lse;     /* of the head; rows o_stride and lse_stride apart */
    int64_t o_stride, lse_stride;
} head_problem;

static double logit(const head_problem *head, int32_t row, int32_t key, double dot)
{
    const hr_attention_problem *problem = head->problem;
    double s = (double)problem->softmax_scale * dot;
    if (problem->softcap > 0) s = (double)problem->softcap * tanh(s / (double)problem->softcap);
    if (problem->alibi_slopes)
        s -= (double)problem->alibi_slopes[head->head] *
             fabs((double)row + head->args.shift - (double)key);
    return s;
}

/* o += sum_j weights[j] * v_j over the visible ones of KEYS keys, in their order. */
static void add_values(const double *restrict weights, const bool *restrict visible,
                       const double *restrict v, int32_t head_dim, double *restrict o)
{
    for (int j = 0; j < KEYS; j++) {
        if (!visible[j]) continue;
        for (int32_t channel = 0; channel < head_dim; channel++)
            o[channel] += weights[j] * v[(int64_t)j * head_dim + channel];
    }
}

/* Dot products -> exp(s_j - m), in place; returns their sum with the sink's, and the row's LSE. */
static double make_weights(const head_problem *head, int32_t row, double *weights,
                           const bool *visible, double *lse)
{
    const hr_attention_problem *problem = head->problem;
    const double sink = problem->sinks ? (double)problem->sinks[head->head] : -INFINITY;
    double largest = sink;
    for (int32_t j = 0; j < head->args.seqlen_kv; j++) {
        if (!visible[j]) continue;
        weights[j] = logit(head, row, j, weights[j]);
        if (weights[j] > largest) largest = weights[j];
    }
    double sum = sink > -INFINITY ? exp(sink - largest) : 0;
    for (int32_t j = 0; j < head->args.seqlen_kv; j++) {
        if (!visible[j]) continue;
        weights[j] = exp(weights[j] - largest);
        sum += weights[j];
    }
    *lse = sum == 0 ? -INFINITY : largest + log(sum);
    return sum;
}

/*
 * `weights` and `visible` are [ROWS][keys], where keys is seqlen_kv or more, rounded up to KEYS;
 * visible is false from seqlen_kv on.
 */
static void attend_rows(const head_problem *head, int32_t first, int32_t rows, size_t keys,
                        double *weights, bool *visible)
{
    const int32_t head_dim = head->problem->head_dim, seqlen_kv = head->args.seqlen_kv;
    double sums[ROWS], *o = head->o + first * head->o_stride;
    for (int32_t r = 0; r < rows; r++)
        hr_mask_row(head->problem, head->sequence, head->head, first + r, visible + r * keys);
    for (int32_t j = 0; j < seqlen_kv; j += KEYS)
        for (int32_t r = 0; r < rows; r++)
            if (hr_any_visible(visible + r * keys + j))
                hr_dot_keys(head->q + (int64_t)(first + r) * head_dim,
                            head->k + (int64_t)j * head_dim, head_dim, weights + r * keys + j);
    for (int32_t r = 0; r < rows; r++) {
        double lse;
        sums[r] = make_weights(head, first + r, weights + r * keys, visible + r * keys, &lse);
        if (head->lse) head->lse[(first + r) * head->lse_stride] = lse;
        memset(o + r * head->o_stride, 0, (size_t)head_dim * sizeof *o);
    }
    for (int32_t j = 0; j < seqlen_kv; j += KEYS)
        for (int32_t r = 0; r < rows; r++)
            add_values(weights + r * keys + j, visible + r * keys + j,
                       head->v + (int64_t)j * head_dim, head_dim, o + r * head->o_stride);
    for (int32_t r = 0; r < rows; r++)
        for (int32_t channel = 0; channel < head_dim && sums[r] != 0; channel++)
            o[r * head->o_stride + channel] /= sums[r];
}

static hr_status check_input(const char *name, const hr_tensor *tensor, int64_t tokens,
                             int64_t heads, int64_t head_dim)
{
    if (!tensor) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s must not be NULL", name);
    if (tensor->dtype != HR_DTYPE_F64 && tensor->dtype != HR_DTYPE_F32 &&
        tensor->dtype != HR_DTYPE_F16 && tensor->dtype != HR_DTYPE_BF16)
        return hr_fail(HR_ERROR_UNSUPPORTED, "%s is %s; the reference takes f64, f32, f16 and bf16",
                       name, hr_dtype_name(tensor->dtype));
    const int64_t expected[3] = {tokens, heads, head_dim};
    if (tensor->ndim != 3)
        return hr_fail(HR_ERROR_MISMATCH, "%s has %d dimensions; it must have 3", name,
                       tensor->ndim);
    for (int i = 0; i < 3; i++)
        if (tensor->shape[i] != expected[i])
            return hr_fail(HR_ERROR_MISMATCH, "%s has shape[%d] %lld; the problem has %lld", name,
                           i, (long long)tensor->shape[i], (long long)expected[i]);
    if (!tensor->data && tokens > 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the data of %s must not be NULL", name);
    return hr_device_expect(name, tensor->device, HR_DEVICE_CPU);
}

/* Buffers for one head of one sequence, and ROWS rows of weights and mask for each thread. */
typedef struct reference_buffers {
    double *q, *k, *k_rows, *v, *weights;
    bool *visible;
    size_t keys; /* the longest seqlen_kv, rounded up to KEYS */
    int threads;
} reference_buffers;

static hr_status allocate_buffers(const hr_attention_problem *problem, reference_buffers *buffers)
{
    const size_t row = (size_t)problem->head_dim * sizeof(double);
    const size_t rows = (size_t)hr_longest_sequence(problem->cu_seqlens_q, problem->batch);
    const size_t keys = (size_t)hr_longest_sequence(problem->cu_seqlens_kv, problem->batch);
    buffers->keys = (keys + KEYS - 1) / KEYS * KEYS;
    buffers->threads = omp_in_parallel() ? 1 : hr_threads();
    buffers->q = hr_alloc(rows, row);
    buffers->k = hr_alloc(buffers->keys, row);
    buffers->k_rows = hr_alloc(keys, row);
    buffers->v = hr_alloc(keys, row);
    const size_t kept = (size_t)buffers->threads * ROWS;
    buffers->weights = hr_alloc(kept, buffers->keys * sizeof(double));
    buffers->visible = hr_alloc(kept, buffers->keys * sizeof(bool));
    bool complete = buffers->q && buffers->k && buffers->k_rows && buffers->v && buffers->weights &&
                    buffers->visible;
    return complete ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
}

static void free_buffers(reference_buffers *buffers)
{
    free(buffers->q);
    free(buffers->k);
    free(buffers->k_rows);
    free(buffers->v);
    free(buffers->weights);
    free(buffers->visible);
}

static void run_head(const hr_attention_problem *problem, int32_t sequence, int32_t head,
                     const hr_tensor *q, const hr_tensor *k, const hr_tensor *v,
                     const reference_buffers *buffers, double *o, double *lse)
{
    const int32_t kv_head = head / (problem->num_heads / problem->num_kv_heads);
    const int64_t first_q = problem->cu_seqlens_q[sequence];
    const int64_t first_kv = problem->cu_seqlens_kv[sequence];
    head_problem state = {.problem = problem,
                          .args = hr_sequence_args(problem, sequence),
                          .sequence = sequence,
                          .head = head,
                          .q = buffers->q,
                          .k = buffers->k,
                          .v = buffers->v,
                          .o_stride = (int64_t)problem->num_heads * problem->head_dim,
                          .lse_stride = problem->num_heads};
    const int32_t seqlen_kv = state.args.seqlen_kv;
    state.o = o + first_q * state.o_stride + (int64_t)head * problem->head_dim;
    if (lse) state.lse = lse + first_q * state.lse_stride + head;
    load_head(q, first_q, state.args.seqlen_q, head, &problem->rope, state.args.shift, buffers->q);
    load_head(k, first_kv, seqlen_kv, kv_head, &problem->rope, 0, buffers->k_rows);
    load_head(v, first_kv, seqlen_kv, kv_head, NULL, 0, buffers->v);
    /* Shorter sequences must not see what the mask of a longer one left behind. */
    memset(buffers->visible, 0, (size_t)buffers->threads * ROWS * buffers->keys * sizeof(bool));
    interleave_keys(buffers->k_rows, seqlen_kv, problem->head_dim, buffers->k);
    const int64_t work = (int64_t)state.args.seqlen_q * seqlen_kv * problem->head_dim;
    const int threads = work < SERIAL_WORK ? 1 : buffers->threads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int32_t row = 0; row < state.args.seqlen_q; row += ROWS) {
        const size_t offset = (size_t)omp_get_thread_num() * ROWS * buffers->keys;
        const int32_t left = state.args.seqlen_q - row, rows = left < ROWS ? left : ROWS;
        attend_rows(&state, row, rows, buffers->keys, buffers->weights + offset,
                    buffers->visible + offset);
    }
}

hr_status hr_reference_attention(const hr_attention_problem *problem, const hr_tensor *q,
                                 const hr_tensor *k, const hr_tensor *v, double *o, double *lse)
{
    HR_TRY(hr_attention_problem_check(problem));
    if (problem->paging.page_size)
        return hr_fail(HR_ERROR_UNSUPPORTED, "the reference does not support paged");
    const int32_t batch = problem->batch, head_dim = problem->head_dim;
    HR_TRY(check_input("q", q, problem->cu_seqlens_q[batch], problem->num_heads, head_dim));
    HR_TRY(check_input("k", k, problem->cu_seqlens_kv[batch], problem->num_kv_heads, head_dim));
    HR_TRY(check_input("v", v, problem->cu_seqlens_kv[batch], problem->num_kv_heads, head_dim));
    if (!o) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "o must not be NULL");

    reference_buffers buffers = {0};
    hr_status status = allocate_buffers(problem, &buffers);
    if (status == HR_OK)
        for (int32_t b = 0; b < batch; b++)
            for (int32_t head = 0; head < problem->num_heads; head++)
                run_head(problem, b, head, q, k, v, &buffers, o, lse);
    free_buffers(&buffers);
    return status;
}
