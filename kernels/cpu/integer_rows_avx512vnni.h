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

/*
 * 64 codes of six rows, dword by dword, to where the dwords of the rows lie side by side: pairs of
 * rows first, then three pairs at a time.
 */
INLINE void interleave_rows(const __m512i codes[ROWS], int32_t *q)
{
    const __m512i quads = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    /* Pairs of rows 0 1 (a) and 2 3 (b), with gaps (-) for those of rows 4 5 (c). */
    const __m512i ab[3] = {_mm512_setr_epi64(0, 8, 0, 1, 9, 0, 2, 10),    /* ab- ab- ab */
                           _mm512_setr_epi64(0, 3, 11, 0, 4, 12, 0, 5),   /* -ab -ab -a */
                           _mm512_setr_epi64(13, 0, 6, 14, 0, 7, 15, 0)}; /* b-a b-a b- */
    const __m512i c[3] = {_mm512_setr_epi64(0, 1, 8, 3, 4, 9, 6, 7),
                          _mm512_setr_epi64(10, 1, 2, 11, 4, 5, 12, 7),
                          _mm512_setr_epi64(0, 13, 2, 3, 14, 5, 6, 15)};
    for (int half = 0; half < 2; half++) {
        const __m512i order = _mm512_add_epi32(quads, _mm512_set1_epi32(8 * half));
        __m512i pair[ROWS / 2];
        for (int i = 0; i < ROWS / 2; i++)
            pair[i] = _mm512_permutex2var_epi32(codes[2 * i], order, codes[2 * i + 1]);
        for (int i = 0; i < 3; i++) {
            const __m512i two = _mm512_permutex2var_epi64(pair[0], ab[i], pair[1]);
            _mm512_storeu_si512(q + 48 * half + 16 * i,
                                _mm512_permutex2var_epi64(two, c[i], pair[2]));
        }
    }
}

/* Q's codes of a block as [group][quad][6] dwords; returns their sums, lane by row. */
static __m512i load_codes(task *t, int32_t b)
{
    const int32_t head_dim = t->head_dim;
    const int8_t *codes = t->args->q.codes;
    __m512i sum[BLOCK];
#pragma GCC unroll 2
    for (int g = 0; g < GROUPS; g++) {
        int32_t *q = t->q + (b * GROUPS + g) * ROWS * (head_dim / 4);
        const int8_t *row[ROWS];
        __m512i ones = _mm512_set1_epi8(1), *sums = sum + g * ROWS;
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            const int64_t index = task_row(t->args, (b * GROUPS + g) * ROWS + r);
            row[r] = codes + index * head_dim;
            sums[r] = _mm512_setzero_si512();
        }
        for (int32_t c = 0; c < head_dim; c += 64) {
            const int32_t left = head_dim - c;
            const __mmask64 mask = left < 64 ? (UINT64_C(1) << left) - 1 : ~UINT64_C(0);
            __m512i quads[ROWS];
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; r++) {
                quads[r] = _mm512_maskz_loadu_epi8(mask, row[r] + c);
                sums[r] = _mm512_dpbusd_epi32(sums[r], ones, quads[r]);
            }
            interleave_rows(quads, q + c / 4 * ROWS);
        }
    }
    return reduce_rows(sum, ADD_DWORDS);
}

/* hr_integer_row_factor of the rows from `first` on. */
static void load_factors(const hr_kernel_args *args, int32_t first, double factor[LANES])
{
    const int32_t row = args->q_begin + first;
    if (args->q.granularity != HR_GRANULARITY_TOKEN || args->softcap != 0 ||
        row + LANES > args->q_end) {
        for (int i = 0; i < LANES; i++)
            factor[i] = hr_integer_row_factor(args, task_row(args, first + i));
        return;
    }
    for (int i = 0; i < LANES; i += 8) {
        const __m512d scale = _mm512_cvtps_pd(_mm256_loadu_ps(args->q.scale + row + i));
        const __m512d product = _mm512_mul_pd(scale, _mm512_set1_pd((double)args->softmax_scale));
        _mm512_store_pd(factor + i, _mm512_mul_pd(product, _mm512_set1_pd(HR_INTEGER_LOG2E)));
    }
}

/* What smoothing took from the row's logits. */
INLINE double row_bias(const hr_kernel_args *args, int32_t row)
{
    return args->lse_bias ? (double)args->lse_bias[row] * (double)args->softmax_scale : 0;
}

/* What the sums of a block's rows start at for each group of K's channels. */
static void begin_groups(task *t, int32_t b)
{
    const int32_t width = t->head_dim / t->k_groups;
    for (int row = 0; row < BLOCK; row++) {
        const int8_t *q = (const int8_t *)t->args->q.codes +
                          (int64_t)task_row(t->args, b * BLOCK + row) * t->head_dim;
        for (int32_t g = 0; g < t->k_groups; g++, q += width) {
            int32_t sum = 0;
            for (int32_t c = 0; c < width; c++)
                sum += q[c];
            t->block[b].group_init[g][row] = -128 * sum;
        }
    }
}

