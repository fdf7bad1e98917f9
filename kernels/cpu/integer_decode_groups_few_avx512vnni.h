/*
 * Products of one or two rows with scales in groups: K as it lies, lanes kept apart and 16 keys of
 * each side by side; of V 4 keys' bytes interleaved, each lane times its own group's P.
 */
#ifndef HEADROOM_INTEGER_DECODE_GROUPS_FEW_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_GROUPS_FEW_AVX512VNNI_H

#include "integer_decode_groups_state_avx512vnni.h"

/* One vector a key, or two keys: sums of 16 keys for each of four units, or of two. */
INLINE void split_units(const __m512i sum[4], bool paired, __m512i unit[4])
{
    if (paired) {
        unit[0] = _mm512_shuffle_i32x4(sum[0], sum[1], 0x88);
        unit[1] = _mm512_shuffle_i32x4(sum[0], sum[1], 0xdd);
        unit[2] = unit[3] = _mm512_setzero_si512();
        return;
    }
    const __m512i low01 = _mm512_shuffle_i32x4(sum[0], sum[1], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(sum[0], sum[1], 0xee);
    const __m512i low23 = _mm512_shuffle_i32x4(sum[2], sum[3], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(sum[2], sum[3], 0xee);
    unit[0] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    unit[1] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    unit[2] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    unit[3] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
}

/* x of keys [key, key + 16) for one or two rows. rows is a constant. */
INLINE void score_unit_keys(group_state *t, const code_rows *k, const code_rows *v, int rows,
                            int32_t key, code_kind kinds)
{
    decode_state *s = &t->s;
    const code_kind kind = kind_of_k(kinds);
    const int planes = planes_of(kind), keys = k->paired ? 2 : 1, lanes = 4 / keys;
    const int32_t vectors = k->parts * planes;
    const __m512i *q = (const __m512i *)s->q;
    __m512 x[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    __m512i total[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int32_t part = 0; part < k->parts; part++) {
        __m512i sum[2][4], unit[2][4];
        sum[0][2] = sum[0][3] = sum[1][2] = sum[1][3] = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int g = 0; g < lanes; g++) {
            __m512i dwords[2][4];
            const int32_t first = key + 4 * keys * g;
            for (int i = 0; i < keys && part == 0; i++) {
                prefetch_share(&s->walk.ahead, k, v, s->step_cost);
                prefetch_near(k, s->walk.tile, first + 4 * i, v, s->walk.tile);
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                __m512i codes[2];
                expand_codes(k, load_codes(k, s->walk.tile->at + first + i, part), kind, 128,
                             _mm512_setzero_si512(), codes);
#pragma GCC unroll 2
                for (int r = 0; r < rows; r++) {
                    dwords[r][i] = _mm512_setzero_si512();
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
        for (int r = 0; r < rows; r++)
            split_units(sum[r], k->paired, unit[r]);
#pragma GCC unroll 4
        for (int lane = 0; lane < lanes; lane++) {
            const int32_t u = part * 4 + lane, group = u / t->k.per_group;
            if (u >= t->k.units) break;
#pragma GCC unroll 2
            for (int r = 0; r < rows; r++)
                total[r] = _mm512_add_epi32(total[r], unit[r][lane]);
            if ((u + 1) % t->k.per_group != 0) continue;
            const __m512 scale = _mm512_load_ps(t->tile.k[group] + key);
#pragma GCC unroll 2
            for (int r = 0; r < rows; r++) {
                total[r] = _mm512_add_epi32(total[r], _mm512_set1_epi32(t->init[group][r]));
                x[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[r]), scale, x[r]);
                total[r] = _mm512_setzero_si512();
            }
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
        _mm512_store_ps(row_x(s, r) + key, x[r]);
}

/* P of one or two rows by groups, and from there to lane_weights. */
static void share_few(group_state *t, const code_rows *v)
{
    decode_state *s = &t->s;
    const int32_t groups = t->v.groups ? t->v.groups : 1;
    for (int32_t r = 0; r < s->rows; r++) {
        ALIGNED uint8_t p[MAX_GROUPS][DECODE_TILE];
        const uint16_t *e = row_y(s, r);
        for (int32_t g = 0; g < groups; g++) {
            ALIGNED uint16_t shared[DECODE_TILE];
            __m512i most = _mm512_setzero_si512();
            for (int32_t j = s->from; j < s->to; j += 32) {
                __m512i weight = _mm512_load_si512(e + j);
                if (t->v.groups)
                    weight = _mm512_mulhrs_epi16(weight, _mm512_load_si512(t->tile.share[g] + j));
                _mm512_store_si512(shared + j, weight);
                most = _mm512_max_epu16(most, weight);
            }
            int32_t factor = 256;
            t->beta[g][r] = s->beta_o[r];
            if (t->v.groups) {
                most = _mm512_xor_si512(most, _mm512_set1_epi32(-1));
                factor = hr_integer_share_factor(65535 - _mm_extract_epi16(least_word(most), 0));
                t->beta[g][r] *= t->tile.largest[g];
                t->beta[g][r] *= 256.0f / (float)factor;
            }
            for (int32_t j = s->from; j < s->to; j += 64)
                _mm512_store_si512(p[g] + j, pack_shared(_mm512_load_si512(shared + j),
                                                         _mm512_load_si512(shared + j + 32),
                                                         _mm512_set1_epi16((int16_t)factor)));
        }
        for (int32_t part = 0; part < v->parts; part++)
            for (int32_t j = s->from; j < s->to; j += 64) {
                __m512i lane[4];
                for (int i = 0; i < 4; i++)
                    lane[i] = _mm512_load_si512(p[group_of_unit(&t->v, part * 4 + i)] + j);
                store_transposed(lane, t->lane_weights[r][part][j / 4]);
            }
    }
}

/* Steps 5 and 6 for one or two rows and a part of V. rows is a constant. */
INLINE void sum_unit_values(group_state *t, const code_rows *k, const code_rows *v, int rows,
                            int32_t part, code_kind kinds)
{
    decode_state *s = &t->s;
    const code_kind kind = kind_of_v(kinds);
    const int vectors = 4 * planes_of(kind), keys = v->paired ? 8 : 4, step = v->paired ? 2 : 1;
    const __m512i alone = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i pairs = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 4, 4, 4, 4, 5, 5, 5, 5);
    const __m512i lanes = v->paired ? pairs : alone;
    __m512i sum[2][8];
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int i = 0; i < vectors; i++)
            sum[r][i] = _mm512_setzero_si512();
    for (int32_t key = s->from; key < s->end; key += keys) {
        const int64_t *at_key = s->walk.tile->at + key;
        __m512i codes[8];
        for (int i = 0; i < keys && part == 0; i += 4) {
            prefetch_share(&s->walk.ahead, k, v, s->step_cost);
            prefetch_near(v, s->walk.tile, key + i, k, s->walk.ahead.next);
        }
        value_vectors(v, at_key, at_key + 4, part, 0, 4, kind, _mm512_setzero_si512(), codes);
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) {
            const uint8_t *at = t->lane_weights[r][part][key / 4];
            const __m512i four =
                v->paired ? _mm512_castsi256_si512(_mm256_load_si256((const __m256i *)at))
                          : _mm512_castsi128_si512(_mm_load_si128((const __m128i *)at));
            const __m512i weights = _mm512_permutexvar_epi32(lanes, four);
#pragma GCC unroll 8
            for (int i = 0; i < vectors; i++)
                add_products(&sum[r][i], weights, codes[i]);
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++) {
        ALIGNED float beta[16];
        for (int i = 0; i < 16; i++)
            beta[i] = t->beta[group_of_unit(&t->v, part * 4 + i / 4)][r];
        const __m512 factor = _mm512_load_ps(beta), alpha = _mm512_set1_ps(s->alpha_o[r]);
#pragma GCC unroll 8
        for (int i = 0; i < vectors; i += step) {
            const __m512i total = v->paired ? add_halves(sum[r][i], sum[r][i + 1]) : sum[r][i];
            float *o = s->o + (r * s->vectors + (part * vectors + i) / step) * 16;
            const __m512 old = _mm512_mul_ps(_mm512_load_ps(o), alpha);
            _mm512_store_ps(o, _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), factor, old));
        }
    }
}

#endif
