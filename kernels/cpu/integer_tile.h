/*
 * The integer family on short vectors: integer_softmax.h restated over integer_vec_avx2.h or
 * integer_vec_neon.h, one of which is included before. A task of 96 rows walks the tiles of 256
 * keys; in each, groups of six rows do
 *
 *     S [6][256]   = Q . K                      16 keys at a time
 *     P, s         = weights, row sums          32 keys of a row at a time
 *     O            = P . V * beta + O * alpha   16 channels at a time
 *
 * An offset turns signed codes into unsigned ones where products need those; the sums then start at
 * what it adds to them: -K_OFFSET times the sum of a row's q, -V_OFFSET times that of its P. Scales
 * in groups of channels, which are multiples of 16, are for products without offsets.
 */
#ifndef HEADROOM_INTEGER_TILE_H
#define HEADROOM_INTEGER_TILE_H

#include <assert.h>

#include "integer_tile_load.h"

/* S of a group's rows with the keys of chunks [begin, end). */
static inline void multiply_keys(task *t, int32_t first_row, int32_t begin, int32_t end)
{
    const product_code *q = t->q + (int64_t)first_row * t->head_dim;
    const int32_t steps = t->head_dim / CODES;
    for (int32_t key = begin * CHUNK; key < end * CHUNK; key += BLOCK) {
        ivec sum[ROWS][VECS];
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECS; v++)
                sum[r][v] = ivec_set(K_OFFSET ? t->row[first_row + r].init : 0);
        multiply(q, t->head_dim, t->k + (int64_t)key * t->head_dim, steps, sum, false);
        arrange(sum);
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECS; v++)
                ivec_store(t->s[r] + key + v * WIDTH, sum[r][v]);
    }
}

/* The same where K's scales are in groups of channels: x of step 3, as floats. */
static inline void multiply_key_groups(task *t, int32_t first_row, int32_t begin, int32_t end)
{
    const int32_t width = t->head_dim / t->k_groups, steps = width / CODES;
    for (int32_t key = begin * CHUNK; key < end * CHUNK; key += BLOCK) {
        const product_code *q = t->q + (int64_t)first_row * t->head_dim;
        const product_code *k = t->k + (int64_t)key * t->head_dim;
        fvec x[ROWS][VECS];
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECS; v++)
                x[r][v] = fvec_set(0);
        for (int32_t g = 0; g < t->k_groups; g++, q += width, k += width * BLOCK) {
            ivec sum[ROWS][VECS];
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < VECS; v++)
                    sum[r][v] = ivec_set(0);
            multiply(q, t->head_dim, k, steps, sum, false);
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < VECS; v++)
                    x[r][v] = fvec_fma(fvec_of(sum[r][v]),
                                       fvec_load(t->tile.k_group[g] + key + v * WIDTH), x[r][v]);
        }
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECS; v++)
                fvec_store((float *)t->s[r] + key + v * WIDTH, x[r][v]);
    }
}

/*
 * O of a group's rows with the keys of chunks [begin, end), channels [channel, last).
 * Where P in I16 is in two parts, the
 * lower one's products come on top of the upper one's times 128, and what an offset adds is among
 * those.
 */
INLINE void multiply_values(task *t, int32_t first_row, int32_t begin, int32_t end, int32_t channel,
                            int32_t last, const float beta[ROWS], bool split)
{
    const int32_t steps = (end - begin) * CHUNK / CODES, from = begin * CHUNK * PAIR;
    const product_code *v_tile = t->v + begin * CHUNK * BLOCK + channel * HR_INTEGER_TILE;
    float *o = t->o + (int64_t)first_row * t->channels;
    for (int32_t c = channel; c < last; c += BLOCK, v_tile += HR_INTEGER_TILE * BLOCK) {
        ivec sum[ROWS][VECS];
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECS; v++)
                sum[r][v] = ivec_set(V_OFFSET ? t->p_init[r] : 0);
        multiply(t->p[0] + from, HR_INTEGER_TILE, v_tile, steps, sum, true);
        if (split) {
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < VECS; v++)
                    sum[r][v] = ivec_shift_left(sum[r][v], 7);
            multiply(t->p_low[0] + from, HR_INTEGER_TILE, v_tile, steps, sum, true);
        }
        arrange(sum);
        /* Unrolled, so that sums are registers and not an array. */
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int v = 0; v < VECS; v++) {
                float *x = o + r * t->channels + c + v * WIDTH;
                const fvec old = fvec_mul(fvec_load(x), fvec_set(t->alpha_o[r]));
                fvec_store(x, fvec_fma(fvec_of(sum[r][v]), fvec_set(beta[r]), old));
            }
    }
}

