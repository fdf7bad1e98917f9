/*
 * The integer family for decode, on AVX-512 VNNI: integer_softmax.h restated for few rows, which
 * are the queries of all heads that share a KV head, and for K and V in rows, as a cache holds
 * them, in pages or not. A tile of 256 keys is read once, whatever the number of rows:
 *
 *     S       4 keys rearranged (integer_decode_load_avx512vnni.h), dpbusd with Q, whose dwords
 *             lie in the same order; lanes are summed once for 16 keys
 *     x, P    as in prefill, 256 keys at a time
 *     T, O    4 keys' values rearranged, dpbusd with P; O keeps that order of channels to the end
 *
 * One or two rows take K as it lies, a sum of a key in each vector, and V straight from the
 * registers it was rearranged in; for more rows both go through the first-level cache. The limit is
 * memory; with eight rows and 4-bit codes the two vector ports are the limit instead.
 */
#ifndef HEADROOM_INTEGER_DECODE_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_AVX512VNNI_H

#include <assert.h>

#include "integer_decode_products_avx512vnni.h"

static inline size_t integer_decode_scratch(int32_t head_dim)
{
    const size_t vectors = ((size_t)head_dim + 127) / 128 * 8; /* no kind of codes fills more */
    return sizeof(decode_state) + DECODE_ROWS * vectors * 4 * sizeof(__m512i);
}

/* What the whole tile costs; sets step_cost. */
static int32_t tile_cost(decode_state *s, int32_t parts)
{
    const int32_t load = s->vectors * LOAD_COST;
    const int32_t rest = PREPARE_COST + SOFTMAX_COST * s->rows;
    if (!s->few) return FEW_STEPS * (load + s->vectors * MULTIPLY_COST * s->rows) + rest;
    const int32_t lines = DECODE_TILE * parts * LINE_COST;
    s->step_cost = (lines - rest) / FEW_STEPS > load ? (lines - rest) / FEW_STEPS : load;
    return FEW_STEPS * s->step_cost + rest;
}

/* Step 1, and a of step 2. */
static void prepare_tile(decode_state *s, const code_rows *k, const code_rows *v)
{
    prefetch_share(&s->walk.ahead, k, v, PREPARE_COST / 2);
    const hr_kernel_operand *k_rows = &s->args->k, *v_rows = &s->args->v;
    const int32_t head_dim = s->args->head_dim, f = s->exponents.f;
    const float k_max = gather_scales(k_rows, head_dim, s->first, s->count, s->k_scale);
    prefetch_share(&s->walk.ahead, k, v, PREPARE_COST / 2);
    const float v_max = gather_scales(v_rows, head_dim, s->first, s->count, s->v_scale);
    s->exponents = scale_columns(s->k_scale, k_max, s->v_scale, v_max, s->count, s->columns);
    if (f == s->exponents.f) return;
    const double octave = s->args->softcap == 0 ? HR_INTEGER_OCTAVE : 1;
    const double unit = ldexp(octave, s->exponents.f);
    for (int32_t row = 0; row < s->rows; row++)
        s->a[row] = hr_integer_tile_factor(s->factor[row], unit);
}

