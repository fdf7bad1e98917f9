/*
 * The online softmax of the Hopper attention kernels, in base 2 and FP32, on a thread's accumulator
 * of S: two rows, four threads a row.
 *
 *     x = logit / ln 2      P = exp2(x - reference) in P's format      l = sum exp2(x - m)
 *
 * int8: V's scale by token f joins the exponent, x' = x + log2 f, so that P takes V's scale along
 * before it is rounded; the reference is the tile's own maximum of x', because 8 bits below a
 * running one would lose what comes after a sink. l sums P / f. The tile's product counts
 * beta = exp2(reference - m) / 255.
 *
 * Other recipes: the reference is the running maximum m, beta 1. E4M3 P is multiplied by 448, so as
 * to use all of the format's range.
 */
#ifndef HEADROOM_ATTENTION_SOFTMAX_SM90_CUH
#define HEADROOM_ATTENTION_SOFTMAX_SM90_CUH

#include "attention_operands_sm90.cuh"
#include "attention_work_sm90.cuh"

namespace attention_sm90
{

constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;
constexpr float LOG2_448 = 8.80735492f, LOG2_255 = 7.99435344f;
constexpr float LOWEST = -1e30f; /* below any maximum, but finite */
constexpr float LEAD = 16;       /* int8: of a row's maximum over what O is relative to, at most */
constexpr float MINUS_INFINITY = -__builtin_huge_valf();

/* A thread's two rows, rows r and r + 8 of its warp's 16. */
struct Rows {
    float scale[2]; /* from Q K^T (times K's scale by token or block) to x; softcap: tanh's 2 x */
    float bias[2];  /* with softcap: of smoothed keys, in the unit of tanh's argument */
    float m[2];     /* running maximum of x, or of x' */
    float l[2];     /* this thread's part of the sum */
    float alpha[2]; /* what the last tile multiplies O by before its product is added */
};

template <bool SOFTCAP>
HR_DEVICE void start_rows(const hr_sm90_args &args, const Work &work, int row, Rows &rows)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int i = work.row + row + 8 * h;
        const bool real = i < work.seqlen_q;
        const int64_t token = work.first_q + i;
        float scale = args.softmax_scale, bias = 0;
        if (real && args.q_scale.base != nullptr)
            scale *= args.q_scale.base[hr_sm90_scale_index(&args.q_scale, work.head, work.sequence,
                                                           work.first_q, i)];
        if (args.k_scale.base != nullptr && args.k_scale.block == 0)
            scale *= args.k_scale.base[work.kv_head * args.k_scale.head_stride];
        if (SOFTCAP && real && args.lse_bias != nullptr)
            bias = args.softmax_scale * args.lse_bias[work.head * args.total_q + token];
        const float unit = SOFTCAP ? 2 * LOG2_E / args.softcap : LOG2_E;
        rows.scale[h] = scale * unit;
        rows.bias[h] = bias * unit;
        rows.m[h] = MINUS_INFINITY;
        rows.l[h] = 0;
    }
}

/* tanh(t / (2 log2 e)) = 1 - 2 / (exp2(t) + 1), right to 2^-22 everywhere. */
HR_DEVICE float half_tanh(float t)
{
    return 1 - __fdividef(2.0f, hopper::ex2(t) + 1);
}

/*
 * Keys that a row does not see get -infinity. `first` is the key of this thread's column 0; limits
 * are lo and hi of both rows.
 */
template <class S, int N>
HR_DEVICE void mask_scores(Registers<S, N> &s, const int4 &limits, int first)
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int key = 8 * (i / 4) + i % 2;
        const int lo = (half_of(i) ? limits.z : limits.x) - first;
        const int hi = (half_of(i) ? limits.w : limits.y) - first;
        if (key < lo || key >= hi) set_float(s[i], MINUS_INFINITY);
    }
}

/* The maximum over the four threads that share a row. */
HR_DEVICE float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}

HR_DEVICE float quad_sum(float x)
{
    x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
    return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}

/* A row that has seen nothing has m = -infinity; its exponentials need a finite one. */
HR_DEVICE float finite_reference(float m)
{
    return m == MINUS_INFINITY ? 0.0f : m;
}

/*
 * The maximum of both rows over the four threads that share them. As integers, floats are in order
 * but for negative ones, so three are compared at once as integers from 0 on; a warp that has a row
 * without a positive element compares them again as floats.
 */
