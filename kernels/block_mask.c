/*
 * Block-sparse masks: validation, and the builders that make compressed rows from a map of blocks
 * or from a pattern of window, global and random blocks (Longformer, BigBird).
 *
 *     block row r of a sequence, B = block, d = seqlen_kv - seqlen_q
 *     columns  0 ........ c0 .. c1 ........     c0, c1 = blocks of the row's first and last
 * diagonal [global)   [c0 - window, c1 + window]      + `random` of the others
 */
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "plan.h"
#include "status_internal.h"

static int32_t blocks_of(int32_t tokens, int32_t block)
{
    return (int32_t)(((int64_t)tokens + block - 1) / block);
}

static int64_t count_rows(int32_t block_q, int32_t batch, const int32_t *cu_seqlens_q)
{
    int64_t rows = 0;
    for (int32_t b = 0; b < batch; b++)
        rows += blocks_of(cu_seqlens_q[b + 1] - cu_seqlens_q[b], block_q);
    return rows;
}

static hr_status check_row(const hr_block_mask *mask, int64_t row, int32_t columns)
{
    const int64_t begin = mask->row_begin[row], end = mask->row_begin[row + 1];
    if (end < begin)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the block mask's row_begin[%lld] is %lld, less than row_begin[%lld], which "
                       "is %lld; it must not decrease",
                       (long long)row + 1, (long long)end, (long long)row, (long long)begin);
    for (int64_t i = begin; i < end; i++) {
        if (mask->columns[i] < 0 || mask->columns[i] >= columns)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "the block mask's columns[%lld], of row %lld, is %d; its sequence has "
                           "%d blocks of keys",
                           (long long)i, (long long)row, mask->columns[i], columns);
        if (i > begin && mask->columns[i] <= mask->columns[i - 1])
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "the block mask's columns[%lld], of row %lld, is %d after %d; columns "
                           "of a row must ascend",
                           (long long)i, (long long)row, mask->columns[i], mask->columns[i - 1]);
    }
    return HR_OK;
}

static hr_status check_blocks(int32_t block_q, int32_t block_kv)
{
    if (block_q < 1 || block_kv < 1)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the block mask has blocks of %d queries and %d keys; both must be at "
                       "least 1",
                       block_q, block_kv);
    return HR_OK;
}

