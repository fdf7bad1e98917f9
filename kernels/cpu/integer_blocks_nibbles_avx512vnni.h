/*
 * The two products of the decode kernels that read K and V in blocks (block_list_avx512.h) where
 * codes are nibbles, for one to four rows at a time, or eight:
 *
 *     S    a line of K has 8 channels of 16 keys, low nibbles before high ones
 *     T    a line of V has 8 keys' values of 16 channels, low nibbles before high ones
 *
 * A line is expanded once for all rows, by vpermb with the 16 levels four times over, which ignores
 * the upper bits of a byte: 3 operations, where 8 rows take 16 products. 16 sums stay in registers:
 * those of 8 rows are of 2 blocks of K and 2 vectors of V, those of 4 of 4. Zero points are not in
 * the levels: what they take from a sum is taken at its end, or start.
 */
#ifndef HEADROOM_INTEGER_BLOCKS_NIBBLES_AVX512VNNI_H
#define HEADROOM_INTEGER_BLOCKS_NIBBLES_AVX512VNNI_H

#include "integer_blocks_products_avx512vnni.h"

static inline bool is_nibbles(const hr_kernel_operand *operand)
{
    return operand->dtype == HR_DTYPE_C4 || operand->dtype == HR_DTYPE_I4 ||
           operand->dtype == HR_DTYPE_U4;
}

/* The levels of 4-bit codes, for vpermb; offset: 128 where they are dpbusd's unsigned numbers. */
static inline __m512i nibble_table(hr_dtype dtype, int offset)
{
    int8_t levels[16];
    hr_nibble_levels(dtype, 0, levels);
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)levels));
    return _mm512_add_epi8(table, _mm512_set1_epi8((int8_t)offset));
}

/* The codes of a line's low nibbles and of its high ones. */
INLINE void expand_line(const uint8_t *line, __m512i levels, __m512i *low, __m512i *high)
{
    const __m512i bytes = _mm512_load_si512(line);
    *low = _mm512_permutexvar_epi8(bytes, levels);
    *high = _mm512_permutexvar_epi8(_mm512_srli_epi16(bytes, 4), levels);
}

/* At a step of cost `cost` that reads `lines` lines. */
INLINE void prefetch_ahead(blocks_state *t, block_cursor *cursor, int lines, int32_t cost)
{
    if (t->listed)
        prefetch_blocks(&t->s.ahead, cost);
    else if (lines > 1)
        fetch_lines(cursor, lines / 2);
}

/*
 * x of `blocks` blocks of 16 keys from `key` on of the rows [row, row + rows). rows and blocks are
 * constants.
 */
INLINE void score_nibbles_of(blocks_state *t, int32_t row, int rows, int32_t key, int blocks)
{
    decode_state *s = &t->s;
    const uint8_t *const *k = t->tile->k + key / BLOCK_KEYS;
    const __m512i levels = t->k_levels;
    const int32_t head_dim = s->args->head_dim;
    /* The next 64 keys, or V's first. */
    const uint8_t *const *const near =
        key + 64 < DECODE_TILE ? k + 4 : t->tile->v + key % 64 / BLOCK_KEYS;
    const int8_t *q = s->q + row * head_dim;
    const int32_t next_set = SET_ROWS * head_dim;
    __m512i sum[GROUP_ROWS][4];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int c = 0; c < blocks; c++)
            sum[r][c] = _mm512_set1_epi32(s->init[row + r]);
    }
    block_cursor cursor = t->cursor;
