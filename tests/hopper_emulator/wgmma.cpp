/*
 * wgmma: issue by the 128 threads of a warpgroup, in-order execution, groups and waits, and the
 * rules on registers and shared memory in between.
 */
#include "block.h"

#include <algorithm>
#include <cstring>

namespace hopper_emulator
{

namespace
{

Warpgroup &own_group(Position at)
{
    const size_t number = (size_t)thread->index / 128;
    if (number >= block->warpgroups.size())
        stop(Kind::divergence, at, "wgmma needs a whole warpgroup of 128 threads");
    return block->warpgroups[number];
}

std::string thread_name()
{
    return "thread " + std::to_string(thread->index);
}

/* Rows of `bytes` along k at a descriptor, as 16-byte pieces; calls piece(row, column, address). */
template <class Piece> void for_each_piece(uint64_t descriptor, int rows, Piece piece)
{
    const uint32_t start = (uint32_t)(descriptor & 0x3FFF) << 4;
    const uint32_t leading = (uint32_t)(descriptor >> 16 & 0x3FFF) << 4;
    const uint32_t stride = (uint32_t)(descriptor >> 32 & 0x3FFF) << 4;
    const auto swizzle = (hopper::Swizzle)(descriptor >> 62);
    const uint32_t pitch = (uint32_t)hopper::swizzle_bytes(swizzle);
    const uint32_t columns = pitch / 16;
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < 2; column++) {
            uint32_t address = start + (uint32_t)row / 8 * stride + (uint32_t)row % 8 * pitch;
            address += (uint32_t)column * (swizzle == hopper::Swizzle::none ? leading : 16);
            piece(row, column, address ^ ((address >> 7 & (columns - 1)) << 4));
        }
}

void check_descriptor(uint64_t descriptor, const char *operand, Position at)
{
    const uint32_t start = (uint32_t)(descriptor & 0x3FFF) << 4;
    const auto swizzle = (hopper::Swizzle)(descriptor >> 62);
    const uint32_t width = (uint32_t)hopper::swizzle_bytes(swizzle);
    /* A sum of address parts that left its 14 bits shows in a bit that is none of a field's. */
    constexpr uint64_t FIELDS =
        0x3FFFull | 0x3FFFull << 16 | 0x3FFFull << 32 | 7ull << 49 | 3ull << 62;
    if (descriptor & ~FIELDS)
        stop(Kind::invalid_argument, at,
             std::string("the descriptor of operand ") + operand + " has bits between its fields");
    if (descriptor >> 49 & 7)
        stop(Kind::invalid_argument, at, "the emulator takes descriptors of base offset 0 only");
    /* The pattern's period is 8 rows; k may move the start within the first row, by whole steps. */
    if (swizzle != hopper::Swizzle::none && (start % (8 * width) >= width || start % 32 != 0))
        stop(Kind::invalid_argument, at,
             std::string("operand ") + operand + " starts at " + hex(start) +
                 ": a tile of this swizzle is aligned to " + std::to_string(8 * width) +
                 " bytes, and k moves in steps of 32 bytes within a row of " +
                 std::to_string(width));
}

void check_operand(uint64_t descriptor, int rows, const View &view, Position at)
{
    for_each_piece(descriptor, rows, [&](int, int, uint32_t address) {
        block->shared.at(address, 16, 16, at);
        block->shared.read(view, address, 16, at);
    });
}

/* What all 128 threads knew when they issued; shared with the operation before if nothing changed.
 */
std::shared_ptr<const Knowledge> common_knowledge(const Warpgroup &group, const Wgmma &operation)
{
    if (group.operations.size() > 1) {
        const Wgmma &before = **(group.operations.end() - 2);
        if (&before != &operation && before.common != nullptr &&
            std::equal(before.known, before.known + 128, operation.known))
            return before.common;
    }
    auto common = std::make_shared<Knowledge>(*operation.known[0]);
    for (int i = 1; i < 128; i++)
        common->meet(*operation.known[i]);
    return common;
}

/* All 128 threads have issued it: checks what it will read, whenever it runs. */
void complete_issue(Warpgroup &group, Wgmma &operation)
{
    counters().wgmma[operation.type]++;
    counters().wgmma_macs +=
        64ull * (uint64_t)operation.columns * (operation.type == BF16 ? 16 : 32);
    operation.common = common_knowledge(group, operation);
    const View view = {group.actor, operation.group, true, operation.common.get()};
    if (!operation.a_in_registers) check_operand(operation.a, 64, view, operation.at);
    check_operand(operation.b, operation.columns, view, operation.at);
}

void check_accumulator(RegistersState &d, bool accumulate, Position at)
{
    if (!thread->fenced || d.touched)
        fault(Kind::missing_wgmma_fence, at,
              thread_name() + (d.touched
                                   ? " has touched the accumulator since a wgmma_fence named it"
                                   : " has not called wgmma_fence before its first wgmma"));
    if (accumulate && !d.written)
        fault(Kind::uninitialised, at,
              thread_name() + " accumulates into registers that nothing has written");
    if (d.in_flight > 0 && !d.accumulator)
        fault(Kind::register_in_flight, at,
              thread_name() + " accumulates into a fragment that the wgmma at " + place(d.at) +
                  " reads");
}

void check_fragment(const RegistersState &a, Position at)
{
    if (a.touched)
        fault(Kind::missing_wgmma_fence, at,
              thread_name() + " has touched the fragment of A since a wgmma_fence named it");
    if (!a.written)
        fault(Kind::uninitialised, at,
              thread_name() + " passes a fragment of A that nothing has written");
    if (a.in_flight > 0 && a.accumulator)
        fault(Kind::register_in_flight, at,
              thread_name() + " passes as A the accumulator of the wgmma at " + place(a.at));
}

/* From here to its wait the kernel sees poison. */
void take_accumulator(RegistersState &d, Position at)
{
    const size_t bytes = (size_t)d.count * 4;
    if (d.in_flight == 0) {
        std::memcpy(d.shadow, d.values, bytes);
        for (int i = 0; i < d.count; i++)
            std::memcpy(&d.values[i], &POISON, 4);
    }
    d.in_flight++;
    d.accumulator = d.written = true;
    d.unnamed = true;
    d.at = at;
}

void release(Wgmma &operation, int lane)
{
    RegistersState *d = operation.d[lane];
    if (d != nullptr && --d->in_flight == 0)
        std::memcpy(d->values, d->shadow, (size_t)d->count * 4);
    if (operation.fragment[lane] != nullptr) operation.fragment[lane]->in_flight--;
    operation.released++;
}

} // namespace

