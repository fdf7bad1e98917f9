/*
 * The two products of the decode kernels that read K and V in blocks (block_list_avx512.h), for one
 * to four rows at a time:
 *
 *     S    64 keys: a line of K has 4 channels of 16 keys, a dword of Q goes to all of them
 *     T    a tile: a line of V has 4 keys' values of 16 channels, a dword of P goes to all of them
 *
 * Sums stay in registers: 4 a row of S, 4 or 8 a row of T. K and V are multiplied as they lie.
 * Where there are more rows than four, later ones find the lines in the first-level cache.
 */
#ifndef HEADROOM_INTEGER_BLOCKS_PRODUCTS_AVX512VNNI_H
#define HEADROOM_INTEGER_BLOCKS_PRODUCTS_AVX512VNNI_H

#include "block_cursor_avx512.h"
#include "integer_decode_task_avx512vnni.h"

enum { NEAR_BLOCKS = 2 /* of V that are prefetched before they are read */ };

/* A task of blocks. */
typedef struct blocks_state {
    decode_state s;
    tile_blocks place[2];
    tile_blocks *tile, *next;
    int64_t found; /* first key of the tile that `next` is; -1: none */
    code_blocks k, v;
    int32_t key_cost, value_cost; /* of a step of a product, for prefetch_blocks */
    bool listed;                  /* the next tile is fetched by prefetch_blocks, not by `cursor` */
    block_cursor cursor;
    ahead_tile ahead;
    /* Where codes are nibbles: what they stand for, in K as dpbusd's unsigned numbers. */
    __m512i k_levels, v_levels;
    bool k_shifted, v_shifted;        /* they have zero points */
    int32_t minus_sum[DECODE_ROWS];   /* of Q's codes */
    int32_t minus_zeros[DECODE_ROWS]; /* the sum of P times V's zero points */
} blocks_state;

INLINE __m512i broadcast_dword(const void *dword)
{
    int32_t x;
    memcpy(&x, dword, sizeof x);
    return _mm512_set1_epi32(x);
}

/* A line of each of four blocks, into the first-level cache. */
INLINE void prefetch_lines(const uint8_t *const *blocks, int32_t at)
{
    UNROLL
    for (int c = 0; c < 4; c++)
        _mm_prefetch((const char *)blocks[c] + at, _MM_HINT_T0);
}

/* x of 64 keys of the rows [row, row + rows), which have one set. rows is a constant. */
INLINE void score_keys_of(blocks_state *t, int32_t row, int rows, int32_t key)
{
    decode_state *s = &t->s;
    const uint8_t *const *k = t->tile->k + key / BLOCK_KEYS;
    const int32_t bytes = s->args->head_dim * BLOCK_KEYS;
    const int8_t *q = s->q + row * s->k_channels;
    /* The next 64 keys, or V's first. */
    const uint8_t *const *const near = key + 64 < DECODE_TILE ? k + 4 : t->tile->v;
    __m512i sum[SET_ROWS][4];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int c = 0; c < 4; c++)
            sum[r][c] = _mm512_set1_epi32(s->init[row + r]);
    }
    for (int32_t at = 0; at < bytes; at += 2 * PART) {
        prefetch_blocks(&s->ahead, t->key_cost);
        UNROLL
        for (int half = 0; half < 2; half++, q += 4 * SET_ROWS) {
            __m512i line[4];
            UNROLL
            for (int c = 0; c < 4; c++)
                line[c] = _mm512_load_si512(k[c] + at + half * PART);
            if (row == 0) prefetch_lines(near, at + half * PART);
            UNROLL
            for (int r = 0; r < rows; r++) {
                const __m512i four = broadcast_dword(q + 4 * r);
                UNROLL
                for (int c = 0; c < 4; c++)
                    add_products(&sum[r][c], line[c], four);
            }
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int c = 0; c < 4; c++)
            _mm512_store_si512(row_x(s, row + r) + key + c * BLOCK_KEYS, sum[r][c]);
    }
}

/* S of all rows. */
static __attribute__((noinline)) void score_blocks(blocks_state *t)
{
    const int32_t rows = t->s.rows;
    for (int32_t key = t->s.from; key < t->s.end; key += 64)
        for (int32_t row = 0; row < rows; row += SET_ROWS)
            switch (rows - row) {
            case 1:
                score_keys_of(t, row, 1, key);
                break;
            case 2:
                score_keys_of(t, row, 2, key);
                break;
            case 3:
                score_keys_of(t, row, 3, key);
                break;
            default:
                score_keys_of(t, row, 4, key);
            }
}

INLINE void prefetch_vectors(const uint8_t *v, int vectors)
{
    UNROLL
    for (int i = 0; i < vectors; i++)
        _mm_prefetch((const char *)v + i * PART, _MM_HINT_T0);
}

/* What is read two blocks later: of V or, after its last vectors, of the next tile's K. */
INLINE const uint8_t *near_values(const blocks_state *t, int32_t block, int32_t vector, int vectors)
{
    const int32_t near = block + NEAR_BLOCKS, next = vector + vectors;
    if (near < TILE_BLOCKS) return t->tile->v[near] + (int64_t)vector * PART;
    if (next < t->s.vectors) return t->tile->v[near - TILE_BLOCKS] + (int64_t)next * PART;
    return t->next->k[near - TILE_BLOCKS];
}

