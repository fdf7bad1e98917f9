/*
 * The integer family on AVX-512 VNNI: integer_softmax.h restated in vectors. A task of 96 rows
 * walks the tiles of 256 keys; in each, groups of six rows do
 *
 *     x [6][256]  = bits of 1.5 * 2^23 + S          micro_qk, for each 64 keys that are not masked
 *     x, M        = logits                          two fma and one max for 16 keys
 *     P, s        = weights, row sums               12 operations for 16 keys
 *     T [6][64]   = P . V                           micro_pv, for each 64 channels
 *     O           = T * beta + O * alpha
 *
 * Everything but K and V stays in the first-level cache during a group; K and V of a tile (32 KiB
 * at head_dim 64) stay in the second-level cache for the sixteen groups. The limit is the two
 * vector ports, which multiply and softmax share: at head_dim 64, 32 multiplies for 15 other
 * operations.
 */
#include "integer_body_avx512vnni.h"

#include <assert.h>
#include <immintrin.h>

#include "integer_micro_avx512vnni.h"

enum {
    ROWS = HR_MICRO_ROWS,
    GROUPS = HR_INTEGER_VNNI_ROWS / ROWS,
    SUBTILE = HR_INTEGER_VNNI_TILE,
    SUBTILES = HR_INTEGER_TILE / SUBTILE,
    X_STRIDE = HR_INTEGER_TILE + 16, /* rows 4 KiB apart would stall loads behind stores */
    GROUP_LANES = 16                 /* one group's scalars fill part of one vector */
};

#define ALIGNED __attribute__((aligned(64)))
#define INLINE static inline __attribute__((always_inline))

/* One group's six rows; rows past the end of the task repeat the last one. */
typedef struct group_state {
    ALIGNED float l[ROWS][HR_INTEGER_LANES];
    ALIGNED float m[GROUP_LANES];
    ALIGNED float e[GROUP_LANES];
    ALIGNED float a[GROUP_LANES];
    ALIGNED double factor[GROUP_LANES];
    ALIGNED int32_t init[GROUP_LANES]; /* bits of 1.5 * 2^23, less 128 times the sum of q */
    int32_t lo[ROWS], hi[ROWS];        /* keys a row sees */
    int32_t group_lo, group_hi;        /* keys any row of the group sees */
} group_state;

typedef struct task {
    ALIGNED float x[ROWS][X_STRIDE];
    ALIGNED uint8_t p[SUBTILES][ROWS][SUBTILE];
    ALIGNED int32_t t[ROWS][HR_MICRO_COLUMNS];
    ALIGNED float k[HR_INTEGER_TILE];
    ALIGNED float k_magic[HR_INTEGER_TILE]; /* -(1.5 * 2^23 * k) */
    ALIGNED float u[HR_INTEGER_TILE];
    ALIGNED float r[HR_INTEGER_TILE];
    ALIGNED float largest[GROUP_LANES], alpha[GROUP_LANES], beta[GROUP_LANES];
    ALIGNED float alpha_o[GROUP_LANES], beta_o[GROUP_LANES];
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

/*
 * z[] = scale * 2^max(z[], -100) for n vectors side by side: one vector is a chain of nine
 * dependent operations, and eight of them fill both ports while each waits for its own.
 */
INLINE void exp2_of(__m512 z[], int n, const float scaled[5])
{
    __m512 f[8], p[8];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        z[i] = _mm512_max_ps(z[i], _mm512_set1_ps(HR_INTEGER_MIN_LOG2));
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        f[i] = _mm512_reduce_ps(z[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        p[i] = _mm512_fmadd_ps(f[i], _mm512_set1_ps(scaled[4]), _mm512_set1_ps(scaled[3]));
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        z[i] = _mm512_sub_ps(z[i], f[i]);
#pragma GCC unroll 3
    for (int c = 2; c >= 0; c--)
#pragma GCC unroll 8
        for (int i = 0; i < n; i++)
            p[i] = _mm512_fmadd_ps(p[i], f[i], _mm512_set1_ps(scaled[c]));
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        z[i] = _mm512_scalef_ps(p[i], z[i]);
}

static const float exp2_1[5] = {1.0f, HR_EXP2_C1, HR_EXP2_C2, HR_EXP2_C3, HR_EXP2_C4};
static const float exp2_255[5] = {255.0f, HR_EXP2_255_C1, HR_EXP2_255_C2, HR_EXP2_255_C3,
                                  HR_EXP2_255_C4};

INLINE __m512 log2_of(__m512 w)
{
    __m512 u = _mm512_sub_ps(_mm512_getmant_ps(w, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero),
                             _mm512_set1_ps(1.0f));
    __m512 p = _mm512_fmadd_ps(u, _mm512_set1_ps(HR_LOG2_D6), _mm512_set1_ps(HR_LOG2_D5));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(HR_LOG2_D4));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(HR_LOG2_D3));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(HR_LOG2_D2));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(HR_LOG2_D1));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(HR_LOG2_D0));
    return _mm512_fmadd_ps(p, u, _mm512_getexp_ps(w));
}

