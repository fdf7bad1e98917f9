/*
 * The baselines of a GPU; see device_baseline.h.
 */
#include "device_baseline.h"

#include <stdlib.h>

#include "memory.h"
#include "status_internal.h"

struct hr_device_baseline {
    hr_baseline kind;
    const hr_attention_problem *problem;
    size_t o_count, lse_count, kv_count; /* elements */
    float *o, *lse;                      /* on the GPU */
    void *operands[3], *offsets;         /* of the reference, on the GPU */
    hr_unfused *unfused;
};

const char *hr_baseline_name(hr_baseline baseline)
{
    static const char *const names[HR_BASELINE_COUNT] = {"fp32-reference", "cublaslt-fp8"};
    return (unsigned)baseline < HR_BASELINE_COUNT ? names[baseline] : "unknown";
}

static hr_status copy_in(const float *source, size_t count, void **out)
{
    HR_TRY(hr_device_alloc(HR_DEVICE_CUDA, count, sizeof *source, out));
    return hr_device_copy(HR_DEVICE_CUDA, *out, HR_DEVICE_CPU, source, count * sizeof *source,
                          NULL);
}

static hr_status prepare(hr_device_baseline *baseline, const float *q, const float *k,
                         const float *v)
{
    void *memory = NULL;
    HR_TRY(hr_device_alloc(HR_DEVICE_CUDA, baseline->o_count, sizeof(float), &memory));
    baseline->o = memory;
    HR_TRY(hr_device_alloc(HR_DEVICE_CUDA, baseline->lse_count, sizeof(float), &memory));
    baseline->lse = memory;
    if (baseline->kind == HR_BASELINE_CUBLASLT_FP8)
        return hr_unfused_create(baseline->problem, q, k, v, &baseline->unfused);
    HR_TRY(copy_in(q, baseline->o_count, &baseline->operands[0]));
    HR_TRY(copy_in(k, baseline->kv_count, &baseline->operands[1]));
    HR_TRY(copy_in(v, baseline->kv_count, &baseline->operands[2]));
    return hr_device_reference_offsets(baseline->problem, &baseline->offsets);
}

hr_status hr_device_baseline_create(hr_baseline kind, const hr_attention_problem *problem,
                                    const float *q, const float *k, const float *v,
                                    hr_device_baseline **out)
{
    *out = NULL;
    if ((unsigned)kind >= HR_BASELINE_COUNT)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%d is not an hr_baseline", (int)kind);
    HR_TRY(hr_device_reference_check(problem)); /* both have the same features */
    hr_device_baseline *baseline = hr_alloc(1, sizeof *baseline);
    if (!baseline) return HR_ERROR_OUT_OF_MEMORY;
    baseline->kind = kind;
    baseline->problem = problem;
    baseline->lse_count =
        (size_t)problem->cu_seqlens_q[problem->batch] * (size_t)problem->num_heads;
    baseline->o_count = baseline->lse_count * (size_t)problem->head_dim;
    baseline->kv_count = (size_t)problem->cu_seqlens_kv[problem->batch] *
                         (size_t)problem->num_kv_heads * (size_t)problem->head_dim;
    const hr_status status = prepare(baseline, q, k, v);
    if (status != HR_OK)
        hr_device_baseline_free(baseline);
    else
        *out = baseline;
    return status;
}

void hr_device_baseline_free(hr_device_baseline *baseline)
{
    if (!baseline) return;
    hr_unfused_free(baseline->unfused);
    for (int i = 0; i < 3; i++)
        hr_device_free(HR_DEVICE_CUDA, baseline->operands[i]);
    hr_device_free(HR_DEVICE_CUDA, baseline->offsets);
    hr_device_free(HR_DEVICE_CUDA, baseline->o);
    hr_device_free(HR_DEVICE_CUDA, baseline->lse);
    free(baseline);
}

hr_status hr_device_baseline_start(hr_device_baseline *baseline)
{
    if (baseline->unfused) return hr_unfused_start(baseline->unfused, baseline->o, baseline->lse);
    void *const *operands = baseline->operands;
    return hr_device_reference_start(baseline->problem, baseline->offsets,
                                     (const float *const[]){operands[0], operands[1], operands[2]},
                                     baseline->o, baseline->lse);
}

hr_status hr_device_baseline_wait(hr_device_baseline *baseline)
{
    (void)baseline; /* all run on the default stream */
    return hr_device_synchronize(HR_DEVICE_CUDA, NULL);
}

hr_status hr_device_baseline_fetch(hr_device_baseline *baseline, float *o, float *lse)
{
    HR_TRY(hr_device_copy(HR_DEVICE_CPU, o, HR_DEVICE_CUDA, baseline->o,
                          baseline->o_count * sizeof *o, NULL));
    return hr_device_copy(HR_DEVICE_CPU, lse, HR_DEVICE_CUDA, baseline->lse,
                          baseline->lse_count * sizeof *lse, NULL);
}

int64_t hr_device_baseline_kv_bytes(const hr_device_baseline *baseline)
{
    return baseline->unfused ? hr_unfused_kv_bytes(baseline->unfused)
                             : (int64_t)(2 * baseline->kv_count * sizeof(float));
}
