/*
 * The Hopper instructions that CUDA C++ has no words for: one thin function an instruction. This is
 * the only file of the project that contains PTX. Each comment names the section of the PTX ISA 9.0
 * manual; what the manual leaves to the caller (fences, waits, who must call) is said in short.
 *
 * Shared memory is addressed by its 32-bit address in the shared window, as the instructions want
 * it, and read and written through load_shared and store_shared only. That, and Registers for all
 * that wgmma touches, is what lets the emulator see every access: compiled by a host compiler with
 * HR_HOPPER_EMULATOR defined, the same names come from tests/hopper_emulator (whose functions take
 * one more argument by default, the caller's source position) and everything is checked.
 */
#ifndef HEADROOM_HOPPER_CUH
#define HEADROOM_HOPPER_CUH

#include <stdint.h>

#ifdef __CUDACC__
#define HR_HOST_DEVICE __host__ __device__
#else
#define HR_HOST_DEVICE
#endif

namespace hopper
{

/* Swizzling of a shared-memory tile: as many bytes a row; the values are wgmma's encoding. */
enum class Swizzle { none = 0, b128 = 1, b64 = 2, b32 = 3 };

/* Bytes of a row of a swizzled tile: the width of TMA's box and the pitch of wgmma's rows. */
HR_HOST_DEVICE constexpr int swizzle_bytes(Swizzle swizzle)
{
    return swizzle == Swizzle::b128  ? 128
           : swizzle == Swizzle::b64 ? 64
           : swizzle == Swizzle::b32 ? 32
                                     : 16;
}

/*
 * Descriptor of a K-major matrix in shared memory, an operand of wgmma. "Asynchronous Warpgroup
 * Level Matrix Shared Memory Layout: Matrix Descriptor Format".
 *
 *     bits  0-13 address / 16   16-29 leading / 16   32-45 stride / 16   49-51 base offset   62-63
 *     swizzle
 *
 * `address` is the tile's first byte plus k bytes along the rows; the tile itself is aligned to the
 * swizzle's period (1024, 512, 256 bytes), so the base offset is 0. `stride` is the distance of
 * groups of 8 rows; `leading` that of 16-byte columns without swizzle, unused with one.
 */
HR_HOST_DEVICE constexpr uint64_t matrix_descriptor(uint32_t address, uint32_t leading,
                                                    uint32_t stride, Swizzle swizzle)
{
    return (uint64_t)((address & 0x3FFFF) >> 4) | (uint64_t)((leading & 0x3FFFF) >> 4) << 16 |
           (uint64_t)((stride & 0x3FFFF) >> 4) << 32 | (uint64_t)swizzle << 62;
}

/* The same for rows of swizzle_bytes each without gaps, the layout that a TMA box has. */
HR_HOST_DEVICE constexpr uint64_t matrix_descriptor(uint32_t address, Swizzle swizzle)
{
    return matrix_descriptor(address, 0, 8 * (uint32_t)swizzle_bytes(swizzle), swizzle);
}

} // namespace hopper

#ifdef HR_HOPPER_EMULATOR
#include "hopper_emulator.h"
#else

#include <cuda.h> /* CUtensorMap */
#include <cuda_runtime.h>

#define HR_DEVICE __device__ __forceinline__

namespace hopper
{

/* ---- Registers that wgmma reads or writes -------------------------------------------------- */

/*
 * N registers of a thread: an accumulator (T float or int32_t, N = columns / 2) or a fragment of A
 * (T uint32_t, N 4). Indices must be compile-time constants once loops are unrolled.
 */
template <class T, int N> struct Registers {
    T v[N];
    HR_DEVICE Registers() {}
    Registers(const Registers &) = delete;
    Registers &operator=(const Registers &) = delete;
    HR_DEVICE T &operator[](int i) { return v[i]; }
    HR_DEVICE const T &operator[](int i) const { return v[i]; }
};

/* Holds the compiler's own moves of these registers on their side of an instruction. */
template <int N> HR_DEVICE void pin(Registers<float, N> &r)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(r.v[i])::"memory");
}

template <class T, int N> HR_DEVICE void pin(Registers<T, N> &r)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(r.v[i])::"memory");
}

template <class T, int N, int M> HR_DEVICE void pin(Registers<T, N> (&r)[M])
{
#pragma unroll
    for (int i = 0; i < M; i++)
        pin(r[i]);
}

/* ---- Shared memory ------------------------------------------------------------------------- */

