/*
 * Registers that wgmma touches, watched: hopper.cuh's Registers for the emulator. While a wgmma
 * uses them they hold poison, and every access from the kernel's text is checked.
 */
#ifndef HEADROOM_HOPPER_EMULATOR_REGISTERS_H
#define HEADROOM_HOPPER_EMULATOR_REGISTERS_H

#include "report.h"

namespace hopper_emulator
{

/* A NaN as a float, a large negative number as an int32_t. */
constexpr uint32_t POISON = 0xFFBADBADu;

struct RegistersState {
    uint32_t *values; /* what the kernel sees */
    uint32_t *shadow; /* accumulators in flight: what wgmma sees */
    int count;
    int in_flight;    /* wgmmas that use them and have not been waited for */
    bool accumulator; /* of those; else a fragment of A */
    bool written;     /* ever, by the kernel or a wgmma */
    bool touched;     /* by the kernel since a wgmma_fence named them */
    bool unnamed;     /* results whose wgmma_wait did not name them */
    Position at;      /* of the wgmma that used them last */
};

void check_register(RegistersState &state, int index, Position at);
void leave_scope(const RegistersState &state);

/* An index that knows where in the source it was written. */
struct Index {
    int value;
    Position at;
    Index(int v, Position position = HR_HERE) : value(v), at(position) {}
};

} // namespace hopper_emulator

namespace hopper
{

template <class T, int N> struct Registers {
    T v[N];
    uint32_t shadow[N];
    mutable hopper_emulator::RegistersState state;

    Registers()
        : state{reinterpret_cast<uint32_t *>(v), shadow, N, 0, false, false, false, false, {"", 0}}
    {
        static_assert(sizeof(T) == 4, "registers have 32 bits");
        for (int i = 0; i < N; i++)
            state.values[i] = hopper_emulator::POISON;
    }
    ~Registers() { hopper_emulator::leave_scope(state); }
    Registers(const Registers &) = delete;
    Registers &operator=(const Registers &) = delete;
    T &operator[](hopper_emulator::Index i)
    {
        hopper_emulator::check_register(state, i.value, i.at);
        return v[i.value];
    }
    const T &operator[](hopper_emulator::Index i) const
    {
        hopper_emulator::check_register(state, i.value, i.at);
        return v[i.value];
    }
};

} // namespace hopper

#endif
