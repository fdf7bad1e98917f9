/*
 * The integer family in plain C: the specification of integer_softmax.h, step by step. For a task
 * of 32 rows, each tile of 256 keys is expanded once to int16 and each row then does
 *
 *     S [256] = K16 [256][head_dim] . q        x, M, e, P, row sums        T = V16 [head_dim][256]
 * . P
 *
 * V is transposed so that both products are int16 dot products of contiguous memory, which
 * compilers turn into pmaddwd, smlal and the like. The limit is that multiply-accumulate rate.
 *
 * Softcap and ALiBi replace step 3, with a' = (float)min(q_scale * softmax_scale * 2^F, 2^100) and
 * b_i = lse_bias_i * softmax_scale, the part of the logit that smoothing took away:
 *     t = fma((float)S * k_j, a', b_i)
 *     y = fma(hr_integer_tanh(t, cap.argument), -cap.units, u_j)
 *     y = fma(1024 (slope * log2(e)), |i + shift - j|, y)
 */
#include "integer_body.h"

#include <assert.h>

typedef struct row_state {
    double factor; /* c_i, without log2(e) when capped */
    double bias;   /* natural units */
    float m;
    int32_t e;
    float l[HR_INTEGER_LANES];
} row_state;

/* Step 1 for the keys of one tile; r is V's scale until then. */
typedef struct tile_scales {
    int32_t f, e;
    float h; /* H */
    bool even, wide;
    float k[HR_INTEGER_TILE], u[HR_INTEGER_TILE], r[HR_INTEGER_TILE];
    int32_t sum[HR_INTEGER_TILE], rest[HR_INTEGER_TILE]; /* A_j, B_j */
    float *k_group;                                      /* [256][K's groups] k_jg */
    int16_t *share;                                      /* [V's groups][256] G_jg */
    float *largest;                                      /* [V's groups] C_g times 32768 / 32767 */
} tile_scales;

typedef struct body {
    const hr_kernel_args *args;
    int32_t head_dim;
    int32_t k_groups, v_groups; /* 0: scales are not in groups */
    bool precise;               /* P in I16 */
    tile_scales tile;
    int32_t first;   /* the tile's first key */
    float *o;        /* [rows][head_dim] */
    row_state *row;  /* [rows] */
    int16_t *q;      /* [rows][head_dim] */
    int16_t *k;      /* [256][head_dim] */
    int16_t *v;      /* [head_dim][256] */
    int16_t *v_rows; /* [256][head_dim] */
} body;

size_t hr_integer_attention_portable_scratch(int32_t head_dim)
{
    size_t channels = (size_t)head_dim, rows = HR_INTEGER_PORTABLE_ROWS;
    return sizeof(body) +
           rows * (sizeof(row_state) + channels * (sizeof(float) + sizeof(int16_t))) +
           3 * HR_INTEGER_TILE * channels * sizeof(int16_t) +
           channels / 2 * (HR_INTEGER_TILE * (sizeof(float) + sizeof(int16_t)) + sizeof(float)) +
           64;
}

static int32_t dot(const int16_t *a, const int16_t *b, int32_t count)
{
    int32_t sum = 0;
    for (int32_t i = 0; i < count; i++)
        sum += (int32_t)a[i] * b[i];
    return sum;
}

void hr_integer_expand_i8(const hr_kernel_operand *operand, int32_t head_dim, int64_t first,
                          int32_t count, int16_t *rows)
{
    for (int32_t t = 0; t < count; t++) {
        const int64_t slot = hr_kernel_slot(operand, first + t);
        const int8_t *codes = (const int8_t *)operand->codes + slot * head_dim;
        for (int32_t c = 0; c < head_dim; c++)
            rows[t * head_dim + c] = codes[c];
    }
}

