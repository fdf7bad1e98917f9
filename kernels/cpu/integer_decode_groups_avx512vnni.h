/*
 * Decode on AVX-512 VNNI with scales of K, and of V too or not, in groups of channels: what
 * integer_decode_avx512vnni.h is for a scale a token. A row of K or V is cut in units of 16 bytes,
 * a lane of a vector each, which belong to one group:
 *
 *     S_g, x      one or two rows: as they lie, lanes kept apart and 16 keys of each side by side;
 *                 more: 4 keys' dwords side by side, a unit broadcast to the rows in the lanes
 *     P_g         from the weights e of the softmax, which stay where y was
 *     T, O        one or two rows: 4 keys' bytes interleaved, each lane times its own group's P;
 *                 more: a unit of 4 keys at a time, times P of eight rows
 *
 * The softmax between them is that of the other kernels, with x in place of S * k.
 */
#ifndef HEADROOM_INTEGER_DECODE_GROUPS_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_GROUPS_AVX512VNNI_H

#include "group_scales_avx512vnni.h"
#include "integer_decode_avx512vnni.h"

enum {
    UNIT = 16, /* bytes */
    MAX_UNITS = HR_INTEGER_MAX_HEAD_DIM / UNIT,
    KEY_BLOCK = 32 /* keys of K that go to the first-level cache at a time */
};

/* How the units of a row of K or V are shared out. */
typedef struct unit_plan {
    int32_t units, groups, per_group; /* a row has; units a group has */
} unit_plan;

typedef struct group_state {
    decode_state s;
    tile_groups tile;
    unit_plan k, v;
    ALIGNED uint8_t keys[KEY_BLOCK * KEY_BYTES];
    ALIGNED int32_t init[MAX_GROUPS][DECODE_ROWS]; /* -128 times the sum of q of a group */
    ALIGNED float beta[MAX_GROUPS][DECODE_ROWS];   /* of O */
    ALIGNED uint8_t lane_weights[2][MAX_UNITS / 4][DECODE_TILE / 4][16]; /* [row][part][quad] */
} group_state;

INLINE int planes_of(code_kind kind)
{
    return kind == CODES_BYTES ? 1 : 2;
}

static unit_plan plan_units(const hr_kernel_operand *operand, const code_rows *rows,
                            int32_t head_dim)
{
    unit_plan plan = {.units = (int32_t)rows->row_bytes / UNIT,
                      .groups = hr_integer_groups(operand, head_dim)};
    plan.per_group = plan.units / (plan.groups ? plan.groups : 1);
    return plan;
}

/* The group of a unit of a vector; in the half past the end of a short row, units begin again. */
INLINE int32_t group_of_unit(const unit_plan *plan, int32_t unit)
{
    return unit % plan->units / plan->per_group;
}

/* Dword k of a lane of v[i] to dword i of the lane of the kth vector at `out`. */
INLINE void store_transposed(__m512i v[4], uint8_t *out)
{
    transpose_lanes(v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        _mm512_store_si512(out + i * 64, v[i]);
}

/* Step 1, and a of step 2; x takes the place of S * k. */
static void prepare_group_tile(group_state *t, const code_rows *k, const code_rows *v)
{
    decode_state *s = &t->s;
    const hr_kernel_args *args = s->args;
    const int32_t f = s->exponents.f;
    prefetch_share(&s->walk.ahead, k, v, PREPARE_COST / 2);
    const float k_max =
        gather_group_scales(&args->k, t->k.groups, s->first, s->count, t->tile.k, s->k_scale);
    prefetch_share(&s->walk.ahead, k, v, PREPARE_COST / 2);
    const float v_max =
        t->v.groups
            ? gather_group_scales(&args->v, t->v.groups, s->first, s->count, t->tile.v, s->v_scale)
            : gather_scales(&args->v, args->head_dim, s->first, s->count, s->v_scale);
    s->exponents = scale_columns(s->k_scale, k_max, s->v_scale, v_max, s->count, s->columns);
    scale_k_groups(&t->tile, t->k.groups, s->exponents.f);
    share_v_groups(&t->tile, t->v.groups, s->exponents.e, s->count, s->columns);
    for (int32_t j = 0; j < DECODE_TILE; j += 16) {
        tile_columns *c = &s->columns[j / HR_MICRO_COLUMNS];
        _mm512_store_ps(c->k + j % HR_MICRO_COLUMNS, _mm512_set1_ps(1));
        _mm512_store_ps(c->k_magic + j % HR_MICRO_COLUMNS, _mm512_setzero_ps());
    }
    scale_factors(s, f);
}

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
        _mm512_store_ps(few_x(s, r) + key, x[r]);
}

