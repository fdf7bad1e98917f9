/*
 * The functions of integer_softmax.h on vectors of 16, bit for bit the same.
 */
#ifndef HEADROOM_INTEGER_VECTOR_AVX512VNNI_H
#define HEADROOM_INTEGER_VECTOR_AVX512VNNI_H

#include <immintrin.h>

#include "integer_softmax.h"
#include "token_scales_avx512.h"

#define INLINE static inline __attribute__((always_inline))

#ifndef ALIGNED
#define ALIGNED __attribute__((aligned(64)))
#endif

/* z[] = 2^max(z[], -100) for n vectors side by side, as hr_integer_exp2. */
INLINE void exp2_of(__m512 z[], int n)
{
    __m512 f[8], p[8];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        z[i] = _mm512_max_ps(z[i], _mm512_set1_ps(HR_INTEGER_MIN_LOG2));
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        f[i] = _mm512_reduce_ps(z[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        p[i] = _mm512_fmadd_ps(f[i], _mm512_set1_ps(HR_EXP2_C4), _mm512_set1_ps(HR_EXP2_C3));
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        z[i] = _mm512_sub_ps(z[i], f[i]);
#pragma GCC unroll 3
    for (int c = 0; c < 3; c++) {
        const float next[3] = {HR_EXP2_C2, HR_EXP2_C1, 1.0f};
#pragma GCC unroll 8
        for (int i = 0; i < n; i++)
            p[i] = _mm512_fmadd_ps(p[i], f[i], _mm512_set1_ps(next[c]));
    }
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        z[i] = _mm512_scalef_ps(p[i], z[i]);
}

enum { HR_MICRO_COLUMNS = 64 };

/*
 * Step 1 for 64 keys: what makes logits of sums and sums of weights. S * k = fma(bits of 1.5 * 2^23
 * + S, k, k_magic). `sum` and `rest` (A and B) are in the order of packed logits, all else in that
 * of the keys.
 */
typedef struct tile_columns {
    ALIGNED float k[HR_MICRO_COLUMNS];
    float k_magic[HR_MICRO_COLUMNS];
    float u[HR_MICRO_COLUMNS];
    int16_t sum[HR_MICRO_COLUMNS];
    int16_t rest[HR_MICRO_COLUMNS];
    float inverse[HR_MICRO_COLUMNS]; /* r */
} tile_columns;

/* F and E of a tile, what a row's sum is multiplied with, H * 2^-19, and the kind of sum. */
typedef struct tile_exponents {
    int32_t f, e;
    float sum;
    bool even, wide;
} tile_exponents;

/* What weights are made with: keep it in registers. */
typedef struct weight_constants {
    __m512i bend, index, round;
    __mmask64 low; /* the low bytes of words */
} weight_constants;

INLINE weight_constants load_weight_constants(void)
{
    return (weight_constants){.bend = _mm512_loadu_si512(hr_integer_bend),
                              .index = _mm512_set1_epi16(1 << 12), /* times 2^-16: line / 16 */
                              .round = _mm512_set1_epi16(256),
                              .low = UINT64_C(0x5555555555555555)};
}

/*
 * Binary16 numbers as integers. In assembly, because only some CPUs with VNNI have the instruction;
 * `half` says whether this one does.
 */
INLINE __m512i from_half(__m512i x, bool half)
{
    __m512i y;
    if (half) {
        __asm__("vcvtph2uw %1, %0" : "=v"(y) : "v"(x));
        return y;
    }
    __m512i low = _mm512_cvtps_epi32(_mm512_cvtph_ps(_mm512_castsi512_si256(x)));
    __m512i high = _mm512_cvtps_epi32(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1)));
    y = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(low));
    return _mm512_inserti64x4(y, _mm512_cvtepi32_epi16(high), 1);
}

/*
 * e[i]: from TOP + N - y, stopped at 0, to hr_integer_weight of y - N; n vectors side by side. The
 * shift of the index is a multiplication, because shifts share one port with the subtractions.
 *
 * Loops of constant 8 turns, some of them empty: clang 14 leaves one of four a loop, with its
 * vectors in memory.
 */
INLINE void weights_of(__m512i e[], int n, const weight_constants *c, bool half)
{
    __m512i bend[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        if (i < n) bend[i] = _mm512_mulhi_epu16(e[i], c->index);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        if (i < n) /* In assembly: clang makes a blend and two more of the intrinsic. */
            __asm__("vpermb %2, %1, %0%{%3%}%{z%}"
                    : "=v"(bend[i])
                    : "v"(bend[i]), "v"(c->bend), "Yk"(c->low));
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        if (i < n) e[i] = from_half(_mm512_subs_epu16(e[i], bend[i]), half);
}

/* s += e * A or e * B, sums of the lanes of hr_integer_lane. In assembly: gcc 12 copies the sum. */
INLINE void add_weights(__m512i *s, __m512i e, __m512i sum)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(*s) : "v"(e), "v"(sum));
}