void issue_wgmma(MatrixType type, int columns, RegistersState &d, const RegistersState *a_registers,
                 uint64_t a, uint64_t b, bool accumulate, Position at)
{
    Warpgroup &group = own_group(at);
    const uint32_t number = thread->issued++ - group.first;
    if (number == group.operations.size()) {
        group.operations.push_back(std::make_unique<Wgmma>());
        Wgmma &fresh = *group.operations.back();
        fresh.type = type;
        fresh.columns = columns;
        fresh.accumulate = accumulate;
        fresh.a_in_registers = a_registers != nullptr;
        fresh.a = a;
        fresh.b = b;
        fresh.at = at;
        fresh.group = thread->committed + 1;
        if (!fresh.a_in_registers) check_descriptor(a, "A", at);
        check_descriptor(b, "B", at);
    }
    Wgmma &operation = *group.operations[number];
    if (operation.type != type || operation.columns != columns || operation.a != a ||
        operation.b != b || operation.accumulate != accumulate ||
        operation.a_in_registers != (a_registers != nullptr) ||
        operation.group != thread->committed + 1)
        stop(Kind::divergence, at,
             thread_name() + " issues a wgmma that differs from its warpgroup's at " +
                 place(operation.at) + " in shape, descriptors, accumulate or group");

    check_accumulator(d, accumulate, at);
    const int lane = thread->index % 128;
    operation.d[lane] = &d;
    take_accumulator(d, at);
    if (a_registers != nullptr) {
        /* The kernel passes it as const; its bookkeeping is not. */
        RegistersState &fragment = *const_cast<RegistersState *>(a_registers);
        check_fragment(fragment, at);
        fragment.in_flight++;
        fragment.accumulator = false;
        fragment.at = at;
        operation.fragment[lane] = &fragment;
    }
    operation.known[lane] = thread->knowledge;
    if (++operation.issued == 128) {
        complete_issue(group, operation);
        if (options().schedule == Schedule::earliest) execute_wgmma(group);
    }
}