template <class S, int N> HR_DEVICE void row_maxima(Registers<S, N> &s, float (&top)[2])
{
    int32_t bits[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < N; i += 2)
        bits[half_of(i)] = __vimax3_s32(bits[half_of(i)], __float_as_int(as_float(s[i])),
                                        __float_as_int(as_float(s[i + 1])));
#pragma unroll
    for (int h = 0; h < 2; h++) {
        bits[h] = max(bits[h], __shfl_xor_sync(0xFFFFFFFFu, bits[h], 1));
        bits[h] = max(bits[h], __shfl_xor_sync(0xFFFFFFFFu, bits[h], 2));
        top[h] = __int_as_float(bits[h]);
    }
    if (!__any_sync(0xFFFFFFFFu, bits[0] == 0 || bits[1] == 0)) return;
    top[0] = top[1] = MINUS_INFINITY;
#pragma unroll
    for (int i = 0; i < N; i++)
        top[half_of(i)] = fmaxf(top[half_of(i)], as_float(s[i]));
    top[0] = quad_max(top[0]), top[1] = quad_max(top[1]);
}

/*
 * int8: makes S, masked, P relative to the tile's maximum as halves, two in every other element.
 * `scales` is the tile's in shared memory. Returns the maxima of both rows and the sums of their
 * four threads, for join_tile. Halves keep P, up to 255, to 1/16; their sums over V's scale are a
 * matrix product with its inverse in every column. THREE: by row_maxima, which spills at head_dim
 * 256.
 */
template <bool SOFTCAP, bool THREE, int N>
HR_DEVICE float4 softmax_tile(Registers<int32_t, N> &s, uint32_t scales, float cap,
                              const Rows &rows)
{
    using namespace hopper;
    const uint32_t own = scales + 16 * (threadIdx.x % 4);
    float top[2] = {MINUS_INFINITY, MINUS_INFINITY};
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
        if (j == 3) __syncwarp(); /* later loads stay behind it: or registers spill */
        const float4 k = load_shared<float4>(own + 64 * j);
        const float2 v = load_shared<float2>(own + 4 * HR_SM90_LOG2_V + 64 * (j / 2) + 8 * (j % 2));
#pragma unroll
        for (int i = 4 * j; i < 4 * j + 4; i++) {
            const int h = half_of(i);
            const float u =
                i % 2 ? __fmaf_rn(as_float(s[i]), k.y, k.w) : __fmaf_rn(as_float(s[i]), k.x, k.z);
            const float log2_v = i % 2 ? v.y : v.x;
            float x = __fmaf_rn(u, rows.scale[h], SOFTCAP ? rows.bias[h] : log2_v);
            /* A masked key's -infinity must survive the cap. */
            if (SOFTCAP) x = u == MINUS_INFINITY ? u : __fmaf_rn(half_tanh(x), cap, log2_v);
            set_float(s[i], x);
            if (!THREE) top[h] = fmaxf(top[h], x);
        }
    }
    float reference[2], sum[4] = {0, 0, 0, 0};
    if (THREE)
        row_maxima(s, top);
    else
        top[0] = quad_max(top[0]), top[1] = quad_max(top[1]);
#pragma unroll
    for (int h = 0; h < 2; h++)
        reference[h] = fmaxf(top[h], LOWEST) - LOG2_255;
#pragma unroll
    for (int j = 0; j < N / 4; j += 4) {
        const uint4 inverse = load_shared<uint4>(own + 4 * HR_SM90_INVERSE_V + 16 * j);
        const uint32_t b[2][2] = {{inverse.x, inverse.y}, {inverse.z, inverse.w}};
#pragma unroll
        for (int step = 0; step < 2; step++) {
            uint32_t p[4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const int i = 4 * (j + 2 * step) + 2 * r;
                p[r] = cvt_f16x2(ex2(as_float(s[i + 1]) - reference[half_of(i)]),
                                 ex2(as_float(s[i]) - reference[half_of(i)]));
                s[i] = (int32_t)p[r];
            }
            mma_f16(sum, p, b[step]);
        }
    }
    const float unit = load_shared<float>(scales + 4 * HR_SM90_V_UNIT);
    return make_float4(top[0], top[1], sum[0] * unit, sum[2] * unit);
}

/*
 * One row's tile joins m and l. m is not the running maximum but 2^LEAD at most below it, so that O
 * hardly ever changes its unit: only then alpha, what O is multiplied by, is not 1 (ex2(0) is). m
 * is LOWEST at first, so that a tile without keys has no special case. beta is what one unit of the
 * tile's product counts.
 */
