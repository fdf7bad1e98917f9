/*
 * Attention of few rows over K and V of floating-point codes: the rows are queries of all heads
 * that share a KV head, and each tile of 256 keys is read once for all of them.
 *
 *     S[row][key]    K's dwords transposed in fours of keys, times Q in the same order
 *                    (float_decode_products_avx512.h); lanes are summed once for 16 keys
 *     x, M, P, l     the softmax of float_softmax.h on 256 keys, P relative to the tile's maximum
 *     T[row][...]    P times V as it lies in its row; O = alpha O + beta T
 *
 * A kernel's file defines `wide_vec`, the vector products are made in, before it includes this:
 *
 *     CODE_BYTES, OUTPUTS, FLUSH_KEYS   of a code; elements of a wide vector; keys added up in one
 *     PRODUCT_SCALE, VALUE_SCALE        S and T times these are in true units
 *     PEAK_WEIGHT                       P of a row's largest logit
 *     wide_of(raw, plane)               one in PLANES of the codes of 64 bytes: see channel_of
 *     query_of(raw, plane)              the same for Q
 *     wide_zero(), wide_fma(a, b, c), wide_weight(dword)
 *     sum_keys(sum)                     of 4 times 4 keys to floats, key 4 g + i from lane g
 *     add_vector(t, sum)                OUTPUTS floats t += sum
 *     weights_of(p), float_weight(dword) 16 weights to dwords for wide_weight, and back
 *     watch_key, watch_value(seen, raw) keep what is_special(seen) needs to tell NaN and infinity
 *     value_of(code)                    as a float
 *
 * Two vectors of codes become four or more wide ones, at a cost, so they stay in the first-level
 * cache for all rows; one and two rows use them at once. The limit is memory for few rows and the
 * two vector ports for eight.
 */
#ifndef HEADROOM_FLOAT_DECODE_AVX512_H
#define HEADROOM_FLOAT_DECODE_AVX512_H

#include "float_decode_products_avx512.h"

/* Head and query of a row: rows of one head lie side by side. */
static inline const hr_kernel_args *args_of(const float_decode *s, int32_t row, int32_t *query)
{
    const int32_t queries = s->args->q_end - s->args->q_begin;
    *query = s->args->q_begin + row % queries;
    return s->args + row / queries;
}

/* The part of the logits that mean smoothing removed, in nats; 0 without. */
static inline float bias_of(const hr_kernel_args *args, int32_t query)
{
    return args->lse_bias ? args->softmax_scale * args->lse_bias[query] : 0;
}

static inline bool keys_have_scales(const hr_kernel_operand *operand)
{
    return operand->granularity == HR_GRANULARITY_TOKEN ||
           operand->granularity == HR_GRANULARITY_BLOCK;
}

/* The tile's scales of K or V, if keys have them; 0 for those past the sequence. */
static inline void gather_scales(const float_decode *s, const hr_kernel_operand *operand,
                                 float *scale)
{
    if (operand->granularity == HR_GRANULARITY_TOKEN)
        copy_token_scales(operand, s->first, s->count, scale);
    else if (operand->granularity == HR_GRANULARITY_BLOCK)
        for (int32_t j = 0; j < s->count; j++)
            scale[j] = token_scale(operand, s->first + j);
    else
        return;
    memset(scale + s->count, 0, (size_t)(DECODE_TILE - s->count) * sizeof *scale);
}

/* What turns a row's S into logits. */
static inline logit_rule rule_of(const float_decode *s, int32_t row)
{
    int32_t query;
    const hr_kernel_args *args = args_of(s, row, &query);
    float scale = PRODUCT_SCALE * args->softmax_scale * token_scale(&args->q, query);
    if (!keys_have_scales(&args->k)) scale *= token_scale(&args->k, 0);
    logit_rule rule = {.scale = args->softcap != 0 ? scale / args->softcap : scale * LOG2E,
                       .column_scale =
                           keys_have_scales(&args->k) ? s->column_scale + s->from : NULL,
                       .alibi_slope = args->alibi_slope * LOG2E,
                       .diagonal = (float)((int64_t)query + args->shift - s->first - s->from)};
    if (args->softcap == 0) return rule;
    rule.bias = bias_of(args, query) / args->softcap;
    rule.softcap = args->softcap * LOG2E;
    return rule;
}

