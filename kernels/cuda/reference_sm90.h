/*
 * Attention in FP32 on a GPU, written to be right rather than fast: what the fused kernels are
 * compared with on problems too long for the oracle on the host.
 */
#ifndef HEADROOM_REFERENCE_SM90_H
#define HEADROOM_REFERENCE_SM90_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Device memory; q, o [total_q, num_heads, head_dim], k, v [total_kv, num_kv_heads, head_dim]. */
typedef struct hr_sm90_reference_args {
    const float *q, *k, *v;
    float *o, *lse;                              /* lse [total_q, num_heads], natural log */
    const int32_t *cu_seqlens_q, *cu_seqlens_kv; /* [batch + 1] */
    int32_t batch, total_q, num_heads, num_kv_heads, head_dim; /* head_dim at most 256 */
    float softmax_scale;
    /* As in hr_sm90_args: INT32_MAX is no limit, and causal is window_right 0. */
    int32_t window_left, window_right;
    void *stream; /* cudaStream_t */
} hr_sm90_reference_args;

/* A cudaError_t. */
int hr_reference_sm90(const hr_sm90_reference_args *args);

#ifdef __cplusplus
}
#endif

#endif
