/*
 * The table of CUDA functions in use, and what stands in the way of using it; see cuda_api.h.
 */
#include "cuda_api.h"

#include <stdbool.h>

#include "status_internal.h"

#if HR_CUDA
extern const hr_cuda_api hr_cuda_runtime; /* kernels/cuda/cuda_api.c */
static const hr_cuda_api *const built_in = &hr_cuda_runtime;
#else
static const hr_cuda_api *const built_in = NULL;
#endif

static const hr_cuda_api *replacement;

const hr_cuda_api *hr_cuda(void)
{
    return replacement ? replacement : built_in;
}

void hr_cuda_replace(const hr_cuda_api *api)
{
    replacement = api;
}

hr_status hr_cuda_status(int error, const char *what)
{
    if (error == HR_CUDA_SUCCESS) return HR_OK;
    return hr_fail(HR_ERROR_DEVICE, "CUDA failed to %s: %s (error %d)", what,
                   hr_cuda()->error_text(error), error);
}

static hr_status check_driver(const hr_cuda_api *api)
{
    int driver = 0, needed = 0;
    HR_TRY(hr_cuda_status(api->runtime_version(&needed), "name its version"));
    const int error = api->driver_version(&driver);
    if (error != HR_CUDA_SUCCESS || driver == 0)
        return hr_fail(HR_ERROR_DEVICE,
                       "there is no CUDA driver on this machine (libcuda.so.1); device cuda needs "
                       "one for CUDA %d.%d or newer, device cpu needs none",
                       needed / 1000, needed % 1000 / 10);
    /* Within a major version newer runtimes work on older drivers. */
    if (driver / 1000 < needed / 1000)
        return hr_fail(HR_ERROR_DEVICE,
                       "the CUDA driver is too old: it supports CUDA %d.%d, this build needs %d.0 "
                       "or newer",
                       driver / 1000, driver % 1000 / 10, needed / 1000);
    return HR_OK;
}

static hr_status check_device(const hr_cuda_api *api, hr_cuda_device *out)
{
    int count = 0;
    const int error = api->device_count(&count);
    if (error == HR_CUDA_DRIVER_TOO_OLD)
        return hr_fail(HR_ERROR_DEVICE, "the CUDA driver is too old for this build: %s",
                       api->error_text(error));
    if (error == HR_CUDA_NO_DEVICE || (error == HR_CUDA_SUCCESS && count == 0))
        return hr_fail(HR_ERROR_DEVICE,
                       "there is a CUDA driver, but no GPU that this process may use (see "
                       "CUDA_VISIBLE_DEVICES); device cuda needs one of compute capability 9.0");
    HR_TRY(hr_cuda_status(error, "count the GPUs"));
    HR_TRY(hr_cuda_status(api->device(out), "describe the current GPU"));
    if (out->capability != HR_CUDA_CAPABILITY)
        return hr_fail(HR_ERROR_DEVICE,
                       "GPU %d, %s, has compute capability %d.%d; the CUDA kernels need exactly "
                       "9.0 (Hopper: H100, H200, GH200)",
                       out->index, out->name, out->capability / 10, out->capability % 10);
    return HR_OK;
}

hr_status hr_cuda_find(hr_cuda_device *out)
{
    const hr_cuda_api *api = hr_cuda();
    *out = (hr_cuda_device){.index = 0};
    if (!api)
        return hr_fail(HR_ERROR_DEVICE,
                       "this build has no CUDA kernels: device cuda needs one configured with "
                       "-DHEADROOM_CUDA=ON and a CUDA toolkit; device cpu is there");
    HR_TRY(check_driver(api));
    return check_device(api, out);
}