/* Logits and the largest of them, one row, which may be left to be multiplied by a positive factor;
 * rows that see nothing of the tile have -inf. */
static inline void make_logits(float_decode *s, int32_t row)
{
    const int32_t columns = (s->end - s->from + 15) / 16 * 16;
    int32_t lo = s->lo[row] - s->first - s->from, hi = s->hi[row] - s->first - s->from;
    lo = lo > 0 ? lo : 0;
    hi = hi < columns ? hi : columns;
    s->largest[row] = -INFINITY;
    s->scale[row] = 1;
    if (lo >= hi) {
        lo = hi = columns;
        mask_and_maximum(s->x[row] + s->from, columns, lo, hi);
        return;
    }
    const logit_rule rule = rule_of(s, row);
    if (rule.scale > 0 && !rule.column_scale && rule.softcap == 0 && rule.alibi_slope == 0)
        s->scale[row] = rule.scale;
    else
        apply_rule(s->x[row] + s->from, columns, &rule);
    s->largest[row] = s->scale[row] * mask_and_maximum(s->x[row] + s->from, columns, lo, hi);
}

/*
 * 16 rows from `row` on: joins the tile's maxima to the running ones. O and the sums are to be
 * rescaled by alpha = 2^(old - new) and the tile's by beta = 2^(tile - new) / PEAK_WEIGHT; the
 * floor turns -inf - -inf, of rows that have seen no key at all, into -inf.
 */
static inline void join_rows(float_decode *s, int32_t row)
{
    const vec before = vec_load(s->max + row), here = vec_load(s->largest + row);
    const vec joined = vec_max(here, before), reference = vec_max(vec_set(-0x1p127f), joined);
    const vec alpha = vec_exp2(vec_sub(before, reference));
    const vec beta = vec_mul(vec_exp2(vec_sub(here, reference)), vec_set(1 / (float)PEAK_WEIGHT));
    vec_store(s->alpha + row, alpha);
    vec_store(s->beta + row, beta);
    vec_store(s->max + row, joined);
}

/* Logits -> weights of one row, times V's scales if keys have them, and the sum of the weights
 * before either and before they are rounded. */
static inline void make_weights(float_decode *s, int32_t row)
{
    const vec minus = vec_sub(vec_set(0), vec_max(vec_set(-0x1p127f), vec_set(s->largest[row])));
    const vec scale = vec_set(s->scale[row]);
    const float *values = keys_have_scales(&s->args->v) ? s->value_scale : NULL;
    vec sum[2] = {vec_set(0), vec_set(0)};
    for (int32_t j = s->from; j < s->end; j += 32)
        for (int i = 0; i < 2; i++) {
            float *x = s->x[row] + j + 16 * i;
            vec p = vec_exp2_times(vec_fma(vec_load(x), scale, minus), PEAK_WEIGHT);
            /* The second half may lie past the end, where nothing was written in this tile. */
            if (j + 16 * i >= s->end) p = vec_set(0);
            sum[i] = vec_add(sum[i], p);
            if (values) p = vec_mul(p, vec_load(values + j + 16 * i));
            _mm512_store_si512(x, weights_of(p));
        }
    s->sum[row] =
        s->sum[row] * s->alpha[row] + vec_reduce_add(vec_add(sum[0], sum[1])) * s->beta[row];
}

static inline void update_softmax(float_decode *s, const code_rows *k, const code_rows *v,
                                  int32_t cost)
{
    gather_scales(s, &s->args->k, s->column_scale);
    gather_scales(s, &s->args->v, s->value_scale);
    for (int32_t row = 0; row < s->rows; row++) {
        prefetch_share(&s->walk.ahead, k, v, cost);
        make_logits(s, row);
    }
    for (int32_t row = 0; row < s->rows; row += 16)
        join_rows(s, row);
    for (int32_t row = 0; row < s->rows; row++) {
        prefetch_share(&s->walk.ahead, k, v, cost);
        make_weights(s, row);
    }
}

