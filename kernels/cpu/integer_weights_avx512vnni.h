/*
 * Steps 4 to 6 of integer_softmax.h for a block of twelve rows and a tile, on AVX-512 VNNI:
 * weights, P and sums from logits packed to 16 bits, and O from P.
 */
#ifndef HEADROOM_INTEGER_WEIGHTS_AVX512VNNI_H
#define HEADROOM_INTEGER_WEIGHTS_AVX512VNNI_H

#include "integer_exact_avx512vnni.h"

/* Constants of step 4: each kind is compiled on its own. */
typedef struct weight_kind {
    bool wide, half, precise; /* the tile is wide; from_half's; P in I16 */
    bool grouped;             /* V's scales are in groups: weights are kept as they are */
} weight_kind;

/* What step 4 makes of two rows. */
typedef struct row_sums {
    __m512i sum[2], rest[2];
} row_sums;

/*
 * Step 4 for rows r and r + 1 of a group and `count` (1 or 2) subtiles. Keys not seen are 65535 in
 * y: no weight.
 */
INLINE void weigh(task *t, int g, int r, int first, int count, const __m512i top[2],
                  weight_kind kind, const weight_constants *c, row_sums *sums)
{
    __m512i e[8];
    /* e[(row * count + subtile) * 2 + half of the subtile] */
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        if (i >= 4 * count) continue;
        const int row = i / (2 * count), s = first + i / 2 % count;
        e[i] = _mm512_subs_epu16(top[row], _mm512_load_si512(t->y[g][s][r + row] + i % 2 * 32));
    }
    weights_of(e, 4 * count, c, kind.half);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        if (i >= 4 * count) continue;
        const int row = i / (2 * count);
        const tile_columns *columns = &t->columns[first + i / 2 % count];
        add_weights(&sums->sum[row], e[i], _mm512_load_si512(columns->sum + i % 2 * 32));
        if (kind.wide)
            add_weights(&sums->rest[row], e[i], _mm512_load_si512(columns->rest + i % 2 * 32));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        if (i >= 2 * count) continue;
        const int s = first + i % count, row = r + i / count;
        if (kind.grouped) {
            _mm512_store_si512(t->weight[g][s][row], e[2 * i]);
            _mm512_store_si512(t->weight[g][s][row] + 32, e[2 * i + 1]);
            continue;
        }
        if (!kind.precise) {
            _mm512_store_si512(t->p[g][s][row], pack_weights(e[2 * i], e[2 * i + 1], c));
            continue;
        }
        __m512i p[2];
        pack_precise_weights(e[2 * i], e[2 * i + 1], p);
        _mm512_store_si512(t->p[g][s][row], p[0]);
        _mm512_store_si512(t->p_low[g][s][row], p[1]);
    }
}

/* Step 4 for rows r and r + 1 of a group, and their sums of step 6. */
INLINE void make_weights(task *t, passage *w, int g, int r, weight_kind kind)
{
    const weight_constants c = load_weight_constants();
    const int row = g * ROWS + r;
    const __m512i top[2] = {_mm512_set1_epi32(w->top[row]), _mm512_set1_epi32(w->top[row + 1])};
    row_sums sums = {{_mm512_setzero_si512(), _mm512_setzero_si512()},
                     {_mm512_setzero_si512(), _mm512_setzero_si512()}};
    if (w->end[g] - w->begin[g] == SUBTILES) {
#pragma GCC unroll 2
        for (int s = 0; s < SUBTILES; s += 2)
            weigh(t, g, r, s, 2, top, kind, &c, &sums);
    } else {
        for (int s = w->begin[g]; s < w->end[g]; s++)
            weigh(t, g, r, s, 1, top, kind, &c, &sums);
    }
    for (int i = 0; i < 2; i++) {
        float *l = w->block->l[row + i];
        const __m512 lanes =
            kind.wide ? join_sums(sums.sum[i], sums.rest[i]) : _mm512_cvtepi32_ps(sums.sum[i]);
        const __m512 old = _mm512_mul_ps(_mm512_load_ps(l), _mm512_set1_ps(w->alpha[row + i]));
        /* In other tiles add_uneven_sums does it. */
        if (t->tile.even || t->tile.wide)
            _mm512_store_ps(l, _mm512_fmadd_ps(lanes, _mm512_set1_ps(w->beta[row + i]), old));
    }
}

/* The row sums of step 6 where the tile is neither even nor wide: rare, so the logits are made
 * again. */
RARE void add_uneven_sums(task *t, passage *w)
{
    ALIGNED float x[HR_INTEGER_TILE];
    const __mmask16 seen = rows_that_see(t, w->block);
    for (int row = 0; row < BLOCK; row++) {
        const int g = row / ROWS, r = row % ROWS;
        __m512 factor;
        float *l = w->block->l[row];
        if (r == 0) make_exact_tile(t, w, g, false);
        if (!(seen >> row & 1)) continue;
        for (int s = w->begin[g]; s < w->end[g]; s++)
            memcpy(x + s * SUBTILE, t->exact[s][r], sizeof t->exact[s][r]);
        const __m512 sum =
            sum_uneven(x, w->begin[g] * SUBTILE, w->end[g] * SUBTILE, w->block->m[row], &factor);
        __m512 old = _mm512_mul_ps(_mm512_load_ps(l), _mm512_set1_ps(w->alpha[row]));
        _mm512_store_ps(l, _mm512_fmadd_ps(sum, factor, old));
    }
}

