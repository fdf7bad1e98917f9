/*
 * Attention of one or two rows over K and V of floating-point codes, on short vectors: the float
 * kernels of float_tile.h without their copies of K and V, which only pay when many rows share
 * them. Keys are read in tiles of 256 as they lie, in pages or not, and fetched ahead
 * (decode_rows.h):
 *
 *     S[row][key]      q . k, 4 keys at a time, in FP32
 *     P, max, sum      the softmax of float_tile.h
 *     T[row][channel]  sum of P v, 4 vectors of channels at a time; O = alpha O + beta T
 *
 * V's scales by token are multiplied with P, those by channel with T. The limit is memory for BF16
 * and making floats of codes for E4M3.
 */
#ifndef HEADROOM_FLOAT_DECODE_TILE_H
#define HEADROOM_FLOAT_DECODE_TILE_H

#include "decode_rows.h"
#include "float_tile.h"

enum {
    FEW_ROWS = 2,
    MANY_TILE = 64,   /* keys of a tile where rows are more */
    VALUE_VECTORS = 4 /* of channels that are summed together */
};

typedef struct few_rows {
    tile_walk walk;
    code_rows k, v;
    int32_t step_cost; /* of four keys of K or of V */
} few_rows;

static inline size_t float_decode_tile_scratch(int32_t head_dim)
{
    return (float_tile_scratch(head_dim, DECODE_ROWS, DECODE_TILE) + 63) / 64 * 64 +
           sizeof(few_rows);
}

/* Slots of four keys from `at` on of the tile; those past its end repeat the last. */
FLOAT_INLINE void rows_of_keys(const code_rows *rows, const tile_rows *tile, int32_t at,
                               const unsigned char *row[4])
{
    for (int32_t i = 0; i < 4; i++)
        row[i] = row_at(rows, tile->slot[at + i < DECODE_TILE ? at + i : DECODE_TILE - 1]);
}

/* S of `columns` keys from key `at` of the tile on. rows, dtype and head_dim are constants. */
FLOAT_INLINE void score_few(few_rows *few, const float_workspace *work, float_formats formats,
                            int32_t rows, int32_t at, int32_t columns, int32_t head_dim)
{
    const int32_t channels = padded_channels(head_dim);
    for (int32_t j = 0; j < columns; j += 4) {
        const unsigned char *row[4];
        vec sum[FEW_ROWS][4];
        rows_of_keys(&few->k, few->walk.tile, at + j, row);
        prefetch_share(&few->walk, &few->k, &few->v, few->step_cost);
        if (at + j + 4 <= DECODE_TILE)
            prefetch_near(&few->k, few->walk.tile, at + j, &few->v, few->walk.tile);
        for (int32_t r = 0; r < rows; r++)
            for (int i = 0; i < 4; i++)
                sum[r][i] = vec_set(0);
        for (int32_t c = 0; c < channels; c += VEC_WIDTH)
            for (int i = 0; i < 4; i++) {
                const vec x = load_channels(formats.qk, row[i], c, head_dim);
                for (int32_t r = 0; r < rows; r++)
                    sum[r][i] = vec_fma(x, vec_load(work->q + r * channels + c), sum[r][i]);
            }
        for (int32_t r = 0; r < rows; r++)
            for (int i = 0; i < 4; i++)
                work->weights[r * formats.tile_kv + j + i] = vec_reduce_add(sum[r][i]);
    }
}

/*
 * T of keys [first, last) of the tile with their weights [rows][256]: to t [rows][channels]. False
 * when V has NaN or infinity there. rows, dtype and head_dim are constants.
 */
