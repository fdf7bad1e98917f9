/*
 * The body of the float attention kernels: FlashAttention's online softmax over tiles of keys, on
 * FP32 vectors. A kernel's file includes a vec_<isa>.h, then this, and passes constants for its
 * formats; everything folds at compile time.
 *
 * For a task of up to tile_q rows, for every tile of keys:
 *
 *     Kt, V = decode(tile)                                   once for all rows
 *     for every block of ROWS rows:
 *         S = Q Kt                                           registers -> L1
 *         x = logits(S), m' = max x, P = round(2^(x - m'))   P relative to the tile's own maximum:
 *                                                            most exact for formats with few bits
 *         O = alpha O + beta P V,  l = alpha l + beta sum P  alpha, beta rescale to max(m, m')
 *
 * and at the end O / l and LSE = ln 2 (m + log2 l). Softmax statistics and O are FP32. Integer
 * codes are at most 128 and head_dim at most 256, so a dot product of them stays below 2^24 and its
 * FP32 sum is the exact integer.
 *
 * Limited by the FP32 multiply-add rate: 2 tile_q tile_kv head_dim of them a tile against
 * 2 tile_kv head_dim decodes and tile_q tile_kv exponentials.
 */
#ifndef HEADROOM_FLOAT_TILE_H
#define HEADROOM_FLOAT_TILE_H

#include "float_gemm.h"
#include "float_softmax.h"

typedef struct float_formats {
    hr_dtype qk, v, p;
    int32_t tile_q, tile_kv;
} float_formats;

typedef struct float_workspace {
    float *q;            /* [tile_q][channels] */
    float *o;            /* [tile_q][channels] */
    float *keys;         /* [channels][tile_kv] */
    float *values;       /* [tile_kv][channels] */
    float *weights;      /* [ROWS][tile_kv]: S, then P */
    float *column_scale; /* [tile_kv] */
    float *max, *sum;    /* [tile_q] */
} float_workspace;

/* Floats the workspace takes; fills it when scratch is not NULL. Every part is 64-byte aligned. */
FLOAT_INLINE size_t lay_out_workspace(float *scratch, int32_t head_dim, int32_t tile_q,
                                      int32_t tile_kv, float_workspace *work)
{
    const size_t channels = (size_t)padded_channels(head_dim);
    const size_t rows = ((size_t)tile_q + 15) / 16 * 16, keys = (size_t)tile_kv;
    const size_t sizes[] = {rows * channels,
                            rows * channels,
                            keys * channels,
                            keys * channels,
                            ROWS * keys,
                            keys,
                            rows,
                            rows};
    float **parts[] = {&work->q,      &work->o,       &work->keys,
                       &work->values, &work->weights, &work->column_scale,
                       &work->max,    &work->sum};
    size_t used = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (scratch) *parts[i] = scratch + used;
        used += sizes[i];
    }
    return used;
}

static inline size_t float_tile_scratch(int32_t head_dim, int32_t tile_q, int32_t tile_kv)
{
    float_workspace work;
    return lay_out_workspace(NULL, head_dim, tile_q, tile_kv, &work) * sizeof(float);
}

/* One tile of keys as the row blocks see it. */
typedef struct key_tile {
    int32_t begin, count; /* keys [begin, begin + count) of the sequence */
    const hr_kernel_range *range;
    bool finite; /* all of V */
    const float *column_scale;
} key_tile;

/* The part of the logits that mean smoothing removed, in nats; 0 without. */
FLOAT_INLINE float row_bias(const hr_kernel_args *args, int32_t row)
{
    return args->lse_bias ? args->softmax_scale * args->lse_bias[row] : 0;
}

/* K has one scale for all keys, which then belongs to the row's factor. */
FLOAT_INLINE bool keys_share_scale(const hr_kernel_args *args)
{
    return args->k.granularity != HR_GRANULARITY_TOKEN &&
           args->k.granularity != HR_GRANULARITY_BLOCK;
}

/* What a row's dot products are multiplied by, key scales aside. */
FLOAT_INLINE float row_factor(const hr_kernel_args *args, int32_t row)
{
    float scale = args->softmax_scale * token_scale(&args->q, row);
    if (keys_share_scale(args)) scale *= token_scale(&args->k, 0);
    return args->softcap != 0 ? scale / args->softcap : scale * LOG2E;
}

