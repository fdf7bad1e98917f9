/*
 * The softmax between the two FP8 matrix products of unfused attention, for one head of one
 * sequence, and the division by the row sums after them:
 *
 *     m_i = max_j s_ij    p_ij = e4m3(448 * 2^(s_ij - m_i))    l_i = sum_j 2^(s_ij - m_i)
 *     O_i = (1 / l_i) * sum_j p_ij v_j / 448                   LSE_i = ln 2 * (m_i + log2 l_i)
 *
 * Dividing after the products lets P use E4M3's range up to the row's own largest weight, where
 * weights that were divided first would be subnormal in long rows. l sums what was not rounded.
 */
#ifndef HEADROOM_SOFTMAX_SM90_H
#define HEADROOM_SOFTMAX_SM90_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { HR_SM90_SOFTMAX_ALIGN = 16 }; /* keys a row of logits and weights is padded to */

/* Device memory. Rows with no key they see get weights 0, inverse 0 and LSE -inf. */
typedef struct hr_sm90_softmax_args {
    const float *logits; /* [seqlen_q][pitch], times log2 e; columns past seqlen_kv are not read */
    uint8_t *weights;    /* E4M3 [seqlen_q][pitch]; columns past seqlen_kv become 0 */
    float *inverse;      /* 1 / l of row i at inverse[i * row_stride] */
    float *lse;          /* likewise */
    int64_t pitch;       /* a multiple of HR_SM90_SOFTMAX_ALIGN */
    int64_t row_stride;
    int32_t seqlen_q, seqlen_kv;
    int32_t window_left, window_right; /* as in hr_sm90_args: INT32_MAX is no limit */
    void *stream;                      /* cudaStream_t */
} hr_sm90_softmax_args;

/* A cudaError_t. */
int hr_softmax_sm90(const hr_sm90_softmax_args *args);

/* o [rows][head_dim] times inverse [rows]. */
typedef struct hr_sm90_normalize_args {
    float *o;
    const float *inverse;
    int64_t rows;
    int32_t head_dim;
    void *stream; /* cudaStream_t */
} hr_sm90_normalize_args;

int hr_normalize_sm90(const hr_sm90_normalize_args *args);

#ifdef __cplusplus
}
#endif

#endif
