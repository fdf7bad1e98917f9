/*
 * The two matrix products of the float decode kernels (float_decode_avx512.h) and the state they
 * share: S of 16 keys at a time, T of the whole tile, each straight from memory for one or two rows
 * and through the first-level cache for more.
 *
 *     K       4 keys --(transpose dwords within 128-bit lanes)--> 4 vectors a part; vector k,
 *             lane L, dword i: bytes 16 L + 4 k .. + 3 of key i
 *
 * so that a product with Q, whose dwords lie in the same order, has one key's sums in one dword of
 * each lane. The transpose costs two shuffles a vector, once for all rows of the task.
 */
#ifndef HEADROOM_FLOAT_DECODE_PRODUCTS_AVX512_H
#define HEADROOM_FLOAT_DECODE_PRODUCTS_AVX512_H

#include "float_decode_task_avx512.h"

enum {
    PART_CODES = PART / CODE_BYTES,
    PLANES = PART_CODES / OUTPUTS, /* wide vectors that 64 bytes become */
    MAX_VECTORS = MAX_CHANNELS / OUTPUTS,
    FLOAT_STEP = VALUE_STEP / 2 /* keys a V block has: wide vectors take more room */
};

typedef struct float_decode {
    float_task task;
    ALIGNED float x[DECODE_ROWS][X_STRIDE]; /* S, logits, weights in turn */
    ALIGNED float value_scale[DECODE_TILE];
    ALIGNED wide_vec k_block[KEY_STEP / 4][MAX_CHANNELS * 4 / OUTPUTS];
    ALIGNED wide_vec v_block[FLOAT_STEP][MAX_VECTORS];
    tile_walk walk;
    int32_t vectors; /* wide vectors of a row's channels */
    __m512i seen_k, seen_v;
    wide_vec *q;      /* [rows][4 vectors], in the order of a K block, four times */
    wide_vec *part_t; /* [rows][vectors], of FLUSH_KEYS keys at most */
    float *t, *o;     /* [rows][vectors][OUTPUTS] */
} float_decode;

static inline size_t float_decode_scratch(int32_t head_dim)
{
    const size_t parts = ((size_t)head_dim * CODE_BYTES + PART - 1) / PART;
    return sizeof(float_decode) +
           DECODE_ROWS * PLANES * parts * (5 * sizeof(wide_vec) + 2 * OUTPUTS * sizeof(float));
}

/*
 * The channel of float `i` of a row's T and O: a plane is every other code of its 64 bytes, or of
 * half of them.
 */
static inline int32_t channel_of(int32_t i)
{
    enum { HALVES = PART_CODES / 32 };
    const int32_t vector = i / 16, plane = vector / HALVES % 2;
    return (vector / (2 * HALVES) * HALVES + vector % HALVES) * 32 + i % 16 * 2 + plane;
}

