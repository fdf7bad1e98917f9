/*
 * The integer family for decode on short vectors: integer_softmax.h restated over
 * integer_decode_vec_avx2.h or integer_decode_vec_neon.h, one of which is included before. Rows are
 * the queries of all heads that share a KV head; K and V are rows, as a cache holds them, in pages
 * or not. Each tile of 256 keys is read once, whatever the number of rows:
 *
 *     S, T        integer_decode_products.h
 *     P, l        the softmax of integer_tile.h, a row after the other
 *     O           = T * beta + O * alpha, in the order of channels that T has
 *
 * The limit is memory for few rows, and products for eight.
 */
#ifndef HEADROOM_INTEGER_DECODE_TILE_H
#define HEADROOM_INTEGER_DECODE_TILE_H

#include "integer_decode_products.h"

/*
 * What a tile's steps take, in quarters of a cycle, so that prefetches are spread evenly: a vector
 * of products, the softmax of a row, scales. The last two take longer, but the prefetches of more
 * lines at once would keep their loads waiting.
 */
enum { MULTIPLY_COST = 4 / CODES * 3, SOFTMAX_COST = 1600, PREPARE_COST = 800 };

/* Lays the arrays of a task out behind it, unless base, where it stands, is NULL; bytes of all. */
static inline size_t lay_out_decode(decode_task *d, char *base, int32_t head_dim)
{
    /* Nibbles fill as many operands as bytes do, but in pairs. */
    const size_t codes = ((size_t)head_dim + 2 * RAW - 1) / (2 * RAW) * (2 * RAW);
    const size_t words = HR_INTEGER_TILE * (size_t)head_dim;
    size_t used = 0;
    carve(base, &used, sizeof *d);
    d->t.s = carve(base, &used, DECODE_ROWS * sizeof *d->t.s);
    d->t.weight = carve(base, &used, DECODE_ROWS * sizeof *d->t.weight);
    d->t.p = carve(base, &used, DECODE_ROWS * sizeof *d->t.p);
    d->t.p_low = carve(base, &used, DECODE_ROWS * sizeof *d->t.p_low);
    d->t.p_init = carve(base, &used, DECODE_ROWS * sizeof *d->t.p_init);
    d->t.alpha_o = carve(base, &used, DECODE_ROWS * sizeof *d->t.alpha_o);
    d->t.beta_o = carve(base, &used, DECODE_ROWS * sizeof *d->t.beta_o);
    d->t.row = carve(base, &used, DECODE_ROWS * sizeof *d->t.row);
    d->t.o = carve(base, &used, DECODE_ROWS * codes * sizeof *d->t.o);
    d->t.wide = carve(base, &used, words * sizeof *d->t.wide);
    d->q = carve(base, &used, DECODE_ROWS * codes * sizeof *d->q);
    d->block = carve(base, &used, VALUE_STEP * codes * sizeof *d->block);
    d->sum = carve(base, &used, DECODE_ROWS * codes * sizeof *d->sum);
    d->beta = carve(base, &used, DECODE_ROWS * MAX_GROUPS * sizeof *d->beta);
    return used;
}

static inline size_t integer_decode_scratch(int32_t head_dim)
{
    decode_task unused;
    return lay_out_decode(&unused, NULL, head_dim);
}

static inline void begin_source(code_source *source, const hr_kernel_operand *operand,
                                int32_t head_dim, int offset)
{
    const bool grouped = operand->granularity == HR_GRANULARITY_GROUP;
    source->offset = offset;
    if (operand->dtype == HR_DTYPE_I8) {
        source->rows = rows_of(operand, head_dim);
        source->kind = CODES_BYTES;
    } else {
        int8_t levels[16];
        hr_nibble_levels(operand->dtype, 0, levels);
        for (int i = 0; i < 16; i++)
            levels[i] = (int8_t)(levels[i] + offset);
        source->levels = load_levels(levels);
        source->rows = rows_of(operand, head_dim / 2);
        source->kind = operand->dtype == HR_DTYPE_U4 ? CODES_SHIFTED : CODES_NIBBLES;
    }
    if (grouped) source->kind = CODES_WORDS;
    source->slices = grouped ? head_dim / operand->block : 1;
    assert(!grouped || (CODES == 2 && 2 * operand->block % RAW == 0));
}

/* Bytes of a slice of a row as products read it. */
INLINE int32_t read_bytes(const code_source *source, int32_t head_dim)
{
    return source->kind == CODES_WORDS ? 2 * head_dim / source->slices
                                       : (int32_t)source->rows.row_bytes;
}

