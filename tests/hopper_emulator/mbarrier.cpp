/* mbarriers. */
#include "block.h"

#include <algorithm>

namespace hopper_emulator
{

namespace
{

/* Everything before this step of the thread is ordered before what those who learn of it do next.
 */
void pass_knowledge(Thread &from, Knowledge &to)
{
    to.join(*from.knowledge);
    from.learn().order[from.index]++;
}

/* Whether a wait for this parity would return now. */
bool is_complete(const Mbarrier &mbarrier, uint32_t parity)
{
    return (mbarrier.phase & 1) != parity;
}

/* "Contents of the mbarrier object": the tx-count's range. */
constexpr int64_t MOST_BYTES = (1 << 20) - 1;

void arrive(uint32_t address, uint32_t bytes, Position at)
{
    Mbarrier &mbarrier = find_mbarrier(address, false, at);
    if (mbarrier.pending == 0) {
        fault(Kind::mbarrier_misuse, at,
              "thread " + std::to_string(thread->index) + " arrives at mbarrier " + hex(address) +
                  ", whose phase " + std::to_string(mbarrier.phase) + " already had all " +
                  std::to_string(mbarrier.count) + " arrivals");
        return;
    }
    mbarrier.bytes += bytes;
    if (mbarrier.bytes > MOST_BYTES)
        stop(Kind::invalid_argument, at,
             "a phase counts at most " + std::to_string(MOST_BYTES) + " bytes, not " +
                 std::to_string(mbarrier.bytes));
    pass_knowledge(*thread, mbarrier.knowledge);
    mbarrier.pending--;
    complete_phase_if_done(mbarrier);
}

} // namespace

Mbarrier &find_mbarrier(uint32_t address, bool by_copy, Position at)
{
    block->shared.at(address, 8, 8, at);
    auto found = block->mbarriers.find(address);
    if (found == block->mbarriers.end())
        stop(Kind::mbarrier_misuse, at, "there is no initialised mbarrier at " + hex(address));
    Mbarrier &mbarrier = found->second;
    if (thread->order(mbarrier.creator) < mbarrier.creator_clock)
        fault(Kind::mbarrier_misuse, at,
              "thread " + std::to_string(thread->index) + " uses mbarrier " + hex(address) +
                  " without a barrier after its mbarrier_init");
    else if (!mbarrier.visible && by_copy)
        fault(Kind::mbarrier_misuse, at,
              "a copy uses mbarrier " + hex(address) +
                  ", but no fence_mbarrier_init followed its mbarrier_init");
    return mbarrier;
}

void complete_phase_if_done(Mbarrier &mbarrier)
{
    if (mbarrier.pending != 0 || mbarrier.bytes != 0) return;
    mbarrier.phase++;
    mbarrier.pending = mbarrier.count;
    mbarrier.knowledge.order[mbarrier.actor] = mbarrier.phase; /* its copies have landed */
    std::vector<Thread *> still;
    for (Thread *waiter : mbarrier.waiting) {
        if (!is_complete(mbarrier, waiter->waiting.value)) {
            still.push_back(waiter);
            continue;
        }
        waiter->learn().join(mbarrier.knowledge);
        block->wake(*waiter);
    }
    mbarrier.waiting = still;
}

void complete_bytes(uint32_t address, uint32_t bytes)
{
    Mbarrier &mbarrier = block->mbarriers.at(address);
    mbarrier.bytes -= bytes;
    complete_phase_if_done(mbarrier);
}

} // namespace hopper_emulator

namespace hopper
{

using namespace hopper_emulator;

void mbarrier_init(uint32_t address, uint32_t count, Position at)
{
    block->shared.at(address, 8, 8, at);
    if (count == 0 || count >= 1u << 20)
        stop(Kind::invalid_argument, at,
             "an mbarrier takes 1 to 2^20 - 1 arrivals, not " + std::to_string(count));
    if (block->mbarriers.count(address))
        stop(Kind::mbarrier_misuse, at, "mbarrier " + hex(address) + " is initialised twice");
    Mbarrier &mbarrier = block->mbarriers[address];
    mbarrier.address = address;
    mbarrier.count = mbarrier.pending = count;
    mbarrier.actor = block->new_actor(ActorKind::load, address);
    mbarrier.knowledge = block->no_knowledge();
    mbarrier.creator = thread->index;
    mbarrier.creator_clock = thread->order(thread->index);
    block->shared.make_mbarrier(address);
}

void fence_mbarrier_init(Position)
{
    for (auto &entry : block->mbarriers)
        if (entry.second.creator == thread->index) entry.second.visible = true;
}

void fence_proxy_async(Position at)
{
    fence_mbarrier_init(at);
    Knowledge &known = thread->learn();
    for (int i = 0; i < block->thread_count; i++)
        known.fenced[i] = std::max(known.fenced[i], known.order[i]);
    known.order[thread->index]++; /* later stores are not covered */
}

void mbarrier_arrive(uint32_t address, Position at)
{
    arrive(address, 0, at);
}

void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes, Position at)
{
    arrive(address, bytes, at);
}

bool mbarrier_try_wait(uint32_t address, uint32_t parity, Position at)
{
    Mbarrier &mbarrier = find_mbarrier(address, false, at);
    if (parity > 1)
        stop(Kind::invalid_argument, at, "parity is 0 or 1, not " + std::to_string(parity));
    if (is_complete(mbarrier, parity)) {
        thread->learn().join(mbarrier.knowledge);
        return true;
    }
    /* The instruction may give up; a caller must not rely on one call. */
    if (options().schedule == Schedule::random && !block->ready.empty() && random_below(4) == 0) {
        block->ready.push_back(thread);
        block->pause();
        return false;
    }
    mbarrier.waiting.push_back(thread);
    block->block(Wait::mbarrier, address, parity, at);
    return true;
}

void mbarrier_wait(uint32_t address, uint32_t parity, Position at)
{
    while (!mbarrier_try_wait(address, parity, at)) {
    }
}

} // namespace hopper
