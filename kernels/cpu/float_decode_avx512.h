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

/* Logits and the largest of them, one row, which may be left to be multiplied by a positive factor;
 * rows that see nothing of the tile have -inf. */
static inline void make_logits(float_decode *s, int32_t row)
{
    const int32_t columns = (s->task.end - s->task.from + 15) / 16 * 16;
    int32_t lo = s->task.lo[row] - s->task.first - s->task.from,
            hi = s->task.hi[row] - s->task.first - s->task.from;
    lo = lo > 0 ? lo : 0;
    hi = hi < columns ? hi : columns;
    s->task.largest[row] = -INFINITY;
    s->task.scale[row] = 1;
    if (lo >= hi) {
        lo = hi = columns;
        mask_and_maximum(s->x[row] + s->task.from, columns, lo, hi);
        return;
    }
    const logit_rule rule = rule_of(&s->task, row);
    if (only_scales(&rule))
        s->task.scale[row] = rule.scale;
    else
        apply_rule(s->x[row] + s->task.from, columns, &rule);
    s->task.largest[row] =
        s->task.scale[row] * mask_and_maximum(s->x[row] + s->task.from, columns, lo, hi);
}

/* Logits -> weights of one row, times V's scales if keys have them, and the sum of the weights
 * before either and before they are rounded. */
static inline void make_weights(float_decode *s, int32_t row)
{
    const vec minus =
        vec_sub(vec_set(0), vec_max(vec_set(-0x1p127f), vec_set(s->task.largest[row])));
    const vec scale = vec_set(s->task.scale[row]);
    const float *values = keys_have_scales(&s->task.args->v) ? s->value_scale : NULL;
    vec sum[2] = {vec_set(0), vec_set(0)};
    for (int32_t j = s->task.from; j < s->task.end; j += 32)
        for (int i = 0; i < 2; i++) {
            float *x = s->x[row] + j + 16 * i;
            vec p = vec_exp2_times(vec_fma(vec_load(x), scale, minus), PEAK_WEIGHT);
            /* The second half may lie past the end, where nothing was written in this tile. */
            if (j + 16 * i >= s->task.end) p = vec_set(0);
            sum[i] = vec_add(sum[i], p);
            if (values) p = vec_mul(p, vec_load(values + j + 16 * i));
            _mm512_store_si512(x, weights_of(p));
        }
    s->task.sum[row] = s->task.sum[row] * s->task.alpha[row] +
                       vec_reduce_add(vec_add(sum[0], sum[1])) * s->task.beta[row];
}

