/*
 * How the decode kernels below AVX-512 find the rows of K and V, and fetch them ahead: tiles of 256
 * keys, in pages or not. decode_rows_avx512.h says why it is done so and what it was measured to
 * give; the same in plain C:
 *
 *     second-level cache   the next tile, four places of K and four of V in turn, with its scales
 *                          among them, in proportion to what the steps of this tile take
 *     first-level cache    rows that are read a few keys later
 */
#ifndef HEADROOM_DECODE_ROWS_H
#define HEADROOM_DECODE_ROWS_H

#include <string.h>

#include "kernel.h"

#define DECODE_INLINE static inline __attribute__((always_inline))

enum {
    DECODE_ROWS = 128,   /* tile_q: 8 heads of 16 queries */
    DECODE_TILE = 256,   /* keys */
    CACHE_LINE = 64,     /* bytes */
    LINE_COST = 48,      /* of a line that comes from memory, in quarters of a cycle */
    PREFETCH_PLACES = 4, /* of K, and of V */
    NEAR_BYTES = 4096    /* ahead, into the first-level cache */
};

/* K or V of the task's sequence. */
typedef struct code_rows {
    const hr_kernel_operand *operand;
    const uint8_t *codes;
    int64_t row_bytes;
    int32_t lines; /* cache lines that a row has */
} code_rows;

static inline code_rows rows_of(const hr_kernel_operand *operand, int64_t row_bytes)
{
    return (code_rows){.operand = operand,
                       .codes = operand->codes,
                       .row_bytes = row_bytes,
                       .lines = (int32_t)((row_bytes + CACHE_LINE - 1) / CACHE_LINE)};
}

/* Slots of a tile's keys, of K and of V; keys past the sequence have that of its last. */
typedef struct tile_rows {
    int64_t slot[DECODE_TILE];
} tile_rows;

DECODE_INLINE const uint8_t *row_at(const code_rows *rows, int64_t slot)
{
    return rows->codes + slot * rows->row_bytes;
}

/* The tile's keys [first, first + count), page run by page run. */
static inline void find_rows(const hr_kernel_operand *operand, int64_t first, int32_t count,
                             tile_rows *out)
{
    int32_t j = 0, run;
    for (; j < count; j += run) {
        run = hr_kernel_run(operand, first + j, count - j);
        const int64_t slot = hr_kernel_slot(operand, first + j);
        for (int32_t i = 0; i < run; i++)
            out->slot[j + i] = slot + i;
    }
    for (; j < DECODE_TILE; j++)
        out->slot[j] = out->slot[count - 1];
}

/* The tile that a kernel is at, and what is left of the next one to prefetch. */
typedef struct tile_walk {
    tile_rows place[2];
    tile_rows *tile, *next;
    int64_t found;  /* first key of `next`; -1: none */
    int32_t done;   /* pairs of rows, of K and of V */
    int32_t credit; /* 1/4096 pairs due */
    int32_t share;  /* 1/4096 pairs a step of cost 1 */
} tile_walk;

DECODE_INLINE void prefetch_row(const code_rows *rows, int64_t slot)
{
    const uint8_t *row = row_at(rows, slot);
    for (int32_t line = 0; line < rows->lines; line++)
        __builtin_prefetch(row + line * CACHE_LINE, 0, 2);
}

/* The scales and zero points of 16 keys. */
DECODE_INLINE void prefetch_scales(const hr_kernel_operand *operand, int64_t slot)
{
    if (operand->granularity != HR_GRANULARITY_TOKEN) return;
    __builtin_prefetch(operand->scale + slot, 0, 2);
    if (operand->zero_point) __builtin_prefetch(operand->zero_point + slot, 0, 2);
}

/* The next row of two places, the other two of last time, of K and of V. */
DECODE_INLINE void prefetch_rows(tile_walk *walk, const code_rows *k, const code_rows *v)
{
    enum { PLACE = DECODE_TILE / PREFETCH_PLACES };
    const uint32_t turn = (uint32_t)walk->done++;
    const int64_t *slot = walk->next->slot + turn % 2 * 2 * PLACE + turn / 2 % PLACE;
    prefetch_row(k, slot[0]);
    prefetch_row(v, slot[0]);
    prefetch_row(k, slot[PLACE]);
    prefetch_row(v, slot[PLACE]);
    if (turn % 4 == 0)
        prefetch_scales(turn % 8 ? v->operand : k->operand,
                        walk->next->slot[turn / 8 * 16 % DECODE_TILE]);
}

/* Called at steps of unlike cost; the costs of a tile add up to what walk_to was told. */
DECODE_INLINE void prefetch_share(tile_walk *walk, const code_rows *k, const code_rows *v,
                                  int32_t cost)
{
    walk->credit += cost * walk->share;
    for (; walk->credit >= 4096; walk->credit -= 4096)
        prefetch_rows(walk, k, v);
}

/*
 * Four rows that are to be read soon, NEAR_BYTES on from key `key` of the tile, into the
 * first-level cache: those of the tile or, past its end, the first of `then`.
 */
DECODE_INLINE void prefetch_near(const code_rows *rows, const tile_rows *tile, int32_t key,
                                 const code_rows *then, const tile_rows *then_tile)
{
    const int32_t near = NEAR_BYTES / (rows->lines * CACHE_LINE) / 4 * 4;
    const int64_t *slot = tile->slot + key + near;
    if (key + near >= DECODE_TILE) {
        rows = then;
        slot = then_tile->slot + (key + near - DECODE_TILE);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const uint8_t *row = row_at(rows, slot[i]);
        for (int32_t line = 0; line < rows->lines; line++)
            __builtin_prefetch(row + line * CACHE_LINE, 0, 3);
    }
}

/*
 * Moves to the tile of keys [first, first + count) and plans the prefetching of the next; `cost` is
 * what the tile's steps will add up to.
 */
static inline void walk_to(tile_walk *walk, const hr_kernel_args *args, int32_t first,
                           int32_t count, int32_t cost)
{
    if (walk->found == first && count == DECODE_TILE) {
        walk->tile = walk->next;
    } else {
        walk->tile = &walk->place[0];
        find_rows(&args->k, first, count, walk->tile);
    }
    const int32_t next = first + DECODE_TILE, left = args->seqlen_kv - next;
    walk->next = &walk->place[walk->tile == &walk->place[0]];
    /* Rows in one piece go on after the sequence: with those of the next task, as a rule. */
    if (!args->k.pages || left >= DECODE_TILE)
        find_rows(&args->k, next, DECODE_TILE, walk->next);
    else if (left > 0)
        find_rows(&args->k, next, left, walk->next);
    else
        *walk->next = *walk->tile;
    walk->found = next;
    walk->done = walk->credit = 0;
    walk->share = (DECODE_TILE / 2 + 1) * 4096 / cost + 1;
}

#endif
