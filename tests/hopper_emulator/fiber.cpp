/*
 * Switching between stacks: a few instructions on x86-64 Linux, ucontext elsewhere.
 */
#include "fiber.h"

#include <cstdint>
#include <new>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define HR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HR_ASAN 1
#endif
#endif
#ifdef HR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace hopper_emulator
{

namespace
{

Fiber *running; /* the fiber entered last */

/* AddressSanitizer is told of every change of stack, or it takes one for an overflow. */
#ifdef HR_ASAN
const void *scheduler_stack;
size_t scheduler_bytes;
void *scheduler_fake_stack;
void before_switch(void **keep, const void *bottom, size_t bytes)
{
    __sanitizer_start_switch_fiber(keep, bottom, bytes);
}
void after_switch(void *kept, const void **bottom, size_t *bytes)
{
    __sanitizer_finish_switch_fiber(kept, bottom, bytes);
}
#endif

#if defined(__x86_64__) && defined(__linux__)

/*
 * Saves the registers that a function must preserve and the stack pointer, and takes the other's.
 * swapcontext would do, but makes a system call each time; a softmax tile takes thousands.
 */
extern "C" void hopper_emulator_switch(void **save, void *load);
asm(R"(
    .text
    .globl hopper_emulator_switch
    .hidden hopper_emulator_switch
    .type hopper_emulator_switch, @function
hopper_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size hopper_emulator_switch, . - hopper_emulator_switch
)");

void *scheduler_pointer;

#else
ucontext_t scheduler_context;
#endif

size_t stack_distance()
{
    return FiberStacks::bytes + (size_t)sysconf(_SC_PAGESIZE);
}

} // namespace

void Fiber::begin()
{
#ifdef HR_ASAN
    after_switch(nullptr, &scheduler_stack, &scheduler_bytes);
#endif
    running->entry_(running->argument_);
}

void Fiber::prepare(void *stack, size_t bytes, void (*entry)(void *), void *argument)
{
    entry_ = entry;
    argument_ = argument;
    stack_ = stack;
    bytes_ = bytes;
    sanitizer_stack_ = nullptr;
#ifdef HR_ASAN
    ASAN_UNPOISON_MEMORY_REGION(stack, bytes); /* of the frames of an abandoned fiber */
#endif
#if defined(__x86_64__) && defined(__linux__)
    /* What hopper_emulator_switch pops: six registers and where to go; then begin's own frame. */
    void **top = (void **)((uintptr_t)((char *)stack + bytes) & ~(uintptr_t)15);
    *--top = nullptr;
    *--top = (void *)begin;
    for (int i = 0; i < 6; i++)
        *--top = nullptr;
    pointer_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, begin, 0);
#endif
}

void Fiber::enter()
{
    running = this;
#ifdef HR_ASAN
    before_switch(&scheduler_fake_stack, stack_, bytes_);
#endif
#if defined(__x86_64__) && defined(__linux__)
    hopper_emulator_switch(&scheduler_pointer, pointer_);
#else
    swapcontext(&scheduler_context, &context_);
#endif
#ifdef HR_ASAN
    after_switch(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void Fiber::leave(bool for_good)
{
#ifdef HR_ASAN
    before_switch(for_good ? nullptr : &sanitizer_stack_, scheduler_stack, scheduler_bytes);
#else
    (void)for_good;
#endif
#if defined(__x86_64__) && defined(__linux__)
    hopper_emulator_switch(&pointer_, scheduler_pointer);
#else
    swapcontext(&context_, &scheduler_context);
#endif
#ifdef HR_ASAN
    after_switch(sanitizer_stack_, &scheduler_stack, &scheduler_bytes);
#endif
}

FiberStacks::~FiberStacks()
{
    if (base_ != nullptr) munmap(base_, count_ * stack_distance());
}

void FiberStacks::reserve(size_t count)
{
    if (count <= count_) return;
    if (base_ != nullptr) munmap(base_, count_ * stack_distance());
    void *base = mmap(nullptr, count * stack_distance(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    base_ = base == MAP_FAILED ? nullptr : (char *)base;
    count_ = base_ == nullptr ? 0 : count;
    if (base_ == nullptr) throw std::bad_alloc();
    for (size_t i = 0; i < count; i++)
        if (mprotect(base_ + i * stack_distance(), stack_distance() - bytes, PROT_NONE) != 0)
            throw std::bad_alloc();
}

void *FiberStacks::stack(size_t index) const
{
    return base_ + (index + 1) * stack_distance() - bytes;
}

} // namespace hopper_emulator
