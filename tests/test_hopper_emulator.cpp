/*
 * What the emulator reports of small kernels, each with one mistake, and what it leaves alone; the
 * arithmetic of conversions and of the FP8 accumulator; plain bulk copies; the schedules.
 */
#include "launch.cuh"

#include "headroom/format.h"

#include <cfloat>
#include <criterion/criterion.h>
#include <random>
#include <vector>

using hopper_emulator::Kind;
using hopper_emulator::options;
using hopper_emulator::report;
using hopper_emulator::Schedule;
using namespace hopper;

/* Launches with 4 KiB of shared memory under every schedule and expects one kind of finding. */
template <class... P, class... A>
static void expect(Kind kind, const char *message, void (*kernel)(P...), int threads,
                   A... arguments)
{
    for (Schedule schedule : {Schedule::earliest, Schedule::latest, Schedule::random}) {
        options() = {schedule, 5, false};
        cudaError_t error = hopper::launch(kernel, 1, threads, 4096, nullptr, arguments...);
        const std::string text = report().text();
        cr_expect(error == cudaErrorLaunchFailure && report().findings.size() >= 1 &&
                      report().findings[0].kind == kind &&
                      text.find(message) != std::string::npos &&
                      text.find("test_hopper_emulator.cpp:") == 0,
                  "schedule %d: expected %s with '%s', got\n%s", (int)schedule,
                  hopper_emulator::kind_name(kind), message, text.c_str());
    }
}

template <class... P, class... A>
static void expect_nothing(void (*kernel)(P...), int threads, A... arguments)
{
    for (Schedule schedule : {Schedule::earliest, Schedule::latest, Schedule::random}) {
        options() = {schedule, 5, false};
        cudaError_t error = hopper::launch(kernel, 1, threads, 4096, nullptr, arguments...);
        cr_expect(error == cudaSuccess, "%s", report().text().c_str());
    }
}

/* ---- Shared memory ---- */

static __global__ void neighbours(int barrier)
{
    const uint32_t at = shared_base() + 4 * threadIdx.x;
    store_shared<int>(at, 0);
    barrier == 1 ? __syncwarp() : barrier == 2 ? __syncthreads() : (void)0;
    store_shared<int>(at, load_shared<int>(shared_base() + 4 * (threadIdx.x ^ 1)));
}

Test(hopper_emulator, race)
{
    expect(Kind::race, "without a barrier in between", neighbours, 64, 1); /* write after read */
}

static __global__ void exchange(int barrier)
{
    const uint32_t at = shared_base() + 4 * threadIdx.x;
    store_shared<int>(at, (int)threadIdx.x);
    barrier == 1 ? __syncwarp() : barrier == 2 ? __syncthreads() : (void)0;
    (void)load_shared<int>(shared_base() + 4 * (threadIdx.x ^ (barrier == 2 ? 32 : 1)));
}

Test(hopper_emulator, barriers_order)
{
    expect_nothing(exchange, 64, 1);
    expect_nothing(exchange, 64, 2);
}

static __global__ void shuffled_only()
{
    store_shared<int>(shared_base() + 4 * threadIdx.x, 1);
    (void)__shfl_xor_sync(~0u, 1, 1); /* moves registers, orders no memory */
    (void)load_shared<int>(shared_base() + 4 * (threadIdx.x ^ 1));
}

Test(hopper_emulator, shuffle_is_no_barrier)
{
    options().schedule = Schedule::earliest;
    hopper::launch(shuffled_only, 1, 32, 4096, nullptr);
    cr_expect(report().has(Kind::race));
}

static __global__ void bytes_of_a_word()
{
    store_shared<uint8_t>(shared_base() + threadIdx.x, 1);
    (void)load_shared<uint8_t>(shared_base() + threadIdx.x);
}

Test(hopper_emulator, neighbouring_bytes_do_not_conflict)
{
    expect_nothing(bytes_of_a_word, 64);
}

