/*
 * KL divergence and top-k agreement of attention weights, row by row in FP64: two logit rows, two
 * log-sum-exps, one sum. Memory is two rows; time is two dot products a visible (query, key) pair.
 */
#include "divergence.h"

#include <math.h>
#include <stdlib.h>

#include "memory.h"
#include "plan.h"
#include "status_internal.h"

enum { TOP_K_MAX = 64, LANES = 8 };

/* Independent partial sums let the compiler keep several additions in flight. */
static double dot(const float *a, const float *b, int32_t n)
{
    double sum[LANES] = {0};
    int32_t c = 0;
    for (; c + LANES <= n; c += LANES)
        for (int lane = 0; lane < LANES; lane++)
            sum[lane] += (double)a[c + lane] * b[c + lane];
    for (; c < n; c++)
        sum[0] += (double)a[c] * b[c];
    double total = 0;
    for (int lane = 0; lane < LANES; lane++)
        total += sum[lane];
    return total;
}

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

hr_status hr_divergence_add(const hr_attention_problem *problem, int32_t head, const float *q,
                            const float *k, const float *q_quantized, const float *k_quantized,
                            int32_t top_k, hr_divergence *sum)
{
    if (top_k < 1 || top_k > TOP_K_MAX)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "top_k is %d; it must be in 1..%d", top_k,
                       TOP_K_MAX);
    int32_t longest = 0;
    for (int32_t b = 0; b < problem->batch; b++) {
        int32_t length = problem->cu_seqlens_kv[b + 1] - problem->cu_seqlens_kv[b];
        if (length > longest) longest = length;
    }
    double *logits = hr_alloc((size_t)longest, 2 * sizeof(double));
    bool *visible = hr_alloc((size_t)longest, sizeof *visible);
    if (!logits || !visible) {
        free(logits);
        free(visible);
        return HR_ERROR_OUT_OF_MEMORY;
    }

    int32_t head_dim = problem->head_dim;
    int32_t kv_head = head / (problem->num_heads / problem->num_kv_heads);
    int64_t q_stride = (int64_t)problem->num_heads * head_dim;
    int64_t k_stride = (int64_t)problem->num_kv_heads * head_dim;
    for (int32_t b = 0; b < problem->batch; b++) {
        int32_t q0 = problem->cu_seqlens_q[b], k0 = problem->cu_seqlens_kv[b];
        hr_kernel_args sequence = hr_sequence_args(problem, b);
        for (int32_t i = 0; i < sequence.seqlen_q; i++) {
            hr_mask_row(problem, b, head, i, visible);
            int32_t count = 0;
            int64_t q_at = (q0 + i) * q_stride + (int64_t)head * head_dim;
            double *original = logits, *quantized = logits + longest;
            for (int32_t j = 0; j < sequence.seqlen_kv; j++) {
                if (!visible[j]) continue;
                int64_t k_at = (k0 + j) * k_stride + (int64_t)kv_head * head_dim;
                double scale = problem->softmax_scale;
                original[count] = scale * dot(q + q_at, k + k_at, head_dim);
                quantized[count++] = scale * dot(q_quantized + q_at, k_quantized + k_at, head_dim);
            }
            if (count > 0) add_row(original, quantized, count, top_k, sum);
        }
    }
    free(logits);
    free(visible);
    return HR_OK;
}
