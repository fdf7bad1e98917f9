/*
 * How the integer decode kernels read K and V: a tile of 256 keys whose rows lie anywhere, 8-bit or
 * nibbles, to blocks in the first-level cache that dpbusd multiplies.
 *
 *     row      64-byte parts; a part is 64 channels, or 128 as nibbles
 *     K block  4 tokens --(transpose dwords within 128-bit lanes)--> 4 vectors a part; vector k,
 *              lane L, dword i: bytes 16 L + 4 k .. + 3 of token i
 *     V block  4 tokens --(interleave bytes)--> 4 vectors a part; vector k, lane L, dword i, byte
 * t: byte 16 L + 4 k + i of token t
 *
 * Both cost two shuffles a vector. Nibbles are moved as bytes and expanded afterwards, to two
 * vectors: the low nibbles (even channels) and the high ones. vpermb with the sixteen levels four
 * times over ignores the upper bits, so expanding costs one permutation a vector and half a shift.
 *
 * While a tile is worked on, the rows of the next one are prefetched into the second-level cache,
 * four places of K and four of V in turn, a few rows at each step of each pass.
 */
#ifndef HEADROOM_INTEGER_DECODE_LOAD_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_LOAD_AVX512VNNI_H

#include "integer_nibbles.h"
#include "integer_vector_avx512vnni.h"

enum {
    DECODE_TILE = HR_INTEGER_TILE, /* keys */
    PART = 64,                     /* bytes of a row in a vector */
    KEY_STEP = 16,                 /* keys a K block has */
    VALUE_STEP = 32,               /* keys a V block has */
    PREFETCH_PLACES = 4            /* of K, and of V */
};

#define ALIGNED __attribute__((aligned(64)))

/* How codes are stored. */
typedef enum code_kind {
    CODES_BYTES,
    CODES_NIBBLES,
    CODES_SHIFTED /* nibbles less the token's zero point */
} code_kind;

/* K or V of the task's sequence. */
typedef struct code_rows {
    const hr_kernel_operand *operand;
    const uint8_t *codes;
    size_t row_bytes;
    int32_t parts;
    bool whole;     /* the last part is full */
    __mmask64 last; /* bytes of the last part */
    __m512i levels; /* vpermb's table; of K, 128 more */
} code_rows;

/* Where the rows of a tile lie: row j at slot[j]. Rows past the sequence repeat its last. */
typedef struct tile_rows {
    ALIGNED int64_t slot[DECODE_TILE];
} tile_rows;

INLINE int32_t vectors_of(const code_rows *rows, code_kind kind)
{
    return rows->parts * (kind == CODES_BYTES ? 4 : 8);
}

/* `offset` is added to every level: dpbusd takes K as unsigned numbers. */
static inline code_rows rows_of(const hr_kernel_args *args, const hr_kernel_operand *operand,
                                code_kind kind, int offset)
{
    code_rows rows = {.operand = operand, .codes = operand->codes};
    rows.row_bytes = (size_t)args->head_dim / (kind == CODES_BYTES ? 1 : 2);
    rows.parts = (int32_t)((rows.row_bytes + PART - 1) / PART);
    const size_t last = rows.row_bytes - (size_t)(rows.parts - 1) * PART;
    rows.whole = last == PART;
    rows.last = ~UINT64_C(0) >> (PART - last);
    if (kind == CODES_BYTES) return rows;
    int8_t levels[16], table[64];
    hr_nibble_levels(operand->dtype, 0, levels);
    for (int i = 0; i < 64; i++)
        table[i] = (int8_t)(levels[i % 16] + offset);
    rows.levels = _mm512_loadu_si512(table);
    return rows;
}

