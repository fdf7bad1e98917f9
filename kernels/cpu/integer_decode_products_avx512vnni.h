/*
 * The two integer products of the decode kernels (integer_decode_avx512vnni.h) and the state they
 * share: S of 16 keys at a time, T of the whole tile, each straight from memory for one or two rows
 * and through the first-level cache for more.
 */
#ifndef HEADROOM_INTEGER_DECODE_PRODUCTS_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_PRODUCTS_AVX512VNNI_H

#include "integer_decode_load_avx512vnni.h"

/*
 * What the steps of a tile cost, in quarters of a cycle, so that prefetches are spread evenly: per
 * vector of codes loaded, per vector multiplied for a row, and per row of softmax. A step of few
 * rows costs what its lines take to come from memory. Preparing a tile costs six times what stands
 * here, but the prefetches of more lines at once would keep its loads waiting.
 */
enum {
    LOAD_COST = 8,
    MULTIPLY_COST = 2,
    SOFTMAX_COST = 800,
    PREPARE_COST = 500,
    LINE_COST = 48,
    FEW_STEPS = 2 * DECODE_TILE / 4
};

typedef struct decode_state {
    ALIGNED float x[DECODE_ROWS][X_STRIDE]; /* the bits of 1.5 * 2^23 + S */
    /* Y of step 3, keys j and j + 16 packed together. */
    ALIGNED uint16_t y[DECODE_ROWS][DECODE_TILE];
    ALIGNED uint8_t p[2 * DECODE_ROWS][DECODE_TILE]; /* P in I16: high bits, then the low 7 */
    ALIGNED float l[DECODE_ROWS][HR_INTEGER_LANES];
    ALIGNED float m[DECODE_ROWS], e[DECODE_ROWS], a[DECODE_ROWS], largest[DECODE_ROWS];
    ALIGNED int32_t least[DECODE_ROWS]; /* N */
    ALIGNED float alpha[DECODE_ROWS], beta[DECODE_ROWS];
    ALIGNED float alpha_o[DECODE_ROWS], beta_o[DECODE_ROWS];
    ALIGNED float k_scale[DECODE_TILE], v_scale[DECODE_TILE];
    tile_columns columns[DECODE_TILE / HR_MICRO_COLUMNS];
    ALIGNED uint8_t k_block[KEY_STEP * HR_INTEGER_MAX_HEAD_DIM];
    ALIGNED int8_t v_block[VALUE_STEP * HR_INTEGER_MAX_HEAD_DIM];
    ALIGNED uint8_t k_zero[DECODE_TILE], v_zero[DECODE_TILE];
    tile_walk walk;
    double factor[DECODE_ROWS];
    float bias[DECODE_ROWS], slope[DECODE_ROWS]; /* natural units; of ALiBi, in units */
    int64_t diagonal[DECODE_ROWS];               /* the key at distance 0 */
    hr_integer_cap cap;
    int32_t init[DECODE_ROWS]; /* bits of 1.5 * 2^23, less 128 times the sum of q */
    ALIGNED int32_t lo[DECODE_ROWS], hi[DECODE_ROWS]; /* keys a row sees of the range */
    const hr_kernel_args *args;
    int32_t rows;
    int32_t vectors;      /* that 4 tokens' codes fill, which is also the vectors of O */
    int32_t first, count; /* keys [first, first + count) are the tile's */
    int32_t from, to;     /* multiples of 64: the range's keys of the tile are in [from, to) */
    int32_t end;          /* those that exist: the lesser of count and to */
    tile_exponents exponents;
    int32_t step_cost; /* of a product of four keys, for prefetch_share; with one or two rows */
    bool half;         /* the CPU has AVX512-FP16 */
    bool precise;      /* P in I16: rows of P and T are twice as many */
    bool few;          /* decode_few does it */
    bool shaped;       /* logits are capped, or have ALiBi */
    __m512i *q; /* [rows][vectors], in the order of a K block, four times; few rows: as codes lie */
    __m512i *t; /* [rows, twice if precise][vectors] int32, in the order of a V block */
    float *o;   /* the same order */
} decode_state;

/* sum += products of four bytes. In assembly: gcc 12 copies accumulators around the intrinsic. */
INLINE void add_products(__m512i *sum, __m512i unsigned_bytes, __m512i signed_bytes)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(unsigned_bytes), "v"(signed_bytes));
}

