/*
 * The emulator passes a correct warp-specialised kernel under every schedule, and finds each of the
 * planted mistakes under every schedule, with the right report at the right place.
 */
#include "toy_gemm.cuh"

#include <criterion/criterion.h>
#include <cstring>
#include <fstream>
#include <random>
#include <vector>

using hopper_emulator::Kind;
using hopper_emulator::Options;
using hopper_emulator::report;
using hopper_emulator::Schedule;

namespace
{

constexpr Schedule SCHEDULES[] = {Schedule::earliest, Schedule::latest, Schedule::random};

float e4m3(uint8_t code)
{
    const int exponent = code >> 3 & 15, fraction = code & 7;
    const float magnitude = exponent == 0 ? std::ldexp((float)fraction, -9)
                                          : std::ldexp(8.0f + (float)fraction, exponent - 10);
    return code & 0x80 ? -magnitude : magnitude;
}

float value_of(uint8_t code, float)
{
    return e4m3(code);
}
int32_t value_of(uint8_t code, int32_t)
{
    return (int8_t)code;
}

template <class T> struct Problem {
    toy_gemm::Shape shape = {2, 3, 3};
    int m = shape.tiles_m * 128, n = shape.tiles_n * 128, k = shape.k_steps * 128;
    std::vector<uint8_t> a, b;
    std::vector<T> c, expected;
    CUtensorMap map_a, map_b, map_c;

    Problem() : a((size_t)(m * k)), b((size_t)(n * k)), c((size_t)(m * n)), expected(c.size())
    {
        std::mt19937 random(7);
        for (std::vector<uint8_t> *operand : {&a, &b})
            for (uint8_t &code : *operand)
                code = (uint8_t)(random() & 0xBF); /* as E4M3: at most 1.875, no NaN */
        double value[256];
        for (int code = 0; code < 256; code++)
            value[code] = (double)value_of((uint8_t)code, T());
        for (int i = 0; i < m; i++)
            for (int j = 0; j < n; j++) {
                double sum = 0;
                for (int l = 0; l < k; l++)
                    sum += value[a[(size_t)(i * k + l)]] * value[b[(size_t)(j * k + l)]];
                expected[(size_t)(i * n + j)] = (T)sum;
            }
        map(&map_a, a.data(), 1, k, m, 128, 128, hopper::Swizzle::b128);
        map(&map_b, b.data(), 1, k, n, 128, 128, hopper::Swizzle::b128);
        map(&map_c, c.data(), 4, n, m, 32, 64, hopper::Swizzle::none);
    }

    static void map(CUtensorMap *map, void *base, int element, int columns, int rows,
                    int box_columns, int box_rows, hopper::Swizzle swizzle)
    {
        const uint64_t sizes[2] = {(uint64_t)columns, (uint64_t)rows};
        const uint64_t strides[2] = {0, (uint64_t)(columns * element)};
        const uint32_t box[2] = {(uint32_t)box_columns, (uint32_t)box_rows};
        cr_assert(hopper::make_tensor_map(map, base, element, 2, sizes, strides, box, swizzle) ==
                  cudaSuccess);
    }

    /* Two blocks for six tiles: three rounds of the ring and of the result's buffer each. */
    template <Bug BUG> cudaError_t run(Schedule schedule, uint64_t seed = 1)
    {
        hopper_emulator::options() = {schedule, seed, false};
        return hopper::launch(toy_gemm_kernel<T, BUG>, 2, toy_gemm::THREADS, toy_gemm::SHARED_BYTES,
                              nullptr, map_a, map_b, map_c, shape);
    }
};

/* A finding: its kind, a part of its message, a part of the line of the kernel that it points to.
 */
struct Expected {
    Kind kind;
    const char *message, *line;
};

bool matches(const hopper_emulator::Finding &finding, const Expected &expected)
{
    static std::vector<std::string> lines;
    if (lines.empty()) {
        std::ifstream source(HEADROOM_SOURCE_DIR "/tests/hopper_emulator/toy_gemm.cuh");
        for (std::string line; std::getline(source, line);)
            lines.push_back(line);
    }
    return finding.kind == expected.kind &&
           finding.message.find(expected.message) != std::string::npos &&
           std::strstr(finding.at.file, "toy_gemm.cuh") != nullptr &&
           lines.at((size_t)finding.at.line - 1).find(expected.line) != std::string::npos;
}

/* One of `any` is found; which one depends on who comes first. */
template <Bug BUG> void expect(std::initializer_list<Expected> any)
{
    Problem<float> problem;
    for (Schedule schedule : SCHEDULES)
        for (uint64_t seed = 1; seed <= (schedule == Schedule::random ? 5 : 1); seed++) {
            cudaError_t error = problem.run<BUG>(schedule, seed);
            bool found = false;
            for (const auto &finding : report().findings)
                for (const Expected &expected : any)
                    found = found || matches(finding, expected);
            cr_expect(error == cudaErrorLaunchFailure && found, "schedule %d seed %d reports\n%s",
                      (int)schedule, (int)seed, report().text().c_str());
        }
}

} // namespace