/* The tile's keys [first, first + count), page run by page run. */
static inline void find_rows(const hr_kernel_operand *operand, int64_t first, int32_t count,
                             tile_rows *out)
{
    const __m512i eight = _mm512_set1_epi64(8);
    int32_t j = 0, run;
    for (; j < count; j += run) {
        run = hr_kernel_run(operand, first + j, count - j);
        __m512i slot = _mm512_add_epi64(_mm512_set1_epi64(hr_kernel_slot(operand, first + j)),
                                        _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
        for (int32_t i = 0; i < run; i += 8, slot = _mm512_add_epi64(slot, eight))
            _mm512_mask_storeu_epi64(out->slot + j + i,
                                     (__mmask8)(run - i < 8 ? (1 << (run - i)) - 1 : 0xff), slot);
    }
    for (; j < DECODE_TILE; j++)
        out->slot[j] = out->slot[count - 1];
}

/* One scale a key of the tile, 0 past `count`; returns the largest. */
static inline float gather_scales(const hr_kernel_operand *operand, int32_t head_dim, int64_t first,
                                  int32_t count, float *scale)
{
    int32_t run;
    if (operand->granularity == HR_GRANULARITY_TOKEN)
        for (int32_t j = 0; j < count; j += run) {
            run = hr_kernel_run(operand, first + j, count - j);
            const float *source = operand->scale + hr_kernel_slot(operand, first + j);
            for (int32_t i = 0; i < run; i += 16) {
                __mmask16 mask = (__mmask16)(run - i < 16 ? (1 << (run - i)) - 1 : 0xffff);
                _mm512_mask_storeu_ps(scale + j + i, mask, _mm512_maskz_loadu_ps(mask, source + i));
            }
        }
    else
        for (int32_t j = 0; j < count; j++)
            scale[j] = hr_integer_token_scale(operand, head_dim, first + j);
    memset(scale + count, 0, (size_t)(DECODE_TILE - count) * sizeof *scale);
    __m512 largest = _mm512_setzero_ps();
    for (int32_t j = 0; j < DECODE_TILE; j += 16)
        largest = _mm512_max_ps(largest, _mm512_load_ps(scale + j));
    return _mm512_reduce_max_ps(largest);
}

/* One zero point a key of the tile. */
static inline void gather_zero_points(const hr_kernel_operand *operand, int64_t first,
                                      int32_t count, uint8_t *zero_point)
{
    int32_t run;
    if (operand->granularity == HR_GRANULARITY_TOKEN)
        for (int32_t j = 0; j < count; j += run) {
            run = hr_kernel_run(operand, first + j, count - j);
            memcpy(zero_point + j, operand->zero_point + hr_kernel_slot(operand, first + j),
                   (size_t)run);
        }
    else
        for (int32_t j = 0; j < count; j++)
            zero_point[j] = operand->granularity == HR_GRANULARITY_BLOCK
                                ? operand->zero_point[(first + j) / operand->block]
                                : operand->zero_point[0];
    memset(zero_point + count, 0, (size_t)(DECODE_TILE - count));
}

/* 64 bytes of a row, zeros past its end. */
INLINE __m512i load_part(const code_rows *rows, const uint8_t *row, int32_t part)
{
    if (rows->whole || part + 1 < rows->parts) return _mm512_loadu_si512(row + part * PART);
    return _mm512_maskz_loadu_epi8(rows->last, row + part * PART);
}

/* The codes of 64 bytes, low or high nibbles. */
INLINE __m512i expand_nibbles(const code_rows *rows, __m512i bytes, int high)
{
    if (high) bytes = _mm512_srli_epi16(bytes, 4);
    return _mm512_permutexvar_epi8(bytes, rows->levels);
}

/* Where four keys from `key` on lie. */
INLINE void four_rows(const code_rows *rows, const tile_rows *tile, int32_t key,
                      const uint8_t *row[4])
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        row[i] = rows->codes + (size_t)tile->slot[key + i] * rows->row_bytes;
}

/* Four vectors as moved bytes -> four or eight vectors of codes. */
INLINE void expand_block(const code_rows *rows, const __m512i v[4], code_kind kind, __m512i zero,
                         __m512i out[8])
{
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        if (kind == CODES_BYTES) {
            out[k] = v[k];
            continue;
        }
        out[2 * k] = expand_nibbles(rows, v[k], 0);
        out[2 * k + 1] = expand_nibbles(rows, v[k], 1);
        if (kind != CODES_SHIFTED) continue;
        out[2 * k] = _mm512_sub_epi8(out[2 * k], zero);
        out[2 * k + 1] = _mm512_sub_epi8(out[2 * k + 1], zero);
    }
}