FLOAT_INLINE bool sum_few(few_rows *few, const float *weights, float_formats formats, int32_t rows,
                          int32_t first, int32_t last, int32_t head_dim, float *t)
{
    const int32_t channels = padded_channels(head_dim);
    vec poison = vec_set(0);
    for (int32_t c = 0; c < channels; c += VALUE_VECTORS * VEC_WIDTH) {
        vec sum[FEW_ROWS][VALUE_VECTORS];
        for (int32_t r = 0; r < rows; r++)
            for (int i = 0; i < VALUE_VECTORS; i++)
                sum[r][i] = vec_set(0);
        for (int32_t j = first; j < last; j++) {
            const unsigned char *row = row_at(&few->v, few->walk.tile->slot[j]);
            if (c == 0 && j % 4 == 0) {
                prefetch_share(&few->walk, &few->k, &few->v, few->step_cost);
                prefetch_near(&few->v, few->walk.tile, j, &few->k, few->walk.next);
            }
            for (int i = 0; i < VALUE_VECTORS; i++) {
                const int32_t channel = c + i * VEC_WIDTH;
                if (channel >= channels) break;
                const vec x = load_channels(formats.v, row, channel, head_dim);
                poison = vec_fma(x, vec_set(0), poison);
                for (int32_t r = 0; r < rows; r++)
                    sum[r][i] = vec_fma(x, vec_set(weights[r * DECODE_TILE + j]), sum[r][i]);
            }
        }
        for (int32_t r = 0; r < rows; r++)
            for (int i = 0; i < VALUE_VECTORS && c + i * VEC_WIDTH < channels; i++)
                vec_store(t + r * channels + c + i * VEC_WIDTH, sum[r][i]);
    }
    const float seen = vec_reduce_add(poison);
    return seen == seen;
}

/* O of all rows from T, which gets V's scales by channel. */
FLOAT_INLINE void add_few(const hr_kernel_args *args, const float_workspace *work, int32_t rows,
                          const float *t, const row_values *alpha, const row_values *beta)
{
    const int32_t channels = padded_channels(args->head_dim);
    const bool scaled = args->v.granularity == HR_GRANULARITY_CHANNEL;
    float scales[MAX_CHANNELS];
    if (scaled) channel_scales(&args->v, 0, args->head_dim, scales);
    for (int32_t r = 0; r < rows; r++)
        for (int32_t c = 0; c < channels; c += VEC_WIDTH) {
            float *o = work->o + r * channels + c;
            vec sum = vec_load(t + r * channels + c);
            if (scaled) sum = vec_mul(sum, vec_load(scales + c));
            const vec old = vec_mul(vec_load(o), vec_set(alpha->row[r]));
            vec_store(o, vec_fma(sum, vec_set(beta->row[r]), old));
        }
}

/* One tile for all rows. rows, formats and head_dim are constants. */
FLOAT_INLINE void decode_few(const hr_kernel_args *args, few_rows *few, const float_workspace *work,
                             const key_tile *tile, float_formats formats, int32_t rows,
                             int32_t head_dim)
{
    const key_span span = visible_span(args, tile, 0, rows);
    if (span.first >= span.last) return;
    const int32_t channels = padded_channels(head_dim), at = tile->begin % DECODE_TILE;
    const int32_t begin = span.first / VEC_WIDTH * VEC_WIDTH;
    const int32_t columns = (span.last - begin + VEC_WIDTH - 1) / VEC_WIDTH * VEC_WIDTH;
    row_values alpha, beta;
    score_few(few, work, formats, rows, at + begin, columns, head_dim);
    apply_softmax(args, work, tile, &span, formats, 0, rows, begin, columns, &alpha, &beta);
    float *t = work->keys, *scaled = work->keys + rows * channels;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t j = span.first; j < span.last; j++)
            scaled[r * DECODE_TILE + at + j] =
                work->weights[r * formats.tile_kv + j - begin] *
                (formats.v == HR_DTYPE_BF16 ? 1 : token_scale(&args->v, tile->begin + j));
    if (sum_few(few, scaled, formats, rows, at + span.first, at + span.last, head_dim, t)) {
        add_few(args, work, rows, t, &alpha, &beta);
        return;
    }
    load_rows(formats.v, &args->v, tile->begin, tile->count, head_dim, true, work->values);
    const float_product output = {.a = work->weights + (span.first - begin),
                                  .lda = formats.tile_kv,
                                  .b = work->values + span.first * channels,
                                  .ldb = channels,
                                  .c = work->o,
                                  .ldc = channels,
                                  .depth = span.last - span.first,
                                  .columns = channels,
                                  .alpha = alpha.row,
                                  .beta = beta.row};
    update_output(&output, &span, rows, false);
}

