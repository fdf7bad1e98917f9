/*
 * The host's side for the emulator: included by kernels/cuda/launch.cuh, which documents it. A
 * launch runs to its end before it returns; it fails when the emulator found anything wrong, which
 * report() then holds.
 */
#ifndef HEADROOM_HOPPER_EMULATOR_LAUNCH_H
#define HEADROOM_HOPPER_EMULATOR_LAUNCH_H

#include "hopper.cuh"

#include <functional>
#include <tuple>
#include <type_traits>

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorLaunchFailure = 719,
};
using cudaStream_t = void *;
inline const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaSuccess             ? "no error"
           : error == cudaErrorInvalidValue ? "invalid argument"
                                            : "the emulator found a fault in the kernel";
}

namespace hopper_emulator
{
cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &kernel);
}

namespace hopper
{

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   A... arguments)
{
    std::tuple<std::remove_cv_t<P>...> held(arguments...);
    return hopper_emulator::run(grid, block, shared_bytes, [&] { std::apply(kernel, held); });
}

cudaError_t make_tensor_map(CUtensorMap *map, const void *base, int element_bytes, int rank,
                            const uint64_t *sizes, const uint64_t *strides, const uint32_t *box,
                            Swizzle swizzle);

} // namespace hopper

#endif
