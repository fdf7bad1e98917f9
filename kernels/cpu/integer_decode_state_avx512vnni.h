/*
 * What the integer decode kernels (integer_decode_avx512vnni.h) keep of a task, and the parts of a
 * tile's work that do not depend on the number of rows. Rows are held in sets of four, a lane each:
 *
 *     x    [quad of keys][lane: row][key]         the bits of 1.5 * 2^23 + S
 *     y    [32 keys][quad q][lane: row][8 keys]   Y of step 3, keys 4 q .. and 16 + 4 q ..
 *     P    [64 keys][quad q][lane: row][16 keys]  keys 4 q + 0, 16, 32 and 48, and three after each
 *     l    [quad q][lane: row][4]                 lanes 4 q .. of hr_integer_lane
 *
 * so that one operation works for four rows and a row's constants lie in its lane. One or two rows
 * would waste lanes, and blocks of K give a row's sums in one vector: these have each row's keys
 * side by side, in a quarter of its set's memory.
 */
#ifndef HEADROOM_INTEGER_DECODE_STATE_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_STATE_AVX512VNNI_H

#include "block_list_avx512.h"
#include "integer_decode_load_avx512vnni.h"

enum {
    SET_ROWS = 4,
    GROUP_ROWS = 2 * SET_ROWS,          /* rows whose products are made together */
    KEY_BYTES = HR_INTEGER_MAX_HEAD_DIM /* of a key in k_block */
};

/*
 * What the steps of a tile cost, in quarters of a cycle, so that prefetches are spread evenly: per
 * vector of codes loaded; per step of 16 sums, which is 16 keys' S for a vector of Q or 4 keys'
 * part of T; per row of softmax. A step of few rows costs what its lines take to come from memory.
 * Preparing a tile costs six times what stands here, but the prefetches of more lines at once would
 * keep its loads waiting.
 */
enum {
    LOAD_COST = 8,
    SUMS_COST = 40,
    SOFTMAX_COST = 400,
    PREPARE_COST = 500,
    LINE_COST = 48,
    FEW_STEPS = 2 * DECODE_TILE / 4
};

typedef struct row_set {
    ALIGNED float x[SET_ROWS * DECODE_TILE];
    uint16_t y[SET_ROWS * DECODE_TILE];
    uint8_t p[2][SET_ROWS * DECODE_TILE]; /* P in U8; in I16 its high bits, then the low 7 */
    float l[SET_ROWS * HR_INTEGER_LANES];
} row_set;

typedef struct decode_state {
    ALIGNED float m[DECODE_ROWS], e[DECODE_ROWS], a[DECODE_ROWS], largest[DECODE_ROWS];
    ALIGNED int32_t least[DECODE_ROWS]; /* N */
    ALIGNED float alpha[DECODE_ROWS], beta[DECODE_ROWS];
    ALIGNED float alpha_o[DECODE_ROWS], beta_o[DECODE_ROWS];
    ALIGNED float k_scale[DECODE_TILE], v_scale[DECODE_TILE];
    tile_columns columns[DECODE_TILE / HR_MICRO_COLUMNS];
    ALIGNED uint8_t k_block[KEY_STEP * KEY_BYTES];
    /* Rows of a half vector: the weights of two quads of keys, a half of each vector. */
    __m512i pair_weights[GROUP_ROWS][DECODE_TILE / 8];
    __m512i start[DECODE_ROWS / SET_ROWS]; /* of the sums of S, as init lies in them */
    ALIGNED uint8_t k_zero[DECODE_TILE], v_zero[DECODE_TILE];
    tile_walk walk;
    block_list ahead; /* where K and V are in blocks */
    double factor[DECODE_ROWS];
    float bias[DECODE_ROWS], slope[DECODE_ROWS]; /* natural units; of ALiBi, in units */
    int64_t diagonal[DECODE_ROWS];               /* the key at distance 0 */
    hr_integer_cap cap;
    int32_t init[DECODE_ROWS]; /* bits of 1.5 * 2^23, less 128 times the sum of q */
    ALIGNED int32_t lo[DECODE_ROWS], hi[DECODE_ROWS]; /* keys a row sees of the range */
    const hr_kernel_args *args;
    int32_t rows;
    int32_t k_channels;   /* channels_of K, and so of Q */
    int32_t vectors;      /* of O of a row */
    int32_t first, count; /* keys [first, first + count) are the tile's */
    int32_t from, to;     /* multiples of 64: the range's keys of the tile are in [from, to) */
    int32_t end;          /* those that exist: the lesser of count and to */
    tile_exponents exponents;
    int32_t step_cost; /* of a product of four keys, for prefetch_share; with one or two rows */
    bool half;         /* the CPU has AVX512-FP16 */
    bool precise;      /* P in I16 */
    bool few;          /* rows have their keys side by side: row_x, row_y, row_p and row_l */
    bool shaped;       /* logits are capped, or have ALiBi */
    bool grouped;      /* weights stay where y was: P is made later, for groups of channels */
    int8_t *q;         /* [rows] Q as its product with K takes it */
    float *o;          /* [rows][vectors], in the order that value_vectors gives channels */
    row_set set[DECODE_ROWS / SET_ROWS];
} decode_state;