INLINE __m512 round22(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 2), one);
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, one));
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(~3)));
}

/* One scale a key of the tile, 0 past the end of the sequence; returns the largest. */
static float gather_scales(const task *t, const hr_kernel_operand *operand, float *scale)
{
    int32_t count = t->args->seqlen_kv - t->first;
    if (count > HR_INTEGER_TILE) count = HR_INTEGER_TILE;
    if (operand->granularity == HR_GRANULARITY_TOKEN)
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
    int32_t f = hr_integer_exponent(gather_scales(t, &t->args->k, t->k));
    int32_t e = hr_integer_exponent(gather_scales(t, &t->args->v, t->r));
    const __m512 minus_f = _mm512_set1_ps((float)-f), minus_e = _mm512_set1_ps((float)-e);
    for (int32_t j = 0; j < HR_INTEGER_TILE; j += 16) {
        __m512 k = round22(_mm512_scalef_ps(_mm512_load_ps(t->k + j), minus_f));
        _mm512_store_ps(t->k + j, k);
        _mm512_store_ps(t->k_magic + j, _mm512_mul_ps(k, _mm512_set1_ps(-HR_INTEGER_MAGIC)));
        __m512 w = _mm512_scalef_ps(_mm512_load_ps(t->r + j), minus_e);
        w = _mm512_max_ps(w, _mm512_set1_ps(HR_INTEGER_MIN_V));
        _mm512_store_ps(t->u + j, log2_of(w));
        _mm512_store_ps(t->r + j, _mm512_div_ps(_mm512_set1_ps(1.0f), w));
    }
    if (t->first == t->args->kv_begin || f != t->f) {
        for (int32_t g = 0; g < t->groups; g++)
            for (int r = 0; r < ROWS; r++)
                t->group[g].a[r] = hr_integer_tile_factor(t->group[g].factor[r], f);
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

/* Step 3 for 64 keys; x in place, largest[r] by lanes. */
INLINE void make_logits(task *t, const group_state *group, int subtile, __m512 largest[ROWS],
                        bool masked)
{
    const int32_t first = t->first + subtile * SUBTILE;
    __m512 a[ROWS];
    uint64_t visible[ROWS];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) {
        a[r] = _mm512_set1_ps(group->a[r]);
        visible[r] = masked ? visible_bits(group->lo[r], group->hi[r], first) : 0;
    }
    for (int c = 0; c < SUBTILE / 16; c++) {
        const int32_t j = subtile * SUBTILE + c * 16;
        const __m512 k = _mm512_load_ps(t->k + j), k_magic = _mm512_load_ps(t->k_magic + j);
        const __m512 u = _mm512_load_ps(t->u + j);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            __m512 x = _mm512_fmadd_ps(_mm512_load_ps(t->x[r] + j), k, k_magic);
            x = _mm512_fmadd_ps(x, a[r], u);
            if (masked) {
                __mmask16 mask = (__mmask16)(visible[r] >> (c * 16));
                x = _mm512_mask_blend_ps(mask, _mm512_set1_ps(-INFINITY), x);
            }
            largest[r] = _mm512_max_ps(largest[r], x);
            _mm512_store_ps(t->x[r] + j, x);
        }
    }
}

