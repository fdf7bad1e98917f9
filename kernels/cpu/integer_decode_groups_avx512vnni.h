/*
 * Decode on AVX-512 VNNI with scales of K, and of V too or not, in groups of channels: what
 * integer_decode_avx512vnni.h is for a scale a token. A row of K or V is cut in units of 16 bytes,
 * a lane of a vector each, which belong to one group:
 *
 *     S_g, x      exact sums of a group, joined in FP32
 *     P_g         from the weights e of the softmax, which stay where y was
 *     T, O        P of a group times its channels
 *
 * The softmax between them is that of the other kernels, with x in place of S * k.
 */
#ifndef HEADROOM_INTEGER_DECODE_GROUPS_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_GROUPS_AVX512VNNI_H

#include "integer_decode_groups_few_avx512vnni.h"
#include "integer_decode_groups_many_avx512vnni.h"

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