/* Address of the block's dynamic shared memory. A multiple of 1024 if the kernel has no other. */
HR_DEVICE uint32_t shared_base()
{
    extern __shared__ __align__(1024) unsigned char hopper_shared_memory[];
    return (uint32_t)__cvta_generic_to_shared(hopper_shared_memory);
}

/* Reads or writes T, of 1, 2, 4, 8 or 16 bytes, at an address that is a multiple of its size. */
template <class T> HR_DEVICE T load_shared(uint32_t address)
{
    return *(const T *)__cvta_shared_to_generic(address);
}

template <class T> HR_DEVICE void store_shared(uint32_t address, T value)
{
    *(T *)__cvta_shared_to_generic(address) = value;
}

/*
 * "Warp-level matrix load instruction: ldmatrix". Four 8x8 matrices of 16-bit elements; lane l
 * gives the address of row l % 8 of matrix l / 8 and receives, of each matrix, row l / 4, columns
 * 2 * (l % 4) and the next. _trans: of the transposed matrices.
 */
HR_DEVICE uint4 ldmatrix_x4(uint32_t row)
{
    uint4 r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(row)
                 : "memory");
    return r;
}

HR_DEVICE uint4 ldmatrix_x4_trans(uint32_t row)
{
    uint4 r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(row)
                 : "memory");
    return r;
}

/* "Warp-level matrix store instruction: stmatrix". The reverse of ldmatrix. */
HR_DEVICE void stmatrix_x4(uint32_t row, uint4 r)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
                 "r"(r.x), "r"(r.y), "r"(r.z), "r"(r.w)
                 : "memory");
}

HR_DEVICE void stmatrix_x4_trans(uint32_t row, uint4 r)
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
        "r"(r.x), "r"(r.y), "r"(r.z), "r"(r.w)
        : "memory");
}

/* ---- Barriers and fences ------------------------------------------------------------------- */

/* "mbarrier.init": 8 bytes at `mbarrier`, a multiple of 8; each phase takes `count` arrivals. */
HR_DEVICE void mbarrier_init(uint32_t mbarrier, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbarrier), "r"(count) : "memory");
}

/* "membar / fence", .mbarrier_init: makes this thread's initialisations visible to TMA. */
HR_DEVICE void fence_mbarrier_init()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* "mbarrier.arrive" (release, block scope). */
HR_DEVICE void mbarrier_arrive(uint32_t mbarrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(mbarrier) : "memory");
}

/* "mbarrier.arrive", .expect_tx: first adds `bytes` to what the phase waits for, then arrives. */
HR_DEVICE void mbarrier_arrive_expect_tx(uint32_t mbarrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier),
                 "r"(bytes)
                 : "memory");
}

/*
 * "mbarrier.test_wait / mbarrier.try_wait", .parity (acquire, block scope): true once the phase of
 * that parity is complete. The first phase has parity 0; waiting for parity 1 on a fresh mbarrier
 * returns at once. May give up after a while and return false.
 */
HR_DEVICE bool mbarrier_try_wait(uint32_t mbarrier, uint32_t parity)
{
    uint32_t done;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(done)
                 : "r"(mbarrier), "r"(parity)
                 : "memory");
    return done != 0;
}

/* mbarrier_try_wait until it succeeds. */
HR_DEVICE void mbarrier_wait(uint32_t mbarrier, uint32_t parity)
{
    while (!mbarrier_try_wait(mbarrier, parity)) {
    }
}

/*
 * "membar / fence", .proxy.async: what this thread wrote (or saw written) to shared memory by
 * ordinary stores becomes visible to wgmma and TMA.
 */
HR_DEVICE void fence_proxy_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/*
 * "bar, barrier": named barrier `id` in 0..15 (0 is __syncthreads') of `threads` threads, a
 * multiple of 32, counting the callers of both functions. _arrive does not wait.
 */
