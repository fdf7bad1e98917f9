/*
 * Mistakes planted in the attention kernel's own pipeline are found under every schedule. The
 * kernel's source is taken as it is; the instructions it calls are renamed to ones that leave
 * something out when `planted` says so.
 */
#include "attention_sm90.h"
#include "launch.cuh"

#include <criterion/criterion.h>

enum class Bug {
    none,
    stage_overwritten,   /* the producer does not wait until K is handed back */
    full_not_awaited,    /* a consumer does not wait for V */
    scores_not_awaited,  /* S is used while it is computed */
    arrival_missing,     /* one warp never hands V back */
    expect_tx_short,     /* the scales' bytes are not announced */
    wgmma_fence_missing, /* between the softmax and the next product */
    turn_not_given       /* a consumer keeps its turn */
};
static Bug planted;
static uint32_t first_barrier, last_barrier; /* of the ring that the mistake is about */

static bool applies(uint32_t barrier)
{
    return barrier >= first_barrier && barrier <= last_barrier;
}

namespace hopper
{

void planted_wait(uint32_t barrier, uint32_t parity, Position at = HR_HERE)
{
    const bool skip = planted == Bug::stage_overwritten || planted == Bug::full_not_awaited;
    if (!skip || !applies(barrier)) mbarrier_wait(barrier, parity, at);
}

void planted_arrive(uint32_t barrier, Position at = HR_HERE)
{
    if (planted == Bug::arrival_missing && applies(barrier) && threadIdx.x / 32 == 6) return;
    mbarrier_arrive(barrier, at);
}

void planted_expect(uint32_t barrier, uint32_t bytes, Position at = HR_HERE)
{
    const bool less = planted == Bug::expect_tx_short && applies(barrier);
    mbarrier_arrive_expect_tx(barrier, less ? bytes - 4 * HR_SM90_TILE_SCALES : bytes, at);
}

template <int PENDING, class R> void planted_wgmma_wait(R &r, Position at = HR_HERE)
{
    if (planted != Bug::scores_not_awaited || PENDING != 1) wgmma_wait<PENDING>(r, at);
}

template <class A> void planted_fence(A &a, Position at = HR_HERE)
{
    if (planted != Bug::wgmma_fence_missing) wgmma_fence(a, at);
}

template <class A, class B> void planted_fence(A &a, B &b, Position at = HR_HERE)
{
    if (planted != Bug::wgmma_fence_missing) wgmma_fence(a, b, at);
}

void planted_turn(uint32_t id, uint32_t threads, Position at = HR_HERE)
{
    if (planted != Bug::turn_not_given) named_barrier_arrive(id, threads, at);
}

} // namespace hopper

#define mbarrier_wait planted_wait
#define mbarrier_arrive planted_arrive
#define mbarrier_arrive_expect_tx planted_expect
#define wgmma_wait planted_wgmma_wait
#define wgmma_fence planted_fence
#define named_barrier_arrive planted_turn
#include "attention_int8_sm90.cu"
#include "hopper_cases.h"

using hopper_emulator::Kind;
using T = attention_sm90::Tile<attention_sm90::Recipe::int8, 64, false>;

static std::initializer_list<Kind> expected;

/* In hopper_run_case's place of the kernel: some expected finding, none without a mistake. */
static int run_planted(const hr_sm90_args *args)
{
    const int error = hr_attention_int8_sm90(args);
    if (planted == Bug::none) return error;
    bool found = false;
    for (Kind kind : expected)
        found = found || hopper_emulator::report().has(kind);
    cr_expect(error != 0 && found, "mistake %d: %s", (int)planted, hopper_report_text());
    planted = Bug::none; /* and once more without it, for hopper_run_case to check */
    return hr_attention_int8_sm90(args);
}

/* `ring` is the offset of the mbarriers of one ring in shared memory. */
static void expect(Bug bug, uint32_t ring, std::initializer_list<Kind> kinds)
{
    for (int schedule = 0; schedule < 3; schedule++) {
        planted = bug;
        first_barrier = hopper::shared_base() + ring;
        last_barrier = first_barrier + 8 * T::STAGES - 8;
        expected = kinds;
        const hopper_case test = {"int8", "2 1 64 q=150 kv=7K-3", 0, 0, 5, 1, schedule, 0, 0, 0};
        hopper_run_case(&test, run_planted, HOPPER_INT8);
    }
}

Test(hopper_bugs, a_stage_overwritten)
{
    expect(Bug::stage_overwritten, T::K_EMPTY, {Kind::stage_overwritten, Kind::mbarrier_misuse});
}

Test(hopper_bugs, values_not_awaited)
{
    expect(Bug::full_not_awaited, T::V_FULL, {Kind::copy_not_awaited, Kind::uninitialised});
}

Test(hopper_bugs, scores_not_awaited)
{
    expect(Bug::scores_not_awaited, T::K_FULL, {Kind::register_in_flight});
}

Test(hopper_bugs, a_warp_that_does_not_hand_back)
{
    expect(Bug::arrival_missing, T::V_EMPTY, {Kind::deadlock});
}

Test(hopper_bugs, scales_not_announced)
{
    expect(Bug::expect_tx_short, T::K_FULL,
           {Kind::missing_expect_tx, Kind::copy_not_awaited, Kind::mbarrier_misuse});
}

Test(hopper_bugs, a_missing_wgmma_fence)
{
    expect(Bug::wgmma_fence_missing, T::K_FULL, {Kind::missing_wgmma_fence});
}

Test(hopper_bugs, a_turn_not_given)
{
    expect(Bug::turn_not_given, T::K_FULL, {Kind::deadlock});
}