FLOAT_INLINE void decode_few_rows(const hr_kernel_args *args, few_rows *few,
                                  const float_workspace *work, const key_tile *tile,
                                  float_formats formats, int32_t rows)
{
    if (args->head_dim == 128 && rows == 1)
        decode_few(args, few, work, tile, formats, 1, 128);
    else if (args->head_dim == 128)
        decode_few(args, few, work, tile, formats, 2, 128);
    else
        decode_few(args, few, work, tile, formats, rows, args->head_dim);
}

FLOAT_INLINE void float_few_run(const hr_kernel_args *args, float_formats formats)
{
    const int32_t queries = args->q_end - args->q_begin, rows = args->heads * queries;
    const size_t floats = float_tile_scratch(args->head_dim, formats.tile_q, formats.tile_kv);
    few_rows *few = (few_rows *)((char *)args->scratch + (floats + 63) / 64 * 64);
    float_workspace work;
    lay_out_workspace(args->scratch, args->head_dim, formats.tile_q, formats.tile_kv, &work);
    few->k = rows_of(&args->k, args->head_dim * (int64_t)code_bytes(formats.qk));
    few->v = rows_of(&args->v, args->head_dim * (int64_t)code_bytes(formats.v));
    few->step_cost = 2 * (few->k.lines + few->v.lines) * LINE_COST;
    few->walk.found = -1;
    for (int32_t head = 0; head < args->heads; head++) {
        const float_workspace part = head_part(&work, args, head);
        start_rows(args + head, &part, formats, queries);
    }
    for (int32_t i = 0; i < args->range_count; i++) {
        hr_kernel_range range;
        if (!hr_kernel_visit(args, i, &range)) continue;
        for (int32_t begin = range.begin; begin < range.end;) {
            const int32_t first = begin / DECODE_TILE * DECODE_TILE;
            const int32_t end = range.end - first < DECODE_TILE ? range.end : first + DECODE_TILE;
            const int32_t left = args->seqlen_kv - first;
            walk_to(&few->walk, args, first, left < DECODE_TILE ? left : DECODE_TILE,
                    DECODE_TILE / 2 * few->step_cost);
            key_tile tile = {.begin = begin, .count = end - begin, .range = &range};
            if (!keys_share_scale(args)) {
                for (int32_t j = 0; j < tile.count; j++)
                    work.column_scale[j] = token_scale(&args->k, begin + j);
                tile.column_scale = work.column_scale;
            }
            decode_few_rows(args, few, &work, &tile, formats, rows);
            begin = end;
        }
    }
    for (int32_t head = 0; head < args->heads; head++) {
        const float_workspace part = head_part(&work, args, head);
        finish_rows(args + head, &part, queries);
    }
}

/* More rows, and scales in groups of channels, take copies of K and V in FP32. */
FLOAT_INLINE void float_decode_tile_run(const hr_kernel_args *args, hr_dtype dtype)
{
    const bool groups =
        args->k.granularity == HR_GRANULARITY_GROUP || args->v.granularity == HR_GRANULARITY_GROUP;
    const bool few = args->heads * (args->q_end - args->q_begin) <= FEW_ROWS && !groups;
    float_formats formats = {.qk = dtype, .v = dtype, .p = dtype, .tile_q = DECODE_ROWS};
    formats.tile_kv = few ? DECODE_TILE : MANY_TILE;
    if (few)
        float_few_run(args, formats);
    else
        float_tile_run(args, formats);
}

#endif
