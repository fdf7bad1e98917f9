/*
 * The integer family for decode, on AVX-512 VNNI: integer_softmax.h restated for few rows, which
 * are the queries of all heads that share a KV head, and for K and V in rows, as a cache holds
 * them. A tile of 256 keys is read once, whatever the number of rows:
 *
 *     K  4 tokens x 64 channels --(transpose dwords within 128-bit lanes)--> dpbusd with Q, whose
 *        dwords lie spread the same way; lanes are summed once for 16 keys
 *     x, P   as in prefill, 256 keys at a time
 *     V  4 tokens x 64 channels --(interleave bytes)--> [channel][4 tokens], dpbusd with P
 *
 * Both rearrangements cost two shuffles a vector, once for all rows, and go through the first-level
 * cache; O keeps the channel order that the second one gives until the end. The limit is memory:
 * every line of K and V is prefetched one tile ahead, spread over the passes that read the tile.
 * With eight rows and 4-bit codes the two vector ports are the limit instead.
 */
#ifndef HEADROOM_INTEGER_DECODE_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_AVX512VNNI_H

#include <assert.h>

#include "integer_nibbles.h"
#include "integer_vector_avx512vnni.h"

enum {
    DECODE_ROWS = 128,             /* tile_q: 8 heads of 16 queries */
    DECODE_TILE = HR_INTEGER_TILE, /* keys */
    WIDE = 64,                     /* channels a vector of codes has */
    DECODE_CHUNKS = HR_INTEGER_MAX_HEAD_DIM / WIDE,
    X_STRIDE = DECODE_TILE + 16 /* rows 4 KiB apart would stall loads behind stores */
};

#define ALIGNED __attribute__((aligned(64)))

/* K or V of the task's sequence. */
typedef struct code_rows {
    const hr_kernel_operand *operand;
    const uint8_t *codes;
    size_t row_bytes;
    size_t ahead;   /* bytes of a tile: how far ahead to prefetch */
    __m512i levels; /* what nibbles stand for, in each 128-bit lane */
} code_rows;

typedef struct decode_state {
    ALIGNED float x[DECODE_ROWS][X_STRIDE];
    ALIGNED uint8_t p[DECODE_ROWS][DECODE_TILE];
    ALIGNED float l[DECODE_ROWS][HR_INTEGER_LANES];
    ALIGNED float m[DECODE_ROWS], e[DECODE_ROWS], a[DECODE_ROWS], largest[DECODE_ROWS];
    ALIGNED float alpha[DECODE_ROWS], beta[DECODE_ROWS];
    ALIGNED float alpha_o[DECODE_ROWS], beta_o[DECODE_ROWS];
    ALIGNED float k[DECODE_TILE], k_magic[DECODE_TILE], u[DECODE_TILE], r[DECODE_TILE];
    ALIGNED uint8_t k_block[16 * HR_INTEGER_MAX_HEAD_DIM]; /* [4 of 4 tokens][chunk][4] vectors */
    ALIGNED int8_t v_block[DECODE_TILE * WIDE];            /* [64 of 4 tokens][4] vectors */
    double factor[DECODE_ROWS];
    int32_t init[DECODE_ROWS]; /* bits of 1.5 * 2^23, less 128 times the sum of q */
    int32_t lo[DECODE_ROWS], hi[DECODE_ROWS];
    const hr_kernel_args *args;
    int32_t rows, chunks;
    int32_t first, count; /* keys [first, first + count) are the tile's */
    int32_t from, to;     /* multiples of 64: the range's keys of the tile are in [from, to) */
    int32_t f;            /* F of the tile */
    float tile_e;         /* E of the tile */
    __m512i *q;           /* [rows][chunks][4] */
    float *o;             /* [rows][chunks][4][16]: vector i, lane L, e is channel 16 L + 4 i + e */
} decode_state;

static inline size_t integer_decode_scratch(int32_t head_dim)
{
    const size_t chunks = ((size_t)head_dim + WIDE - 1) / WIDE;
    return sizeof(decode_state) + DECODE_ROWS * chunks * 4 * (sizeof(__m512i) + 16 * sizeof(float));
}