/* Step 6, the scalars of the group's rows. */
static void update_state(task *t, group_state *group)
{
    const __m512 tile_m = _mm512_load_ps(t->largest), tile_e = _mm512_set1_ps(t->e);
    __m512 m = _mm512_load_ps(group->m), e = _mm512_load_ps(group->e);
    __mmask16 seen = _mm512_cmp_ps_mask(tile_m, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ);
    __m512 new_m = _mm512_max_ps(tile_m, m);
    __m512 new_e = _mm512_mask_max_ps(e, seen, tile_e, e);
    __m512 z[2] = {_mm512_sub_ps(m, new_m), _mm512_sub_ps(tile_m, new_m)};
    exp2_of(z, 2, exp2_1);
    const __m512 alpha = z[0], beta = z[1];
    _mm512_store_ps(t->alpha, alpha);
    _mm512_store_ps(t->beta, beta);
    _mm512_store_ps(t->alpha_o, _mm512_scalef_ps(alpha, _mm512_sub_ps(e, new_e)));
    /* A row that has seen no key has e = -1000: its factor for this tile's zeros must not be inf.
     */
    _mm512_store_ps(t->beta_o, _mm512_maskz_scalef_ps(seen, beta, _mm512_sub_ps(tile_e, new_e)));
    _mm512_store_ps(group->m, new_m);
    _mm512_store_ps(group->e, new_e);
}

/* Step 4 for 64 keys of rows r and r + 1: P, in the key order of HR_LAYOUT_VNNI_V, and row sums. */
INLINE void make_weights(task *t, const group_state *group, int r, int subtile, __m512 sum[2],
                         bool masked)
{
    const int32_t first = subtile * SUBTILE;
    __m512 e[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        e[i] = _mm512_sub_ps(_mm512_load_ps(t->x[r + i / 4] + first + i % 4 * 16),
                             _mm512_set1_ps(t->largest[r + i / 4]));
    exp2_of(e, 8, exp2_255);
    if (masked) {
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
        sum[i / 4] = _mm512_fmadd_ps(e[i], _mm512_load_ps(t->r + first + i % 4 * 16), sum[i / 4]);
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        __m512i low = _mm512_packs_epi32(p[i], p[i + 1]);
        __m512i high = _mm512_packs_epi32(p[i + 2], p[i + 3]);
        _mm512_store_si512(t->p[subtile][r + i / 4], _mm512_packus_epi16(low, high));
    }
}

/* O = T * beta + O * alpha for six rows and 16 * vectors channels from `channel` on. */
INLINE void add_output(task *t, int32_t first_row, int32_t channel, int vectors)
{
    for (int r = 0; r < ROWS; r++) {
        float *o = t->o + (first_row + r) * t->channels + channel;
        const __m512 alpha = _mm512_set1_ps(t->alpha_o[r]), beta = _mm512_set1_ps(t->beta_o[r]);
        for (int c = 0; c < vectors; c++) {
            __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(t->t[r] + 16 * c));
            __m512 old = _mm512_mul_ps(_mm512_load_ps(o + 16 * c), alpha);
            _mm512_store_ps(o + 16 * c, _mm512_fmadd_ps(sum, beta, old));
        }
    }
}

/* T = P.V and O, in column blocks of four vectors, or as even as the channels allow. */
static void accumulate(task *t, int32_t first_row, int begin, int end)
{
    const int64_t stride = (int64_t)t->channels * 4;
    const int8_t *v = t->tile_v + begin * SUBTILE * (int64_t)t->channels;
    int vectors = t->channels / 16, blocks = (vectors + 3) / 4, done = 0;
    for (int block = 0; block < blocks; block++) {
        int width = (vectors - done + blocks - block - 1) / (blocks - block);
        micro_pv(width, t->p[begin][0], v + done * 64, stride, end - begin, t->t[0]);
        if (width == 4)
            add_output(t, first_row, done * 16, 4);
        else
            add_output(t, first_row, done * 16, width);
        done += width;
    }
}