static __global__ void unwritten()
{
    (void)load_shared<float>(shared_base() + 16);
}

Test(hopper_emulator, uninitialised)
{
    expect(Kind::uninitialised, "that nothing has written", unwritten, 32);
}

static __global__ void outside(uint32_t offset)
{
    store_shared<int>(shared_base() + offset, 1);
}

Test(hopper_emulator, addresses)
{
    expect(Kind::invalid_argument, "is outside the block's", outside, 32, 4096u);
    expect(Kind::invalid_argument, "must be a multiple of 4", outside, 32, 2u);
}

/* ---- Barriers ---- */

static __global__ void one_sided(int)
{
    if (threadIdx.x < 32) named_barrier_sync(5, 64);
}

Test(hopper_emulator, deadlock)
{
    expect(Kind::deadlock, "threads 0-31 wait for named barrier 5; 32 of 64 threads have arrived",
           one_sided, 64, 0);
}

static __global__ void barrier_arguments(uint32_t id, uint32_t count)
{
    named_barrier_sync(id, count);
}

Test(hopper_emulator, barrier_misuse)
{
    expect(Kind::barrier_misuse, "the id is 0 to 15", barrier_arguments, 64, 16u, 64u);
    expect(Kind::barrier_misuse, "a multiple of 32", barrier_arguments, 64, 1u, 33u);
    expect(Kind::barrier_misuse, "up to the block's 64", barrier_arguments, 64, 1u, 96u);
}

static __global__ void producer_consumer()
{
    if (threadIdx.x < 32) {
        store_shared<int>(shared_base() + 4 * threadIdx.x, 1);
        named_barrier_arrive(1, 64);
    } else {
        named_barrier_sync(1, 64);
        (void)load_shared<int>(shared_base() + 4 * (threadIdx.x - 32));
    }
}

Test(hopper_emulator, arrive_orders)
{
    expect_nothing(producer_consumer, 64);
}

static __global__ void too_many_arrivals()
{
    if (threadIdx.x == 0) {
        mbarrier_init(shared_base(), 2);
        mbarrier_arrive_expect_tx(shared_base(), 16);
        mbarrier_arrive(shared_base());
        mbarrier_arrive(shared_base());
    }
}

static __global__ void mbarrier_twice()
{
    if (threadIdx.x == 0) mbarrier_init(shared_base(), 2);
    __syncthreads();
    if (threadIdx.x == 32) mbarrier_init(shared_base(), 2);
}

static __global__ void mbarrier_written()
{
    mbarrier_init(shared_base() + 8 * threadIdx.x, 2);
    store_shared<int>(shared_base() + 8 * threadIdx.x + 4, 0);
}

Test(hopper_emulator, mbarrier_misuse)
{
    expect(Kind::mbarrier_misuse, "already had all 2 arrivals", too_many_arrivals, 32);
    expect(Kind::mbarrier_misuse, "is initialised twice", mbarrier_twice, 64);
    expect(Kind::mbarrier_misuse, "touches the mbarrier", mbarrier_written, 32);
}

/* ---- Warps and warpgroups ---- */

static __global__ void diverged()
{
    if (threadIdx.x % 32 < 16)
        __syncwarp();
    else
        (void)__shfl_xor_sync(~0u, 1, 1);
}

static __global__ void not_in_mask()
{
    (void)__shfl_sync(0x0000FFFF, 1, 0);
}

Test(hopper_emulator, divergence)
{
    expect(Kind::divergence, "while another is at", diverged, 32);
    expect(Kind::divergence, "is not in the mask", not_in_mask, 32);
}

static __global__ void registers(int which)
{
    if (threadIdx.x < 128) {
        if (which == 0)
            setmaxnreg_dec<240>(); /* 384 threads start with 168 */
        else
            setmaxnreg_dec<40>();
    } else if (which != 0) {
        setmaxnreg_inc<240>();
    }
}

static __global__ void registers_of_one_warp()
{
    if (threadIdx.x < 32) setmaxnreg_dec<40>();
}