INLINE code_rows rows_of(const hr_kernel_args *args, const hr_kernel_operand *operand, bool nibbles)
{
    code_rows rows = {.operand = operand, .codes = operand->codes};
    rows.row_bytes = (size_t)args->head_dim / (nibbles ? 2 : 1);
    rows.ahead = rows.row_bytes * DECODE_TILE;
    int8_t levels[16] = {0};
    if (nibbles) hr_nibble_levels(operand->dtype, 0, levels);
    rows.levels = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)levels));
    return rows;
}

static int zero_point_of(const hr_kernel_operand *operand, int32_t token)
{
    if (operand->granularity == HR_GRANULARITY_TOKEN) return operand->zero_point[token];
    if (operand->granularity == HR_GRANULARITY_BLOCK)
        return operand->zero_point[token / operand->block];
    return operand->zero_point[0];
}

/* Channels [64 chunk, 64 chunk + 64) of a token as INT8, zero codes past head_dim. */
INLINE __m512i load_codes(const code_rows *rows, int32_t head_dim, int32_t token, int32_t chunk,
                          bool nibbles)
{
    const int32_t left = head_dim - chunk * WIDE;
    const uint8_t *codes = rows->codes + (size_t)token * rows->row_bytes;
    if (!nibbles) {
        codes += chunk * WIDE;
        _mm_prefetch((const char *)codes + rows->ahead, _MM_HINT_T1);
        if (left >= WIDE) return _mm512_loadu_si512(codes);
        return _mm512_maskz_loadu_epi8((UINT64_C(1) << left) - 1, codes);
    }
    codes += chunk * (WIDE / 2);
    if (chunk % 2 == 0) _mm_prefetch((const char *)codes + rows->ahead, _MM_HINT_T1);
    const __m256i packed =
        left >= WIDE ? _mm256_loadu_si256((const __m256i *)codes)
                     : _mm256_maskz_loadu_epi8((__mmask32)((UINT64_C(1) << left / 2) - 1), codes);
    /* Byte b to the bytes b & 15 and b >> 4; vpshufb reads the low four bits. 0xa8: (a | b) & c */
    __m512i wide = _mm512_cvtepu8_epi16(packed);
    wide = _mm512_ternarylogic_epi32(wide, _mm512_slli_epi16(wide, 4), _mm512_set1_epi8(15), 0xa8);
    __m512i values = _mm512_shuffle_epi8(rows->levels, wide);
    if (rows->operand->dtype == HR_DTYPE_U4)
        values =
            _mm512_sub_epi8(values, _mm512_set1_epi8((char)zero_point_of(rows->operand, token)));
    return values;
}

/* One scale a key of the tile, 0 past the end of the sequence; returns the largest. */
static float gather_scales(const decode_state *s, const hr_kernel_operand *operand, float *scale)
{
    if (operand->granularity == HR_GRANULARITY_TOKEN)
        memcpy(scale, operand->scale + s->first, (size_t)s->count * sizeof *scale);
    else
        for (int32_t j = 0; j < s->count; j++)
            scale[j] = hr_integer_token_scale(operand, s->args->head_dim, s->first + j);
    memset(scale + s->count, 0, (size_t)(DECODE_TILE - s->count) * sizeof *scale);
    __m512 largest = _mm512_setzero_ps();
    for (int32_t j = 0; j < DECODE_TILE; j += 16)
        largest = _mm512_max_ps(largest, _mm512_load_ps(scale + j));
    return _mm512_reduce_max_ps(largest);
}

