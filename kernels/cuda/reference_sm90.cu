/*
 * FP32 attention, one block a query and head:
 *
 *     m = max s_j      p_j = exp(s_j - m)      O = sum p_j v_j / sum p_j      LSE = m + ln sum p_j
 *
 * Two passes over the keys, 128 of them at a time, one a thread; then a thread owns channels, and
 * adds up the keys of the tile in order.
 */
#include "reference_sm90.h"

#include "launch.cuh"

namespace reference_sm90
{

using namespace hopper;

constexpr int THREADS = 128, CHANNELS = 2; /* of 256, a thread */

HR_DEVICE float logit(const hr_sm90_reference_args &args, const float *q, const float *k)
{
    float sum = 0;
    for (int c = 0; c < args.head_dim; c++)
        sum = __fmaf_rn(q[c], k[c], sum);
    return sum * args.softmax_scale;
}

/* The largest, or the sum, of what the threads hold, through shared memory, in order of threads. */
template <bool SUM> HR_DEVICE float combine(uint32_t base, float value)
{
    __syncthreads(); /* the words may still be read from the last use */
    store_shared<float>(base + 4 * threadIdx.x, value);
    __syncthreads();
    float all = load_shared<float>(base);
    for (int t = 1; t < THREADS; t++) {
        const float other = load_shared<float>(base + 4 * t);
        all = SUM ? all + other : fmaxf(all, other);
    }
    return all;
}

__global__ void __launch_bounds__(THREADS)
    reference_kernel(const __grid_constant__ hr_sm90_reference_args args)
{
    const int row = (int)blockIdx.x, head = (int)blockIdx.y, thread = (int)threadIdx.x;
    int sequence = 0;
    while (args.cu_seqlens_q[sequence + 1] <= row)
        sequence++;
    const int first_key = args.cu_seqlens_kv[sequence];
    const int seqlen_kv = args.cu_seqlens_kv[sequence + 1] - first_key;
    const int seqlen_q = args.cu_seqlens_q[sequence + 1] - args.cu_seqlens_q[sequence];
    const int64_t diagonal = (int64_t)row - args.cu_seqlens_q[sequence] + seqlen_kv - seqlen_q;
    const int64_t low = args.window_left == INT32_MAX ? 0 : diagonal - args.window_left;
    const int64_t high = args.window_right == INT32_MAX ? seqlen_kv : diagonal + args.window_right;
    const int kv_head = head / (args.num_heads / args.num_kv_heads);
    const int64_t pitch = (int64_t)args.num_kv_heads * args.head_dim;
    const float *q = args.q + ((int64_t)row * args.num_heads + head) * args.head_dim;
    const float *k = args.k + first_key * pitch + (int64_t)kv_head * args.head_dim;
    const float *v = args.v + first_key * pitch + (int64_t)kv_head * args.head_dim;
    const uint32_t base = shared_base();

    float largest = -INFINITY;
    for (int key = thread; key < seqlen_kv; key += THREADS)
        if (key >= low && key <= high) largest = fmaxf(largest, logit(args, q, k + key * pitch));
    largest = combine<false>(base, largest);

    float total = 0, o[CHANNELS] = {};
    for (int begin = 0; begin < seqlen_kv && largest > -INFINITY; begin += THREADS) {
        const int key = begin + thread;
        const bool seen = key < seqlen_kv && key >= low && key <= high;
        const float p = seen ? expf(logit(args, q, k + key * pitch) - largest) : 0;
        total += p;
        __syncthreads();
        store_shared<float>(base + 4 * thread, p);
        __syncthreads();
        const int count = seqlen_kv - begin < THREADS ? seqlen_kv - begin : THREADS;
        for (int i = 0; i < CHANNELS; i++)
            for (int j = 0, c = thread + i * THREADS; c < args.head_dim && j < count; j++)
                o[i] =
                    __fmaf_rn(load_shared<float>(base + 4 * j), v[(begin + j) * pitch + c], o[i]);
    }
    total = combine<true>(base, total);
    float *out = args.o + ((int64_t)row * args.num_heads + head) * args.head_dim;
    for (int i = 0; i < CHANNELS; i++)
        if (thread + i * THREADS < args.head_dim)
            out[thread + i * THREADS] = total > 0 ? o[i] / total : 0;
    if (thread == 0) args.lse[(int64_t)row * args.num_heads + head] = largest + logf(total);
}

} // namespace reference_sm90

extern "C" int hr_reference_sm90(const hr_sm90_reference_args *args)
{
    using namespace reference_sm90;
    if (args->total_q == 0) return cudaSuccess;
    return hopper::launch(reference_kernel,
                          dim3((unsigned)args->total_q, (unsigned)args->num_heads), dim3(THREADS),
                          4 * THREADS, (cudaStream_t)args->stream, *args);
}