/* Bits of the keys [key, key + 16) of the tile that a row sees. */
INLINE __mmask16 visible_keys(const decode_state *s, int32_t row, int32_t key)
{
    const int32_t lo = s->lo[row] - s->first - key, hi = s->hi[row] - s->first - key;
    const uint32_t from = lo > 0 ? (lo < 16 ? UINT32_C(0xffff) << lo : 0) : 0xffff;
    const uint32_t to = hi >= 16 ? 0xffff : hi > 0 ? (UINT32_C(1) << hi) - 1 : 0;
    return (__mmask16)(from & to);
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
    __m512 y = _mm512_fmadd_ps(_mm512_load_ps(s->x[row] + key), _mm512_load_ps(c->k + at),
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
        _mm512_store_si512(s->y[row] + j,
                           round_logits(s, row, j, a, _mm512_set1_ps(n), masked, s->shaped));
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

/* True when each row sees the whole tile. */
static bool sees_all(const decode_state *s)
{
    bool all = s->from == 0 && s->to == DECODE_TILE;
    for (int32_t row = 0; row < s->rows; row++)
        all = all && s->lo[row] <= s->first && s->hi[row] >= s->first + DECODE_TILE;
    return all;
}

/*
 * Step 3 but N for some rows, side by side because each is a chain: their least Y to n[row % 16].
 * rows and masked are constants.
 */
INLINE void make_logits(decode_state *s, const code_rows *k, const code_rows *v, int32_t row,
                        int rows, bool masked, bool shaped, __m512i *n)
{
    const uint32_t from = masked ? (uint32_t)s->from : 0;
    const uint32_t to = masked ? (uint32_t)s->to : DECODE_TILE;
    __m512i least[4];
    __m512 a[4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        least[r] = _mm512_set1_epi16(-1);
        a[r] = _mm512_set1_ps(s->a[row + r]);
    }
    for (uint32_t j = from; j < to; j += 32) {
        prefetch_share(&s->walk.ahead, k, v, SOFTMAX_COST / 16 * rows);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            __m512i y = round_logits(s, row + r, j, a[r], _mm512_setzero_ps(), masked, shaped);
            least[r] = _mm512_min_epu16(least[r], y);
            _mm512_store_si512(s->y[row + r] + j, y);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        *n = _mm512_mask_broadcastd_epi32(*n, (__mmask16)(1 << ((row + r) % 16)),
                                          least_word(least[r]));
}

/* The same for a row whose logits are capped or have ALiBi: out of line of the usual path. */
static __attribute__((noinline)) void
make_shaped_logits(decode_state *s, const code_rows *k, const code_rows *v, int32_t row, __m512i *n)
{
    make_logits(s, k, v, row, 1, true, true, n);
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

/*
 * Step 4 for some rows: P in 4 blocks of 64 keys, dword 4 L + i of a block its keys 16 i + 4 L.
 * Keys that are not seen are 65535 in y and have no weight. All but s and row are constants.
 */
INLINE void make_row_weights(decode_state *s, const code_rows *k, const code_rows *v, int32_t row,
                             int rows, bool wide, bool half)
{
    const weight_constants c = load_weight_constants();
    __m512i sum[4], rest[4], top[4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        top[r] = _mm512_set1_epi16((int16_t)(HR_INTEGER_TOP + s->least[row + r]));
        sum[r] = rest[r] = _mm512_setzero_si512();
    }
    for (uint32_t j = (uint32_t)s->from; j < (uint32_t)s->to; j += 64) {
        const tile_columns *columns = &s->columns[j / HR_MICRO_COLUMNS];
        __m512i e[8];
        prefetch_share(&s->walk.ahead, k, v, SOFTMAX_COST / 8 * rows);
#pragma GCC unroll 8
        for (int i = 0; i < 2 * rows; i++)
            e[i] = _mm512_subs_epu16(
                top[i / 2], _mm512_load_si512(s->y[row + i / 2] + j + (uint32_t)i % 2 * 32));
        weights_of(e, 2 * rows, &c, half);
#pragma GCC unroll 8
        for (int i = 0; i < 2 * rows; i++) {
            const int at = i % 2 * 32;
            add_weights(&sum[i / 2], e[i], _mm512_load_si512(columns->sum + at));
            if (wide) add_weights(&rest[i / 2], e[i], _mm512_load_si512(columns->rest + at));
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            if (!s->precise) {
                _mm512_store_si512(s->p[row + r] + j, pack_weights(e[2 * r], e[2 * r + 1], &c));
                continue;
            }
            __m512i p[2];
            pack_precise_weights(e[2 * r], e[2 * r + 1], p);
            _mm512_store_si512(s->p[row + r] + j, p[0]);
            _mm512_store_si512(s->p[s->rows + row + r] + j, p[1]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        __m512 total = wide ? join_sums(sum[r], rest[r]) : _mm512_cvtepi32_ps(sum[r]);
        __m512 factor = _mm512_set1_ps(s->beta[row + r]);
        if (!s->exponents.even && !wide && s->largest[row + r] > -INFINITY)
            total = sum_uneven_row(s, row + r, &factor);
        const __m512 old =
            _mm512_mul_ps(_mm512_load_ps(s->l[row + r]), _mm512_set1_ps(s->alpha[row + r]));
        _mm512_store_ps(s->l[row + r], _mm512_fmadd_ps(total, factor, old));
    }
}

INLINE void make_weights(decode_state *s, const code_rows *k, const code_rows *v, int32_t row,
                         int rows)
{
    if (!s->half)
        make_row_weights(s, k, v, row, rows, s->exponents.wide, false);
    else if (s->exponents.wide)
        make_row_weights(s, k, v, row, rows, true, true);
    else
        make_row_weights(s, k, v, row, rows, false, true);
}

/* Step 6 for O. */
static void add_outputs(decode_state *s)
{
    for (int32_t row = 0; row < s->rows; row++) {
        const __m512 alpha = _mm512_set1_ps(s->alpha_o[row]);
        const __m512 beta = _mm512_set1_ps(s->beta_o[row]);
        const __m512i *t = s->t + row * s->vectors;
        float *o = s->o + row * s->vectors * 16;
        for (int32_t i = 0; i < s->vectors; i++) {
            __m512i total = _mm512_load_si512(t + i);
            if (s->precise)
                total = _mm512_add_epi32(_mm512_slli_epi32(total, 7),
                                         _mm512_load_si512(t + s->rows * s->vectors + i));
            const __m512 sum = _mm512_cvtepi32_ps(total);
            const __m512 old = _mm512_mul_ps(_mm512_load_ps(o + 16 * i), alpha);
            _mm512_store_ps(o + 16 * i, _mm512_fmadd_ps(sum, beta, old));
        }
    }
}

/* Steps 3, 4 and 6 but O. */
static void update_softmax(decode_state *s, const code_rows *k, const code_rows *v)
{
    const bool masked = !sees_all(s);
    __m512i n = _mm512_setzero_si512();
    for (int32_t row = 0, rows; row < s->rows; row += rows) {
        rows = s->rows - row >= 4 ? 4 : 1;
        if (s->shaped)
            for (int32_t r = row; r < row + rows; r++)
                make_shaped_logits(s, k, v, r, &n);
        else if (masked)
            for (int32_t r = row; r < row + rows; r++)
                make_logits(s, k, v, r, 1, true, false, &n);
        else if (rows == 4)
            make_logits(s, k, v, row, 4, false, false, &n);
        else
            make_logits(s, k, v, row, 1, false, false, &n);
        if (row + rows == s->rows || (row + rows) % 16 == 0)
            finish_logits(s, (row + rows - 1) / 16 * 16, n);
    }
    for (int32_t row = 0; row < s->rows; row += 16)
        join_tile(&s->exponents, _mm512_load_ps(s->largest + row),
                  (row_scalars){s->m + row, s->e + row, s->alpha + row, s->beta + row,
                                s->alpha_o + row, s->beta_o + row});
    for (int32_t row = 0, rows; row < s->rows; row += rows) {
        rows = s->rows - row >= 4 ? 4 : 1;
        if (rows == 4)
            make_weights(s, k, v, row, 4);
        else
            make_weights(s, k, v, row, 1);
    }
}

/* One tile for one or two rows. rows is a constant. */
INLINE void decode_few(decode_state *s, const code_rows *k, const code_rows *v, int rows,
                       code_kind kind)
{
    for (int32_t key = s->from; key < s->end; key += KEY_STEP)
        score_keys(s, k, v, rows, key, kind);
    update_softmax(s, k, v);
    int32_t part = 0;
    for (; kind_of_v(kind) == CODES_BYTES && part + 2 <= v->parts; part += 2)
        sum_values(s, k, v, rows, part, 2, kind);
    for (; part < v->parts; part++)
        sum_values(s, k, v, rows, part, 1, kind);
}

/* One tile for any number of rows. */
INLINE void decode_many(decode_state *s, const code_rows *k, const code_rows *v, code_kind kind)
{
    const int32_t vectors = s->vectors, value_rows = s->precise ? 2 * s->rows : s->rows;
    for (int32_t key = s->from; key < s->end; key += KEY_STEP) {
        load_keys(s, k, v, key, kind);
        for (int32_t row = 0, rows; row < s->rows; row += rows) {
            rows = s->rows - row >= 4 ? 4 : s->rows - row >= 2 ? 2 : 1;
            prefetch_share(&s->walk.ahead, k, v, KEY_STEP / 4 * vectors * MULTIPLY_COST * rows);
            if (rows == 4)
                multiply_keys(s, row, 4, key);
            else if (rows == 2)
                multiply_keys(s, row, 2, key);
            else
                multiply_keys(s, row, 1, key);
        }
    }
    update_softmax(s, k, v);
    for (int32_t key = s->from; key < s->end; key += VALUE_STEP) {
        const int32_t left = (s->end - key + 3) / 4;
        const int32_t quads = left < VALUE_STEP / 4 ? left : VALUE_STEP / 4;
        load_values(s, k, v, key, quads, kind);
        for (int32_t vector = 0; vector < vectors; vector += 4)
            for (int32_t row = 0, rows; row < value_rows; row += rows) {
                rows = value_rows - row >= 4 ? 4 : value_rows - row >= 2 ? 2 : 1;
                prefetch_share(&s->walk.ahead, k, v, quads * 4 * MULTIPLY_COST * rows);
                if (rows == 4)
                    multiply_values(s, row, 4, vector, key, quads);
                else if (rows == 2)
                    multiply_values(s, row, 2, vector, key, quads);
                else
                    multiply_values(s, row, 1, vector, key, quads);
            }
    }
}

/* One tile: steps 1 to 6 for all rows. */
INLINE void decode_tile(decode_state *s, const code_rows *k, const code_rows *v, code_kind kind)
{
    prepare_tile(s, k, v);
    if (kind == CODES_SHIFTED) {
        gather_zero_points(&s->args->k, s->first, s->count, s->k_zero);
        gather_zero_points(&s->args->v, s->first, s->count, s->v_zero);
    }
    if (s->few && s->rows == 1)
        decode_few(s, k, v, 1, kind);
    else if (s->few)
        decode_few(s, k, v, 2, kind);
    else
        decode_many(s, k, v, kind);
    add_outputs(s);
}

/* Head and query of a row: rows of one head lie side by side. */
static const hr_kernel_args *args_of(const decode_state *s, int32_t row, int32_t *query)
{
    const int32_t queries = s->args->q_end - s->args->q_begin;
    *query = s->args->q_begin + row % queries;
    return s->args + row / queries;
}

/* What smoothing took from a row's logits. */
static double row_bias(const hr_kernel_args *args, int32_t query)
{
    return args->lse_bias ? (double)args->lse_bias[query] * (double)args->softmax_scale : 0;
}

/*
 * Q of a row, spread as a K block is: vector k of a part, lane L: dword 4 L + k, four times. One or
 * two rows have it as the codes lie in a row of K, low nibbles' channels and then high ones'.
 */
static void begin_row(decode_state *s, int32_t row, bool nibbles)
{
    int32_t query, sum = 0;
    const hr_kernel_args *args = args_of(s, row, &query);
    const int8_t *codes = (const int8_t *)args->q.codes + (int64_t)query * args->head_dim;
    int8_t *out = (int8_t *)(s->q + row * s->vectors);
    memset(out, 0, (size_t)s->vectors * sizeof(__m512i));
    for (int32_t c = 0; c < args->head_dim; c++) {
        const int32_t byte = nibbles ? c / 2 : c, half = nibbles ? c % 2 : 0;
        const int32_t k = byte / PART * 4 + byte % 16 / 4, lane = byte % PART / 16;
        sum += codes[c];
        if (s->few) {
            out[(byte / PART * (nibbles ? 2 : 1) + half) * PART + byte % PART] = codes[c];
            continue;
        }
        int8_t *place = out + ((nibbles ? 2 * k + half : k) * 4 + lane) * 16 + byte % 4;
        place[0] = place[4] = place[8] = place[12] = codes[c];
    }
    s->init[row] = (int32_t)hr_integer_bits(HR_INTEGER_MAGIC) - 128 * sum;
    s->factor[row] = hr_integer_row_factor(args, query);
    s->bias[row] = (float)row_bias(args, query);
    s->slope[row] = (float)((double)args->alibi_slope * HR_INTEGER_LOG2E) * HR_INTEGER_OCTAVE;
    s->diagonal[row] = (int64_t)query + args->shift;
    s->shaped |= args->softcap != 0 || s->slope[row] != 0;
}

static void finish_row(const decode_state *s, int32_t row, bool nibbles)
{
    int32_t query;
    const hr_kernel_args *args = args_of(s, row, &query);
    const double bias = args->softcap == 0 ? row_bias(args, query) : 0;
    const float factor =
        hr_integer_finish(args, query, s->m[row], sum_of_lanes(_mm512_load_ps(s->l[row])), bias);
    const float *o = s->o + row * s->vectors * 16;
    float *out = args->o + query * args->o_stride;
    for (int32_t c = 0; c < args->head_dim; c++) {
        const int32_t byte = nibbles ? c / 2 : c, half = nibbles ? c % 2 : 0;
        const int32_t k = byte / PART * 4 + byte % 16 / 4;
        const int32_t dword = byte % PART / 16 * 4 + byte % 4;
        out[c] = ldexpf(o[(nibbles ? 2 * k + half : k) * 16 + dword] * factor, (int)s->e[row]);
    }
}

/* All tiles of a range. */
INLINE void decode_range(decode_state *s, const hr_kernel_range *range, const code_rows *k,
                         const code_rows *v, code_kind kind)
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
        s->from = range->begin > s->first ? (range->begin - s->first) / 64 * 64 : 0;
        s->to = end < DECODE_TILE ? (end + 63) / 64 * 64 : DECODE_TILE;
        s->end = s->count < s->to ? s->count : s->to;
        walk_to(&s->walk, s->args, k->doubled ? v : k, s->first, s->count,
                tile_cost(s, k->parts + v->parts));
        decode_tile(s, k, v, kind);
    }
}

/* Lets the compiler know how long rows are. */
INLINE void set_row_bytes(code_rows *rows, int32_t row_bytes)
{
    rows->parts = rows->filled = (row_bytes + PART - 1) / PART;
    rows->whole = row_bytes % PART == 0;
    rows->row_bytes = (size_t)row_bytes;
    rows->last = ~UINT64_C(0) >> (PART - 1 - (row_bytes - 1) % PART);
}

/* The body of the decode kernels; `kind` is a constant, and so are the bytes unless 0. */
INLINE void decode_rows(const hr_kernel_args *args, code_kind kind, int32_t k_bytes,
                        int32_t v_bytes)
{
    const bool k_nibbles = kind_of_k(kind) != CODES_BYTES,
               v_nibbles = kind_of_v(kind) != CODES_BYTES;
    code_rows k = integer_rows(args, &args->k, kind, 128),
              v = integer_rows(args, &args->v, kind, 0);
    if (k_bytes) set_row_bytes(&k, k_bytes);
    if (v_bytes) set_row_bytes(&v, v_bytes);
    decode_state *s = args->scratch;
    s->args = args;
    s->rows = args->heads * (args->q_end - args->q_begin);
    s->vectors = vectors_of(&k, kind_of_k(kind));
    assert(s->vectors == vectors_of(&v, kind_of_v(kind)));
    s->precise = args->p_dtype == HR_DTYPE_I16;
    s->few = s->rows <= 2 && !s->precise;
    assert(s->rows >= 1 && s->rows <= DECODE_ROWS);
    assert(args->head_dim % 8 == 0 && args->head_dim <= HR_INTEGER_MAX_HEAD_DIM);
    assert(args->k.pages == args->v.pages && args->k.page_slots == args->v.page_slots);
    const int32_t rows = s->rows, padded = (rows + 15) / 16 * 16;
    s->q = (__m512i *)(s + 1);
    s->t = s->q + DECODE_ROWS * s->vectors;
    s->o = (float *)(s->t + 2 * DECODE_ROWS * s->vectors);
    memset(s->o, 0, (size_t)(rows * s->vectors) * sizeof(__m512i));
    memset(s->l, 0, (size_t)rows * sizeof s->l[0]);
    for (int32_t row = 0; row < padded; row++) {
        s->m[row] = s->largest[row] = -INFINITY;
        s->e[row] = HR_INTEGER_NO_TILE;
    }
    s->shaped = false;
    s->cap = hr_integer_cap_of(args->softcap);
    for (int32_t row = 0; row < rows; row++)
        begin_row(s, row, k_nibbles);

    s->walk.found = -1;
    s->exponents.f = INT32_MIN; /* no tile's F */
    for (int32_t i = 0; i < args->range_count; i++) {
        hr_kernel_range range;
        if (hr_kernel_visit(args, i, &range)) decode_range(s, &range, &k, &v, kind);
    }
    for (int32_t row = 0; row < rows; row++)
        finish_row(s, row, v_nibbles);
}

/* Rows of a half, one and two cache lines are compiled on their own. */
INLINE void integer_decode(const hr_kernel_args *args, code_kind kind)
{
    const bool same = kind_of_k(kind) == kind_of_v(kind);
    const int32_t row_bytes = args->head_dim / (kind_of_k(kind) == CODES_BYTES ? 1 : 2);
    if (same && row_bytes == PART / 2)
        decode_rows(args, kind, PART / 2, PART / 2);
    else if (same && row_bytes == PART)
        decode_rows(args, kind, PART, PART);
    else if (same && row_bytes == 2 * PART)
        decode_rows(args, kind, 2 * PART, 2 * PART);
    else if (kind == CODES_BYTES_NIBBLES && row_bytes == 2 * PART)
        decode_rows(args, kind, 2 * PART, PART);
    else if (kind == CODES_NIBBLES_BYTES && row_bytes == PART)
        decode_rows(args, kind, PART, 2 * PART);
    else
        decode_rows(args, kind, 0, 0);
}

#endif