/* Floating Q is multiplied by its row's factor when loaded; integer Q stays exact. */
FLOAT_INLINE bool folds_factor(float_formats formats)
{
    return formats.qk != HR_DTYPE_I8;
}

FLOAT_INLINE logit_rule row_rule(const hr_kernel_args *args, const key_tile *tile,
                                 float_formats formats, int32_t row, int32_t first_key)
{
    logit_rule rule = {.scale = folds_factor(formats) ? 1 : row_factor(args, row),
                       .column_scale = tile->column_scale,
                       .alibi_slope = args->alibi_slope * LOG2E,
                       .diagonal = (float)((int64_t)row + args->shift - first_key)};
    if (tile->column_scale) rule.column_scale += first_key - tile->begin;
    if (args->softcap != 0) {
        rule.bias = row_bias(args, row) / args->softcap;
        rule.softcap = args->softcap * LOG2E;
    }
    return rule;
}

/*
 * The head and query of row `index` of the task: the queries of a head lie side by side, head after
 * head. Only decode kernels have more than one head.
 */
FLOAT_INLINE const hr_kernel_args *row_args(const hr_kernel_args *args, int32_t index,
                                            int32_t *query)
{
    const int32_t queries = args->q_end - args->q_begin;
    *query = args->q_begin + index % queries;
    return args + index / queries;
}

/* Where a row block's part of a tile starts and ends, in keys of the tile. */
typedef struct key_span {
    int32_t lo[ROWS], hi[ROWS]; /* visible to each row; lo >= hi: none */
    int32_t first, last;        /* the union */
} key_span;

FLOAT_INLINE key_span visible_span(const hr_kernel_args *args, const key_tile *tile, int32_t offset,
                                   int32_t rows)
{
    key_span span = {.first = tile->count, .last = 0};
    for (int32_t i = 0; i < rows; i++) {
        int32_t lo, hi, query;
        const hr_kernel_args *head = row_args(args, offset + i, &query);
        hr_kernel_row_range(head, tile->range, query, &lo, &hi);
        lo = lo > tile->begin ? lo - tile->begin : 0;
        hi = hi - tile->begin < tile->count ? hi - tile->begin : tile->count;
        span.lo[i] = lo;
        span.hi[i] = hi;
        if (lo >= hi) continue;
        if (lo < span.first) span.first = lo;
        if (hi > span.last) span.last = hi;
    }
    return span;
}

/* A number for each row of a block, padded to whole vectors. */
typedef struct row_values {
    float row[16];
} row_values;

/*
 * Joins a tile's maxima to the rows' running ones: max = max(old, tile), and O and the sums are to
 * be rescaled by alpha = 2^(old - max) and the tile's by beta = 2^(tile - max) / P_MAX. Rows that
 * see no key of the tile have -inf there. The floor turns -inf - -inf, of rows that have seen no
 * key at all, into -inf.
 */
FLOAT_INLINE void join_maxima(row_values *max, const row_values *tile, float unit,
                              row_values *alpha, row_values *beta)
{
    for (int i = 0; i < ROWS; i += VEC_WIDTH) {
        vec before = vec_load(max->row + i), here = vec_load(tile->row + i);
        vec joined = vec_max(here, before), reference = vec_max(vec_set(-0x1p127f), joined);
        vec_store(alpha->row + i, vec_exp2(vec_sub(before, reference)));
        vec_store(beta->row + i, vec_mul(vec_exp2(vec_sub(here, reference)), vec_set(unit)));
        vec_store(max->row + i, joined);
    }
}

/*
 * Scores -> weights of a block of rows, in place, and their statistics. The three steps are loops
 * over all rows, so that one row's latencies hide behind the others' work.
 */