static inline void update_softmax(float_decode *s, const code_rows *k, const code_rows *v,
                                  int32_t cost)
{
    gather_scales(&s->task, &s->task.args->k, s->task.column_scale);
    gather_scales(&s->task, &s->task.args->v, s->value_scale);
    for (int32_t row = 0; row < s->task.rows; row++) {
        prefetch_share(&s->walk.ahead, k, v, cost);
        make_logits(s, row);
    }
    for (int32_t row = 0; row < s->task.rows; row += 16)
        join_rows(&s->task, row);
    for (int32_t row = 0; row < s->task.rows; row++) {
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
    for (int32_t key = s->task.from; key < s->task.end; key++)
        for (int32_t c = 0; c < s->task.args->head_dim; c++)
            if (isnan(value_of(code_at(k, s->walk.tile, key, c)))) {
                for (int32_t row = 0; row < s->task.rows; row++)
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
    for (int32_t row = 0; row < s->task.rows; row++) {
        const int32_t lo = s->task.lo[row] - s->task.first, hi = s->task.hi[row] - s->task.first;
        for (int32_t i = 0; i < s->vectors * OUTPUTS; i++) {
            const int32_t channel = channel_of(i);
            float sum = 0;
            if (channel >= s->task.args->head_dim) continue;
            for (int32_t key = lo > s->task.from ? lo : s->task.from; key < s->task.end && key < hi;
                 key++)
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
    return 2 * DECODE_TILE * s->vectors * (LOAD_COST + MULTIPLY_COST * s->task.rows) +
           SOFTMAX_COST * s->task.rows;
}

DECODE_INLINE void score_tile(float_decode *s, const code_rows *k, const code_rows *v)
{
    if (s->task.rows <= 2) {
        for (int32_t key = s->task.from; key < s->task.end; key += KEY_STEP)
            if (s->task.rows == 1)
                score_keys(s, k, v, 1, key);
            else
                score_keys(s, k, v, 2, key);
        return;
    }
    for (int32_t key = s->task.from; key < s->task.end; key += KEY_STEP) {
        prefetch_share(&s->walk.ahead, k, v, KEY_STEP * s->vectors * LOAD_COST);
        load_keys_block(s, k, v, key);
        for (int32_t row = 0, rows; row < s->task.rows; row += rows) {
            rows = s->task.rows - row >= 4 ? 4 : s->task.rows - row >= 2 ? 2 : 1;
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
    for (int32_t row = 0, rows; row < s->task.rows; row += rows) {
        rows = s->task.rows - row >= 4 ? 4 : s->task.rows - row >= 2 ? 2 : 1;
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
    if (s->task.rows <= 2) {
        for (int32_t part = 0; part < v->parts; part++)
            if (s->task.rows == 1)
                sum_values(s, k, v, 1, part);
            else
                sum_values(s, k, v, 2, part);
        return;
    }
    for (int32_t key = s->task.from, done = 0; key < s->task.end; key += FLOAT_STEP) {
        const int32_t left = s->task.end - key, count = left < FLOAT_STEP ? left : FLOAT_STEP;
        prefetch_share(&s->walk.ahead, k, v, count * s->vectors * LOAD_COST);
        load_values_block(s, k, v, key, count);
        int32_t vector = 0;
        for (; vector + 4 <= s->vectors; vector += 4)
            multiply_block(s, k, v, key, count, vector, 4);
        if (vector < s->vectors) multiply_block(s, k, v, key, count, vector, 2);
        done += count;
        if (done % FLUSH_KEYS == 0 || key + count >= s->task.end) flush(s);
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
    const hr_kernel_args *args = args_of(&s->task, row, &query);
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
}

static inline void finish_row(const float_decode *s, int32_t row)
{
    int32_t query;
    const hr_kernel_args *args = args_of(&s->task, row, &query);
    const bool channels = args->v.granularity == HR_GRANULARITY_CHANNEL;
    const float factor = output_factor(&s->task, row);
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
    store_lse(&s->task, row);
}

DECODE_INLINE void decode_range(float_decode *s, const hr_kernel_range *range, const code_rows *k,
                                const code_rows *v)
{
    begin_range(&s->task, range);
    for (; s->task.first < range->end; s->task.first += DECODE_TILE) {
        begin_tile(&s->task, range);
        walk_to(&s->walk, s->task.args, k, v, s->task.first, s->task.count, tile_cost(s));
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
    begin_task(&s->task, args);
    s->vectors = k.parts * PLANES;
    assert(args->head_dim % 8 == 0 && args->head_dim <= MAX_CHANNELS);
    s->q = (wide_vec *)(s + 1);
    s->part_t = s->q + DECODE_ROWS * s->vectors * 4;
    s->t = (float *)(s->part_t + DECODE_ROWS * s->vectors);
    s->o = s->t + DECODE_ROWS * s->vectors * OUTPUTS;
    const size_t floats = (size_t)(s->task.rows * s->vectors * OUTPUTS);
    memset(s->t, 0, floats * sizeof(float));
    memset(s->o, 0, floats * sizeof(float));
    for (int32_t i = 0; i < s->task.rows * s->vectors; i++)
        s->part_t[i] = wide_zero();
    for (int32_t row = 0; row < s->task.rows; row++)
        start_row(s, row);
    s->walk.found = -1;
    for (int32_t i = 0; i < args->range_count; i++) {
        hr_kernel_range range;
        if (hr_kernel_visit(args, i, &range)) decode_range(s, &range, &k, &v);
    }
    for (int32_t row = 0; row < s->task.rows; row++)
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
