/*
 * Every function of hopper.cuh and every wgmma shape in a kernel, to be compiled for sm_90a by
 * test_hopper_sass.sh: ptxas must accept them all and keep their registers. Not run.
 */
#include "toy_gemm.cuh"

using namespace hopper;

template <int R>
static __device__ void multiply(Registers<float, R> &d, const Registers<uint32_t, 4> &fragment,
                                uint64_t a, uint64_t b)
{
    wgmma_e4m3(d, a, b, false);
    wgmma_e4m3(d, fragment, b, true);
    wgmma_bf16(d, a, b, true);
    wgmma_bf16(d, fragment, b, true);
}

template <int R>
static __device__ void multiply(Registers<int32_t, R> &d, const Registers<uint32_t, 4> &fragment,
                                uint64_t a, uint64_t b)
{
    wgmma_s8(d, a, b, false);
    wgmma_s8(d, fragment, b, true);
    wgmma_u8s8(d, a, b, true);
    wgmma_u8s8(d, fragment, b, true);
}

template <class T, int N>
__global__ void __launch_bounds__(128, 1)
    wgmma_shape(T *out, const uint32_t *in, uint64_t a, uint64_t b)
{
    const int t = threadIdx.x;
    Registers<uint32_t, 4> fragment;
    for (int i = 0; i < 4; i++)
        fragment[i] = in[i * 128 + t];
    Registers<T, N / 2> d;
    wgmma_fence(fragment);
    multiply(d, fragment, a, b);
    wgmma_commit();
    wgmma_wait<0>(d);
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        out[i * 128 + t] = d[i];
}
#define SHAPE(N)                                                                                   \
    template __global__ void wgmma_shape<float, N>(float *, const uint32_t *, uint64_t, uint64_t); \
    template __global__ void wgmma_shape<int32_t, N>(int32_t *, const uint32_t *, uint64_t,        \
                                                     uint64_t);
SHAPE(32)
SHAPE(64)
SHAPE(96)
SHAPE(128)
SHAPE(160)
SHAPE(192)
SHAPE(224)
SHAPE(256)

#define INSTANTIATE(T)                                                                             \
    template __global__ void toy_gemm_kernel<T, Bug::none>(                                        \
        const __grid_constant__ CUtensorMap, const __grid_constant__ CUtensorMap,                  \
        const __grid_constant__ CUtensorMap, toy_gemm::Shape);
INSTANTIATE(float)
INSTANTIATE(int32_t)

__global__ void __launch_bounds__(128, 1)
    others(const __grid_constant__ CUtensorMap map, float *out, const uint4 *in)
{
    const uint32_t base = shared_base(), row = base + 1024 + 16 * threadIdx.x;
    if (threadIdx.x == 0) {
        tma_prefetch_map(&map);
        mbarrier_init(base, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(base, 4096);
        tma_load_3d(base + 8192, &map, base, 0, 0, 0);
        tma_load_4d(base + 8192, &map, base, 0, 0, 0, 0);
        bulk_load(base + 1024, in, 1024, base);
    }
    __syncthreads();
    while (!mbarrier_try_wait(base, 0)) {
    }
    named_barrier_arrive(1, 256);
    named_barrier_sync(2, 128);
    stmatrix_x4(row, ldmatrix_x4_trans(row));
    stmatrix_x4_trans(row, ldmatrix_x4(row));
    store_shared(row, __ldg(in));
    fence_proxy_async();
    __syncthreads();
    if (elect_one()) {
        tma_store_3d(&map, base + 8192, 0, 0, 0);
        tma_store_4d(&map, base + 8192, 0, 0, 0, 0);
        bulk_store(out, base + 1024, 1024);
        bulk_commit();
        bulk_wait_read<1>();
        bulk_wait<0>();
    }
    float x = ex2(load_shared<float>(row)), sum[4] = {x, x, 1, 2};
    const uint32_t a[4] = {in->x, in->y, add_f16x2(in->x, in->y), in->z}, b[2] = {in->w, in->x};
    mma_f16(sum, a, b);
    x += sum[0] + sum[1] + sum[2] + sum[3];
    out[threadIdx.x] =
        __uint_as_float(prmt(cvt_e4m3x2(x, -x) ^ cvt_f16x2(x, 1.0f), cvt_bf16x2(x, 2.0f), 0x5410));
}
