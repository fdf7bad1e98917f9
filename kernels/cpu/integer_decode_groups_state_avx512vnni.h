/*
 * What a decode task of AVX-512 VNNI with scales in groups keeps, and step 1 for a tile of it. A
 * row of K or V is cut in units of 16 bytes, a lane of a vector each, which belong to one group.
 */
#ifndef HEADROOM_INTEGER_DECODE_GROUPS_STATE_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_GROUPS_STATE_AVX512VNNI_H

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

#endif