static __global__ void registers_fit()
{
    if (threadIdx.x < 128)
        setmaxnreg_dec<24>();
    else
        setmaxnreg_inc<240>();
}

Test(hopper_emulator, register_pool)
{
    expect(Kind::register_pool, "setmaxnreg.dec to 240, but the warpgroup has 168", registers, 384,
           0);
    expect(Kind::register_pool, "registers for setmaxnreg.inc", registers, 384, 1);
    expect(Kind::deadlock, "wait for all of warpgroup 0 to call setmaxnreg", registers_of_one_warp,
           128);
    expect_nothing(registers_fit, 384);
}

/* ---- wgmma on operands in registers and 1 KiB of zeros ---- */

static __device__ uint64_t zeros()
{
    const uint32_t tile = shared_base();
    store_shared<uint4>(tile + 16 * threadIdx.x, {0, 0, 0, 0});
    fence_proxy_async();
    __syncthreads();
    return matrix_descriptor(tile, 128, 256, Swizzle::none); /* 32 rows of 32 bytes */
}

enum class Mistake {
    none,
    fragment_changed,
    fragment_unwritten,
    fragment_unfenced,
    accumulator_unwritten,
    never_fenced,
    not_committed,
    warp_missing,
    descriptors_differ,
    accumulate_differs,
    group_differs,
    gone
};

static __device__ void in_scope(uint64_t b)
{
    Registers<uint32_t, 4> a;
    for (int i = 0; i < 4; i++)
        a[i] = 0;
    Registers<int32_t, 16> d;
    wgmma_fence(a);
    wgmma_s8(d, a, b, false);
    wgmma_commit();
}

static __global__ void wgmma_mistakes(Mistake mistake)
{
    const uint64_t b = zeros();
    if (mistake == Mistake::gone) {
        in_scope(b);
        return;
    }
    Registers<int32_t, 16> d;
    Registers<uint32_t, 4> a;
    if (mistake != Mistake::fragment_unwritten)
        for (int i = 0; i < 4; i++)
            a[i] = 0;
    if (mistake == Mistake::fragment_unfenced)
        wgmma_fence();
    else if (mistake != Mistake::never_fenced)
        wgmma_fence(a);
    if (mistake == Mistake::warp_missing && threadIdx.x / 32 == 2) return;
    const bool odd = threadIdx.x == 77;
    if (mistake == Mistake::group_differs && odd) wgmma_commit();
    wgmma_s8(d, a, b + (mistake == Mistake::descriptors_differ && odd ? 64 : 0),
             mistake == Mistake::accumulator_unwritten ||
                 (mistake == Mistake::accumulate_differs && odd));
    if (mistake != Mistake::not_committed) wgmma_commit();
    if (mistake == Mistake::fragment_changed) a[0] = 1;
    wgmma_wait<0>(d);
    (void)d[0];
}

Test(hopper_emulator, wgmma)
{
    const auto check = [](Mistake mistake, Kind kind, const char *message) {
        expect(kind, message, wgmma_mistakes, 128, mistake);
    };
    expect_nothing(wgmma_mistakes, 128, Mistake::none);
    check(Mistake::fragment_changed, Kind::register_in_flight, "reads, without waiting");
    check(Mistake::fragment_unwritten, Kind::uninitialised, "fragment of A that nothing");
    check(Mistake::fragment_unfenced, Kind::missing_wgmma_fence, "touched the fragment");
    check(Mistake::never_fenced, Kind::missing_wgmma_fence, "before its first wgmma");
    check(Mistake::accumulator_unwritten, Kind::uninitialised, "accumulates into registers");
    check(Mistake::not_committed, Kind::register_in_flight, "writes, without waiting");
    check(Mistake::warp_missing, Kind::deadlock, "was issued by 96 of 128 threads");
    check(Mistake::descriptors_differ, Kind::divergence, "differs from its warpgroup's");
    check(Mistake::group_differs, Kind::divergence, "commits a group of another size");
    check(Mistake::gone, Kind::register_in_flight, "gives up registers");
    /* Whoever accumulates first finds its registers unwritten, or the other way about. */
    hopper::launch(wgmma_mistakes, 1, 128, 4096, nullptr, Mistake::accumulate_differs);
    cr_expect(report().has(Kind::divergence));
}

