/*
 * A block's threads as the scheduler runs them: launching, choosing what runs or completes next in
 * each schedule, and what must hold when a block ends.
 */
#include "block.h"

#include <algorithm>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace hopper_emulator
{

Block *block;
Thread *thread;
void clear_report();

namespace
{

/* Actors besides threads and warpgroups: mbarriers and threads that store in bulk. */
constexpr int OTHER_ACTORS = 160;
constexpr int REGISTER_FILE = 65536;

uint64_t random_state;
unsigned random_rate; /* asynchronous work is done at one of so many scheduling points */

/* Thrown through kernels and asynchronous work of a block that cannot go on. */
struct Stopped {
};
bool stopped;

/* What ptxas allots by __launch_bounds__(threads, 1). */
int registers_of(int threads)
{
    return std::min(256, REGISTER_FILE / threads / 8 * 8);
}

void thread_main(void *argument)
{
    try {
        if (!stopped) (*block->kernel)();
    } catch (const Stopped &) {
    }
    Thread &finished = *(Thread *)argument;
    finished.done = true;
    finished.fiber.leave(true);
}

} // namespace

/* xorshift64*; good enough to pick what runs next. */
uint32_t random_below(uint32_t bound)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545F4914F6CDD1Dull) >> 33) % bound;
}

void stop(Kind kind, Position at, const std::string &message)
{
    fault(kind, at, message);
    stopped = true;
    throw Stopped();
}

bool is_stopped()
{
    return stopped;
}

Knowledge &Thread::learn()
{
    if (knowledge.use_count() > 1) knowledge = std::make_shared<Knowledge>(*knowledge);
    return *knowledge;
}

Block::Block(dim3 size, size_t shared_bytes)
    : thread_count((int)(size.x * size.y * size.z)),
      actor_limit(thread_count + thread_count / 128 + OTHER_ACTORS), threads(thread_count),
      warpgroups(thread_count / 128), warp_operations((thread_count + 31) / 32)
{
    for (int i = 0; i < thread_count; i++) {
        Thread &t = threads[i];
        t.index = i;
        t.lane = i % 32;
        t.coordinates = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
        new_actor(ActorKind::thread, (uint32_t)i);
        t.knowledge = std::make_shared<Knowledge>(actor_limit);
        t.knowledge->order[i] = 1;
        t.stores.emplace_back();
        ready.push_back(&t);
    }
    const int registers = registers_of(thread_count);
    for (Warpgroup &group : warpgroups) {
        group.actor = new_actor(ActorKind::wgmma, (uint32_t)(&group - &warpgroups[0]));
        group.registers = registers;
    }
    register_pool = REGISTER_FILE - thread_count * registers;
    shared.reset(shared_bytes);
}

uint16_t Block::new_actor(ActorKind kind, uint32_t of)
{
    if ((int)actors.size() == actor_limit)
        stop(Kind::invalid_argument, {"", 0},
             "the emulator takes at most " + std::to_string(OTHER_ACTORS) +
                 " mbarriers and threads that store in bulk");
    actors.push_back({kind, of});
    return (uint16_t)(actors.size() - 1);
}

std::string Block::actor_name(int actor) const
{
    const Actor &a = actors[actor];
    switch (a.kind) {
    case ActorKind::thread:
        return "thread " + std::to_string(a.of);
    case ActorKind::wgmma:
        return "wgmma of warpgroup " + std::to_string(a.of);
    case ActorKind::load:
        return "a copy to mbarrier " + hex(a.of);
    case ActorKind::store:
        return "a bulk store of thread " + std::to_string(a.of);
    }
    return "";
}

View Block::view_of(const Thread &t) const
{
    return {(uint16_t)t.index, t.order(t.index), false, t.knowledge.get()};
}

void Block::wake(Thread &t)
{
    t.waiting = Waiting();
    ready.push_back(&t);
}

void Block::block(Wait what, uint32_t object, uint32_t value, Position at)
{
    thread->waiting = {what, object, value, at};
    pause();
}

void Block::pause()
{
    thread->fiber.leave();
    if (stopped) throw Stopped();
}