/* Step 1, and a of step 2. */
static void prepare_tile(decode_state *s)
{
    const int32_t f = hr_integer_exponent(gather_scales(s, &s->args->k, s->k));
    const int32_t e = hr_integer_exponent(gather_scales(s, &s->args->v, s->r));
    const __m512 minus_f = _mm512_set1_ps((float)-f), minus_e = _mm512_set1_ps((float)-e);
    for (int32_t j = 0; j < DECODE_TILE; j += 16) {
        __m512 k = round22(_mm512_scalef_ps(_mm512_load_ps(s->k + j), minus_f));
        _mm512_store_ps(s->k + j, k);
        _mm512_store_ps(s->k_magic + j, _mm512_mul_ps(k, _mm512_set1_ps(-HR_INTEGER_MAGIC)));
        __m512 w = _mm512_scalef_ps(_mm512_load_ps(s->r + j), minus_e);
        w = _mm512_max_ps(w, _mm512_set1_ps(HR_INTEGER_MIN_V));
        _mm512_store_ps(s->u + j, log2_of(w));
        _mm512_store_ps(s->r + j, _mm512_div_ps(_mm512_set1_ps(1.0f), w));
    }
    if (f != s->f) {
        const double unit = ldexp(1, f);
        for (int32_t row = 0; row < s->rows; row++)
            s->a[row] = hr_integer_tile_factor(s->factor[row], unit);
    }
    s->f = f;
    s->tile_e = (float)e;
}

/* Keys [key, key + 16) of the tile, code + 128, to k_block. Keys past the end repeat the last. */
INLINE void load_keys(decode_state *s, const code_rows *rows, int32_t key, bool nibbles)
{
    const __m512i offset = _mm512_set1_epi8((char)128);
    const int32_t head_dim = s->args->head_dim, last = s->count - 1;
    for (int32_t g = 0; g < 4; g++)
        for (int32_t chunk = 0; chunk < s->chunks; chunk++) {
            __m512i v[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                int32_t token = key + 4 * g + i;
                token = s->first + (token < last ? token : last);
                v[i] = _mm512_xor_si512(load_codes(rows, head_dim, token, chunk, nibbles), offset);
            }
            const __m512i low01 = _mm512_unpacklo_epi32(v[0], v[1]);
            const __m512i high01 = _mm512_unpackhi_epi32(v[0], v[1]);
            const __m512i low23 = _mm512_unpacklo_epi32(v[2], v[3]);
            const __m512i high23 = _mm512_unpackhi_epi32(v[2], v[3]);
            uint8_t *out = s->k_block + (g * s->chunks + chunk) * 4 * WIDE;
            /* vector k, lane L, dword i: dword 4 L + k of token i */
            _mm512_store_si512(out, _mm512_unpacklo_epi64(low01, low23));
            _mm512_store_si512(out + WIDE, _mm512_unpackhi_epi64(low01, low23));
            _mm512_store_si512(out + 2 * WIDE, _mm512_unpacklo_epi64(high01, high23));
            _mm512_store_si512(out + 3 * WIDE, _mm512_unpackhi_epi64(high01, high23));
        }
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

/* x [row .. row + rows)[key .. key + 16) = the bits of 1.5 * 2^23 + S. rows is a constant. */
INLINE void multiply_keys(decode_state *s, int32_t row, int rows, int32_t key)
{
    const int32_t vectors = s->chunks * 4;
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
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++)
                sum[r][g] =
                    _mm512_dpbusd_epi32(sum[r][g], keys[g], _mm512_load_si512(q + r * vectors + i));
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        __m512i total = sum_lanes(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
        total = _mm512_add_epi32(total, _mm512_set1_epi32(s->init[row + r]));
        _mm512_store_ps(s->x[row + r] + key, _mm512_castsi512_ps(total));
    }
}

/* Bits of the keys [key, key + 16) of the tile that a row sees. */
INLINE __mmask16 visible_keys(const decode_state *s, int32_t row, int32_t key)
{
    const int32_t lo = s->lo[row] - s->first - key, hi = s->hi[row] - s->first - key;
    const uint32_t from = lo > 0 ? (lo < 16 ? UINT32_C(0xffff) << lo : 0) : 0xffff;
    const uint32_t to = hi >= 16 ? 0xffff : hi > 0 ? (UINT32_C(1) << hi) - 1 : 0;
    return (__mmask16)(from & to);
}

/* Step 3 for one row; x in place. */
static void make_logits(decode_state *s, int32_t row)
{
    const __m512 a = _mm512_set1_ps(s->a[row]);
    const bool masked = s->lo[row] > s->first || s->hi[row] < s->first + DECODE_TILE;
    __m512 largest = _mm512_set1_ps(-INFINITY);
    for (int32_t j = s->from; j < s->to; j += 16) {
        __m512 x = _mm512_fmadd_ps(_mm512_load_ps(s->x[row] + j), _mm512_load_ps(s->k + j),
                                   _mm512_load_ps(s->k_magic + j));
        x = _mm512_fmadd_ps(x, a, _mm512_load_ps(s->u + j));
        if (masked) x = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), visible_keys(s, row, j), x);
        largest = _mm512_max_ps(largest, x);
        _mm512_store_ps(s->x[row] + j, x);
    }
    s->largest[row] = _mm512_reduce_max_ps(largest);
}

