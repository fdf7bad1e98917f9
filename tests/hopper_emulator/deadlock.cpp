/*
 * The report of a block in which no thread can go on: who waits, where, and for what.
 */
#include "block.h"

namespace hopper_emulator
{

namespace
{

bool same(const Waiting &a, const Waiting &b)
{
    return a.what == b.what && a.object == b.object && a.value == b.value &&
           a.at.line == b.at.line && a.at.file == b.at.file;
}

} // namespace

std::string Block::why(const Waiting &waiting) const
{
    switch (waiting.what) {
    case Wait::mbarrier: {
        const Mbarrier &m = mbarriers.at(waiting.object);
        std::string text = "mbarrier " + hex(m.address) + ", parity " +
                           std::to_string(waiting.value) + "; its phase " +
                           std::to_string(m.phase) + " lacks " + std::to_string(m.pending) +
                           " of " + std::to_string(m.count) + " arrivals";
        if (m.bytes > 0) text += " and " + std::to_string(m.bytes) + " bytes";
        if (m.bytes < 0)
            text += " and received " + std::to_string(-m.bytes) + " bytes more than expected";
        return text;
    }
    case Wait::named_barrier:
        return (waiting.object == 0 ? std::string("__syncthreads")
                                    : "named barrier " + std::to_string(waiting.object)) +
               "; " + std::to_string(named_barriers[waiting.object].arrived) + " of " +
               std::to_string(waiting.value) + " threads have arrived";
    case Wait::warp:
        return "the other lanes of the warp, mask " + hex(waiting.object);
    case Wait::wgmma: {
        const Warpgroup &group = warpgroups[waiting.object];
        const uint32_t next = group.executed - group.first;
        return "wgmma group " + std::to_string(waiting.value) +
               (next < group.operations.size()
                    ? "; the wgmma at " + place(group.operations[next]->at) + " was issued by " +
                          std::to_string(group.operations[next]->issued) + " of 128 threads"
                    : "");
    }
    case Wait::register_pool:
        return "all of warpgroup " + std::to_string(waiting.object) + " to call setmaxnreg";
    case Wait::registers:
        return std::to_string(waiting.value) + " registers for setmaxnreg.inc; " +
               std::to_string(register_pool) + " are free";
    case Wait::nothing:
        break;
    }
    return "";
}

std::string Block::waiting_text() const
{
    std::string text;
    std::vector<bool> told(threads.size());
    for (size_t i = 0; i < threads.size(); i++) {
        if (threads[i].done || told[i]) continue;
        /* All that wait for the same, as ranges. */
        std::string who;
        for (size_t j = i; j < threads.size(); j++) {
            if (threads[j].done || !same(threads[i].waiting, threads[j].waiting)) continue;
            size_t last = j;
            told[j] = true;
            while (last + 1 < threads.size() && !threads[last + 1].done &&
                   same(threads[i].waiting, threads[last + 1].waiting))
                told[++last] = true;
            who += (who.empty() ? "" : ", ") + std::to_string(j);
            if (last > j) who += "-" + std::to_string(last);
            j = last;
        }
        text += "\n    " + place(threads[i].waiting.at) + ": threads " + who + " wait for " +
                why(threads[i].waiting);
    }
    return text;
}

void Block::deadlock()
{
    Position at = {"", 0};
    Kind kind = Kind::deadlock;
    for (const Thread &t : threads) {
        if (t.done) continue;
        if (at.line == 0) at = t.waiting.at;
        if (t.waiting.what == Wait::registers) {
            kind = Kind::register_pool;
            at = t.waiting.at;
            break;
        }
    }
    size_t finished = 0;
    for (const Thread &t : threads)
        finished += t.done;
    fault(kind, at,
          "no thread of block (" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
              std::to_string(index.z) + ") can go on; " + std::to_string(finished) +
              " have finished" + waiting_text());
}

} // namespace hopper_emulator
