/*
 * Steps 3, 4 and 6 of integer_softmax.h for sets of four rows, a lane each, one or two sets side by
 * side. Columns of a tile are read four keys at a time to all lanes, a row's constants lie in its
 * lane, and minima and sums need no step across lanes before the end of the tile. What lies where
 * is in integer_decode_state_avx512vnni.h.
 */
#ifndef HEADROOM_INTEGER_DECODE_SOFTMAX_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_SOFTMAX_AVX512VNNI_H

#include "integer_decode_state_avx512vnni.h"

/* One dword for each of four rows, to all of the row's lane. */
INLINE __m512i lanes_of(const void *rows)
{
    const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i four = _mm512_castsi128_si512(_mm_load_si128((const __m128i *)rows));
    return _mm512_permutexvar_epi32(lane, four);
}

INLINE __m512 float_lanes(const float *rows)
{
    return _mm512_castsi512_ps(lanes_of(rows));
}

/* Four numbers of consecutive keys, to all lanes. */
INLINE __m512 columns_at(const float *column)
{
    return _mm512_broadcast_f32x4(_mm_load_ps(column));
}

INLINE __m512i weights_at(const int16_t *column)
{
    return _mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)column));
}

/* y of four keys from `key` on of a set's rows, whose a and limits of visible keys are in lanes. */
INLINE __m512 set_logits(const decode_state *s, const row_set *set, uint32_t key, __m512 a,
                         bool masked, __m512i lo, __m512i hi)
{
    const tile_columns *c = &s->columns[key / HR_MICRO_COLUMNS];
    const uint32_t at = key % HR_MICRO_COLUMNS;
    __m512 y = _mm512_fmadd_ps(_mm512_load_ps(set->x + key * SET_ROWS), columns_at(c->k + at),
                               columns_at(c->k_magic + at));
    y = _mm512_fnmadd_ps(y, a, columns_at(c->u + at));
    if (!masked) return y;
    const __m512i keys =
        _mm512_add_epi32(_mm512_set1_epi32((int32_t)key),
                         _mm512_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3));
    const __mmask16 seen =
        _mm512_mask_cmplt_epi32_mask(_mm512_cmpge_epi32_mask(keys, lo), keys, hi);
    return _mm512_mask_mov_ps(_mm512_set1_ps(INFINITY), seen, y);
}

/* The least word of each lane, in the low words of its dwords; above them something else. */
INLINE __m512i least_of_lanes(__m512i v)
{
    v = _mm512_min_epu16(v, _mm512_shuffle_epi32(v, 0x4e));
    v = _mm512_min_epu16(v, _mm512_shuffle_epi32(v, 0xb1));
    return _mm512_min_epu16(v, _mm512_srli_epi32(v, 16));
}

/* Step 3 for sets from `first` on: their rows' least Y to dwords of n. sets and masked: constants.
 */
INLINE void make_logits(decode_state *s, const code_rows *k, const code_rows *v, int32_t first,
                        int sets, bool masked, __m512i *n)
{
    const uint32_t from = masked ? (uint32_t)s->from : 0;
    const uint32_t to = masked ? (uint32_t)s->to : DECODE_TILE;
    row_set *set = s->set + first;
    __m512i least[2], lo[2], hi[2];
    __m512 a[2];
#pragma GCC unroll 2
    for (int i = 0; i < sets; i++) {
        const int32_t row = (first + i) * SET_ROWS;
        const __m512i origin = _mm512_set1_epi32(s->first);
        least[i] = _mm512_set1_epi16(-1);
        a[i] = float_lanes(s->a + row);
        lo[i] = masked ? _mm512_sub_epi32(lanes_of(s->lo + row), origin) : origin;
        hi[i] = masked ? _mm512_sub_epi32(lanes_of(s->hi + row), origin) : origin;
    }
    for (uint32_t key = from; key < to; key += 32) {
        prefetch_share(&s->walk.ahead, k, v, SOFTMAX_COST / 16 * SET_ROWS * sets);
#pragma GCC unroll 4
        for (uint32_t quad = 0; quad < 4; quad++)
#pragma GCC unroll 2
            for (int i = 0; i < sets; i++) {
                const uint32_t at = key + 4 * quad;
                const __m512i y =
                    pack_logits(set_logits(s, set + i, at, a[i], masked, lo[i], hi[i]),
                                set_logits(s, set + i, at + 16, a[i], masked, lo[i], hi[i]),
                                _mm512_setzero_ps());
                least[i] = _mm512_min_epu16(least[i], y);
                _mm512_store_si512(set[i].y + key * SET_ROWS + quad * 32, y);
            }
    }
#pragma GCC unroll 2
    for (int i = 0; i < sets; i++) {
        /* Dword 4 L of lane L is row L's: together in one lane, then to the set's lane of n. */
        const __m512i rows = _mm512_permutexvar_epi32(
            _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12),
            least_of_lanes(least[i]));
        *n = _mm512_mask_mov_epi32(*n, (__mmask16)(0xf << (first + i) % 4 * 4), rows);
    }
}

/* l of a set, row after row, when the tile is neither even nor wide. */
static void add_uneven(decode_state *s, int32_t set)
{
    for (int32_t lane = 0; lane < SET_ROWS; lane++) {
        const int32_t row = set * SET_ROWS + lane;
        __m512 factor = _mm512_set1_ps(s->beta[row]), total = _mm512_setzero_ps();
        if (row < s->rows && s->largest[row] > -INFINITY) total = sum_uneven_row(s, row, &factor);
        float *l = s->set[set].l + lane * 4;
#pragma GCC unroll 4
        for (int quad = 0; quad < 4; quad++, l += 16) {
            const __m128 old = _mm_mul_ps(_mm_load_ps(l), _mm_set1_ps(s->alpha[row]));
            _mm_store_ps(l, _mm_fmadd_ps(_mm512_castps512_ps128(total),
                                         _mm512_castps512_ps128(factor), old));
            total = _mm512_shuffle_f32x4(total, total, 0x39);
        }
    }
}

