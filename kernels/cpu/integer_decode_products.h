/*
 * The two products of the integer decode kernels on short vectors (integer_decode_tile.h) and the
 * state they share. Codes become operands of products as they lie, so Q is put in their order:
 *
 *     raw vector      RAW bytes of a row, zeros past its end
 *     operands        as many vectors a raw one as `planes`: nibbles low and then high, each even
 *                     and then odd bytes where SPLIT is 2; lanes in order
 *     S               a sum for each key, added across 4 keys at a time
 *     T               CODES keys side by side (interleave_rows) times as many weights
 *
 * One or two rows take both straight from memory, more through the first-level cache. Where scales
 * are in groups of channels, both are made a group (a slice of the rows) after the other.
 */
#ifndef HEADROOM_INTEGER_DECODE_PRODUCTS_H
#define HEADROOM_INTEGER_DECODE_PRODUCTS_H

#include "decode_rows.h"
#include "integer_nibbles.h"
#include "integer_tile.h"

enum {
    CODES_OF_VECTOR = WIDTH * CODES,
    KEY_STEP = 16,           /* keys a block of K has */
    VALUE_STEP = 16 * CODES, /* keys of V at a time */
    VALUE_ROWS = 4,
    WORD_CODES = RAW / 2 /* codes of a raw vector of words */
};

/* How codes are stored. */
typedef enum code_kind {
    CODES_BYTES,
    CODES_NIBBLES,
    CODES_SHIFTED, /* nibbles less the token's zero point */
    CODES_WORDS    /* expanded before: scales in groups, which only products of words take */
} code_kind;

/* K or V as a decode kernel reads it. */
typedef struct code_source {
    code_rows rows;
    code_kind kind;
    int offset;     /* what makes codes unsigned, or 0 */
    int32_t slices; /* groups of channels, or 1 */
    ivec levels;    /* of nibbles, with the offset */
    uint8_t zero[DECODE_TILE];
} code_source;

typedef struct decode_task {
    task t;
    code_source k, v;
    tile_walk walk;
    tile_rows words; /* where expanded codes lie */
    int32_t rows;
    int32_t slice;       /* the one at work */
    int32_t q_vectors;   /* operands of a slice of a row of K */
    int32_t o_vectors;   /* vectors of a slice of a row of T and O */
    int32_t from, end;   /* keys of the tile that are visited, in multiples of 32 */
    int32_t step_cost;   /* of 4 keys of K or of V, for prefetch_share */
    product_code *q;     /* [slices][rows][q_vectors] in the order of operands */
    product_code *block; /* operands of KEY_STEP keys of K or VALUE_STEP of V */
    int32_t *sum;        /* T [slices][rows][o_vectors], as O */
    float *beta;         /* [slices][rows] of O, where V's scales are in groups */
} decode_task;

INLINE int planes_of(code_kind kind)
{
    return kind == CODES_WORDS ? 1 : kind == CODES_BYTES ? SPLIT : 2 * SPLIT;
}

/* The channel of an operand's code; past head_dim in the padding. */
static inline int32_t channel_of(code_kind kind, int32_t vector, int32_t position)
{
    const int32_t planes = planes_of(kind), raw = vector / planes, plane = vector % planes;
    if (kind == CODES_WORDS) return raw * WORD_CODES + position;
    const int32_t byte = raw * RAW + position * SPLIT + plane % SPLIT;
    return kind == CODES_BYTES ? byte : 2 * byte + plane / SPLIT;
}

/* The channel of an element of T or O: interleave_rows has moved it. */
static inline int32_t output_channel(code_kind kind, int32_t vector, int32_t element)
{
    const int32_t position = element / 4 * 4 * CODES + vector % CODES * 4 + element % 4;
    return channel_of(kind, vector / CODES, position);
}

/* RAW bytes of a row, zeros past its end. */
INLINE ivec load_raw(const uint8_t *row, int32_t raw, int32_t row_bytes)
{
    if ((raw + 1) * RAW <= row_bytes) return ivec_load(row + raw * RAW);
    uint8_t part[RAW] = {0};
    memcpy(part, row + raw * RAW, (size_t)(row_bytes - raw * RAW));
    return ivec_load(part);
}