/* The keys of a tile, in whole chunks [begin, end), of which a row sees [lo, hi). */
typedef struct key_span {
    int32_t begin, end, lo, hi;
} key_span;

/* Words of a chunk with 65535 for keys that the row does not see. */
INLINE wvec hide_keys(const task *t, wvec words, int32_t chunk, int vector, const key_span *span)
{
    const int32_t lo = span->lo - chunk * CHUNK, hi = span->hi - chunk * CHUNK;
    if (lo <= 0 && hi >= CHUNK) return words;
    return wvec_hide(words, wvec_load(t->packed_keys + vector * 2 * WIDTH), (int16_t)lo,
                     (int16_t)hi);
}

/* S * k of WIDTH keys of a row, or what takes its place. */
INLINE fvec scaled_products(const task *t, int r, int32_t key)
{
    if (CODES == 2 && t->k_groups) return fvec_load((const float *)t->s[r] + key);
    return fvec_mul(fvec_of(ivec_load(t->s[r] + key)), fvec_load(t->tile.k + key));
}

/* Step 3: Y of a row from S; returns N. */
static int32_t round_scores(task *t, int r, float a, const key_span *span)
{
    const fvec factor = fvec_set(-a);
    wvec least = wvec_set(65535);
    for (int32_t c = span->begin; c < span->end; c++)
        for (int w = 0; w < VECS; w++) {
            fvec half[2];
            for (int i = 0; i < 2; i++) {
                const int32_t key = c * CHUNK + i * BLOCK + w * WIDTH;
                half[i] = fvec_fma(scaled_products(t, r, key), factor, fvec_load(t->tile.u + key));
            }
            const wvec words = hide_keys(t, round_logits(half[0], half[1]), c, w, span);
            wvec_store(t->y + c * CHUNK + w * 2 * WIDTH, words);
            least = wvec_min(least, words);
        }
    return wvec_least(least);
}

/* Step 3 from logits in FP32: Y of y - n; returns the least. */
static int32_t round_exact(task *t, float n, const key_span *span)
{
    const fvec offset = fvec_set(n);
    wvec least = wvec_set(65535);
    for (int32_t c = span->begin; c < span->end; c++)
        for (int w = 0; w < VECS; w++) {
            const float *y = t->exact + c * CHUNK + w * WIDTH;
            const wvec words = hide_keys(t,
                                         round_logits(fvec_sub(fvec_load(y), offset),
                                                      fvec_sub(fvec_load(y + BLOCK), offset)),
                                         c, w, span);
            wvec_store(t->y + c * CHUNK + w * 2 * WIDTH, words);
            least = wvec_min(least, words);
        }
    return wvec_least(least);
}

/*
 * y of the keys that a row sees in FP32, capped and biased as integer_body.c says, and their least;
 * `values`: with V's scales.
 */
