/*
 * The integer family on AVX-512 VNNI: integer_softmax.h restated in vectors. A task of 96 rows
 * walks the tiles of 256 keys; in each, blocks of twelve rows do
 *
 *     Y [12][256]  = logits, N         micro_qk_logits, for each 64 keys that some of six rows see
 *     P, s         = weights, row sums
 *     O            = P . V * beta + O * alpha         micro_pv, for each 64 channels and six rows
 *
 * K of a tile (16 KiB at head_dim 64) stays in the first-level cache for the blocks' logits, then V
 * for their outputs. The limit is the two vector ports, which multiplies and softmax share: for 64
 * logits of a row, 2 head_dim multiplies and 34 others (16 make logits, 15 make weights, 3 the
 * output at head_dim 64), so 79% at head_dim 64, 87% at 128.
 */
#include "integer_body_avx512vnni.h"

#include <assert.h>
#include <immintrin.h>

#include "integer_exact_avx512vnni.h"
#include "integer_reduce_avx512vnni.h"
#include "integer_rows_avx512vnni.h"
#include "integer_task_avx512vnni.h"

size_t hr_integer_attention_avx512vnni_scratch(int32_t head_dim)
{
    size_t rows = HR_INTEGER_VNNI_ROWS;
    return sizeof(task) + rows * (size_t)head_dim + Q_PADDING +
           rows * (size_t)hr_integer_vnni_channels(head_dim) * sizeof(float);
}

/* Scales of an operand's tokens; of its groups, if any, to `groups`. */
static float gather_tile_scales(const task *t, const hr_kernel_operand *operand, int32_t groups,
                                int32_t count, float of_group[MAX_GROUPS][HR_INTEGER_TILE],
                                float *scale)
{
    return groups ? gather_group_scales(operand, groups, t->first, count, of_group, scale)
                  : gather_scales(operand, t->head_dim, t->first, count, scale);
}

/* Step 1. */
static void make_columns(task *t, tile_columns columns[SUBTILES], tile_exponents *tile)
{
    const int32_t left = t->args->seqlen_kv - t->first;
    const int32_t count = left < HR_INTEGER_TILE ? left : HR_INTEGER_TILE;
    const hr_kernel_args *args = t->args;
    const float k_max =
        gather_tile_scales(t, &args->k, t->k_groups, count, t->groups.k, t->k_scale);
    const float v_max =
        gather_tile_scales(t, &args->v, t->v_groups, count, t->groups.v, t->v_scale);
    *tile = scale_columns(t->k_scale, k_max, t->v_scale, v_max, count, columns);
}

/* Step 1 for scales in groups; they are not kept. */
RARE void make_groups(task *t)
{
    const hr_kernel_args *args = t->args;
    const int32_t left = args->seqlen_kv - t->first;
    const int32_t count = left < HR_INTEGER_TILE ? left : HR_INTEGER_TILE;
    if (t->k_groups)
        gather_group_scales(&args->k, t->k_groups, t->first, count, t->groups.k, t->k_scale);
    if (t->v_groups)
        gather_group_scales(&args->v, t->v_groups, t->first, count, t->groups.v, t->v_scale);
    scale_k_groups(&t->groups, t->k_groups, t->tile.f);
    share_v_groups(&t->groups, t->v_groups, t->tile.e, count, t->columns);
}

/* Step 1, unless an earlier task did it, and a of step 2 when F has changed. */
static void prepare_tile(task *t)
{
    kept_columns *kept = &t->kept;
    const int32_t f = t->tile.f, tile = t->first / HR_INTEGER_TILE;
    const int32_t place = tile < KEPT_TILES ? tile : KEPT_TILES;
    const uint64_t bit = tile < KEPT_TILES ? UINT64_C(1) << tile : 0;
    if (kept->kv_id != t->args->kv_id) kept->tiles = 0;
    kept->kv_id = t->args->kv_id;
    if (!(kept->tiles & bit)) make_columns(t, kept->columns[place], &kept->exponents[place]);
    kept->tiles |= bit;
    t->columns = kept->columns[place];
    t->tile = kept->exponents[place];
    if (t->k_groups || t->v_groups) make_groups(t);
    if (f == t->tile.f) return;
    const __m512d unit = _mm512_set1_pd(ldexp(t->octave, t->tile.f));
    for (int32_t b = 0; b < t->blocks; b++)
        for (int r = 0; r < LANES; r += 8) {
            const __m512d scaled = _mm512_mul_pd(_mm512_load_pd(t->block[b].factor + r), unit);
            const __m512d a = _mm512_min_pd(scaled, _mm512_set1_pd(HR_INTEGER_MAX_FACTOR));
            _mm256_store_ps(t->block[b].a + r, _mm512_cvtpd_ps(a));
        }
}