/* The sums of a wide tile's lanes. */
INLINE __m512 join_sums(__m512i sum, __m512i rest)
{
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(rest), _mm512_set1_ps(0x1p-12f),
                           _mm512_cvtepi32_ps(sum));
}

/* P of 64 keys, in the key order of HR_LAYOUT_VNNI_V. */
INLINE __m512i pack_weights(__m512i low, __m512i high, const weight_constants *c)
{
    return _mm512_packus_epi16(_mm512_mulhrs_epi16(low, c->round),
                               _mm512_mulhrs_epi16(high, c->round));
}

/* P of 15 bits of 64 keys in the same order: its high 8 bits and its low 7. */
INLINE void pack_precise_weights(__m512i low, __m512i high, __m512i p[2])
{
    const __m512i seven = _mm512_set1_epi16(127);
    p[0] = _mm512_packus_epi16(_mm512_srli_epi16(low, 7), _mm512_srli_epi16(high, 7));
    p[1] = _mm512_packus_epi16(_mm512_and_si512(low, seven), _mm512_and_si512(high, seven));
}

/* x[] = tanh(x[] / c) for n vectors side by side, as hr_integer_tanh. */
INLINE void tanh_of(__m512 x[], int n, float argument)
{
    static const float coefficients[4] = {HR_TANH_C4, HR_TANH_C3, HR_TANH_C2, HR_TANH_C1};
    const __m512 one = _mm512_set1_ps(1), two = _mm512_set1_ps(2);
    __m512 z[4], f[4], p[4];
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        z[i] = _mm512_mul_ps(_mm512_abs_ps(x[i]), _mm512_set1_ps(argument));
        z[i] = _mm512_max_ps(z[i], _mm512_set1_ps(HR_INTEGER_MIN_LOG2));
        f[i] = _mm512_reduce_ps(z[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        p[i] = _mm512_set1_ps(HR_TANH_C5);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++)
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            p[i] = _mm512_fmadd_ps(p[i], f[i], _mm512_set1_ps(coefficients[c]));
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        const __m512 power = _mm512_scalef_ps(one, _mm512_sub_ps(z[i], f[i]));
        const __m512 less =
            _mm512_fmadd_ps(_mm512_mul_ps(p[i], f[i]), power, _mm512_sub_ps(power, one));
        const __m512 tanh = _mm512_div_ps(less, _mm512_add_ps(less, two));
        /* tanh's bits but for the sign, which is x's */
        x[i] = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_set1_epi32(INT32_MAX),
                                                             _mm512_castps_si512(tanh),
                                                             _mm512_castps_si512(x[i]), 0xca));
    }
}

/* w[] = log2(w[]) for n vectors side by side, as hr_integer_log2. */
INLINE void log2_of(__m512 w[], int n)
{
    static const float coefficients[6] = {HR_LOG2_D5, HR_LOG2_D4, HR_LOG2_D3,
                                          HR_LOG2_D2, HR_LOG2_D1, HR_LOG2_D0};
    __m512 u[4], p[4];
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        u[i] = _mm512_getmant_ps(w[i], _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero);
        w[i] = _mm512_getexp_ps(w[i]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        u[i] = _mm512_sub_ps(u[i], _mm512_set1_ps(1.0f));
        p[i] = _mm512_set1_ps(HR_LOG2_D6);
    }
#pragma GCC unroll 6
    for (int c = 0; c < 6; c++)
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            p[i] = _mm512_fmadd_ps(p[i], u[i], _mm512_set1_ps(coefficients[c]));
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
        w[i] = _mm512_fmadd_ps(p[i], u[i], w[i]);
}

INLINE __m512 round22(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 2), one);
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, one));
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(~3)));
}