static void begin_rows(task *t)
{
    for (int32_t b = 0; b < t->blocks; b++) {
        block_state *block = &t->block[b];
        for (int row = 0; row < BLOCK; row++) /* where gcc's memset is slow to start */
            _mm512_store_ps(block->l[row], _mm512_setzero_ps());
        const __m512i sums = _mm512_mullo_epi32(load_codes(t, b), _mm512_set1_epi32(-128));
        const int32_t magic = (int32_t)hr_integer_bits(HR_INTEGER_MAGIC);
        _mm512_store_si512(block->init, _mm512_add_epi32(_mm512_set1_epi32(magic), sums));
        if (t->k_groups) begin_groups(t, b);
        _mm512_store_ps(block->m, _mm512_set1_ps(-INFINITY));
        _mm512_store_ps(block->e, _mm512_set1_ps(HR_INTEGER_NO_TILE));
        load_factors(t->args, b * BLOCK, block->factor);
        for (int i = 0; i < LANES && t->args->softcap != 0; i++)
            block->bias[i] = (float)row_bias(t->args, task_row(t->args, b * BLOCK + i));
        const int32_t rows = t->args->q_end - t->args->q_begin - b * BLOCK;
        block->rows = (__mmask16)((1 << (rows < BLOCK ? rows : BLOCK)) - 1);
        block->fresh = true;
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
        __m512i lo = row_limits(diagonal - left, range->begin, left != HR_WINDOW_NONE);
        __m512i hi = row_limits(diagonal + right + 1, range->end, right != HR_WINDOW_NONE);
        lo = _mm512_min_epi32(_mm512_max_epi32(lo, begin), end);
        hi = _mm512_max_epi32(_mm512_min_epi32(hi, end), begin);
        _mm512_store_si512(block->lo, _mm512_maskz_mov_epi32(block->rows, lo));
        _mm512_store_si512(block->hi, _mm512_maskz_mov_epi32(block->rows, hi));
        for (int g = 0; g < GROUPS; g++) {
            /* Both ends grow with the row, so the first and the last row say it all. */
            const int first = g * ROWS, rows = __builtin_popcount(block->rows);
            const int last = (rows < first + ROWS ? rows : first + ROWS) - 1;
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
    if (args->lse || args->sink > -INFINITY) {
        _mm512_store_ps(factor, sums);
        for (int row = 0; row < BLOCK; row++) {
            const int32_t i = args->q_begin + b * BLOCK + row;
            if (i >= args->q_end) return;
            const double bias = args->softcap == 0 ? row_bias(args, i) : 0;
            factor[row] = hr_integer_finish(args, i, block->m[row], factor[row], bias);
        }
        return;
    }
    /*
     * What hr_integer_finish does where there is nothing but the sum: a quotient has the same bits
     * when it was rounded to double before, as that has more than twice as many (Figueroa 1995).
     */
    const __mmask16 seen = _mm512_cmp_ps_mask(sums, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __m512 one = _mm512_set1_ps((float)(1 / hr_integer_p_unit(args)));
    _mm512_store_ps(factor, _mm512_maskz_div_ps(seen, one, sums));
}

/* Step 7 for a row: O times factor, then times 2^e, which is `power` unless that is extreme. */
INLINE void finish_row(const float *o, int32_t head_dim, __m512 factor, __m512 power, float *out)
{
    int32_t c = 0;
    for (; c + 16 <= head_dim; c += 16)
        _mm512_storeu_ps(out + c,
                         _mm512_mul_ps(_mm512_mul_ps(_mm512_load_ps(o + c), factor), power));
    if (c < head_dim) {
        const __m512 x = _mm512_mul_ps(_mm512_mul_ps(_mm512_load_ps(o + c), factor), power);
        _mm512_mask_storeu_ps(out + c, 0xff, x);
    }
}

/* The same where 2^e may be no normal number, or O was never begun: zeros. */
RARE void finish_odd_row(const float *o, int32_t head_dim, bool fresh, __m512 factor,
                         __m512 exponent, float *out)
{
    for (int32_t c = 0; c < head_dim; c += 16) {
        const __mmask16 mask = head_dim - c < 16 ? 0xff : 0xffff;
        const __m512 x = fresh ? _mm512_setzero_ps() : _mm512_mul_ps(_mm512_load_ps(o + c), factor);
        _mm512_mask_storeu_ps(out + c, mask, _mm512_scalef_ps(x, exponent));
    }
}

/* Step 7 for a block. */
static void finish_block(const task *t, int32_t b)
{
    const hr_kernel_args *args = t->args;
    const block_state *block = &t->block[b];
    ALIGNED float factors[LANES], powers[LANES];
    finish_sums(t, b, factors);
    /* 2^e is a normal number but for extreme scales and rows that saw nothing. */
    const __m512 e = _mm512_load_ps(block->e);
    const __mmask16 extreme = _mm512_cmp_ps_mask(_mm512_abs_ps(e), _mm512_set1_ps(126), _CMP_GT_OQ);
    _mm512_store_ps(powers, _mm512_scalef_ps(_mm512_set1_ps(1), e));
    const int rows = __builtin_popcount(block->rows);
    for (int row = 0; row < rows; row++) {
        const __m512 factor = _mm512_set1_ps(factors[row]);
        const float *o = t->o + (b * BLOCK + row) * t->channels;
        float *out = args->o + (args->q_begin + b * BLOCK + row) * args->o_stride;
        if (block->fresh || extreme >> row & 1)
            finish_odd_row(o, t->head_dim, block->fresh, factor, _mm512_set1_ps(block->e[row]),
                           out);
        else
            finish_row(o, t->head_dim, factor, _mm512_set1_ps(powers[row]), out);
    }
}

#endif