/* Step 1 for scales in groups, after the rest of it. */
static void prepare_groups(body *b, int32_t count)
{
    const hr_kernel_args *args = b->args;
    tile_scales *tile = &b->tile;
    for (int32_t j = 0; j < count; j++) {
        const float *scale = hr_integer_group_scales(&args->k, b->k_groups, b->first + j);
        for (int32_t g = 0; g < b->k_groups; g++)
            tile->k_group[j * b->k_groups + g] = ldexpf(scale[g], -tile->f);
    }
    for (int32_t g = 0; g < b->v_groups; g++) {
        float share[HR_INTEGER_TILE], largest = 0;
        for (int32_t j = 0; j < count; j++) {
            const float *scale = hr_integer_group_scales(&args->v, b->v_groups, b->first + j);
            share[j] =
                hr_integer_max(ldexpf(scale[g], -tile->e) * tile->r[j], HR_INTEGER_MIN_SHARE);
            largest = hr_integer_max(share[j], largest);
        }
        for (int32_t j = 0; j < count; j++)
            tile->share[g * HR_INTEGER_TILE + j] =
                (int16_t)hr_integer_round(share[j] * (HR_INTEGER_SHARE_UNIT / largest));
        tile->largest[g] = largest * HR_INTEGER_SHARE_STEP;
    }
}

/* Step 1. */
static void prepare_tile(body *b, int32_t count)
{
    const hr_kernel_args *args = b->args;
    tile_scales *tile = &b->tile;
    float k_max = 0, v_max = 0, r_max = 0, r_min = INFINITY;
    for (int32_t j = 0; j < count; j++) {
        tile->k[j] = hr_integer_token_scale(&args->k, b->head_dim, b->first + j);
        tile->r[j] = hr_integer_token_scale(&args->v, b->head_dim, b->first + j);
        k_max = hr_integer_max(tile->k[j], k_max);
        v_max = hr_integer_max(tile->r[j], v_max);
    }
    tile->f = hr_integer_exponent(k_max);
    tile->e = hr_integer_exponent(v_max);
    for (int32_t j = 0; j < count; j++) {
        tile->k[j] = hr_integer_round22(ldexpf(tile->k[j], -tile->f));
        float w = hr_integer_max(ldexpf(tile->r[j], -tile->e), HR_INTEGER_MIN_V);
        tile->u[j] = fmaf(hr_integer_log2(w), -HR_INTEGER_OCTAVE, HR_INTEGER_OFFSET);
        tile->r[j] = 1.0f / w;
        r_max = hr_integer_max(tile->r[j], r_max);
        r_min = tile->r[j] < r_min ? tile->r[j] : r_min;
    }
    tile->even = r_max <= HR_INTEGER_EVEN * r_min;
    tile->wide = !tile->even && r_max <= HR_INTEGER_WIDE * r_min;
    tile->h = r_max;
    for (int32_t j = 0; j < count && (tile->even || tile->wide); j++) {
        const float r = tile->r[j] * (4096 / r_max);
        tile->sum[j] = hr_integer_round(r);
        tile->rest[j] = hr_integer_round((r - (float)tile->sum[j]) * 4096);
    }
    prepare_groups(b, count);
}

static void load_tile(body *b, hr_integer_expand expand_k, hr_integer_expand expand_v)
{
    const hr_kernel_args *args = b->args;
    int32_t count = args->seqlen_kv - b->first, head_dim = b->head_dim;
    if (count > HR_INTEGER_TILE) count = HR_INTEGER_TILE;
    prepare_tile(b, count);
    expand_k(&args->k, head_dim, b->first, count, b->k);
    expand_v(&args->v, head_dim, b->first, count, b->v_rows);
    for (int32_t c = 0; c < head_dim; c++)
        for (int32_t j = 0; j < count; j++)
            b->v[c * HR_INTEGER_TILE + j] = b->v_rows[j * head_dim + c];
}