/* Bytes of codes, moved or not -> the operands of one raw vector. `zero`: zero points. */
INLINE void expand_raw(const code_source *source, ivec raw, code_kind kind, ivec zero, ivec *out)
{
    if (kind == CODES_WORDS) {
        out[0] = raw;
    } else if (kind == CODES_BYTES) {
        split_bytes(source->offset ? bytes_xor(raw, bytes_set(128)) : raw, out);
    } else {
#pragma GCC unroll 2
        for (int high = 0; high < 2; high++) {
            ivec codes = look_up_levels(source->levels, raw, high);
            if (kind == CODES_SHIFTED) codes = bytes_sub(codes, zero);
            split_bytes(codes, out + high * SPLIT);
        }
    }
}

INLINE ivec zero_of_key(const code_source *source, code_kind kind, int32_t key)
{
    return bytes_set(kind == CODES_SHIFTED ? source->zero[key] : 0);
}

/* Q of the slice at work. */
INLINE const product_code *slice_of_q(const decode_task *d)
{
    return d->q + (int64_t)d->slice * d->rows * d->q_vectors * CODES_OF_VECTOR;
}

/* Where T and O have the slice at work. */
INLINE int64_t slice_of_sums(const decode_task *d)
{
    return (int64_t)d->slice * d->rows * d->o_vectors * WIDTH;
}

/* Where four keys from `key` on lie. */
INLINE void four_rows(const decode_task *d, const code_source *source, code_kind kind, int32_t key,
                      int32_t row_bytes, const uint8_t *row[4])
{
    const bool words = kind == CODES_WORDS;
    const uint8_t *codes = source->rows.codes;
    if (words) codes = (const uint8_t *)d->t.wide + d->slice * row_bytes;
    const int64_t stride = words ? (int64_t)source->slices * row_bytes : row_bytes,
                  *slot = words ? d->words.slot : d->walk.tile->slot;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        row[i] = codes + slot[key + i] * stride;
}

/* Prefetches due at four keys of K (or V, with the next tile's K after it). */
INLINE void prefetch_step(decode_task *d, code_kind kind, const code_source *source, int32_t key,
                          const code_source *then, const tile_rows *then_tile)
{
    if (d->slice > 0) return;
    prefetch_share(&d->walk, &d->k.rows, &d->v.rows, d->step_cost);
    if (kind != CODES_WORDS)
        prefetch_near(&source->rows, d->walk.tile, key, &then->rows, then_tile);
}

/* S of WIDTH keys of a row from their sums, four by four; x of step 3 where K is in groups. */
INLINE void store_scores(decode_task *d, int32_t row, int32_t key, code_kind kind,
                         const ivec sum[WIDTH / 4])
{
    ivec s = join_sums(sum);
    if (SUM_SHIFT > 0 && kind != CODES_WORDS) s = ivec_shift_right(s, SUM_SHIFT);
    if (kind == CODES_WORDS) {
        float *x = (float *)d->t.s[row] + key;
        const fvec old = d->slice > 0 ? fvec_load(x) : fvec_set(0);
        fvec_store(x, fvec_fma(fvec_of(s), fvec_load(d->t.tile.k_group[d->slice] + key), old));
        return;
    }
    ivec_store(d->t.s[row] + key, ivec_add(s, ivec_set(d->t.row[row].init)));
}

