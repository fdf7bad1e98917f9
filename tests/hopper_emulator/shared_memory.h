/*
 * A block's shared memory and who touched each of its words last.
 */
#ifndef HEADROOM_HOPPER_EMULATOR_SHARED_MEMORY_H
#define HEADROOM_HOPPER_EMULATOR_SHARED_MEMORY_H

#include "report.h"

#include <cstddef>

namespace hopper_emulator
{

/* What has happened before an actor's next step: for each actor, up to which of its steps. */
struct Knowledge {
    std::vector<uint32_t> order;
    std::vector<uint32_t>
        fenced; /* ... and whose stores a proxy fence has shown to wgmma and TMA */

    Knowledge() = default;
    explicit Knowledge(int actors) : order(actors), fenced(actors) {}
    void join(const Knowledge &other); /* the larger of both, by actor */
    void meet(const Knowledge &other); /* the smaller */
};

/* One actor's access: who, at which of its steps, and on whose knowledge. */
struct View {
    uint16_t actor;
    uint32_t step;
    bool async; /* by wgmma or TMA, the async proxy */
    const Knowledge *knowledge;
};

class SharedMemory
{
  public:
    static constexpr uint32_t BASE = 1024; /* the system keeps the first KiB, as on the hardware */
    static constexpr size_t LIMIT = 227 * 1024;

    void reset(size_t bytes); /* poison: all bytes 0xFF, a NaN in every format */
    size_t size() const { return bytes_.size(); }

    /* The bytes at an address; out of range or misaligned ends the block. */
    uint8_t *at(uint32_t address, uint32_t bytes, uint32_t alignment, Position at);

    /* Check an access, and note it for the checks of later ones. */
    void read(const View &view, uint32_t address, uint32_t bytes, Position at);
    void write(const View &view, uint32_t address, uint32_t bytes, Position at);

    /* From here on only mbarrier functions may touch these 8 bytes. */
    void make_mbarrier(uint32_t address);

  private:
    /* An access to a word: by whom, when, where in the source. Bytes of the word are in a mask. */
    struct Mark {
        uint32_t step;
        uint16_t actor, where;
    };
    struct Granule {
        Mark write;
        Mark reads[2]; /* since the last write */
        uint8_t write_mask, read_mask[2];
        uint8_t written; /* bytes ever written */
        uint32_t many;   /* 0, or 1 + index of a Readers when two slots were too few */
    };
    struct Readers {
        std::vector<uint32_t> step; /* by actor; 0: has not read */
        uint16_t where;
        uint8_t mask;
    };
    static constexpr uint16_t MBARRIER = 0xFFFF; /* as actor of the last write */

    void check_write_mark(const Granule &granule, const View &view, bool writes, uint32_t address,
                          Position at);
    void check_reads(Granule &granule, const View &view, uint8_t mask, uint32_t address,
                     Position at);
    void note_read(Granule &granule, const View &view, uint8_t mask, uint16_t where);
    void read_conflict(int actor, uint16_t where, const View &view, uint32_t address, Position at);

    std::vector<uint8_t> bytes_;
    std::vector<Granule> granules_;
    std::vector<Readers> readers_;
    std::vector<uint32_t> free_readers_;
};

} // namespace hopper_emulator

#endif
