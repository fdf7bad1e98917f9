/*
 * The integer family on AVX-512 VNNI: integer_softmax.h restated in vectors. A task of 96 rows
 * walks the tiles of 256 keys; in each, groups of six rows do
 *
 *     Y [6][256]  = logits, N          micro_qk_logits, for each 64 keys that some row sees
 *     P, s        = weights, row sums
 *     T [6][64]   = P . V              micro_pv, for each 64 channels
 *     O           = T * beta + O * alpha
 *
 * K of a tile (16 KiB at head_dim 64) stays in the first-level cache for the sixteen groups'
 * logits, then V for their outputs; logits go through the second-level cache. The limit is the two
 * vector ports, which multiplies and softmax share: for 64 logits of a row, 2 head_dim multiplies
 * and 38 others (4 start the sums, 16 make logits, 15 make weights, 3 the output at head_dim 64),
 * so 77% at head_dim 64, 87% at 128.
 */
#include "integer_body_avx512vnni.h"

#include <assert.h>
#include <immintrin.h>

#include "integer_micro_avx512vnni.h"
#include "integer_vector_avx512vnni.h"

enum {
    ROWS = HR_MICRO_ROWS,
    GROUPS = HR_INTEGER_VNNI_ROWS / ROWS,
    SUBTILE = HR_INTEGER_VNNI_TILE,
    SUBTILES = HR_INTEGER_TILE / SUBTILE,
    GROUP_LANES = 16 /* one group's scalars fill part of one vector */
};

/* One group's six rows; rows past the end of the task repeat the last one. */
typedef struct group_state {
    ALIGNED float l[ROWS][HR_INTEGER_LANES];
    ALIGNED float m[GROUP_LANES];
    ALIGNED float e[GROUP_LANES];
    ALIGNED float a[GROUP_LANES];
    ALIGNED double factor[GROUP_LANES];
    ALIGNED int32_t init[GROUP_LANES]; /* bits of 1.5 * 2^23, less 128 times the sum of q */
    ALIGNED int32_t lo[GROUP_LANES];   /* keys a row sees */
    ALIGNED int32_t hi[GROUP_LANES];
    int32_t any_lo, any_hi;       /* keys that some row of the group sees are in here */
    int32_t common_lo, common_hi; /* keys that every row sees are those in here */
} group_state;

/* A group on its way through the steps of one tile. */
typedef struct passage {
    ALIGNED uint8_t p[SUBTILES][ROWS][SUBTILE];
    ALIGNED uint16_t y[SUBTILES][ROWS][SUBTILE]; /* in the order of micro_qk_logits */
    ALIGNED float alpha[GROUP_LANES], beta[GROUP_LANES];
    ALIGNED int32_t least[GROUP_LANES]; /* N */
    ALIGNED float alpha_o[GROUP_LANES], beta_o[GROUP_LANES];
    group_state *group;
    int32_t first_row;
    int begin, end; /* subtiles [begin, end) hold keys that some row sees */
} passage;

typedef struct task {
    passage passage[2];
    ALIGNED float exact[SUBTILES][ROWS][SUBTILE]; /* y of tiles whose N leaves int16 */
    ALIGNED int32_t t[ROWS][HR_MICRO_COLUMNS];
    ALIGNED uint16_t lanes[ROWS][32]; /* the group's least y by lanes */
    ALIGNED float k_scale[HR_INTEGER_TILE], v_scale[HR_INTEGER_TILE];
    tile_columns columns[SUBTILES];
    group_state group[GROUPS];
    const hr_kernel_args *args;
    int32_t head_dim, channels; /* channels: head_dim rounded up to 16 */
    int32_t groups;
    int32_t first; /* the tile's first key */
    tile_exponents tile;
    bool half; /* the CPU has AVX512-FP16 */
    const uint8_t *tile_k;
    const int8_t *tile_v;
    int32_t *q; /* [groups][head_dim / 4][6] dwords */
    float *o;   /* [groups * 6][channels] */
} task;

size_t hr_integer_attention_avx512vnni_scratch(int32_t head_dim)
{
    size_t rows = HR_INTEGER_VNNI_ROWS;
    return sizeof(task) + rows * (size_t)head_dim +
           rows * (size_t)hr_integer_vnni_channels(head_dim) * sizeof(float);
}

