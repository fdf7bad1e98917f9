/*
 * KL divergence and top-k agreement of attention weights, row by row in FP64: two logit rows, two
 * log-sum-exps, one sum. Time is two dot products a visible (query, key) pair; memory is K twice in
 * FP64, and the logits of as many rows as go through it together.
 */
#include "divergence.h"

#include <math.h>
#include <stdlib.h>

#include "memory.h"
#include "plan.h"
#include "reference/dot_keys.h"
#include "status_internal.h"

enum { TOP_K_MAX = 64, ROWS = 8, SIDES = 2 /* original and quantized */ };

static double log_sum_exp(const double *x, int32_t n)
{
    double max = -INFINITY;
    for (int32_t j = 0; j < n; j++)
        if (x[j] > max) max = x[j];
    double sum = 0;
    for (int32_t j = 0; j < n; j++)
        sum += exp(x[j] - max);
    return max + log(sum);
}

/* Indices of the k largest of x[0..n), by insertion: k is small and most keys fail the first test.
 */
static void strongest(const double *x, int32_t n, int32_t k, int32_t *index)
{
    int32_t held = 0;
    for (int32_t j = 0; j < n; j++) {
        if (held == k && !(x[j] > x[index[k - 1]])) continue;
        int32_t at = held < k ? held++ : k - 1;
        while (at > 0 && x[j] > x[index[at - 1]]) {
            index[at] = index[at - 1];
            at--;
        }
        index[at] = j;
    }
}

static double agreement(const double *a, const double *b, int32_t n, int32_t top_k)
{
    int32_t in_a[TOP_K_MAX], in_b[TOP_K_MAX];
    int32_t k = n < top_k ? n : top_k, both = 0;
    strongest(a, n, k, in_a);
    strongest(b, n, k, in_b);
    for (int32_t i = 0; i < k; i++)
        for (int32_t j = 0; j < k; j++)
            both += in_a[i] == in_b[j];
    return (double)both / k;
}

static void add_row(const double *a, const double *b, int32_t n, int32_t top_k, hr_divergence *sum)
{
    double norm_a = log_sum_exp(a, n), norm_b = log_sum_exp(b, n), kl = 0;
    for (int32_t j = 0; j < n; j++) {
        double log_a = a[j] - norm_a;
        kl += exp(log_a) * (log_a - (b[j] - norm_b));
    }
    sum->kl += kl;
    sum->agree += agreement(a, b, n, top_k);
    sum->rows++;
}

/* One head of one sequence, both sides; q and k point at the head's first token. */
typedef struct head_rows {
    const float *q[SIDES], *k[SIDES];
    int64_t q_stride, k_stride;
    int32_t head_dim, seqlen_kv;
    double scale;
    size_t padded;         /* seqlen_kv or more, rounded up to HR_DOT_KEYS */
    double *keys[SIDES];   /* K interleaved */
    double *logits[SIDES]; /* [ROWS][padded] */
    double *query;         /* [head_dim] */
    bool *visible;         /* [ROWS][padded]; false from seqlen_kv on */
} head_rows;

static void load_keys(const head_rows *head)
{
    for (int side = 0; side < SIDES; side++)
        for (int32_t j = 0; j < head->seqlen_kv; j++)
            for (int32_t c = 0; c < head->head_dim; c++)
                head->keys[side][hr_interleaved_at(j, c, head->head_dim)] =
                    (double)head->k[side][j * head->k_stride + c];
    memset(head->visible, 0, ROWS * head->padded * sizeof *head->visible);
}

/* The dot products of one side's queries [first, first + rows) with all keys a tile of them sees.
 */
static void make_dots(const head_rows *head, int side, int32_t first, int32_t rows)
{
    const int32_t head_dim = head->head_dim;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t c = 0; c < head_dim; c++)
            head->query[r * head_dim + c] = (double)head->q[side][(first + r) * head->q_stride + c];
    for (int32_t j = 0; j < head->seqlen_kv; j += HR_DOT_KEYS)
        for (int32_t r = 0; r < rows; r++)
            if (hr_any_visible(head->visible + (size_t)r * head->padded + j))
                hr_dot_keys(head->query + r * head_dim, head->keys[side] + (int64_t)j * head_dim,
                            head_dim, head->logits[side] + (size_t)r * head->padded + j);
}