static __global__ void overflowing(uint64_t more)
{
    Registers<int32_t, 16> d;
    (void)zeros();
    wgmma_fence();
    const uint64_t b = matrix_descriptor(shared_base(), 128, 256, Swizzle::none);
    wgmma_s8(d, matrix_descriptor(shared_base(), Swizzle::b128) + more, b, false);
}

static __global__ void misaligned(uint32_t offset)
{
    Registers<int32_t, 16> d;
    (void)zeros();
    wgmma_fence();
    wgmma_s8(d, matrix_descriptor(shared_base() + offset, Swizzle::b128),
             matrix_descriptor(shared_base(), 128, 256, Swizzle::none), false);
}

Test(hopper_emulator, descriptors)
{
    expect(Kind::invalid_argument, "operand A starts at", misaligned, 128, 128u);
    expect(Kind::invalid_argument, "operand A starts at", misaligned, 128, 16u);
    expect(Kind::invalid_argument, "operand A has bits between", overflowing, 128, 1ull << 14);
}

static __global__ void many_bytes(uint32_t bytes)
{
    if (threadIdx.x > 0) return;
    mbarrier_init(shared_base(), 2);
    mbarrier_arrive_expect_tx(shared_base(), 1);
    mbarrier_arrive_expect_tx(shared_base(), bytes);
}

Test(hopper_emulator, limits_of_the_hardware)
{
    expect(Kind::invalid_argument, "a phase counts at most 1048575 bytes", many_bytes, 32,
           (1u << 20) - 1);
    const auto launch = [](dim3 grid, dim3 block) {
        return hopper::launch(unwritten, grid, block, 4096, nullptr);
    };
    cr_expect(launch(dim3(1, 65536), dim3(32)) == cudaErrorInvalidValue);
    cr_expect(launch(dim3(1), dim3(1, 1, 65)) == cudaErrorInvalidValue);
    cr_expect(launch(dim3(1), dim3(1025)) == cudaErrorInvalidValue);
}

/* ---- Bulk copies ---- */

