/*
 * The integer family on AVX-512 VNNI: integer_softmax.h restated in vectors. A task of 96 rows
 * walks the tiles of 256 keys; in each, groups of six rows do
 *
 *     x [6][256]  = logits, M          micro_qk_logits, for each 64 keys that some row sees
 *     P, s        = weights, row sums
 *     T [6][64]   = P . V              micro_pv, for each 64 channels
 *     O           = T * beta + O * alpha
 *
 * Everything but K and V stays in the first-level cache during a group; K and V of a tile (32 KiB
 * at head_dim 64) stay in the second-level cache for the sixteen groups. The limit is the two
 * vector ports, which multiplies and softmax share: for 16 logits, head_dim / 2 multiplies and 17
 * others (1 start of the sums, 3 logits, 12 weights, 1 output), so 65% at head_dim 64, 79% at 128.
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

#define ALIGNED __attribute__((aligned(64)))

/* One group's six rows; rows past the end of the task repeat the last one. */
typedef struct group_state {
    ALIGNED float l[ROWS][HR_INTEGER_LANES];
    ALIGNED float m[GROUP_LANES];
    ALIGNED float e[GROUP_LANES];
    ALIGNED float a[GROUP_LANES];
    ALIGNED double factor[GROUP_LANES];
    ALIGNED int32_t init[GROUP_LANES]; /* bits of 1.5 * 2^23, less 128 times the sum of q */
    int32_t lo[ROWS], hi[ROWS];        /* keys a row sees */
    int32_t any_lo, any_hi;            /* keys that some row of the group sees are in here */
    int32_t common_lo, common_hi;      /* keys that every row sees are those in here */
} group_state;

/* A group on its way through the steps of one tile. */
typedef struct passage {
    ALIGNED uint8_t p[SUBTILES][ROWS][SUBTILE];
    ALIGNED float largest[GROUP_LANES], alpha[GROUP_LANES], beta[GROUP_LANES];
    ALIGNED float alpha_o[GROUP_LANES], beta_o[GROUP_LANES];
    group_state *group;
    int32_t first_row;
    int begin, end; /* subtiles [begin, end) hold keys that some row sees */
} passage;