HR_DEVICE void named_barrier_sync(uint32_t id, uint32_t threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

HR_DEVICE void named_barrier_arrive(uint32_t id, uint32_t threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* "elect.sync": true in one lane of the warp, all of whose lanes call. */
HR_DEVICE bool elect_one()
{
    uint32_t elected;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "elect.sync _|p, 0xffffffff;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(elected)
                 :
                 : "memory");
    return elected != 0;
}

/*
 * "setmaxnreg": the registers a thread of this warpgroup has from here on, a multiple of 8 in
 * 24..256. All four warps call. inc waits until another warpgroup has given up enough.
 */
template <int COUNT> HR_DEVICE void setmaxnreg_inc()
{
    static_assert(COUNT >= 24 && COUNT <= 256 && COUNT % 8 == 0, "24..256, a multiple of 8");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT> HR_DEVICE void setmaxnreg_dec()
{
    static_assert(COUNT >= 24 && COUNT <= 256 && COUNT % 8 == 0, "24..256, a multiple of 8");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

/* ---- Bulk copies (TMA) --------------------------------------------------------------------- */

/* "prefetch", .tensormap. */
HR_DEVICE void tma_prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/*
 * "cp.async.bulk.tensor", global to shared: one thread copies a box of the tensor at coordinates
 * c0 (innermost), c1, ... to `destination`, a multiple of 128. Elements outside the tensor become
 * 0. On completion the whole box's bytes count towards `mbarrier`'s phase.
 */
HR_DEVICE void tma_load_2d(uint32_t destination, const CUtensorMap *map, uint32_t mbarrier, int c0,
                           int c1)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(destination),
                 "l"(map), "r"(mbarrier), "r"(c0), "r"(c1)
                 : "memory");
}

HR_DEVICE void tma_load_3d(uint32_t destination, const CUtensorMap *map, uint32_t mbarrier, int c0,
                           int c1, int c2)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(destination),
                 "l"(map), "r"(mbarrier), "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
}

HR_DEVICE void tma_load_4d(uint32_t destination, const CUtensorMap *map, uint32_t mbarrier, int c0,
                           int c1, int c2, int c3)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(destination),
                 "l"(map), "r"(mbarrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}

/* "cp.async.bulk", global to shared: both addresses and `bytes` are multiples of 16. */
HR_DEVICE void bulk_load(uint32_t destination, const void *source, uint32_t bytes,
                         uint32_t mbarrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];" ::"r"(destination),
                 "l"(source), "r"(bytes), "r"(mbarrier)
                 : "memory");
}

/*
 * "cp.async.bulk.tensor", shared to global: elements outside the tensor are not written. The copy
 * joins the calling thread's open bulk group.
 */
HR_DEVICE void tma_store_2d(const CUtensorMap *map, uint32_t source, int c0, int c1)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
        "r"(source), "r"(c0), "r"(c1)
        : "memory");
}

HR_DEVICE void tma_store_3d(const CUtensorMap *map, uint32_t source, int c0, int c1, int c2)
{
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
            map),
        "r"(source), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}

HR_DEVICE void tma_store_4d(const CUtensorMap *map, uint32_t source, int c0, int c1, int c2, int c3)
{
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
            map),
        "r"(source), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}

/* "cp.async.bulk", shared to global: both addresses and `bytes` are multiples of 16. */
HR_DEVICE void bulk_store(void *destination, uint32_t source, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(destination),
                 "r"(source), "r"(bytes)
                 : "memory");
}

/* "cp.async.bulk.commit_group": closes the calling thread's bulk group. */
HR_DEVICE void bulk_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/*
 * "cp.async.bulk.wait_group": waits until at most PENDING of this thread's groups are unfinished;
 * _read: until at most PENDING of them have yet to read shared memory, which may then be reused.
 */
template <int PENDING> HR_DEVICE void bulk_wait()
{
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}

template <int PENDING> HR_DEVICE void bulk_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

/* ---- wgmma: D[64][N] (+)= A[64][K] B[N][K]^T, by the 128 threads of a warpgroup ------------- */

/*
 * "wgmma.fence": before the first wgmma, and between any access to registers of a wgmma and the
 * wgmma itself, except accumulation into the same registers. Name the registers written.
 */