/* Step 1, and a of step 2 when F has changed. */
static void prepare_tile(task *t)
{
    const int32_t f = t->tile.f, left = t->args->seqlen_kv - t->first;
    const int32_t count = left < HR_INTEGER_TILE ? left : HR_INTEGER_TILE;
    const float k_max = gather_scales(&t->args->k, t->head_dim, t->first, count, t->k_scale);
    const float v_max = gather_scales(&t->args->v, t->head_dim, t->first, count, t->v_scale);
    t->tile = scale_columns(t->k_scale, k_max, t->v_scale, v_max, count, t->columns);
    if (f == t->tile.f) return;
    const double unit = ldexp(HR_INTEGER_OCTAVE, t->tile.f);
    for (int32_t g = 0; g < t->groups; g++)
        for (int r = 0; r < GROUP_LANES; r++)
            t->group[g].a[r] = hr_integer_tile_factor(t->group[g].factor[r], unit);
}

/* The keys [lo, hi) of the sequence as bits of the 64 keys from `first` on. */
INLINE uint64_t visible_bits(int32_t lo, int32_t hi, int32_t first)
{
    int32_t from = lo > first ? lo - first : 0;
    int32_t to = hi - first < SUBTILE ? hi - first : SUBTILE;
    if (from >= to) return 0;
    return (~UINT64_C(0) >> (64 - (to - from))) << from;
}

/* Are there keys of this subtile that some row of the group does not see? */
INLINE bool is_masked(const task *t, const group_state *group, int subtile)
{
    const int32_t first = t->first + subtile * SUBTILE, keys = t->args->seqlen_kv;
    const int32_t last = first + SUBTILE < keys ? first + SUBTILE : keys;
    return group->common_lo > first || group->common_hi < last;
}

/* The subtiles with keys for the group; false when there are none. */
static bool enter_tile(task *t, int32_t g, passage *w)
{
    const int32_t lo = t->group[g].any_lo - t->first, hi = t->group[g].any_hi - t->first;
    w->group = &t->group[g];
    w->first_row = g * ROWS;
    w->begin = lo > 0 ? lo / SUBTILE : 0;
    w->end = hi < HR_INTEGER_TILE ? (hi + SUBTILE - 1) / SUBTILE : SUBTILES;
    return w->begin < w->end;
}

/*
 * y of 64 keys and all rows from the sums of micro_qk, in place; +inf for keys not seen. `values`:
 * with V's scales.
 */
static void make_exact_logits(const task *t, const group_state *group, int subtile, bool values,
                              float y[ROWS][SUBTILE])
{
    const tile_columns *columns = &t->columns[subtile];
    for (int r = 0; r < ROWS; r++) {
        const uint64_t visible =
            visible_bits(group->lo[r], group->hi[r], t->first + subtile * SUBTILE);
        for (int at = 0; at < SUBTILE; at += 16) {
            __m512 x = _mm512_fmadd_ps(_mm512_load_ps(y[r] + at), _mm512_load_ps(columns->k + at),
                                       _mm512_load_ps(columns->k_magic + at));
            x = _mm512_fnmadd_ps(x, _mm512_set1_ps(group->a[r]),
                                 values ? _mm512_load_ps(columns->u + at)
                                        : _mm512_set1_ps(HR_INTEGER_OFFSET));
            x = _mm512_mask_blend_ps((__mmask16)(visible >> at), _mm512_set1_ps(INFINITY), x);
            _mm512_store_ps(y[r] + at, x);
        }
    }
}

/* round16 of y - n for 32 keys, packed as micro_qk_logits does. */
INLINE __m512i round_logits(const float *y, __m512 n)
{
    return pack_logits(_mm512_load_ps(y), _mm512_load_ps(y + 16), n);
}

