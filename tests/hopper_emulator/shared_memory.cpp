/*
 * Shadow of shared memory: who wrote and read each word last and when, and from it races, reads of
 * what was never written and overwritten stages.
 */
#include "block.h"

#include <algorithm>
#include <cstring>

namespace hopper_emulator
{

namespace
{

/* Source positions as small numbers, to store millions of them. */
std::vector<Position> positions(1, Position{"", 0});

uint16_t intern(Position at)
{
    static std::map<std::pair<const char *, int>, uint16_t> numbers;
    static Position last = {"", 0};
    static uint16_t last_number = 0;
    if (at.line == last.line && at.file == last.file) return last_number;
    auto found = numbers.emplace(std::make_pair(at.file, at.line), (uint16_t)positions.size());
    if (found.second) positions.push_back(at);
    last = at;
    return last_number = found.first->second;
}

/* The bytes of word `granule` that lie in [offset, offset + bytes). */
uint8_t mask_of(uint32_t granule, uint32_t offset, uint32_t bytes)
{
    uint32_t begin = std::max(offset, granule * 4), end = std::min(offset + bytes, granule * 4 + 4);
    return (uint8_t)(((1u << (end - begin)) - 1) << (begin - granule * 4));
}

} // namespace

void Knowledge::join(const Knowledge &other)
{
    for (size_t i = 0; i < order.size(); i++)
        order[i] = std::max(order[i], other.order[i]);
    for (size_t i = 0; i < fenced.size(); i++)
        fenced[i] = std::max(fenced[i], other.fenced[i]);
}

void Knowledge::meet(const Knowledge &other)
{
    for (size_t i = 0; i < order.size(); i++)
        order[i] = std::min(order[i], other.order[i]);
    for (size_t i = 0; i < fenced.size(); i++)
        fenced[i] = std::min(fenced[i], other.fenced[i]);
}

void SharedMemory::reset(size_t bytes)
{
    bytes_.assign((bytes + 15) / 16 * 16, 0xFF);
    granules_.assign(bytes_.size() / 4, Granule());
    readers_.clear();
    free_readers_.clear();
}

uint8_t *SharedMemory::at(uint32_t address, uint32_t bytes, uint32_t alignment, Position at)
{
    if (address < BASE || (uint64_t)address + bytes > BASE + bytes_.size())
        stop(Kind::invalid_argument, at,
             "shared memory at " + hex(address) + ", " + std::to_string(bytes) +
                 " bytes, is outside the block's " + hex(BASE) + " to " +
                 hex(BASE + (uint32_t)bytes_.size()));
    if (address % alignment != 0)
        stop(Kind::invalid_argument, at,
             "shared memory at " + hex(address) + " must be a multiple of " +
                 std::to_string(alignment));
    return &bytes_[address - BASE];
}

void SharedMemory::make_mbarrier(uint32_t address)
{
    for (uint32_t i = 0; i < 2; i++) {
        Granule &granule = granules_[(address - BASE) / 4 + i];
        granule = Granule();
        granule.write.actor = MBARRIER;
        granule.write_mask = granule.written = 0xF;
    }
}

void SharedMemory::read(const View &view, uint32_t address, uint32_t bytes, Position at)
{
    const uint32_t offset = address - BASE;
    const uint16_t where = intern(at);
    for (uint32_t i = offset / 4; i <= (offset + bytes - 1) / 4; i++) {
        Granule &granule = granules_[i];
        const uint8_t mask = mask_of(i, offset, bytes);
        if ((granule.written & mask) != mask)
            fault(Kind::uninitialised, at,
                  block->actor_name(view.actor) + " reads shared memory at " + hex(BASE + i * 4) +
                      " that nothing has written");
        if (granule.write_mask & mask) check_write_mark(granule, view, false, BASE + i * 4, at);
        note_read(granule, view, mask, where);
    }
}

void SharedMemory::write(const View &view, uint32_t address, uint32_t bytes, Position at)
{
    const uint32_t offset = address - BASE;
    const uint16_t where = intern(at);
    for (uint32_t i = offset / 4; i <= (offset + bytes - 1) / 4; i++) {
        Granule &granule = granules_[i];
        const uint8_t mask = mask_of(i, offset, bytes);
        if (granule.write_mask & mask) check_write_mark(granule, view, true, BASE + i * 4, at);
        check_reads(granule, view, mask, BASE + i * 4, at);
        const bool same = granule.write.actor == view.actor && granule.write.step == view.step;
        granule.write_mask = same ? granule.write_mask | mask : mask;
        granule.write = {view.step, view.actor, where};
        granule.written |= mask;
    }
}

/* The last write against a read or, if `writes`, a write. */
void SharedMemory::check_write_mark(const Granule &granule, const View &view, bool writes,
                                    uint32_t address, Position at)
{
    const Mark &mark = granule.write;
    const Knowledge &known = *view.knowledge;
    if (mark.actor == MBARRIER) {
        fault(Kind::mbarrier_misuse, at,
              block->actor_name(view.actor) + " touches the mbarrier at " + hex(address));
        return;
    }
    const bool by_thread = mark.actor < block->thread_count;
    const bool ordered = known.order[mark.actor] >= mark.step;
    if (ordered && !(view.async && by_thread && known.fenced[mark.actor] < mark.step)) return;
    const std::string who = block->actor_name(view.actor) + (writes ? " writes " : " reads ") +
                            "shared memory at " + hex(address) + ", which ";
    const std::string origin =
        block->actor_name(mark.actor) + " wrote at " + place(positions[mark.where]);
    if (ordered)
        fault(Kind::missing_proxy_fence, at,
              who + origin + ", without a fence_proxy_async in between");
    else if (by_thread)
        fault(Kind::race, at, who + origin + ", without a barrier in between");
    else if (writes && view.async)
        fault(Kind::stage_overwritten, at, who + origin + " and nobody has waited for");
    else
        fault(Kind::copy_not_awaited, at,
              who + origin + ", before waiting for the copy's mbarrier");
}

/* Reads since the last write against a write. */
void SharedMemory::check_reads(Granule &granule, const View &view, uint8_t mask, uint32_t address,
                               Position at)
{
    const std::vector<uint32_t> &order = view.knowledge->order;
    for (int i = 0; i < 2; i++) {
        if (!(granule.read_mask[i] & mask)) continue;
        if (order[granule.reads[i].actor] < granule.reads[i].step)
            read_conflict(granule.reads[i].actor, granule.reads[i].where, view, address, at);
        granule.read_mask[i] = 0;
    }
    if (granule.many == 0) return;
    Readers &readers = readers_[granule.many - 1];
    if (!(readers.mask & mask)) return;
    for (size_t i = 0; i < readers.step.size(); i++)
        if (order[i] < readers.step[i]) {
            read_conflict((int)i, readers.where, view, address, at);
            break;
        }
    free_readers_.push_back(granule.many - 1);
    granule.many = 0;
}

void SharedMemory::read_conflict(int actor, uint16_t where, const View &view, uint32_t address,
                                 Position at)
{
    const bool threads = actor < block->thread_count && !view.async;
    fault(threads ? Kind::race : Kind::stage_overwritten, at,
          block->actor_name(view.actor) + " writes shared memory at " + hex(address) + ", which " +
              block->actor_name(actor) + " reads at " + place(positions[where]) +
              (threads ? ", without a barrier in between" : " and may not have finished reading"));
}

void SharedMemory::note_read(Granule &granule, const View &view, uint8_t mask, uint16_t where)
{
    const std::vector<uint32_t> &order = view.knowledge->order;
    for (int i = 0; i < 2; i++) {
        Mark &mark = granule.reads[i];
        const bool same = granule.read_mask[i] != 0 && mark.actor == view.actor;
        if (granule.read_mask[i] == 0 || same || order[mark.actor] >= mark.step) {
            granule.read_mask[i] = same ? granule.read_mask[i] | mask : mask;
            mark = {view.step, view.actor, where};
            return;
        }
    }
    if (granule.many == 0) {
        if (free_readers_.empty()) {
            readers_.emplace_back();
            free_readers_.push_back((uint32_t)readers_.size() - 1);
        }
        granule.many = 1 + free_readers_.back();
        free_readers_.pop_back();
        readers_[granule.many - 1].step.assign(order.size(), 0);
        readers_[granule.many - 1].mask = 0;
    }
    Readers &readers = readers_[granule.many - 1];
    readers.step[view.actor] = view.step;
    readers.where = where;
    readers.mask |= mask;
}

/* ---- What kernels call ---- */

void read_shared(uint32_t address, void *value, uint32_t bytes, Position at)
{
    const uint8_t *source = block->shared.at(address, bytes, bytes, at);
    block->shared.read(block->view_of(*thread), address, bytes, at);
    std::memcpy(value, source, bytes);
}

void write_shared(uint32_t address, const void *value, uint32_t bytes, Position at)
{
    uint8_t *destination = block->shared.at(address, bytes, bytes, at);
    block->shared.write(block->view_of(*thread), address, bytes, at);
    std::memcpy(destination, value, bytes);
}

} // namespace hopper_emulator

uint32_t hopper::shared_base()
{
    return hopper_emulator::SharedMemory::BASE;
}