/* The sums of a's, b's, c's and d's lanes as the lanes of one vector. */
INLINE __m512i sum_lanes(__m512i a, __m512i b, __m512i c, __m512i d)
{
    __m512i ab =
        _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
    __m512i cd =
        _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x88), _mm512_shuffle_i32x4(c, d, 0xdd));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xdd));
}

/* x [row][key .. key + 16) = the bits of 1.5 * 2^23 + S, from the sums of 4 times 4 keys. */
INLINE void store_scores(decode_state *s, int32_t row, int32_t key, const __m512i sum[4])
{
    __m512i total = sum_lanes(sum[0], sum[1], sum[2], sum[3]);
    total = _mm512_add_epi32(total, _mm512_set1_epi32(s->init[row]));
    _mm512_store_ps(s->x[row] + key, _mm512_castsi512_ps(total));
}

/* Dword i of a lane: the sum of a lane of v[i], which is one key's. */
INLINE __m512i sum_dwords(const __m512i v[4])
{
    const __m512i ab =
        _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    const __m512i cd =
        _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

/*
 * S of keys [key, key + 16) for one or two rows, straight from memory and as the codes lie there: a
 * sum of a key in each vector, which costs less than transposing as long as rows are few. rows is a
 * constant.
 */
INLINE void score_keys(decode_state *s, const code_rows *k, const code_rows *v, int rows,
                       int32_t key, code_kind kinds)
{
    const code_kind kind = kind_of_k(kinds);
    const int planes = kind == CODES_BYTES ? 1 : 2;
    __m512i sum[2][4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        const uint8_t *row[4];
        __m512i dwords[2][4];
        four_rows(k, s->walk.tile, key + 4 * g, row);
        prefetch_share(&s->walk.ahead, k, v, s->step_cost);
        prefetch_near(k, s->walk.tile, key + 4 * g, v, s->walk.tile);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const __m512i zero = _mm512_set1_epi8((char)s->k_zero[key + 4 * g + i]);
#pragma GCC unroll 2
            for (int r = 0; r < rows; r++)
                dwords[r][i] = _mm512_setzero_si512();
            for (int32_t part = 0; part < k->parts; part++) {
                __m512i codes[2];
                expand_codes(k, load_part(k, row[i], part), kind, 128, zero, codes);
#pragma GCC unroll 2
                for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                    for (int plane = 0; plane < planes; plane++)
                        add_products(&dwords[r][i], codes[plane],
                                     s->q[r * s->vectors + part * planes + plane]);
            }
        }
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++)
            sum[r][g] = sum_dwords(dwords[r]);
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
        store_scores(s, r, key, sum[r]);
}

/* Keys [key, key + 16) of the tile to k_block: [4 of 4 keys][part][vectors of key_vectors]. */
INLINE void load_keys(decode_state *s, const code_rows *k, const code_rows *v, int32_t key,
                      code_kind kinds)
{
    const code_kind kind = kind_of_k(kinds);
    const int planes = kind == CODES_BYTES ? 1 : 2;
    __m512i *out = (__m512i *)s->k_block;
    for (int g = 0; g < 4; g++) {
        const uint8_t *row[4];
        const __m512i zero = key_zeros(s->k_zero + key + 4 * g, kind);
        four_rows(k, s->walk.tile, key + 4 * g, row);
        prefetch_share(&s->walk.ahead, k, v, s->vectors * LOAD_COST);
        prefetch_near(k, s->walk.tile, key + 4 * g, v, s->walk.tile);
        for (int32_t part = 0; part < k->parts; part++, out += 4 * planes) {
            __m512i codes[8];
            key_vectors(k, row, part, kind, zero, codes);
#pragma GCC unroll 8
            for (int i = 0; i < 4 * planes; i++)
                _mm512_store_si512(out + i, codes[i]);
        }
    }
}

/* S of keys [key, key + 16) for some rows, from k_block. rows is a constant. */
INLINE void multiply_keys(decode_state *s, int32_t row, int rows, int32_t key)
{
    const int32_t vectors = s->vectors;
    const __m512i *q = s->q + row * vectors, *k = (const __m512i *)s->k_block;
    __m512i sum[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++)
            sum[r][g] = _mm512_setzero_si512();
    for (int32_t i = 0; i < vectors; i++) {
        __m512i keys[4];
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++)
            keys[g] = _mm512_load_si512(k + g * vectors + i);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const __m512i query = _mm512_load_si512(q + r * vectors + i);
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++)
                add_products(&sum[r][g], keys[g], query);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        store_scores(s, row + r, key, sum[r]);
}

