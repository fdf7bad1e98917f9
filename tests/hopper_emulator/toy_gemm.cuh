/*
 * A kernel to try the emulator on: C[m][n] = A[m][k] B[n][k]^T of 8-bit operands, in the shape of
 * the attention kernels. One producer warpgroup loads tiles of 128 x 128 bytes into a ring of two
 * stages with TMA; two consumer warpgroups multiply 64 rows each and store through shared memory.
 * Blocks take tile after tile, so that every barrier and buffer is used again.
 *
 * BUG plants one mistake, as they are made; test_hopper_bugs.cpp expects the emulator's report.
 */
#ifndef HEADROOM_TOY_GEMM_CUH
#define HEADROOM_TOY_GEMM_CUH

#include "launch.cuh"

enum class Bug {
    none,
    wait_missing,             /* the epilogue does not wait for the last wgmma */
    wait_unnamed,             /* ... waits, but without naming the accumulator */
    wgmma_fence_missing,      /* between clearing the accumulator and wgmma */
    stage_released_early,     /* a stage is handed back before its wgmma has been waited for */
    stage_overwritten,        /* the producer does not wait until a stage is handed back */
    full_parity_wrong,        /* the consumers wait for the phase before */
    empty_parity_wrong,       /* the producer waits for a phase that nobody completes */
    expect_tx_missing,        /* the producer arrives without announcing bytes */
    expect_tx_short,          /* ... announces too few */
    arrival_missing,          /* one consumer never hands stages back */
    init_fence_missing,       /* after mbarrier_init */
    init_barrier_missing,     /* ... no __syncthreads */
    proxy_fence_missing,      /* between the epilogue's stores and the TMA store */
    named_barrier_missing,    /* ... no barrier either */
    store_wait_missing,       /* the next epilogue does not wait until the TMA store has read */
    named_barrier_count_wrong /* one consumer counts its own threads only */
};

namespace toy_gemm
{

constexpr int THREADS = 384, STAGES = 2, TILE = 128;
constexpr uint32_t TILE_BYTES = TILE * 128;                  /* of A and of B in a stage */
constexpr uint32_t BOX_BYTES = 64 * 128;                     /* 64 rows of 32 results */
constexpr uint32_t FULL = 0, EMPTY = 8 * STAGES;             /* mbarriers, from shared_base */
constexpr uint32_t STAGE = 1024;                             /* ring of A and B tiles */
constexpr uint32_t RESULT = STAGE + STAGES * 2 * TILE_BYTES; /* 4 boxes a consumer */
constexpr uint32_t SHARED_BYTES = RESULT + 2 * 4 * BOX_BYTES;

struct Shape {
    int tiles_m, tiles_n, k_steps; /* of 128 each */
};

HR_DEVICE void multiply(hopper::Registers<float, 64> &d, uint64_t a, uint64_t b)
{
    hopper::wgmma_e4m3(d, a, b, true);
}

HR_DEVICE void multiply(hopper::Registers<int32_t, 64> &d, uint64_t a, uint64_t b)
{
    hopper::wgmma_s8(d, a, b, true);
}

template <Bug BUG>
HR_DEVICE void produce(const CUtensorMap &a, const CUtensorMap &b, uint32_t base, Shape shape)
{
    using namespace hopper;
    int stage = 0;
    uint32_t parity = 0;
    for (int tile = blockIdx.x; tile < shape.tiles_m * shape.tiles_n; tile += gridDim.x)
        for (int k = 0; k < shape.k_steps; k++) {
            const uint32_t full = base + FULL + 8 * stage;
            const uint32_t at = base + STAGE + stage * 2 * TILE_BYTES;
            if constexpr (BUG != Bug::stage_overwritten) /* at first all stages are free */
                mbarrier_wait(base + EMPTY + 8 * stage,
                              BUG == Bug::empty_parity_wrong ? parity : parity ^ 1);
            if constexpr (BUG == Bug::expect_tx_missing)
                mbarrier_arrive(full);
            else
                mbarrier_arrive_expect_tx(full, (BUG == Bug::expect_tx_short ? 1 : 2) * TILE_BYTES);
            tma_load_2d(at, &a, full, k * 128, tile / shape.tiles_n * TILE);
            tma_load_2d(at + TILE_BYTES, &b, full, k * 128, tile % shape.tiles_n * TILE);
            stage = (stage + 1) % STAGES;
            parity ^= stage == 0;
        }
}

/* One consumer's 64 x 128 results to shared memory and from there to C. */
template <class T, Bug BUG>
HR_DEVICE void epilogue(hopper::Registers<T, 64> &d, const CUtensorMap &c, uint32_t base,
                        int consumer, int row, int column)
{
    using namespace hopper;
    const int t = threadIdx.x % 128;
    const uint32_t result = base + RESULT + consumer * 4 * BOX_BYTES;
    const bool leader = t == 0;
    if (leader && BUG != Bug::store_wait_missing)
        bulk_wait_read<0>(); /* the tile before has left */
    named_barrier_sync(1 + consumer, 128);
#pragma unroll
    for (int i = 0; i < 64; i += 2) {
        const int r = 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2);
        const int j = 8 * (i / 4) + 2 * (t % 4);
        const uint32_t at = result + j / 32 * BOX_BYTES + r * 128 + j % 32 * 4;
        store_shared<T>(at, d[i]);
        store_shared<T>(at + 4, d[i + 1]);
    }
    if constexpr (BUG != Bug::proxy_fence_missing) fence_proxy_async();
    if constexpr (BUG != Bug::named_barrier_missing) named_barrier_sync(1 + consumer, 128);
    if (leader) {
        for (int box = 0; box < 4; box++)
            tma_store_2d(&c, result + box * BOX_BYTES, column + 32 * box, row);
        bulk_commit();
    }
}