/* One scale a key of the tile, 0 past `count`; returns the largest. */
static inline float gather_scales(const hr_kernel_operand *operand, int32_t head_dim, int64_t first,
                                  int32_t count, float *scale)
{
    if (operand->granularity == HR_GRANULARITY_TOKEN)
        copy_token_scales(operand, first, count, scale);
    else
        for (int32_t j = 0; j < count; j++)
            scale[j] = hr_integer_token_scale(operand, head_dim, first + j);
    memset(scale + count, 0, (size_t)(HR_INTEGER_TILE - count) * sizeof *scale);
    __m512 largest = _mm512_setzero_ps();
    for (int32_t j = 0; j < HR_INTEGER_TILE; j += 16)
        largest = _mm512_max_ps(largest, _mm512_load_ps(scale + j));
    return _mm512_reduce_max_ps(largest);
}

/*
 * Step 1 for a tile of `count` keys: scales are 0 from there on, and k_max and v_max the largest.
 * Columns that are no keys get y = 65535, which gives them no weight.
 */
static inline tile_exponents scale_columns(const float k_scale[HR_INTEGER_TILE], float k_max,
                                           const float v_scale[HR_INTEGER_TILE], float v_max,
                                           int32_t count, tile_columns *columns)
{
    /* getexp is floor(log2), of denormals too. */
    const __m512 f = _mm512_getexp_ps(_mm512_set1_ps(k_max));
    const __m512 e = _mm512_getexp_ps(_mm512_set1_ps(v_max));
    const __m512 zero = _mm512_setzero_ps();
    const __m512 minus_f = _mm512_sub_ps(zero, f), minus_e = _mm512_sub_ps(zero, e);
    tile_exponents tile = {.f = (int32_t)_mm512_cvtss_f32(f), .e = (int32_t)_mm512_cvtss_f32(e)};
    __m512 r[HR_INTEGER_TILE / 16], largest = zero, least = _mm512_set1_ps(INFINITY);
    enum { VECTORS = HR_MICRO_COLUMNS / 16 }; /* side by side: each waits for itself a lot */
    for (int32_t first = 0; first < HR_INTEGER_TILE; first += HR_MICRO_COLUMNS) {
        tile_columns *c = &columns[first / HR_MICRO_COLUMNS];
        __m512 w[VECTORS];
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) {
            w[i] = _mm512_scalef_ps(_mm512_load_ps(v_scale + first + 16 * i), minus_e);
            w[i] = _mm512_max_ps(w[i], _mm512_set1_ps(HR_INTEGER_MIN_V));
            r[first / 16 + i] = _mm512_div_ps(_mm512_set1_ps(1.0f), w[i]);
        }
        log2_of(w, VECTORS);
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) {
            const int32_t left = count - first - 16 * i;
            const __mmask16 keys = left >= 16 ? 0xffff
                                   : left > 0 ? (__mmask16)((1 << left) - 1)
                                              : 0;
            const __m512 inverse = r[first / 16 + i];
            _mm512_store_ps(c->inverse + 16 * i, inverse);
            const __m512 k =
                round22(_mm512_scalef_ps(_mm512_load_ps(k_scale + first + 16 * i), minus_f));
            largest = _mm512_mask_max_ps(largest, keys, largest, inverse);
            least = _mm512_mask_min_ps(least, keys, least, inverse);
            _mm512_store_ps(c->k + 16 * i, k);
            _mm512_store_ps(c->k_magic + 16 * i,
                            _mm512_mul_ps(k, _mm512_set1_ps(-HR_INTEGER_MAGIC)));
            const __m512 u = _mm512_fnmadd_ps(w[i], _mm512_set1_ps(HR_INTEGER_OCTAVE),
                                              _mm512_set1_ps(HR_INTEGER_OFFSET));
            _mm512_store_ps(c->u + 16 * i, _mm512_mask_mov_ps(_mm512_set1_ps(65535), keys, u));
        }
    }
    const float r_max = _mm512_reduce_max_ps(largest), r_min = _mm512_reduce_min_ps(least);
    tile.even = r_max <= HR_INTEGER_EVEN * r_min;
    tile.wide = !tile.even && r_max <= HR_INTEGER_WIDE * r_min;
    tile.sum = r_max * 0x1p-19f;
    const __m512 unit = _mm512_set1_ps(4096 / r_max);
    for (int32_t j = 0; j < HR_INTEGER_TILE; j += 32) {
        tile_columns *c = &columns[j / HR_MICRO_COLUMNS];
        const int32_t at = j % HR_MICRO_COLUMNS;
        __m512i sum[2], rest[2];
        for (int i = 0; i < 2; i++) {
            const __m512 scaled = _mm512_mul_ps(r[j / 16 + i], unit);
            sum[i] = _mm512_cvtps_epi32(scaled);
            const __m512 left = _mm512_sub_ps(scaled, _mm512_cvtepi32_ps(sum[i]));
            rest[i] = _mm512_cvtps_epi32(_mm512_mul_ps(left, _mm512_set1_ps(4096)));
        }
        _mm512_store_si512(c->sum + at, _mm512_packs_epi32(sum[0], sum[1]));
        _mm512_store_si512(c->rest + at, _mm512_packs_epi32(rest[0], rest[1]));
    }
    return tile;
}