FLOAT_INLINE void apply_softmax(const hr_kernel_args *args, const float_workspace *work,
                                const key_tile *tile, const key_span *span, float_formats formats,
                                int32_t offset, int32_t rows, int32_t begin, int32_t columns,
                                row_values *alpha, row_values *beta)
{
    row_values max = {{0}}, largest = {{0}};
    memcpy(max.row, work->max + offset, (size_t)rows * sizeof(float));
    for (int32_t i = 0; i < rows; i++) {
        float *x = work->weights + i * formats.tile_kv;
        largest.row[i] = -INFINITY;
        if (span->lo[i] >= span->hi[i]) continue;
        int32_t query;
        const hr_kernel_args *head = row_args(args, offset + i, &query);
        logit_rule rule = row_rule(head, tile, formats, query, tile->begin + begin);
        if (!is_identity(&rule)) apply_rule(x, columns, &rule);
        largest.row[i] = mask_and_maximum(x, columns, span->lo[i] - begin, span->hi[i] - begin);
    }
    join_maxima(&max, &largest, 1 / largest_weight(formats.p), alpha, beta);
    memcpy(work->max + offset, max.row, (size_t)rows * sizeof(float));
    for (int32_t i = 0; i < rows; i++) {
        float *x = work->weights + i * formats.tile_kv, sum = 0;
        if (span->lo[i] >= span->hi[i])
            memset(x, 0, (size_t)columns * sizeof *x);
        else
            sum = apply_weights(x, columns, largest.row[i], formats.p);
        work->sum[offset + i] = work->sum[offset + i] * alpha->row[i] + sum * beta->row[i];
    }
}

/*
 * O of the block. A weight of 0 times a value that is not finite would be NaN in rows that do not
 * see that key, so then every row is multiplied over its own keys alone.
 */
FLOAT_INLINE void update_output(const float_product *product, const key_span *span, int32_t rows,
                                bool finite)
{
    if (finite) {
        multiply(product, rows);
        return;
    }
    for (int32_t i = 0; i < rows; i++) {
        if (span->lo[i] >= span->hi[i]) continue;
        int32_t skip = span->lo[i] - span->first;
        float_product one = *product;
        one.a += i * one.lda + skip;
        one.b += skip * one.ldb;
        one.c += i * one.ldc;
        one.depth = span->hi[i] - span->lo[i];
        one.alpha += i;
        one.beta += i;
        multiply(&one, 1);
    }
}

FLOAT_INLINE void process_block(const hr_kernel_args *args, const float_workspace *work,
                                const key_tile *tile, float_formats formats, int32_t offset,
                                int32_t rows)
{
    const int32_t channels = padded_channels(args->head_dim);
    const int32_t stride = formats.tile_kv;
    key_span span = visible_span(args, tile, offset, rows);
    if (span.first >= span.last) return;
    const int32_t begin = span.first / VEC_WIDTH * VEC_WIDTH;
    const int32_t columns = (span.last - begin + VEC_WIDTH - 1) / VEC_WIDTH * VEC_WIDTH;

    float_product scores = {.a = work->q + offset * channels,
                            .lda = channels,
                            .b = work->keys + begin,
                            .ldb = stride,
                            .c = work->weights,
                            .ldc = stride,
                            .depth = channels,
                            .columns = columns};
    multiply(&scores, rows);

    row_values alpha, beta;
    apply_softmax(args, work, tile, &span, formats, offset, rows, begin, columns, &alpha, &beta);

    float_product output = {.a = work->weights + (span.first - begin),
                            .lda = stride,
                            .b = work->values + span.first * channels,
                            .ldb = channels,
                            .c = work->o + offset * channels,
                            .ldc = channels,
                            .depth = span.last - span.first,
                            .columns = channels,
                            .alpha = alpha.row,
                            .beta = beta.row};
    update_output(&output, &span, rows, tile->finite);
}

/* The keys of a range from `begin` on, to the next multiple of tile_kv at most. */
FLOAT_INLINE key_tile load_tile(const hr_kernel_args *args, const float_workspace *work,
                                float_formats formats, const hr_kernel_range *range, int32_t begin)
{
    int32_t count = range->end - begin, most = formats.tile_kv - begin % formats.tile_kv;
    if (count > most) count = most;
    key_tile tile = {.begin = begin, .count = count, .range = range};
    load_keys(formats.qk, &args->k, begin, count, args->head_dim, work->keys, formats.tile_kv);
    /* A weight of 0 times a value that is not finite is NaN: update_output has to know. */
    tile.finite = load_rows(formats.v, &args->v, begin, count, args->head_dim, true, work->values);
    if (!keys_share_scale(args)) {
        for (int32_t j = 0; j < count; j++)
            work->column_scale[j] = token_scale(&args->k, begin + j);
        tile.column_scale = work->column_scale;
    }
    return tile;
}

