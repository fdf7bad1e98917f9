/*
 * How rows enter and leave a task of the integer kernels on AVX-512 VNNI: Q's codes side by side,
 * the constants of step 2, the keys a row sees, and step 7.
 */
#ifndef HEADROOM_INTEGER_ROWS_AVX512VNNI_H
#define HEADROOM_INTEGER_ROWS_AVX512VNNI_H

#include "integer_task_avx512vnni.h"

/* The row that index stands for: rows past the end of the task repeat its last one. */
INLINE int32_t task_row(const hr_kernel_args *args, int32_t index)
{
    const int32_t count = args->q_end - args->q_begin;
    return args->q_begin + (index < count ? index : count - 1);
}

/* 64 codes of two rows, dword by dword, to where the dwords of six rows lie side by side. */
INLINE void interleave_rows(const int8_t *even, const int8_t *odd, int32_t *q)
{
    const __m512i a = _mm512_loadu_si512(even), b = _mm512_loadu_si512(odd);
    const __m512i pairs[2] = {_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)};
#define STORE_QUARTER(quarter, half)                                                               \
    {                                                                                              \
        const __m128i two = _mm512_extracti32x4_epi32(pairs[half], quarter);                       \
        int32_t *to = q + (4 * (quarter) + 2 * (half)) * ROWS;                                     \
        _mm_storel_pd((double *)to, _mm_castsi128_pd(two));                                        \
        _mm_storeh_pd((double *)(to + ROWS), _mm_castsi128_pd(two));                               \
    }
    STORE_QUARTER(0, 0)
    STORE_QUARTER(0, 1) STORE_QUARTER(1, 0) STORE_QUARTER(1, 1) STORE_QUARTER(2, 0)
        STORE_QUARTER(2, 1) STORE_QUARTER(3, 0) STORE_QUARTER(3, 1)
#undef STORE_QUARTER
}

/* Q's codes of a block as [group][quad][6] dwords; returns their sums, lane by row. */
static __m512i load_codes(task *t, int32_t b)
{
    const int32_t head_dim = t->head_dim, whole = head_dim / 64 * 64;
    const __mmask64 rest = (UINT64_C(1) << (head_dim - whole)) - 1;
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sum[BLOCK];
    for (int row = 0; row < BLOCK; row += 2) {
        const int8_t *codes[2];
        for (int i = 0; i < 2; i++)
            codes[i] = (const int8_t *)t->args->q.codes +
                       (int64_t)task_row(t->args, b * BLOCK + row + i) * head_dim;
        int32_t *q = t->q + (b * BLOCK + row / ROWS * ROWS) * (head_dim / 4) + row % ROWS;
        sum[row] = sum[row + 1] = _mm512_setzero_si512();
        for (int32_t c = 0; c < whole; c += 64) {
            interleave_rows(codes[0] + c, codes[1] + c, q + c / 4 * ROWS);
            for (int i = 0; i < 2; i++)
                sum[row + i] =
                    _mm512_dpbusd_epi32(sum[row + i], ones, _mm512_loadu_si512(codes[i] + c));
        }
        if (!rest) continue;
        for (int i = 0; i < 2; i++) {
            sum[row + i] = _mm512_dpbusd_epi32(sum[row + i], ones,
                                               _mm512_maskz_loadu_epi8(rest, codes[i] + whole));
            for (int32_t c = whole; c < head_dim; c += 4)
                memcpy(q + c / 4 * ROWS + i, codes[i] + c, 4);
        }
    }
    return reduce_rows(sum, ADD_DWORDS);
}

static void begin_rows(task *t)
{
    memset(t->o, 0, (size_t)(t->blocks * BLOCK * t->channels) * sizeof *t->o);
    for (int32_t b = 0; b < t->blocks; b++) {
        block_state *block = &t->block[b];
        memset(block->l, 0, sizeof block->l);
        const __m512i sums = _mm512_mullo_epi32(load_codes(t, b), _mm512_set1_epi32(-128));
        const __m512i magic = _mm512_set1_epi32((int32_t)hr_integer_bits(HR_INTEGER_MAGIC));
        _mm512_store_si512(block->init, _mm512_add_epi32(magic, sums));
        _mm512_store_ps(block->m, _mm512_set1_ps(-INFINITY));
        _mm512_store_ps(block->e, _mm512_set1_ps(HR_INTEGER_NO_TILE));
        for (int row = 0; row < LANES; row++)
            block->factor[row] = hr_integer_row_factor(t->args, task_row(t->args, b * BLOCK + row));
    }
}

/* first + i for the rows i of a block, stopped at the ends of int32; `absent`: there is no limit.
 */