INLINE int32_t operands_of(const code_source *source, int32_t head_dim)
{
    return (read_bytes(source, head_dim) + RAW - 1) / RAW * planes_of(source->kind);
}

/* One zero point a key of the tile. */
static inline void gather_zero_points(code_source *source, int64_t first, int32_t count)
{
    const hr_kernel_operand *operand = source->rows.operand;
    for (int32_t j = 0; j < count; j++)
        switch (operand->granularity) {
        case HR_GRANULARITY_TOKEN:
            source->zero[j] = operand->zero_point[hr_kernel_slot(operand, first + j)];
            break;
        case HR_GRANULARITY_BLOCK:
            source->zero[j] = operand->zero_point[(first + j) / operand->block];
            break;
        default:
            source->zero[j] = operand->zero_point[0];
        }
}

/* Expands the tile's first `count` rows of a source whose scales are in groups. */
static inline void expand_source(decode_task *d, const code_source *source, int32_t count)
{
    const hr_kernel_operand *operand = source->rows.operand;
    if (operand->dtype == HR_DTYPE_I8)
        hr_integer_expand_i8(operand, d->t.head_dim, d->t.first, count, d->t.wide);
    else
        hr_integer_expand_nibbles(operand, d->t.head_dim, d->t.first, count, d->t.wide);
    for (int32_t j = 0; j < DECODE_TILE; j++)
        d->words.slot[j] = j < count ? j : count - 1;
}

INLINE void score_tile(decode_task *d, code_kind kind, int32_t row_bytes)
{
    if (d->rows == 1)
        score_few(d, 1, kind, row_bytes);
    else if (d->rows == 2)
        score_few(d, 2, kind, row_bytes);
    else
        score_many(d, kind, row_bytes);
}

/* Rows of half a cache line, one and two are compiled on their own. */
INLINE void score_rows(decode_task *d, code_kind kind, int32_t row_bytes)
{
    if (kind != CODES_WORDS && row_bytes == 64)
        score_tile(d, kind, 64);
    else if (kind == CODES_BYTES && row_bytes == 128)
        score_tile(d, kind, 128);
    else if (kind == CODES_NIBBLES && row_bytes == 32)
        score_tile(d, kind, 32);
    else
        score_tile(d, kind, row_bytes);
}

INLINE void sum_tile(decode_task *d, code_kind kind, int32_t row_bytes)
{
    if (d->rows == 1)
        sum_values_few(d, 1, kind, row_bytes);
    else if (d->rows == 2)
        sum_values_few(d, 2, kind, row_bytes);
    else
        sum_values_many(d, kind, row_bytes);
}

INLINE void sum_rows(decode_task *d, code_kind kind, int32_t row_bytes)
{
    if (kind != CODES_WORDS && row_bytes == 64)
        sum_tile(d, kind, 64);
    else if (kind == CODES_BYTES && row_bytes == 128)
        sum_tile(d, kind, 128);
    else if (kind == CODES_NIBBLES && row_bytes == 32)
        sum_tile(d, kind, 32);
    else
        sum_tile(d, kind, row_bytes);
}

static inline void score_keys(decode_task *d, int32_t count)
{
    const int32_t row_bytes = read_bytes(&d->k, d->t.head_dim);
    switch (d->k.kind) {
    case CODES_BYTES:
        score_rows(d, CODES_BYTES, row_bytes);
        break;
    case CODES_NIBBLES:
        score_rows(d, CODES_NIBBLES, row_bytes);
        break;
    case CODES_SHIFTED:
        gather_zero_points(&d->k, d->t.first, count);
        score_rows(d, CODES_SHIFTED, row_bytes);
        break;
    case CODES_WORDS:
        expand_source(d, &d->k, count);
        for (d->slice = 0; d->slice < d->k.slices; d->slice++)
            score_rows(d, CODES_WORDS, row_bytes);
        d->slice = 0;
    }
}

static inline void sum_values(decode_task *d, int32_t count)
{
    const int32_t row_bytes = read_bytes(&d->v, d->t.head_dim);
    switch (d->v.kind) {
    case CODES_BYTES:
        sum_rows(d, CODES_BYTES, row_bytes);
        break;
    case CODES_NIBBLES:
        sum_rows(d, CODES_NIBBLES, row_bytes);
        break;
    case CODES_SHIFTED:
        gather_zero_points(&d->v, d->t.first, count);
        sum_rows(d, CODES_SHIFTED, row_bytes);
        break;
    case CODES_WORDS:
        expand_source(d, &d->v, count);
        for (d->slice = 0; d->slice < d->v.slices; d->slice++) {
            for (int32_t row = 0; row < d->rows; row++)
                d->beta[d->slice * d->rows + row] =
                    share_weights(&d->t, row, d->slice, d->from / CHUNK, d->end / CHUNK);
            sum_rows(d, CODES_WORDS, row_bytes);
        }
        d->slice = 0;
    }
}

