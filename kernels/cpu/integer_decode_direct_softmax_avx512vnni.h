/*
 * Steps 3, 4 and 6 but O of integer_softmax.h for the usual tile: all rows see all of it, its
 * scales are even, logits are not shaped, P is U8 and the CPU has AVX512-FP16. Rows have their keys
 * side by side, as in integer_decode_pair_softmax_avx512vnni.h, which does all other tiles; here
 * four rows share what is loaded of the columns, and no key is masked.
 */
#ifndef HEADROOM_INTEGER_DECODE_DIRECT_SOFTMAX_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_DIRECT_SOFTMAX_AVX512VNNI_H

#include "integer_decode_state_avx512vnni.h"

/* Whether the tile is such a one. */
static bool is_direct(const decode_state *s)
{
    return s->half && s->exponents.even && !s->shaped && !s->precise && sees_all(s);
}

/*
 * Step 3 but N for `rows` rows that see the whole tile, side by side. Rows whose y may leave int32
 * have a >= 64, for which finish_logits makes them again.
 */
INLINE void direct_logits(decode_state *s, int32_t first, int rows, __m512i *n)
{
    __m512i least[SET_ROWS];
    __m512 a[SET_ROWS];
    UNROLL
    for (int r = 0; r < rows; r++) {
        least[r] = _mm512_set1_epi16(-1);
        a[r] = _mm512_set1_ps(s->a[first + r]);
    }
    const float *x = row_x(s, first);
    uint16_t *out = row_y(s, first);
    for (const tile_columns *c = s->columns; c < s->columns + DECODE_TILE / HR_MICRO_COLUMNS; c++)
        for (int half = 0; half < 2; half++, x += 32, out += 32) {
            __m512 k[2], magic[2], u[2];
            prefetch_meanwhile(s, NULL, NULL, SOFTMAX_COST / 16 * rows);
            UNROLL
            for (int i = 0; i < 2; i++) {
                k[i] = _mm512_load_ps(c->k + 32 * half + 16 * i);
                magic[i] = _mm512_load_ps(c->k_magic + 32 * half + 16 * i);
                u[i] = _mm512_load_ps(c->u + 32 * half + 16 * i);
            }
            UNROLL
            for (int r = 0; r < rows; r++) {
                __m512i y[2];
                UNROLL
                for (int i = 0; i < 2; i++) {
                    const __m512 sum = _mm512_load_ps(x + r * DECODE_TILE + 16 * i);
                    const __m512 product = _mm512_fmadd_ps(sum, k[i], magic[i]);
                    y[i] = _mm512_cvtps_epi32(_mm512_fnmadd_ps(product, a[r], u[i]));
                }
                const __m512i words = _mm512_packus_epi32(y[0], y[1]);
                least[r] = _mm512_min_epu16(least[r], words);
                _mm512_store_si512(out + r * DECODE_TILE, words);
            }
        }
    UNROLL
    for (int r = 0; r < rows; r++)
        *n = _mm512_mask_broadcastd_epi32(*n, (__mmask16)(1 << (first + r) % 16),
                                          least_word(least[r]));
}

/* Step 4 for `rows` rows, at most two, in an even tile that they see whole. */
INLINE void direct_weights(decode_state *s, int32_t first, int rows)
{
    const weight_constants c = load_weight_constants();
    __m512i sum[2], top[2];
    UNROLL
    for (int r = 0; r < rows; r++) {
        top[r] = _mm512_set1_epi16((int16_t)(HR_INTEGER_TOP + s->least[first + r]));
        sum[r] = _mm512_setzero_si512();
    }
    const uint16_t *y = row_y(s, first);
    uint8_t *p = row_p(s, first, 0);
    const tile_columns *columns = s->columns;
    for (int32_t j = 0; j < DECODE_TILE; j += 64, y += 64, p += 64, columns++) {
        __m512i e[4];
        prefetch_meanwhile(s, NULL, NULL, SOFTMAX_COST / 8 * rows);
        UNROLL
        for (int i = 0; i < 2 * rows; i++)
            e[i] = _mm512_subs_epu16(top[i / 2],
                                     _mm512_load_si512(y + i / 2 * DECODE_TILE + i % 2 * 32));
        weights_of(e, 2 * rows, &c, true);
        UNROLL
        for (int i = 0; i < 2 * rows; i++)
            add_weights(&sum[i / 2], e[i], _mm512_load_si512(columns->sum + i % 2 * 32));
        UNROLL
        for (int r = 0; r < rows; r++)
            _mm512_store_si512(p + r * DECODE_TILE, pack_weights(e[2 * r], e[2 * r + 1], &c));
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        float *l = row_l(s, first + r);
        const __m512 old = _mm512_mul_ps(_mm512_load_ps(l), _mm512_set1_ps(s->alpha[first + r]));
        _mm512_store_ps(l, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]),
                                           _mm512_set1_ps(s->beta[first + r]), old));
    }
}

/* All steps. */
static __attribute__((noinline)) void direct_update(decode_state *s)
{
    __m512i n = _mm512_setzero_si512();
    for (int32_t row = 0, done; row < s->rows; row += done) {
        done = s->rows - row >= SET_ROWS ? SET_ROWS : s->rows - row >= 2 ? 2 : 1;
        if (done == SET_ROWS)
            direct_logits(s, row, SET_ROWS, &n);
        else if (done == 2)
            direct_logits(s, row, 2, &n);
        else
            direct_logits(s, row, 1, &n);
        if (row + done >= s->rows || (row + done) % 16 == 0) finish_logits(s, row / 16 * 16, n);
    }
    join_rows(s);
    for (int32_t row = 0; row < s->rows; row += 2)
        if (s->rows - row == 1)
            direct_weights(s, row, 1);
        else
            direct_weights(s, row, 2);
}

#endif
