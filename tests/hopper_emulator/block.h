/*
 * The emulator's state: one block of threads at a time.
 *
 * Ordering is tracked with vector clocks. An actor is whatever reads or writes shared memory at its
 * own pace: a thread, the wgmma unit of a warpgroup, the copies that complete on one mbarrier, the
 * bulk stores of one thread. A thread's Knowledge says, for each actor, up to which of its steps
 * everything has happened before what the thread does now; barriers pass it on. An access that
 * conflicts with an earlier one must know of it, whatever the order in which the fibers happened to
 * run, so races are found without having to occur.
 */
#ifndef HEADROOM_HOPPER_EMULATOR_BLOCK_H
#define HEADROOM_HOPPER_EMULATOR_BLOCK_H

#include "fiber.h"
#include "launch.h"
#include "shared_memory.h"

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace hopper_emulator
{

enum class Wait { nothing, mbarrier, named_barrier, warp, wgmma, register_pool, registers };

struct Waiting {
    Wait what = Wait::nothing;
    uint32_t object = 0; /* mbarrier's address, barrier's id, lane mask, group, registers */
    uint32_t value = 0;  /* mbarrier's parity, barrier's count */
    Position at = {"", 0};
};

/* One wgmma of a warpgroup, issued when all 128 threads have come by. */
struct Wgmma {
    MatrixType type;
    int columns;
    bool accumulate, a_in_registers;
    uint64_t a, b;
    Position at;
    uint32_t group;               /* 1, 2, ...: the commit group it belongs to */
    int issued = 0, released = 0; /* threads */
    RegistersState *d[128] = {};
    RegistersState *fragment[128] = {};
    std::shared_ptr<const Knowledge> known[128]; /* what each thread knew when it issued */
    std::shared_ptr<const Knowledge> common;     /* what all of them knew */
};

struct Warpgroup {
    uint16_t actor;
    std::deque<std::unique_ptr<Wgmma>> operations; /* the first is number `first` */
    uint32_t first = 0;
    uint32_t executed = 0;           /* operations */
    std::vector<uint32_t> group_end; /* operations up to the end of group i + 1 */
    /* setmaxnreg */
    int registers;
    int setting = 0; /* threads that have called it */
};

/* Bulk copies from shared memory to global, in groups of the thread that issued them. */
struct Store {
    CUtensorMap map; /* rank 0: a plain copy to base */
    int coordinates[5];
    uint32_t source, bytes;
    Position at;
    bool read = false, written = false;
    std::vector<uint8_t> data;
};

struct Thread {
    int index, lane;
    dim3 coordinates;
    Fiber fiber;
    bool done = false;
    Waiting waiting;
    std::shared_ptr<Knowledge> knowledge;
    /* wgmma */
    bool fenced = false;
    uint32_t issued = 0, released = 0; /* operations */
    uint32_t committed = 0;            /* groups */
    /* bulk stores: committed groups, then the open one */
    int store_actor = -1;
    std::vector<std::vector<Store>> stores;
    Word result[4]; /* of the warp-wide instruction that it waited in */

    Knowledge &learn(); /* to change: a copy if someone keeps the present one */
    uint32_t order(int actor) const { return knowledge->order[actor]; }
};

/* A copy from global memory on its way to shared memory. */
struct Load {
    CUtensorMap map; /* rank 0: a plain copy from base */
    int coordinates[5];
    uint32_t destination, bytes, mbarrier, phase;
    Position at;
};

struct Mbarrier {
    uint32_t address, count, pending;
    int64_t bytes = 0; /* that the phase still waits for */
    uint32_t phase = 0;
    uint16_t actor;
    Knowledge knowledge; /* of those that arrived */
    int creator;
    uint32_t creator_clock;
    bool visible = false; /* a fence followed mbarrier_init */
    std::vector<Thread *> waiting;
};

struct NamedBarrier {
    uint32_t expected = 0, arrived = 0;
    Knowledge knowledge;
    std::vector<Thread *> waiting;
};

/* A warp-wide instruction that some lanes of its mask have reached. */
struct WarpOperation {
    unsigned mask, arrived = 0;
    Collective what;
    Position at;
    Word value[32][10]; /* mma: a, b, d */
    int argument[32];   /* shuffle: source lane; ldmatrix, stmatrix: row address */
    bool transposed;
};

enum class ActorKind { thread, wgmma, load, store };

struct Actor {
    ActorKind kind;
    uint32_t of; /* thread, warpgroup, mbarrier's address, thread */
};

class Block
{
  public:
    Block(dim3 size, size_t shared_bytes);
    void execute(dim3 index, const std::function<void()> &kernel, FiberStacks &stacks);

    uint16_t new_actor(ActorKind kind, uint32_t of);
    std::string actor_name(int actor) const;
    Knowledge no_knowledge() const { return Knowledge(actor_limit); }
    View view_of(const Thread &thread) const;
    void wake(Thread &thread);
    /* The running thread: until it is woken; until it is resumed. */
    void block(Wait what, uint32_t object, uint32_t value, Position at);
    void pause();

    /* Asynchronous work; each returns whether there was any. */
    bool run_waited_load();
    bool run_waited_wgmma();
    bool run_random();
    void finish_stores();
    std::string waiting_text() const;
    std::string why(const Waiting &waiting) const;

    int thread_count;
    int actor_limit;
    dim3 index;
    std::vector<Thread> threads;
    std::vector<Warpgroup> warpgroups;
    std::vector<std::vector<WarpOperation>> warp_operations; /* a warp */
    std::map<uint32_t, Mbarrier> mbarriers;
    NamedBarrier named_barriers[16];
    std::vector<Load> loads;
    std::vector<Actor> actors;
    std::vector<Thread *> ready;
    std::vector<Thread *> register_waiters; /* in setmaxnreg.inc */
    int register_pool; /* registers a thread, times threads, that setmaxnreg.dec gave up */
    SharedMemory shared;
    const std::function<void()> *kernel = nullptr;

  private:
    void run_threads();
    void resume(Thread &next);
    Thread &next_ready();
    void deadlock();
};

extern Block *block;   /* the one that runs */
extern Thread *thread; /* the one that runs; null while asynchronous work does */

uint32_t random_below(uint32_t bound);

/* Notes a finding. `by` names who did it; the running thread when empty. */
void fault(Kind kind, Position at, const std::string &message);
/* ... after which the block cannot go on: unwinds. */
[[noreturn]] void stop(Kind kind, Position at, const std::string &message);
bool is_stopped();

Counters &counters();
std::string place(Position at);
std::string hex(uint32_t value);

/* mbarrier.cpp */
Mbarrier &find_mbarrier(uint32_t address, bool by_copy, Position at);
void complete_bytes(uint32_t address, uint32_t bytes);
void complete_phase_if_done(Mbarrier &mbarrier);

/* copies.cpp */
void execute_load(size_t which);
void read_store(Store &store);
void write_store(Store &store);

/* wgmma.cpp */
void execute_wgmma(Warpgroup &group);

/* matrix.cpp */
void multiply(const Wgmma &operation);

} // namespace hopper_emulator

#endif
