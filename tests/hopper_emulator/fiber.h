/*
 * Fibers: one a CUDA thread, entered from and left to the one scheduler. All run on the scheduler's
 * operating-system thread, so nothing here needs a lock.
 */
#ifndef HEADROOM_HOPPER_EMULATOR_FIBER_H
#define HEADROOM_HOPPER_EMULATOR_FIBER_H

#include <cstddef>
#if !defined(__x86_64__) || !defined(__linux__)
#include <ucontext.h>
#endif

namespace hopper_emulator
{

class Fiber
{
  public:
    /* Prepares a run of entry(argument) on `stack`; entry must end with leave(true). */
    void prepare(void *stack, size_t bytes, void (*entry)(void *), void *argument);

    /* From the scheduler: runs the fiber until it leaves. */
    void enter();

    /* From the fiber: back to the scheduler. With for_good, enter is not called again. */
    void leave(bool for_good = false);

  private:
    static void begin();

    void (*entry_)(void *) = nullptr;
    void *argument_ = nullptr;
    void *stack_ = nullptr;
    size_t bytes_ = 0;
    void *sanitizer_stack_ = nullptr;
#if defined(__x86_64__) && defined(__linux__)
    void *pointer_ = nullptr; /* the stack pointer while the fiber is not running */
#else
    ucontext_t context_;
#endif
};

/* Stacks of equal size in one mapping, each with an inaccessible page below it. */
class FiberStacks
{
  public:
    ~FiberStacks();
    void reserve(size_t count); /* throws std::bad_alloc */
    void *stack(size_t index) const;
    static constexpr size_t bytes = 256 * 1024;

  private:
    char *base_ = nullptr;
    size_t count_ = 0;
};

} // namespace hopper_emulator

#endif
