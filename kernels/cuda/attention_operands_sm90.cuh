/*
 * What a recipe's matrix products are: the instructions of S = Q K^T and O = P V, how P becomes an
 * operand, and how the product of a tile joins O in FP32.
 *
 * Integers stay integers without a conversion instruction: an accumulator that starts from the bits
 * of MAGIC = 1.5 * 2^23 holds, after adding x with |x| < 2^22, the bits of the float MAGIC + x.
 */
#ifndef HEADROOM_ATTENTION_OPERANDS_SM90_CUH
#define HEADROOM_ATTENTION_OPERANDS_SM90_CUH

#include "attention_tile_sm90.cuh"

namespace attention_sm90
{

using hopper::Registers;

/* Element i of an accumulator is in row half i / 2 % 2 of the thread, see wgmma in hopper.cuh. */
HR_HOST_DEVICE constexpr int half_of(int i)
{
    return i / 2 % 2;
}

/* Accumulators as floats: of integers, MAGIC + x. */
HR_DEVICE float as_float(float x)
{
    return x;
}
HR_DEVICE float as_float(int32_t x)
{
    return __int_as_float(x);
}
HR_DEVICE void set_float(float &x, float value)
{
    x = value;
}
HR_DEVICE void set_float(int32_t &x, float value)
{
    x = __float_as_int(value);
}

template <int N> HR_DEVICE void preload_magic(Registers<int32_t, N> &r)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        r[i] = 0x4B400000;
}

/*
 * The four elements that P's register r of 8-bit k-step s takes: of row half r % 2, columns
 * 8 j + 2 q + e for j = 4 s + 2 (r / 2) and the next. HR_LAYOUT_SM90_V has V in that order.
 */
HR_HOST_DEVICE constexpr int element_of(int step, int r, int byte)
{
    return 4 * (4 * step + 2 * (r / 2) + byte / 2) + 2 * (r % 2) + byte % 2;
}

/* E4M3 P, in units of 1 / 448. */
template <class S, int N, int STEPS>
HR_DEVICE void pack_e4m3(Registers<S, N> &s, Registers<uint32_t, 4> (&p)[STEPS])
{
#pragma unroll
    for (int step = 0; step < STEPS; step++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            p[step][r] = hopper::cvt_e4m3x4(
                as_float(s[element_of(step, r, 0)]), as_float(s[element_of(step, r, 1)]),
                as_float(s[element_of(step, r, 2)]), as_float(s[element_of(step, r, 3)]));
}

/* FP32 promotion: O = alpha O + R, columns [column, column + 2 N) of O. */
template <int N, int M>
HR_DEVICE void add_product(Registers<float, M> &o, Registers<float, N> &r, int column,
                           const float (&alpha)[2], const float (&)[2])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        o[column / 2 + i] = __fmaf_rn(o[column / 2 + i], alpha[half_of(i)], r[i]);
}

/*
 * The same of an exact integer that started from MAGIC, in units of beta, which has 22 bits, so
 * that MAGIC * beta is exact.
 */
template <int N, int M>
HR_DEVICE void add_magic_product(Registers<float, M> &o, Registers<int32_t, N> &r, int column,
                                 const float (&alpha)[2], const float (&beta)[2])
{
    const float offset[2] = {-HR_SM90_MAGIC * beta[0], -HR_SM90_MAGIC * beta[1]};
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int h = half_of(i);
        const float product = __fmaf_rn(__int_as_float(r[i]), beta[h], offset[h]);
        o[column / 2 + i] = __fmaf_rn(o[column / 2 + i], alpha[h], product);
    }
}

/* The same of an exact integer in units of beta. O is already in the unit it is to have. */
template <int N, int M>
HR_DEVICE void add_product(Registers<float, M> &o, Registers<int32_t, N> &r, int column,
                           const float (&)[2], const float (&beta)[2])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        o[column / 2 + i] = __fmaf_rn(__int2float_rn(r[i]), beta[half_of(i)], o[column / 2 + i]);
}

template <Recipe RECIPE> struct Operands;