/* Step 4 for sets from `first` on. All but s and first are constants. */
INLINE void make_weights(decode_state *s, const code_rows *k, const code_rows *v, int32_t first,
                         int sets, bool wide, bool half)
{
    const weight_constants c = load_weight_constants();
    row_set *set = s->set + first;
    __m512i sum[2][4], rest[2][4], top[2];
#pragma GCC unroll 2
    for (int i = 0; i < sets; i++) {
        const __m512i least = lanes_of(s->least + (first + i) * SET_ROWS);
        const __m512i words = _mm512_or_si512(least, _mm512_slli_epi32(least, 16));
        top[i] = _mm512_add_epi16(words, _mm512_set1_epi16(HR_INTEGER_TOP));
#pragma GCC unroll 4
        for (int quad = 0; quad < 4; quad++)
            sum[i][quad] = rest[i][quad] = _mm512_setzero_si512();
    }
    for (uint32_t key = (uint32_t)s->from; key < (uint32_t)s->to; key += 64) {
        const tile_columns *columns = &s->columns[key / HR_MICRO_COLUMNS];
#pragma GCC unroll 4
        for (int quad = 0; quad < 4; quad++) {
            __m512i e[4];
            prefetch_share(&s->walk.ahead, k, v, SOFTMAX_COST / 32 * SET_ROWS * sets);
#pragma GCC unroll 4
            for (int i = 0; i < 2 * sets; i++)
                e[i] =
                    _mm512_subs_epu16(top[i / 2], _mm512_load_si512(set[i / 2].y + key * SET_ROWS +
                                                                    i % 2 * 128 + quad * 32));
            weights_of(e, 2 * sets, &c, half);
#pragma GCC unroll 4
            for (int i = 0; i < 2 * sets; i++) {
                const int at = i % 2 * 32 + quad * 8;
                add_weights(&sum[i / 2][quad], e[i], weights_at(columns->sum + at));
                if (wide) add_weights(&rest[i / 2][quad], e[i], weights_at(columns->rest + at));
            }
#pragma GCC unroll 2
            for (int i = 0; i < sets; i++) {
                const uint32_t at = key * SET_ROWS + (uint32_t)quad * 64;
                if (s->grouped) {
                    uint16_t *y = set[i].y + key * SET_ROWS + quad * 32;
                    _mm512_store_si512(y, e[2 * i]);
                    _mm512_store_si512(y + 128, e[2 * i + 1]);
                    continue;
                }
                if (!s->precise) {
                    _mm512_store_si512(set[i].p[0] + at, pack_weights(e[2 * i], e[2 * i + 1], &c));
                    continue;
                }
                __m512i p[2];
                pack_precise_weights(e[2 * i], e[2 * i + 1], p);
                _mm512_store_si512(set[i].p[0] + at, p[0]);
                _mm512_store_si512(set[i].p[1] + at, p[1]);
            }
        }
    }
#pragma GCC unroll 2
    for (int i = 0; i < sets; i++) {
        const int32_t row = (first + i) * SET_ROWS;
        if (!s->exponents.even && !wide) {
            add_uneven(s, first + i);
            continue;
        }
        const __m512 alpha = float_lanes(s->alpha + row), beta = float_lanes(s->beta + row);
#pragma GCC unroll 4
        for (int quad = 0; quad < 4; quad++) {
            float *l = set[i].l + quad * 16;
            const __m512 total =
                wide ? join_sums(sum[i][quad], rest[i][quad]) : _mm512_cvtepi32_ps(sum[i][quad]);
            _mm512_store_ps(l,
                            _mm512_fmadd_ps(total, beta, _mm512_mul_ps(_mm512_load_ps(l), alpha)));
        }
    }
}

/* Step 4 for one or two sets; sets is a constant. */
INLINE void weigh_sets(decode_state *s, const code_rows *k, const code_rows *v, int32_t first,
                       int sets)
{
    if (!s->half)
        make_weights(s, k, v, first, sets, s->exponents.wide, false);
    else if (s->exponents.wide)
        make_weights(s, k, v, first, sets, true, true);
    else
        make_weights(s, k, v, first, sets, false, true);
}

/* Steps 3, 4 and 6 but O. */
static void update_softmax(decode_state *s, const code_rows *k, const code_rows *v)
{
    const bool masked = !sees_all(s);
    const int32_t all = sets_of(s);
    __m512i n = _mm512_setzero_si512();
    for (int32_t set = 0, sets; set < all; set += sets) {
        sets = all - set >= 2 ? 2 : 1;
        if (s->shaped)
            for (int32_t r = set * SET_ROWS; r < (set + sets) * SET_ROWS && r < s->rows; r++)
                shape_row(s, r, &n);
        else if (masked)
            for (int32_t i = set; i < set + sets; i++)
                make_logits(s, k, v, i, 1, true, &n);
        else if (sets == 2)
            make_logits(s, k, v, set, 2, false, &n);
        else
            make_logits(s, k, v, set, 1, false, &n);
        if (set + sets == all || (set + sets) % 4 == 0)
            finish_logits(s, (set + sets - 1) / 4 * 16, n);
    }
    join_rows(s);
    for (int32_t set = 0, sets; set < all; set += sets) {
        sets = all - set >= 2 ? 2 : 1;
        if (sets == 2)
            weigh_sets(s, k, v, set, 2);
        else
            weigh_sets(s, k, v, set, 1);
    }
}

#endif