/* Moves the logits of visible keys to the front and adds up what they say. */
static void add_visible(const head_rows *head, int32_t r, int32_t top_k, hr_divergence *sum)
{
    const size_t at = (size_t)r * head->padded;
    double *original = head->logits[0] + at, *quantized = head->logits[1] + at;
    int32_t count = 0;
    for (int32_t j = 0; j < head->seqlen_kv; j++) {
        if (!head->visible[at + (size_t)j]) continue;
        original[count] = head->scale * original[j];
        quantized[count++] = head->scale * quantized[j];
    }
    if (count > 0) add_row(original, quantized, count, top_k, sum);
}

static hr_status allocate(head_rows *head, const hr_attention_problem *problem)
{
    const int32_t longest = hr_longest_sequence(problem->cu_seqlens_kv, problem->batch);
    const size_t row = (size_t)problem->head_dim * sizeof(double);
    head->padded = ((size_t)longest + HR_DOT_KEYS - 1) / HR_DOT_KEYS * HR_DOT_KEYS;
    bool complete = true;
    for (int side = 0; side < SIDES; side++) {
        head->keys[side] = hr_alloc(head->padded, row);
        head->logits[side] = hr_alloc(ROWS, head->padded * sizeof(double));
        complete = complete && head->keys[side] && head->logits[side];
    }
    head->query = hr_alloc(ROWS, row);
    head->visible = hr_alloc(ROWS, head->padded * sizeof *head->visible);
    return complete && head->query && head->visible ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
}

static void release(head_rows *head)
{
    for (int side = 0; side < SIDES; side++) {
        free(head->keys[side]);
        free(head->logits[side]);
    }
    free(head->query);
    free(head->visible);
}

hr_status hr_divergence_add(const hr_attention_problem *problem, int32_t head, const float *q,
                            const float *k, const float *q_quantized, const float *k_quantized,
                            int32_t top_k, hr_divergence *sum)
{
    if (top_k < 1 || top_k > TOP_K_MAX)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "top_k is %d; it must be in 1..%d", top_k,
                       TOP_K_MAX);
    const int32_t head_dim = problem->head_dim;
    const int32_t kv_head = head / (problem->num_heads / problem->num_kv_heads);
    head_rows rows = {.q_stride = (int64_t)problem->num_heads * head_dim,
                      .k_stride = (int64_t)problem->num_kv_heads * head_dim,
                      .head_dim = head_dim,
                      .scale = (double)problem->softmax_scale};
    hr_status status = allocate(&rows, problem);
    for (int32_t b = 0; b < problem->batch && status == HR_OK; b++) {
        const int64_t q_at = problem->cu_seqlens_q[b] * rows.q_stride + (int64_t)head * head_dim;
        const int64_t k_at =
            problem->cu_seqlens_kv[b] * rows.k_stride + (int64_t)kv_head * head_dim;
        const hr_kernel_args sequence = hr_sequence_args(problem, b);
        rows.q[0] = q + q_at;
        rows.q[1] = q_quantized + q_at;
        rows.k[0] = k + k_at;
        rows.k[1] = k_quantized + k_at;
        rows.seqlen_kv = sequence.seqlen_kv;
        load_keys(&rows);
        for (int32_t first = 0; first < sequence.seqlen_q; first += ROWS) {
            const int32_t left = sequence.seqlen_q - first, count = left < ROWS ? left : ROWS;
            for (int32_t r = 0; r < count; r++)
                hr_mask_row(problem, b, head, first + r, rows.visible + (size_t)r * rows.padded);
            for (int side = 0; side < SIDES; side++)
                make_dots(&rows, side, first, count);
            for (int32_t r = 0; r < count; r++)
                add_visible(&rows, r, top_k, sum);
        }
    }
    release(&rows);
    return status;
}
