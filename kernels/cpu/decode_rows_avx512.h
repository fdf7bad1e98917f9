/*
 * How decode kernels read K and V: tiles of 256 keys whose rows lie anywhere, in pages or not.
 *
 *     row     head_dim codes, in parts of 64 bytes; the last may be shorter and is read as zeros
 *
 * While a tile is worked on, the rows of the next one are prefetched into the second-level cache,
 * four places of K and four of V in turn, a few rows at each step of each pass: with one place
 * after the other the memory gives 5 to 10% less. Its scales are spread among them: the prefetches
 * of many lines at once keep what comes after them waiting. A second prefetch fetches rows from
 * there into the first-level cache 4 KiB before they are read. Without it loads wait for fill
 * buffers that the far prefetches hold, what uses them fills the scheduler, and then no further
 * prefetch is issued: a loop with 6 cycles of arithmetic a line reads at 85% of the streaming read,
 * and at 98% with it.
 */
#ifndef HEADROOM_DECODE_ROWS_AVX512_H
#define HEADROOM_DECODE_ROWS_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "kernel.h"
#include "token_scales_avx512.h"

/* Unrolls a loop of constant length, whose sums then stay in registers: clang ignores GCC's. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define DECODE_INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))

enum {
    DECODE_ROWS = 128,          /* tile_q: 8 heads of 16 queries */
    DECODE_TILE = 256,          /* keys */
    PART = 64,                  /* bytes of a row in a vector */
    KEY_STEP = 16,              /* keys a K block has */
    VALUE_STEP = 64,            /* keys a V block has */
    PREFETCH_PLACES = 4,        /* of K, and of V */
    NEAR_BYTES = 4096,          /* ahead, into the first-level cache */
    X_STRIDE = DECODE_TILE + 16 /* rows 4 KiB apart would stall loads behind stores */
};

/* K or V of the task's sequence. */
typedef struct code_rows {
    const hr_kernel_operand *operand;
    const uint8_t *codes;
    size_t row_bytes;
    int32_t doubled; /* 1: rows have twice the bytes of those that tile_rows counts; else 0 */
    int32_t parts;
    bool whole;     /* all parts are full */
    bool paired;    /* rows are half a part and read two at a time */
    int32_t groups; /* of channels, with a scale each; 0: none */
    __mmask64 last; /* bytes of the last part */
    __m512i levels; /* what nibbles stand for; see integer_decode_load_avx512vnni.h */
} code_rows;

/*
 * Where the rows of a tile lie, of K and of V: row j at codes + at[j], or twice that. Rows past the
 * sequence repeat its last.
 */
typedef struct tile_rows {
    ALIGNED int64_t at[DECODE_TILE];
} tile_rows;

static inline code_rows rows_of(const hr_kernel_operand *operand, size_t row_bytes)
{
    code_rows rows = {.operand = operand, .codes = operand->codes, .row_bytes = row_bytes};
    rows.parts = (int32_t)((row_bytes + PART - 1) / PART);
    const size_t last = row_bytes - (size_t)(rows.parts - 1) * PART;
    rows.whole = last == PART;
    rows.last = ~UINT64_C(0) >> (PART - last);
    return rows;
}

/* The tile's keys [first, first + count), page run by page run. */
static inline void find_rows(const code_rows *rows, int64_t first, int32_t count, tile_rows *out)
{
    const hr_kernel_operand *operand = rows->operand;
    const __m512i eight = _mm512_set1_epi64(8 * (int64_t)rows->row_bytes);
    const __m512i bytes = _mm512_set1_epi64((int64_t)rows->row_bytes);
    const __m512i begin = _mm512_mullo_epi64(bytes, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    int32_t j = 0, run;
    for (; j < count; j += run) {
        run = hr_kernel_run(operand, first + j, count - j);
        const int64_t slot = hr_kernel_slot(operand, first + j);
        __m512i at = _mm512_add_epi64(_mm512_set1_epi64(slot * (int64_t)rows->row_bytes), begin);
        for (int32_t i = 0; i < run; i += 8, at = _mm512_add_epi64(at, eight))
            _mm512_mask_storeu_epi64(out->at + j + i,
                                     (__mmask8)(run - i < 8 ? (1 << (run - i)) - 1 : 0xff), at);
    }
    for (; j < DECODE_TILE; j++)
        out->at[j] = out->at[count - 1];
}

/* 64 bytes of a row, zeros past its end. */
DECODE_INLINE __m512i load_part(const code_rows *rows, const uint8_t *row, int32_t part)
{
    if (rows->whole || part + 1 < rows->parts) return _mm512_loadu_si512(row + part * PART);
    return _mm512_maskz_loadu_epi8(rows->last, row + part * PART);
}

/* Two rows of half a part. */
DECODE_INLINE __m512i load_pair(const uint8_t *low, const uint8_t *high)
{
    const __m256i half = _mm256_loadu_si256((const __m256i *)low);
    return _mm512_inserti64x4(_mm512_castsi256_si512(half),
                              _mm256_loadu_si256((const __m256i *)high), 1);
}

DECODE_INLINE const uint8_t *row_at(const code_rows *rows, int64_t at)
{
    return rows->codes + (at << rows->doubled);
}

/* Where four keys from `key` on lie. */
DECODE_INLINE void four_rows(const code_rows *rows, const tile_rows *tile, int32_t key,
                             const uint8_t *row[4])
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        row[i] = row_at(rows, tile->at[key + i]);
}

/* What is left of the next tile to prefetch, in turns of four rows, of K and then of V. */
typedef struct prefetcher {
    tile_rows *next;
    int32_t done;   /* turns */
    int32_t credit; /* 1/4096 turns due */
    int32_t share;  /* 1/4096 turns a step of cost 1 */
} prefetcher;