#pragma GCC unroll 1
    for (int32_t at = 0; at < head_dim * 8; at += PART, q += 8 * SET_ROWS) {
        __m512i low[4], high[4];
        prefetch_ahead(t, &cursor, blocks, t->key_cost);
        UNROLL
        for (int c = 0; c < blocks; c++) {
            if (row == 0) _mm_prefetch((const char *)near[c] + at, _MM_HINT_T0);
            expand_line(k[c] + at, levels, &low[c], &high[c]);
        }
        UNROLL
        for (int r = 0; r < rows; r++) {
            const int8_t *codes = q + r / SET_ROWS * next_set + r % SET_ROWS * 4;
            const __m512i first = broadcast_dword(codes);
            const __m512i second = broadcast_dword(codes + 4 * SET_ROWS);
            UNROLL
            for (int c = 0; c < blocks; c++)
                add_products(&sum[r][c], low[c], first);
            UNROLL
            for (int c = 0; c < blocks; c++)
                add_products(&sum[r][c], high[c], second);
        }
    }
    t->cursor = cursor;
    if (t->k_shifted) {
        UNROLL
        for (int c = 0; c < blocks; c++) {
            const __m128i zeros =
                _mm_load_si128((const __m128i *)(s->k_zero + key + c * BLOCK_KEYS));
            const __m512i zero = _mm512_cvtepu8_epi32(zeros);
            UNROLL
            for (int r = 0; r < rows; r++)
                sum[r][c] =
                    _mm512_dpwssd_epi32(sum[r][c], zero, _mm512_set1_epi32(t->minus_sum[row + r]));
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int c = 0; c < blocks; c++)
            _mm512_store_si512(row_x(s, row + r) + key + c * BLOCK_KEYS, sum[r][c]);
    }
}

/* x of 64 keys of the rows [row, row + rows). rows is a constant. */
INLINE void score_nibble_rows(blocks_state *t, int32_t row, int rows, int32_t key)
{
    const int blocks = rows > SET_ROWS ? 2 : 4;
#pragma GCC unroll 1
    for (int32_t at = key; at < key + 64; at += blocks * BLOCK_KEYS)
        score_nibbles_of(t, row, rows, at, blocks);
}

/* Groups that all rows make, the last of up to four rows, or two of them. */
static int32_t groups_of(const decode_state *s)
{
    return s->rows / GROUP_ROWS + (s->rows % GROUP_ROWS + SET_ROWS - 1) / SET_ROWS;
}

/* Steps of prefetch_blocks in S of a whole tile. */
static int32_t nibble_key_steps(const decode_state *s)
{
    const int32_t passes = s->rows / GROUP_ROWS + groups_of(s);
    return DECODE_TILE / 64 * passes * s->args->head_dim / 8;
}

/* The same in T. */
static int32_t nibble_value_steps(const decode_state *s)
{
    const int32_t eights = s->rows / GROUP_ROWS, rest = groups_of(s) - eights;
    const int32_t most = s->rows == 1 ? 8 : 4;
    const int32_t passes = eights * (s->vectors + 1) / 2 + rest * ((s->vectors + most - 1) / most);
    return DECODE_TILE / 8 * passes;
}

/* S of all rows. */
static __attribute__((noinline)) void score_nibble_blocks(blocks_state *t)
{
    const int32_t rows = t->s.rows;
    for (int32_t key = t->s.from; key < t->s.end; key += 64)
        for (int32_t row = 0, done; row < rows; row += done) {
            done = rows - row >= GROUP_ROWS ? GROUP_ROWS : SET_ROWS;
            switch (rows - row) {
            case 1:
                score_nibble_rows(t, row, 1, key);
                break;
            case 2:
                score_nibble_rows(t, row, 2, key);
                break;
            case 3:
                score_nibble_rows(t, row, 3, key);
                break;
            default:
                if (done == GROUP_ROWS)
                    score_nibble_rows(t, row, GROUP_ROWS, key);
                else
                    score_nibble_rows(t, row, SET_ROWS, key);
            }
        }
}

/* The sum of a row's weights times V's zero points. */
static int32_t weigh_zeros(blocks_state *t, int32_t row)
{
    decode_state *s = &t->s;
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i sum = _mm512_setzero_si512();
    for (int32_t key = s->from; key < s->to; key += 64) {
        const __m512i zeros = _mm512_permutexvar_epi32(order, _mm512_load_si512(s->v_zero + key));
        add_products(&sum, _mm512_load_si512(row_p(s, row, 0) + key), zeros);
    }
    return _mm512_reduce_add_epi32(sum);
}