hr_status hr_block_mask_check(const hr_block_mask *mask, const hr_attention_problem *problem)
{
    HR_TRY(check_blocks(mask->block_q, mask->block_kv));
    if (mask->heads != 1 && mask->heads != problem->num_heads &&
        mask->heads != problem->num_kv_heads)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the block mask has %d heads; it must have 1, num_kv_heads (%d) or "
                       "num_heads (%d)",
                       mask->heads, problem->num_kv_heads, problem->num_heads);
    const int64_t rows = count_rows(mask->block_q, problem->batch, problem->cu_seqlens_q);
    if (mask->rows != rows)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the block mask has %d rows; blocks of %d queries make %lld", mask->rows,
                       mask->block_q, (long long)rows);
    if (!mask->row_begin || mask->row_begin[0] != 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the block mask's row_begin must begin with 0");
    if (!mask->columns && mask->row_begin[rows * mask->heads] != 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the block mask's columns must not be NULL");
    int64_t row = 0;
    for (int32_t head = 0; head < mask->heads; head++)
        for (int32_t b = 0; b < problem->batch; b++) {
            const int32_t *q = problem->cu_seqlens_q + b, *kv = problem->cu_seqlens_kv + b;
            const int32_t columns = blocks_of(kv[1] - kv[0], mask->block_kv);
            for (int32_t r = blocks_of(q[1] - q[0], mask->block_q); r > 0; r--, row++)
                HR_TRY(check_row(mask, row, columns));
        }
    return HR_OK;
}

int64_t hr_block_mask_row(const hr_block_mask *mask, const hr_attention_problem *problem,
                          int32_t sequence, int32_t head, int32_t query)
{
    const int32_t mask_head =
        (int32_t)((int64_t)head * mask->heads / problem->num_heads); /* heads divides num_heads */
    return (int64_t)mask_head * mask->rows +
           count_rows(mask->block_q, sequence, problem->cu_seqlens_q) + query / mask->block_q;
}

void hr_block_mask_free(hr_block_mask *mask)
{
    if (!mask) return;
    free(mask->row_begin);
    free(mask->columns);
    memset(mask, 0, sizeof *mask);
}

/* One row being made: the blocks it sees. */
typedef struct block_row {
    int64_t number;           /* as in row_begin */
    int32_t head, row, index; /* row of all sequences; index in its own */
    int32_t seqlen_q, seqlen_kv, columns;
    uint8_t *seen; /* [columns] */
} block_row;

typedef struct row_maker {
    const uint8_t *map; /* NULL: by pattern */
    int32_t map_columns;
    const hr_block_pattern *pattern;
} row_maker;

/* SplitMix64's output function (Steele, Lea, Flood 2014): number n of the seed's stream. */
static uint64_t random_word(uint64_t seed, uint64_t n)
{
    uint64_t z = seed + (n + 1) * UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static void add_random(const hr_block_pattern *pattern, const block_row *row, int32_t allowed)
{
    int32_t left = 0;
    for (int32_t c = 0; c < allowed; c++)
        left += !row->seen[c];
    for (int32_t n = 0; n < pattern->random && left > 0; n++, left--) {
        const uint64_t word = random_word(
            pattern->seed, (uint64_t)row->number * (uint64_t)pattern->random + (uint64_t)n);
        int32_t pick = (int32_t)((word >> 32) * (uint64_t)left >> 32), c = 0;
        for (;; c++)
            if (!row->seen[c] && pick-- == 0) break;
        row->seen[c] = 1;
    }
}

static int64_t floor_divide(int64_t a, int64_t b)
{
    return a >= 0 ? a / b : -((-a + b - 1) / b);
}

static void make_pattern_row(const hr_block_pattern *pattern, const block_row *row)
{
    const int64_t block = pattern->block, d = (int64_t)row->seqlen_kv - row->seqlen_q;
    const int64_t first = row->index * block, end = first + block;
    const int64_t last = (end < row->seqlen_q ? end : row->seqlen_q) - 1;
    const int64_t c0 = floor_divide(first + d, block), c1 = floor_divide(last + d, block);
    const int64_t allowed = !pattern->causal || c1 + 1 > row->columns ? row->columns : c1 + 1;
    for (int64_t c = 0; c < allowed; c++)
        row->seen[c] = (c >= c0 - pattern->window && c <= c1 + pattern->window) ||
                       c < pattern->global || c0 < pattern->global;
    if (allowed > 0) add_random(pattern, row, (int32_t)allowed);
}

static void make_row(const row_maker *maker, const hr_block_mask *mask, const block_row *row)
{
    memset(row->seen, 0, (size_t)row->columns);
    if (maker->map)
        memcpy(row->seen,
               maker->map + ((int64_t)row->head * mask->rows + row->row) * maker->map_columns,
               (size_t)row->columns);
    else
        make_pattern_row(maker->pattern, row);
}

/* All rows in order; columns are stored when mask->columns is there, and counted either way. */
static void make_rows(const row_maker *maker, hr_block_mask *mask, int32_t batch,
                      const int32_t *cu_seqlens_q, const int32_t *cu_seqlens_kv, uint8_t *seen)
{
    block_row row = {.seen = seen};
    int64_t used = 0;
    for (row.head = 0; row.head < mask->heads; row.head++) {
        row.row = 0;
        for (int32_t b = 0; b < batch; b++) {
            row.seqlen_q = cu_seqlens_q[b + 1] - cu_seqlens_q[b];
            row.seqlen_kv = cu_seqlens_kv[b + 1] - cu_seqlens_kv[b];
            row.columns = blocks_of(row.seqlen_kv, mask->block_kv);
            const int32_t count = blocks_of(row.seqlen_q, mask->block_q);
            for (row.index = 0; row.index < count; row.index++, row.row++, row.number++) {
                make_row(maker, mask, &row);
                for (int32_t c = 0; c < row.columns; c++) {
                    if (!seen[c]) continue;
                    if (mask->columns) mask->columns[used] = c;
                    used++;
                }
                mask->row_begin[row.number + 1] = used;
            }
        }
    }
}

static hr_status build(row_maker *maker, hr_block_mask *mask, int32_t batch,
                       const int32_t *cu_seqlens_q, const int32_t *cu_seqlens_kv)
{
    if (mask->heads < 1 || batch < 1)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "heads is %d and batch %d; both must be at least 1", mask->heads, batch);
    HR_TRY(hr_cu_seqlens_check("cu_seqlens_q", cu_seqlens_q, batch));
    HR_TRY(hr_cu_seqlens_check("cu_seqlens_kv", cu_seqlens_kv, batch));
    const int64_t rows = count_rows(mask->block_q, batch, cu_seqlens_q);
    mask->rows = (int32_t)rows; /* at most one a token, of which there are fewer than 2^31 */
    maker->map_columns = blocks_of(hr_longest_sequence(cu_seqlens_kv, batch), mask->block_kv);
    uint8_t *seen = hr_alloc((size_t)maker->map_columns, 1);
    mask->row_begin = hr_alloc((size_t)rows * (size_t)mask->heads + 1, sizeof *mask->row_begin);
    if (seen && mask->row_begin) {
        make_rows(maker, mask, batch, cu_seqlens_q, cu_seqlens_kv, seen);
        mask->columns =
            hr_alloc((size_t)mask->row_begin[rows * mask->heads], sizeof *mask->columns);
        if (mask->columns) make_rows(maker, mask, batch, cu_seqlens_q, cu_seqlens_kv, seen);
    }
    free(seen);
    if (mask->columns) return HR_OK;
    hr_block_mask_free(mask);
    return HR_ERROR_OUT_OF_MEMORY;
}

hr_status hr_block_mask_from_pattern(const hr_block_pattern *pattern, int32_t heads, int32_t batch,
                                     const int32_t *cu_seqlens_q, const int32_t *cu_seqlens_kv,
                                     hr_block_mask *out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out must not be NULL");
    memset(out, 0, sizeof *out);
    if (!pattern) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "pattern must not be NULL");
    HR_TRY(check_blocks(pattern->block, pattern->block));
    if (pattern->window < 0 || pattern->global < 0 || pattern->random < 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the pattern has window %d, global %d and random %d; none may be negative",
                       pattern->window, pattern->global, pattern->random);
    row_maker maker = {.pattern = pattern};
    hr_block_mask mask = {.block_q = pattern->block, .block_kv = pattern->block, .heads = heads};
    HR_TRY(build(&maker, &mask, batch, cu_seqlens_q, cu_seqlens_kv));
    *out = mask;
    return HR_OK;
}

hr_status hr_block_mask_from_map(const uint8_t *map, int32_t block_q, int32_t block_kv,
                                 int32_t heads, int32_t batch, const int32_t *cu_seqlens_q,
                                 const int32_t *cu_seqlens_kv, hr_block_mask *out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out must not be NULL");
    memset(out, 0, sizeof *out);
    if (!map) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "map must not be NULL");
    HR_TRY(check_blocks(block_q, block_kv));
    row_maker maker = {.map = map};
    hr_block_mask mask = {.block_q = block_q, .block_kv = block_kv, .heads = heads};
    HR_TRY(build(&maker, &mask, batch, cu_seqlens_q, cu_seqlens_kv));
    *out = mask;
    return HR_OK;
}