/* A code of a row, whatever its bytes. */
static inline uint32_t code_at(const code_rows *rows, const tile_rows *tile, int32_t key,
                               int32_t channel)
{
    uint16_t code = 0;
    const uint8_t *row = rows->codes + tile->at[key];
    memcpy(&code, row + channel * CODE_BYTES, CODE_BYTES);
    return code;
}

/* Scores of keys with a NaN among their codes are NaN: wide_of has taken it for a number. */
static inline void poison_scores(float_decode *s, const code_rows *k)
{
    for (int32_t key = s->from; key < s->end; key++)
        for (int32_t c = 0; c < s->args->head_dim; c++)
            if (isnan(value_of(code_at(k, s->walk.tile, key, c)))) {
                for (int32_t row = 0; row < s->rows; row++)
                    s->x[row][key] = NAN;
                break;
            }
}

/*
 * T when V has NaN or infinity in the tile: a weight of 0 times it would be NaN in rows that do not
 * see that key, so each row goes over its own keys alone.
 */
static inline void sum_special_values(float_decode *s, const code_rows *v)
{
    for (int32_t row = 0; row < s->rows; row++) {
        const int32_t lo = s->lo[row] - s->first, hi = s->hi[row] - s->first;
        for (int32_t i = 0; i < s->vectors * OUTPUTS; i++) {
            const int32_t channel = channel_of(i);
            float sum = 0;
            if (channel >= s->args->head_dim) continue;
            for (int32_t key = lo > s->from ? lo : s->from; key < s->end && key < hi; key++)
                sum +=
                    float_weight(s->x[row][key]) * value_of(code_at(v, s->walk.tile, key, channel));
            s->t[row * s->vectors * OUTPUTS + i] = sum / VALUE_SCALE;
        }
    }
}

/* What the steps of a tile cost, for prefetch_share: a wide vector loaded, multiplied; a row. */
enum { LOAD_COST = 12, MULTIPLY_COST = 2, SOFTMAX_COST = 1000 };

static inline int32_t tile_cost(const float_decode *s)
{
    return 2 * DECODE_TILE * s->vectors * (LOAD_COST + MULTIPLY_COST * s->rows) +
           SOFTMAX_COST * s->rows;
}

DECODE_INLINE void score_tile(float_decode *s, const code_rows *k, const code_rows *v)
{
    if (s->rows <= 2) {
        for (int32_t key = s->from; key < s->end; key += KEY_STEP)
            if (s->rows == 1)
                score_keys(s, k, v, 1, key);
            else
                score_keys(s, k, v, 2, key);
        return;
    }
    for (int32_t key = s->from; key < s->end; key += KEY_STEP) {
        prefetch_share(&s->walk.ahead, k, v, KEY_STEP * s->vectors * LOAD_COST);
        load_keys_block(s, k, v, key);
        for (int32_t row = 0, rows; row < s->rows; row += rows) {
            rows = s->rows - row >= 4 ? 4 : s->rows - row >= 2 ? 2 : 1;
            prefetch_share(&s->walk.ahead, k, v, KEY_STEP * s->vectors * MULTIPLY_COST * rows);
            if (rows == 4)
                multiply_keys(s, row, 4, key);
            else if (rows == 2)
                multiply_keys(s, row, 2, key);
            else
                multiply_keys(s, row, 1, key);
        }
    }
}

/* T of all rows for keys [key, key + count), from v_block. */
DECODE_INLINE void multiply_block(float_decode *s, const code_rows *k, const code_rows *v,
                                  int32_t key, int32_t count, int32_t vector, int vectors)
{
    for (int32_t row = 0, rows; row < s->rows; row += rows) {
        rows = s->rows - row >= 4 ? 4 : s->rows - row >= 2 ? 2 : 1;
        prefetch_share(&s->walk.ahead, k, v, count * vectors * MULTIPLY_COST * rows);
        if (rows == 4)
            multiply_values(s, row, 4, vector, vectors, key, count);
        else if (rows == 2)
            multiply_values(s, row, 2, vector, vectors, key, count);
        else
            multiply_values(s, row, 1, vector, vectors, key, count);
    }
}