static void make_block_weights(task *t, passage *w)
{
    for (int g = 0; g < GROUPS; g++)
        for (int r = 0; r < ROWS; r += 2) {
            if (t->v_groups && t->half)
                make_weights(t, w, g, r, (weight_kind){t->tile.wide, true, false, true});
            else if (t->v_groups)
                make_weights(t, w, g, r, (weight_kind){t->tile.wide, false, false, true});
            else if (t->precise && t->half)
                make_weights(t, w, g, r, (weight_kind){t->tile.wide, true, true, false});
            else if (t->precise)
                make_weights(t, w, g, r, (weight_kind){t->tile.wide, false, true, false});
            else if (!t->half)
                make_weights(t, w, g, r, (weight_kind){t->tile.wide, false, false, false});
            else if (t->tile.wide)
                make_weights(t, w, g, r, (weight_kind){true, true, false, false});
            else
                make_weights(t, w, g, r, (weight_kind){false, true, false, false});
        }
    if (!t->tile.even && !t->tile.wide) add_uneven_sums(t, w);
}

/* e_ijg of a row for group i of V's scales; the largest by lanes. */
INLINE __m512i share_row(task *t, const passage *w, int g, int r, int32_t i)
{
    const int16_t *share = t->groups.share[i];
    __m512i most = _mm512_setzero_si512();
    for (int s = w->begin[g]; s < w->end[g]; s++)
#pragma GCC unroll 2
        for (int at = 0; at < SUBTILE; at += 32) {
            const __m512i e = _mm512_mulhrs_epi16(_mm512_load_si512(t->weight[g][s][r] + at),
                                                  _mm512_load_si512(share + s * SUBTILE + at));
            _mm512_store_si512(t->shared[g][s][r] + at, e);
            most = _mm512_max_epu16(most, e);
        }
    return most;
}

/* Step 4 for group i of V's scales: P of a block; returns its beta. */
static __m512 share_block(task *t, const passage *w, int32_t i)
{
    ALIGNED int32_t factor[LANES];
    __m512i most[BLOCK];
    __m512 beta = _mm512_mul_ps(_mm512_load_ps(w->o.beta), _mm512_set1_ps(t->groups.largest[i]));
    for (int row = 0; row < BLOCK; row++) /* as the least of what 65535 is more */
        most[row] =
            _mm512_xor_si512(share_row(t, w, row / ROWS, row % ROWS, i), _mm512_set1_epi32(-1));
    const __m512i words = reduce_rows(most, MIN_WORDS);
    const __m512i least = _mm512_and_si512(_mm512_min_epu16(words, _mm512_srli_epi32(words, 16)),
                                           _mm512_set1_epi32(0xffff));
    _mm512_store_si512(factor,
                       share_factors(_mm512_sub_epi32(_mm512_set1_epi32(0xffff), least), &beta));
    for (int row = 0; row < BLOCK; row++) {
        const int g = row / ROWS, r = row % ROWS;
        const __m512i f = _mm512_set1_epi16((int16_t)factor[row]);
        for (int s = w->begin[g]; s < w->end[g]; s++) {
            const uint16_t *e = t->shared[g][s][r];
            _mm512_store_si512(t->p[g][s][r],
                               pack_shared(_mm512_load_si512(e), _mm512_load_si512(e + 32), f));
        }
    }
    return beta;
}

/* O of a group of rows with P.V, `vectors` (1 to 4) vectors of channels from `vector` on. */
static void add_columns(task *t, const passage *w, int g, int vectors, int32_t vector,
                        const float *scalars)
{
    const int64_t stride = (int64_t)t->channels * 4, begin = w->begin[g];
    const int64_t tiles = w->end[g] - begin, tail = w->tail[g] % 4;
    const int8_t *v = t->codes.v + vector * 64 + begin * (SUBTILE / 4) * stride;
    float *o = t->o + (w->first_row + g * ROWS) * t->channels + vector * 16;
    if (t->precise)
        micro_pv_precise(vectors, w->first, t->p[g][begin][0], t->p_low[g][begin][0], v, stride,
                         tiles, o, stride, scalars);
    else
        micro_pv(vectors, w->first, t->p[g][begin][0], v, stride, tiles - (tail != 0), tail, o,
                 stride, scalars);
}

/* O with P.V, in column blocks of four vectors, or as even as the channels allow. */
static void add_values(task *t, const passage *w)
{
    int32_t vector = 0;
    for (const int8_t *width = t->width; *width; vector += *width++)
        for (int g = 0; g < GROUPS; g++)
            if (w->begin[g] < w->end[g])
                add_columns(t, w, g, *width, vector, w->o.alpha + g * ROWS);
}

/* The same with scales of V in groups of channels, each of which has its own P and beta. */
static void add_value_groups(task *t, const passage *w)
{
    const int32_t vectors = t->head_dim / t->v_groups / 16;
    for (int32_t i = 0; i < t->v_groups; i++) {
        micro_scalars o = w->o;
        _mm512_store_ps(o.beta, share_block(t, w, i));
        for (int g = 0; g < GROUPS; g++) {
            if (w->begin[g] >= w->end[g]) continue;
            for (int32_t at = 0, width; at < vectors; at += width) {
                width = vectors - at < 4 ? vectors - at : 4;
                add_columns(t, w, g, width, i * vectors + at, o.alpha + g * ROWS);
            }
        }
    }
}

#endif