/* The part of the workspace that one head's rows have. */
FLOAT_INLINE float_workspace head_part(const float_workspace *work, const hr_kernel_args *args,
                                       int32_t head)
{
    const int32_t row = head * (args->q_end - args->q_begin);
    float_workspace part = *work;
    part.q += row * padded_channels(args->head_dim);
    part.o += row * padded_channels(args->head_dim);
    part.max += row;
    part.sum += row;
    return part;
}

/* The rows of one head. */
FLOAT_INLINE void start_rows(const hr_kernel_args *args, const float_workspace *work,
                             float_formats formats, int32_t rows)
{
    const int32_t channels = padded_channels(args->head_dim);
    load_rows(formats.qk, &args->q, args->q_begin, rows, args->head_dim, false, work->q);
    for (int32_t i = 0; i < rows && folds_factor(formats); i++) {
        const vec factor = vec_set(row_factor(args, args->q_begin + i));
        for (int32_t channel = 0; channel < channels; channel += VEC_WIDTH) {
            float *q = work->q + i * channels + channel;
            vec_store(q, vec_mul(vec_load(q), factor));
        }
    }
    memset(work->o, 0, (size_t)rows * (size_t)channels * sizeof(float));
    for (int32_t i = 0; i < rows; i++) {
        /* Smoothing shifted every logit but the sink's, unless the bias was put back for the cap.
         */
        float shift = args->softcap != 0 ? 0 : row_bias(args, args->q_begin + i);
        work->max[i] = (args->sink - shift) * LOG2E;
        work->sum[i] = args->sink > -INFINITY ? 1 : 0;
    }
}

/* The rows of one head. */
FLOAT_INLINE void finish_rows(const hr_kernel_args *args, const float_workspace *work, int32_t rows)
{
    const int32_t channels = padded_channels(args->head_dim);
    for (int32_t i = 0; i < rows; i++) {
        const int32_t row = args->q_begin + i;
        const float sum = work->sum[i];
        const float inverse = sum == 0 ? 0 : 1 / sum; /* 0 only for a row that sees no key */
        const float *source = work->o + i * channels;
        float *target = args->o + row * args->o_stride;
        for (int32_t channel = 0; channel < args->head_dim; channel++)
            target[channel] = source[channel] * inverse;
        if (!args->lse) continue;
        float bias = args->softcap != 0 ? 0 : row_bias(args, row);
        /* Taking the bias off the sink and adding it again would round: without keys, don't. */
        args->lse[row * args->lse_stride] =
            hr_kernel_row_sees(args, row) ? (work->max[i] + log2f(sum)) * LN2 + bias : args->sink;
    }
}

FLOAT_INLINE void float_tile_run(const hr_kernel_args *args, float_formats formats)
{
    float_workspace work;
    lay_out_workspace(args->scratch, args->head_dim, formats.tile_q, formats.tile_kv, &work);
    const int32_t queries = args->q_end - args->q_begin, rows = args->heads * queries;
    for (int32_t head = 0; head < args->heads; head++) {
        float_workspace part = head_part(&work, args, head);
        start_rows(args + head, &part, formats, queries);
    }
    for (int32_t i = 0; i < args->range_count; i++) {
        hr_kernel_range range;
        if (!hr_kernel_visit(args, i, &range)) continue;
        for (int32_t begin = range.begin; begin < range.end;) {
            key_tile tile = load_tile(args, &work, formats, &range, begin);
            for (int32_t offset = 0; offset < rows; offset += ROWS)
                process_block(args, &work, &tile, formats, offset,
                              rows - offset < ROWS ? rows - offset : ROWS);
            begin += tile.count;
        }
    }
    for (int32_t head = 0; head < args->heads; head++) {
        float_workspace part = head_part(&work, args, head);
        finish_rows(args + head, &part, queries);
    }
}

#endif