/* S of all keys for one or two rows, straight from memory. rows and row_bytes are constants. */
INLINE void score_few(decode_task *d, int rows, code_kind kind, int32_t row_bytes)
{
    const code_source *k = &d->k;
    const int planes = planes_of(kind);
    const int32_t raws = (row_bytes + RAW - 1) / RAW;
    const product_code *q = slice_of_q(d);
    for (int32_t key = d->from; key < d->end; key += WIDTH) {
        ivec joined[2][WIDTH / 4];
#pragma GCC unroll 2
        for (int g = 0; g < WIDTH / 4; g++) {
            const uint8_t *row[4];
            ivec sum[2][4];
            four_rows(d, k, kind, key + 4 * g, row_bytes, row);
            prefetch_step(d, kind, k, key + 4 * g, &d->v, d->walk.tile);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const ivec zero = zero_of_key(k, kind, key + 4 * g + i);
#pragma GCC unroll 2
                for (int r = 0; r < rows; r++)
                    sum[r][i] = ivec_set(0);
#pragma GCC unroll 8
                for (int32_t raw = 0; raw < raws; raw++) {
                    ivec codes[4];
                    expand_raw(k, load_raw(row[i], raw, row_bytes), kind, zero, codes);
#pragma GCC unroll 4
                    for (int p = 0; p < planes; p++)
#pragma GCC unroll 2
                        for (int r = 0; r < rows; r++)
                            add_products(
                                &sum[r][i],
                                ivec_load(q + ((int64_t)r * raws * planes + raw * planes + p) *
                                                  CODES_OF_VECTOR),
                                codes[p], false);
                }
            }
#pragma GCC unroll 2
            for (int r = 0; r < rows; r++)
                joined[r][g] = sum_dwords(sum[r]);
        }
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++)
            store_scores(d, r, key, kind, joined[r]);
    }
}

/* Operands of keys [key, key + KEY_STEP) of K to the block, a row after the other. */
INLINE void load_keys_block(decode_task *d, int32_t key, code_kind kind, int32_t row_bytes)
{
    const code_source *k = &d->k;
    const int planes = planes_of(kind);
    const int32_t raws = (row_bytes + RAW - 1) / RAW;
    product_code *out = d->block;
    for (int32_t at = key; at < key + KEY_STEP; at += 4) {
        const uint8_t *row[4];
        four_rows(d, k, kind, at, row_bytes, row);
        prefetch_step(d, kind, k, at, &d->v, d->walk.tile);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const ivec zero = zero_of_key(k, kind, at + i);
            for (int32_t raw = 0; raw < raws; raw++) {
                ivec codes[4];
                expand_raw(k, load_raw(row[i], raw, row_bytes), kind, zero, codes);
#pragma GCC unroll 4
                for (int p = 0; p < planes; p++, out += CODES_OF_VECTOR)
                    ivec_store(out, codes[p]);
            }
        }
    }
}