/* Step 3 for 64 keys that not every row sees. */
static void make_masked_logits(task *t, passage *w, int subtile, const int32_t *q, const uint8_t *k)
{
    float(*y)[SUBTILE] = t->exact[subtile];
    micro_qk(q, k, t->head_dim / 4, w->group->init, y[0]);
    make_exact_logits(t, w->group, subtile, true, y);
    for (int r = 0; r < ROWS; r++) {
        __m512i least = _mm512_load_si512(t->lanes[r]);
        for (int at = 0; at < SUBTILE; at += 32) {
            __m512i packed = round_logits(y[r] + at, _mm512_setzero_ps());
            least = _mm512_min_epu16(least, packed);
            _mm512_store_si512(w->y[subtile][r] + at, packed);
        }
        _mm512_store_si512(t->lanes[r], least);
    }
}

/* The least lane of each of six vectors, in lanes 0 to 5. */
INLINE __m512i reduce_rows(uint16_t lanes[ROWS][32])
{
    __m512i v[ROWS], pair[3], rows[2];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
        v[r] = _mm512_load_si512(lanes[r]);
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++) /* two 128-bit lanes of row 2 i, two of row 2 i + 1 */
        pair[i] = _mm512_min_epu16(_mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0x44),
                                   _mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0xee));
    /* A 128-bit lane a row: 0, 1, 2, 3 and 4, 5, 4, 5. */
    rows[0] = _mm512_min_epu16(_mm512_shuffle_i32x4(pair[0], pair[1], 0x88),
                               _mm512_shuffle_i32x4(pair[0], pair[1], 0xdd));
    rows[1] = _mm512_min_epu16(_mm512_shuffle_i32x4(pair[2], pair[2], 0x88),
                               _mm512_shuffle_i32x4(pair[2], pair[2], 0xdd));
    /* 64 bits a row: 0, 4, 1, 5, 2, 4, 3, 5. */
    __m512i least = _mm512_min_epu16(_mm512_unpacklo_epi64(rows[0], rows[1]),
                                     _mm512_unpackhi_epi64(rows[0], rows[1]));
    least = _mm512_min_epu16(least, _mm512_srli_epi64(least, 32));
    least = _mm512_min_epu16(least, _mm512_srli_epi64(least, 16));
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 0, 0);
    least = _mm512_permutexvar_epi64(order, least);
    const __m256i dwords = _mm512_cvtepi64_epi32(least);
    return _mm512_and_si512(_mm512_zextsi256_si512(dwords), _mm512_set1_epi32(0xffff));
}

/* The rows of the group that see a key of the tile, as lanes. */
INLINE __mmask16 rows_that_see(const task *t, const group_state *group)
{
    const __m512i first = _mm512_set1_epi32(t->first);
    const __m512i last = _mm512_set1_epi32(t->first + HR_INTEGER_TILE);
    const __m512i lo = _mm512_max_epi32(_mm512_load_si512(group->lo), first);
    const __m512i hi = _mm512_min_epi32(_mm512_load_si512(group->hi), last);
    return _mm512_mask_cmplt_epi32_mask((1 << ROWS) - 1, lo, hi);
}

/* Logits of the tile in FP32, made again from the codes. */
static void make_exact_tile(task *t, const passage *w, bool values)
{
    const int64_t quads = t->head_dim / 4;
    for (int s = w->begin; s < w->end; s++) {
        micro_qk(t->q + w->first_row * quads, t->tile_k + (int64_t)s * SUBTILE * t->head_dim, quads,
                 w->group->init, t->exact[s][0]);
        make_exact_logits(t, w->group, s, values, t->exact[s]);
    }
}

/*
 * Step 3 once more for the rows whose N leaves int16: relative to their least y, which becomes what
 * the tile is relative to. Rare, so the sums are made again rather than kept.
 */
static void remake_scores(task *t, passage *w, __mmask16 rows, float offset[GROUP_LANES])
{
    make_exact_tile(t, w, true);
    for (int r = 0; r < ROWS; r++) {
        if (!(rows >> r & 1)) continue;
        __m512 least = _mm512_set1_ps(INFINITY);
        for (int s = w->begin; s < w->end; s++)
            for (int at = 0; at < SUBTILE; at += 16)
                least = _mm512_min_ps(least, _mm512_load_ps(t->exact[s][r] + at));
        offset[r] = _mm512_reduce_min_ps(least);
        w->least[r] = 0;
        for (int s = w->begin; s < w->end; s++)
            for (int at = 0; at < SUBTILE; at += 32)
                _mm512_store_si512(w->y[s][r] + at,
                                   round_logits(t->exact[s][r] + at, _mm512_set1_ps(offset[r])));
    }
}