template <class... R> HR_DEVICE void wgmma_fence(R &...registers)
{
    (pin(registers), ...);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* "wgmma.commit_group": closes the group of the wgmmas issued since the last one. */
HR_DEVICE void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/*
 * "wgmma.wait_group": waits until at most PENDING groups are unfinished. Until then accumulators
 * and A fragments may not be touched, nor shared memory operands overwritten. Name the accumulators
 * that are used next, or the compiler may move their use to before the wait.
 */
template <int PENDING, class... R> HR_DEVICE void wgmma_wait(R &...registers)
{
    static_assert(PENDING >= 0 && PENDING <= 7, "0..7");
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    (pin(registers), ...);
}

/*
 * "wgmma.mma_async", 9.7.15.5.2. d has N / 2 registers: element i of thread t of the warpgroup is
 *
 *     D[16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2)][8 * (i / 4) + 2 * (t % 4) + i % 2]
 *
 * (9.7.15.5.1.1). A is a descriptor, or four registers that hold in the same rows, low byte first,
 * A[row][16 * (r / 2) + 4 * (t % 4) ...] of 8-bit elements, A[row][8 * (r / 2) + 2 * (t % 4) ...]
 * of 16-bit ones, with row + 8 for odd r. Without `accumulate` d is overwritten.
 *
 *     wgmma_e4m3  f32 += e4m3 x e4m3, K 32      wgmma_s8    s32 += s8 x s8, K 32 (wraps)
 *     wgmma_bf16  f32 += bf16 x bf16, K 16      wgmma_u8s8  s32 += u8 x s8, K 32 (wraps)
 */
#define HR_L0 "%0,%1,%2,%3,%4,%5,%6,%7"
#define HR_L1 "%8,%9,%10,%11,%12,%13,%14,%15"
#define HR_L2 "%16,%17,%18,%19,%20,%21,%22,%23"
#define HR_L3 "%24,%25,%26,%27,%28,%29,%30,%31"
#define HR_L4 "%32,%33,%34,%35,%36,%37,%38,%39"
#define HR_L5 "%40,%41,%42,%43,%44,%45,%46,%47"
#define HR_L6 "%48,%49,%50,%51,%52,%53,%54,%55"
#define HR_L7 "%56,%57,%58,%59,%60,%61,%62,%63"
#define HR_L8 "%64,%65,%66,%67,%68,%69,%70,%71"
#define HR_L9 "%72,%73,%74,%75,%76,%77,%78,%79"
#define HR_L10 "%80,%81,%82,%83,%84,%85,%86,%87"
#define HR_L11 "%88,%89,%90,%91,%92,%93,%94,%95"
#define HR_L12 "%96,%97,%98,%99,%100,%101,%102,%103"
#define HR_L13 "%104,%105,%106,%107,%108,%109,%110,%111"
#define HR_L14 "%112,%113,%114,%115,%116,%117,%118,%119"
#define HR_L15 "%120,%121,%122,%123,%124,%125,%126,%127"
#define HR_LIST16 HR_L0 "," HR_L1
#define HR_LIST32 HR_LIST16 "," HR_L2 "," HR_L3
#define HR_LIST48 HR_LIST32 "," HR_L4 "," HR_L5
#define HR_LIST64 HR_LIST48 "," HR_L6 "," HR_L7
#define HR_LIST80 HR_LIST64 "," HR_L8 "," HR_L9
#define HR_LIST96 HR_LIST80 "," HR_L10 "," HR_L11
#define HR_LIST112 HR_LIST96 "," HR_L12 "," HR_L13
#define HR_LIST128 HR_LIST112 "," HR_L14 "," HR_L15

#define HR_R4(c, i) c(d.v[i]), c(d.v[i + 1]), c(d.v[i + 2]), c(d.v[i + 3])
#define HR_R16(c, i) HR_R4(c, i), HR_R4(c, i + 4), HR_R4(c, i + 8), HR_R4(c, i + 12)
#define HR_D16(c) HR_R16(c, 0)
#define HR_D32(c) HR_D16(c), HR_R16(c, 16)
#define HR_D48(c) HR_D32(c), HR_R16(c, 32)
#define HR_D64(c) HR_D48(c), HR_R16(c, 48)
#define HR_D80(c) HR_D64(c), HR_R16(c, 64)
#define HR_D96(c) HR_D80(c), HR_R16(c, 80)
#define HR_D112(c) HR_D96(c), HR_R16(c, 96)
#define HR_D128(c) HR_D112(c), HR_R16(c, 112)

/* One accumulator size: N columns, R registers, and the numbers of the operands after them. */
#define HR_WGMMA(name, T, c, types, tail_shared, tail_registers, N, R, R1, R2, R3, R4, R5)         \
    HR_DEVICE void name(Registers<T, R> &d, uint64_t a, uint64_t b, bool accumulate)               \
    {                                                                                              \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #R2 ", 0;\n"                             \
                     "wgmma.mma_async.sync.aligned.m64n" #N types " {" HR_LIST##R                  \
                     "}, %" #R ", %" #R1 ", p" tail_shared ";\n}"                                  \
                     : HR_D##R(c)                                                                  \
                     : "l"(a), "l"(b), "r"((int)accumulate));                                      \
    }                                                                                              \
    HR_DEVICE void name(Registers<T, R> &d, const Registers<uint32_t, 4> &a, uint64_t b,           \
                        bool accumulate)                                                           \
    {                                                                                              \
        asm volatile(                                                                              \
            "{\n.reg .pred p;\nsetp.ne.b32 p, %" #R5 ", 0;\n"                                      \
            "wgmma.mma_async.sync.aligned.m64n" #N types " {" HR_LIST##R                           \
            "}, {%" #R ", %" #R1 ", %" #R2 ", %" #R3 "}, %" #R4 ", p" tail_registers ";\n}"        \
            : HR_D##R(c)                                                                           \
            : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "l"(b), "r"((int)accumulate));   \
    }

