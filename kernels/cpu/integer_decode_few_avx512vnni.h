/*
 * One or two rows in integer_decode_avx512vnni.h: K is multiplied as it lies, a sum of a key in
 * each vector, and V straight from the registers it was rearranged in. Each row's x, y, P and l
 * have their keys side by side. The limit is memory.
 */
#ifndef HEADROOM_INTEGER_DECODE_FEW_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_FEW_AVX512VNNI_H

#include "integer_decode_state_avx512vnni.h"

INLINE float *few_x(decode_state *s, int32_t row)
{
    return s->set->x + row * X_STRIDE;
}

INLINE uint16_t *few_y(decode_state *s, int32_t row)
{
    return s->set->y + row * DECODE_TILE;
}

INLINE uint8_t *few_p(decode_state *s, int32_t row)
{
    return s->set->p[0] + row * DECODE_TILE;
}

INLINE float *few_l(decode_state *s, int32_t row)
{
    return s->set->l + row * HR_INTEGER_LANES;
}

/* a's lanes 0 and 2 and b's, each with the lane after it added. */
INLINE __m512i add_lanes(__m512i a, __m512i b)
{
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

/*
 * S of keys [key, key + 16) for one or two rows. rows is a constant. A vector holds a part of one
 * key or, where rows of K fill half of one, keys j and j + 4.
 */
INLINE void score_keys(decode_state *s, const code_rows *k, const code_rows *v, int rows,
                       int32_t key, code_kind kinds)
{
    const code_kind kind = kind_of_k(kinds);
    const int planes = kind == CODES_BYTES ? 1 : 2, keys = k->paired ? 2 : 1;
    const int32_t vectors = k->parts * planes;
    const __m512i *q = (const __m512i *)s->q;
    __m512i sum[2][4];
#pragma GCC unroll 4
    for (int g = 0; g < 4 / keys; g++) {
        __m512i dwords[2][4];
        const int32_t first = key + 4 * keys * g;
        for (int i = 0; i < keys; i++) {
            prefetch_share(&s->walk.ahead, k, v, s->step_cost);
            prefetch_near(k, s->walk.tile, first + 4 * i, v, s->walk.tile);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const __m512i zero = row_zeros(k, s->k_zero + first + i, kind);
#pragma GCC unroll 2
            for (int r = 0; r < rows; r++)
                dwords[r][i] = _mm512_setzero_si512();
            for (int32_t part = 0; part < k->parts; part++) {
                __m512i codes[2];
                expand_codes(k, load_codes(k, s->walk.tile->at + first + i, part), kind, 128, zero,
                             codes);
#pragma GCC unroll 2
                for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                    for (int plane = 0; plane < planes; plane++)
                        add_products(&dwords[r][i], codes[plane],
                                     q[r * vectors + part * planes + plane]);
            }
        }
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++)
            sum[r][g] = sum_dwords(dwords[r]);
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++) {
        __m512i total = add_lanes(sum[r][0], sum[r][1]);
        if (!k->paired) total = add_lanes(total, add_lanes(sum[r][2], sum[r][3]));
        total = _mm512_add_epi32(total, _mm512_set1_epi32(s->init[r]));
        _mm512_store_ps(few_x(s, r) + key, _mm512_castsi512_ps(total));
    }
}

/* Step 3 but N for one or two rows: their least Y to n. rows and masked are constants. */
INLINE void few_logits(decode_state *s, const code_rows *k, const code_rows *v, int rows,
                       bool masked, __m512i *n)
{
    const uint32_t from = masked ? (uint32_t)s->from : 0;
    const uint32_t to = masked ? (uint32_t)s->to : DECODE_TILE;
    __m512i least[2];
    __m512 a[2];
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++) {
        least[r] = _mm512_set1_epi16(-1);
        a[r] = _mm512_set1_ps(s->a[r]);
    }
    for (uint32_t j = from; j < to; j += 32) {
        prefetch_share(&s->walk.ahead, k, v, SOFTMAX_COST / 16 * rows);
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) {
            __m512i y = round_logits(s, r, j, a[r], _mm512_setzero_ps(), masked, false);
            least[r] = _mm512_min_epu16(least[r], y);
            _mm512_store_si512(few_y(s, r) + j, y);
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
        *n = _mm512_mask_broadcastd_epi32(*n, (__mmask16)(1 << r), least_word(least[r]));
}

/*
 * Step 4: P in 4 blocks of 64 keys, dword 4 L + i of a block its keys 16 i + 4 L. Keys that are not
 * seen are 65535 in y and have no weight. All but s are constants.
 */