static float make_exact(task *t, int r, const row_state *row, float a, const key_span *span,
                        bool values)
{
    const hr_kernel_args *args = row->args;
    const tile_scales *tile = &t->tile;
    const float slope = (float)((double)args->alibi_slope * HR_INTEGER_LOG2E) * HR_INTEGER_OCTAVE;
    const hr_integer_cap cap = hr_integer_cap_of(args->softcap);
    const int64_t diagonal = (int64_t)row->query + args->shift - t->first;
    float least = INFINITY;
    for (int32_t j = span->lo; j < span->hi; j++) {
        const float product =
            t->k_groups ? ((const float *)t->s[r])[j] : (float)t->s[r][j] * tile->k[j];
        const float u = values ? tile->u[j] : HR_INTEGER_OFFSET;
        float y;
        if (args->softcap == 0) {
            y = fmaf(product, -a, u);
        } else {
            const float x = fmaf(product, a, (float)row->bias);
            y = fmaf(hr_integer_tanh(x, cap.argument), -cap.units, u);
        }
        if (slope != 0) y = fmaf(slope, (float)(diagonal > j ? diagonal - j : j - diagonal), y);
        t->exact[j] = y;
        least = y < least ? y : least;
    }
    return least;
}

/* Step 3 for a row: Y; returns N and writes 24576 - M. */
static uint16_t score_row(task *t, int r, const row_state *row, float a, const key_span *span,
                          float *offset)
{
    const bool plain = row->args->softcap == 0 && row->args->alibi_slope == 0;
    float exact = 0;
    if (!plain) exact = make_exact(t, r, row, a, span, true);
    const int32_t least = plain ? round_scores(t, r, a, span) : round_exact(t, 0, span);
    *offset = (float)least;
    if (least >= 1 && least <= HR_INTEGER_MAX_LEAST && a < HR_INTEGER_MAX_DIRECT)
        return (uint16_t)least;
    if (plain) exact = make_exact(t, r, row, a, span, true);
    round_exact(t, exact, span);
    *offset = exact;
    return 0;
}

/* Step 4 for a row: P, and l with the sums of an even or wide tile. */
INLINE void weigh_row(task *t, int r, row_state *row, uint16_t n, const key_span *span, float alpha,
                      float beta, bool wide)
{
    const wvec top = wvec_set((uint16_t)(HR_INTEGER_TOP + n));
    ivec sum[VECS], rest[VECS], total = ivec_set(0);
    for (int w = 0; w < VECS; w++)
        sum[w] = rest[w] = ivec_set(0);
    for (int32_t key = span->begin * CHUNK; key < span->end * CHUNK; key += CHUNK) {
        wvec e[VECS];
        for (int w = 0; w < VECS; w++)
            e[w] = wvec_sub(top, wvec_load(t->y + key + w * 2 * WIDTH));
        weights_of(e);
        for (int w = 0; w < VECS; w++) {
            const int32_t at = key + w * 2 * WIDTH;
            sum[w] = add_weights(sum[w], e[w], wvec_load(t->tile.sum + at));
            if (wide) rest[w] = add_weights(rest[w], e[w], wvec_load(t->tile.rest + at));
        }
        product_code *p = row_codes(t->p[0], HR_INTEGER_TILE, r, key);
        if (CODES == 2 && t->v_groups)
            for (int w = 0; w < VECS; w++)
                wvec_store(t->weight[r] + key + w * 2 * WIDTH, e[w]);
        else if (t->precise)
            total =
                store_split_weights(p, row_codes(t->p_low[0], HR_INTEGER_TILE, r, key), e, total);
        else
            total = store_weights(p, e, total);
    }
    t->p_init[r] = 0;
    if (V_OFFSET != 0) {
        int32_t lane[WIDTH];
        ivec_store(lane, total);
        for (int i = 0; i < WIDTH; i++)
            t->p_init[r] -= (t->precise ? V_OFFSET / 128 : V_OFFSET) * lane[i];
    }
    if (!t->tile.even && !t->tile.wide) return;
    for (int w = 0; w < VECS; w++) {
        fvec lanes = fvec_of(sum[w]);
        if (wide) lanes = fvec_fma(fvec_of(rest[w]), fvec_set(0x1p-12f), lanes);
        const fvec old = fvec_mul(fvec_load(row->l + w * WIDTH), fvec_set(alpha));
        fvec_store(row->l + w * WIDTH, fvec_fma(lanes, fvec_set(beta), old));
    }
}