/* The subtiles with keys for block b; false when there are none. */
static bool enter_tile(task *t, int32_t b, passage *w)
{
    bool any = false;
    w->block = &t->block[b];
    w->first_row = b * BLOCK;
    for (int g = 0; g < GROUPS; g++) {
        const int32_t lo = w->block->range[g].any_lo - t->first,
                      hi = w->block->range[g].any_hi - t->first;
        w->begin[g] = lo > 0 ? lo / SUBTILE : 0;
        w->end[g] = hi < HR_INTEGER_TILE ? (hi + SUBTILE - 1) / SUBTILE : SUBTILES;
        w->tail[g] = hi < HR_INTEGER_TILE ? (hi - 1) % SUBTILE / 16 + 1 : 4;
        any |= w->begin[g] < w->end[g];
    }
    return any;
}

/* Step 3 for 64 keys that not every row sees: those not seen get y = 65535, after the fact. */
RARE void mask_logits(task *t, passage *w, int g, int subtile, bool first)
{
    /* The keys of 32 packed logits: hr_integer_lane, two to a lane. */
    const __m512i low = _mm512_add_epi16(
        _mm512_broadcast_i32x4(_mm_setr_epi16(0, 1, 2, 3, 16, 17, 18, 19)),
        _mm512_setr_epi64(0, 0, 0x0004000400040004, 0x0004000400040004, 0x0008000800080008,
                          0x0008000800080008, 0x000c000c000c000c, 0x000c000c000c000c));
    const __m512i keys[2] = {low, _mm512_add_epi16(low, _mm512_set1_epi16(32))};
    const __m512i none = _mm512_set1_epi16(-1);
    const int32_t begin = t->first + subtile * SUBTILE;
    for (int r = 0; r < ROWS; r++) {
        const int row = g * ROWS + r;
        const int32_t lo = w->block->lo[row] - begin, hi = w->block->hi[row] - begin;
        const int32_t from = lo > 0 ? lo : 0, to = hi < SUBTILE ? hi : SUBTILE;
        const __m512i start = _mm512_set1_epi16((int16_t)from);
        const __m512i count = _mm512_set1_epi16((int16_t)(to > from ? to - from : 0));
        uint16_t *y = t->y[g][subtile][r], *lanes = t->lanes[row];
        __m512i least = first ? none : _mm512_load_si512(lanes);
        for (int i = 0; i < 2; i++) {
            /* Keys before the first one seen become large numbers. */
            const __mmask32 seen = _mm512_cmplt_epu16_mask(_mm512_sub_epi16(keys[i], start), count);
            const __m512i half = _mm512_mask_mov_epi16(none, seen, _mm512_load_si512(y + 32 * i));
            _mm512_store_si512(y + 32 * i, half);
            least = _mm512_min_epu16(least, half);
        }
        _mm512_store_si512(lanes, least);
    }
}

/* The block's least y, lane by row. */
INLINE __m512i reduce_least(uint16_t lanes[BLOCK][32])
{
    __m512i v[BLOCK];
#pragma GCC unroll 12
    for (int row = 0; row < BLOCK; row++)
        v[row] = _mm512_load_si512(lanes[row]);
    const __m512i words = reduce_rows(v, MIN_WORDS);
    return _mm512_and_si512(_mm512_min_epu16(words, _mm512_srli_epi32(words, 16)),
                            _mm512_set1_epi32(0xffff));
}

/* The rows of the block that see a key of the tile, as lanes. */
INLINE __mmask16 rows_that_see(const task *t, const block_state *block)
{
    const __m512i first = _mm512_set1_epi32(t->first);
    const __m512i last = _mm512_set1_epi32(t->first + HR_INTEGER_TILE);
    const __m512i lo = _mm512_max_epi32(_mm512_load_si512(block->lo), first);
    const __m512i hi = _mm512_min_epi32(_mm512_load_si512(block->hi), last);
    return _mm512_cmplt_epi32_mask(lo, hi);
}

/*
 * Step 3 once more for the rows whose N leaves int16: relative to their least y, which becomes what
 * the tile is relative to. Rare, so the sums are made again rather than kept.
 */
RARE void remake_scores(task *t, passage *w, __mmask16 rows, float offset[LANES])
{
    for (int row = 0; row < BLOCK; row++) {
        const int g = row / ROWS, r = row % ROWS;
        if (r == 0 && rows >> row & ((1 << ROWS) - 1)) make_exact_tile(t, w, g, true);
        if (!(rows >> row & 1)) continue;
        __m512 least = _mm512_set1_ps(INFINITY);
        for (int s = w->begin[g]; s < w->end[g]; s++)
            for (int at = 0; at < SUBTILE; at += 16)
                least = _mm512_min_ps(least, _mm512_load_ps(t->exact[s][r] + at));
        offset[row] = _mm512_reduce_min_ps(least);
        w->top[row] = HR_INTEGER_TOP << 16 | HR_INTEGER_TOP;
        for (int s = w->begin[g]; s < w->end[g]; s++)
            for (int at = 0; at < SUBTILE; at += 32)
                _mm512_store_si512(t->y[g][s][r] + at,
                                   round_logits(t->exact[s][r] + at, _mm512_set1_ps(offset[row])));
    }
}

