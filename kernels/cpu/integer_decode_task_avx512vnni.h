/*
 * How rows enter and leave a task of the integer decode kernels on AVX-512 VNNI, whatever the
 * layout of K and V: the constants of step 2, the keys that rows see of a range and of a tile.
 */
#ifndef HEADROOM_INTEGER_DECODE_TASK_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_TASK_AVX512VNNI_H

#include "integer_decode_state_avx512vnni.h"

/* Q's bytes of a row, and O's elements: no kind of codes fills more. */
static inline size_t row_room(int32_t head_dim)
{
    return ((size_t)head_dim + 127) / 128 * 128;
}

/* Head and query of a row: rows of one head lie side by side. */
static const hr_kernel_args *args_of(const decode_state *s, int32_t row, int32_t *query)
{
    const int32_t queries = s->args->q_end - s->args->q_begin;
    *query = s->args->q_begin + row % queries;
    return s->args + row / queries;
}

/* What smoothing took from a row's logits. */
static double row_bias(const hr_kernel_args *args, int32_t query)
{
    return args->lse_bias ? (double)args->lse_bias[query] * (double)args->softmax_scale : 0;
}

/* What a row's logits are made with, but its codes. */
static void begin_row(decode_state *s, int32_t row)
{
    int32_t query;
    const hr_kernel_args *args = args_of(s, row, &query);
    s->factor[row] = hr_integer_row_factor(args, query);
    s->bias[row] = (float)row_bias(args, query);
    s->slope[row] = (float)((double)args->alibi_slope * HR_INTEGER_LOG2E) * HR_INTEGER_OCTAVE;
    s->diagonal[row] = (int64_t)query + args->shift;
    s->shaped |= args->softcap != 0 || s->slope[row] != 0;
}

/* A row's l. */
static __m512 lanes_of_row(decode_state *s, int32_t row)
{
    if (s->few) return _mm512_load_ps(row_l(s, row));
    ALIGNED float l[HR_INTEGER_LANES];
    for (int32_t i = 0; i < HR_INTEGER_LANES; i++)
        l[i] = s->set[row / SET_ROWS].l[i / 4 * 16 + row % SET_ROWS * 4 + i % 4];
    return _mm512_load_ps(l);
}

/* The keys of a range that rows see, and its first tile. */
static void enter_range(decode_state *s, const hr_kernel_range *range)
{
    for (int32_t row = 0; row < s->rows; row++) {
        int32_t query;
        const hr_kernel_args *args = args_of(s, row, &query);
        hr_kernel_row_range(args, range, query, &s->lo[row], &s->hi[row]);
    }
    s->first = range->begin / DECODE_TILE * DECODE_TILE;
}

/* The range's part of the tile at s->first. */
static void enter_tile(decode_state *s, const hr_kernel_range *range)
{
    const int32_t left = s->args->seqlen_kv - s->first, end = range->end - s->first;
    s->count = left < DECODE_TILE ? left : DECODE_TILE;
    s->from = range->begin > s->first ? (range->begin - s->first) / 64 * 64 : 0;
    s->to = end < DECODE_TILE ? (end + 63) / 64 * 64 : DECODE_TILE;
    s->end = s->count < s->to ? s->count : s->to;
}

/* Rows that have seen nothing. */
static void clear_rows(decode_state *s)
{
    const int32_t padded = (s->rows + 15) / 16 * 16;
    memset(s->o, 0, (size_t)(padded * s->vectors) * sizeof(__m512i));
    for (int32_t row = 0; row < padded; row++) {
        memset(s->set[row / SET_ROWS].l, 0, sizeof s->set->l);
        s->m[row] = s->largest[row] = -INFINITY;
        s->e[row] = HR_INTEGER_NO_TILE;
        s->a[row] = 0;
        s->lo[row] = s->hi[row] = 0;
    }
    s->shaped = false;
    s->half = s->args->isa_mask >> HR_ISA_AVX512FP16 & 1;
    s->cap = hr_integer_cap_of(s->args->softcap);
    s->walk.found = -1;
    s->exponents.f = INT32_MIN; /* no tile's F */
}

#endif