template <class T, Bug BUG>
HR_DEVICE void consume(const CUtensorMap &c, uint32_t base, Shape shape, int consumer)
{
    using namespace hopper;
    const bool leader = threadIdx.x % 128 == 0;
    const auto release = [&](int stage) {
        if (leader && !(BUG == Bug::arrival_missing && consumer == 1))
            mbarrier_arrive(base + EMPTY + 8 * stage);
    };
    int stage = 0;
    uint32_t parity = BUG == Bug::full_parity_wrong ? 1 : 0;
    for (int tile = blockIdx.x; tile < shape.tiles_m * shape.tiles_n; tile += gridDim.x) {
        Registers<T, 64> d;
#pragma unroll
        for (int i = 0; i < 64; i++)
            d[i] = 0;
        if constexpr (BUG != Bug::wgmma_fence_missing) wgmma_fence(d);
        for (int k = 0; k < shape.k_steps; k++) {
            const uint32_t a = base + STAGE + stage * 2 * TILE_BYTES + consumer * 64 * 128;
            const uint32_t b = base + STAGE + stage * 2 * TILE_BYTES + TILE_BYTES;
            mbarrier_wait(base + FULL + 8 * stage, parity);
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < 128; step += 32)
                multiply(d, matrix_descriptor(a + step, Swizzle::b128),
                         matrix_descriptor(b + step, Swizzle::b128));
            wgmma_commit();
            if constexpr (BUG == Bug::stage_released_early) {
                release(stage);
            } else {
                wgmma_wait<1>(); /* the step before is done: its stage is free */
                if (k > 0) release((stage + STAGES - 1) % STAGES);
            }
            stage = (stage + 1) % STAGES;
            parity ^= stage == 0;
        }
        if constexpr (BUG == Bug::wait_unnamed)
            wgmma_wait<0>();
        else if constexpr (BUG != Bug::wait_missing)
            wgmma_wait<0>(d);
        if constexpr (BUG != Bug::stage_released_early) release((stage + STAGES - 1) % STAGES);
        epilogue<T, BUG>(d, c, base, consumer, tile / shape.tiles_n * TILE + consumer * 64,
                         tile % shape.tiles_n * TILE);
    }
    if (leader) bulk_wait<0>();
}

} // namespace toy_gemm

/* a, b: boxes of 128 rows of 128 bytes, swizzled; c: boxes of 64 rows of 32 results. */
template <class T, Bug BUG>
__global__ void __launch_bounds__(toy_gemm::THREADS, 1)
    toy_gemm_kernel(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                    const __grid_constant__ CUtensorMap c, toy_gemm::Shape shape)
{
    using namespace hopper;
    using namespace toy_gemm;
    const uint32_t base = shared_base();
    const int warpgroup = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            mbarrier_init(base + FULL + 8 * stage, 1);
            mbarrier_init(base + EMPTY + 8 * stage, 2);
        }
        if constexpr (BUG != Bug::init_fence_missing) fence_mbarrier_init();
    }
    if constexpr (BUG != Bug::init_barrier_missing) __syncthreads();
    if (warpgroup == 0) {
        setmaxnreg_dec<24>();
        if (threadIdx.x == 0) produce<BUG>(a, b, base, shape);
    } else {
        setmaxnreg_inc<240>();
        if constexpr (BUG == Bug::named_barrier_count_wrong)
            named_barrier_sync(3, warpgroup == 1 ? 256 : 128);
        consume<T, BUG>(c, base, shape, warpgroup - 1);
    }
}

#endif
