/*
 * What recipes on a GPU are compared with. A baseline takes the original tensors, prepares them
 * once, and then runs like a plan: queued, waited for, fetched.
 *
 *     fp32-reference   kernels/cuda/reference_sm90.h: exact to FP32's rounding, slow
 *     cublaslt-fp8     FP8 attention that is not fused (device_unfused.c): E4M3 with a scale a
 *                      head, product, softmax, product, head by head, logits in FP32
 */
#ifndef HEADROOM_DEVICE_BASELINE_H
#define HEADROOM_DEVICE_BASELINE_H

#include "headroom/attention.h"

typedef enum hr_baseline {
    HR_BASELINE_FP32 = 0,
    HR_BASELINE_CUBLASLT_FP8,
    HR_BASELINE_COUNT
} hr_baseline;

const char *hr_baseline_name(hr_baseline baseline);

typedef struct hr_device_baseline hr_device_baseline;

/*
 * q, k, v: host memory, F32 contiguous, of the problem's shapes; they are copied, and the problem
 * must outlive the baseline. Causal masks, windows, GQA and varlen: HR_ERROR_UNSUPPORTED for what
 * else a problem can ask, HR_ERROR_NOT_FOUND without cuBLASLt. Release with
 * hr_device_baseline_free.
 */
hr_status hr_device_baseline_create(hr_baseline baseline, const hr_attention_problem *problem,
                                    const float *q, const float *k, const float *v,
                                    hr_device_baseline **out) HR_NODISCARD;
void hr_device_baseline_free(hr_device_baseline *baseline);

/* Queues a run on CUDA's default stream; waits for it; copies O and LSE to host memory. */
hr_status hr_device_baseline_start(hr_device_baseline *baseline) HR_NODISCARD;
hr_status hr_device_baseline_wait(hr_device_baseline *baseline) HR_NODISCARD;
hr_status hr_device_baseline_fetch(hr_device_baseline *baseline, float *o, float *lse) HR_NODISCARD;

/* Bytes of K and V on the GPU, as hr_packed_bytes counts them. */
int64_t hr_device_baseline_kv_bytes(const hr_device_baseline *baseline);

/* The parts of the above that differ; o and lse are F32 on the GPU, contiguous and zeroed. */
typedef struct hr_unfused hr_unfused;
hr_status hr_unfused_create(const hr_attention_problem *problem, const float *q, const float *k,
                            const float *v, hr_unfused **out) HR_NODISCARD;
void hr_unfused_free(hr_unfused *unfused);
hr_status hr_unfused_start(const hr_unfused *unfused, float *o, float *lse) HR_NODISCARD;
int64_t hr_unfused_kv_bytes(const hr_unfused *unfused);

/* device_reference.c: cu_seqlens of q and of k behind each other, on the GPU; and the launch. */
hr_status hr_device_reference_check(const hr_attention_problem *problem) HR_NODISCARD;
hr_status hr_device_reference_offsets(const hr_attention_problem *problem, void **out) HR_NODISCARD;
hr_status hr_device_reference_start(const hr_attention_problem *problem, const void *offsets,
                                    const float *const operands[3], float *o,
                                    float *lse) HR_NODISCARD;

#endif
