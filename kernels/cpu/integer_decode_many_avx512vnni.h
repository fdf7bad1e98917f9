/*
 * The products of three rows and more in integer_decode_avx512vnni.h, eight rows or four at a time:
 *
 *     S    16 keys' codes + 128 in the first-level cache as they lie; 16 bytes of a key, broadcast,
 *          times Q's same channels of four rows, and of four more: a sum of a key has the rows in
 *          its lanes, and K needs no transposing
 *     T    4 keys' values interleaved in registers, times P, for eight rows and a quarter or half
 *          of the vectors at a time: 16 sums, which stay in registers for the whole tile
 *
 * Broadcasts come with the load, one for two products, so that the two vector ports are left with
 * products, the two shuffles a vector of V, and nine operations for four rows and four keys of S.
 * (8 bytes of a key times eight rows need four of these less, but a load a product; loads then wait
 * for each other and for prefetches.)
 */
#ifndef HEADROOM_INTEGER_DECODE_MANY_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_MANY_AVX512VNNI_H

#include "integer_decode_softmax_avx512vnni.h"

/* Sets that are worked on together from `set` on. */
INLINE int sets_from(const decode_state *s, int32_t set)
{
    return s->rows - set * SET_ROWS > SET_ROWS ? 2 : 1;
}

/* Where in k_block key j of its 16 lies. */
INLINE int key_offset(const code_rows *k, int j)
{
    return k->paired ? (j / 8 * 4 + j % 4) * KEY_BYTES + j % 8 / 4 * (PART / 2) : j * KEY_BYTES;
}

/* Keys [key, key + 16) of the tile to k_block, code + 128: [key][part][plane]. */
INLINE void load_keys(decode_state *s, const code_rows *k, const code_rows *v, int32_t key,
                      code_kind kinds)
{
    const code_kind kind = kind_of_k(kinds);
    const int planes = kind == CODES_BYTES ? 1 : 2;
    prefetch_share(&s->walk.ahead, k, v, KEY_STEP * s->k_channels / PART * LOAD_COST);
    for (int j = 0; j < KEY_STEP; j += 4) {
        prefetch_near(k, s->walk.tile, key + j, v, s->walk.tile);
        if (k->paired && j % 8 != 0) continue;
#pragma GCC unroll 4
        for (int i = j; i < j + 4; i++) {
            const __m512i zero = row_zeros(k, s->k_zero + key + i, kind);
            uint8_t *out = s->k_block + key_offset(k, i);
            for (int32_t part = 0; part < k->parts; part++, out += planes * PART) {
                __m512i codes[2];
                expand_codes(k, load_codes(k, s->walk.tile->at + key + i, part), kind, 128, zero,
                             codes);
#pragma GCC unroll 2
                for (int plane = 0; plane < planes; plane++)
                    _mm512_store_si512(out + plane * PART, codes[plane]);
            }
        }
    }
}

/* x of keys [key, key + 16), which are in k_block, for one or two sets; sets is a constant. */
INLINE void score_sets(decode_state *s, const code_rows *k, const code_rows *v, int32_t first,
                       int sets, int32_t key, code_kind kinds)
{
    const int planes = kind_of_k(kinds) == CODES_BYTES ? 1 : 2, keys = KEY_STEP / sets;
    const int chunks = (k->paired ? PART / 2 : PART) / 16;
    const int32_t vectors = k->parts * planes * chunks; /* of Q of a set */
    const __m512i *q = (const __m512i *)(s->q + first * SET_ROWS * s->k_channels);
#pragma GCC unroll 1
    for (int from = 0; from < KEY_STEP; from += keys) {
        __m512i sum[2][KEY_STEP];
        UNROLL
        for (int i = 0; i < sets; i++) {
            UNROLL
            for (int j = 0; j < keys; j++)
                sum[i][j] = s->start[first + i];
        }
        for (int32_t part = 0; part < k->parts * planes; part++) {
            prefetch_share(&s->walk.ahead, k, v, chunks * SUMS_COST);
            for (int chunk = 0; chunk < chunks; chunk++) {
                const uint8_t *codes = s->k_block + part * PART + chunk * 16;
                __m512i query[2];
                UNROLL
                for (int i = 0; i < sets; i++)
                    query[i] = _mm512_load_si512(q + i * vectors + part * chunks + chunk);
                UNROLL
                for (int j = 0; j < keys; j++) {
                    const __m512i sixteen = _mm512_broadcast_i32x4(
                        _mm_load_si128((const __m128i *)(codes + key_offset(k, from + j))));
                    UNROLL
                    for (int i = 0; i < sets; i++)
                        add_products(&sum[i][j], sixteen, query[i]);
                }
            }
        }
        UNROLL
        for (int i = 0; i < sets; i++) {
            UNROLL
            for (int32_t j = 0; j < keys; j += 4)
                _mm512_store_si512(s->set[first + i].x + (key + from + j) * SET_ROWS,
                                   sum_dwords(sum[i] + j));
        }
    }
}

