/*
 * The host's side of a Hopper kernel: launching it and describing tensors to TMA. Compiled with
 * HR_HOPPER_EMULATOR the same functions come from tests/hopper_emulator.
 */
#ifndef HEADROOM_LAUNCH_CUH
#define HEADROOM_LAUNCH_CUH

#include "hopper.cuh"

#ifdef HR_HOPPER_EMULATOR
#include "launch.h"
#else

namespace hopper
{

/* Runs kernel(arguments...) with `shared_bytes` of dynamic shared memory, which may exceed 48 KiB.
 */
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, A... arguments)
{
    cudaError_t error = cudaFuncSetAttribute(
        (const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
    if (error != cudaSuccess) return error;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, (P)arguments...);
}

/*
 * Describes a tensor in global memory for tma_load_*d and tma_store_*d, which copy boxes of it.
 * Index 0 is the innermost dimension, without gaps. `sizes` and `box` are in elements of
 * `element_bytes` (1, 2 or 4), `strides` in bytes for dimensions 1 .. rank - 1. `base` is a
 * multiple of 16 bytes and so are the strides; a box has at most 256 elements a dimension and its
 * rows are a multiple of 16 bytes: swizzle_bytes(swizzle) of them when swizzled. The driver's
 * cuTensorMapEncodeTiled says no to anything else: cudaErrorInvalidValue.
 */
inline cudaError_t make_tensor_map(CUtensorMap *map, const void *base, int element_bytes, int rank,
                                   const uint64_t *sizes, const uint64_t *strides,
                                   const uint32_t *box, Swizzle swizzle)
{
    using Encode = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    /* Through the runtime, so that the library loads where there is no driver. */
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                         cudaEnableDefault, &found);
    if (error != cudaSuccess) return error;
    if (found != cudaDriverEntryPointSuccess || function == nullptr) return cudaErrorNotSupported;

    const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
    const CUtensorMapDataType type = element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                     : element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                                                          : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    const CUtensorMapSwizzle mode = swizzle == Swizzle::b128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                    : swizzle == Swizzle::b64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                    : swizzle == Swizzle::b32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                              : CU_TENSOR_MAP_SWIZZLE_NONE;
    cuuint64_t sizes_[5], strides_[4];
    for (int i = 0; i < rank; i++)
        sizes_[i] = sizes[i];
    for (int i = 1; i < rank; i++)
        strides_[i - 1] = strides[i];
    CUresult result =
        ((Encode)function)(map, type, (cuuint32_t)rank, const_cast<void *>(base), sizes_, strides_,
                           box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, mode,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

} // namespace hopper

#endif
#endif