/* M of the group's rows, -inf where a row sees nothing; makes logits anew where they need it. */
static __m512 find_largest(task *t, passage *w)
{
    ALIGNED float offset[GROUP_LANES];
    const __mmask16 seen = rows_that_see(t, w->group);
    const __m512i least = reduce_rows(t->lanes);
    const __m512i from = _mm512_sub_epi32(least, _mm512_set1_epi32(1));
    __mmask16 away = _mm512_cmpgt_epu32_mask(from, _mm512_set1_epi32(HR_INTEGER_MAX_LEAST - 1));
    away |= _mm512_cmp_ps_mask(_mm512_load_ps(w->group->a), _mm512_set1_ps(HR_INTEGER_MAX_DIRECT),
                               _CMP_GE_OQ);
    away &= seen;
    _mm512_store_si512(w->least, least);
    _mm512_store_ps(offset, _mm512_cvtepi32_ps(least));
    if (away) remake_scores(t, w, away, offset);
    return _mm512_mask_sub_ps(_mm512_set1_ps(-INFINITY), seen, _mm512_set1_ps(HR_INTEGER_OFFSET),
                              _mm512_load_ps(offset));
}

/* Steps 3 and 6 but O: scores, N and M, and what the tile does to m, e, l and O. */
static void make_scores(task *t, passage *w)
{
    group_state *group = w->group;
    const int64_t quads = t->head_dim / 4;
    const int32_t *q = t->q + w->first_row * quads;
    for (int r = 0; r < ROWS; r++)
        _mm512_store_si512(t->lanes[r], _mm512_set1_epi16(-1));
    for (int s = w->begin; s < w->end; s++) {
        const uint8_t *k = t->tile_k + (int64_t)s * SUBTILE * t->head_dim;
        if (is_masked(t, group, s))
            make_masked_logits(t, w, s, q, k);
        else
            micro_qk_logits(q, k, quads, group->init, &t->columns[s], group->a, w->y[s][0],
                            t->lanes[0]);
    }
    join_tile(&t->tile, find_largest(t, w),
              (row_scalars){group->m, group->e, w->alpha, w->beta, w->alpha_o, w->beta_o});
}

/* Step 4 for rows r and r + 1, and their sums of step 6. Keys not seen are 65535 in y: no weight.
 */