template <> struct Operands<Recipe::fp8> {
    using Score = float;
    using Product = float;
    static constexpr int STEP = 32; /* elements of k an instruction takes */
    static constexpr bool PROMOTE = true;
    static constexpr bool PRELOAD_SCORES = false;

    template <int N>
    static HR_DEVICE void qk(Registers<float, N> &s, uint64_t q, uint64_t k, bool accumulate)
    {
        hopper::wgmma_e4m3(s, q, k, accumulate);
    }
    template <int N>
    static HR_DEVICE void pv(Registers<float, N> &r, const Registers<uint32_t, 4> &p, uint64_t v,
                             bool accumulate)
    {
        hopper::wgmma_e4m3(r, p, v, accumulate);
    }
    template <int N, int STEPS>
    static HR_DEVICE void pack(Registers<float, N> &s, Registers<uint32_t, 4> (&p)[STEPS])
    {
        pack_e4m3(s, p);
    }
};

template <> struct Operands<Recipe::int8_fp8> {
    using Score = int32_t;
    using Product = float;
    static constexpr int STEP = 32;
    static constexpr bool PROMOTE = true;
    static constexpr bool PRELOAD_SCORES = true;

    template <int N>
    static HR_DEVICE void qk(Registers<int32_t, N> &s, uint64_t q, uint64_t k, bool accumulate)
    {
        hopper::wgmma_s8(s, q, k, accumulate);
    }
    template <int N>
    static HR_DEVICE void pv(Registers<float, N> &r, const Registers<uint32_t, 4> &p, uint64_t v,
                             bool accumulate)
    {
        hopper::wgmma_e4m3(r, p, v, accumulate);
    }
    template <int N, int STEPS>
    static HR_DEVICE void pack(Registers<int32_t, N> &s, Registers<uint32_t, 4> (&p)[STEPS])
    {
        pack_e4m3(s, p);
    }
};

template <> struct Operands<Recipe::int8> {
    using Score = int32_t;
    using Product = int32_t;
    static constexpr int STEP = 32;
    static constexpr bool PROMOTE = true;
    static constexpr bool PRELOAD_SCORES = true;

    template <int N>
    static HR_DEVICE void qk(Registers<int32_t, N> &s, uint64_t q, uint64_t k, bool accumulate)
    {
        hopper::wgmma_s8(s, q, k, accumulate);
    }
    template <int N>
    static HR_DEVICE void pv(Registers<int32_t, N> &r, const Registers<uint32_t, 4> &p, uint64_t v,
                             bool accumulate)
    {
        hopper::wgmma_u8s8(r, p, v, accumulate);
    }
    /* Every other element of s holds two halves; of 1024 + P, in 0..255, P is the lower byte. */
    template <int N, int STEPS>
    static HR_DEVICE void pack(Registers<int32_t, N> &s, Registers<uint32_t, 4> (&p)[STEPS])
    {
#pragma unroll
        for (int step = 0; step < STEPS; step++)
#pragma unroll
            for (int r = 0; r < 4; r++)
                p[step][r] = hopper::prmt(
                    hopper::add_f16x2((uint32_t)s[element_of(step, r, 0)], 0x64006400),
                    hopper::add_f16x2((uint32_t)s[element_of(step, r, 2)], 0x64006400), 0x6420);
    }
};

template <> struct Operands<Recipe::bf16> {
    using Score = float;
    using Product = float;
    static constexpr int STEP = 16;
    static constexpr bool PROMOTE = false;
    static constexpr bool PRELOAD_SCORES = false;

    template <int N>
    static HR_DEVICE void qk(Registers<float, N> &s, uint64_t q, uint64_t k, bool accumulate)
    {
        hopper::wgmma_bf16(s, q, k, accumulate);
    }
    template <int N>
    static HR_DEVICE void pv(Registers<float, N> &o, const Registers<uint32_t, 4> &p, uint64_t v,
                             bool accumulate)
    {
        hopper::wgmma_bf16(o, p, v, accumulate);
    }
    template <int N, int STEPS>
    static HR_DEVICE void pack(Registers<float, N> &s, Registers<uint32_t, 4> (&p)[STEPS])
    {
#pragma unroll
        for (int step = 0; step < STEPS; step++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const int i = 4 * (2 * step + r / 2) + 2 * (r % 2);
                p[step][r] = hopper::cvt_bf16x2(s[i + 1], s[i]);
            }
    }
};

} // namespace attention_sm90

#endif