/* S_ij * k_j, or what takes its place. */
static float scaled_product(const body *b, int32_t index, int32_t j)
{
    const int16_t *k = b->k + j * b->head_dim, *q = b->q + index * b->head_dim;
    if (b->k_groups == 0) return (float)dot(k, q, b->head_dim) * b->tile.k[j];
    const int32_t width = b->head_dim / b->k_groups;
    float x = 0;
    for (int32_t g = 0; g < b->k_groups; g++, k += width, q += width)
        x = fmaf((float)dot(k, q, width), b->tile.k_group[j * b->k_groups + g], x);
    return x;
}

/* y of step 3 for keys [lo, hi) of the tile, with what is added to each; returns a. */
static float make_logits(const body *b, int32_t index, int32_t lo, int32_t hi, const float *u,
                         float *y)
{
    const hr_kernel_args *args = b->args;
    const row_state *row = &b->row[index];
    const tile_scales *tile = &b->tile;
    const float a = hr_integer_tile_factor(
        row->factor, ldexp(args->softcap == 0 ? HR_INTEGER_OCTAVE : 1, tile->f));
    const float slope = (float)((double)args->alibi_slope * HR_INTEGER_LOG2E) * HR_INTEGER_OCTAVE;
    const hr_integer_cap cap = hr_integer_cap_of(args->softcap);
    const int64_t diagonal = (int64_t)args->q_begin + index + args->shift - b->first;
    for (int32_t j = lo; j < hi; j++) {
        float product = scaled_product(b, index, j);
        if (args->softcap == 0) {
            y[j] = fmaf(product, -a, u[j]);
        } else {
            float t = fmaf(product, a, (float)row->bias);
            y[j] = fmaf(hr_integer_tanh(t, cap.argument), -cap.units, u[j]);
        }
        if (slope != 0) {
            int64_t distance = diagonal > j ? diagonal - j : j - diagonal;
            y[j] = fmaf(slope, (float)distance, y[j]);
        }
    }
    return a;
}

/* The rest of step 3: Y - N of keys [lo, hi); returns M. */
static float make_distances(const float *y, float a, int32_t lo, int32_t hi, int32_t *distance)
{
    int32_t least = 65535;
    float exact = INFINITY;
    for (int32_t j = lo; j < hi; j++) {
        distance[j] = hr_integer_round16(y[j]);
        least = distance[j] < least ? distance[j] : least;
        exact = y[j] < exact ? y[j] : exact;
    }
    const bool direct = least >= 1 && least <= HR_INTEGER_MAX_LEAST && a < HR_INTEGER_MAX_DIRECT;
    for (int32_t j = lo; j < hi; j++)
        distance[j] = direct ? distance[j] - least : hr_integer_round16(y[j] - exact);
    return HR_INTEGER_OFFSET - (direct ? (float)least : exact);
}

/* Step 4: e, and the sums s of the lanes where the tile is even or wide. */
static void make_weights(const body *b, const int32_t *distance, int32_t lo, int32_t hi, int16_t *e,
                         float s[HR_INTEGER_LANES])
{
    const tile_scales *tile = &b->tile;
    int32_t sum[HR_INTEGER_LANES] = {0}, rest[HR_INTEGER_LANES] = {0};
    for (int32_t j = lo; j < hi; j++) {
        int32_t weight = hr_integer_weight(distance[j]);
        e[j] = (int16_t)weight;
        if (!tile->even && !tile->wide) continue;
        sum[hr_integer_lane(j)] += weight * tile->sum[j];
        if (tile->wide) rest[hr_integer_lane(j)] += weight * tile->rest[j];
    }
    for (int k = 0; k < HR_INTEGER_LANES; k++)
        s[k] = tile->wide ? fmaf((float)rest[k], 0x1p-12f, (float)sum[k]) : (float)sum[k];
}