HR_DEVICE void join_tile(float top, float sum, float &m, float &l, float &alpha, float &beta)
{
    const float joined = top > m + LEAD ? top : m;
    alpha = hopper::ex2(m - joined);
    beta = hopper::ex2(top - joined) * (1.0f / 255);
    beta = __uint_as_float((__float_as_uint(beta) + 2) & ~UINT32_C(3));
    m = joined;
    l = __fmaf_rn(l, alpha, sum * beta);
}

/*
 * Others: makes S, masked, P times exp2(offset), relative to the running maximum, and updates m, l
 * and alpha. TOKEN: S is an integer with K's scales by token. `block` is the tile's: K's scale, and
 * what O is multiplied by when V's scale changes.
 */
template <bool SOFTCAP, bool TOKEN, class S, int N>
HR_DEVICE void softmax_running(Registers<S, N> &s, uint32_t scales, float cap, float offset,
                               float2 block, Rows &rows)
{
    using namespace hopper;
    const float unit[2] = {rows.scale[0] * block.x, rows.scale[1] * block.x};
    float top[2] = {MINUS_INFINITY, MINUS_INFINITY};
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
        float4 k = {};
        if (TOKEN && j % 8 == 0) __syncwarp(); /* the same */
        if (TOKEN) k = load_shared<float4>(scales + 64 * j);
#pragma unroll
        for (int i = 4 * j; i < 4 * j + 4; i++) {
            const int h = half_of(i);
            float u = as_float(s[i]);
            if (TOKEN) u = i % 2 ? __fmaf_rn(u, k.y, k.w) : __fmaf_rn(u, k.x, k.z);
            if (SOFTCAP && u != MINUS_INFINITY) u = half_tanh(__fmaf_rn(u, unit[h], rows.bias[h]));
            if (SOFTCAP || TOKEN) set_float(s[i], u);
            top[h] = fmaxf(top[h], u);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float scale = SOFTCAP ? cap : unit[h];
        const float m = fmaxf(rows.m[h], quad_max(top[h]) * scale);
        const float finite = finite_reference(m);
        rows.alpha[h] = ex2(rows.m[h] - finite);
        rows.m[h] = m;
        top[h] = offset - finite;
    }
    float sum[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int h = half_of(i);
        const float p = ex2(__fmaf_rn(as_float(s[i]), SOFTCAP ? cap : unit[h], top[h]));
        sum[h] += p;
        set_float(s[i], p);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        rows.l[h] = __fmaf_rn(rows.l[h], rows.alpha[h], sum[h]);
        rows.alpha[h] *= block.y;
    }
}

/*
 * Ends the rows: `factor` is what O is multiplied by, 0 for a row without keys; returns LSE. A sink
 * joins the denominator; without softcap the logits lack what smoothing took from the keys, so the
 * sink is lowered by the same, and LSE raised.
 */
template <Recipe RECIPE, bool SOFTCAP>
HR_DEVICE float finish_row(const hr_sm90_args &args, const Work &work, int row, const Rows &rows,
                           int h, float *factor)
{
    constexpr bool E4M3_P = RECIPE == Recipe::fp8 || RECIPE == Recipe::int8_fp8;
    const float unit = E4M3_P ? 1.0f / 448 : 1.0f;
    float m = rows.m[h], l = RECIPE == Recipe::int8 ? rows.l[h] : quad_sum(rows.l[h]) * unit;
    float bias = 0;
    const float sink = args.sinks != nullptr ? args.sinks[work.head] : MINUS_INFINITY;
    const int i = work.row + row + 8 * h;
    *factor = 0;
    if (l == 0) return sink;
    if (!SOFTCAP && args.lse_bias != nullptr && i < work.seqlen_q)
        bias = args.softmax_scale * args.lse_bias[work.head * args.total_q + work.first_q + i];
    float rescale = 1;
    if (sink > MINUS_INFINITY) {
        const float level = (sink - bias) * LOG2_E;
        const float top = fmaxf(m, level);
        rescale = hopper::ex2(m - top);
        l = __fmaf_rn(l, rescale, hopper::ex2(level - top));
        m = top;
    }
    *factor = unit * rescale / l; /* NaN stays NaN */
    return __fmaf_rn(m + log2f(l), LN_2, bias);
}

} // namespace attention_sm90

#endif