/* Step 6, the scalars of 16 rows from `row` on. */
static void update_rows(decode_state *s, int32_t row)
{
    const __m512 tile_m = _mm512_load_ps(s->largest + row), tile_e = _mm512_set1_ps(s->tile_e);
    const __m512 m = _mm512_load_ps(s->m + row), e = _mm512_load_ps(s->e + row);
    const __mmask16 seen = _mm512_cmp_ps_mask(tile_m, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ);
    const __m512 new_m = _mm512_max_ps(tile_m, m);
    const __m512 new_e = _mm512_mask_max_ps(e, seen, tile_e, e);
    __m512 z[2] = {_mm512_sub_ps(m, new_m), _mm512_sub_ps(tile_m, new_m)};
    exp2_of(z, 2, exp2_1);
    _mm512_store_ps(s->alpha + row, z[0]);
    _mm512_store_ps(s->beta + row, z[1]);
    _mm512_store_ps(s->alpha_o + row, _mm512_scalef_ps(z[0], _mm512_sub_ps(e, new_e)));
    /* A row that has seen no key has e = -1000: its factor for zeros must not be inf. */
    _mm512_store_ps(s->beta_o + row,
                    _mm512_maskz_scalef_ps(seen, z[1], _mm512_sub_ps(tile_e, new_e)));
    _mm512_store_ps(s->m + row, new_m);
    _mm512_store_ps(s->e + row, new_e);
}