typedef struct task {
    ALIGNED float x[SUBTILES][ROWS][SUBTILE];
    passage passage[2];
    ALIGNED int32_t t[ROWS][HR_MICRO_COLUMNS];
    ALIGNED float lanes[ROWS][16]; /* the group's largest logits by lanes */
    ALIGNED float k_scale[HR_INTEGER_TILE], v_scale[HR_INTEGER_TILE];
    micro_columns columns[SUBTILES];
    group_state group[GROUPS];
    const hr_kernel_args *args;
    int32_t head_dim, channels; /* channels: head_dim rounded up to 16 */
    int32_t groups;
    int32_t first; /* the tile's first key */
    int32_t f;     /* F of the tile */
    float e;       /* E of the tile */
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

/* One scale a key of the tile, 0 past the end of the sequence; returns the largest. */
static float gather_scales(const task *t, const hr_kernel_operand *operand, float *scale)
{
    int32_t count = t->args->seqlen_kv - t->first;
    if (count > HR_INTEGER_TILE) count = HR_INTEGER_TILE;
    if (operand->granularity == HR_GRANULARITY_TOKEN && !operand->pages)
        memcpy(scale, operand->scale + t->first, (size_t)count * sizeof *scale);
    else
        for (int32_t j = 0; j < count; j++)
            scale[j] = hr_integer_token_scale(operand, t->head_dim, t->first + j);
    memset(scale + count, 0, (size_t)(HR_INTEGER_TILE - count) * sizeof *scale);
    __m512 largest = _mm512_setzero_ps();
    for (int32_t j = 0; j < HR_INTEGER_TILE; j += 16)
        largest = _mm512_max_ps(largest, _mm512_load_ps(scale + j));
    return _mm512_reduce_max_ps(largest);
}

/* Step 1, and a of step 2 when F has changed. */
static void prepare_tile(task *t)
{
    const int32_t f = hr_integer_exponent(gather_scales(t, &t->args->k, t->k_scale));
    const int32_t e = hr_integer_exponent(gather_scales(t, &t->args->v, t->v_scale));
    const __m512 minus_f = _mm512_set1_ps((float)-f), minus_e = _mm512_set1_ps((float)-e);
    for (int32_t j = 0; j < HR_INTEGER_TILE; j += 16) {
        micro_columns *columns = &t->columns[j / SUBTILE];
        const int32_t at = j % SUBTILE;
        __m512 k = round22(_mm512_scalef_ps(_mm512_load_ps(t->k_scale + j), minus_f));
        __m512 w = _mm512_scalef_ps(_mm512_load_ps(t->v_scale + j), minus_e);
        w = _mm512_max_ps(w, _mm512_set1_ps(HR_INTEGER_MIN_V));
        _mm512_store_ps(columns->k + at, k);
        _mm512_store_ps(columns->k_magic + at, _mm512_mul_ps(k, _mm512_set1_ps(-HR_INTEGER_MAGIC)));
        _mm512_store_ps(columns->u + at, log2_of(w));
        _mm512_store_ps(columns->r + at, _mm512_div_ps(_mm512_set1_ps(1.0f), w));
    }
    if (f != t->f) {
        const double unit = ldexp(1, f);
        for (int32_t g = 0; g < t->groups; g++)
            for (int r = 0; r < GROUP_LANES; r++)
                t->group[g].a[r] = hr_integer_tile_factor(t->group[g].factor[r], unit);
    }
    t->f = f;
    t->e = (float)e;
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
    const int32_t first = t->first + subtile * SUBTILE;
    return group->common_lo > first || group->common_hi < first + SUBTILE;
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

/* Step 3 on the sums of micro_qk, for 64 keys that not every row sees: the others are -inf. */
static void make_masked_logits(task *t, const group_state *group, int subtile)
{
    const micro_columns *columns = &t->columns[subtile];
    for (int r = 0; r < ROWS; r++) {
        const uint64_t visible =
            visible_bits(group->lo[r], group->hi[r], t->first + subtile * SUBTILE);
        __m512 largest = _mm512_load_ps(t->lanes[r]);
        for (int at = 0; at < SUBTILE; at += 16) {
            float *out = t->x[subtile][r] + at;
            __m512 x = _mm512_fmadd_ps(_mm512_load_ps(out), _mm512_load_ps(columns->k + at),
                                       _mm512_load_ps(columns->k_magic + at));
            x = _mm512_fmadd_ps(x, _mm512_set1_ps(group->a[r]), _mm512_load_ps(columns->u + at));
            x = _mm512_mask_blend_ps((__mmask16)(visible >> at), _mm512_set1_ps(-INFINITY), x);
            largest = _mm512_max_ps(largest, x);
            _mm512_store_ps(out, x);
        }
        _mm512_store_ps(t->lanes[r], largest);
    }
}

/* Step 6, the scalars of the group's rows. */
static void update_state(const task *t, passage *w)
{
    group_state *group = w->group;
    const __m512 tile_m = _mm512_load_ps(w->largest), tile_e = _mm512_set1_ps(t->e);
    const __m512 m = _mm512_load_ps(group->m), e = _mm512_load_ps(group->e);
    const __mmask16 seen = _mm512_cmp_ps_mask(tile_m, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ);
    const __m512 new_m = _mm512_max_ps(tile_m, m);
    const __m512 new_e = _mm512_mask_max_ps(e, seen, tile_e, e);
    __m512 z[2] = {_mm512_sub_ps(m, new_m), _mm512_sub_ps(tile_m, new_m)};
    exp2_of(z, 2, exp2_1);
    const __m512 alpha = z[0], beta = z[1];
    _mm512_store_ps(w->alpha, alpha);
    _mm512_store_ps(w->beta, beta);
    _mm512_store_ps(w->alpha_o, _mm512_scalef_ps(alpha, _mm512_sub_ps(e, new_e)));
    /* A row that has seen no key yet has e = -1000; 0 for this tile's zeros, not inf. */
    _mm512_store_ps(w->beta_o, _mm512_maskz_scalef_ps(seen, beta, _mm512_sub_ps(tile_e, new_e)));
    _mm512_store_ps(group->m, new_m);
    _mm512_store_ps(group->e, new_e);
}

/* The largest lane of each of six vectors, in lanes 0 to 5. */
INLINE __m512 reduce_rows(float lanes[ROWS][16])
{
    __m512 v[ROWS], pair[3], rows[2];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
        v[r] = _mm512_load_ps(lanes[r]);
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++) /* rows 2 i and 2 i + 1 in turn */
        pair[i] = _mm512_max_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                                _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    rows[0] = _mm512_max_ps(_mm512_shuffle_ps(pair[0], pair[1], 0x44),
                            _mm512_shuffle_ps(pair[0], pair[1], 0xee));
    rows[1] = _mm512_max_ps(pair[2], _mm512_shuffle_ps(pair[2], pair[2], 0xee));
    /* Four rows a 128-bit lane; the four lanes of each, side by side. */
    __m512 even = _mm512_shuffle_f32x4(rows[0], rows[1], 0x44);
    __m512 odd = _mm512_shuffle_f32x4(rows[0], rows[1], 0xee);
    __m512 halves = _mm512_max_ps(even, odd); /* lanes: rows 0-3 twice, rows 4-5 twice */
    halves = _mm512_max_ps(halves, _mm512_shuffle_f32x4(halves, halves, 0xb1));
    return _mm512_shuffle_f32x4(halves, halves, 0x08);
}

/* Steps 3 and 6 but O: scores, M, and what the tile does to m, e, l and O. */
static void make_scores(task *t, passage *w)
{
    const group_state *group = w->group;
    const int64_t quads = t->head_dim / 4;
    const int32_t *q = t->q + w->first_row * quads;
    for (int r = 0; r < ROWS; r++)
        _mm512_store_ps(t->lanes[r], _mm512_set1_ps(-INFINITY));
    for (int s = w->begin; s < w->end; s++) {
        const uint8_t *k = t->tile_k + (int64_t)s * SUBTILE * t->head_dim;
        if (is_masked(t, group, s)) {
            micro_qk(q, k, quads, group->init, t->x[s][0]);
            make_masked_logits(t, group, s);
        } else {
            micro_qk_logits(q, k, quads, group->init, &t->columns[s], group->a, t->x[s][0],
                            t->lanes[0]);
        }
    }
    _mm512_store_ps(w->largest, reduce_rows(t->lanes));
    update_state(t, w);
}

/* Step 4 for 64 keys of rows r and r + 1: P, in the key order of HR_LAYOUT_VNNI_V, and row sums. */
INLINE void make_weights(const task *t, passage *w, int r, int subtile, __m512 sum[2], bool masked)
{
    const int32_t first = subtile * SUBTILE;
    const group_state *group = w->group;
    __m512 e[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        e[i] = _mm512_sub_ps(_mm512_load_ps(t->x[subtile][r + i / 4] + i % 4 * 16),
                             _mm512_set1_ps(w->largest[r + i / 4]));
    exp2_of(e, 8, exp2_255);
    if (masked) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            uint64_t visible =
                visible_bits(group->lo[r + i / 4], group->hi[r + i / 4], t->first + first);
            e[i] = _mm512_maskz_mov_ps((__mmask16)(visible >> (i % 4 * 16)), e[i]);
        }
    }
    __m512i p[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        p[i] = _mm512_cvtps_epi32(e[i]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        sum[i / 4] =
            _mm512_fmadd_ps(e[i], _mm512_load_ps(t->columns[subtile].r + i % 4 * 16), sum[i / 4]);
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        __m512i low = _mm512_packs_epi32(p[i], p[i + 1]);
        __m512i high = _mm512_packs_epi32(p[i + 2], p[i + 3]);
        _mm512_store_si512(w->p[subtile][r + i / 4], _mm512_packus_epi16(low, high));
    }
}

/* Step 4 for all rows of a group, and the row sums of step 6. */
static void make_group_weights(const task *t, passage *w)
{
    for (int r = 0; r < ROWS; r += 2) {
        __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int s = w->begin; s < w->end; s++) {
            if (is_masked(t, w->group, s))
                make_weights(t, w, r, s, sum, true);
            else
                make_weights(t, w, r, s, sum, false);
        }
        for (int i = 0; i < 2; i++) {
            float *l = w->group->l[r + i];
            __m512 old = _mm512_mul_ps(_mm512_load_ps(l), _mm512_set1_ps(w->alpha[r + i]));
            _mm512_store_ps(l, _mm512_fmadd_ps(sum[i], _mm512_set1_ps(w->beta[r + i]), old));
        }
    }
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
    const __m512 factor =
        _mm512_set1_ps(hr_integer_finish(args, i, group->m[r], group->l[r], bias));
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
    for (int i = 0; i < 2; i++) /* lanes past the six rows are read, but never written */
        memset(t->passage[i].largest, 0, sizeof t->passage[i].largest);
    memset(t->group, 0, (size_t)t->groups * sizeof t->group[0]);
    memset(t->o, 0, (size_t)(t->groups * ROWS * t->channels) * sizeof *t->o);
    t->f = INT32_MIN; /* no tile's F */
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