/* Where a row of P has the weights of four keys from `key` on: see make_weights. */
INLINE int32_t weights_at(int32_t key)
{
    const uint32_t at = (uint32_t)key;
    return (int32_t)(at / 64 * 64 + at % 16 / 4 * 16 + at % 64 / 16 * 4);
}

INLINE __m512i four_weights(const decode_state *s, int32_t row, int32_t key)
{
    int32_t weights;
    memcpy(&weights, s->p[row] + weights_at(key), sizeof weights);
    return _mm512_set1_epi32(weights);
}

/*
 * Step 5: T of one or two rows and the parts [part, part + parts), straight from memory. rows and
 * parts are constants; eight sums a row.
 */
INLINE void sum_values(decode_state *s, const code_rows *k, const code_rows *v, int rows,
                       int32_t part, int parts, code_kind kinds)
{
    const code_kind kind = kind_of_v(kinds);
    const int vectors = kind == CODES_BYTES ? 4 : 8;
    __m512i sum[2][2][8];
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int p = 0; p < parts; p++)
#pragma GCC unroll 8
            for (int i = 0; i < vectors; i++)
                sum[r][p][i] = _mm512_setzero_si512();
    for (int32_t key = s->from; key < s->end; key += 4) {
        const uint8_t *row[4];
        const __m512i zero = value_zeros(s->v_zero + key, kind);
        four_rows(v, s->walk.tile, key, row);
        if (part == 0) {
            prefetch_share(&s->walk.ahead, k, v, s->step_cost);
            prefetch_near(v, s->walk.tile, key, k, s->walk.ahead.next);
        }
#pragma GCC unroll 2
        for (int p = 0; p < parts; p++) {
            __m512i codes[8];
            value_vectors(v, row, part + p, kind, zero, codes);
#pragma GCC unroll 2
            for (int r = 0; r < rows; r++) {
                const __m512i weights = four_weights(s, r, key);
#pragma GCC unroll 8
                for (int i = 0; i < vectors; i++)
                    add_products(&sum[r][p][i], weights, codes[i]);
            }
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int p = 0; p < parts; p++)
#pragma GCC unroll 8
            for (int i = 0; i < vectors; i++)
                _mm512_store_si512(s->t + r * s->vectors + (part + p) * vectors + i, sum[r][p][i]);
}

/* Keys [key, key + 4 quads) of the tile to v_block: [quad][part][vectors of value_vectors]. */
INLINE void load_values(decode_state *s, const code_rows *k, const code_rows *v, int32_t key,
                        int32_t quads, code_kind kinds)
{
    const code_kind kind = kind_of_v(kinds);
    const int vectors = kind == CODES_BYTES ? 4 : 8;
    __m512i *out = (__m512i *)s->v_block;
    for (int32_t end = key + 4 * quads; key < end; key += 4) {
        const uint8_t *row[4];
        const __m512i zero = value_zeros(s->v_zero + key, kind);
        four_rows(v, s->walk.tile, key, row);
        prefetch_share(&s->walk.ahead, k, v, s->vectors * LOAD_COST);
        prefetch_near(v, s->walk.tile, key, k, s->walk.ahead.next);
        for (int32_t part = 0; part < v->parts; part++, out += vectors) {
            __m512i codes[8];
            value_vectors(v, row, part, kind, zero, codes);
#pragma GCC unroll 8
            for (int i = 0; i < vectors; i++)
                _mm512_store_si512(out + i, codes[i]);
        }
    }
}

/*
 * Step 5 for keys [key, key + 4 quads), which are in v_block: T of some rows and 64 channels, four
 * vectors from `vector` on. rows is a constant.
 */
INLINE void multiply_values(decode_state *s, int32_t row, int rows, int32_t vector, int32_t key,
                            int32_t quads)
{
    const int32_t vectors = s->vectors;
    __m512i sum[4][4], *t = s->t + row * vectors + vector;
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            sum[r][i] =
                key > s->from ? _mm512_load_si512(t + r * vectors + i) : _mm512_setzero_si512();
    const __m512i *v = (const __m512i *)s->v_block + vector;
    for (int32_t quad = 0; quad < quads; quad++, v += vectors) {
        __m512i values[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            values[i] = _mm512_load_si512(v + i);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const __m512i weights = four_weights(s, row + r, key + 4 * quad);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                add_products(&sum[r][i], weights, values[i]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            _mm512_store_si512(t + r * vectors + i, sum[r][i]);
}

#endif