/* S of WIDTH keys from `at` on in the block for some rows. rows is a constant. */
INLINE void multiply_block_keys(decode_task *d, int32_t row, int rows, int32_t key, int32_t at,
                                code_kind kind)
{
    const int64_t stride = (int64_t)d->q_vectors * CODES_OF_VECTOR;
    const product_code *q = slice_of_q(d) + row * stride, *k = d->block + at * stride;
    ivec joined[KEY_ROWS][WIDTH / 4];
#pragma GCC unroll 2
    for (int g = 0; g < WIDTH / 4; g++, k += 4 * stride) {
        ivec sum[KEY_ROWS][4];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                sum[r][i] = ivec_set(0);
        for (int64_t vector = 0; vector < stride; vector += CODES_OF_VECTOR) {
            ivec query[KEY_ROWS];
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                query[r] = ivec_load(q + r * stride + vector);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const ivec codes = ivec_load(k + i * stride + vector);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++)
                    add_products(&sum[r][i], query[r], codes, false);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            joined[r][g] = sum_dwords(sum[r]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        store_scores(d, row + r, key + at, kind, joined[r]);
}

/* S of all keys for any number of rows. row_bytes is a constant. */
INLINE void score_many(decode_task *d, code_kind kind, int32_t row_bytes)
{
    for (int32_t key = d->from; key < d->end; key += KEY_STEP) {
        load_keys_block(d, key, kind, row_bytes);
        for (int32_t row = 0, rows; row < d->rows; row += rows) {
            rows = d->rows - row >= KEY_ROWS ? KEY_ROWS : d->rows - row >= 2 ? 2 : 1;
            for (int32_t at = 0; at < KEY_STEP; at += WIDTH)
                if (rows == KEY_ROWS)
                    multiply_block_keys(d, row, KEY_ROWS, key, at, kind);
                else if (rows == 2)
                    multiply_block_keys(d, row, 2, key, at, kind);
                else
                    multiply_block_keys(d, row, 1, key, at, kind);
        }
    }
}

/* CODES weights of a row, of keys from `key` on, which lie in packed order. */
INLINE ivec weights_of_keys(const decode_task *d, int32_t row, int32_t key)
{
    const uint32_t at = (uint32_t)key;
    int32_t weights;
    memcpy(&weights,
           d->t.p[row] + (at / CHUNK * CHUNK + at % 16 / 4 * 8 + at % CHUNK / 16 * 4 + at % 4),
           sizeof weights);
    return ivec_set(weights);
}

/* One raw vector of CODES keys as operands of V: vector c CODES + k is plane c of interleaved k. */
INLINE void value_vectors(const code_source *v, const uint8_t *const row[CODES], int32_t raw,
                          int32_t row_bytes, code_kind kind, int32_t key, ivec *out)
{
    const int planes = planes_of(kind);
    ivec codes[CODES][4];
    if (CODES == 4) {
        /* Bytes are moved before they are expanded: nibbles are half as many then. */
        ivec raws[CODES], zero = ivec_set(0);
        if (kind == CODES_SHIFTED) {
            int32_t four;
            memcpy(&four, v->zero + key, sizeof four);
            zero = ivec_set(four);
        }
#pragma GCC unroll 4
        for (int i = 0; i < CODES; i++)
            raws[i] = load_raw(row[i], raw, row_bytes);
        interleave_rows(raws);
#pragma GCC unroll 4
        for (int i = 0; i < CODES; i++)
            expand_raw(v, raws[i], kind, zero, codes[i]);
#pragma GCC unroll 4
        for (int p = 0; p < planes; p++)
#pragma GCC unroll 4
            for (int i = 0; i < CODES; i++)
                out[p * CODES + i] = codes[i][p];
        return;
    }
#pragma GCC unroll 4
    for (int i = 0; i < CODES; i++)
        expand_raw(v, load_raw(row[i], raw, row_bytes), kind, zero_of_key(v, kind, key + i),
                   codes[i]);
#pragma GCC unroll 4
    for (int p = 0; p < planes; p++) {
#pragma GCC unroll 4
        for (int i = 0; i < CODES; i++)
            out[p * CODES + i] = codes[i][p];
        interleave_rows(out + p * CODES);
    }
}

/*
 * T of one or two rows, keys [begin, end) and the raw vectors [first, first + raws): straight from
 * memory. rows, raws and row_bytes are constants; rows * raws * vectors sums stay in registers.
 */
INLINE void sum_few(decode_task *d, int rows, int32_t begin, int32_t end, int32_t first, int raws,
                    code_kind kind, int32_t row_bytes)
{
    const code_source *v = &d->v;
    const int vectors = planes_of(kind) * CODES;
    int32_t *t = d->sum + slice_of_sums(d) + first * vectors * WIDTH;
    const int64_t stride = (int64_t)d->o_vectors * WIDTH;
    ivec sum[2][2][8];
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int raw = 0; raw < raws; raw++)
#pragma GCC unroll 8
            for (int i = 0; i < vectors; i++)
                sum[r][raw][i] = begin > d->from
                                     ? ivec_load(t + r * stride + (raw * vectors + i) * WIDTH)
                                     : ivec_set(0);
    for (int32_t key = begin; key < end; key += 4) {
        const uint8_t *row[4];
        four_rows(d, v, kind, key, row_bytes, row);
        if (first == 0) prefetch_step(d, kind, v, key, &d->k, d->walk.next);
#pragma GCC unroll 2
        for (int i = 0; i < 4; i += CODES) {
#pragma GCC unroll 2
            for (int raw = 0; raw < raws; raw++) {
                ivec codes[8];
                value_vectors(v, row + i, first + raw, row_bytes, kind, key + i, codes);
#pragma GCC unroll 2
                for (int r = 0; r < rows; r++) {
                    const ivec weights = weights_of_keys(d, r, key + i);
#pragma GCC unroll 8
                    for (int c = 0; c < vectors; c++)
                        add_products(&sum[r][raw][c], weights, codes[c], true);
                }
            }
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int raw = 0; raw < raws; raw++)
#pragma GCC unroll 8
            for (int i = 0; i < vectors; i++)
                ivec_store(t + r * stride + (raw * vectors + i) * WIDTH, sum[r][raw][i]);
}

/* T of one or two rows. rows and row_bytes are constants. */
INLINE void sum_values_few(decode_task *d, int rows, code_kind kind, int32_t row_bytes)
{
    const int32_t raws = (row_bytes + RAW - 1) / RAW;
    const int together = rows * planes_of(kind) * CODES * 2 <= FEW_VECTORS ? 2 : 1;
    for (int32_t key = d->from; key < d->end; key += VALUE_STEP) {
        const int32_t end = d->end - key < VALUE_STEP ? d->end : key + VALUE_STEP;
        int32_t raw = 0;
        for (; together == 2 && raw + 2 <= raws; raw += 2)
            sum_few(d, rows, key, end, raw, 2, kind, row_bytes);
        for (; raw < raws; raw++)
            sum_few(d, rows, key, end, raw, 1, kind, row_bytes);
    }
}

/* Operands of keys [begin, end) of V to the block, CODES keys after the other. */
INLINE void load_values_block(decode_task *d, int32_t begin, int32_t end, code_kind kind,
                              int32_t row_bytes)
{
    const code_source *v = &d->v;
    const int vectors = planes_of(kind) * CODES;
    const int32_t raws = (row_bytes + RAW - 1) / RAW;
    product_code *out = d->block;
    for (int32_t key = begin; key < end; key += 4) {
        const uint8_t *row[4];
        four_rows(d, v, kind, key, row_bytes, row);
        prefetch_step(d, kind, v, key, &d->k, d->walk.next);
#pragma GCC unroll 2
        for (int i = 0; i < 4; i += CODES)
            for (int32_t raw = 0; raw < raws; raw++) {
                ivec codes[8];
                value_vectors(v, row + i, raw, row_bytes, kind, key + i, codes);
#pragma GCC unroll 8
                for (int c = 0; c < vectors; c++, out += CODES_OF_VECTOR)
                    ivec_store(out, codes[c]);
            }
    }
}

/* T of some rows and `vectors` vectors from `vector` on, with the block's keys [begin, end). */
INLINE void multiply_block_values(decode_task *d, int32_t row, int rows, int32_t vector,
                                  int vectors, int32_t begin, int32_t end)
{
    const int64_t stride = (int64_t)d->o_vectors * WIDTH;
    const product_code *v = d->block + (int64_t)vector * CODES_OF_VECTOR;
    int32_t *t = d->sum + slice_of_sums(d) + row * stride + (int64_t)vector * WIDTH;
    ivec sum[VALUE_ROWS][VALUE_VECTORS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++)
            sum[r][i] = begin > d->from ? ivec_load(t + r * stride + i * WIDTH) : ivec_set(0);
    for (int32_t key = begin; key < end; key += CODES, v += stride * CODES) {
        ivec codes[VALUE_VECTORS];
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++)
            codes[i] = ivec_load(v + i * CODES_OF_VECTOR);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const ivec weights = weights_of_keys(d, row + r, key);
#pragma GCC unroll 4
            for (int i = 0; i < vectors; i++)
                add_products(&sum[r][i], weights, codes[i], true);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++)
            ivec_store(t + r * stride + i * WIDTH, sum[r][i]);
}

/* T of any number of rows. row_bytes is a constant. */
INLINE void sum_values_many(decode_task *d, code_kind kind, int32_t row_bytes)
{
    for (int32_t key = d->from; key < d->end; key += VALUE_STEP) {
        const int32_t end = d->end - key < VALUE_STEP ? d->end : key + VALUE_STEP;
        load_values_block(d, key, end, kind, row_bytes);
        for (int32_t vector = 0; vector < d->o_vectors; vector += VALUE_VECTORS)
            for (int32_t row = 0, rows; row < d->rows; row += rows) {
                rows = d->rows - row >= VALUE_ROWS ? VALUE_ROWS : 1;
                if (rows == VALUE_ROWS)
                    multiply_block_values(d, row, VALUE_ROWS, vector, VALUE_VECTORS, key, end);
                else
                    multiply_block_values(d, row, 1, vector, VALUE_VECTORS, key, end);
            }
    }
}

#endif