/* One row's weights of four keys at p, or of eight in pair_weights, as vectors of values take them.
 */
INLINE __m512i spread_weights(const decode_state *s, const code_rows *v, const uint8_t *const p[2],
                              int row, int32_t pair)
{
    if (v->paired) return _mm512_load_si512(&s->pair_weights[row][pair]);
    int32_t four;
    memcpy(&four, p[row / SET_ROWS] + row % SET_ROWS * 16, sizeof four);
    return _mm512_set1_epi32(four);
}

/*
 * P of a set, at p, to pair_weights, [32 keys][quad q]: keys 4 q .. in the lower half, 16 + 4 q ..
 * in the upper.
 */
INLINE void pair_set(decode_state *s, const uint8_t *p, int32_t row)
{
    const __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    for (int32_t i = s->from / 16; i < s->to / 16; i++) {
        const __m512i weights = _mm512_load_si512(p + i * PART);
#pragma GCC unroll 4
        for (int32_t lane = 0; lane < SET_ROWS; lane++)
#pragma GCC unroll 2
            for (int32_t two = 0; two < 2; two++) {
                const __m512i at = _mm512_add_epi32(half, _mm512_set1_epi32(4 * lane + 2 * two));
                s->pair_weights[row + lane][i / 4 * 8 + two * 4 + i % 4] =
                    _mm512_permutexvar_epi32(at, weights);
            }
    }
}

/* Where rows of V that are to be read soon lie, NEAR_BYTES on in a pass over part after part. */
typedef struct near_rows {
    const int64_t *at;
    int32_t byte; /* of a row */
} near_rows;

INLINE near_rows near_values(const code_rows *v, const tile_rows *tile, int32_t key, int32_t part)
{
    const int32_t near = key + NEAR_BYTES / PART;
    if (near < DECODE_TILE) return (near_rows){tile->at + near, part * PART};
    /* At the end those that are being read again. */
    if (part + 1 == v->parts) return (near_rows){tile->at + key, part * PART};
    return (near_rows){tile->at + (near - DECODE_TILE), (part + 1) * PART};
}

/* Four of them, and where rows fill half a vector the four that these are paired with. */
INLINE void prefetch_values(const code_rows *v, const near_rows *near, int32_t key)
{
    for (int32_t quad = key; quad <= key + (v->paired ? KEY_STEP : 0); quad += KEY_STEP)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            _mm_prefetch((const char *)row_at(v, near->at[quad + i]) + near->byte, _MM_HINT_T0);
}

/*
 * Steps 5 and 6 for eight rows from `row` on, or four, and `count` of the four vectors of moved
 * bytes that a part has, from `first` on. With P in I16, four rows' high and low bits. All but s,
 * p, row and part are constants.
 */