/* S of keys [key, key + 16) for one or two rows, straight from memory. rows is a constant. */
DECODE_INLINE void score_keys(float_decode *s, const code_rows *k, const code_rows *v, int rows,
                              int32_t key)
{
    wide_vec sum[2][4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        const uint8_t *row[4];
        four_rows(k, s->walk.tile, key + 4 * g, row);
        prefetch_rows(&s->walk.ahead, k, v);
        prefetch_near(k, s->walk.tile, key + 4 * g, v, s->walk.tile);
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++)
            sum[r][g] = wide_zero();
        for (int32_t part = 0; part < k->parts; part++) {
            __m512i raw[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                raw[i] = load_part(k, row[i], part);
                watch_key(&s->seen_k, raw[i]);
            }
            transpose_lanes(raw);
#pragma GCC unroll 16
            for (int i = 0; i < 4 * PLANES; i++)
#pragma GCC unroll 2
                for (int r = 0; r < rows; r++)
                    sum[r][g] = wide_fma(wide_of(raw[i / PLANES], i % PLANES),
                                         s->q[(r * k->parts + part) * 4 * PLANES + i], sum[r][g]);
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
        _mm512_store_ps(s->x[r] + key, sum_keys(sum[r]));
}

/* Keys [key, key + 16) of the tile to k_block. */
DECODE_INLINE void load_keys_block(float_decode *s, const code_rows *k, const code_rows *v,
                                   int32_t key)
{
    __m512i seen = s->seen_k;
    for (int g = 0; g < 4; g++) {
        const uint8_t *row[4];
        four_rows(k, s->walk.tile, key + 4 * g, row);
        prefetch_near(k, s->walk.tile, key + 4 * g, v, s->walk.tile);
        for (int32_t part = 0; part < k->parts; part++) {
            __m512i raw[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                raw[i] = load_part(k, row[i], part);
                watch_key(&seen, raw[i]);
            }
            transpose_lanes(raw);
#pragma GCC unroll 16
            for (int i = 0; i < 4 * PLANES; i++)
                s->k_block[g][part * 4 * PLANES + i] = wide_of(raw[i / PLANES], i % PLANES);
        }
    }
    s->seen_k = seen;
}

/* S of keys [key, key + 16) for some rows, from k_block. rows is a constant. */
DECODE_INLINE void multiply_keys(float_decode *s, int32_t row, int rows, int32_t key)
{
    const int32_t vectors = s->vectors * 4;
    const wide_vec *q = s->q + row * vectors;
    wide_vec sum[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++)
            sum[r][g] = wide_zero();
    for (int32_t i = 0; i < vectors; i++) {
        wide_vec keys[4];
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++)
            keys[g] = s->k_block[g][i];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const wide_vec query = q[r * vectors + i];
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++)
                sum[r][g] = wide_fma(keys[g], query, sum[r][g]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        _mm512_store_ps(s->x[row + r] + key, sum_keys(sum[r]));
}

/* The weight of a row and key in all elements. */
DECODE_INLINE wide_vec weight_at(const float_decode *s, int32_t row, int32_t key)
{
    int32_t weight;
    memcpy(&weight, &s->x[row][key], sizeof weight);
    return wide_weight(weight);
}

/* part_t, which becomes zero, to T. */
static inline void flush(float_decode *s)
{
    for (int32_t i = 0; i < s->task.rows * s->vectors; i++) {
        add_vector(s->t + i * OUTPUTS, s->part_t[i]);
        s->part_t[i] = wide_zero();
    }
}

/* O = alpha O + beta T; T becomes zero. */
static inline void add_outputs(float_decode *s)
{
    const int32_t floats = s->vectors * OUTPUTS;
    for (int32_t row = 0; row < s->task.rows; row++) {
        const vec alpha = vec_set(s->task.alpha[row]), beta = vec_set(s->task.beta[row]);
        float *t = s->t + row * floats, *o = s->o + row * floats;
        for (int32_t i = 0; i < floats; i += VEC_WIDTH) {
            const vec old = vec_mul(vec_load(o + i), alpha);
            vec_store(o + i, vec_fma(vec_load(t + i), beta, old));
            vec_store(t + i, vec_set(0));
        }
    }
}

/* T of one or two rows and one part, straight from memory. rows is a constant. */
DECODE_INLINE void sum_values(float_decode *s, const code_rows *k, const code_rows *v, int rows,
                              int32_t part)
{
    __m512i seen = s->seen_v;
    for (int32_t begin = s->task.from; begin < s->task.end; begin += FLUSH_KEYS) {
        const int32_t end = begin + FLUSH_KEYS < s->task.end ? begin + FLUSH_KEYS : s->task.end;
        /* [row][key % 2][plane]: one chain a plane would wait for itself */
        wide_vec sum[2][2][PLANES];
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int i = 0; i < 2 * PLANES; i++)
                sum[r][i / PLANES][i % PLANES] = wide_zero();
        for (int32_t key = begin; key < end; key += 4) {
            const uint8_t *row[4];
            four_rows(v, s->walk.tile, key, row);
            if (part == 0) prefetch_rows(&s->walk.ahead, k, v);
            if (part == 0) prefetch_near(v, s->walk.tile, key, k, s->walk.ahead.next);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const __m512i raw = load_part(v, row[i], part);
                watch_value(&seen, raw);
#pragma GCC unroll 2
                for (int r = 0; r < rows; r++) {
                    const wide_vec weight = weight_at(s, r, key + i);
#pragma GCC unroll 4
                    for (int plane = 0; plane < PLANES; plane++)
                        sum[r][i % 2][plane] =
                            wide_fma(wide_of(raw, plane), weight, sum[r][i % 2][plane]);
                }
            }
        }
        for (int r = 0; r < rows; r++)
            for (int plane = 0; plane < PLANES; plane++) {
                float *t = s->t + (r * s->vectors + PLANES * part + plane) * OUTPUTS;
                add_vector(t, sum[r][0][plane]);
                add_vector(t, sum[r][1][plane]);
            }
    }
    s->seen_v = seen;
}

/* Keys [key, key + count) of the tile to v_block. */
DECODE_INLINE void load_values_block(float_decode *s, const code_rows *k, const code_rows *v,
                                     int32_t key, int32_t count)
{
    __m512i seen = s->seen_v;
    for (int32_t i = 0; i < count; i++) {
        const uint8_t *row = v->codes + s->walk.tile->at[key + i];
        if (i % 4 == 0) prefetch_near(v, s->walk.tile, key + i, k, s->walk.ahead.next);
        for (int32_t part = 0; part < v->parts; part++) {
            const __m512i raw = load_part(v, row, part);
            watch_value(&seen, raw);
#pragma GCC unroll 4
            for (int plane = 0; plane < PLANES; plane++)
                s->v_block[i][PLANES * part + plane] = wide_of(raw, plane);
        }
    }
    s->seen_v = seen;
}

/* T of some rows and vectors for keys [key, key + count), from v_block. Counts but that are
 * constants. */
DECODE_INLINE void multiply_values(float_decode *s, int32_t row, int rows, int32_t vector,
                                   int vectors, int32_t key, int32_t count)
{
    wide_vec sum[4][4], *t = s->part_t + row * s->vectors + vector;
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++)
            sum[r][i] = t[r * s->vectors + i];
    for (int32_t j = 0; j < count; j++) {
        wide_vec values[4];
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++)
            values[i] = s->v_block[j][vector + i];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const wide_vec weight = weight_at(s, row + r, key + j);
#pragma GCC unroll 4
            for (int i = 0; i < vectors; i++)
                sum[r][i] = wide_fma(values[i], weight, sum[r][i]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++)
            t[r * s->vectors + i] = sum[r][i];
}

#endif