#define HR_WGMMA_SIZES(...)                                                                        \
    HR_WGMMA(__VA_ARGS__, 32, 16, 17, 18, 19, 20, 21)                                              \
    HR_WGMMA(__VA_ARGS__, 64, 32, 33, 34, 35, 36, 37)                                              \
    HR_WGMMA(__VA_ARGS__, 96, 48, 49, 50, 51, 52, 53)                                              \
    HR_WGMMA(__VA_ARGS__, 128, 64, 65, 66, 67, 68, 69)                                             \
    HR_WGMMA(__VA_ARGS__, 160, 80, 81, 82, 83, 84, 85)                                             \
    HR_WGMMA(__VA_ARGS__, 192, 96, 97, 98, 99, 100, 101)                                           \
    HR_WGMMA(__VA_ARGS__, 224, 112, 113, 114, 115, 116, 117)                                       \
    HR_WGMMA(__VA_ARGS__, 256, 128, 129, 130, 131, 132, 133)

HR_WGMMA_SIZES(wgmma_e4m3, float, "+f", "k32.f32.e4m3.e4m3", ", 1, 1", ", 1, 1")
HR_WGMMA_SIZES(wgmma_s8, int32_t, "+r", "k32.s32.s8.s8", "", "")
HR_WGMMA_SIZES(wgmma_u8s8, int32_t, "+r", "k32.s32.u8.s8", "", "")
HR_WGMMA_SIZES(wgmma_bf16, float, "+f", "k16.f32.bf16.bf16", ", 1, 1, 0, 0", ", 1, 1, 0")

/* ---- Arithmetic ---------------------------------------------------------------------------- */

/* "ex2", .approx.ftz: 2^x, relative error at most 2^-22, subnormal results 0, ex2(-inf) = 0. */
HR_DEVICE float ex2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* "cvt", .rn.satfinite.e4m3x2: `high` in bits 8-15, `low` in bits 0-7; NaN becomes 0x7F. */
HR_DEVICE uint32_t cvt_e4m3x2(float high, float low)
{
    uint16_t packed;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
    return packed;
}

/* Two of them in one register, `a` lowest: ptxas lets the second write into the first's result. */
HR_DEVICE uint32_t cvt_e4m3x4(float a, float b, float c, float d)
{
    uint32_t packed;
    asm("{\n"
        ".reg .b16 low, high;\n"
        "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
        "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
        "mov.b32 %0, {low, high};\n"
        "}"
        : "=r"(packed)
        : "f"(a), "f"(b), "f"(c), "f"(d));
    return packed;
}

/* "cvt", .rn.bf16x2 and .rn.f16x2: `high` in bits 16-31, `low` in bits 0-15. */
HR_DEVICE uint32_t cvt_bf16x2(float high, float low)
{
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

HR_DEVICE uint32_t cvt_f16x2(float high, float low)
{
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

/* "add", .rn.f16x2: two sums of two halves each. */
HR_DEVICE uint32_t add_f16x2(uint32_t a, uint32_t b)
{
    uint32_t sum;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
}

/*
 * "mma.sync", .m16n8k16.row.col.f32.f16.f16.f32: D[16][8] += A[16][16] B[16][8] of a warp, all of
 * whose lanes call. Lane t has, of halves low one first, and with q = t % 4
 *
 *     d[i]  D[t / 4 + 8 * (i / 2)][2 * q + i % 2]
 *     a[r]  A[t / 4 + 8 * (r % 2)][8 * (r / 2) + 2 * q ...]
 *     b[r]  B[8 * r + 2 * q ...][t / 4]
 *
 * so that two of a's registers after each other are a wgmma accumulator's element pairs as halves.
 */
HR_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* "prmt": byte i of the result is byte (selector >> 4 * i & 7) of low (0-3) and high (4-7). */
HR_DEVICE uint32_t prmt(uint32_t low, uint32_t high, uint32_t selector)
{
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(low), "r"(high), "r"(selector));
    return r;
}

} // namespace hopper

#endif
#endif