static __global__ void copy(const uint8_t *from, uint8_t *to, int wait)
{
    const uint32_t mbarrier = shared_base(), row = mbarrier + 1024;
    if (threadIdx.x == 0) {
        mbarrier_init(mbarrier, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(mbarrier, 512);
        bulk_load(row, from, 256, mbarrier);
        bulk_load(row + 256, from + 256, 256, mbarrier);
        mbarrier_wait(mbarrier, 0);
        bulk_store(to, row, 512);
        bulk_commit();
        if (wait == 1)
            bulk_wait_read<0>();
        else if (wait == 2)
            bulk_wait<0>();
    }
}

Test(hopper_emulator, bulk_copies)
{
    alignas(16) static uint8_t from[512], to[512];
    for (int i = 0; i < 512; i++)
        from[i] = (uint8_t)(i * 7);
    for (int wait : {1, 2}) {
        std::memset(to, 0, sizeof to);
        expect_nothing(copy, 32, (const uint8_t *)from, &to[0], wait);
        cr_expect(std::memcmp(from, to, sizeof to) == 0);
    }
    options().schedule = Schedule::latest;
    hopper::launch(copy, 1, 32, 4096, nullptr, (const uint8_t *)from, &to[0], 0);
    cr_expect(report().has(Kind::stores_unfinished));
    expect(Kind::invalid_argument, "multiples of 16", copy, 32, (const uint8_t *)from + 4, &to[0],
           2);
}

static __global__ void read_too_soon(const uint8_t *from)
{
    const uint32_t mbarrier = shared_base(), row = mbarrier + 1024;
    mbarrier_init(mbarrier, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(mbarrier, 256);
    bulk_load(row, from, 256, mbarrier);
    (void)load_shared<int>(row);
}

Test(hopper_emulator, copy_not_awaited)
{
    alignas(16) static uint8_t from[256];
    expect(Kind::copy_not_awaited, "before waiting", read_too_soon, 1, (const uint8_t *)from);
}

/* ---- Schedules ---- */

/* What a thread sees of a copy that it does not wait for; wrong, and seen so. */
static __global__ void peek(const uint8_t *from, int *seen)
{
    read_too_soon(from);
    seen[0] = load_shared<int>(shared_base() + 1024);
}

static int peeked(Schedule schedule)
{
    alignas(16) static uint8_t from[256];
    int seen = 1;
    options() = {schedule, 5, false};
    hopper::launch(peek, 1, 1, 4096, nullptr, (const uint8_t *)from, &seen);
    return seen;
}

Test(hopper_emulator, copies_are_early_or_late)
{
    cr_expect_eq(peeked(Schedule::earliest), 0);
    cr_expect_eq(peeked(Schedule::latest), -1); /* poison */
}

static __global__ void order_of_threads(std::vector<unsigned> *order)
{
    named_barrier_sync(1, 96);
    order->push_back(threadIdx.x);
}

Test(hopper_emulator, random_schedule_follows_its_seed)
{
    std::vector<unsigned> orders[3];
    for (int i = 0; i < 3; i++) {
        options() = {Schedule::random, i == 2 ? 9u : 8u, false};
        cr_assert(hopper::launch(order_of_threads, 1, 96, 0, nullptr, &orders[i]) == cudaSuccess);
    }
    cr_expect(orders[0] == orders[1] && orders[0] != orders[2]);
}

static __global__ void counting(int *blocks, unsigned *last)
{
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        atomicAdd(blocks, 1);
        *last = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    }
    cr_assert(blockDim.x == 32 && blockDim.y == 2 && blockDim.z == 1);
}

Test(hopper_emulator, grid)
{
    int blocks = 0;
    unsigned last = 0;
    cr_assert(hopper::launch(counting, dim3(3, 4, 2), dim3(32, 2), 0, nullptr, &blocks, &last) ==
              cudaSuccess);
    cr_expect_eq(blocks, 24);
    cr_expect_eq(last, 23u);
    cr_expect(hopper::launch(counting, 1, 1056, 0, nullptr, &blocks, &last) ==
              cudaErrorInvalidValue);
    cr_expect(hopper::launch(counting, 1, 32, 228 * 1024, nullptr, &blocks, &last) ==
              cudaErrorInvalidValue);
}

/* ---- Arithmetic ---- */

/* Accumulates `steps` products of ones, 32 a step, in one accumulator. */
static __global__ void sum_of_ones(int steps, float start, float *sum)
{
    const uint32_t tile = shared_base();
    for (int i = 0; i < 4; i++)
        store_shared<uint32_t>(tile + 16 * threadIdx.x + 4 * i, 0x38383838); /* E4M3 1.0 */
    fence_proxy_async();
    __syncthreads();
    Registers<float, 16> d;
    Registers<uint32_t, 4> a;
    for (int i = 0; i < 4; i++)
        a[i] = 0x38383838;
    for (int i = 0; i < 16; i++)
        d[i] = start;
    wgmma_fence(d, a);
    for (int i = 0; i < steps; i++)
        wgmma_e4m3(d, a, matrix_descriptor(tile, 128, 256, Swizzle::none), true);
    wgmma_commit();
    wgmma_wait<0>(d);
    if (threadIdx.x == 0) *sum = d[7];
}

/* 14 significant bits: 2^14 + 32 is exact, 2^19 + 32 is 2^19, and of 2^18 + 32 nothing is cut. */
Test(hopper_emulator, fp22_loses_small_terms)
{
    const auto sum = [](bool fp22, int steps, float start) {
        float result = NAN;
        options() = {Schedule::earliest, 1, fp22};
        cr_assert(hopper::launch(sum_of_ones, 1, 128, 4096, nullptr, steps, start, &result) ==
                      cudaSuccess,
                  "%s", report().text().c_str());
        return result;
    };
    cr_expect_eq(sum(false, 10, 0), 320);
    cr_expect_eq(sum(true, 10, 0), 320);
    cr_expect_eq(sum(false, 4, 0x1p20f), 0x1p20f + 128);
    cr_expect_eq(sum(true, 4, 0x1p20f), 0x1p20f); /* ones are below 2^(20-13) */
    cr_expect_eq(sum(true, 4, 0x1p13f), 0x1p13f + 128);
    cr_expect_eq(sum(true, 1, 8191.5f), 8191 + 32); /* 8191.5 keeps 13 bits after the first */
}

/*
 * The conversions against the library's, over all BF16 values, the halves between them, and floats.
 * The library saturates BF16 and FP16 as well; cvt does so for E4M3 only.
 */
Test(hopper_emulator, conversions)
{
    std::mt19937 random(1);
    const auto check = [](float x) {
        uint8_t e4m3;
        uint16_t bf16, f16;
        if (x != x) return;
        cr_assert(hr_encode(HR_DTYPE_E4M3, &x, 1, 1.0f, 0, &e4m3) == HR_OK);
        cr_assert_eq(cvt_e4m3x2(x, 1.0f), (uint32_t)e4m3 << 8 | 0x38, "%a", (double)x);
        cr_assert(hr_encode(HR_DTYPE_BF16, &x, 1, 1.0f, 0, &bf16) == HR_OK);
        if (std::fabs(x) < 0x1.FFp127f)
            cr_assert_eq(cvt_bf16x2(1.0f, x), 0x3F800000u | bf16, "%a", (double)x);
        cr_assert(hr_encode(HR_DTYPE_F16, &x, 1, 1.0f, 0, &f16) == HR_OK);
        if (std::fabs(x) < 65520)
            cr_assert_eq(cvt_f16x2(x, 1.0f), (uint32_t)f16 << 16 | 0x3C00, "%a", (double)x);
    };
    for (uint32_t i = 0; i < 65536; i++) {
        check(__uint_as_float(i << 16));
        check(__uint_as_float(i << 16 | 0x8000));
        check(__uint_as_float((uint32_t)random()));
    }
    cr_expect_eq(cvt_e4m3x2(NAN, NAN), 0x7F7F);
    cr_expect_eq(cvt_bf16x2(NAN, NAN), 0x7FFF7FFF);
    cr_expect_eq(cvt_bf16x2(INFINITY, -FLT_MAX), 0x7F80FF80);
    cr_expect_eq(cvt_f16x2(-INFINITY, 65520.0f), 0xFC007C00);
}

Test(hopper_emulator, sums_of_halves)
{
    cr_assert_eq(hopper::add_f16x2(0x3C005BF8, 0x64006400), 0x640164FF); /* 1 and 255 to 1024 */
    cr_assert_eq(hopper::add_f16x2(0x38003E00, 0x64006400), 0x64006402); /* ties to even */
    cr_assert_eq(hopper::add_f16x2(0x7BFF8001, 0x7BFF0001), 0x7C000000); /* beyond 65504 */
}

Test(hopper_emulator, prmt_and_ex2)
{
    cr_expect_eq(prmt(0x33221100, 0x77665544, 0x7520), 0x77552200);
    cr_expect_eq(prmt(0x80, 0, 0x0008), 0x808080FF); /* bit 3 copies the sign */
    cr_expect_eq(ex2(-INFINITY), 0.0f);
    cr_expect_eq(ex2(3.0f), 8.0f);
    cr_expect_eq(ex2(-130.0f), 0.0f); /* subnormal */
    cr_expect(ex2(NAN) != ex2(NAN));
}