/* Sets that a task's rows make, the last perhaps not whole. */
INLINE int32_t sets_of(const decode_state *s)
{
    return (s->rows + SET_ROWS - 1) / SET_ROWS;
}

/* sum += products of four bytes. In assembly: gcc 12 copies accumulators around the intrinsic. */
INLINE void add_products(__m512i *sum, __m512i unsigned_bytes, __m512i signed_bytes)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(unsigned_bytes), "v"(signed_bytes));
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

/* a of step 2, unless the tile's F is that of the last, f. */
static void scale_factors(decode_state *s, int32_t f)
{
    if (f == s->exponents.f) return;
    const double octave = s->args->softcap == 0 ? HR_INTEGER_OCTAVE : 1;
    const double unit = ldexp(octave, s->exponents.f);
    for (int32_t row = 0; row < s->rows; row++)
        s->a[row] = hr_integer_tile_factor(s->factor[row], unit);
}

/* Prefetches rows of k and v or, where these are NULL, blocks. */
INLINE void prefetch_meanwhile(decode_state *s, const code_rows *k, const code_rows *v,
                               int32_t cost)
{
    if (k)
        prefetch_share(&s->walk.ahead, k, v, cost);
    else
        prefetch_blocks(&s->ahead, cost);
}

/* Step 1, and a of step 2. */
INLINE void prepare_tile(decode_state *s, const code_rows *k, const code_rows *v)
{
    prefetch_meanwhile(s, k, v, PREPARE_COST / 2);
    const hr_kernel_operand *k_rows = &s->args->k, *v_rows = &s->args->v;
    const int32_t head_dim = s->args->head_dim, f = s->exponents.f;
    const float k_max = gather_scales(k_rows, head_dim, s->first, s->count, s->k_scale);
    prefetch_meanwhile(s, k, v, PREPARE_COST / 2);
    const float v_max = gather_scales(v_rows, head_dim, s->first, s->count, s->v_scale);
    s->exponents = scale_columns(s->k_scale, k_max, s->v_scale, v_max, s->count, s->columns);
    scale_factors(s, f);
}

/* True when each row sees the whole tile. */
static bool sees_all(const decode_state *s)
{
    bool all = s->from == 0 && s->to == DECODE_TILE;
    for (int32_t row = 0; row < s->rows; row++)
        all = all && s->lo[row] <= s->first && s->hi[row] >= s->first + DECODE_TILE;
    return all;
}

/* Bits of the keys [key, key + 16) of the tile that a row sees. */
INLINE __mmask16 visible_keys(const decode_state *s, int32_t row, int32_t key)
{
    const int32_t lo = s->lo[row] - s->first - key, hi = s->hi[row] - s->first - key;
    const uint32_t from = lo > 0 ? (lo < 16 ? UINT32_C(0xffff) << lo : 0) : 0xffff;
    const uint32_t to = hi >= 16 ? 0xffff : hi > 0 ? (UINT32_C(1) << hi) - 1 : 0;
    return (__mmask16)(from & to);
}

/* What a row has in its set where each row's keys lie side by side (few). */
INLINE float *row_x(decode_state *s, int32_t row)
{
    return s->set[row / SET_ROWS].x + row % SET_ROWS * DECODE_TILE;
}

INLINE uint16_t *row_y(decode_state *s, int32_t row)
{
    return s->set[row / SET_ROWS].y + row % SET_ROWS * DECODE_TILE;
}

/* plane: 1 for the low bits of P in I16 */
INLINE uint8_t *row_p(decode_state *s, int32_t row, int plane)
{
    return s->set[row / SET_ROWS].p[plane] + row % SET_ROWS * DECODE_TILE;
}

INLINE float *row_l(decode_state *s, int32_t row)
{
    return s->set[row / SET_ROWS].l + row % SET_ROWS * HR_INTEGER_LANES;
}