/* Rows that a line has: rows of half a line lie two by two, but where a page ends. */
DECODE_INLINE int32_t rows_of_line(const code_rows *k, const code_rows *v)
{
    return k->paired && v->paired ? 2 : 1;
}

DECODE_INLINE void prefetch_row(const code_rows *rows, int64_t at)
{
    const char *row = (const char *)row_at(rows, at);
    for (int32_t part = 0; part < rows->parts; part++)
        _mm_prefetch(row + part * PART, _MM_HINT_T1);
}

/* The scales and zero points of 16 keys. */
DECODE_INLINE void prefetch_scales(const code_rows *rows, int64_t at)
{
    const hr_kernel_operand *operand = rows->operand;
    const int64_t slot = (at << rows->doubled) / (int64_t)rows->row_bytes;
    for (int32_t i = 0; i < rows->groups; i++) /* a line for 16 / groups keys */
        _mm_prefetch((const char *)(operand->scale + slot * rows->groups + i * 16), _MM_HINT_T1);
    if (operand->granularity != HR_GRANULARITY_TOKEN) return;
    _mm_prefetch((const char *)(operand->scale + slot), _MM_HINT_T1);
    if (operand->zero_point) _mm_prefetch((const char *)(operand->zero_point + slot), _MM_HINT_T1);
}

/* Row i of each place, and the scales of 16 keys with every fourth. */
DECODE_INLINE void prefetch_places(const code_rows *rows, const int64_t *at, int32_t i)
{
    enum { PLACE = DECODE_TILE / PREFETCH_PLACES };
#pragma GCC unroll 4
    for (int place = 0; place < PREFETCH_PLACES; place++)
        prefetch_row(rows, at[place * PLACE + i]);
    if (i % 4 == 0) prefetch_scales(rows, at[4 * i]);
}

/*
 * The next turn. Here and below no pointer is to either of K and V: the compiler would forget what
 * it knows of both.
 */
DECODE_INLINE void prefetch_rows(prefetcher *p, const code_rows *k, const code_rows *v)
{
    const uint32_t turn = (uint32_t)p->done++;
    const int32_t row = (int32_t)(turn / 2) * rows_of_line(k, v) % (DECODE_TILE / PREFETCH_PLACES);
    if (turn % 2 == 0)
        prefetch_places(k, p->next->at, row);
    else
        prefetch_places(v, p->next->at, row);
}

DECODE_INLINE void prefetch_four(const code_rows *rows, const int64_t *at)
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const char *row = (const char *)row_at(rows, at[i]);
        for (int32_t part = 0; part < rows->parts; part++)
            _mm_prefetch(row + part * PART, _MM_HINT_T0);
    }
}

/*
 * Four rows that are to be read soon, NEAR_BYTES on from key `key` of the tile, into the
 * first-level cache: those of the tile or, past its end, the first of `then`.
 */
DECODE_INLINE void prefetch_near(const code_rows *rows, const tile_rows *tile, int32_t key,
                                 const code_rows *then, const tile_rows *then_tile)
{
    const int32_t near = key + NEAR_BYTES / (rows->parts * PART) / 4 * 4;
    if (near < DECODE_TILE)
        prefetch_four(rows, tile->at + near);
    else
        prefetch_four(then, then_tile->at + (near - DECODE_TILE));
}

/* Called at steps of unlike cost; the costs of a tile add up to its turns * 4096 / share. */
DECODE_INLINE void prefetch_share(prefetcher *p, const code_rows *k, const code_rows *v,
                                  int32_t cost)
{
    p->credit += cost * p->share;
    for (; p->credit >= 4096; p->credit -= 4096)
        prefetch_rows(p, k, v);
}

/* The tile that a kernel is at and the one after it. */
typedef struct tile_walk {
    tile_rows place[2];
    tile_rows *tile;
    int64_t found; /* first key of the tile that `ahead` is to fetch; -1: none */
    prefetcher ahead;
} tile_walk;

/*
 * Moves to the tile of keys [first, first + count) and plans the prefetching of the next; `cost` is
 * what the tile's steps will add up to.
 */
static inline void walk_to(tile_walk *walk, const hr_kernel_args *args, const code_rows *k,
                           const code_rows *v, int32_t first, int32_t count, int32_t cost)
{
    const int32_t turns = DECODE_TILE / 2 / rows_of_line(k, v) + 1;
    const code_rows shorter = k->doubled ? *v : *k, *rows = &shorter;
    if (walk->found == first && count == DECODE_TILE) {
        walk->tile = walk->ahead.next;
    } else {
        walk->tile = &walk->place[0];
        find_rows(rows, first, count, walk->tile);
    }
    const int32_t next = first + DECODE_TILE, left = args->seqlen_kv - next;
    tile_rows *place = &walk->place[walk->tile == &walk->place[0]];
    /* Rows in one piece go on after the sequence: with those of the next task, as a rule. */
    if (!args->k.pages || left >= DECODE_TILE)
        find_rows(rows, next, DECODE_TILE, place);
    else if (left > 0)
        find_rows(rows, next, left, place);
    else
        *place = *walk->tile;
    walk->found = next;
    walk->ahead = (prefetcher){.next = place, .share = turns * 4096 / cost + 1};
}

/* v[i] dword k of a lane <-> v[k] dword i of the lane. */
DECODE_INLINE void transpose_lanes(__m512i v[4])
{
    const __m512i low01 = _mm512_unpacklo_epi32(v[0], v[1]);
    const __m512i high01 = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(v[2], v[3]);
    const __m512i high23 = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(low01, low23);
    v[1] = _mm512_unpackhi_epi64(low01, low23);
    v[2] = _mm512_unpacklo_epi64(high01, high23);
    v[3] = _mm512_unpackhi_epi64(high01, high23);
}

#endif