INLINE void make_weights(const task *t, passage *w, int r, bool wide, bool half)
{
    const weight_constants c = load_weight_constants();
    __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    __m512i rest[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    const __m512i top[2] = {_mm512_set1_epi16((int16_t)(HR_INTEGER_TOP + w->least[r])),
                            _mm512_set1_epi16((int16_t)(HR_INTEGER_TOP + w->least[r + 1]))};
    for (int s = w->begin; s < w->end; s++) {
        const tile_columns *columns = &t->columns[s];
        __m512i e[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            e[i] = weights_of(_mm512_load_si512(w->y[s][r + i / 2] + i % 2 * 32), top[i / 2], &c,
                              half);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            add_weights(&sum[i / 2], e[i], _mm512_load_si512(columns->sum + i % 2 * 32));
            if (wide)
                add_weights(&rest[i / 2], e[i], _mm512_load_si512(columns->rest + i % 2 * 32));
        }
        _mm512_store_si512(w->p[s][r], pack_weights(e[0], e[1], &c));
        _mm512_store_si512(w->p[s][r + 1], pack_weights(e[2], e[3], &c));
    }
    for (int i = 0; i < 2; i++) {
        float *l = w->group->l[r + i];
        const __m512 lanes = wide ? join_sums(sum[i], rest[i]) : _mm512_cvtepi32_ps(sum[i]);
        const __m512 old = _mm512_mul_ps(_mm512_load_ps(l), _mm512_set1_ps(w->alpha[r + i]));
        /* In other tiles add_uneven_sums does it. */
        if (t->tile.even || t->tile.wide)
            _mm512_store_ps(l, _mm512_fmadd_ps(lanes, _mm512_set1_ps(w->beta[r + i]), old));
    }
}

/* The row sums of step 6 where the tile is neither even nor wide: rare, so the logits are made
 * again. */
static void add_uneven_sums(task *t, passage *w)
{
    ALIGNED float x[HR_INTEGER_TILE];
    const __mmask16 seen = rows_that_see(t, w->group);
    make_exact_tile(t, w, false);
    for (int r = 0; r < ROWS; r++) {
        __m512 factor;
        float *l = w->group->l[r];
        if (!(seen >> r & 1)) continue;
        for (int s = w->begin; s < w->end; s++)
            memcpy(x + s * SUBTILE, t->exact[s][r], sizeof t->exact[s][r]);
        const __m512 sum =
            sum_uneven(x, w->begin * SUBTILE, w->end * SUBTILE, w->group->m[r], &factor);
        __m512 old = _mm512_mul_ps(_mm512_load_ps(l), _mm512_set1_ps(w->alpha[r]));
        _mm512_store_ps(l, _mm512_fmadd_ps(sum, factor, old));
    }
}

static void make_group_weights(task *t, passage *w)
{
    for (int r = 0; r < ROWS; r += 2) {
        if (!t->half)
            make_weights(t, w, r, t->tile.wide, false);
        else if (t->tile.wide)
            make_weights(t, w, r, true, true);
        else
            make_weights(t, w, r, false, true);
    }
    if (!t->tile.even && !t->tile.wide) add_uneven_sums(t, w);
}

/* O = T * beta + O * alpha for six rows and 16 * vectors channels from `channel` on. */
INLINE void add_output(task *t, const passage *w, int32_t channel, int vectors)
{
    for (int r = 0; r < ROWS; r++) {
        float *o = t->o + (w->first_row + r) * t->channels + channel;
        const __m512 alpha = _mm512_set1_ps(w->alpha_o[r]), beta = _mm512_set1_ps(w->beta_o[r]);
        for (int c = 0; c < vectors; c++) {
            __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(t->t[r] + 16 * c));
            __m512 old = _mm512_mul_ps(_mm512_load_ps(o + 16 * c), alpha);
            _mm512_store_ps(o + 16 * c, _mm512_fmadd_ps(sum, beta, old));
        }
    }
}

/* T = P.V and O, in column blocks of four vectors, or as even as the channels allow. */
static void add_values(task *t, const passage *w)
{
    const int64_t stride = (int64_t)t->channels * 4;
    const int8_t *v = t->tile_v + w->begin * SUBTILE * (int64_t)t->channels;
    const int vectors = t->channels / 16, blocks = (vectors + 3) / 4;
    int done = 0;
    for (int block = 0; block < blocks; block++) {
        int width = (vectors - done + blocks - block - 1) / (blocks - block);
        micro_pv(width, w->p[w->begin][0], v + done * 64, stride, w->end - w->begin, t->t[0]);
        if (width == 4)
            add_output(t, w, done * 16, 4);
        else
            add_output(t, w, done * 16, width);
        done += width;
    }
}

/*
 * One tile for all groups. A group's P.V comes after the next group's scores: the chain scores -> M
 * -> weights -> P.V then always has independent work beside it.
 */
static void update_groups(task *t)
{
    passage *previous = NULL;
    for (int32_t g = 0; g < t->groups; g++) {
        passage *next = &t->passage[previous == &t->passage[0]];
        if (!enter_tile(t, g, next)) continue;
        make_scores(t, next);
        if (previous) add_values(t, previous);
        make_group_weights(t, next);
        previous = next;
    }
    if (previous) add_values(t, previous);
}

/* Row `index` of the task: its codes as dwords, six rows side by side, and its constants. */
static void begin_row(task *t, int32_t index)
{
    const hr_kernel_args *args = t->args;
    const int32_t count = args->q_end - args->q_begin, head_dim = t->head_dim;
    const int32_t i = args->q_begin + (index < count ? index : count - 1), r = index % ROWS;
    group_state *group = &t->group[index / ROWS];
    const int8_t *codes = (const int8_t *)args->q.codes + (int64_t)i * head_dim;
    int32_t *q = t->q + index / ROWS * ROWS * (head_dim / 4) + r;
    __m512i sum = _mm512_setzero_si512();
    for (int32_t c = 0; c < head_dim; c += 64) {
        __mmask64 mask = head_dim - c < 64 ? (UINT64_C(1) << (head_dim - c)) - 1 : ~UINT64_C(0);
        sum =
            _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_maskz_loadu_epi8(mask, codes + c));
    }
    for (int32_t quad = 0; quad < head_dim / 4; quad++)
        memcpy(q + quad * ROWS, codes + quad * 4, 4);
    group->init[r] =
        (int32_t)hr_integer_bits(HR_INTEGER_MAGIC) - 128 * _mm512_reduce_add_epi32(sum);
    group->factor[r] = hr_integer_row_factor(args, i);
    group->m[r] = -INFINITY;
    group->e[r] = HR_INTEGER_NO_TILE;
}

