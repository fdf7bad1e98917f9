/*
 * Steps 3, 4 and 6 but O of integer_softmax.h for one or two rows at a time whose keys lie side by
 * side (row_x, row_y, row_p): vectors of 32 or 64 keys of a row.
 */
#ifndef HEADROOM_INTEGER_DECODE_PAIR_SOFTMAX_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_PAIR_SOFTMAX_AVX512VNNI_H

#include "integer_decode_state_avx512vnni.h"

/* round16 of 32 keys' y where none is infinite; those of a >= 64 are made anew. */
INLINE __m512i pack_direct(__m512 low, __m512 high)
{
    return _mm512_packus_epi32(_mm512_cvtps_epi32(low), _mm512_cvtps_epi32(high));
}

/*
 * Step 3 but N for one or two rows from `first` on: their least Y to their lanes of n. rows and
 * masked are constants.
 */
INLINE void pair_logits(decode_state *s, const code_rows *k, const code_rows *v, int32_t first,
                        int rows, bool masked, __m512i *n)
{
    const uint32_t from = masked ? (uint32_t)s->from : 0;
    const uint32_t to = masked ? (uint32_t)s->to : DECODE_TILE;
    __m512i least[2];
    __m512 a[2];
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++) {
        least[r] = _mm512_set1_epi16(-1);
        a[r] = _mm512_set1_ps(s->a[first + r]);
    }
    for (uint32_t j = from; j < to; j += 32) {
        prefetch_meanwhile(s, k, v, SOFTMAX_COST / 16 * rows);
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) {
            const __m512i y =
                masked ? round_logits(s, first + r, j, a[r], _mm512_setzero_ps(), true, false)
                       : pack_direct(logits_of(s, first + r, j, a[r], true, false, false),
                                     logits_of(s, first + r, j + 16, a[r], true, false, false));
            least[r] = _mm512_min_epu16(least[r], y);
            _mm512_store_si512(row_y(s, first + r) + j, y);
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
        *n = _mm512_mask_broadcastd_epi32(*n, (__mmask16)(1 << (first + r) % 16),
                                          least_word(least[r]));
}

/*
 * Step 4: P in 4 blocks of 64 keys, dword 4 L + i of a block its keys 16 i + 4 L. Keys that are not
 * seen are 65535 in y and have no weight. All but s and first are constants.
 */
INLINE void pair_weights(decode_state *s, const code_rows *k, const code_rows *v, int32_t first,
                         int rows, bool wide, bool half, bool precise)
{
    const weight_constants c = load_weight_constants();
    __m512i sum[2], rest[2], top[2];
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++) {
        top[r] = _mm512_set1_epi16((int16_t)(HR_INTEGER_TOP + s->least[first + r]));
        sum[r] = rest[r] = _mm512_setzero_si512();
    }
    for (uint32_t j = (uint32_t)s->from; j < (uint32_t)s->to; j += 64) {
        const tile_columns *columns = &s->columns[j / HR_MICRO_COLUMNS];
        __m512i e[4];
        prefetch_meanwhile(s, k, v, SOFTMAX_COST / 8 * rows);
#pragma GCC unroll 4
        for (int i = 0; i < 2 * rows; i++)
            e[i] = _mm512_subs_epu16(
                top[i / 2], _mm512_load_si512(row_y(s, first + i / 2) + j + (uint32_t)i % 2 * 32));
        weights_of(e, 2 * rows, &c, half);
#pragma GCC unroll 4
        for (int i = 0; i < 2 * rows; i++) {
            const int at = i % 2 * 32;
            add_weights(&sum[i / 2], e[i], _mm512_load_si512(columns->sum + at));
            if (wide) add_weights(&rest[i / 2], e[i], _mm512_load_si512(columns->rest + at));
        }
        if (s->grouped) {
#pragma GCC unroll 4
            for (int i = 0; i < 2 * rows; i++)
                _mm512_store_si512(row_y(s, first + i / 2) + j + (uint32_t)i % 2 * 32, e[i]);
            continue;
        }
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) {
            __m512i p[2];
            if (precise) {
                pack_precise_weights(e[2 * r], e[2 * r + 1], p);
                _mm512_store_si512(row_p(s, first + r, 1) + j, p[1]);
            } else {
                p[0] = pack_weights(e[2 * r], e[2 * r + 1], &c);
            }
            _mm512_store_si512(row_p(s, first + r, 0) + j, p[0]);
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++) {
        const int32_t row = first + r;
        __m512 total = wide ? join_sums(sum[r], rest[r]) : _mm512_cvtepi32_ps(sum[r]);
        __m512 factor = _mm512_set1_ps(s->beta[row]);
        if (!s->exponents.even && !wide && s->largest[row] > -INFINITY)
            total = sum_uneven_row(s, row, &factor);
        const __m512 old =
            _mm512_mul_ps(_mm512_load_ps(row_l(s, row)), _mm512_set1_ps(s->alpha[row]));
        _mm512_store_ps(row_l(s, row), _mm512_fmadd_ps(total, factor, old));
    }
}

/* Step 4 for one or two rows; rows and precise are constants. */
INLINE void weigh_pair(decode_state *s, const code_rows *k, const code_rows *v, int32_t first,
                       int rows, bool precise)
{
    if (!s->half)
        pair_weights(s, k, v, first, rows, s->exponents.wide, false, precise);
    else if (s->exponents.wide)
        pair_weights(s, k, v, first, rows, true, true, precise);
    else
        pair_weights(s, k, v, first, rows, false, true, precise);
}

/* All steps where there are no more than one or two rows; rows is a constant. */
INLINE void few_softmax(decode_state *s, const code_rows *k, const code_rows *v, int rows)
{
    __m512i n = _mm512_setzero_si512();
    if (s->shaped)
        for (int32_t row = 0; row < rows; row++)
            shape_row(s, row, &n);
    else if (sees_all(s))
        pair_logits(s, k, v, 0, rows, false, &n);
    else
        pair_logits(s, k, v, 0, rows, true, &n);
    finish_logits(s, 0, n);
    join_rows(s);
    weigh_pair(s, k, v, 0, rows, false);
}

#endif