template <class T> static void correct_kernel_passes()
{
    Problem<T> problem;
    for (Schedule schedule : SCHEDULES)
        for (uint64_t seed = 1; seed <= (schedule == Schedule::random ? 8 : 1); seed++) {
            std::fill(problem.c.begin(), problem.c.end(), (T)-1);
            cudaError_t error = problem.template run<Bug::none>(schedule, seed);
            cr_assert(error == cudaSuccess, "schedule %d seed %d\n%s", (int)schedule, (int)seed,
                      report().text().c_str());
            /* Products of these operands are multiples of 2^-18 and their sums below 2^11: at most
             * one rounding of 2^-13 an instruction. */
            const double bound = sizeof(T) == 4 && (T)0.5 != 0 ? 12 * 0x1p-13 : 0;
            for (size_t i = 0; i < problem.c.size(); i++)
                cr_assert(std::fabs((double)problem.c[i] - (double)problem.expected[i]) <= bound,
                          "element %zu", i);
        }
    /* 6 tiles, 2 consumers, 3 steps of 4 instructions */
    const auto &counters = report().counters;
    cr_expect_eq(counters.wgmma[hopper_emulator::E4M3] + counters.wgmma[hopper_emulator::S8],
                 6 * 2 * 3 * 4);
    cr_expect_eq(counters.load_bytes, 6 * 3 * 2 * 16384);
    cr_expect_eq(counters.store_bytes, sizeof(T) * problem.c.size());
}

Test(hopper_bugs, correct_e4m3_kernel_passes)
{
    correct_kernel_passes<float>();
}
Test(hopper_bugs, correct_s8_kernel_passes)
{
    correct_kernel_passes<int32_t>();
}

Test(hopper_bugs, wait_missing)
{
    expect<Bug::wait_missing>(
        {{Kind::register_in_flight, "touches a register that the wgmma at toy_gemm.cuh:", "d[i]"}});
}

Test(hopper_bugs, wait_unnamed)
{
    expect<Bug::wait_unnamed>({{Kind::register_not_named, "no wgmma_wait has named", "d[i]"}});
}

Test(hopper_bugs, wgmma_fence_missing)
{
    expect<Bug::wgmma_fence_missing>(
        {{Kind::missing_wgmma_fence, "touched the accumulator", "wgmma_e4m3("}});
}

/* Either the producer loads over what wgmma reads, or a slow thread misses a whole phase. */
Test(hopper_bugs, stage_released_early)
{
    expect<Bug::stage_released_early>(
        {{Kind::stage_overwritten, "may not have finished reading", "tma_load_2d"},
         {Kind::deadlock, "wgmma group", "mbarrier_wait"}});
}

Test(hopper_bugs, stage_overwritten)
{
    expect<Bug::stage_overwritten>(
        {{Kind::stage_overwritten, "a copy to mbarrier", "tma_load_2d"}});
}

/* Either wgmma reads what has not arrived, or all wait for a phase that never comes. */
Test(hopper_bugs, full_parity_wrong)
{
    expect<Bug::full_parity_wrong>(
        {{Kind::copy_not_awaited, "before waiting for the copy's mbarrier", "wgmma_e4m3("},
         {Kind::uninitialised, "wgmma of warpgroup", "wgmma_e4m3("},
         {Kind::deadlock, "wait for mbarrier 0x400, parity 1; its phase 1 lacks 1 of 1 arrivals",
          "mbarrier_wait"}});
}

Test(hopper_bugs, empty_parity_wrong)
{
    expect<Bug::empty_parity_wrong>(
        {{Kind::deadlock,
          "threads 0 wait for mbarrier 0x410, parity 0; its phase 0 lacks 2 of 2 arrivals",
          "mbarrier_wait"}});
}

Test(hopper_bugs, expect_tx_missing)
{
    expect<Bug::expect_tx_missing>(
        {{Kind::missing_expect_tx, "whose phase 1 expects 0", "tma_load_2d"}});
}

Test(hopper_bugs, expect_tx_short)
{
    expect<Bug::expect_tx_short>({{Kind::missing_expect_tx, "bytes are under way", "tma_load_2d"}});
}

Test(hopper_bugs, arrival_missing)
{
    expect<Bug::arrival_missing>({{Kind::deadlock, "lacks 1 of 2 arrivals", "mbarrier_wait"}});
}

Test(hopper_bugs, init_fence_missing)
{
    expect<Bug::init_fence_missing>(
        {{Kind::mbarrier_misuse, "no fence_mbarrier_init", "tma_load_2d"}});
}

/* Either the mbarrier is not there yet or it is there by luck. */
Test(hopper_bugs, init_barrier_missing)
{
    expect<Bug::init_barrier_missing>(
        {{Kind::mbarrier_misuse, "no initialised mbarrier", "mbarrier_wait"},
         {Kind::mbarrier_misuse, "without a barrier after its mbarrier_init", "mbarrier_wait"}});
}

Test(hopper_bugs, proxy_fence_missing)
{
    expect<Bug::proxy_fence_missing>(
        {{Kind::missing_proxy_fence, "without a fence_proxy_async", "tma_store_2d"}});
}

/* The store finds bytes of other threads unordered, or not yet there. */
Test(hopper_bugs, named_barrier_missing)
{
    expect<Bug::named_barrier_missing>(
        {{Kind::race, "without a barrier in between", "tma_store_2d"},
         {Kind::uninitialised, "a bulk store of thread", "tma_store_2d"},
         {Kind::stage_overwritten, "a bulk store of thread", "store_shared"}});
}

Test(hopper_bugs, store_wait_missing)
{
    expect<Bug::store_wait_missing>(
        {{Kind::stage_overwritten, "which a bulk store of thread", "store_shared"}});
}

Test(hopper_bugs, named_barrier_count_wrong)
{
    expect<Bug::named_barrier_count_wrong>(
        {{Kind::barrier_misuse, "with a count of", "named_barrier_sync(3"}});
}
