/*
 * Runs of a plan whose operands and outputs the caller has in host memory; see
 * headroom/attention.h. On the CPU the operands are used where they are.
 */
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "plan_device.h"
#include "status_internal.h"

struct hr_device_run {
    hr_plan *plan;
    hr_device device;
    hr_packed_layer operands; /* copies on a GPU, the caller's on the CPU */
    float *o, *lse;           /* contiguous, on the device */
    int64_t rows, head_dim;
};

static hr_status prepare(hr_device_run *run, const hr_packed_layer *operands)
{
    const hr_attention_problem *problem = &run->plan->problem;
    run->rows = (int64_t)problem->cu_seqlens_q[problem->batch] * problem->num_heads;
    run->head_dim = problem->head_dim;
    if (run->device == HR_DEVICE_CPU)
        run->operands = *operands;
    else
        HR_TRY(hr_packed_layer_copy(operands, run->device, &run->operands));
    void *memory;
    HR_TRY(
        hr_device_alloc(run->device, (size_t)(run->rows * run->head_dim), sizeof(float), &memory));
    run->o = memory;
    HR_TRY(hr_device_alloc(run->device, (size_t)run->rows, sizeof(float), &memory));
    run->lse = memory;
    return HR_OK;
}

hr_status hr_device_run_create(hr_plan *plan, const hr_packed_layer *operands, hr_device_run **out)
{
    if (!plan || !operands || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "plan, operands and out must not be NULL");
    *out = NULL;
    hr_device_run *run = hr_alloc(1, sizeof *run);
    if (!run) return HR_ERROR_OUT_OF_MEMORY;
    run->plan = plan;
    run->device = plan->device ? HR_DEVICE_CUDA : HR_DEVICE_CPU;
    hr_status status = prepare(run, operands);
    if (status != HR_OK) {
        hr_device_run_free(run);
        return status;
    }
    *out = run;
    return HR_OK;
}

void hr_device_run_free(hr_device_run *run)
{
    if (!run) return;
    if (run->device != HR_DEVICE_CPU) hr_packed_layer_free(&run->operands);
    hr_device_free(run->device, run->o);
    hr_device_free(run->device, run->lse);
    free(run);
}

hr_status hr_device_run_start(hr_device_run *run)
{
    if (!run) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "run must not be NULL");
    const int64_t heads = run->plan->problem.num_heads;
    const int64_t shape[3] = {run->rows / heads, heads, run->head_dim};
    hr_tensor o = hr_tensor_view(HR_DTYPE_F32, 3, shape, run->o);
    hr_tensor lse = hr_tensor_view(HR_DTYPE_F32, 2, shape, run->lse);
    o.device = lse.device = run->device;
    return hr_plan_run(run->plan, &run->operands, &o, &lse);
}

hr_status hr_device_run_wait(hr_device_run *run)
{
    if (!run) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "run must not be NULL");
    return hr_device_synchronize(run->device, hr_plan_device_stream(run->plan->device));
}

hr_status hr_device_run_fetch(hr_device_run *run, float *o, float *lse)
{
    if (!run) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "run must not be NULL");
    void *stream = hr_plan_device_stream(run->plan->device);
    if (o)
        HR_TRY(hr_device_copy(HR_DEVICE_CPU, o, run->device, run->o,
                              (size_t)(run->rows * run->head_dim) * sizeof *o, stream));
    if (!lse) return HR_OK;
    return hr_device_copy(HR_DEVICE_CPU, lse, run->device, run->lse,
                          (size_t)run->rows * sizeof *lse, stream);
}