/* Runs the warpgroup's next operation, which all threads have issued. */
void execute_wgmma(Warpgroup &group)
{
    multiply(*group.operations[group.executed - group.first]);
    group.executed++;
    const uint32_t number = (uint32_t)(&group - &block->warpgroups[0]);
    for (uint32_t i = 0; i < 128; i++) {
        Thread &t = block->threads[number * 128 + i];
        if (t.waiting.what == Wait::wgmma && group.executed >= group.group_end[t.waiting.value - 1])
            block->wake(t);
    }
}

bool Block::run_waited_wgmma()
{
    for (Warpgroup &group : warpgroups) {
        const uint32_t number = (uint32_t)(&group - &warpgroups[0]);
        for (uint32_t i = 0; i < 128; i++)
            if (threads[number * 128 + i].waiting.what == Wait::wgmma) {
                const uint32_t next = group.executed - group.first;
                if (next < group.operations.size() && group.operations[next]->issued == 128) {
                    execute_wgmma(group);
                    return true;
                }
                break;
            }
    }
    return false;
}

void fence_wgmma(Position)
{
    thread->fenced = true;
}

void wait_wgmma(int pending, Position at)
{
    Warpgroup &group = own_group(at);
    if (thread->committed <= (uint32_t)pending) return;
    const uint32_t done = thread->committed - (uint32_t)pending;
    if (group.executed < group.group_end[done - 1])
        block->block(Wait::wgmma, (uint32_t)(&group - &block->warpgroups[0]), done, at);
    while (thread->released < group.group_end[done - 1])
        release(*group.operations[thread->released++ - group.first], thread->index % 128);
    while (!group.operations.empty() && group.operations.front()->released == 128) {
        group.operations.pop_front();
        group.first++;
    }
    uint32_t &known = thread->learn().order[group.actor];
    known = std::max(known, done);
}

void check_register(RegistersState &state, int index, Position at)
{
    if (index < 0 || index >= state.count)
        stop(Kind::invalid_argument, at,
             "register " + std::to_string(index) + " of " + std::to_string(state.count));
    state.touched = state.written = true;
    if (state.in_flight > 0)
        fault(Kind::register_in_flight, at,
              thread_name() + " touches a register that the wgmma at " + place(state.at) +
                  (state.accumulator ? " writes" : " reads") + ", without waiting for it");
    else if (state.unnamed)
        fault(Kind::register_not_named, at,
              thread_name() + " uses the result of the wgmma at " + place(state.at) +
                  ", which no wgmma_wait has named: the compiler may use it before the wait");
}

void leave_scope(const RegistersState &state)
{
    if (state.in_flight == 0 || is_stopped()) return;
    fault(Kind::register_in_flight, state.at,
          thread_name() + " gives up registers that this wgmma still uses");
    const int lane = thread->index % 128;
    for (auto &operation : block->warpgroups[(size_t)thread->index / 128].operations) {
        if (operation->d[lane] == &state) operation->d[lane] = nullptr;
        if (operation->fragment[lane] == &state) operation->fragment[lane] = nullptr;
    }
}

/* Reads operand rows of 32 bytes as wgmma does. */
void gather(uint64_t descriptor, int rows, uint8_t *to)
{
    for_each_piece(descriptor, rows, [&](int row, int column, uint32_t address) {
        std::memcpy(to + row * 32 + column * 16, block->shared.at(address, 16, 16, {"", 0}), 16);
    });
}

} // namespace hopper_emulator

namespace hopper
{

using namespace hopper_emulator;

void wgmma_commit(Position at)
{
    Warpgroup &group = own_group(at);
    const uint32_t number = thread->committed++;
    if (number == group.group_end.size())
        group.group_end.push_back(thread->issued);
    else if (group.group_end[number] != thread->issued)
        stop(Kind::divergence, at,
             thread_name() + " commits a group of another size than the rest of its warpgroup");
}

} // namespace hopper