void Block::resume(Thread &next)
{
    thread = &next;
    threadIdx = next.coordinates;
    next.fiber.enter();
    thread = nullptr;
}

Thread &Block::next_ready()
{
    size_t which = options().schedule == Schedule::earliest ? 0
                   : options().schedule == Schedule::latest ? ready.size() - 1
                                                            : random_below((uint32_t)ready.size());
    Thread &next = *ready[which];
    ready.erase(ready.begin() + (ptrdiff_t)which);
    return next;
}

void Block::execute(dim3 where, const std::function<void()> &body, FiberStacks &stacks)
{
    index = where;
    kernel = &body;
    hopper_emulator::block = this;
    stopped = false;
    for (Thread &t : threads)
        t.fiber.prepare(stacks.stack((size_t)t.index), FiberStacks::bytes, thread_main, &t);

    try {
        run_threads();
    } catch (const Stopped &) {
    }
    /* Threads that did not finish unwind, so that what their stacks own is freed. */
    for (Thread &t : threads)
        if (!t.done) resume(t);
    hopper_emulator::block = nullptr;
}

void Block::run_threads()
{
    int finished = 0;
    while (finished < thread_count) {
        const bool random = options().schedule == Schedule::random;
        if (random && random_below(random_rate) == 0) run_random();
        if (!ready.empty()) {
            Thread &next = next_ready();
            resume(next);
            finished += next.done;
        } else if (!(random ? run_random() : run_waited_load() || run_waited_wgmma())) {
            deadlock();
            stopped = true;
        }
        if (stopped) return;
    }
    finish_stores();
}

/* Picks any asynchronous work that could be done now. */
bool Block::run_random()
{
    std::vector<std::function<void()>> work;
    if (!loads.empty())
        work.push_back([this] { execute_load(random_below((uint32_t)loads.size())); });
    for (Warpgroup &group : warpgroups) {
        const uint32_t next = group.executed - group.first;
        if (next < group.operations.size() && group.operations[next]->issued == 128)
            work.push_back([&group] { execute_wgmma(group); });
    }
    for (Thread &t : threads)
        for (auto &group : t.stores)
            for (Store &store : group)
                if (!store.written)
                    work.push_back(
                        [&store] { store.read ? write_store(store) : read_store(store); });
    if (work.empty()) return false;
    work[random_below((uint32_t)work.size())]();
    return true;
}

/* Bulk stores that nobody waited for: shared memory may be gone before they have read it. */
void Block::finish_stores()
{
    for (Thread &t : threads)
        for (auto &group : t.stores)
            for (Store &store : group) {
                if (!store.read && options().schedule == Schedule::latest)
                    fault(Kind::stores_unfinished, store.at,
                          "thread " + std::to_string(t.index) +
                              " has left without a bulk_wait_read for this store");
                if (!store.read) read_store(store);
                if (!store.written) write_store(store);
            }
}

cudaError_t run(dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()> &kernel)
{
    static FiberStacks stacks;
    clear_report();
    const uint64_t threads = (uint64_t)size.x * size.y * size.z;
    constexpr unsigned MOST_X = 0x7FFFFFFF, MOST_YZ = 65535, MOST_BLOCK_Z = 64;
    if (threads == 0 || threads > 1024 || size.z > MOST_BLOCK_Z || grid.x == 0 || grid.y == 0 ||
        grid.z == 0 || grid.x > MOST_X || grid.y > MOST_YZ || grid.z > MOST_YZ ||
        shared_bytes > SharedMemory::LIMIT)
        return cudaErrorInvalidValue;
    stacks.reserve(threads);
    random_state = options().seed * 0x9E3779B97F4A7C15ull + 1;
    random_rate = 1u << random_below(10);
    gridDim = grid;
    blockDim = size;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = dim3(x, y, z);
                auto one = std::make_unique<Block>(size, shared_bytes);
                one->execute(blockIdx, kernel, stacks);
                if (!report().findings.empty()) return cudaErrorLaunchFailure;
            }
    return cudaSuccess;
}

} // namespace hopper_emulator