/* Step 4 for one row: P in 4 blocks of 64 keys, dword 4 L + i of a block its keys 16 i + 4 L. */
static void make_weights(decode_state *s, int32_t row)
{
    const bool masked = s->lo[row] > s->first || s->hi[row] < s->first + DECODE_TILE;
    const __m512 largest = _mm512_set1_ps(s->largest[row]);
    __m512 sum = _mm512_setzero_ps();
    for (int32_t j = s->from / 128 * 128; j < s->to; j += 128) {
        __m512 e[8];
        __m512i p[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            e[i] = _mm512_sub_ps(_mm512_load_ps(s->x[row] + j + 16 * i), largest);
        exp2_of(e, 8, exp2_255);
        if (masked) {
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                e[i] = _mm512_maskz_mov_ps(visible_keys(s, row, j + 16 * i), e[i]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            p[i] = _mm512_cvtps_epi32(e[i]);
            sum = _mm512_fmadd_ps(e[i], _mm512_load_ps(s->r + j + 16 * i), sum);
        }
#pragma GCC unroll 2
        for (int i = 0; i < 8; i += 4)
            _mm512_store_si512(s->p[row] + j + 16 * i,
                               _mm512_packus_epi16(_mm512_packs_epi32(p[i], p[i + 1]),
                                                   _mm512_packs_epi32(p[i + 2], p[i + 3])));
    }
    const __m512 old = _mm512_mul_ps(_mm512_load_ps(s->l[row]), _mm512_set1_ps(s->alpha[row]));
    _mm512_store_ps(s->l[row], _mm512_fmadd_ps(sum, _mm512_set1_ps(s->beta[row]), old));
}

/* 64 channels of the tile's V to v_block: groups of 4 tokens, interleaved. */
INLINE void load_values(decode_state *s, const code_rows *rows, int32_t chunk, bool nibbles)
{
    const int32_t head_dim = s->args->head_dim, last = s->count - 1;
    for (int32_t key = s->from; key <= last && key < s->to; key += 4) {
        __m512i v[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            int32_t token = s->first + (key + i < last ? key + i : last);
            v[i] = load_codes(rows, head_dim, token, chunk, nibbles);
        }
        const __m512i low01 = _mm512_unpacklo_epi8(v[0], v[1]);
        const __m512i high01 = _mm512_unpackhi_epi8(v[0], v[1]);
        const __m512i low23 = _mm512_unpacklo_epi8(v[2], v[3]);
        const __m512i high23 = _mm512_unpackhi_epi8(v[2], v[3]);
        int8_t *out = s->v_block + key * WIDE;
        _mm512_store_si512(out, _mm512_unpacklo_epi16(low01, low23));
        _mm512_store_si512(out + WIDE, _mm512_unpackhi_epi16(low01, low23));
        _mm512_store_si512(out + 2 * WIDE, _mm512_unpacklo_epi16(high01, high23));
        _mm512_store_si512(out + 3 * WIDE, _mm512_unpackhi_epi16(high01, high23));
    }
}

/* Steps 5 and 6: O of some rows, 64 channels. rows is a constant. */
INLINE void multiply_values(decode_state *s, int32_t row, int rows, int32_t chunk)
{
    __m512i sum[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            sum[r][i] = _mm512_setzero_si512();
    const int32_t quads = ((s->to < s->count ? s->to : s->count) + 3) / 4;
    for (int32_t quad = s->from / 4; quad < quads; quad++) {
        const int8_t *v = s->v_block + quad * 4 * WIDE;
        const int32_t place = quad / 16 * 64 + quad % 4 * 16 + quad % 16 / 4 * 4;
        __m512i values[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            values[i] = _mm512_load_si512(v + i * WIDE);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            int32_t weights;
            memcpy(&weights, s->p[row + r] + place, sizeof weights);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                sum[r][i] = _mm512_dpbusd_epi32(sum[r][i], _mm512_set1_epi32(weights), values[i]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        float *o = s->o + ((row + r) * s->chunks + chunk) * WIDE;
        const __m512 alpha = _mm512_set1_ps(s->alpha_o[row + r]);
        const __m512 beta = _mm512_set1_ps(s->beta_o[row + r]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m512 old = _mm512_mul_ps(_mm512_load_ps(o + 16 * i), alpha);
            _mm512_store_ps(o + 16 * i, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][i]), beta, old));
        }
    }
}

/* One tile: steps 1 to 6 for all rows. */
INLINE void decode_tile(decode_state *s, const code_rows *k, const code_rows *v, bool nibbles)
{
    prepare_tile(s);
    for (int32_t key = s->from; key < s->count && key < s->to; key += 16) {
        load_keys(s, k, key, nibbles);
        int32_t row = 0;
        for (; s->rows - row >= 4; row += 4)
            multiply_keys(s, row, 4, key);
        for (; s->rows - row >= 2; row += 2)
            multiply_keys(s, row, 2, key);
        if (row < s->rows) multiply_keys(s, row, 1, key);
    }
    for (int32_t row = 0; row < s->rows; row++)
        make_logits(s, row);
    for (int32_t row = 0; row < s->rows; row += 16)
        update_rows(s, row);
    for (int32_t row = 0; row < s->rows; row++)
        make_weights(s, row);
    for (int32_t chunk = 0; chunk < s->chunks; chunk++) {
        load_values(s, v, chunk, nibbles);
        int32_t row = 0;
        for (; s->rows - row >= 4; row += 4)
            multiply_values(s, row, 4, chunk);
        for (; s->rows - row >= 2; row += 2)
            multiply_values(s, row, 2, chunk);
        if (row < s->rows) multiply_values(s, row, 1, chunk);
    }
}

/* Head and query of a row: rows of one head lie side by side. */
static const hr_kernel_args *args_of(const decode_state *s, int32_t row, int32_t *query)
{
    const int32_t queries = s->args->q_end - s->args->q_begin;
    *query = s->args->q_begin + row % queries;
    return s->args + row / queries;
}

/* Q of a row, spread as k_block is: vector k of a chunk, lane L: dword 4 L + k, four times. */
static void begin_row(decode_state *s, int32_t row)
{
    int32_t query, sum = 0;
    const hr_kernel_args *args = args_of(s, row, &query);
    const int8_t *codes = (const int8_t *)args->q.codes + (int64_t)query * args->head_dim;
    int8_t padded[HR_INTEGER_MAX_HEAD_DIM] = {0};
    memcpy(padded, codes, (size_t)args->head_dim);
    for (int32_t c = 0; c < args->head_dim; c++)
        sum += codes[c];
    int8_t *out = (int8_t *)(s->q + row * s->chunks * 4);
    for (int32_t vector = 0; vector < s->chunks * 4; vector++)
        for (int32_t dword = 0; dword < 16; dword++)
            memcpy(out + vector * 64 + dword * 4,
                   padded + vector / 4 * 64 + dword / 4 * 16 + vector % 4 * 4, 4);
    s->init[row] = (int32_t)hr_integer_bits(HR_INTEGER_MAGIC) - 128 * sum;
    s->factor[row] = hr_integer_row_factor(args, query);
}

static void finish_row(const decode_state *s, int32_t row)
{
    int32_t query;
    const hr_kernel_args *args = args_of(s, row, &query);
    double bias = args->lse_bias ? (double)args->lse_bias[query] * (double)args->softmax_scale : 0;
    const float factor = hr_integer_finish(args, query, s->m[row], s->l[row], bias);
    const float *o = s->o + row * s->chunks * WIDE;
    float *out = args->o + query * args->o_stride;
    for (int32_t c = 0; c < args->head_dim; c++) {
        const int32_t place = c / 64 * 64 + c % 16 / 4 * 16 + c % 64 / 16 * 4 + c % 4;
        out[c] = ldexpf(o[place] * factor, (int)s->e[row]);
    }
}

/* All tiles of a range. */
INLINE void decode_range(decode_state *s, const hr_kernel_range *range, const code_rows *k,
                         const code_rows *v, bool nibbles)
{
    for (int32_t row = 0; row < s->rows; row++) {
        int32_t query;
        const hr_kernel_args *args = args_of(s, row, &query);
        hr_kernel_row_range(args, range, query, &s->lo[row], &s->hi[row]);
    }
    s->first = range->begin / DECODE_TILE * DECODE_TILE;
    for (; s->first < range->end; s->first += DECODE_TILE) {
        const int32_t left = s->args->seqlen_kv - s->first, end = range->end - s->first;
        s->count = left < DECODE_TILE ? left : DECODE_TILE;
        s->from = range->begin > s->first ? (range->begin - s->first) / WIDE * WIDE : 0;
        s->to = end < DECODE_TILE ? (end + WIDE - 1) / WIDE * WIDE : DECODE_TILE;
        decode_tile(s, k, v, nibbles);
    }
}

/* The body of the decode kernels; `nibbles` is a constant. */
INLINE void integer_decode(const hr_kernel_args *args, bool nibbles)
{
    decode_state *s = args->scratch;
    s->args = args;
    s->rows = args->heads * (args->q_end - args->q_begin);
    s->chunks = (args->head_dim + WIDE - 1) / WIDE;
    assert(s->rows >= 1 && s->rows <= DECODE_ROWS);
    assert(args->head_dim % 8 == 0 && args->head_dim <= HR_INTEGER_MAX_HEAD_DIM);
    const int32_t rows = s->rows, padded = (rows + 15) / 16 * 16;
    s->q = (__m512i *)(s + 1);
    s->o = (float *)(s->q + DECODE_ROWS * s->chunks * 4);
    memset(s->o, 0, (size_t)(rows * s->chunks * WIDE) * sizeof *s->o);
    memset(s->l, 0, (size_t)rows * sizeof s->l[0]);
    for (int32_t row = 0; row < padded; row++) {
        s->m[row] = s->largest[row] = -INFINITY;
        s->e[row] = HR_INTEGER_NO_TILE;
    }
    for (int32_t row = 0; row < rows; row++)
        begin_row(s, row);

    const code_rows k = rows_of(args, &args->k, nibbles), v = rows_of(args, &args->v, nibbles);
    s->f = INT32_MIN; /* no tile's F */
    for (int32_t i = 0; i < args->range_count; i++) {
        hr_kernel_range range;
        if (hr_kernel_visit(args, i, &range)) decode_range(s, &range, &k, &v, nibbles);
    }
    for (int32_t row = 0; row < rows; row++)
        finish_row(s, row);
}

#endif