/*
 * Fetches the cache lines of O that finish_block writes while there is much else to do: rows of
 * many heads lie pages apart, where no prefetcher sees them coming as it does those of one head.
 */
INLINE void prefetch_output(const task *t, const passage *w)
{
    const hr_kernel_args *args = t->args;
    if (args->o_stride == t->head_dim) return;
    for (int row = 0; row < BLOCK; row++) {
        const int32_t i = args->q_begin + w->first_row + row;
        if (i >= args->q_end) return;
        const char *out = (const char *)(args->o + i * args->o_stride);
        for (size_t at = 0; at < (size_t)t->head_dim * sizeof *args->o; at += 64)
            __builtin_prefetch(out + at, 1, 2);
    }
}

/*
 * Before a block's first tile O is not there. Where all rows see something of the tile it becomes
 * T, as their beta is 1; else it starts as zeros.
 */
INLINE void enter_output(task *t, passage *w, __mmask16 seen)
{
    block_state *block = w->block;
    w->first = block->fresh && seen == block->rows && t->v_groups == 0;
    if (block->fresh) prefetch_output(t, w);
    if (block->fresh && !w->first)
        memset(t->o + w->first_row * t->channels, 0, (size_t)(BLOCK * t->channels) * sizeof *t->o);
    block->fresh = false;
}

/* M of the block's rows, -inf where a row sees nothing; makes logits anew where they need it. */
static __m512 find_largest(task *t, passage *w)
{
    ALIGNED float offset[LANES];
    const __mmask16 seen = rows_that_see(t, w->block);
    enter_output(t, w, seen);
    const __m512i least = reduce_least(t->lanes);
    const __m512i from = _mm512_sub_epi32(least, _mm512_set1_epi32(1));
    __mmask16 away = _mm512_cmpgt_epu32_mask(from, _mm512_set1_epi32(HR_INTEGER_MAX_LEAST - 1));
    away |= _mm512_cmp_ps_mask(_mm512_load_ps(w->block->a), _mm512_set1_ps(HR_INTEGER_MAX_DIRECT),
                               _CMP_GE_OQ);
    away &= seen;
    /* In words: N may be 65535 in rows that see nothing, whose logits all are. */
    const __m512i words = _mm512_or_si512(least, _mm512_slli_epi32(least, 16));
    _mm512_store_si512(w->top, _mm512_add_epi16(words, _mm512_set1_epi16(HR_INTEGER_TOP)));
    __m512 n = _mm512_cvtepi32_ps(least);
    if (away) {
        _mm512_store_ps(offset, n);
        remake_scores(t, w, away, offset);
        n = _mm512_load_ps(offset);
    }
    return _mm512_mask_sub_ps(_mm512_set1_ps(-INFINITY), seen, _mm512_set1_ps(HR_INTEGER_OFFSET),
                              n);
}

/* Steps 3 and 6 but O: scores, N and M, and what the tile does to m, e, l and O. */
static void make_scores(task *t, passage *w)
{
    block_state *block = w->block;
    const int64_t quads = t->head_dim / 4;
    for (int g = 0; g < GROUPS; g++)
        if (w->begin[g] >= w->end[g])
            for (int r = 0; r < ROWS; r++)
                _mm512_store_si512(t->lanes[g * ROWS + r], _mm512_set1_epi16(-1));
    if (t->exact_logits) make_exact_scores(t, w);
    for (int s = 0; s < SUBTILES && !t->exact_logits; s++)
        for (int g = 0; g < GROUPS; g++) {
            if (s < w->begin[g] || s >= w->end[g]) continue;
            const int32_t *q = t->q + (w->first_row + g * ROWS) * quads;
            const uint8_t *k = t->codes.k + (int64_t)s * SUBTILE * t->head_dim;
            const int32_t *init = block->init + g * ROWS;
            const float *a = block->a + g * ROWS;
            const int tail = s + 1 == w->end[g] ? w->tail[g] : 4;
            const bool first = s == w->begin[g];
            const bool masked = tail < 4 || is_masked(t, &block->range[g], s);
            /* Keys not seen must not count among the least: mask_logits finds that then. */
            uint16_t *lanes = masked ? t->unused_lanes[0] : t->lanes[g * ROWS];
            if (tail <= 2)
                micro_qk_logits_32(q, k, quads, init, &t->columns[s], a, t->y[g][s][0]);
            else if (tail == 3)
                micro_qk_logits_48(q, k, quads, init, &t->columns[s], a, t->y[g][s][0]);
            else if (first || masked)
                micro_qk_logits_first(q, k, quads, init, &t->columns[s], a, t->y[g][s][0], lanes);
            else
                micro_qk_logits_next(q, k, quads, init, &t->columns[s], a, t->y[g][s][0], lanes);
            if (masked) mask_logits(t, w, g, s, first);
        }
    join_tile(&t->tile, find_largest(t, w),
              (row_scalars){block->m, block->e, w->alpha, w->beta, w->o.alpha, w->o.beta});
}

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

