/*
 * Devices: names, memory and copies; see headroom/device.h.
 */
#include "headroom/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_api.h"
#include "device_internal.h"
#include "headroom/machine.h"
#include "memory.h"
#include "status_internal.h"

static const char *const names[HR_DEVICE_COUNT] = {"cpu", "cuda"};

const char *hr_device_name(hr_device device)
{
    return (unsigned)device < HR_DEVICE_COUNT ? names[device] : "unknown";
}

hr_status hr_device_parse(const char *name, hr_device *out)
{
    if (!name || !out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "name and out must not be NULL");
    for (int device = 0; device < HR_DEVICE_COUNT; device++)
        if (strcmp(name, names[device]) == 0) {
            *out = (hr_device)device;
            return HR_OK;
        }
    return hr_fail(HR_ERROR_NOT_FOUND, "no device \"%.60s\"; devices are cpu, cuda", name);
}

static hr_status check_known(hr_device device)
{
    if ((unsigned)device < HR_DEVICE_COUNT) return HR_OK;
    return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%d is not an hr_device", (int)device);
}

hr_status hr_device_expect(const char *name, hr_device has, hr_device wanted)
{
    if (has == wanted) return HR_OK;
    return hr_fail(HR_ERROR_MISMATCH,
                   "%s is in %s memory; it must be in %s memory (hr_packed_copy and "
                   "hr_device_copy move it)",
                   name, hr_device_name(has), hr_device_name(wanted));
}

hr_status hr_device_check(hr_device device)
{
    hr_cuda_device found;
    HR_TRY(check_known(device));
    return device == HR_DEVICE_CPU ? HR_OK : hr_cuda_find(&found);
}

hr_status hr_device_describe(hr_device device, char *text, size_t size)
{
    if (!text || size == 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "text must have room for a byte at least");
    text[0] = 0;
    HR_TRY(check_known(device));
    if (device == HR_DEVICE_CPU) {
        hr_machine_cpu(text, size); /* empty where the system does not say */
        return HR_OK;
    }
    hr_cuda_device found;
    HR_TRY(hr_cuda_find(&found));
    snprintf(text, size, "%s (compute capability %d.%d, %d multiprocessors)", found.name,
             found.capability / 10, found.capability % 10, found.multiprocessors);
    return HR_OK;
}

static hr_status fail_allocation(const hr_cuda_api *api, size_t bytes)
{
    size_t free_bytes = 0, total_bytes = 0;
    if (api->memory(&free_bytes, &total_bytes) != HR_CUDA_SUCCESS)
        return hr_fail(HR_ERROR_OUT_OF_MEMORY, "the GPU has no memory for %zu bytes", bytes);
    return hr_fail(HR_ERROR_OUT_OF_MEMORY,
                   "the GPU has no memory for %zu bytes: %zu of its %zu bytes are free", bytes,
                   free_bytes, total_bytes);
}

hr_status hr_device_alloc(hr_device device, size_t count, size_t size, void **out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out must not be NULL");
    *out = NULL;
    HR_TRY(check_known(device));
    if (device == HR_DEVICE_CPU) {
        *out = hr_alloc(count, size);
        return *out ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
    }
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes))
        return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate %zu elements of %zu bytes", count,
                       size);
    hr_cuda_device found;
    HR_TRY(hr_cuda_find(&found));
    if (bytes == 0) bytes = 1;
    const hr_cuda_api *api = hr_cuda();
    void *memory = NULL;
    const int error = api->allocate(&memory, bytes);
    if (error == HR_CUDA_OUT_OF_MEMORY) return fail_allocation(api, bytes);
    HR_TRY(hr_cuda_status(error, "allocate GPU memory"));
    hr_status status = hr_cuda_status(api->clear(memory, bytes, NULL), "clear GPU memory");
    /* Streams that do not wait for the default one must not see the memory before it is cleared. */
    if (status == HR_OK) status = hr_cuda_status(api->synchronize(NULL), "clear GPU memory");
    if (status != HR_OK) {
        (void)api->release(memory); /* the first error is the one to report */
        return status;
    }
    *out = memory;
    return HR_OK;
}

void hr_device_free(hr_device device, void *memory)
{
    if (device == HR_DEVICE_CPU)
        free(memory);
    else if (memory && hr_cuda())
        (void)hr_cuda()->release(memory); /* nothing useful can be done about a failure */
}

hr_status hr_device_copy(hr_device to, void *destination, hr_device from, const void *source,
                         size_t bytes, void *stream)
{
    HR_TRY(check_known(to));
    HR_TRY(check_known(from));
    if (bytes == 0) return HR_OK;
    if (!destination || !source)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "destination and source must not be NULL");
    if (to == HR_DEVICE_CPU && from == HR_DEVICE_CPU) {
        memmove(destination, source, bytes);
        return HR_OK;
    }
    const hr_cuda_api *api = hr_cuda();
    if (!api) return hr_device_check(HR_DEVICE_CUDA);
    HR_TRY(hr_cuda_status(api->copy(destination, source, bytes, stream), "queue a copy"));
    return hr_cuda_status(api->synchronize(stream), "copy memory");
}

hr_status hr_device_synchronize(hr_device device, void *stream)
{
    HR_TRY(check_known(device));
    if (device == HR_DEVICE_CPU) return HR_OK;
    const hr_cuda_api *api = hr_cuda();
    if (!api) return hr_device_check(HR_DEVICE_CUDA);
    return hr_cuda_status(api->synchronize(stream), "finish what was queued on the GPU");
}