/*
 * T of the rows [row, row + rows) and `vectors` vectors of channels from `vector` on, to O. All but
 * t, row and vector are constants.
 */
INLINE void sum_nibbles_of(blocks_state *t, int32_t row, int rows, int32_t vector, int vectors)
{
    decode_state *s = &t->s;
    const int64_t pair_bytes = (int64_t)s->vectors * PART;
    const uint8_t *const *blocks = t->tile->v;
    const uint8_t *const p = row_p(s, row, 0);
    const __m512i levels = t->v_levels;
    __m512i sum[GROUP_ROWS][8];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int i = 0; i < vectors; i++)
            sum[r][i] = _mm512_set1_epi32(t->minus_zeros[row + r]);
    }
    block_cursor cursor = t->cursor;
    for (int32_t block = s->from / BLOCK_KEYS; block * BLOCK_KEYS < s->end; block++) {
        const uint8_t *v = blocks[block] + (int64_t)vector * PART;
        const uint8_t *near = near_values(t, block, vector, vectors);
        const uint8_t *weights = p + block / 4 * 64 + block % 4 * 4;
#pragma GCC unroll 1
        for (int pair = 0; pair < 2; pair++, weights += 32) {
            __m512i low[8], high[8];
            prefetch_ahead(t, &cursor, vectors, t->value_cost);
            UNROLL
            for (int i = 0; i < vectors; i++)
                expand_line(v + i * PART, levels, &low[i], &high[i]);
            if (row == 0) prefetch_vectors(near, vectors);
            v += pair_bytes;
            near += pair_bytes;
            UNROLL
            for (int r = 0; r < rows; r++) {
                const uint8_t *four =
                    weights + r / SET_ROWS * sizeof(row_set) + r % SET_ROWS * DECODE_TILE;
                const __m512i first = broadcast_dword(four), second = broadcast_dword(four + 16);
                UNROLL
                for (int i = 0; i < vectors; i++)
                    add_products(&sum[r][i], first, low[i]);
                UNROLL
                for (int i = 0; i < vectors; i++)
                    add_products(&sum[r][i], second, high[i]);
            }
        }
    }
    t->cursor = cursor;
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int i = 0; i < vectors; i++)
            add_output(s, row + r, vector + i, sum[r][i]);
    }
}

/* The same for all channels, `most` vectors at a time. rows and most are constants. */
INLINE void sum_nibble_rows(blocks_state *t, int32_t row, int rows, int most)
{
    const int32_t vectors = t->s.vectors;
    int32_t vector = 0;
    for (; vector + most <= vectors; vector += most)
        sum_nibbles_of(t, row, rows, vector, most);
    if (most == 8 && vector + 4 <= vectors) {
        sum_nibbles_of(t, row, rows, vector, 4);
        vector += 4;
    }
    if (most > 2 && vector + 2 <= vectors) {
        sum_nibbles_of(t, row, rows, vector, 2);
        vector += 2;
    }
    if (vector < vectors) sum_nibbles_of(t, row, rows, vector, 1);
}

/* T and O of all rows. */
static __attribute__((noinline)) void add_nibble_values(blocks_state *t)
{
    const int32_t rows = t->s.rows;
    for (int32_t row = 0; row < rows; row++)
        t->minus_zeros[row] = t->v_shifted ? -weigh_zeros(t, row) : 0;
    for (int32_t row = 0, done; row < rows; row += done) {
        done = rows - row >= GROUP_ROWS ? GROUP_ROWS : SET_ROWS;
        switch (rows - row) {
        case 1:
            sum_nibble_rows(t, row, 1, 8);
            break;
        case 2:
            sum_nibble_rows(t, row, 2, 4);
            break;
        case 3:
            sum_nibble_rows(t, row, 3, 4);
            break;
        default:
            if (done == GROUP_ROWS)
                sum_nibble_rows(t, row, GROUP_ROWS, 2);
            else
                sum_nibble_rows(t, row, SET_ROWS, 4);
        }
    }
}

#endif