/* l with the sums of a tile that is neither even nor wide. */
static void add_uneven_sums(task *t, int r, row_state *row, float a, const key_span *span,
                            float alpha)
{
    float s[HR_INTEGER_LANES] = {0};
    const float least = make_exact(t, r, row, a, span, false);
    for (int32_t j = span->lo; j < span->hi; j++)
        s[j % HR_INTEGER_LANES] += hr_integer_exp2((least - t->exact[j]) / HR_INTEGER_OCTAVE);
    const float beta =
        255 * hr_integer_exp2((HR_INTEGER_OFFSET - least - row->m) / HR_INTEGER_OCTAVE);
    for (int k = 0; k < HR_INTEGER_LANES; k++)
        row->l[k] = fmaf(s[k], beta, row->l[k] * alpha);
}

/* x * 2^exponent, rounded once. */
INLINE float times_power(float x, int32_t exponent)
{
    return exponent == 0 ? x : ldexpf(x, exponent);
}

/* P of a row that sees no key of the tile. */
static void clear_weights(task *t, int r, const key_span *span)
{
    for (int32_t key = span->begin * CHUNK; key < span->end * CHUNK; key += CODES) {
        memset(row_codes(t->p[0], HR_INTEGER_TILE, r, key), 0, CODES * sizeof(product_code));
        memset(row_codes(t->p_low[0], HR_INTEGER_TILE, r, key), 0, CODES * sizeof(product_code));
    }
    memset(t->weight[r], 0, sizeof *t->weight);
}

/* Step 4: P of a row for group g of V's scales; returns beta of the group. */
INLINE float share_weights(task *t, int r, int32_t g, int32_t begin, int32_t end)
{
    wvec most = wvec_set(0);
    for (int32_t at = begin * CHUNK; at < end * CHUNK; at += 2 * WIDTH) {
        const wvec e = wvec_product(wvec_load(t->weight[r] + at), wvec_load(t->tile.share[g] + at));
        wvec_store(t->y + at, e);
        most = wvec_max(most, e);
    }
    const int32_t factor =
        hr_integer_share_factor(65535 - wvec_least(wvec_sub(wvec_set(65535), most)));
    for (int32_t key = begin * CHUNK; key < end * CHUNK; key += CHUNK) {
        wvec e[VECS];
        for (int w = 0; w < VECS; w++)
            e[w] = wvec_load(t->y + key + w * 2 * WIDTH);
        store_shared_weights(row_codes(t->p[0], HR_INTEGER_TILE, r, key), e,
                             wvec_set((uint16_t)factor));
    }
    return t->beta_o[r] * t->tile.largest[g] * (256.0f / (float)factor);
}

/* Steps 4 to 6 for O where V's scales are in groups. */
static void multiply_value_groups(task *t, int32_t first_row, int32_t begin, int32_t end)
{
    const int32_t width = t->head_dim / t->v_groups;
    for (int32_t g = 0; g < t->v_groups; g++) {
        float beta[ROWS];
        for (int r = 0; r < ROWS; r++)
            beta[r] = share_weights(t, r, g, begin, end);
        multiply_values(t, first_row, begin, end, g * width, (g + 1) * width, beta, false);
    }
}

/* Steps 2 to 6 but O for one row of a group. */
static void update_row(task *t, int r, row_state *row, const key_span *span, double unit)
{
    const tile_scales *tile = &t->tile;
    if (span->lo >= span->hi) {
        clear_weights(t, r, span);
        t->p_init[r] = 0;
        t->alpha_o[r] = 1;
        t->beta_o[r] = 0;
        return;
    }
    const float a = hr_integer_tile_factor(row->factor, unit);
    float offset;
    const uint16_t n = score_row(t, r, row, a, span, &offset);
    const float largest = HR_INTEGER_OFFSET - offset;
    const float m = hr_integer_max(largest, row->m);
    const int32_t e = tile->e > row->e ? tile->e : row->e;
    const float alpha = hr_integer_exp2((row->m - m) / HR_INTEGER_OCTAVE);
    const float beta = hr_integer_exp2((largest - m) / HR_INTEGER_OCTAVE);
    t->alpha_o[r] = times_power(alpha, row->e - e);
    t->beta_o[r] = times_power(beta, tile->e - e);
    row->m = m;
    row->e = e;
    const float beta_l = beta * (tile->h * 0x1p-19f);
    if (tile->wide)
        weigh_row(t, r, row, n, span, alpha, beta_l, true);
    else
        weigh_row(t, r, row, n, span, alpha, beta_l, false);
    if (!tile->even && !tile->wide) add_uneven_sums(t, r, row, a, span, alpha);
}