/* Step 4: the sums s of the lanes where the tile is neither; returns 24576 - n0. */
static float sum_uneven(const body *b, int32_t index, int32_t lo, int32_t hi,
                        float s[HR_INTEGER_LANES])
{
    float u[HR_INTEGER_TILE], x[HR_INTEGER_TILE], least = INFINITY;
    for (int32_t j = 0; j < HR_INTEGER_TILE; j++)
        u[j] = HR_INTEGER_OFFSET;
    make_logits(b, index, lo, hi, u, x);
    for (int32_t j = lo; j < hi; j++)
        least = x[j] < least ? x[j] : least;
    for (int32_t j = lo; j < hi; j++)
        s[j % HR_INTEGER_LANES] += hr_integer_exp2((least - x[j]) / HR_INTEGER_OCTAVE);
    return HR_INTEGER_OFFSET - least;
}

/* Step 4: P. */
static void round_weights(const body *b, const int16_t *e, int32_t lo, int32_t hi, int16_t *p)
{
    for (int32_t j = lo; j < hi; j++)
        p[j] = (int16_t)(b->precise ? e[j] : hr_integer_p(e[j]));
}

/* Step 4: P for group g of V's scales; returns what O is multiplied with for it. */
static float share_weights(const body *b, const int16_t *e, int32_t lo, int32_t hi, int32_t g,
                           int16_t *p)
{
    const int16_t *share = b->tile.share + g * HR_INTEGER_TILE;
    int32_t largest = 0;
    for (int32_t j = lo; j < hi; j++) {
        p[j] = (int16_t)hr_integer_product(e[j], share[j]);
        largest = p[j] > largest ? p[j] : largest;
    }
    const int32_t factor = hr_integer_share_factor(largest);
    for (int32_t j = lo; j < hi; j++)
        p[j] = (int16_t)hr_integer_product(p[j], factor);
    return 256.0f / (float)factor;
}

/* Steps 4 to 6 for O of a row: alpha and beta are its own. */
static void add_values(const body *b, int32_t index, const int16_t *e, int32_t lo, int32_t hi,
                       float alpha, float beta)
{
    const int32_t groups = b->v_groups ? b->v_groups : 1, width = b->head_dim / groups;
    float *o = b->o + index * b->head_dim;
    int16_t p[HR_INTEGER_TILE];
    if (b->v_groups == 0) round_weights(b, e, lo, hi, p);
    for (int32_t g = 0; g < groups; g++) {
        float unit = beta;
        if (b->v_groups) {
            const float rest = share_weights(b, e, lo, hi, g, p);
            unit = beta * b->tile.largest[g] * rest;
        }
        for (int32_t c = g * width; c < (g + 1) * width; c++) {
            int32_t t = dot(p + lo, b->v + c * HR_INTEGER_TILE + lo, hi - lo);
            o[c] = fmaf((float)t, unit, o[c] * alpha);
        }
    }
}

/* Steps 2 to 6 for one row and the keys [lo, hi) of the tile that it sees. */
static void update_row(body *b, int32_t index, int32_t lo, int32_t hi)
{
    row_state *row = &b->row[index];
    const tile_scales *tile = &b->tile;
    float y[HR_INTEGER_TILE], s[HR_INTEGER_LANES] = {0};
    int32_t distance[HR_INTEGER_TILE];
    int16_t weight[HR_INTEGER_TILE];
    const float a = make_logits(b, index, lo, hi, tile->u, y);
    const float largest = make_distances(y, a, lo, hi, distance);
    make_weights(b, distance, lo, hi, weight, s);

    float m = hr_integer_max(largest, row->m);
    int32_t e = tile->e > row->e ? tile->e : row->e;
    float alpha = hr_integer_exp2((row->m - m) / HR_INTEGER_OCTAVE);
    float beta = hr_integer_exp2((largest - m) / HR_INTEGER_OCTAVE);
    float alpha_o = ldexpf(alpha, row->e - e);
    float beta_o = ldexpf(beta, tile->e - e);
    float beta_l = beta * (tile->h * 0x1p-19f);
    if (!tile->even && !tile->wide) {
        float sum_largest = sum_uneven(b, index, lo, hi, s);
        beta_l = 255 * hr_integer_exp2((sum_largest - m) / HR_INTEGER_OCTAVE);
    }
    for (int k = 0; k < HR_INTEGER_LANES; k++)
        row->l[k] = fmaf(s[k], beta_l, row->l[k] * alpha);
    add_values(b, index, weight, lo, hi, alpha_o, beta_o);
    row->m = m;
    row->e = e;
}