/* Which keys of a range the rows see. */
static void enter_range(task *t, const hr_kernel_range *range)
{
    const hr_kernel_args *args = t->args;
    for (int32_t g = 0; g < t->groups; g++) {
        group_state *group = &t->group[g];
        group->any_lo = group->common_hi = INT32_MAX;
        group->any_hi = group->common_lo = 0;
        for (int32_t r = 0; r < ROWS; r++) {
            const int32_t i = args->q_begin + g * ROWS + r;
            int32_t lo, hi;
            hr_kernel_row_range(args, range, i < args->q_end ? i : args->q_end - 1, &lo, &hi);
            group->lo[r] = lo;
            group->hi[r] = hi;
            if (lo < hi) {
                group->any_lo = lo < group->any_lo ? lo : group->any_lo;
                group->any_hi = hi > group->any_hi ? hi : group->any_hi;
            }
            group->common_lo = lo > group->common_lo ? lo : group->common_lo;
            group->common_hi = hi < group->common_hi ? hi : group->common_hi;
        }
    }
}

static void finish_row(const task *t, int32_t index)
{
    const hr_kernel_args *args = t->args;
    const group_state *group = &t->group[index / ROWS];
    const int32_t r = index % ROWS, i = args->q_begin + index;
    double bias = args->lse_bias ? (double)args->lse_bias[i] * (double)args->softmax_scale : 0;
    const float sum = sum_of_lanes(_mm512_load_ps(group->l[r]));
    const __m512 factor = _mm512_set1_ps(hr_integer_finish(args, i, group->m[r], sum, bias));
    const __m512 e = _mm512_set1_ps(group->e[r]);
    const float *o = t->o + index * t->channels;
    float *out = args->o + i * args->o_stride;
    for (int32_t c = 0; c < t->head_dim; c += 16) {
        __mmask16 mask = t->head_dim - c < 16 ? 0xff : 0xffff;
        __m512 scaled = _mm512_scalef_ps(_mm512_mul_ps(_mm512_load_ps(o + c), factor), e);
        _mm512_mask_storeu_ps(out + c, mask, scaled);
    }
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
    t->groups = (count + ROWS - 1) / ROWS;
    t->o = (float *)(t + 1);
    t->q = (int32_t *)(t->o + HR_INTEGER_VNNI_ROWS * t->channels);
    t->half = args->isa_mask >> HR_ISA_AVX512FP16 & 1;
    memset(t->group, 0, (size_t)t->groups * sizeof t->group[0]);
    memset(t->o, 0, (size_t)(t->groups * ROWS * t->channels) * sizeof *t->o);
    t->tile.f = INT32_MIN; /* no tile's F */
    for (int32_t index = 0; index < t->groups * ROWS; index++)
        begin_row(t, index);

    void *expanded = (char *)args->scratch + hr_integer_attention_avx512vnni_scratch(t->head_dim);
    for (int32_t index = 0; index < args->range_count; index++) {
        hr_kernel_range range;
        if (!hr_kernel_visit(args, index, &range)) continue;
        enter_range(t, &range);
        t->first = range.begin / HR_INTEGER_TILE * HR_INTEGER_TILE;
        for (; t->first < range.end; t->first += HR_INTEGER_TILE) {
            hr_integer_vnni_tile tile = load(args, &range, t->first, expanded);
            t->tile_k = tile.k;
            t->tile_v = tile.v;
            prepare_tile(t);
            update_groups(t);
        }
    }
    for (int32_t index = 0; index < count; index++)
        finish_row(t, index);
}