INLINE __m512i row_limits(int64_t first, int32_t absent, bool limited)
{
    if (!limited) return _mm512_set1_epi32(absent);
    const int64_t most = INT32_MAX - LANES, least = INT32_MIN;
    const int64_t start = first > most ? most : first < least ? least : first;
    return _mm512_add_epi32(
        _mm512_set1_epi32((int32_t)start),
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

/* Which keys of a range the rows see: hr_kernel_row_range for the rows of a block. */
static void enter_range(task *t, const hr_kernel_range *range)
{
    const hr_kernel_args *args = t->args;
    const int32_t left = range->kept ? HR_WINDOW_NONE : args->window_left;
    const int32_t right = range->kept ? args->kept_right : args->window_right;
    const __m512i begin = _mm512_set1_epi32(range->begin), end = _mm512_set1_epi32(range->end);
    for (int32_t b = 0; b < t->blocks; b++) {
        block_state *block = &t->block[b];
        const int64_t diagonal = (int64_t)args->q_begin + b * BLOCK + args->shift;
        const int32_t rows = args->q_end - args->q_begin - b * BLOCK;
        __m512i lo = row_limits(diagonal - left, range->begin, left != HR_WINDOW_NONE);
        __m512i hi = row_limits(diagonal + right + 1, range->end, right != HR_WINDOW_NONE);
        lo = _mm512_min_epi32(_mm512_max_epi32(lo, begin), end);
        hi = _mm512_max_epi32(_mm512_min_epi32(hi, end), begin);
        const __mmask16 is_row = (__mmask16)((1 << (rows < BLOCK ? rows : BLOCK)) - 1);
        lo = _mm512_maskz_mov_epi32(is_row, lo);
        hi = _mm512_maskz_mov_epi32(is_row, hi);
        _mm512_store_si512(block->lo, lo);
        _mm512_store_si512(block->hi, hi);
        for (int g = 0; g < GROUPS; g++) {
            /* Both ends grow with the row, so the first and the last row say it all. */
            const int first = g * ROWS, last = (rows < first + ROWS ? rows : first + ROWS) - 1;
            block->range[g] = last < first ? (group_range){.any_lo = INT32_MAX}
                                           : (group_range){.any_lo = block->lo[first],
                                                           .any_hi = block->hi[last],
                                                           .common_lo = block->lo[last],
                                                           .common_hi = block->hi[first]};
        }
    }
}

/* 1 / l of the rows, or 0 for rows that saw nothing, and their LSE: step 7. */
static void finish_sums(const task *t, int32_t b, float factor[LANES])
{
    const hr_kernel_args *args = t->args;
    const block_state *block = &t->block[b];
    __m512i l[BLOCK];
    for (int row = 0; row < BLOCK; row++)
        l[row] = _mm512_castps_si512(_mm512_load_ps(block->l[row]));
    const __m512 sums = _mm512_castsi512_ps(reduce_rows(l, ADD_FLOATS));
    _mm512_store_ps(factor, sums);
    if (args->lse || args->sink > -INFINITY) {
        for (int row = 0; row < BLOCK; row++) {
            const int32_t i = args->q_begin + b * BLOCK + row;
            if (i >= args->q_end) return;
            double bias =
                args->lse_bias ? (double)args->lse_bias[i] * (double)args->softmax_scale : 0;
            factor[row] = hr_integer_finish(args, i, block->m[row], factor[row], bias);
        }
        return;
    }
    /* What hr_integer_finish does where there is nothing but the sum. */
    for (int half = 0; half < 2; half++) {
        const __m512d sum = _mm512_cvtps_pd(_mm256_load_ps(factor + half * 8));
        const __mmask8 seen = _mm512_cmp_pd_mask(sum, _mm512_setzero_pd(), _CMP_GT_OQ);
        const __m512d one = _mm512_set1_pd(1);
        _mm256_store_ps(factor + half * 8, _mm512_cvtpd_ps(_mm512_maskz_div_pd(seen, one, sum)));
    }
}

/* Step 7 for a block. */
static void finish_block(const task *t, int32_t b)
{
    const hr_kernel_args *args = t->args;
    ALIGNED float factors[LANES];
    finish_sums(t, b, factors);
    for (int row = 0; row < BLOCK; row++) {
        const int32_t i = args->q_begin + b * BLOCK + row;
        if (i >= args->q_end) return;
        const __m512 factor = _mm512_set1_ps(factors[row]), e = _mm512_set1_ps(t->block[b].e[row]);
        const float *o = t->o + (b * BLOCK + row) * t->channels;
        float *out = args->o + i * args->o_stride;
        for (int32_t c = 0; c < t->head_dim; c += 16) {
            __mmask16 mask = t->head_dim - c < 16 ? 0xff : 0xffff;
            __m512 scaled = _mm512_scalef_ps(_mm512_mul_ps(_mm512_load_ps(o + c), factor), e);
            _mm512_mask_storeu_ps(out + c, mask, scaled);
        }
    }
}

#endif