/* Steps 3 to 6 for one group and one tile. */
static void update_group(task *t, int32_t g)
{
    group_state *group = &t->group[g];
    int32_t lo = group->group_lo - t->first, hi = group->group_hi - t->first;
    int begin = lo > 0 ? lo / SUBTILE : 0;
    int end = hi < HR_INTEGER_TILE ? (hi + SUBTILE - 1) / SUBTILE : SUBTILES;
    if (begin >= end) return;

    bool masked[SUBTILES];
    __m512 largest[ROWS];
    for (int r = 0; r < ROWS; r++)
        largest[r] = _mm512_set1_ps(-INFINITY);
    for (int s = begin; s < end; s++) {
        const int32_t key = t->first + s * SUBTILE;
        micro_qk(t->q + g * ROWS * (t->head_dim / 4),
                 t->tile_k + (int64_t)s * SUBTILE * t->head_dim, t->head_dim / 4, group->init,
                 t->x[0] + s * SUBTILE, sizeof t->x[0]);
        masked[s] = false;
        for (int r = 0; r < ROWS; r++)
            masked[s] |= group->lo[r] > key || group->hi[r] < key + SUBTILE;
        if (masked[s])
            make_logits(t, group, s, largest, true);
        else
            make_logits(t, group, s, largest, false);
    }
    for (int r = 0; r < ROWS; r++)
        t->largest[r] = _mm512_reduce_max_ps(largest[r]);
    update_state(t, group);

    for (int r = 0; r < ROWS; r += 2) {
        __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int s = begin; s < end; s++) {
            if (masked[s])
                make_weights(t, group, r, s, sum, true);
            else
                make_weights(t, group, r, s, sum, false);
        }
        for (int i = 0; i < 2; i++) {
            float *l = group->l[r + i];
            __m512 old = _mm512_mul_ps(_mm512_load_ps(l), _mm512_set1_ps(t->alpha[r + i]));
            _mm512_store_ps(l, _mm512_fmadd_ps(sum[i], _mm512_set1_ps(t->beta[r + i]), old));
        }
    }
    accumulate(t, g * ROWS, begin, end);
}

/* Row `index` of the task: its codes as dwords, six rows side by side, and its constants. */
static void begin_row(task *t, int32_t index)
{
    const hr_kernel_args *args = t->args;
    int32_t count = args->q_end - args->q_begin;
    int32_t i = args->q_begin + (index < count ? index : count - 1), r = index % ROWS;
    group_state *group = &t->group[index / ROWS];
    const int8_t *codes = (const int8_t *)args->q.codes + (int64_t)i * t->head_dim;
    int32_t *q = t->q + index / ROWS * ROWS * (t->head_dim / 4) + r, sum = 0;
    for (int32_t quad = 0; quad < t->head_dim / 4; quad++)
        memcpy(q + quad * ROWS, codes + quad * 4, 4);
    for (int32_t c = 0; c < t->head_dim; c++)
        sum += codes[c];
    group->init[r] = (int32_t)hr_integer_bits(HR_INTEGER_MAGIC) - 128 * sum;
    group->factor[r] = hr_integer_row_factor(args, i);
    group->m[r] = -INFINITY;
    group->e[r] = HR_INTEGER_NO_TILE;
    hr_kernel_row_range(args, i, &group->lo[r], &group->hi[r]);
    if (group->lo[r] < group->hi[r]) {
        if (group->lo[r] < group->group_lo) group->group_lo = group->lo[r];
        if (group->hi[r] > group->group_hi) group->group_hi = group->hi[r];
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
    assert(args->kv_begin % HR_INTEGER_TILE == 0);
    assert(args->head_dim % 8 == 0 && args->head_dim <= HR_INTEGER_MAX_HEAD_DIM);
    assert((uintptr_t)args->scratch % 64 == 0);

    task *t = args->scratch;
    t->args = args;
    t->head_dim = args->head_dim;
    t->channels = hr_integer_vnni_channels(args->head_dim);
    t->groups = (count + ROWS - 1) / ROWS;
    t->o = (float *)(t + 1);
    t->q = (int32_t *)(t->o + HR_INTEGER_VNNI_ROWS * t->channels);
    memset(t->largest, 0, sizeof t->largest); /* its lanes past the six rows are never written */
    memset(t->group, 0, (size_t)t->groups * sizeof t->group[0]);
    memset(t->o, 0, (size_t)(t->groups * ROWS * t->channels) * sizeof *t->o);
    for (int32_t g = 0; g < t->groups; g++)
        t->group[g].group_lo = INT32_MAX;
    for (int32_t index = 0; index < t->groups * ROWS; index++)
        begin_row(t, index);

    void *expanded = (char *)args->scratch + hr_integer_attention_avx512vnni_scratch(t->head_dim);
    for (t->first = args->kv_begin; t->first < args->kv_end; t->first += HR_INTEGER_TILE) {
        hr_integer_vnni_tile tile = load(args, t->first, expanded);
        t->tile_k = tile.k;
        t->tile_v = tile.v;
        prepare_tile(t);
        for (int32_t g = 0; g < t->groups; g++)
            update_group(t, g);
    }
    for (int32_t index = 0; index < count; index++)
        finish_row(t, index);
}
