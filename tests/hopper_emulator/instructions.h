/*
 * The functions of kernels/cuda/hopper.cuh for the emulator: the same names, arguments and
 * meanings, documented there, plus the caller's position.
 */
#ifndef HEADROOM_HOPPER_EMULATOR_INSTRUCTIONS_H
#define HEADROOM_HOPPER_EMULATOR_INSTRUCTIONS_H

#include "builtins.h"
#include "registers.h"

/* The tensor map that launch.cuh's make_tensor_map fills. */
struct alignas(64) CUtensorMap {
    uint32_t magic;
    int32_t rank, element_bytes;
    hopper::Swizzle swizzle;
    uint8_t *base;
    uint64_t sizes[5];   /* elements */
    uint64_t strides[5]; /* bytes; [0] is element_bytes */
    uint32_t box[5];     /* elements */
};
static_assert(sizeof(CUtensorMap) == 128, "as large as CUDA's");

namespace hopper_emulator
{

enum MatrixType { E4M3, S8, U8S8, BF16 };

void read_shared(uint32_t address, void *value, uint32_t bytes, Position at);
void write_shared(uint32_t address, const void *value, uint32_t bytes, Position at);
uint4 load_matrices(uint32_t row, bool transposed, Position at);
void store_matrices(uint32_t row, uint4 r, bool transposed, Position at);
void load_box(uint32_t destination, const CUtensorMap *map, uint32_t mbarrier, int rank,
              const int *coordinates, Position at);
void store_box(const CUtensorMap *map, uint32_t source, int rank, const int *coordinates,
               Position at);
void wait_stores(int pending, bool read_only, Position at);
void multiply_warp(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Position at);
void issue_wgmma(MatrixType type, int columns, RegistersState &d, const RegistersState *a_registers,
                 uint64_t a, uint64_t b, bool accumulate, Position at);
void fence_wgmma(Position at);
void wait_wgmma(int pending, Position at);
void set_registers(int count, bool increase, Position at);

template <class T, int N> void name_in_fence(hopper::Registers<T, N> &r)
{
    r.state.touched = false;
}
template <class T, int N> void name_in_wait(hopper::Registers<T, N> &r)
{
    r.state.unnamed = false;
}
template <class R, int M> void name_in_fence(R (&r)[M])
{
    for (R &one : r)
        name_in_fence(one);
}
template <class R, int M> void name_in_wait(R (&r)[M])
{
    for (R &one : r)
        name_in_wait(one);
}

} // namespace hopper_emulator