/*
 * T of the rows [row, row + rows), which have one set, and `vectors` vectors of channels from
 * `vector` on, to O. With P in I16 each row's high and low bits are two rows here. All but t, row
 * and vector are constants.
 */
INLINE void sum_values_of(blocks_state *t, int32_t row, int rows, int32_t vector, int vectors,
                          bool precise)
{
    decode_state *s = &t->s;
    const int all = precise ? 2 * rows : rows;
    const int64_t quad_bytes = (int64_t)s->vectors * PART;
    const uint8_t *const *blocks = t->tile->v;
    const uint8_t *const p = row_p(s, row, 0);
    const int64_t low = row_p(s, row, 1) - p;
    __m512i sum[SET_ROWS][8];
    UNROLL
    for (int r = 0; r < all; r++) {
        UNROLL
        for (int i = 0; i < vectors; i++)
            sum[r][i] = _mm512_setzero_si512();
    }
    for (int32_t block = s->from / BLOCK_KEYS; block * BLOCK_KEYS < s->end; block++) {
        const uint8_t *v = blocks[block] + (int64_t)vector * PART;
        const uint8_t *near = near_values(t, block, vector, vectors);
        const uint8_t *weights = p + block / 4 * 64 + block % 4 * 4;
#pragma GCC unroll 1
        for (int quad = 0; quad < 4; quad++, weights += 16) {
            __m512i line[8];
            prefetch_blocks(&s->ahead, t->value_cost);
            UNROLL
            for (int i = 0; i < vectors; i++)
                line[i] = _mm512_load_si512(v + i * PART);
            if (row == 0) prefetch_vectors(near, vectors);
            v += quad_bytes;
            near += quad_bytes;
            UNROLL
            for (int r = 0; r < all; r++) {
                const __m512i four = broadcast_dword(
                    weights + (r < rows ? r * DECODE_TILE : low + (r - rows) * DECODE_TILE));
                UNROLL
                for (int i = 0; i < vectors; i++)
                    add_products(&sum[r][i], four, line[i]);
            }
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int i = 0; i < vectors; i++) {
            __m512i total = sum[r][i];
            if (precise) total = _mm512_add_epi32(_mm512_slli_epi32(total, 7), sum[r + rows][i]);
            add_output(s, row + r, vector + i, total);
        }
    }
}

/* Vectors of T of a row that are summed at once: 16 sums in all, or 24 of three rows. */
INLINE int32_t vectors_at_once(const decode_state *s)
{
    const int32_t rows = s->precise ? 2 * s->rows : s->rows;
    return rows < SET_ROWS ? 8 : 4;
}

/* Steps of prefetch_blocks in S of a whole tile. */
static int32_t key_steps(const decode_state *s)
{
    return DECODE_TILE / 64 * sets_of(s) * s->args->head_dim / 8;
}

/* The same in T. */
static int32_t value_steps(const decode_state *s)
{
    const int32_t most = vectors_at_once(s);
    const int32_t passes = (s->vectors + most - 1) / most;
    return DECODE_TILE / 4 * passes * (s->precise ? (s->rows + 1) / 2 : sets_of(s));
}

/* The same for all rows. vectors and precise are constants. */
INLINE void sum_vectors_of(blocks_state *t, int32_t vector, int vectors, bool precise)
{
    const int32_t rows = t->s.rows;
    if (precise) {
        for (int32_t row = 0; row < rows; row += 2)
            if (rows - row == 1)
                sum_values_of(t, row, 1, vector, vectors, true);
            else if (vectors <= 4)
                sum_values_of(t, row, 2, vector, vectors, true);
        return;
    }
    for (int32_t row = 0; row < rows; row += SET_ROWS)
        switch (rows - row) {
        case 1:
            sum_values_of(t, row, 1, vector, vectors, false);
            break;
        case 2:
            sum_values_of(t, row, 2, vector, vectors, false);
            break;
        case 3:
            sum_values_of(t, row, 3, vector, vectors, false);
            break;
        default:
            if (vectors <= 4) sum_values_of(t, row, 4, vector, vectors, false);
        }
}

/* T and O of all rows and channels, as many vectors at a time as there are registers for sums. */
INLINE void sum_all_values(blocks_state *t, bool precise)
{
    const decode_state *s = &t->s;
    const int32_t vectors = s->vectors, most = vectors_at_once(s);
    for (int32_t vector = 0, count; vector < vectors; vector += count) {
        const int32_t left = vectors - vector;
        count = left >= most ? most : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        if (count == 8)
            sum_vectors_of(t, vector, 8, precise);
        else if (count == 4)
            sum_vectors_of(t, vector, 4, precise);
        else if (count == 2)
            sum_vectors_of(t, vector, 2, precise);
        else
            sum_vectors_of(t, vector, 1, precise);
    }
}

static __attribute__((noinline)) void add_block_values(blocks_state *t)
{
    sum_all_values(t, false);
}

static __attribute__((noinline)) void add_precise_values(blocks_state *t)
{
    sum_all_values(t, true);
}

#endif
