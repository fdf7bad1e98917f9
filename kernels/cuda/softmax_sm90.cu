/*
 * Softmax of stored logits; see softmax_sm90.h. One block a query: two passes over its row, four
 * neighbouring keys a thread and step, so that loads have 16 bytes and stores 4. Limited by memory:
 * 4 bytes a logit from HBM (the second pass finds a row in the L2), 1 byte a weight.
 */
#include "softmax_sm90.h"

#include "launch.cuh"

namespace softmax_sm90
{

using namespace hopper;

constexpr int THREADS = 256, WARPS = THREADS / 32, KEYS = 4; /* of a thread in a step */
constexpr unsigned ALL = 0xFFFFFFFFu;
constexpr float LARGEST_E4M3 = 448, LN2 = 0.69314718f;

/* The largest, or the sum, of what the threads hold. `base`: WARPS words of shared memory. */
template <bool SUM> HR_DEVICE float combine(uint32_t base, float value)
{
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const float other = __shfl_xor_sync(ALL, value, lanes);
        value = SUM ? value + other : fmaxf(value, other);
    }
    __syncthreads(); /* the words may still be read from the last use */
    if (threadIdx.x % 32 == 0) store_shared<float>(base + threadIdx.x / 32 * 4, value);
    __syncthreads();
    float all = load_shared<float>(base);
    for (int warp = 1; warp < WARPS; warp++) {
        const float other = load_shared<float>(base + 4 * warp);
        all = SUM ? all + other : fmaxf(all, other);
    }
    return all;
}

__global__ void __launch_bounds__(THREADS)
    softmax_kernel(const __grid_constant__ hr_sm90_softmax_args args)
{
    const int row = (int)blockIdx.x, thread = (int)threadIdx.x;
    const int64_t diagonal = (int64_t)row + args.seqlen_kv - args.seqlen_q;
    const int64_t low = args.window_left == INT32_MAX ? 0 : diagonal - args.window_left;
    const int64_t high =
        args.window_right == INT32_MAX || diagonal + args.window_right >= args.seqlen_kv
            ? args.seqlen_kv - 1
            : diagonal + args.window_right;
    const float *logits = args.logits + row * args.pitch;
    uint8_t *weights = args.weights + row * args.pitch;
    const uint32_t base = shared_base();

    float largest = -INFINITY;
    for (int64_t key = KEYS * thread; key < args.seqlen_kv; key += KEYS * THREADS) {
        const float4 s = *(const float4 *)(logits + key);
        const float values[KEYS] = {s.x, s.y, s.z, s.w};
        for (int e = 0; e < KEYS; e++)
            if (key + e >= low && key + e <= high) largest = fmaxf(largest, values[e]);
    }
    largest = combine<false>(base, largest);

    float total = 0;
    for (int64_t key = KEYS * thread; key < args.pitch; key += KEYS * THREADS) {
        float p[KEYS] = {};
        if (key <= high && key + KEYS > low) {
            const float4 s = *(const float4 *)(logits + key);
            const float values[KEYS] = {s.x, s.y, s.z, s.w};
            for (int e = 0; e < KEYS; e++) {
                if (key + e >= low && key + e <= high) p[e] = ex2(values[e] - largest);
                total += p[e];
            }
        }
        *(uint32_t *)(weights + key) = cvt_e4m3x4(LARGEST_E4M3 * p[0], LARGEST_E4M3 * p[1],
                                                  LARGEST_E4M3 * p[2], LARGEST_E4M3 * p[3]);
    }
    total = combine<true>(base, total);
    if (thread > 0) return;
    args.inverse[row * args.row_stride] = total == 0 ? 0 : 1 / total;
    args.lse[row * args.row_stride] = (largest + log2f(total)) * LN2;
}

__global__ void __launch_bounds__(THREADS)
    normalize_kernel(const __grid_constant__ hr_sm90_normalize_args args)
{
    const float factor = args.inverse[blockIdx.x];
    for (int c = (int)threadIdx.x; c < args.head_dim; c += THREADS)
        args.o[(int64_t)blockIdx.x * args.head_dim + c] *= factor;
}

} // namespace softmax_sm90

extern "C" int hr_softmax_sm90(const hr_sm90_softmax_args *args)
{
    using namespace softmax_sm90;
    if (args->seqlen_q == 0) return cudaSuccess;
    return hopper::launch(softmax_kernel, dim3((unsigned)args->seqlen_q), dim3(THREADS), 4 * WARPS,
                          (cudaStream_t)args->stream, *args);
}

extern "C" int hr_normalize_sm90(const hr_sm90_normalize_args *args)
{
    using namespace softmax_sm90;
    if (args->rows == 0) return cudaSuccess;
    return hopper::launch(normalize_kernel, dim3((unsigned)args->rows), dim3(THREADS), 0,
                          (cudaStream_t)args->stream, *args);
}
