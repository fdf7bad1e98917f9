/*
 * The FP32 reference on a GPU: validates and launches kernels/cuda/reference_sm90.h.
 */
#include "cuda/reference_sm90.h"

#include "cuda_api.h"
#include "device_baseline.h"
#include "device_internal.h"
#include "plan.h"
#include "status_internal.h"
#include "transform.h"

static hr_status check_tensor(const char *name, const hr_tensor *tensor, int ndim,
                              const int64_t *shape)
{
    if (!tensor || !tensor->data)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s must not be NULL", name);
    HR_TRY(hr_device_expect(name, tensor->device, HR_DEVICE_CUDA));
    int64_t stride = 1;
    bool fits = tensor->dtype == HR_DTYPE_F32 && tensor->ndim == ndim;
    for (int i = ndim - 1; fits && i >= 0; i--) {
        fits = tensor->shape[i] == shape[i] && tensor->stride[i] == stride;
        stride *= shape[i];
    }
    if (fits) return HR_OK;
    return hr_fail(HR_ERROR_MISMATCH,
                   "%s must be f32, contiguous, [%lld, %lld%s] for the reference on cuda", name,
                   (long long)shape[0], (long long)shape[1], ndim == 3 ? ", head_dim" : "");
}

hr_status hr_device_reference_check(const hr_attention_problem *problem)
{
    HR_TRY(hr_attention_problem_check(problem));
    if (problem->softcap > 0 || problem->alibi_slopes || problem->sinks ||
        problem->rope.rotary_dim || problem->paging.page_size || problem->mask.keep ||
        problem->mask.blocks)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "the reference on cuda has causal masks, windows, GQA and varlen; "
                       "hr_reference_attention, on the CPU, has the rest");
    if (problem->head_dim > HR_HEAD_DIM_MAX)
        return hr_fail(HR_ERROR_UNSUPPORTED, "head_dim is %d; the reference on cuda takes up to %d",
                       problem->head_dim, HR_HEAD_DIM_MAX);
    return HR_OK;
}

hr_status hr_device_reference_offsets(const hr_attention_problem *problem, void **out)
{
    const size_t bytes = ((size_t)problem->batch + 1) * sizeof(int32_t);
    HR_TRY(hr_device_alloc(HR_DEVICE_CUDA, 2, bytes, out));
    HR_TRY(hr_device_copy(HR_DEVICE_CUDA, *out, HR_DEVICE_CPU, problem->cu_seqlens_q, bytes, NULL));
    return hr_device_copy(HR_DEVICE_CUDA, (char *)*out + bytes, HR_DEVICE_CPU,
                          problem->cu_seqlens_kv, bytes, NULL);
}

hr_status hr_device_reference_start(const hr_attention_problem *problem, const void *offsets,
                                    const float *const operands[3], float *o, float *lse)
{
    const hr_kernel_args mask = hr_sequence_args(problem, 0);
    const hr_sm90_reference_args args = {
        .q = operands[0],
        .k = operands[1],
        .v = operands[2],
        .o = o,
        .lse = lse,
        .cu_seqlens_q = offsets,
        .cu_seqlens_kv = (const int32_t *)offsets + problem->batch + 1,
        .batch = problem->batch,
        .total_q = problem->cu_seqlens_q[problem->batch],
        .num_heads = problem->num_heads,
        .num_kv_heads = problem->num_kv_heads,
        .head_dim = problem->head_dim,
        .softmax_scale = problem->softmax_scale,
        .window_left = mask.window_left,
        .window_right = mask.window_right,
    };
    return hr_cuda_status(hr_cuda()->reference(&args), "launch the reference");
}

hr_status hr_device_reference_attention(const hr_attention_problem *problem, const hr_tensor *q,
                                        const hr_tensor *k, const hr_tensor *v, const hr_tensor *o,
                                        const hr_tensor *lse)
{
    HR_TRY(hr_device_reference_check(problem));
    const int64_t q_shape[3] = {problem->cu_seqlens_q[problem->batch], problem->num_heads,
                                problem->head_dim};
    const int64_t kv_shape[3] = {problem->cu_seqlens_kv[problem->batch], problem->num_kv_heads,
                                 problem->head_dim};
    HR_TRY(check_tensor("q", q, 3, q_shape));
    HR_TRY(check_tensor("k", k, 3, kv_shape));
    HR_TRY(check_tensor("v", v, 3, kv_shape));
    HR_TRY(check_tensor("o", o, 3, q_shape));
    HR_TRY(check_tensor("lse", lse, 2, q_shape));
    HR_TRY(hr_device_check(HR_DEVICE_CUDA));
    void *offsets = NULL;
    hr_status status = hr_device_reference_offsets(problem, &offsets);
    if (status == HR_OK)
        status = hr_device_reference_start(problem, offsets,
                                           (const float *const[]){q->data, k->data, v->data},
                                           o->data, lse->data);
    if (status == HR_OK) status = hr_device_synchronize(HR_DEVICE_CUDA, NULL);
    hr_device_free(HR_DEVICE_CUDA, offsets);
    return status;
}