/* P of one or two rows by groups, and from there to lane_weights. */
static void share_few(group_state *t, const code_rows *v)
{
    decode_state *s = &t->s;
    const int32_t groups = t->v.groups ? t->v.groups : 1;
    for (int32_t r = 0; r < s->rows; r++) {
        ALIGNED uint8_t p[MAX_GROUPS][DECODE_TILE];
        const uint16_t *e = few_y(s, r);
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

/* Step 3's x for any number of rows. */
INLINE void score_groups(group_state *t, const code_rows *k, const code_rows *v, code_kind kind)
{
    decode_state *s = &t->s;
    const int32_t all = sets_of(s);
    for (int32_t key = s->from / KEY_BLOCK * KEY_BLOCK; key < s->end; key += KEY_BLOCK) {
        load_key_block(t, k, v, key, kind);
        for (int32_t set = 0; set < all; set += 2) {
            if (sets_from(s, set) == 2)
                score_unit_sets(t, k, v, set, 2, key, kind);
            else
                score_unit_sets(t, k, v, set, 1, key, kind);
        }
    }
}

/* Steps 5 and 6's O for any number of rows. */
INLINE void value_groups(group_state *t, const code_rows *k, const code_rows *v, code_kind kind)
{
    decode_state *s = &t->s;
    const int32_t all = sets_of(s), groups = t->v.groups ? t->v.groups : 1;
    const bool bytes = kind_of_v(kind) == CODES_BYTES;
    for (int32_t g = 0; g < groups; g++) {
        const int32_t begin = g * t->v.per_group, end = begin + t->v.per_group;
        for (int32_t set = 0; set < all; set++)
            share_set(t, set, g);
        for (int32_t set = 0; set < all; set += 2) {
            const bool two = sets_from(s, set) == 2;
            int32_t unit = begin;
            for (; bytes && unit + 2 <= end; unit += 2)
                if (two)
                    sum_units(t, k, v, set, 2, unit, 2, g, kind);
                else
                    sum_units(t, k, v, set, 1, unit, 2, g, kind);
            for (; unit < end; unit++)
                if (two)
                    sum_units(t, k, v, set, 2, unit, 1, g, kind);
                else
                    sum_units(t, k, v, set, 1, unit, 1, g, kind);
        }
    }
}

/* Q of all rows in the order that products take it, and what a row's logits are made with. */
static void begin_group_rows(group_state *t, const code_rows *k, bool nibbles)
{
    decode_state *s = &t->s;
    const int32_t head_dim = s->args->head_dim, width = head_dim / t->k.groups;
    const int32_t planes = nibbles ? 2 : 1, sets = sets_of(s);
    memset(t->init, 0, sizeof t->init);
    for (int32_t row = 0; row < s->rows; row++) {
        int32_t query;
        const hr_kernel_args *args = args_of(s, row, &query);
        const int8_t *codes = (const int8_t *)args->q.codes + (int64_t)query * head_dim;
        const int32_t set = row / SET_ROWS, together = set / 2 * 2 + 1 < sets ? 2 : 1;
        begin_row(s, row);
        for (int32_t c = 0; c < head_dim; c++) {
            const int32_t byte = nibbles ? c / 2 : c, plane = nibbles ? c % 2 : 0;
            t->init[c / width][row] -= 128 * codes[c];
            if (s->few) {
                const int32_t part = k->paired ? 0 : byte / PART, at = byte % PART;
                int8_t *q = s->q + ((row * k->parts + part) * planes + plane) * PART + at;
                *q = codes[c];
                if (k->paired) q[PART / 2] = codes[c];
                continue;
            }
            const int32_t chunk = plane * 4 + byte % UNIT / 4;
            const int32_t vector = set / 2 * 2 * t->k.units * 4 * planes +
                                   (byte / UNIT * 4 * planes + chunk) * together + set % 2;
            for (int i = 0; i < 4; i++)
                s->q[vector * 64 + row % SET_ROWS * 16 + i * 4 + byte % 4] = codes[c];
        }
    }
}

/* Where O's row has a channel. */
static int32_t place_of_channel(const group_state *t, const code_rows *v, bool nibbles, int32_t c)
{
    const int32_t byte = nibbles ? c / 2 : c, plane = nibbles ? c % 2 : 0;
    if (t->s.few) return place_in_output(v, nibbles, c);
    return (byte / UNIT * (nibbles ? 2 : 1) + plane) * 16 + byte % UNIT;
}

/* One tile: steps 1 to 6 for all rows. */
INLINE void decode_group_tile(group_state *t, const code_rows *k, const code_rows *v,
                              code_kind kind)
{
    decode_state *s = &t->s;
    prepare_group_tile(t, k, v);
    if (!s->few) {
        score_groups(t, k, v, kind);
        update_softmax(s, k, v);
        value_groups(t, k, v, kind);
        return;
    }
    for (int32_t key = s->from; key < s->end; key += KEY_STEP)
        if (s->rows == 1)
            score_unit_keys(t, k, v, 1, key, kind);
        else
            score_unit_keys(t, k, v, 2, key, kind);
    if (s->rows == 1)
        softmax_of_one(s, k, v);
    else
        softmax_of_two(s, k, v);
    share_few(t, v);
    for (int32_t part = 0; part < v->parts; part++)
        if (s->rows == 1)
            sum_unit_values(t, k, v, 1, part, kind);
        else
            sum_unit_values(t, k, v, 2, part, kind);
}

/* What a tile's steps cost for any number of rows. */
static int32_t group_tile_cost(const group_state *t)
{
    const decode_state *s = &t->s;
    const int32_t sets = sets_of(s);
    const int32_t load = DECODE_TILE * s->k_channels / PART * 2 * LOAD_COST;
    const int32_t keys = DECODE_TILE / KEY_BLOCK * s->k_channels / 4 * SUMS_COST * sets / 2;
    const int32_t values = DECODE_TILE / KEY_STEP * SUMS_COST * sets * s->vectors;
    return load + keys + values + PREPARE_COST + SOFTMAX_COST * sets * SET_ROWS;
}

/* The body of the kernels; `kind` is a constant, and so are the bytes of a row unless 0. */
INLINE void decode_group_rows(const hr_kernel_args *args, code_kind kind, int32_t k_bytes,
                              int32_t v_bytes)
{
    const bool k_nibbles = kind_of_k(kind) != CODES_BYTES,
               v_nibbles = kind_of_v(kind) != CODES_BYTES;
    code_rows k_rows = integer_rows(args, &args->k, kind, 128);
    code_rows v_rows = integer_rows(args, &args->v, kind, 0);
    k_rows.groups = hr_integer_groups(&args->k, args->head_dim);
    v_rows.groups = hr_integer_groups(&args->v, args->head_dim);
    const code_rows k = rows_of_length(&k_rows, k_bytes, kind_of_k(kind), kind);
    const code_rows v = rows_of_length(&v_rows, v_bytes, kind_of_v(kind), kind);
    group_state *t = args->scratch;
    decode_state *s = &t->s;
    s->args = args;
    s->rows = args->heads * (args->q_end - args->q_begin);
    s->k_channels = channels_of(&k, kind_of_k(kind));
    s->vectors = channels_of(&v, kind_of_v(kind)) / 16;
    s->few = s->rows <= 2;
    s->precise = false;
    s->grouped = true;
    t->k = plan_units(&args->k, &k, args->head_dim);
    t->v = plan_units(&args->v, &v, args->head_dim);
    assert(s->rows >= 1 && s->rows <= DECODE_ROWS && args->p_dtype == HR_DTYPE_U8);
    assert(t->k.groups > 0 && k.row_bytes % UNIT == 0 && v.row_bytes % UNIT == 0);
    assert(args->k.pages == args->v.pages && args->k.page_slots == args->v.page_slots);
    s->o = (float *)(t + 1);
    s->q = (int8_t *)(s->o + DECODE_ROWS * row_room(args->head_dim));
    const int32_t padded = (s->rows + GROUP_ROWS - 1) / GROUP_ROWS * GROUP_ROWS;
    memset(s->q, 0, 4 * (size_t)padded * row_room(args->head_dim));
    clear_rows(s);
    begin_group_rows(t, &k, k_nibbles);
    for (int32_t i = 0; i < args->range_count; i++) {
        hr_kernel_range range;
        if (!hr_kernel_visit(args, i, &range)) continue;
        for (enter_range(s, &range); s->first < range.end; s->first += DECODE_TILE) {
            enter_tile(s, &range);
            /* tile_cost sets the cost of a step of few rows */
            const int32_t few = s->few ? tile_cost(s, k.parts + v.parts) : 0;
            walk_to(&s->walk, args, &k, &v, s->first, s->count, few ? few : group_tile_cost(t));
            decode_group_tile(t, &k, &v, kind);
        }
    }
    uint16_t place[HR_INTEGER_MAX_HEAD_DIM];
    for (int32_t c = 0; c < args->head_dim; c++)
        place[c] = (uint16_t)place_of_channel(t, &v, v_nibbles, c);
    finish_rows(s, place);
}

static inline size_t integer_decode_groups_scratch(int32_t head_dim)
{
    return sizeof(group_state) + DECODE_ROWS * row_room(head_dim) * (4 + sizeof(float));
}

#endif