static void finish_row(const body *b, int32_t index)
{
    const hr_kernel_args *args = b->args;
    const row_state *row = &b->row[index];
    int32_t i = args->q_begin + index;
    double bias = args->softcap == 0 ? row->bias : 0;
    float factor = hr_integer_finish(args, i, row->m, hr_integer_sum(row->l), bias);
    float *out = args->o + i * args->o_stride;
    const float *o = b->o + index * b->head_dim;
    for (int32_t c = 0; c < b->head_dim; c++)
        out[c] = ldexpf(o[c] * factor, row->e);
}

/* Carves the scratch; the structs first, so that everything is aligned for its type. */
static body *begin(const hr_kernel_args *args)
{
    size_t channels = (size_t)args->head_dim, rows = HR_INTEGER_PORTABLE_ROWS;
    body *b = args->scratch;
    b->args = args;
    b->head_dim = args->head_dim;
    b->k_groups = hr_integer_groups(&args->k, args->head_dim);
    b->v_groups = hr_integer_groups(&args->v, args->head_dim);
    b->precise = args->p_dtype == HR_DTYPE_I16;
    assert(!b->precise || b->v_groups == 0);
    b->row = (row_state *)(b + 1);
    b->o = (float *)(b->row + rows);
    b->tile.k_group = b->o + rows * channels;
    b->tile.largest = b->tile.k_group + HR_INTEGER_TILE * channels / 2;
    b->tile.share = (int16_t *)(b->tile.largest + channels / 2);
    b->q = b->tile.share + HR_INTEGER_TILE * channels / 2;
    b->k = b->q + rows * channels;
    b->v = b->k + HR_INTEGER_TILE * channels;
    b->v_rows = b->v + HR_INTEGER_TILE * channels;

    int32_t count = args->q_end - args->q_begin;
    hr_integer_expand_i8(&args->q, args->head_dim, args->q_begin, count, b->q);
    memset(b->o, 0, (size_t)count * channels * sizeof *b->o);
    for (int32_t index = 0; index < count; index++) {
        int32_t i = args->q_begin + index;
        row_state row = {.m = -INFINITY, .e = HR_INTEGER_NO_TILE};
        row.factor = hr_integer_row_factor(args, i);
        if (args->lse_bias) row.bias = (double)args->lse_bias[i] * (double)args->softmax_scale;
        b->row[index] = row;
    }
    return b;
}

void hr_integer_attention_portable(const hr_kernel_args *args, hr_integer_expand expand_k,
                                   hr_integer_expand expand_v)
{
    assert(args->q_end - args->q_begin <= HR_INTEGER_PORTABLE_ROWS);
    assert(args->head_dim % 8 == 0 && args->head_dim <= HR_INTEGER_MAX_HEAD_DIM);
    body *b = begin(args);
    for (int32_t index = 0; index < args->range_count; index++) {
        hr_kernel_range range;
        if (!hr_kernel_visit(args, index, &range)) continue;
        b->first = range.begin / HR_INTEGER_TILE * HR_INTEGER_TILE;
        for (; b->first < range.end; b->first += HR_INTEGER_TILE) {
            load_tile(b, expand_k, expand_v);
            for (int32_t i = args->q_begin; i < args->q_end; i++) {
                int32_t lo, hi;
                hr_kernel_row_range(args, &range, i, &lo, &hi);
                lo = lo > b->first ? lo - b->first : 0;
                hi = hi - b->first < HR_INTEGER_TILE ? hi - b->first : HR_INTEGER_TILE;
                if (lo < hi) update_row(b, i - args->q_begin, lo, hi);
            }
        }
    }
    for (int32_t i = args->q_begin; i < args->q_end; i++)
        finish_row(b, i - args->q_begin);
}
