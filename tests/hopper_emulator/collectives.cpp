/*
 * What the threads of a warp, a warpgroup or a block do together: shuffles, ldmatrix and stmatrix,
 * named barriers, setmaxnreg.
 */
#include "block.h"

#include <algorithm>
#include <cstring>

namespace hopper_emulator
{

void multiply_halves(const Word (&value)[32][10], Word (&result)[32][4]);

namespace
{

const char *collective_name(Collective what)
{
    const char *const names[] = {"a shuffle", "a ballot", "__syncwarp",
                                 "ldmatrix",  "stmatrix", "mma"};
    return names[(int)what];
}

Thread &lane_of(const Thread &of, int lane)
{
    return block->threads[of.index - of.lane + lane];
}

/* Rows of the four matrices are 16 bytes each, at the addresses of lanes 0-31. */
void transfer_matrices(WarpOperation &operation, bool store)
{
    uint16_t element[4][8][8];
    uint8_t *row[32];
    /* Each lane reads what others may have written: all must know of it. */
    Knowledge common = *thread->knowledge;
    for (int lane = 0; lane < 32 && !store; lane++)
        common.meet(*lane_of(*thread, lane).knowledge);
    for (int lane = 0; lane < 32; lane++) {
        const uint32_t address = (uint32_t)operation.argument[lane];
        View view = block->view_of(lane_of(*thread, lane));
        if (!store) view.knowledge = &common;
        row[lane] = block->shared.at(address, 16, 16, operation.at);
        if (store)
            block->shared.write(view, address, 16, operation.at);
        else
            block->shared.read(view, address, 16, operation.at);
        if (!store) std::memcpy(element[lane / 8][lane % 8], row[lane], 16);
    }
    for (int lane = 0; lane < 32; lane++)
        for (int m = 0; m < 4; m++) {
            /* This lane's two elements, at (i, j) and (i, j + 1), or transposed. */
            const int i = lane / 4, j = lane % 4 * 2;
            uint16_t &first = operation.transposed ? element[m][j][i] : element[m][i][j];
            uint16_t &second = operation.transposed ? element[m][j + 1][i] : element[m][i][j + 1];
            if (store) {
                first = (uint16_t)operation.value[lane][m];
                second = (uint16_t)(operation.value[lane][m] >> 16);
            } else {
                lane_of(*thread, lane).result[m] = first | (Word)second << 16;
            }
        }
    if (store)
        for (int lane = 0; lane < 32; lane++)
            std::memcpy(row[lane], element[lane / 8][lane % 8], 16);
}

/* All lanes of the mask have come: does what they came for. */
void perform(WarpOperation &operation)
{
    unsigned predicates = 0;
    Knowledge all = *thread->knowledge;
    for (int lane = 0; lane < 32; lane++)
        if (operation.mask >> lane & 1) {
            predicates |= (operation.value[lane][0] != 0 ? 1u : 0u) << lane;
            if (operation.what == Collective::syncwarp) all.join(*lane_of(*thread, lane).knowledge);
        }
    for (int lane = 0; lane < 32; lane++) {
        if (!(operation.mask >> lane & 1)) continue;
        Thread &t = lane_of(*thread, lane);
        const int source = operation.argument[lane];
        switch (operation.what) {
        case Collective::shuffle:
            /* A lane outside the mask gives an undefined value. */
            t.result[0] = operation.mask >> source & 1 ? operation.value[source][0] : POISON;
            break;
        case Collective::ballot:
            t.result[0] = predicates;
            break;
        case Collective::syncwarp:
            t.learn() = all;
            t.learn().order[t.index]++;
            break;
        case Collective::ldmatrix:
        case Collective::stmatrix:
        case Collective::mma:
            break;
        }
    }
    if (operation.what == Collective::ldmatrix || operation.what == Collective::stmatrix)
        transfer_matrices(operation, operation.what == Collective::stmatrix);
    if (operation.what == Collective::mma) {
        Word d[32][4];
        multiply_halves(operation.value, d);
        for (int lane = 0; lane < 32; lane++)
            std::memcpy(lane_of(*thread, lane).result, d[lane], sizeof d[lane]);
    }
}

/* The running thread takes part; returns when all lanes of the mask have. */
void take_part(Collective what, unsigned mask, const Word *value, int count, int argument,
               bool transposed, Position at)
{
    if (!(mask >> thread->lane & 1))
        stop(Kind::divergence, at,
             "lane " + std::to_string(thread->lane) + " is not in the mask " + hex(mask) + " of " +
                 collective_name(what));
    std::vector<WarpOperation> &open = block->warp_operations[thread->index / 32];
    auto found = std::find_if(open.begin(), open.end(),
                              [&](const WarpOperation &o) { return o.mask & mask; });
    if (found == open.end()) {
        open.emplace_back();
        found = open.end() - 1;
        found->mask = mask;
        found->what = what;
        found->at = at;
        found->transposed = transposed;
    } else if (found->mask != mask || found->what != what || found->transposed != transposed) {
        stop(Kind::divergence, at,
             "lane " + std::to_string(thread->lane) + " of warp " +
                 std::to_string(thread->index / 32) + " is at " + collective_name(what) +
                 " with mask " + hex(mask) + " while another is at " +
                 collective_name(found->what) + " with mask " + hex(found->mask) + " at " +
                 place(found->at));
    }
    std::memcpy(found->value[thread->lane], value, (size_t)count * sizeof *value);
    found->argument[thread->lane] = argument;
    found->arrived |= 1u << thread->lane;
    if (found->arrived != mask) {
        block->block(Wait::warp, mask, (uint32_t)what, at);
        return;
    }
    WarpOperation complete = *found;
    open.erase(found);
    perform(complete);
    for (int lane = 0; lane < 32; lane++)
        if ((mask >> lane & 1) && lane != thread->lane) block->wake(lane_of(*thread, lane));
}

void arrive_named(uint32_t id, uint32_t threads, bool wait, Position at)
{
    if (id > 15 || threads == 0 || threads % 32 != 0 || threads > (uint32_t)block->thread_count)
        stop(Kind::barrier_misuse, at,
             "named barrier " + std::to_string(id) + " of " + std::to_string(threads) +
                 " threads: the id is 0 to 15, the count a multiple of 32 up to the block's " +
                 std::to_string(block->thread_count));
    NamedBarrier &barrier = block->named_barriers[id];
    if (barrier.arrived == 0) {
        barrier.expected = threads;
        barrier.knowledge = block->no_knowledge();
    } else if (barrier.expected != threads) {
        stop(Kind::barrier_misuse, at,
             "thread " + std::to_string(thread->index) + " comes to named barrier " +
                 std::to_string(id) + " with a count of " + std::to_string(threads) +
                 ", others with " + std::to_string(barrier.expected));
    }
    barrier.knowledge.join(*thread->knowledge);
    thread->learn().order[thread->index]++;
    barrier.arrived++;
    if (barrier.arrived < threads) {
        if (wait) {
            barrier.waiting.push_back(thread);
            block->block(Wait::named_barrier, id, threads, at);
        }
        return;
    }
    if (wait) thread->learn().join(barrier.knowledge);
    for (Thread *waiter : barrier.waiting) {
        waiter->learn().join(barrier.knowledge);
        block->wake(*waiter);
    }
    barrier.waiting.clear();
    barrier.arrived = 0;
}

} // namespace

int current_lane()
{
    return thread->lane;
}

Word shuffle(unsigned mask, Word value, int source, Position at)
{
    take_part(Collective::shuffle, mask, &value, 1, source, false, at);
    return thread->result[0];
}

Word ballot(unsigned mask, bool predicate, Position at)
{
    const Word value = predicate;
    take_part(Collective::ballot, mask, &value, 1, 0, false, at);
    return thread->result[0];
}

void sync_warp(unsigned mask, Position at)
{
    const Word nothing = 0;
    take_part(Collective::syncwarp, mask, &nothing, 1, 0, false, at);
}

uint4 load_matrices(uint32_t row, bool transposed, Position at)
{
    const Word nothing = 0;
    take_part(Collective::ldmatrix, ~0u, &nothing, 1, (int)row, transposed, at);
    const Word *r = thread->result;
    return {r[0], r[1], r[2], r[3]};
}

void store_matrices(uint32_t row, uint4 r, bool transposed, Position at)
{
    const Word value[4] = {r.x, r.y, r.z, r.w};
    take_part(Collective::stmatrix, ~0u, value, 4, (int)row, transposed, at);
}

void multiply_warp(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Position at)
{
    Word value[10];
    std::memcpy(value, a, sizeof a);
    std::memcpy(value + 4, b, sizeof b);
    std::memcpy(value + 6, d, sizeof d);
    take_part(Collective::mma, ~0u, value, 10, 0, false, at);
    std::memcpy(d, thread->result, sizeof d);
}

void sync_threads(Position at)
{
    arrive_named(0, (uint32_t)((block->thread_count + 31) / 32 * 32), true, at);
}

/* All four warps of a warpgroup change their registers together. */
void set_registers(int count, bool increase, Position at)
{
    const uint32_t number = (uint32_t)thread->index / 128;
    if (number >= block->warpgroups.size())
        stop(Kind::register_pool, at, "setmaxnreg needs a whole warpgroup of 128 threads");
    Warpgroup &group = block->warpgroups[number];
    if (increase ? count < group.registers : count > group.registers)
        fault(Kind::register_pool, at,
              std::string("setmaxnreg.") + (increase ? "inc" : "dec") + " to " +
                  std::to_string(count) + ", but the warpgroup has " +
                  std::to_string(group.registers));
    if (++group.setting < 128) {
        block->block(Wait::register_pool, number, (uint32_t)count, at);
        return;
    }
    group.setting = 0;
    const int more = (count - group.registers) * 128;
    while (more > block->register_pool) {
        block->register_waiters.push_back(thread);
        block->block(Wait::registers, number, (uint32_t)more, at);
    }
    block->register_pool -= more;
    group.registers = count;
    for (int i = 0; i < 128; i++) {
        Thread &t = block->threads[number * 128 + (uint32_t)i];
        if (&t != thread) block->wake(t);
    }
    if (more < 0) {
        for (Thread *waiter : block->register_waiters)
            block->wake(*waiter);
        block->register_waiters.clear();
    }
}

} // namespace hopper_emulator

namespace hopper
{

using namespace hopper_emulator;

void named_barrier_sync(uint32_t id, uint32_t threads, Position at)
{
    arrive_named(id, threads, true, at);
}

void named_barrier_arrive(uint32_t id, uint32_t threads, Position at)
{
    arrive_named(id, threads, false, at);
}

/* Any lane would do; the manual names none. */
bool elect_one(Position)
{
    return thread->lane == (thread->index / 32 * 5 + 3) % 32;
}

} // namespace hopper