/* hr_integer_sum. */
INLINE float sum_of_lanes(__m512 l)
{
    const __m512d pairs = _mm512_castps_pd(l);
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(l),
                                       _mm256_castpd_ps(_mm512_extractf64x4_pd(pairs, 1)));
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

/*
 * The lanes' sums of step 4 where a tile is neither even nor wide, and what multiplies them in l. x
 * is in the order of the keys, +inf for those not seen; m is the row's m'.
 */
INLINE __m512 sum_uneven(const float *x, int32_t begin, int32_t end, float m, __m512 *factor)
{
    __m512 least = _mm512_set1_ps(INFINITY), sum = _mm512_setzero_ps();
    for (int32_t j = begin; j < end; j += 16)
        least = _mm512_min_ps(least, _mm512_load_ps(x + j));
    const float n0 = _mm512_reduce_min_ps(least);
    for (int32_t j = begin; j < end; j += 16) {
        const __m512 value = _mm512_load_ps(x + j);
        const __mmask16 seen = _mm512_cmp_ps_mask(value, _mm512_set1_ps(INFINITY), _CMP_LT_OQ);
        __m512 e = _mm512_mul_ps(_mm512_sub_ps(_mm512_set1_ps(n0), value),
                                 _mm512_set1_ps(1.0f / HR_INTEGER_OCTAVE));
        exp2_of(&e, 1);
        sum = _mm512_mask_add_ps(sum, seen, sum, e);
    }
    *factor =
        _mm512_set1_ps(255 * hr_integer_exp2((HR_INTEGER_OFFSET - n0 - m) / HR_INTEGER_OCTAVE));
    return sum;
}

/* round16 of y - n for 32 keys, given as two halves, packed. */
INLINE __m512i pack_logits(__m512 low, __m512 high, __m512 n)
{
    const __m512 top = _mm512_set1_ps(65535);
    low = _mm512_min_ps(_mm512_sub_ps(low, n), top);
    high = _mm512_min_ps(_mm512_sub_ps(high, n), top);
    return _mm512_packus_epi32(_mm512_cvtps_epi32(low), _mm512_cvtps_epi32(high));
}

/* Step 6 but O and l, for 16 rows: their state, and what multiplies old and new of l and of O. */
typedef struct row_scalars {
    float *m, *e;            /* m and e, which become m' and e' */
    float *alpha, *beta;     /* of l; beta is that of an even or wide tile */
    float *alpha_o, *beta_o; /* of O */
} row_scalars;

/* tile_m is M, -inf for rows that see nothing of the tile. All arrays are 64-byte aligned. */
INLINE void join_tile(const tile_exponents *tile, __m512 tile_m, row_scalars rows)
{
    const __m512 tile_e = _mm512_set1_ps((float)tile->e);
    const __m512 m = _mm512_load_ps(rows.m), e = _mm512_load_ps(rows.e);
    const __m512 octave = _mm512_set1_ps(1.0f / HR_INTEGER_OCTAVE);
    const __mmask16 seen = _mm512_cmp_ps_mask(tile_m, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ);
    const __m512 new_m = _mm512_max_ps(tile_m, m);
    const __m512 new_e = _mm512_mask_max_ps(e, seen, tile_e, e);
    __m512 z[2] = {_mm512_mul_ps(_mm512_sub_ps(m, new_m), octave),
                   _mm512_mul_ps(_mm512_sub_ps(tile_m, new_m), octave)};
    exp2_of(z, 2);
    const __m512 alpha = z[0], beta = z[1];
    _mm512_store_ps(rows.alpha, alpha);
    _mm512_store_ps(rows.beta, _mm512_mul_ps(beta, _mm512_set1_ps(tile->sum)));
    _mm512_store_ps(rows.alpha_o, _mm512_scalef_ps(alpha, _mm512_sub_ps(e, new_e)));
    /* A row that has seen no key yet has e = -1000; 0 for this tile's zeros, not inf. */
    _mm512_store_ps(rows.beta_o, _mm512_maskz_scalef_ps(seen, beta, _mm512_sub_ps(tile_e, new_e)));
    _mm512_store_ps(rows.m, new_m);
    _mm512_store_ps(rows.e, new_e);
}

#endif