DECODE_INLINE void sum_tile(float_decode *s, const code_rows *k, const code_rows *v)
{
    if (s->rows <= 2) {
        for (int32_t part = 0; part < v->parts; part++)
            if (s->rows == 1)
                sum_values(s, k, v, 1, part);
            else
                sum_values(s, k, v, 2, part);
        return;
    }
    for (int32_t key = s->from, done = 0; key < s->end; key += FLOAT_STEP) {
        const int32_t left = s->end - key, count = left < FLOAT_STEP ? left : FLOAT_STEP;
        prefetch_share(&s->walk.ahead, k, v, count * s->vectors * LOAD_COST);
        load_values_block(s, k, v, key, count);
        int32_t vector = 0;
        for (; vector + 4 <= s->vectors; vector += 4)
            multiply_block(s, k, v, key, count, vector, 4);
        if (vector < s->vectors) multiply_block(s, k, v, key, count, vector, 2);
        done += count;
        if (done % FLUSH_KEYS == 0 || key + count >= s->end) flush(s);
    }
}

/* One tile for all rows. */
DECODE_INLINE void decode_tile(float_decode *s, const code_rows *k, const code_rows *v)
{
    s->seen_k = s->seen_v = _mm512_setzero_si512();
    score_tile(s, k, v);
    if (is_special(s->seen_k)) poison_scores(s, k);
    update_softmax(s, k, v, SOFTMAX_COST / 2);
    sum_tile(s, k, v);
    if (is_special(s->seen_v)) sum_special_values(s, v);
    add_outputs(s);
}

/* A row's query, as a K block lies: lane L, dword i of vector k: Q's dword 4 L + k, for all i. */
static inline void start_row(float_decode *s, int32_t row)
{
    int32_t query;
    const hr_kernel_args *args = args_of(s, row, &query);
    const size_t bytes = (size_t)args->head_dim * CODE_BYTES;
    const code_rows codes = rows_of(&args->q, bytes);
    wide_vec *q = s->q + row * s->vectors * 4;
    for (int32_t part = 0; part < codes.parts; part++) {
        const __m512i raw = load_part(&codes, codes.codes + (size_t)query * bytes, part);
        const __m512i dwords[4] = {_mm512_shuffle_epi32(raw, 0x00), _mm512_shuffle_epi32(raw, 0x55),
                                   _mm512_shuffle_epi32(raw, 0xaa),
                                   _mm512_shuffle_epi32(raw, 0xff)};
        for (int i = 0; i < 4 * PLANES; i++)
            q[part * 4 * PLANES + i] = query_of(dwords[i / PLANES], i % PLANES);
    }
    /* Smoothing shifted every logit but the sink's, unless the bias was put back for the cap. */
    const float shift = args->softcap != 0 ? 0 : bias_of(args, query);
    s->max[row] = (args->sink - shift) * LOG2E;
    s->sum[row] = args->sink > -INFINITY ? 1 : 0;
}

static inline void finish_row(const float_decode *s, int32_t row)
{
    int32_t query;
    const hr_kernel_args *args = args_of(s, row, &query);
    const bool channels = args->v.granularity == HR_GRANULARITY_CHANNEL;
    const float sum = s->sum[row];
    /* A sum of 0 is a row that sees no key. */
    float factor = sum == 0 ? 0 : VALUE_SCALE / sum;
    if (!keys_have_scales(&args->v)) factor *= token_scale(&args->v, 0);
    float *out = args->o + query * args->o_stride;
    for (int32_t i = 0; i < s->vectors * OUTPUTS; i += 16) {
        const vec o = vec_mul(vec_load(s->o + row * s->vectors * OUTPUTS + i), vec_set(factor));
        const int32_t first = channel_of(i);
        const __m512i channel = _mm512_add_epi32(
            _mm512_set1_epi32(first),
            _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30));
        const __mmask16 there = _mm512_cmplt_epi32_mask(channel, _mm512_set1_epi32(args->head_dim));
        const vec scale = channels ? _mm512_mask_i32gather_ps(vec_set(1), there, channel,
                                                              args->v.scale, sizeof(float))
                                   : vec_set(1);
        _mm512_mask_i32scatter_ps(out, there, channel, vec_mul(o, scale), sizeof(float));
    }
    if (!args->lse) return;
    const float bias = args->softcap != 0 ? 0 : bias_of(args, query);
    /* Taking the bias off the sink and adding it again would round: without keys, don't. */
    args->lse[query * args->lse_stride] =
        hr_kernel_row_sees(args, query) ? (s->max[row] + log2f(sum)) * LN2 + bias : args->sink;
}