/* One part of four keys, code + 128, as in a K block. `zero`: dword i of a lane is token i's. */
INLINE void key_vectors(const code_rows *rows, const uint8_t *const row[4], int32_t part,
                        code_kind kind, __m512i zero, __m512i out[8])
{
    __m512i v[4], t[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        v[i] = load_part(rows, row[i], part);
    t[0] = _mm512_unpacklo_epi32(v[0], v[1]);
    t[1] = _mm512_unpackhi_epi32(v[0], v[1]);
    t[2] = _mm512_unpacklo_epi32(v[2], v[3]);
    t[3] = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(t[0], t[2]);
    v[1] = _mm512_unpackhi_epi64(t[0], t[2]);
    v[2] = _mm512_unpacklo_epi64(t[1], t[3]);
    v[3] = _mm512_unpackhi_epi64(t[1], t[3]);
    expand_block(rows, v, kind, zero, out);
    if (kind != CODES_BYTES) return;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
        out[k] = _mm512_xor_si512(out[k], _mm512_set1_epi8((char)128));
}

/* One part of four keys as in a V block. `zero`: byte i of a dword is token i's. */
INLINE void value_vectors(const code_rows *rows, const uint8_t *const row[4], int32_t part,
                          code_kind kind, __m512i zero, __m512i out[8])
{
    __m512i v[4], t[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        v[i] = load_part(rows, row[i], part);
    t[0] = _mm512_unpacklo_epi8(v[0], v[1]);
    t[1] = _mm512_unpackhi_epi8(v[0], v[1]);
    t[2] = _mm512_unpacklo_epi8(v[2], v[3]);
    t[3] = _mm512_unpackhi_epi8(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi16(t[0], t[2]);
    v[1] = _mm512_unpackhi_epi16(t[0], t[2]);
    v[2] = _mm512_unpacklo_epi16(t[1], t[3]);
    v[3] = _mm512_unpackhi_epi16(t[1], t[3]);
    expand_block(rows, v, kind, zero, out);
}

/* The zero points of four keys as key_vectors takes them. */
INLINE __m512i key_zeros(const uint8_t *zero_point, code_kind kind)
{
    if (kind != CODES_SHIFTED) return _mm512_setzero_si512();
    const __m128i four = _mm_loadu_si32(zero_point);
    return _mm512_broadcast_i32x4(
        _mm_shuffle_epi8(four, _mm_setr_epi32(0, 0x01010101, 0x02020202, 0x03030303)));
}

/* The zero points of four keys as value_vectors takes them. */
INLINE __m512i value_zeros(const uint8_t *zero_point, code_kind kind)
{
    if (kind != CODES_SHIFTED) return _mm512_setzero_si512();
    int32_t four;
    memcpy(&four, zero_point, sizeof four);
    return _mm512_set1_epi32(four);
}

/* What is left of the next tile to prefetch. */
typedef struct prefetcher {
    tile_rows *next;
    int32_t done;   /* rows of K and of V */
    int32_t credit; /* 1/4096 rows due */
    int32_t share;  /* 1/4096 rows a step of cost 1 */
} prefetcher;

INLINE void prefetch_row(const code_rows *rows, int64_t slot, bool scale)
{
    const char *row = (const char *)rows->codes + (size_t)slot * rows->row_bytes;
    for (int32_t part = 0; part < rows->parts; part++)
        _mm_prefetch(row + part * PART, _MM_HINT_T1);
    if (scale) _mm_prefetch((const char *)(rows->operand->scale + slot), _MM_HINT_T1);
}

/* The next `count` rows, which are taken from the places in turn; `count` is a constant. */
INLINE void prefetch_rows(prefetcher *p, const code_rows *k, const code_rows *v, int count)
{
    for (int i = 0; i < count; i++, p->done++) {
        const int32_t n = p->done % DECODE_TILE;
        const int32_t key =
            n % PREFETCH_PLACES * (DECODE_TILE / PREFETCH_PLACES) + n / PREFETCH_PLACES;
        const int64_t slot = p->next->slot[key];
        prefetch_row(k, slot, false);
        prefetch_row(v, slot, false);
    }
}

/* Called at steps of unlike cost; the costs of a tile add up to 256 * 4096 / share. */
INLINE void prefetch_share(prefetcher *p, const code_rows *k, const code_rows *v, int32_t cost)
{
    p->credit += cost * p->share;
    for (; p->credit >= 4096; p->credit -= 4096)
        prefetch_rows(p, k, v, 1);
}

#endif
