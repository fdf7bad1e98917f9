/*
 * Step 3 in FP32, where the usual path's 16 bits are not all there is to a logit: a softcap, ALiBi,
 * K's scales in groups, rows whose logits leave 16 bits, and row sums of tiles with very different
 * scales of V. Sums go through memory, 64 keys of six rows at a time. What softcap and ALiBi do to
 * a logit is written in integer_body.c.
 */
#ifndef HEADROOM_INTEGER_EXACT_AVX512VNNI_H
#define HEADROOM_INTEGER_EXACT_AVX512VNNI_H

#include "integer_task_avx512vnni.h"

/*
 * What is rare stays out of line: inlined, its loads and spills cost the usual path 3 operations
 * for 64 logits (gcc 12).
 */
#define RARE static __attribute__((noinline))

/* The keys [lo, hi) of the sequence as bits of the 64 keys from `first` on. */
INLINE uint64_t visible_bits(int32_t lo, int32_t hi, int32_t first)
{
    int32_t from = lo > first ? lo - first : 0;
    int32_t to = hi - first < SUBTILE ? hi - first : SUBTILE;
    if (from >= to) return 0;
    return (~UINT64_C(0) >> (64 - (to - from))) << from;
}

/* Are there keys of this subtile that some row of the group does not see? */
INLINE bool is_masked(const task *t, const group_range *range, int subtile)
{
    const int32_t first = t->first + subtile * SUBTILE, keys = t->args->seqlen_kv;
    const int32_t last = first + SUBTILE < keys ? first + SUBTILE : keys;
    return range->common_lo > first || range->common_hi < last;
}

/* x[] of 16 keys and a group's rows: from q.k to y. */
INLINE void cap_logits(const task *t, const block_state *block, int first_row, __m512 u,
                       __m512 x[ROWS])
{
    const __m512 units = _mm512_set1_ps(t->cap.units);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
        x[r] = _mm512_fmadd_ps(x[r], _mm512_set1_ps(block->a[first_row + r]),
                               _mm512_set1_ps(block->bias[first_row + r]));
    for (int r = 0; r < ROWS; r += ROWS / 2)
        tanh_of(x + r, ROWS / 2, t->cap.argument);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
        x[r] = _mm512_fnmadd_ps(x[r], units, u);
}

/* x[] += ALiBi's slope times the distance of 16 keys, from `key` of the sequence on. */
INLINE void bias_logits(const task *t, int32_t row, int32_t key, __m512 x[ROWS])
{
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const int64_t diagonal = (int64_t)t->args->q_begin + row + t->args->shift - key;
    const __m512 slope = _mm512_set1_ps(t->slope);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) {
        const __m512i from = _mm512_set1_epi32((int32_t)(diagonal + r));
        const __m512i distance = _mm512_abs_epi32(_mm512_sub_epi32(from, lanes));
        x[r] = _mm512_fmadd_ps(slope, _mm512_cvtepu32_ps(distance), x[r]);
    }
}

/*
 * y of 64 keys and a group's rows from the sums of multiply, in place; +inf for keys not seen.
 * `values`: with V's scales.
 */
RARE void make_exact_logits(const task *t, const block_state *block, int g, int subtile,
                            bool values, float y[ROWS][SUBTILE])
{
    const tile_columns *columns = &t->columns[subtile];
    const int32_t first = t->first + subtile * SUBTILE;
    const int first_row = g * ROWS;
    uint64_t visible[ROWS];
    for (int r = 0; r < ROWS; r++)
        visible[r] = visible_bits(block->lo[first_row + r], block->hi[first_row + r], first);
    for (int at = 0; at < SUBTILE; at += 16) {
        const __m512 k = _mm512_load_ps(columns->k + at);
        const __m512 magic = _mm512_load_ps(columns->k_magic + at);
        const __m512 u =
            values ? _mm512_load_ps(columns->u + at) : _mm512_set1_ps(HR_INTEGER_OFFSET);
        __m512 x[ROWS];
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            const __m512 sum = _mm512_load_ps(y[r] + at);
            x[r] = t->k_groups ? sum : _mm512_fmadd_ps(sum, k, magic);
        }
        if (t->args->softcap != 0)
            cap_logits(t, block, first_row, u, x);
        else
            for (int r = 0; r < ROWS; r++)
                x[r] = _mm512_fnmadd_ps(x[r], _mm512_set1_ps(block->a[first_row + r]), u);
        if (t->slope != 0)
            bias_logits(t, (int32_t)(block - t->block) * BLOCK + first_row, first + at, x);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            const __mmask16 seen = (__mmask16)(visible[r] >> at);
            _mm512_store_ps(y[r] + at, _mm512_mask_mov_ps(_mm512_set1_ps(INFINITY), seen, x[r]));
        }
    }
}

/* round16 of y - n for 32 keys, packed as micro_qk_logits does. */
INLINE __m512i round_logits(const float *y, __m512 n)
{
    return pack_logits(_mm512_load_ps(y), _mm512_load_ps(y + 16), n);
}

/*
 * The sums of a group's rows with 64 keys, as the bits of int32; where K's scales are in groups of
 * channels, x of step 3.
 */
INLINE void multiply(const task *t, const passage *w, int g, int subtile, float *x)
{
    const int64_t quads = t->head_dim / 4;
    const int32_t *q = t->q + (w->first_row + g * ROWS) * quads;
    const uint8_t *k = t->codes.k + (int64_t)subtile * SUBTILE * t->head_dim;
    if (t->k_groups == 0) {
        micro_qk(q, k, quads, w->block->init + g * ROWS, x);
        return;
    }
    const int64_t width = quads / t->k_groups;
    for (int32_t i = 0; i < t->k_groups; i++, q += width * ROWS, k += width * SUBTILE * 4) {
        const int32_t *init = w->block->group_init[i] + g * ROWS;
        const float *scale = t->groups.k[i] + subtile * SUBTILE;
        if (i == 0)
            micro_qk_group_first(q, k, width, init, scale, x);
        else
            micro_qk_group_next(q, k, width, init, scale, x);
    }
}

/* Logits of a group and the tile in FP32, made from the codes. */
RARE void make_exact_tile(task *t, const passage *w, int g, bool values)
{
    for (int s = w->begin[g]; s < w->end[g]; s++) {
        multiply(t, w, g, s, t->exact[s][0]);
        make_exact_logits(t, w->block, g, s, values, t->exact[s]);
    }
}

/* Step 3 for a block: y, and the least by lanes. */
RARE void make_exact_scores(task *t, const passage *w)
{
    for (int g = 0; g < GROUPS; g++) {
        if (w->begin[g] >= w->end[g]) continue;
        make_exact_tile(t, w, g, true);
        for (int r = 0; r < ROWS; r++) {
            __m512i least = _mm512_set1_epi16(-1);
            for (int s = w->begin[g]; s < w->end[g]; s++)
                for (int at = 0; at < SUBTILE; at += 32) {
                    const __m512i y = round_logits(t->exact[s][r] + at, _mm512_setzero_ps());
                    _mm512_store_si512(t->y[g][s][r] + at, y);
                    least = _mm512_min_epu16(least, y);
                }
            _mm512_store_si512(t->lanes[g * ROWS + r], least);
        }
    }
}

#endif
