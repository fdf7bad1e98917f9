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
#include "integer_weights_avx512vnni.h"

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
