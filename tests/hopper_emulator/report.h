/*
 * What the Hopper emulator finds wrong with a kernel, and where in its source.
 */
#ifndef HEADROOM_HOPPER_EMULATOR_REPORT_H
#define HEADROOM_HOPPER_EMULATOR_REPORT_H

#include <cstdint>
#include <string>
#include <vector>

namespace hopper_emulator
{

/* A place in a kernel's source. */
struct Position {
    const char *file;
    int line;

    /* As a default argument: the caller's place. */
    static constexpr Position here(const char *file = __builtin_FILE(), int line = __builtin_LINE())
    {
        return {file, line};
    }
};
#define HR_HERE ::hopper_emulator::Position::here()

enum class Kind {
    race,                /* two threads, one writes, no barrier between them */
    missing_proxy_fence, /* a store that wgmma or TMA may not see */
    stage_overwritten,   /* a write over what wgmma, TMA or a thread may still read */
    copy_not_awaited,    /* bytes of a TMA copy touched before its mbarrier was waited for */
    uninitialised,       /* shared memory or an accumulator read before it was written */
    register_in_flight,  /* a register touched while a wgmma uses it */
    register_not_named,  /* ... used after a wait that does not name it */
    missing_wgmma_fence, /* ... used by wgmma after an access without wgmma_fence */
    missing_expect_tx,   /* a copy whose bytes its mbarrier has not been told of */
    mbarrier_misuse,     /* not initialised, initialised twice, too many arrivals, overwritten */
    barrier_misuse,      /* a named barrier's id or count */
    register_pool,       /* setmaxnreg: raises with dec, lowers with inc, or never satisfied */
    divergence,          /* threads that must call the same instruction do not */
    invalid_argument,    /* an alignment, a descriptor, a tensor map, an address out of range */
    stores_unfinished,   /* the block ended before its bulk stores had read shared memory */
    deadlock,            /* no thread can go on */
    count
};

const char *kind_name(Kind kind);

struct Finding {
    Kind kind;
    std::string message; /* what, which thread, and the other access where there is one */
    Position at;
};

/* What a launch did, to check a kernel's structure without a clock. */
struct Counters {
    uint64_t wgmma[4]; /* instructions, by MatrixType */
    uint64_t wgmma_macs;
    uint64_t load_bytes, store_bytes; /* of TMA and bulk copies */
};

struct Report {
    std::vector<Finding> findings; /* distinct by kind and place, in order of appearance */
    Counters counters = {};
    bool has(Kind kind) const;
    std::string text() const; /* one paragraph a finding; empty if there is none */
};

/* When asynchronous work happens within what the memory model allows. */
enum class Schedule {
    earliest, /* as soon as it is issued; threads take turns */
    latest,   /* when no thread can go on without it; the last one woken runs first */
    random    /* in between, drawn from the seed; threads in random order */
};

struct Options {
    Schedule schedule = Schedule::earliest;
    uint64_t seed = 1;
    /*
     * wgmma_e4m3 as the hardware does it, by the published measurements: the accumulator and the 32
     * products of an instruction are aligned to the largest exponent among them, cut below 13 bits
     * under it, and added. Otherwise products are summed exactly and rounded to FP32 once.
     */
    bool fp22 = false;
};

/* Of the launches that follow. */
Options &options();

/* Of the last launch. */
const Report &report();

} // namespace hopper_emulator

#endif
