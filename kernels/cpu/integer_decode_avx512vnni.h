/*
 * The integer family for decode, on AVX-512 VNNI: integer_softmax.h restated for few rows, which
 * are the queries of all heads that share a KV head, and for K and V in rows, as a cache holds
 * them, in pages or not. A tile of 256 keys is read once, whatever the number of rows:
 *
 *     S       codes of K + 128, dpbusd with Q
 *     x, P    as in prefill, 256 keys at a time
 *     T, O    4 keys' values interleaved, dpbusd with P; O keeps that order of channels to the end
 *
 * One or two rows take K straight from where it lies, a sum of a key in each vector
 * (integer_decode_few_avx512vnni.h); more rows lie side by side in the vectors, and K's bytes are
 * broadcast to them (integer_decode_many_avx512vnni.h). The limit is memory; with eight rows and
 * 4-bit codes the two vector ports are the limit instead.
 */
#ifndef HEADROOM_INTEGER_DECODE_AVX512VNNI_H
#define HEADROOM_INTEGER_DECODE_AVX512VNNI_H

#include <assert.h>

#include "integer_decode_few_avx512vnni.h"
#include "integer_decode_many_avx512vnni.h"
#include "integer_decode_task_avx512vnni.h"

static inline size_t integer_decode_scratch(int32_t head_dim)
{
    return sizeof(decode_state) + DECODE_ROWS * row_room(head_dim) * (1 + sizeof(float));
}

/* What the whole tile costs; sets step_cost. */
static int32_t tile_cost(decode_state *s, int32_t parts)
{
    const int32_t sets = sets_of(s);
    const int32_t load = s->k_channels / 16 * LOAD_COST;
    const int32_t rest = PREPARE_COST + SOFTMAX_COST * (s->few ? s->rows : sets * SET_ROWS);
    if (!s->few) {
        const int32_t keys = DECODE_TILE / 4 * load +
                             DECODE_TILE / KEY_STEP * sets * s->k_channels / PART * 4 * SUMS_COST;
        const int32_t passes = s->precise ? 2 * sets : sets;
        return keys + DECODE_TILE / 4 * passes * s->vectors / 4 * SUMS_COST + rest;
    }
    const int32_t lines = DECODE_TILE * parts * LINE_COST;
    s->step_cost = (lines - rest) / FEW_STEPS > load ? (lines - rest) / FEW_STEPS : load;
    return FEW_STEPS * s->step_cost + rest;
}

/* Where Q's row has a channel; nibbles' even channels lie before the odd ones of their part. */
static int32_t place_in_row(const code_rows *k, bool nibbles, int32_t channel)
{
    if (!nibbles) return channel;
    const int32_t byte = channel / 2, odd = channel % 2;
    if (k->paired) return odd * PART / 2 + byte;
    return (byte / PART * 2 + odd) * PART + byte % PART;
}

/*
 * Q of the rows [first, end), in the order of K's codes. One or two rows: as it lies there, in each
 * half of a vector where rows are paired. More: 16 bytes of a set's rows side by side.
 */
static void begin_rows(decode_state *s, const code_rows *k, int32_t first, int32_t end,
                       bool nibbles)
{
    uint16_t place[HR_INTEGER_MAX_HEAD_DIM];
    const int32_t head_dim = s->args->head_dim;
    for (int32_t c = 0; c < head_dim; c++) {
        const int32_t at = place_in_row(k, nibbles, c);
        place[c] = (uint16_t)at;
        if (s->few && k->paired) place[c] = (uint16_t)(at / (PART / 2) * PART + at % (PART / 2));
        if (!s->few) place[c] = (uint16_t)(at / 16 * PART + at % 16);
    }
    for (int32_t row = first; row < end; row++) {
        int32_t query, sum = 0;
        const hr_kernel_args *args = args_of(s, row, &query);
        const int8_t *codes = (const int8_t *)args->q.codes + (int64_t)query * head_dim;
        const int32_t lane = row % SET_ROWS;
        int8_t *out = s->q + (row - lane) * s->k_channels + lane * 16;
        if (s->few) out = s->q + row * s->k_channels * (k->paired ? 2 : 1);
        for (int32_t c = 0; c < head_dim; c++)
            sum += codes[c];
        for (int32_t c = 0; c < head_dim; c++)
            out[place[c]] = codes[c];
        if (s->few && k->paired)
            for (int32_t c = 0; c < head_dim; c++)
                out[place[c] + PART / 2] = codes[c];
        s->init[row] = (int32_t)hr_integer_bits(HR_INTEGER_MAGIC) - 128 * sum;
        ((int32_t *)&s->start[row / SET_ROWS])[lane * 4] = s->init[row];
        begin_row(s, row);
    }
}