/* One tile for the six rows from `first_row` on. */
static inline void update_group(task *t, int32_t first_row, double unit)
{
    key_span span[ROWS];
    int32_t begin = CHUNKS, end = 0;
    for (int r = 0; r < ROWS; r++) {
        const row_state *row = &t->row[first_row + r];
        const int32_t lo = row->lo - t->first, hi = row->hi - t->first;
        span[r].lo = lo > 0 ? lo : 0;
        span[r].hi = hi < HR_INTEGER_TILE ? hi : HR_INTEGER_TILE;
        if (span[r].lo >= span[r].hi) continue;
        if (span[r].lo / CHUNK < begin) begin = span[r].lo / CHUNK;
        if ((span[r].hi + CHUNK - 1) / CHUNK > end) end = (span[r].hi + CHUNK - 1) / CHUNK;
    }
    if (begin >= end) return;
    if (CODES == 2 && t->k_groups)
        multiply_key_groups(t, first_row, begin, end);
    else
        multiply_keys(t, first_row, begin, end);
    for (int r = 0; r < ROWS; r++) {
        span[r].begin = begin;
        span[r].end = end;
        update_row(t, r, &t->row[first_row + r], &span[r], unit);
    }
    if (CODES == 2 && t->v_groups)
        multiply_value_groups(t, first_row, begin, end);
    else if (t->precise && CODES > 2)
        multiply_values(t, first_row, begin, end, 0, t->channels, t->beta_o, true);
    else
        multiply_values(t, first_row, begin, end, 0, t->channels, t->beta_o, false);
}

/* Q, and rows that have seen nothing; those that fill up the last group never see anything. */
static inline void begin_rows(task *t, int32_t count, int32_t rows)
{
    const hr_kernel_args *args = t->args;
    const product_code *q =
        load_rows(t, hr_integer_expand_i8, &args->q, args->q_begin, count, rows, 0);
    const int32_t unit = PAIR == 1 ? t->head_dim : CODES;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t c = 0; c < t->head_dim; c += unit)
            memcpy(row_codes(t->q, t->head_dim, r, c), q + r * t->head_dim + c,
                   (size_t)unit * sizeof *q);
    memset(t->o, 0, (size_t)(rows * t->channels) * sizeof *t->o);
    for (int32_t index = 0; index < rows; index++) {
        const int32_t i = args->q_begin + index;
        row_state row = {.args = args, .query = i, .m = -INFINITY, .e = HR_INTEGER_NO_TILE};
        for (int32_t c = 0; c < t->head_dim; c++)
            row.init -= K_OFFSET * q[index * t->head_dim + c];
        if (index < count) {
            row.factor = hr_integer_row_factor(args, i);
            if (args->lse_bias) row.bias = (double)args->lse_bias[i] * (double)args->softmax_scale;
        }
        t->row[index] = row;
    }
}

/* Step 7. */
static inline void finish_row(const task *t, int32_t index)
{
    const hr_kernel_args *args = t->args;
    const row_state *row = &t->row[index];
    const int32_t i = args->q_begin + index;
    const double bias = args->softcap == 0 ? row->bias : 0;
    const float factor = hr_integer_finish(args, i, row->m, hr_integer_sum(row->l), bias);
    float *out = args->o + i * args->o_stride;
    const float *o = t->o + (int64_t)index * t->channels;
    for (int32_t c = 0; c < t->head_dim; c++)
        out[c] = o[c] * factor;
    scale_by_power(out, t->head_dim, row->e);
}