/* x of 16 keys of a row. */
INLINE __m512 sums_of(const decode_state *s, int32_t row, uint32_t key)
{
    if (s->few)
        return _mm512_load_ps(s->set[row / SET_ROWS].x + row % SET_ROWS * DECODE_TILE + key);
    const float *x = s->set[row / SET_ROWS].x + key * SET_ROWS + row % SET_ROWS * 4;
    __m512 sums = _mm512_castps128_ps512(_mm_load_ps(x));
    sums = _mm512_insertf32x4(sums, _mm_load_ps(x + 16), 1);
    sums = _mm512_insertf32x4(sums, _mm_load_ps(x + 32), 2);
    return _mm512_insertf32x4(sums, _mm_load_ps(x + 48), 3);
}

/* y of 16 keys of a row from q.k, where logits are capped or have ALiBi: see integer_body.c. */
INLINE __m512 shape_logits(const decode_state *s, int32_t row, uint32_t key, __m512 x, __m512 a,
                           __m512 u)
{
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 y;
    if (s->args->softcap != 0) {
        y = _mm512_fmadd_ps(x, a, _mm512_set1_ps(s->bias[row]));
        tanh_of(&y, 1, s->cap.argument);
        y = _mm512_fnmadd_ps(y, _mm512_set1_ps(s->cap.units), u);
    } else {
        y = _mm512_fnmadd_ps(x, a, u);
    }
    if (s->slope[row] == 0) return y;
    const __m512i from = _mm512_set1_epi32((int32_t)(s->diagonal[row] - s->first - (int32_t)key));
    const __m512i distance = _mm512_abs_epi32(_mm512_sub_epi32(from, lanes));
    return _mm512_fmadd_ps(_mm512_set1_ps(s->slope[row]), _mm512_cvtepu32_ps(distance), y);
}

/*
 * y of 16 keys of a row; +inf for those not seen. `values`: with V's scales. `a` is the row's in
 * all elements.
 */
INLINE __m512 logits_of(const decode_state *s, int32_t row, uint32_t key, __m512 a, bool values,
                        bool masked, bool shaped)
{
    const tile_columns *c = &s->columns[key / HR_MICRO_COLUMNS];
    const uint32_t at = key % HR_MICRO_COLUMNS;
    __m512 y = _mm512_fmadd_ps(sums_of(s, row, key), _mm512_load_ps(c->k + at),
                               _mm512_load_ps(c->k_magic + at));
    const __m512 u = values ? _mm512_load_ps(c->u + at) : _mm512_set1_ps(HR_INTEGER_OFFSET);
    y = shaped ? shape_logits(s, row, key, y, a, u) : _mm512_fnmadd_ps(y, a, u);
    if (masked)
        y = _mm512_mask_mov_ps(_mm512_set1_ps(INFINITY), visible_keys(s, row, (int32_t)key), y);
    return y;
}

/* round16 of 32 keys' y - n, packed. */
INLINE __m512i round_logits(const decode_state *s, int32_t row, uint32_t key, __m512 a, __m512 n,
                            bool masked, bool shaped)
{
    return pack_logits(logits_of(s, row, key, a, true, masked, shaped),
                       logits_of(s, row, key + 16, a, true, masked, shaped), n);
}

/* Packed Y of 32 keys of a row to where they belong. */
INLINE void put_logits(decode_state *s, int32_t row, uint32_t key, __m512i y)
{
    if (s->few) {
        _mm512_store_si512(row_y(s, row) + key, y);
        return;
    }
    uint16_t *out = s->set[row / SET_ROWS].y + key * SET_ROWS + row % SET_ROWS * 8;
    _mm_store_si128((__m128i *)out, _mm512_castsi512_si128(y));
    _mm_store_si128((__m128i *)(out + 32), _mm512_extracti32x4_epi32(y, 1));
    _mm_store_si128((__m128i *)(out + 64), _mm512_extracti32x4_epi32(y, 2));
    _mm_store_si128((__m128i *)(out + 96), _mm512_extracti32x4_epi32(y, 3));
}

/* Step 3 for a row whose N leaves int16; returns n. */
static float remake_logits(decode_state *s, int32_t row, bool masked)
{
    const __m512 a = _mm512_set1_ps(s->a[row]);
    const uint32_t from = (uint32_t)s->from, to = (uint32_t)s->to;
    __m512 least = _mm512_set1_ps(INFINITY);
    for (uint32_t j = from; j < to; j += 16)
        least = _mm512_min_ps(least, logits_of(s, row, j, a, true, masked, s->shaped));
    const float n = _mm512_reduce_min_ps(least);
    for (uint32_t j = from; j < to; j += 32)
        put_logits(s, row, j, round_logits(s, row, j, a, _mm512_set1_ps(n), masked, s->shaped));
    return n;
}

