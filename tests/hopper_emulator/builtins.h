/*
 * What CUDA C++ adds to C++, as far as the kernels use it, for a host compiler.
 */
#ifndef HEADROOM_HOPPER_EMULATOR_BUILTINS_H
#define HEADROOM_HOPPER_EMULATOR_BUILTINS_H

#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define HR_DEVICE inline
/* Kernels reach shared memory through load_shared and store_shared, which check every access. */
#define __shared__ static_assert(false, "use hopper::shared_base");

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define HR_VECTOR(T, name)                                                                         \
    struct alignas(2 * sizeof(T)) name##2                                                          \
    {                                                                                              \
        T x, y;                                                                                    \
    };                                                                                             \
    struct alignas(4 * sizeof(T)) name##4                                                          \
    {                                                                                              \
        T x, y, z, w;                                                                              \
    };                                                                                             \
    inline name##2 make_##name##2(T x, T y)                                                        \
    {                                                                                              \
        return {x, y};                                                                             \
    }                                                                                              \
    inline name##4 make_##name##4(T x, T y, T z, T w)                                              \
    {                                                                                              \
        return {x, y, z, w};                                                                       \
    }
HR_VECTOR(float, float)
HR_VECTOR(int32_t, int)
HR_VECTOR(uint32_t, uint)
#undef HR_VECTOR

/* Of the thread that is running. */
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace hopper_emulator
{
using Word = uint32_t;
enum class Collective { shuffle, ballot, syncwarp, ldmatrix, stmatrix, mma };
/* Waits for the lanes of `mask`; each receives what lane `source` deposited. */
Word shuffle(unsigned mask, Word value, int source, Position at);
Word ballot(unsigned mask, bool predicate, Position at);
void sync_warp(unsigned mask, Position at);
void sync_threads(Position at);
int current_lane();

template <class T> Word to_word(T value)
{
    static_assert(sizeof(T) == 4, "shuffles move 32 bits");
    Word word;
    std::memcpy(&word, &value, 4);
    return word;
}

template <class T> T from_word(Word word)
{
    T value;
    std::memcpy(&value, &word, 4);
    return value;
}
} // namespace hopper_emulator

inline void __syncthreads(hopper_emulator::Position at = HR_HERE)
{
    hopper_emulator::sync_threads(at);
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, hopper_emulator::Position at = HR_HERE)
{
    hopper_emulator::sync_warp(mask, at);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, hopper_emulator::Position at = HR_HERE)
{
    using namespace hopper_emulator;
    return from_word<T>(shuffle(mask, to_word(value), lane & 31, at));
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int xor_mask, hopper_emulator::Position at = HR_HERE)
{
    using namespace hopper_emulator;
    return from_word<T>(shuffle(mask, to_word(value), current_lane() ^ xor_mask, at));
}

inline unsigned __ballot_sync(unsigned mask, bool predicate, hopper_emulator::Position at = HR_HERE)
{
    return hopper_emulator::ballot(mask, predicate, at);
}

inline bool __any_sync(unsigned mask, bool predicate, hopper_emulator::Position at = HR_HERE)
{
    return hopper_emulator::ballot(mask, predicate, at) != 0;
}

inline bool __all_sync(unsigned mask, bool predicate, hopper_emulator::Position at = HR_HERE)
{
    return hopper_emulator::ballot(mask, predicate, at) == mask;
}

/* Blocks run one after another, so plain arithmetic is atomic. */
template <class T> T atomicAdd(T *address, T value)
{
    T old = *address;
    *address = old + value;
    return old;
}

template <class T> T atomicMax(T *address, T value)
{
    T old = *address;
    *address = old < value ? value : old;
    return old;
}

inline void __threadfence() {}

template <class T> T __ldg(const T *address)
{
    return *address;
}

inline float __int_as_float(int32_t x)
{
    return hopper_emulator::from_word<float>((uint32_t)x);
}
inline float __uint_as_float(uint32_t x)
{
    return hopper_emulator::from_word<float>(x);
}
inline int32_t __float_as_int(float x)
{
    return (int32_t)hopper_emulator::to_word(x);
}
inline uint32_t __float_as_uint(float x)
{
    return hopper_emulator::to_word(x);
}
inline float __fmaf_rn(float x, float y, float z)
{
    return std::fma(x, y, z);
}
inline float __fdividef(float x, float y)
{
    return x / y;
}
inline float __logf(float x)
{
    return std::log(x);
}
inline float __log2f(float x)
{
    return std::log2(x);
}
inline float __frcp_rn(float x)
{
    return 1.0f / x;
}
inline float rsqrtf(float x)
{
    return 1.0f / std::sqrt(x);
}
inline int __float2int_rn(float x)
{
    return (int)std::nearbyint(x);
}
inline float __int2float_rn(int x)
{
    return (float)x;
}
inline int __vimax3_s32(int x, int y, int z)
{
    return std::max(std::max(x, y), z);
}
inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
inline int __clz(int x)
{
    return x == 0 ? 32 : __builtin_clz((unsigned)x);
}
inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
using std::max;
using std::min;

#endif