/* The last step of a tile for a block, and of all when it was the last tile. */
static void leave_tile(task *t, const passage *w, bool last)
{
    if (t->v_groups)
        add_value_groups(t, w);
    else
        add_values(t, w);
    if (last) finish_block(t, w->first_row / BLOCK);
}

/*
 * One tile for all blocks. A block's P.V comes after the next block's scores: the chain scores -> M
 * -> weights -> P.V then always has independent work beside it. So have the stores of O, which wait
 * for the third-level cache where there are many heads.
 */
static void update_blocks(task *t, bool last)
{
    passage *previous = NULL;
    for (int32_t b = 0; b < t->blocks; b++) {
        passage *next = &t->passage[previous == &t->passage[0]];
        if (!enter_tile(t, b, next)) {
            if (last) finish_block(t, b);
            continue;
        }
        make_scores(t, next);
        if (previous) leave_tile(t, previous, last);
        make_block_weights(t, next);
        previous = next;
    }
    if (previous) leave_tile(t, previous, last);
}

void hr_integer_attention_avx512vnni(const hr_kernel_args *args, hr_integer_vnni_load load)
{
    const int32_t count = args->q_end - args->q_begin;
    assert(count >= 1 && count <= HR_INTEGER_VNNI_ROWS);
    assert(args->head_dim % 8 == 0 && args->head_dim <= HR_INTEGER_MAX_HEAD_DIM);
    assert((uintptr_t)args->scratch % 64 == 0);

    task *t = args->scratch;
    t->args = args;
    t->head_dim = args->head_dim;
    t->channels = hr_integer_vnni_channels(args->head_dim);
    t->blocks = (count + BLOCK - 1) / BLOCK;
    t->o = (float *)(t + 1);
    t->q = (int32_t *)(t->o + HR_INTEGER_VNNI_ROWS * t->channels);
    t->precise = args->p_dtype == HR_DTYPE_I16;
    t->half = args->isa_mask >> HR_ISA_AVX512FP16 & 1;
    t->k_groups = hr_integer_groups(&args->k, args->head_dim);
    t->v_groups = hr_integer_groups(&args->v, args->head_dim);
    assert(t->k_groups == 0 || args->k.block % 16 == 0);
    assert(t->v_groups == 0 || args->v.block % 16 == 0);
    t->octave = args->softcap == 0 ? HR_INTEGER_OCTAVE : 1;
    t->cap = hr_integer_cap_of(args->softcap);
    t->slope = (float)((double)args->alibi_slope * HR_INTEGER_LOG2E) * HR_INTEGER_OCTAVE;
    t->exact_logits = args->softcap != 0 || t->slope != 0 || t->k_groups != 0;
    t->tile.f = INT32_MIN; /* no tile's F */
    assert(!t->precise || t->v_groups == 0);
    const int vectors = t->channels / 16, columns = (vectors + 3) / 4;
    for (int i = 0; i < columns; i++)
        t->width[i] = (int8_t)((vectors + columns - 1 - i) / columns);
    t->width[columns] = 0;
    begin_rows(t);

    void *expanded = (char *)args->scratch + hr_integer_attention_avx512vnni_scratch(t->head_dim);
    hr_kernel_range range;
    int32_t ranges = args->range_count;
    while (ranges > 0 && !hr_kernel_visit(args, ranges - 1, &range))
        ranges--;
    for (int32_t index = 0; index < ranges; index++) {
        if (!hr_kernel_visit(args, index, &range)) continue;
        enter_range(t, &range);
        t->first = range.begin / HR_INTEGER_TILE * HR_INTEGER_TILE;
        for (; t->first < range.end; t->first += HR_INTEGER_TILE) {
            t->codes = load(args, &range, t->first, expanded);
            prepare_tile(t);
            update_blocks(t, index + 1 == ranges && t->first + HR_INTEGER_TILE >= range.end);
        }
    }
    for (int32_t b = 0; b < t->blocks && ranges == 0; b++)
        finish_block(t, b);
}