INLINE void few_weights(decode_state *s, const code_rows *k, const code_rows *v, int rows,
                        bool wide, bool half)
{
    const weight_constants c = load_weight_constants();
    __m512i sum[2], rest[2], top[2];
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++) {
        top[r] = _mm512_set1_epi16((int16_t)(HR_INTEGER_TOP + s->least[r]));
        sum[r] = rest[r] = _mm512_setzero_si512();
    }
    for (uint32_t j = (uint32_t)s->from; j < (uint32_t)s->to; j += 64) {
        const tile_columns *columns = &s->columns[j / HR_MICRO_COLUMNS];
        __m512i e[4];
        prefetch_share(&s->walk.ahead, k, v, SOFTMAX_COST / 8 * rows);
#pragma GCC unroll 4
        for (int i = 0; i < 2 * rows; i++)
            e[i] = _mm512_subs_epu16(top[i / 2],
                                     _mm512_load_si512(few_y(s, i / 2) + j + (uint32_t)i % 2 * 32));
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
                _mm512_store_si512(few_y(s, i / 2) + j + (uint32_t)i % 2 * 32, e[i]);
            continue;
        }
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++)
            _mm512_store_si512(few_p(s, r) + j, pack_weights(e[2 * r], e[2 * r + 1], &c));
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++) {
        __m512 total = wide ? join_sums(sum[r], rest[r]) : _mm512_cvtepi32_ps(sum[r]);
        __m512 factor = _mm512_set1_ps(s->beta[r]);
        if (!s->exponents.even && !wide && s->largest[r] > -INFINITY)
            total = sum_uneven_row(s, r, &factor);
        const __m512 old = _mm512_mul_ps(_mm512_load_ps(few_l(s, r)), _mm512_set1_ps(s->alpha[r]));
        _mm512_store_ps(few_l(s, r), _mm512_fmadd_ps(total, factor, old));
    }
}

/* Steps 3, 4 and 6 but O. rows is a constant. */
INLINE void few_softmax(decode_state *s, const code_rows *k, const code_rows *v, int rows)
{
    __m512i n = _mm512_setzero_si512();
    if (s->shaped)
        for (int32_t row = 0; row < rows; row++)
            shape_row(s, row, &n);
    else if (sees_all(s))
        few_logits(s, k, v, rows, false, &n);
    else
        few_logits(s, k, v, rows, true, &n);
    finish_logits(s, 0, n);
    join_rows(s);
    if (!s->half)
        few_weights(s, k, v, rows, s->exponents.wide, false);
    else if (s->exponents.wide)
        few_weights(s, k, v, rows, true, true);
    else
        few_weights(s, k, v, rows, false, true);
}

static __attribute__((noinline)) void softmax_of_one(decode_state *s, const code_rows *k,
                                                     const code_rows *v)
{
    few_softmax(s, k, v, 1);
}

static __attribute__((noinline)) void softmax_of_two(decode_state *s, const code_rows *k,
                                                     const code_rows *v)
{
    few_softmax(s, k, v, 2);
}

/* The weights of four keys from `key` on. */
INLINE int32_t four_weights(decode_state *s, int32_t row, int32_t key)
{
    const uint32_t at = (uint32_t)key;
    int32_t weights;
    memcpy(&weights, few_p(s, row) + at / 64 * 64 + at % 16 / 4 * 16 + at % 64 / 16 * 4,
           sizeof weights);
    return weights;
}

/*
 * Steps 5 and 6 for one or two rows and the parts [part, part + parts). rows and parts are
 * constants; eight sums a row. Vectors hold four keys or, where rows of V fill half of one, eight.
 */
INLINE void sum_values(decode_state *s, const code_rows *k, const code_rows *v, int rows,
                       int32_t part, int parts, code_kind kinds)
{
    const code_kind kind = kind_of_v(kinds);
    const int vectors = kind == CODES_BYTES ? 4 : 8, keys = v->paired ? 8 : 4;
    __m512i sum[2][2][8];
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int p = 0; p < parts; p++)
#pragma GCC unroll 8
            for (int i = 0; i < vectors; i++)
                sum[r][p][i] = _mm512_setzero_si512();
    for (int32_t key = s->from; key < s->end; key += keys) {
        const int64_t *at_key = s->walk.tile->at + key;
        const __m512i zero = value_zeros(v, s->v_zero + key, s->v_zero + key + 4, kind);
        for (int i = 0; i < keys && part == 0; i += 4) {
            prefetch_share(&s->walk.ahead, k, v, s->step_cost);
            prefetch_near(v, s->walk.tile, key + i, k, s->walk.ahead.next);
        }
#pragma GCC unroll 2
        for (int p = 0; p < parts; p++) {
            __m512i codes[8];
            value_vectors(v, at_key, at_key + 4, part + p, 0, 4, kind, zero, codes);
#pragma GCC unroll 2
            for (int r = 0; r < rows; r++) {
                __m512i weights = _mm512_set1_epi32(four_weights(s, r, key));
                if (v->paired)
                    weights = _mm512_mask_set1_epi32(weights, 0xff00, four_weights(s, r, key + 4));
#pragma GCC unroll 8
                for (int i = 0; i < vectors; i++)
                    add_products(&sum[r][p][i], weights, codes[i]);
            }
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int p = 0; p < parts; p++)
#pragma GCC unroll 8
            for (int i = 0; i < vectors; i += v->paired ? 2 : 1)
                add_output(s, r, ((part + p) * vectors + i) / (v->paired ? 2 : 1),
                           v->paired ? add_halves(sum[r][p][i], sum[r][p][i + 1]) : sum[r][p][i]);
}

/* Step 3's S. rows is a constant. */
INLINE void score_few(decode_state *s, const code_rows *k, const code_rows *v, int rows,
                      code_kind kind)
{
    for (int32_t key = s->from; key < s->end; key += KEY_STEP)
        score_keys(s, k, v, rows, key, kind);
}

/* Steps 5 and 6's O. rows is a constant. */
INLINE void value_few(decode_state *s, const code_rows *k, const code_rows *v, int rows,
                      code_kind kind)
{
    int32_t part = 0;
    for (; kind_of_v(kind) == CODES_BYTES && part + 2 <= v->parts; part += 2)
        sum_values(s, k, v, rows, part, 2, kind);
    for (; part < v->parts; part++)
        sum_values(s, k, v, rows, part, 1, kind);
}

#endif
