/*
 * Products of three rows and more with scales in groups: 4 keys' dwords side by side, a unit
 * broadcast to the rows in the lanes; of V a unit of 4 keys at a time, times P of eight rows.
 */
#ifndef HEADROOM_INTEGER_DECODE_GROUPS_MANY_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_GROUPS_MANY_AVX512VNNI_H

#include "integer_decode_groups_state_avx512vnni.h"

/* Where in a quad of `keys` a unit's dword lies; chunk: plane * 4 + dword. */
INLINE int32_t key_chunk(int planes, int32_t unit, int32_t chunk)
{
    return unit / 4 * planes * 256 + unit % 4 * 16 + chunk * 64;
}

/* Where those of quad `quad` start. */
INLINE int32_t key_quad(const code_rows *k, int planes, int32_t quad)
{
    return k->paired ? quad / 2 * planes * 256 + quad % 2 * 32 : quad * k->parts * planes * 256;
}

/* Keys [key, key + KEY_BLOCK) of the tile to `keys`, code + 128: four keys' dwords side by side. */
INLINE void load_key_block(group_state *t, const code_rows *k, const code_rows *v, int32_t key,
                           code_kind kinds)
{
    decode_state *s = &t->s;
    const code_kind kind = kind_of_k(kinds);
    const int planes = planes_of(kind);
    for (int j = 0; j < KEY_BLOCK; j += 4) {
        prefetch_share(&s->walk.ahead, k, v, 4 * s->k_channels / PART * 2 * LOAD_COST);
        prefetch_near(k, s->walk.tile, key + j, v, s->walk.tile);
        if (k->paired && j % 8 != 0) continue;
        for (int32_t part = 0; part < k->parts; part++) {
            __m512i codes[2][4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                __m512i expanded[2];
                expand_codes(k, load_codes(k, s->walk.tile->at + key + j + i, part), kind, 128,
                             _mm512_setzero_si512(), expanded);
                codes[0][i] = expanded[0];
                if (planes == 2) codes[1][i] = expanded[1];
            }
            uint8_t *out = t->keys + key_quad(k, planes, j / 4) + part * planes * 256;
#pragma GCC unroll 2
            for (int plane = 0; plane < planes; plane++, out += 256)
                store_transposed(codes[plane], out);
        }
    }
}

/*
 * x of the keys [key, key + KEY_BLOCK), which are in `keys`, for one or two sets; sets is a
 * constant. Q: [unit][chunk][set][row: lane][4 times its dword].
 */
INLINE void score_unit_sets(group_state *t, const code_rows *k, const code_rows *v, int32_t first,
                            int sets, int32_t key, code_kind kinds)
{
    enum { QUADS = KEY_BLOCK / 4 };
    decode_state *s = &t->s;
    const int planes = planes_of(kind_of_k(kinds)), chunks = 4 * planes;
    const __m512i *q = (const __m512i *)s->q + first * t->k.units * chunks;
    for (int32_t group = 0, unit = 0; group < t->k.groups; group++) {
        __m512i sum[2][QUADS];
#pragma GCC unroll 2
        for (int i = 0; i < sets; i++) {
            const __m512i start = lanes_of(t->init[group] + (first + i) * SET_ROWS);
#pragma GCC unroll 8
            for (int quad = 0; quad < QUADS; quad++)
                sum[i][quad] = start;
        }
        prefetch_share(&s->walk.ahead, k, v, t->k.per_group * chunks * SUMS_COST * sets / 2);
        for (int32_t end = unit + t->k.per_group; unit < end; unit++)
            for (int chunk = 0; chunk < chunks; chunk++, q += sets) {
                const uint8_t *codes = t->keys + key_chunk(planes, unit, chunk);
#pragma GCC unroll 8
                for (int quad = 0; quad < QUADS; quad++) {
                    const __m512i four = _mm512_broadcast_i32x4(
                        _mm_load_si128((const __m128i *)(codes + key_quad(k, planes, quad))));
#pragma GCC unroll 2
                    for (int i = 0; i < sets; i++)
                        add_products(&sum[i][quad], four, q[i]);
                }
            }
#pragma GCC unroll 8
        for (int quad = 0; quad < QUADS; quad++) {
            const __m512 scale = columns_at(t->tile.k[group] + key + 4 * quad);
#pragma GCC unroll 2
            for (int i = 0; i < sets; i++) {
                float *x = s->set[first + i].x + (key + 4 * quad) * SET_ROWS;
                const __m512 old = group ? _mm512_load_ps(x) : _mm512_setzero_ps();
                _mm512_store_ps(x, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][quad]), scale, old));
            }
        }
    }
}

