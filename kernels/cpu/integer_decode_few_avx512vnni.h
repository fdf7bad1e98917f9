/*
 * One or two rows in integer_decode_avx512vnni.h: K is multiplied as it lies, a sum of a key in
 * each vector, and V straight from the registers it was rearranged in. Each row's x, y, P and l
 * have their keys side by side. The limit is memory.
 */
#ifndef HEADROOM_INTEGER_DECODE_FEW_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_FEW_AVX512VNNI_H

#include "integer_decode_pair_softmax_avx512vnni.h"

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
        _mm512_store_ps(row_x(s, r) + key, _mm512_castsi512_ps(total));
    }
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
    memcpy(&weights, row_p(s, row, 0) + at / 64 * 64 + at % 16 / 4 * 16 + at % 64 / 16 * 4,
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