namespace hopper
{

using hopper_emulator::Position;

uint32_t shared_base();

template <class T> T load_shared(uint32_t address, Position at = HR_HERE)
{
    T value;
    hopper_emulator::read_shared(address, &value, sizeof(T), at);
    return value;
}

template <class T> void store_shared(uint32_t address, T value, Position at = HR_HERE)
{
    hopper_emulator::write_shared(address, &value, sizeof(T), at);
}

inline uint4 ldmatrix_x4(uint32_t row, Position at = HR_HERE)
{
    return hopper_emulator::load_matrices(row, false, at);
}

inline uint4 ldmatrix_x4_trans(uint32_t row, Position at = HR_HERE)
{
    return hopper_emulator::load_matrices(row, true, at);
}

inline void stmatrix_x4(uint32_t row, uint4 r, Position at = HR_HERE)
{
    hopper_emulator::store_matrices(row, r, false, at);
}

inline void stmatrix_x4_trans(uint32_t row, uint4 r, Position at = HR_HERE)
{
    hopper_emulator::store_matrices(row, r, true, at);
}

void mbarrier_init(uint32_t mbarrier, uint32_t count, Position at = HR_HERE);
void fence_mbarrier_init(Position at = HR_HERE);
void mbarrier_arrive(uint32_t mbarrier, Position at = HR_HERE);
void mbarrier_arrive_expect_tx(uint32_t mbarrier, uint32_t bytes, Position at = HR_HERE);
bool mbarrier_try_wait(uint32_t mbarrier, uint32_t parity, Position at = HR_HERE);
void mbarrier_wait(uint32_t mbarrier, uint32_t parity, Position at = HR_HERE);
void fence_proxy_async(Position at = HR_HERE);
void named_barrier_sync(uint32_t id, uint32_t threads, Position at = HR_HERE);
void named_barrier_arrive(uint32_t id, uint32_t threads, Position at = HR_HERE);
bool elect_one(Position at = HR_HERE);

template <int COUNT> void setmaxnreg_inc(Position at = HR_HERE)
{
    static_assert(COUNT >= 24 && COUNT <= 256 && COUNT % 8 == 0, "24..256, a multiple of 8");
    hopper_emulator::set_registers(COUNT, true, at);
}

template <int COUNT> void setmaxnreg_dec(Position at = HR_HERE)
{
    static_assert(COUNT >= 24 && COUNT <= 256 && COUNT % 8 == 0, "24..256, a multiple of 8");
    hopper_emulator::set_registers(COUNT, false, at);
}

inline void tma_prefetch_map(const CUtensorMap *) {}

inline void tma_load_2d(uint32_t destination, const CUtensorMap *map, uint32_t mbarrier, int c0,
                        int c1, Position at = HR_HERE)
{
    const int c[] = {c0, c1};
    hopper_emulator::load_box(destination, map, mbarrier, 2, c, at);
}

inline void tma_load_3d(uint32_t destination, const CUtensorMap *map, uint32_t mbarrier, int c0,
                        int c1, int c2, Position at = HR_HERE)
{
    const int c[] = {c0, c1, c2};
    hopper_emulator::load_box(destination, map, mbarrier, 3, c, at);
}

inline void tma_load_4d(uint32_t destination, const CUtensorMap *map, uint32_t mbarrier, int c0,
                        int c1, int c2, int c3, Position at = HR_HERE)
{
    const int c[] = {c0, c1, c2, c3};
    hopper_emulator::load_box(destination, map, mbarrier, 4, c, at);
}

void bulk_load(uint32_t destination, const void *source, uint32_t bytes, uint32_t mbarrier,
               Position at = HR_HERE);

inline void tma_store_2d(const CUtensorMap *map, uint32_t source, int c0, int c1,
                         Position at = HR_HERE)
{
    const int c[] = {c0, c1};
    hopper_emulator::store_box(map, source, 2, c, at);
}

inline void tma_store_3d(const CUtensorMap *map, uint32_t source, int c0, int c1, int c2,
                         Position at = HR_HERE)
{
    const int c[] = {c0, c1, c2};
    hopper_emulator::store_box(map, source, 3, c, at);
}

inline void tma_store_4d(const CUtensorMap *map, uint32_t source, int c0, int c1, int c2, int c3,
                         Position at = HR_HERE)
{
    const int c[] = {c0, c1, c2, c3};
    hopper_emulator::store_box(map, source, 4, c, at);
}

void bulk_store(void *destination, uint32_t source, uint32_t bytes, Position at = HR_HERE);
void bulk_commit(Position at = HR_HERE);

template <int PENDING> void bulk_wait(Position at = HR_HERE)
{
    hopper_emulator::wait_stores(PENDING, false, at);
}

template <int PENDING> void bulk_wait_read(Position at = HR_HERE)
{
    hopper_emulator::wait_stores(PENDING, true, at);
}

/*
 * A default argument cannot follow a parameter pack, so these come with 0 to 4 named operands. An
 * operand is a Registers or an array of them.
 */
inline void wgmma_fence(Position at = HR_HERE)
{
    hopper_emulator::fence_wgmma(at);
}

template <class A> void wgmma_fence(A &a, Position at = HR_HERE)
{
    hopper_emulator::name_in_fence(a);
    hopper_emulator::fence_wgmma(at);
}

template <class A, class B> void wgmma_fence(A &a, B &b, Position at = HR_HERE)
{
    hopper_emulator::name_in_fence(b);
    wgmma_fence(a, at);
}

template <class A, class B, class C> void wgmma_fence(A &a, B &b, C &c, Position at = HR_HERE)
{
    hopper_emulator::name_in_fence(c);
    wgmma_fence(a, b, at);
}

template <class A, class B, class C, class D>
void wgmma_fence(A &a, B &b, C &c, D &d, Position at = HR_HERE)
{
    hopper_emulator::name_in_fence(d);
    wgmma_fence(a, b, c, at);
}

void wgmma_commit(Position at = HR_HERE);

template <int PENDING> void wgmma_wait(Position at = HR_HERE)
{
    static_assert(PENDING >= 0 && PENDING <= 7, "0..7");
    hopper_emulator::wait_wgmma(PENDING, at);
}

template <int PENDING, class A> void wgmma_wait(A &a, Position at = HR_HERE)
{
    wgmma_wait<PENDING>(at);
    hopper_emulator::name_in_wait(a);
}

template <int PENDING, class A, class B> void wgmma_wait(A &a, B &b, Position at = HR_HERE)
{
    wgmma_wait<PENDING>(a, at);
    hopper_emulator::name_in_wait(b);
}

template <int PENDING, class A, class B, class C>
void wgmma_wait(A &a, B &b, C &c, Position at = HR_HERE)
{
    wgmma_wait<PENDING>(a, b, at);
    hopper_emulator::name_in_wait(c);
}

template <int PENDING, class A, class B, class C, class D>
void wgmma_wait(A &a, B &b, C &c, D &d, Position at = HR_HERE)
{
    wgmma_wait<PENDING>(a, b, c, at);
    hopper_emulator::name_in_wait(d);
}

#define HR_WGMMA(name, T, type)                                                                    \
    template <int R>                                                                               \
    void name(Registers<T, R> &d, uint64_t a, uint64_t b, bool accumulate, Position at = HR_HERE)  \
    {                                                                                              \
        static_assert(R % 16 == 0 && R <= 128, "32, 64, ... 256 columns");                         \
        hopper_emulator::issue_wgmma(type, 2 * R, d.state, nullptr, a, b, accumulate, at);         \
    }                                                                                              \
    template <int R>                                                                               \
    void name(Registers<T, R> &d, const Registers<uint32_t, 4> &a, uint64_t b, bool accumulate,    \
              Position at = HR_HERE)                                                               \
    {                                                                                              \
        static_assert(R % 16 == 0 && R <= 128, "32, 64, ... 256 columns");                         \
        hopper_emulator::issue_wgmma(type, 2 * R, d.state, &a.state, 0, b, accumulate, at);        \
    }
HR_WGMMA(wgmma_e4m3, float, hopper_emulator::E4M3)
HR_WGMMA(wgmma_s8, int32_t, hopper_emulator::S8)
HR_WGMMA(wgmma_u8s8, int32_t, hopper_emulator::U8S8)
HR_WGMMA(wgmma_bf16, float, hopper_emulator::BF16)
#undef HR_WGMMA

float ex2(float x);
uint32_t cvt_e4m3x2(float high, float low);
uint32_t cvt_e4m3x4(float a, float b, float c, float d);
uint32_t cvt_bf16x2(float high, float low);
uint32_t cvt_f16x2(float high, float low);
uint32_t add_f16x2(uint32_t a, uint32_t b);
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    Position at = HR_HERE)
{
    hopper_emulator::multiply_warp(d, a, b, at);
}
uint32_t prmt(uint32_t low, uint32_t high, uint32_t selector);

} // namespace hopper

#endif