/* P of a set of rows for group g of V's scales, and its beta; the set's x is scratch then. */
static void share_set(group_state *t, int32_t index, int32_t g)
{
    decode_state *s = &t->s;
    row_set *set = &s->set[index];
    uint16_t *shared = (uint16_t *)set->x;
    __m512 beta = float_lanes(s->beta_o + index * SET_ROWS);
    __m512i factor = _mm512_set1_epi32(256), most = _mm512_setzero_si512();
    for (int32_t at = s->from * SET_ROWS; at < s->to * SET_ROWS; at += 32) {
        __m512i e = _mm512_load_si512(set->y + at);
        if (t->v.groups) {
            const int32_t keys = at / 128 * 32 + at % 128 / 4;
            e = _mm512_mulhrs_epi16(e, weights_at(t->tile.share[g] + keys));
        }
        _mm512_store_si512(shared + at, e);
        most = _mm512_max_epu16(most, e);
    }
    if (t->v.groups) {
        const __m512i low = _mm512_set1_epi32(0xffff);
        most = _mm512_xor_si512(most, _mm512_set1_epi32(-1));
        most = _mm512_sub_epi32(low, _mm512_and_si512(least_of_lanes(most), low));
        beta = _mm512_mul_ps(beta, _mm512_set1_ps(t->tile.largest[g]));
        factor = share_factors(most, &beta);
    }
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    _mm_store_ps(t->beta[g] + index * SET_ROWS,
                 _mm512_castps512_ps128(_mm512_permutexvar_ps(first, beta)));
    factor = _mm512_or_si512(factor, _mm512_slli_epi32(factor, 16));
    for (int32_t at = s->from * SET_ROWS; at < s->to * SET_ROWS; at += 256)
#pragma GCC unroll 4
        for (int32_t quad = 0; quad < 4; quad++)
            _mm512_store_si512(set->p[0] + at + quad * 64,
                               pack_shared(_mm512_load_si512(shared + at + quad * 32),
                                           _mm512_load_si512(shared + at + 128 + quad * 32),
                                           factor));
}

/* A unit of four keys of V: the four bytes at a place side by side. */
INLINE __m512i load_value_unit(const code_rows *v, const int64_t *at, int32_t unit, __m512i order)
{
    const uint8_t *const row[4] = {row_at(v, at[0]), row_at(v, at[1]), row_at(v, at[2]),
                                   row_at(v, at[3])};
    __m512i four = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(row[0] + unit * UNIT)));
    four = _mm512_inserti32x4(four, _mm_loadu_si128((const __m128i *)(row[1] + unit * UNIT)), 1);
    four = _mm512_inserti32x4(four, _mm_loadu_si128((const __m128i *)(row[2] + unit * UNIT)), 2);
    four = _mm512_inserti32x4(four, _mm_loadu_si128((const __m128i *)(row[3] + unit * UNIT)), 3);
    return _mm512_permutexvar_epi8(order, four);
}

/*
 * Steps 5 and 6 for one set or two and `units` units of V from `unit` on, which are of group g. All
 * but t, first, unit and g are constants; two sums a row.
 */
INLINE void sum_units(group_state *t, const code_rows *k, const code_rows *v, int32_t first,
                      int sets, int32_t unit, int units, int32_t g, code_kind kinds)
{
    decode_state *s = &t->s;
    const code_kind kind = kind_of_v(kinds);
    const int planes = planes_of(kind), vectors = units * planes, rows = sets * SET_ROWS;
    const __m512i order = _mm512_add_epi32(
        _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                           _mm512_set1_epi32(0x01010101)),
        _mm512_set1_epi32(0x30201000));
    const uint8_t *const p[2] = {s->set[first].p[0], s->set[first + sets - 1].p[0]};
    __m512i sum[GROUP_ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int i = 0; i < vectors; i++)
            sum[r][i] = _mm512_setzero_si512();
    for (int32_t key = s->from; key < s->end; key += KEY_STEP) {
        prefetch_share(&s->walk.ahead, k, v, 4 * SUMS_COST * sets * vectors / 4);
        const near_rows near = near_values(v, s->walk.tile, key, unit / 4);
        const int32_t block = key / 64 * 256 + key % 64 / 4;
#pragma GCC unroll 1
        for (int32_t quad = 0; quad < 4; quad++) {
            const int64_t *at = s->walk.tile->at + key + 4 * quad;
            __m512i codes[2];
            for (int i = 0; i < 4 && unit % 4 == 0; i++)
                _mm_prefetch((const char *)row_at(v, near.at[4 * quad + i]) + near.byte,
                             _MM_HINT_T0);
#pragma GCC unroll 2
            for (int i = 0; i < units; i++)
                expand_codes(v, load_value_unit(v, at, unit + i, order), kind, 0,
                             _mm512_setzero_si512(), codes + i * planes);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                int32_t four;
                memcpy(&four, p[r / SET_ROWS] + block + quad * 64 + r % SET_ROWS * 16, sizeof four);
                const __m512i weights = _mm512_set1_epi32(four);
#pragma GCC unroll 2
                for (int i = 0; i < vectors; i++)
                    add_products(&sum[r][i], weights, codes[i]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        const int32_t row = first * SET_ROWS + r;
        const __m512 alpha = _mm512_set1_ps(s->alpha_o[row]),
                     beta = _mm512_set1_ps(t->beta[g][row]);
        float *o = s->o + (row * s->vectors + unit * planes) * 16;
#pragma GCC unroll 2
        for (int i = 0; i < vectors; i++, o += 16)
            _mm512_store_ps(o, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][i]), beta,
                                               _mm512_mul_ps(_mm512_load_ps(o), alpha)));
    }
}

#endif