static inline void integer_tile_run(const hr_kernel_args *args, hr_integer_expand expand_k,
                                    hr_integer_expand expand_v)
{
    const int32_t count = args->q_end - args->q_begin, rows = (count + ROWS - 1) / ROWS * ROWS;
    assert(count >= 1 && count <= TASK_ROWS);
    assert(args->head_dim % 8 == 0 && args->head_dim <= HR_INTEGER_MAX_HEAD_DIM);
    task *t = args->scratch;
    t->args = args;
    t->expand_k = expand_k;
    t->expand_v = expand_v;
    t->head_dim = args->head_dim;
    t->channels = (args->head_dim + BLOCK - 1) / BLOCK * BLOCK;
    t->precise = args->p_dtype == HR_DTYPE_I16;
    t->k_groups = hr_integer_groups(&args->k, args->head_dim);
    t->v_groups = hr_integer_groups(&args->v, args->head_dim);
    assert(!t->precise || t->v_groups == 0);
    assert(t->k_groups == 0 || (CODES == 2 && args->k.block % BLOCK == 0));
    assert(t->v_groups == 0 || (CODES == 2 && args->v.block % BLOCK == 0));
    lay_out_task(t, args->scratch, args->head_dim);
    for (int32_t i = 0; i < CHUNK; i++)
        t->packed_keys[i] = (int16_t)packed_key(i);
    begin_rows(t, count, rows);
    const double octave = args->softcap == 0 ? HR_INTEGER_OCTAVE : 1;
    for (int32_t index = 0; index < args->range_count; index++) {
        hr_kernel_range range;
        if (!hr_kernel_visit(args, index, &range)) continue;
        for (int32_t i = 0; i < count; i++)
            hr_kernel_row_range(args, &range, args->q_begin + i, &t->row[i].lo, &t->row[i].hi);
        t->first = range.begin / HR_INTEGER_TILE * HR_INTEGER_TILE;
        for (; t->first < range.end; t->first += HR_INTEGER_TILE) {
            load_tile(t, &range);
            const double unit = ldexp(octave, t->tile.f);
            for (int32_t row = 0; row < rows; row += ROWS)
                update_group(t, row, unit);
        }
    }
    for (int32_t index = 0; index < count; index++)
        finish_row(t, index);
}

static inline size_t integer_tile_scratch(int32_t head_dim)
{
    task unused;
    return lay_out_task(&unused, NULL, head_dim);
}

/* The entries of one recipe and instruction set. */
#define INTEGER_TILE_ENTRY(recipe, isa, expand_k, expand_v)                                        \
    void hr_attention_##recipe##_##isa(const hr_kernel_args *args)                                 \
    {                                                                                              \
        integer_tile_run(args, expand_k, expand_v);                                                \
    }                                                                                              \
    size_t hr_attention_##recipe##_##isa##_scratch(int32_t head_dim)                               \
    {                                                                                              \
        return integer_tile_scratch(head_dim);                                                     \
    }

/* Those of the whole family. */
#define INTEGER_TILE_ENTRIES(isa)                                                                  \
    INTEGER_TILE_ENTRY(int8, isa, hr_integer_expand_i8, hr_integer_expand_i8)                      \
    INTEGER_TILE_ENTRY(int8_p16, isa, hr_integer_expand_i8, hr_integer_expand_i8)                  \
    INTEGER_TILE_ENTRY(int8_int4, isa, hr_integer_expand_i8, hr_integer_expand_nibbles)            \
    INTEGER_TILE_ENTRY(int4_int8, isa, hr_integer_expand_nibbles, hr_integer_expand_i8)            \
    INTEGER_TILE_ENTRY(int4, isa, hr_integer_expand_nibbles, hr_integer_expand_nibbles)            \
    INTEGER_TILE_ENTRY(int4_uniform, isa, hr_integer_expand_nibbles, hr_integer_expand_nibbles)    \
    INTEGER_TILE_ENTRY(int4_asymmetric, isa, hr_integer_expand_nibbles, hr_integer_expand_nibbles)

#endif