/* Where O's row has a channel. */
static int32_t place_in_output(const code_rows *v, bool nibbles, int32_t channel)
{
    const int32_t byte = nibbles ? channel / 2 : channel, odd = nibbles ? channel % 2 : 0;
    const int32_t four = byte % 16 / 4, lane = byte % PART / 16;
    if (v->paired) return four * 16 + odd * 8 + lane * 4 + byte % 4;
    const int32_t vector = (byte / PART * 4 + four) * (nibbles ? 2 : 1) + odd;
    return vector * 16 + lane * 4 + byte % 4;
}

/* Step 7 for all rows; place: where O's row has each channel. */
static void finish_rows(decode_state *s, const uint16_t *place)
{
    const int32_t head_dim = s->args->head_dim;
    for (int32_t row = 0; row < s->rows; row++) {
        int32_t query;
        const hr_kernel_args *args = args_of(s, row, &query);
        const double bias = args->softcap == 0 ? row_bias(args, query) : 0;
        const float factor =
            hr_integer_finish(args, query, s->m[row], sum_of_lanes(lanes_of_row(s, row)), bias);
        float *o = s->o + row * s->vectors * 16, *out = args->o + query * args->o_stride;
        for (int32_t i = 0; i < s->vectors * 16; i += 16)
            _mm512_store_ps(o + i, _mm512_scalef_ps(
                                       _mm512_mul_ps(_mm512_load_ps(o + i), _mm512_set1_ps(factor)),
                                       _mm512_set1_ps(s->e[row])));
        for (int32_t c = 0; c < head_dim; c++)
            out[c] = o[place[c]];
    }
}

/* Lets the compiler know how long rows of one kind of the two are. */
INLINE code_rows rows_of_length(const code_rows *rows, int32_t row_bytes, code_kind kind,
                                code_kind kinds)
{
    code_rows known = *rows;
    known.doubled = kind == CODES_BYTES && kinds != CODES_BYTES;
    known.paired = kind != CODES_BYTES && row_bytes == PART / 2;
    if (row_bytes == 0) return known;
    known.parts = (row_bytes + PART - 1) / PART;
    known.whole = row_bytes % PART == 0;
    known.row_bytes = (size_t)row_bytes;
    known.last = ~UINT64_C(0) >> (PART - 1 - (row_bytes - 1) % PART);
    return known;
}

/*
 * One tile: steps 1 to 6 for all rows. The products get copies of k and v that no call can have
 * changed, so that what is constant of them stays constant.
 */
INLINE void decode_tile(decode_state *s, const code_rows *k, const code_rows *v, code_kind kind,
                        int32_t k_bytes, int32_t v_bytes)
{
    const code_rows keys = rows_of_length(k, k_bytes, kind_of_k(kind), kind);
    const code_rows values = rows_of_length(v, v_bytes, kind_of_v(kind), kind);
    prepare_tile(s, k, v);
    if (kind == CODES_SHIFTED) {
        gather_zero_points(&s->args->k, s->first, s->count, s->k_zero);
        gather_zero_points(&s->args->v, s->first, s->count, s->v_zero);
    }
    if (!s->few) {
        score_many(s, &keys, &values, kind);
        update_softmax(s, k, v);
        value_many(s, &keys, &values, kind);
    } else if (s->rows == 1) {
        score_few(s, &keys, &values, 1, kind);
        softmax_of_one(s, k, v);
        value_few(s, &keys, &values, 1, kind);
    } else {
        score_few(s, &keys, &values, 2, kind);
        softmax_of_two(s, k, v);
        value_few(s, &keys, &values, 2, kind);
    }
}

