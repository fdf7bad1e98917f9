/*
 * The CUDA runtime behind quant/cuda_api.h. The runtime is linked statically and looks for the
 * driver's libcuda.so.1 when it is first called, so that a library built with CUDA loads and runs
 * on machines without.
 */
#include "cuda_api.h"

#include <cuda_runtime_api.h>
#include <stdio.h>

#include "cublaslt.h"
#include "pack_sm90.h"
#include "prepare_sm90.h"
#include "reference_sm90.h"
#include "softmax_sm90.h"

_Static_assert((int)HR_CUDA_SUCCESS == cudaSuccess &&
                   (int)HR_CUDA_OUT_OF_MEMORY == cudaErrorMemoryAllocation &&
                   (int)HR_CUDA_DRIVER_TOO_OLD == cudaErrorInsufficientDriver &&
                   (int)HR_CUDA_NO_DEVICE == cudaErrorNoDevice,
               "the numbers are CUDA's");

extern const hr_cuda_api hr_cuda_runtime;

/* Errors that are handled here must not be found again by the next call that looks for one. */
static int taken(cudaError_t error)
{
    if (error != cudaSuccess) (void)cudaGetLastError();
    return (int)error;
}

static int driver_version(int *version)
{
    return taken(cudaDriverGetVersion(version));
}

static int runtime_version(int *version)
{
    return taken(cudaRuntimeGetVersion(version));
}

static int device_count(int *count)
{
    return taken(cudaGetDeviceCount(count));
}

static int device(hr_cuda_device *out)
{
    struct cudaDeviceProp properties;
    int index = 0;
    cudaError_t error = cudaGetDevice(&index);
    if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, index);
    if (error != cudaSuccess) return taken(error);
    snprintf(out->name, sizeof out->name, "%s", properties.name);
    out->index = index;
    out->capability = 10 * properties.major + properties.minor;
    out->multiprocessors = properties.multiProcessorCount;
    return 0;
}

static int memory(size_t *free_bytes, size_t *total_bytes)
{
    return taken(cudaMemGetInfo(free_bytes, total_bytes));
}

static int allocate(void **out, size_t bytes)
{
    return taken(cudaMalloc(out, bytes));
}

static int release(void *address)
{
    return taken(cudaFree(address));
}

static int copy(void *to, const void *from, size_t bytes, void *stream)
{
    return taken(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
}

static int clear(void *address, size_t bytes, void *stream)
{
    return taken(cudaMemsetAsync(address, 0, bytes, stream));
}

static int synchronize(void *stream)
{
    return taken(cudaStreamSynchronize(stream));
}

static const char *error_text(int error)
{
    return cudaGetErrorString((cudaError_t)error);
}

/* In the order of hr_device_kernel. */
static int (*const attention_kernels[])(const hr_sm90_args *) = {
#define HR_KERNEL(...)
#define HR_DECODE_KERNEL(...)
#define HR_DEVICE_KERNEL(recipe, isa, ...) hr_attention_##recipe##_##isa,
#include "kernels.def"
#undef HR_KERNEL
};

static int attention(int kernel, const hr_sm90_args *args)
{
    return taken((cudaError_t)attention_kernels[kernel](args));
}

static int tile_scale(const hr_sm90_tile_scale_args *args)
{
    return taken((cudaError_t)hr_tile_scale_sm90(args));
}

static int no_keys(const hr_sm90_args *args)
{
    return taken((cudaError_t)hr_no_keys_sm90(args));
}

static int pack(const hr_sm90_pack_args *args)
{
    return taken((cudaError_t)hr_pack_sm90(args));
}

static int reference(const hr_sm90_reference_args *args)
{
    return taken((cudaError_t)hr_reference_sm90(args));
}

static int softmax(const hr_sm90_softmax_args *args)
{
    return taken((cudaError_t)hr_softmax_sm90(args));
}

static int normalize(const hr_sm90_normalize_args *args)
{
    return taken((cudaError_t)hr_normalize_sm90(args));
}

const hr_cuda_api hr_cuda_runtime = {
    .driver_version = driver_version,
    .runtime_version = runtime_version,
    .device_count = device_count,
    .device = device,
    .memory = memory,
    .allocate = allocate,
    .release = release,
    .copy = copy,
    .clear = clear,
    .synchronize = synchronize,
    .error_text = error_text,
    .attention = attention,
    .tile_scale = tile_scale,
    .no_keys = no_keys,
    .pack = pack,
    .reference = reference,
    .softmax = softmax,
    .normalize = normalize,
    .cublaslt = hr_cublaslt_load,
};
