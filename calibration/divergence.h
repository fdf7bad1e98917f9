/*
 * What quantizing Q and K does to the attention weights themselves: for every row, the KL
 * divergence of softmax(quantized logits) from softmax(original logits) and the share of the k
 * strongest keys that stay among the k strongest.
 */
#ifndef HEADROOM_DIVERGENCE_H
#define HEADROOM_DIVERGENCE_H

#include "headroom/attention.h"

typedef struct hr_divergence {
    double kl;    /* sum over rows, nats */
    double agree; /* sum over rows of |top-k both| / k */
    int64_t rows; /* rows that see at least one key */
} hr_divergence;

/*
 * One query head over all sequences of the problem (mask and softmax_scale of it; other features
 * are not looked at). q: [total_q, num_heads, head_dim] and k: [total_kv, num_kv_heads, head_dim],
 * F32 contiguous, original and dequantized. top_k in 1 .. 64. Adds to *sum.
 */
hr_status hr_divergence_add(const hr_attention_problem *problem, int32_t head, const float *q,
                            const float *k, const float *q_quantized, const float *k_quantized,
                            int32_t top_k, hr_divergence *sum) HR_NODISCARD;

#endif