INLINE void sum_piece(decode_state *s, const code_rows *k, const code_rows *v,
                      const uint8_t *const p[2], int32_t row, int rows, int32_t part, int first,
                      int count, bool precise, code_kind kinds)
{
    const code_kind kind = kind_of_v(kinds);
    const int planes = kind == CODES_BYTES ? 1 : 2, sums = count * planes;
    const int halves = v->paired ? 2 : 1;
    __m512i sum[GROUP_ROWS][4];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int i = 0; i < sums; i++)
            sum[r][i] = _mm512_setzero_si512();
    }
    for (int32_t at = s->from; at < s->end; at += KEY_STEP * halves) {
        prefetch_share(&s->walk.ahead, k, v, KEY_STEP / 4 * SUMS_COST);
        const near_rows near = near_values(v, s->walk.tile, at, part);
        const uint32_t block = (uint32_t)at / 64 * 256 + (uint32_t)at % 64 / 4;
        /* Unrolled, gcc 12 moves the sums from register to register. */
#pragma GCC unroll 1
        for (int32_t quad = 0; quad < 4; quad++) {
            const int32_t key = at + 4 * quad, other = v->paired ? key + KEY_STEP : key;
            const int64_t *const at_key = s->walk.tile->at + key;
            const int64_t *const at_other = s->walk.tile->at + other;
            const uint8_t *const weights[2] = {p[0] + block + quad * 64, p[1] + block + quad * 64};
            const __m512i zero = value_zeros(v, s->v_zero + key, s->v_zero + other, kind);
            __m512i codes[8];
            if (first == 0) prefetch_values(v, &near, 4 * quad);
            value_vectors(v, at_key, at_other, part, first, count, kind, zero, codes);
            UNROLL
            for (int r = 0; r < rows; r++) {
                const __m512i w = spread_weights(s, v, weights, r, at / 8 + quad);
                UNROLL
                for (int i = 0; i < sums; i++)
                    add_products(&sum[r][i], w, codes[i]);
            }
        }
    }
    const int32_t vector = (part * 4 + first) * planes;
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int i = 0; i < sums; i += halves) {
            if (precise && r >= SET_ROWS) break;
            __m512i total = v->paired ? add_halves(sum[r][i], sum[r][i + 1]) : sum[r][i];
            if (precise) {
                const __m512i *low = &sum[r + SET_ROWS][i];
                total = _mm512_add_epi32(_mm512_slli_epi32(total, 7),
                                         v->paired ? add_halves(low[0], low[1]) : low[0]);
            }
            add_output(s, row + r, (vector + i) / halves, total);
        }
    }
}

/* Steps 5 and 6 for the rows of two sets of weights at p, or of one; sets is a constant. */
INLINE void sum_sets(decode_state *s, const code_rows *k, const code_rows *v,
                     const uint8_t *const p[2], int32_t row, int sets, bool precise,
                     code_kind kinds)
{
    const int planes = kind_of_v(kinds) == CODES_BYTES ? 1 : 2, count = 4 / sets / planes;
    if (v->paired)
#pragma GCC unroll 2
        for (int i = 0; i < sets; i++)
            pair_set(s, p[i], i * SET_ROWS);
    for (int32_t part = 0; part < v->parts; part++)
#pragma GCC unroll 4
        for (int first = 0; first < 4; first += count)
            sum_piece(s, k, v, p, row, sets * SET_ROWS, part, first, count, precise, kinds);
}

/* Step 3's S for any number of rows. */
INLINE void score_many(decode_state *s, const code_rows *k, const code_rows *v, code_kind kind)
{
    const int32_t all = sets_of(s);
    for (int32_t key = s->from; key < s->end; key += KEY_STEP) {
        load_keys(s, k, v, key, kind);
        for (int32_t set = 0; set < all; set += 2) {
            if (sets_from(s, set) == 2)
                score_sets(s, k, v, set, 2, key, kind);
            else
                score_sets(s, k, v, set, 1, key, kind);
        }
    }
}

/* Steps 5 and 6's O. */
INLINE void value_many(decode_state *s, const code_rows *k, const code_rows *v, code_kind kind)
{
    const int32_t all = sets_of(s);
    for (int32_t set = 0, sets; set < all; set += sets) {
        const row_set *at = s->set + set;
        sets = s->precise ? 1 : sets_from(s, set);
        const uint8_t *const p[2] = {at[0].p[0], s->precise ? at[0].p[1] : at[1].p[0]};
        if (s->precise && kind == CODES_BYTES)
            sum_sets(s, k, v, p, set * SET_ROWS, 2, true, kind);
        else if (sets == 2)
            sum_sets(s, k, v, p, set * SET_ROWS, 2, false, kind);
        else
            sum_sets(s, k, v, p, set * SET_ROWS, 1, false, kind);
    }
}

#endif