/* Step 6 for O. */
static inline void add_outputs(decode_task *d)
{
    const int shift = SUM_SHIFT > 0 && d->v.kind != CODES_WORDS ? SUM_SHIFT : 0;
    const int64_t stride = (int64_t)d->o_vectors * WIDTH;
    for (int32_t i = 0; i < d->v.slices * d->rows; i++) {
        const int32_t row = i % d->rows;
        const fvec alpha = fvec_set(d->t.alpha_o[row]);
        const fvec beta = fvec_set(d->t.v_groups ? d->beta[i] : d->t.beta_o[row]);
        const ivec init = ivec_set(d->t.p_init[row]);
        const int32_t *sum = d->sum + i * stride;
        float *o = d->t.o + i * stride;
        for (int64_t at = 0; at < stride; at += WIDTH) {
            ivec total = ivec_load(sum + at);
            if (SUM_SHIFT > 0) total = ivec_shift_right(total, shift);
            const fvec t = fvec_of(ivec_add(total, init));
            fvec_store(o + at, fvec_fma(t, beta, fvec_mul(fvec_load(o + at), alpha)));
        }
    }
}

/* One tile: steps 1 to 6 for all rows. */
static inline void decode_tile(decode_task *d, const hr_kernel_range *range, double octave)
{
    task *t = &d->t;
    const int32_t left = t->args->seqlen_kv - t->first;
    const int32_t count = left < DECODE_TILE ? left : DECODE_TILE;
    const int32_t begin = range->begin - t->first, end = range->end - t->first;
    d->from = begin > 0 ? begin / CHUNK * CHUNK : 0;
    d->end = end < count ? (end + CHUNK - 1) / CHUNK * CHUNK : (count + CHUNK - 1) / CHUNK * CHUNK;
    const int32_t products = 4 * d->k.slices * d->q_vectors * MULTIPLY_COST * d->rows;
    const int32_t lines = 2 * (d->k.rows.lines + d->v.rows.lines) * LINE_COST;
    d->step_cost = products > lines ? products : lines;
    walk_to(&d->walk, t->args, t->first, count,
            DECODE_TILE / 2 * d->step_cost + SOFTMAX_COST * d->rows + PREPARE_COST);
    prefetch_share(&d->walk, &d->k.rows, &d->v.rows, PREPARE_COST);
    prepare_tile(t, count);
    score_keys(d, count);
    const double unit = ldexp(octave, t->tile.f);
    for (int32_t row = 0; row < d->rows; row++) {
        row_state *state = &t->row[row];
        const int32_t lo = state->lo - t->first, hi = state->hi - t->first;
        const key_span span = {.begin = d->from / CHUNK,
                               .end = d->end / CHUNK,
                               .lo = lo > 0 ? lo : 0,
                               .hi = hi < DECODE_TILE ? hi : DECODE_TILE};
        prefetch_share(&d->walk, &d->k.rows, &d->v.rows, SOFTMAX_COST);
        update_row(t, row, state, &span, unit);
    }
    sum_values(d, count);
    add_outputs(d);
}

/* Rows that have seen nothing: rows of one head lie side by side. */
static inline void begin_decode_rows(decode_task *d)
{
    const hr_kernel_args *args = d->t.args;
    const int32_t queries = args->q_end - args->q_begin;
    memset(d->t.o, 0, (size_t)(d->v.slices * d->rows * d->o_vectors) * sizeof(ivec));
    for (int32_t index = 0; index < d->rows; index++) {
        const hr_kernel_args *head = args + index / queries;
        const int32_t query = args->q_begin + index % queries;
        const int8_t *codes = (const int8_t *)head->q.codes + (int64_t)query * head->head_dim;
        const int32_t count = d->q_vectors * CODES_OF_VECTOR, width = head->head_dim / d->k.slices;
        row_state row = {.args = head, .query = query, .m = -INFINITY, .e = HR_INTEGER_NO_TILE};
        for (int32_t i = 0; i < d->k.slices * count; i++) {
            const int32_t slice = i / count, at = i % count;
            const int32_t c = channel_of(d->k.kind, at / CODES_OF_VECTOR, at % CODES_OF_VECTOR);
            product_code *q = d->q + ((int64_t)slice * d->rows + index) * count + at;
            *q = c < width ? codes[slice * width + c] : 0;
            row.init -= K_OFFSET * *q;
        }
        row.factor = hr_integer_row_factor(head, query);
        if (head->lse_bias) row.bias = (double)head->lse_bias[query] * (double)head->softmax_scale;
        d->t.row[index] = row;
    }
}