/* All tiles of a range. */
INLINE void decode_range(decode_state *s, const hr_kernel_range *range, const code_rows *k,
                         const code_rows *v, code_kind kind, int32_t k_bytes, int32_t v_bytes)
{
    enter_range(s, range);
    for (; s->first < range->end; s->first += DECODE_TILE) {
        enter_tile(s, range);
        walk_to(&s->walk, s->args, k, v, s->first, s->count, tile_cost(s, k->parts + v->parts));
        decode_tile(s, k, v, kind, k_bytes, v_bytes);
    }
}

/* The body of the decode kernels; `kind` is a constant, and so are the bytes unless 0. */
INLINE void decode_rows(const hr_kernel_args *args, code_kind kind, int32_t k_bytes,
                        int32_t v_bytes)
{
    const bool k_nibbles = kind_of_k(kind) != CODES_BYTES,
               v_nibbles = kind_of_v(kind) != CODES_BYTES;
    const code_rows k_rows = integer_rows(args, &args->k, kind, 128);
    const code_rows v_rows = integer_rows(args, &args->v, kind, 0);
    const code_rows k = rows_of_length(&k_rows, k_bytes, kind_of_k(kind), kind);
    const code_rows v = rows_of_length(&v_rows, v_bytes, kind_of_v(kind), kind);
    decode_state *s = args->scratch;
    s->args = args;
    s->rows = args->heads * (args->q_end - args->q_begin);
    s->k_channels = channels_of(&k, kind_of_k(kind));
    s->vectors = channels_of(&v, kind_of_v(kind)) / 16;
    s->precise = args->p_dtype == HR_DTYPE_I16;
    s->few = s->rows <= 2 && !s->precise;
    assert(s->rows >= 1 && s->rows <= DECODE_ROWS);
    assert(args->head_dim % 8 == 0 && args->head_dim <= HR_INTEGER_MAX_HEAD_DIM);
    assert(args->k.pages == args->v.pages && args->k.page_slots == args->v.page_slots);
    const int32_t rows = s->rows, padded = (rows + 15) / 16 * 16;
    s->o = (float *)(s + 1);
    s->q = (int8_t *)(s->o + DECODE_ROWS * row_room(args->head_dim));
    memset(s->q, 0, (size_t)padded * row_room(args->head_dim));
    memset(s->start, 0, sizeof s->start);
    s->grouped = false;
    clear_rows(s);
    for (int32_t row = 0; row < rows; row += GROUP_ROWS)
        begin_rows(s, &k, row, rows - row < GROUP_ROWS ? rows : row + GROUP_ROWS, k_nibbles);

    for (int32_t i = 0; i < args->range_count; i++) {
        hr_kernel_range range;
        if (hr_kernel_visit(args, i, &range))
            decode_range(s, &range, &k, &v, kind, k_bytes, v_bytes);
    }
    uint16_t place[HR_INTEGER_MAX_HEAD_DIM];
    for (int32_t c = 0; c < args->head_dim; c++)
        place[c] = (uint16_t)place_in_output(&v, v_nibbles, c);
    finish_rows(s, place);
}

/* Rows of a half, one and two cache lines are compiled on their own. */
INLINE void integer_decode(const hr_kernel_args *args, code_kind kind)
{
    const bool same = kind_of_k(kind) == kind_of_v(kind);
    const int32_t k_bytes = args->head_dim / (kind_of_k(kind) == CODES_BYTES ? 1 : 2);
    if (same && k_bytes == PART / 2)
        decode_rows(args, kind, PART / 2, PART / 2);
    else if (same && k_bytes == PART)
        decode_rows(args, kind, PART, PART);
    else if (same && k_bytes == 2 * PART)
        decode_rows(args, kind, 2 * PART, 2 * PART);
    else if (kind == CODES_BYTES_NIBBLES && k_bytes == PART)
        decode_rows(args, kind, PART, PART / 2);
    else if (kind == CODES_BYTES_NIBBLES && k_bytes == 2 * PART)
        decode_rows(args, kind, 2 * PART, PART);
    else if (kind == CODES_NIBBLES_BYTES && k_bytes == PART / 2)
        decode_rows(args, kind, PART / 2, PART);
    else if (kind == CODES_NIBBLES_BYTES && k_bytes == PART)
        decode_rows(args, kind, PART, 2 * PART);
    else
        decode_rows(args, kind, 0, 0);
}

#endif