DECODE_INLINE void decode_range(float_decode *s, const hr_kernel_range *range, const code_rows *k,
                                const code_rows *v)
{
    for (int32_t row = 0; row < s->rows; row++) {
        int32_t query;
        const hr_kernel_args *args = args_of(s, row, &query);
        hr_kernel_row_range(args, range, query, &s->lo[row], &s->hi[row]);
    }
    s->first = range->begin / DECODE_TILE * DECODE_TILE;
    for (; s->first < range->end; s->first += DECODE_TILE) {
        const int32_t left = s->args->seqlen_kv - s->first, end = range->end - s->first;
        s->count = left < DECODE_TILE ? left : DECODE_TILE;
        s->from = range->begin > s->first ? (range->begin - s->first) / 64 * 64 : 0;
        s->end = end < s->count ? end : s->count;
        walk_to(&s->walk, s->args, k, v, s->first, s->count, tile_cost(s));
        decode_tile(s, k, v);
    }
}

/* The body of the kernels; `parts` of a row is a constant, and those are whole, unless it is 0. */
DECODE_INLINE void decode_rows(const hr_kernel_args *args, int32_t parts)
{
    const size_t row_bytes = (size_t)args->head_dim * CODE_BYTES;
    code_rows k = rows_of(&args->k, row_bytes), v = rows_of(&args->v, row_bytes);
    if (parts) {
        k.parts = v.parts = parts;
        k.whole = v.whole = true;
        k.row_bytes = v.row_bytes = (size_t)parts * PART;
    }
    float_decode *s = args->scratch;
    s->args = args;
    s->rows = args->heads * (args->q_end - args->q_begin);
    s->vectors = k.parts * PLANES;
    assert(s->rows >= 1 && s->rows <= DECODE_ROWS);
    assert(args->head_dim % 8 == 0 && args->head_dim <= MAX_CHANNELS);
    assert(args->k.pages == args->v.pages && args->k.page_slots == args->v.page_slots);
    s->q = (wide_vec *)(s + 1);
    s->part_t = s->q + DECODE_ROWS * s->vectors * 4;
    s->t = (float *)(s->part_t + DECODE_ROWS * s->vectors);
    s->o = s->t + DECODE_ROWS * s->vectors * OUTPUTS;
    const size_t floats = (size_t)(s->rows * s->vectors * OUTPUTS);
    memset(s->t, 0, floats * sizeof(float));
    memset(s->o, 0, floats * sizeof(float));
    for (int32_t i = 0; i < s->rows * s->vectors; i++)
        s->part_t[i] = wide_zero();
    for (int32_t row = 0; row < (s->rows + 15) / 16 * 16; row++)
        s->max[row] = s->largest[row] = -INFINITY;
    for (int32_t row = 0; row < s->rows; row++)
        start_row(s, row);
    s->walk.found = -1;
    for (int32_t i = 0; i < args->range_count; i++) {
        hr_kernel_range range;
        if (hr_kernel_visit(args, i, &range)) decode_range(s, &range, &k, &v);
    }
    for (int32_t row = 0; row < s->rows; row++)
        finish_row(s, row);
}

/* Rows of head_dim 128 are compiled on their own. */
static inline void float_decode_run(const hr_kernel_args *args)
{
    if (args->head_dim == 128)
        decode_rows(args, 128 * CODE_BYTES / PART);
    else
        decode_rows(args, 0);
}

#endif