/* The least of 32 words in the lowest of a vector, above it something else. */
INLINE __m128i least_word(__m512i v)
{
    __m256i half = _mm256_min_epu16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    __m128i quarter =
        _mm_min_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return _mm_minpos_epu16(quarter);
}

/* Step 3 but N for a row whose logits are capped or have ALiBi: its least Y to its place in n. */
static __attribute__((noinline)) void shape_row(decode_state *s, int32_t row, __m512i *n)
{
    const __m512 a = _mm512_set1_ps(s->a[row]);
    __m512i least = _mm512_set1_epi16(-1);
    for (uint32_t j = (uint32_t)s->from; j < (uint32_t)s->to; j += 32) {
        const __m512i y = round_logits(s, row, j, a, _mm512_setzero_ps(), true, true);
        least = _mm512_min_epu16(least, y);
        put_logits(s, row, j, y);
    }
    *n = _mm512_mask_broadcastd_epi32(*n, (__mmask16)(1 << row % 16), least_word(least));
}

/*
 * N and M of 16 rows from `row` on, of their least Y, which are the low words of n. They stay in
 * vectors: to load one that was stored number by number waits until all of them are in the cache.
 */
static void finish_logits(decode_state *s, int32_t row, __m512i n)
{
    const int32_t left = s->rows - row, end = s->first + DECODE_TILE;
    const __mmask16 rows = left >= 16 ? 0xffff : (__mmask16)((1 << left) - 1);
    const __m512i first = _mm512_set1_epi32(s->first), last = _mm512_set1_epi32(end);
    const __m512i lo = _mm512_max_epi32(_mm512_load_si512(s->lo + row), first);
    const __m512i hi = _mm512_min_epi32(_mm512_load_si512(s->hi + row), last);
    const __mmask16 seen = _mm512_mask_cmplt_epi32_mask(rows, lo, hi);
    const __m512 a = _mm512_load_ps(s->a + row);
    n = _mm512_and_si512(n, _mm512_set1_epi32(0xffff));
    const __m512 max_a = _mm512_set1_ps(HR_INTEGER_MAX_DIRECT);
    const __mmask16 fits = _mm512_cmple_epu32_mask(_mm512_sub_epi32(n, _mm512_set1_epi32(1)),
                                                   _mm512_set1_epi32(HR_INTEGER_MAX_LEAST - 1)) &
                           _mm512_cmp_ps_mask(a, max_a, _CMP_LT_OQ);
    const __m512 m = _mm512_sub_ps(_mm512_set1_ps(HR_INTEGER_OFFSET), _mm512_cvtepi32_ps(n));
    _mm512_store_si512(s->least + row, n);
    _mm512_store_ps(s->largest + row, _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen, m));
    for (uint32_t bad = (uint32_t)(seen & ~fits); bad; bad &= bad - 1) {
        const int32_t r = row + __builtin_ctz(bad);
        s->largest[r] = HR_INTEGER_OFFSET - remake_logits(s, r, true);
        s->least[r] = 0;
    }
}

/* Step 6 but O and l. */
INLINE void join_rows(decode_state *s)
{
    for (int32_t row = 0; row < s->rows; row += 16)
        join_tile(&s->exponents, _mm512_load_ps(s->largest + row),
                  (row_scalars){s->m + row, s->e + row, s->alpha + row, s->beta + row,
                                s->alpha_o + row, s->beta_o + row});
}

/* The sums of step 4 for a row of a tile that is neither even nor wide; what multiplies them in l.
 */
static __m512 sum_uneven_row(const decode_state *s, int32_t row, __m512 *factor)
{
    ALIGNED float x[DECODE_TILE];
    const __m512 a = _mm512_set1_ps(s->a[row]);
    for (int32_t j = s->from; j < s->to; j += 16)
        _mm512_store_ps(x + j, logits_of(s, row, (uint32_t)j, a, false, true, s->shaped));
    return sum_uneven(x, s->from, s->to, s->m[row], factor);
}

/* Step 6 for 16 elements of O of a row. */
INLINE void add_output(decode_state *s, int32_t row, int32_t vector, __m512i total)
{
    float *o = s->o + (row * s->vectors + vector) * 16;
    const __m512 old = _mm512_mul_ps(_mm512_load_ps(o), _mm512_set1_ps(s->alpha_o[row]));
    _mm512_store_ps(
        o, _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), _mm512_set1_ps(s->beta_o[row]), old));
}

#endif