/* Step 7. */
static inline void finish_decode_row(const decode_task *d, int32_t index)
{
    const row_state *row = &d->t.row[index];
    const hr_kernel_args *args = row->args;
    const double bias = args->softcap == 0 ? row->bias : 0;
    const float factor = hr_integer_finish(args, row->query, row->m, hr_integer_sum(row->l), bias);
    float *out = args->o + row->query * args->o_stride;
    const int32_t count = d->o_vectors * WIDTH, width = args->head_dim / d->v.slices;
    for (int32_t slice = 0; slice < d->v.slices; slice++) {
        const float *o = d->t.o + ((int64_t)slice * d->rows + index) * count;
        for (int32_t i = 0; i < count; i++) {
            const int32_t c = output_channel(d->v.kind, i / WIDTH, i % WIDTH);
            if (c < width) out[slice * width + c] = o[i] * factor;
        }
    }
    scale_by_power(out, args->head_dim, row->e);
}

static inline void integer_decode_run(const hr_kernel_args *args)
{
    decode_task *d = args->scratch;
    task *t = &d->t;
    assert(args->head_dim % 8 == 0 && args->head_dim <= HR_INTEGER_MAX_HEAD_DIM);
    assert(args->k.pages == args->v.pages && args->k.page_slots == args->v.page_slots);
    lay_out_decode(d, args->scratch, args->head_dim);
    t->args = args;
    t->head_dim = args->head_dim;
    t->k_groups = hr_integer_groups(&args->k, args->head_dim);
    t->v_groups = hr_integer_groups(&args->v, args->head_dim);
    t->precise = false;
    d->slice = 0;
    begin_source(&d->k, &args->k, args->head_dim, K_OFFSET);
    begin_source(&d->v, &args->v, args->head_dim, V_OFFSET);
    d->rows = args->heads * (args->q_end - args->q_begin);
    assert(d->rows >= 1 && d->rows <= DECODE_ROWS);
    d->q_vectors = operands_of(&d->k, args->head_dim);
    d->o_vectors = operands_of(&d->v, args->head_dim) * CODES;
    for (int32_t i = 0; i < CHUNK; i++)
        t->packed_keys[i] = (int16_t)packed_key(i);
    begin_decode_rows(d);
    d->walk.found = -1;
    const double octave = args->softcap == 0 ? HR_INTEGER_OCTAVE : 1;
    for (int32_t index = 0; index < args->range_count; index++) {
        hr_kernel_range range;
        if (!hr_kernel_visit(args, index, &range)) continue;
        for (int32_t i = 0; i < d->rows; i++)
            hr_kernel_row_range(t->row[i].args, &range, t->row[i].query, &t->row[i].lo,
                                &t->row[i].hi);
        t->first = range.begin / DECODE_TILE * DECODE_TILE;
        for (; t->first < range.end; t->first += DECODE_TILE)
            decode_tile(d, &range, octave);
    }
    for (int32_t index = 0; index < d->rows; index++)
        finish_decode_row(d, index);
}

/* The entries of one recipe and instruction set. */
#define INTEGER_DECODE_ENTRY(recipe, isa)                                                          \
    void hr_attention_##recipe##_decode_##isa(const hr_kernel_args *args)                          \
    {                                                                                              \
        integer_decode_run(args);                                                                  \
    }                                                                                              \
    size_t hr_attention_##recipe##_decode_##isa##_scratch(int32_t head_dim)                        \
    {                                                                                              \
        return integer_decode_scratch(head_dim);                                                   \
    }

/* Those of the whole family; the operands' dtypes tell the code which recipe it is. */
#define INTEGER_DECODE_ENTRIES(isa)                                                                \
    INTEGER_DECODE_ENTRY(int8, isa)                                                                \
    INTEGER_DECODE_ENTRY(int8_int4, isa)                                                           \
    INTEGER_DECODE_ENTRY(int4_int8, isa)                                                           \
    INTEGER_DECODE_ENTRY(int4, isa)                                                                \
    INTEGER_DECODE_ENTRY(int4_uniform, isa)                                                        \
    INTEGER_DECODE_ENTRY(int4_asymmetric, isa)

#endif
