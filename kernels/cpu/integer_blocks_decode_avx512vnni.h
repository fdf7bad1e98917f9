/*
 * The integer family for decode, on AVX-512 VNNI, for K and V in blocks of 16 keys:
 * integer_softmax.h restated for few rows, which are the queries of all heads that share a KV head.
 * A tile of 256 keys is
 *
 *     S       codes of K + 128, dpbusd with Q
 *     x, P    256 keys of one or two rows at a time, or four
 *     T, O    dpbusd of P with V
 *
 * where S, T and O are in integer_blocks_products_avx512vnni.h, and for nibbles in
 * integer_blocks_nibbles_avx512vnni.h; x and P in integer_decode_pair_softmax_avx512vnni.h and, for
 * the usual tile, integer_decode_direct_softmax_avx512vnni.h.
 *
 * Nothing is rearranged, so that up to eight rows the limit is memory.
 */
#ifndef HEADROOM_INTEGER_BLOCKS_DECODE_AVX512VNNI_H
#define HEADROOM_INTEGER_BLOCKS_DECODE_AVX512VNNI_H

#include <assert.h>

#include "integer_blocks_nibbles_avx512vnni.h"
#include "integer_decode_direct_softmax_avx512vnni.h"
#include "integer_decode_pair_softmax_avx512vnni.h"

static inline size_t integer_blocks_scratch(int32_t head_dim)
{
    return sizeof(blocks_state) + DECODE_ROWS * row_room(head_dim) * (1 + sizeof(float));
}

/* Step 3's logits of the rows [row, row + rows), of one set; rows is a constant. */
INLINE void make_pair_logits(decode_state *s, int32_t row, int rows, bool masked, __m512i *n)
{
    if (s->shaped)
        for (int32_t r = row; r < row + rows; r++)
            shape_row(s, r, n);
    else if (masked)
        pair_logits(s, NULL, NULL, row, rows, true, n);
    else
        pair_logits(s, NULL, NULL, row, rows, false, n);
}

/* Steps 3, 4 and 6 but O; precise is a constant. */
INLINE void update_rows(decode_state *s, bool precise)
{
    if (!precise && is_direct(s)) {
        direct_update(s);
        return;
    }
    const bool masked = !sees_all(s);
    __m512i n = _mm512_setzero_si512();
    for (int32_t row = 0; row < s->rows; row += 2) {
        if (s->rows - row == 1)
            make_pair_logits(s, row, 1, masked, &n);
        else
            make_pair_logits(s, row, 2, masked, &n);
        if (row + 2 >= s->rows || (row + 2) % 16 == 0) finish_logits(s, row / 16 * 16, n);
    }
    join_rows(s);
    for (int32_t row = 0; row < s->rows; row += 2)
        if (s->rows - row == 1)
            weigh_pair(s, NULL, NULL, row, 1, precise);
        else
            weigh_pair(s, NULL, NULL, row, 2, precise);
}

static __attribute__((noinline)) void update_block_rows(decode_state *s)
{
    update_rows(s, false);
}

static __attribute__((noinline)) void update_precise_rows(decode_state *s)
{
    update_rows(s, true);
}

/* Q of all rows, [sets][head_dim / 4][4 rows] dwords, and what their logits are made with. */
static void begin_block_rows(blocks_state *t)
{
    decode_state *s = &t->s;
    const int32_t head_dim = s->args->head_dim;
    for (int32_t row = 0; row < s->rows; row++) {
        int32_t query;
        const hr_kernel_args *args = args_of(s, row, &query);
        const int8_t *codes = (const int8_t *)args->q.codes + (int64_t)query * head_dim;
        int8_t *q = s->q + row / SET_ROWS * SET_ROWS * head_dim + row % SET_ROWS * 4;
        __m512i sum = _mm512_setzero_si512();
        for (int32_t c = 0; c < head_dim; c += PART) {
            const int32_t left = head_dim - c;
            const __mmask64 mask = left < PART ? (UINT64_C(1) << left) - 1 : ~UINT64_C(0);
            sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1),
                                      _mm512_maskz_loadu_epi8(mask, codes + c));
        }
        for (int32_t c = 0; c < head_dim; c += 4)
            memcpy(q + c * SET_ROWS, codes + c, 4);
        s->init[row] =
            (int32_t)hr_integer_bits(HR_INTEGER_MAGIC) - 128 * _mm512_reduce_add_epi32(sum);
        t->minus_sum[row] = -_mm512_reduce_add_epi32(sum);
        begin_row(s, row);
    }
}

/* Step 7 for all rows. */
static void finish_block_rows(decode_state *s)
{
    const int32_t head_dim = s->args->head_dim;
    for (int32_t row = 0; row < s->rows; row++) {
        int32_t query;
        const hr_kernel_args *args = args_of(s, row, &query);
        const double bias = args->softcap == 0 ? row_bias(args, query) : 0;
        const __m512 factor = _mm512_set1_ps(
            hr_integer_finish(args, query, s->m[row], sum_of_lanes(lanes_of_row(s, row)), bias));
        const __m512 e = _mm512_set1_ps(s->e[row]);
        const float *o = s->o + row * s->vectors * 16;
        float *out = args->o + query * args->o_stride;
        for (int32_t c = 0; c < head_dim; c += 16) {
            const __mmask16 mask = head_dim - c < 16 ? 0xff : 0xffff;
            const __m512 x = _mm512_mul_ps(_mm512_load_ps(o + c), factor);
            _mm512_mask_storeu_ps(out + c, mask, _mm512_scalef_ps(x, e));
        }
    }
}

/*
 * What the whole tile costs, and a step of each product, in quarters of a cycle: what the tile's
 * lines take to come from memory, or the products if these are longer.
 */
static int32_t blocks_cost(blocks_state *t)
{
    const decode_state *s = &t->s;
    const int32_t rest = PREPARE_COST + SOFTMAX_COST * s->rows;
    const int32_t lines = DECODE_TILE / BLOCK_KEYS * (int32_t)((t->k.bytes + t->v.bytes) / PART);
    const int32_t products = s->rows * (s->args->head_dim / 4) * DECODE_TILE / 16 * 2;
    const int32_t memory = lines * LINE_COST - rest;
    const int32_t each = memory > 2 * products ? memory / 2 : products;
    t->key_cost = each / (is_nibbles(&s->args->k) ? nibble_key_steps(s) : key_steps(s));
    t->value_cost = each / (is_nibbles(&s->args->v) ? nibble_value_steps(s) : value_steps(s));
    return 2 * each + rest;
}

/* Moves to the tile at s->first and plans the prefetching of the next. */
static void walk_blocks(blocks_state *t, int32_t cost)
{
    const decode_state *s = &t->s;
    if (t->found == s->first && s->count == DECODE_TILE) {
        t->tile = t->next;
    } else {
        t->tile = &t->place[0];
        find_blocks(&t->k, &t->v, s->first, s->count, t->tile);
    }
    const int32_t next = s->first + DECODE_TILE, left = s->args->seqlen_kv - next;
    t->next = &t->place[t->tile == &t->place[0]];
    t->found = next;
    /* Blocks in one piece go on after the sequence: with those of the next task, as a rule. */
    const int32_t count = !t->k.operand->pages || left > DECODE_TILE ? DECODE_TILE : left;
    if (count > 0)
        find_blocks(&t->k, &t->v, next, count, t->next);
    else
        *t->next = *t->tile;
    if (t->listed) {
        plan_blocks(&t->s.ahead, t->next, &t->k, &t->v, next, count, cost);
        return;
    }
    find_scales(t->next, t->k.operand, t->v.operand, next, s->args->seqlen_kv - 1, &t->ahead);
    t->cursor.tile = &t->ahead;
    t->cursor.bytes = t->k.bytes;
    enter_block(&t->cursor, 0);
}

/* One tile: steps 1 to 6 for all rows. */
INLINE void decode_block_tile(blocks_state *t, bool nibbles)
{
    const decode_state *s = &t->s;
    prepare_tile(&t->s, NULL, NULL);
    if (t->k_shifted) gather_zero_points(&s->args->k, s->first, s->count, t->s.k_zero);
    if (t->v_shifted) gather_zero_points(&s->args->v, s->first, s->count, t->s.v_zero);
    if (nibbles && is_nibbles(&s->args->k))
        score_nibble_blocks(t);
    else
        score_blocks(t);
    if (!nibbles && s->precise) {
        update_precise_rows(&t->s);
        add_precise_values(t);
        return;
    }
    update_block_rows(&t->s);
    if (nibbles && is_nibbles(&s->args->v))
        add_nibble_values(t);
    else
        add_block_values(t);
}

static code_blocks blocks_of(const hr_kernel_operand *operand, int32_t channels)
{
    const int64_t bytes = (int64_t)BLOCK_KEYS * channels / (is_nibbles(operand) ? 2 : 1);
    return (code_blocks){.operand = operand, .codes = operand->codes, .bytes = bytes};
}

/* The body of the kernels; nibbles is a constant: K or V may have 4 bits, and P is U8. */
INLINE void integer_blocks_decode(const hr_kernel_args *args, bool nibbles)
{
    blocks_state *t = args->scratch;
    decode_state *s = &t->s;
    const int32_t head_dim = args->head_dim;
    s->args = args;
    s->rows = args->heads * (args->q_end - args->q_begin);
    s->k_channels = head_dim;
    s->vectors = (head_dim + 15) / 16;
    s->precise = args->p_dtype == HR_DTYPE_I16;
    s->few = true;
    s->grouped = false;
    assert(s->rows >= 1 && s->rows <= DECODE_ROWS);
    assert(head_dim % 8 == 0 && head_dim <= HR_INTEGER_MAX_HEAD_DIM);
    assert(args->k.pages == args->v.pages && args->k.page_slots == args->v.page_slots);
    s->o = (float *)(t + 1);
    s->q = (int8_t *)(s->o + DECODE_ROWS * row_room(head_dim));
    t->k = blocks_of(&args->k, head_dim);
    t->v = blocks_of(&args->v, s->vectors * 16);
    t->k_shifted = args->k.dtype == HR_DTYPE_U4;
    t->v_shifted = args->v.dtype == HR_DTYPE_U4;
    if (is_nibbles(&args->k)) t->k_levels = nibble_table(args->k.dtype, 128);
    if (is_nibbles(&args->v)) t->v_levels = nibble_table(args->v.dtype, 0);
    t->found = -1;
    t->listed = !is_nibbles(&args->k) || !is_nibbles(&args->v);
    s->ahead.count = s->ahead.done = s->ahead.credit = s->ahead.share = 0;
    clear_rows(s);
    begin_block_rows(t);
    const int32_t cost = blocks_cost(t);
    for (int32_t i = 0; i < args->range_count; i++) {
        hr_kernel_range range;
        if (!hr_kernel_visit(args, i, &range)) continue;
        for (enter_range(s, &range); s->first < range.end; s->first += DECODE_TILE) {
            enter_tile(s, &range);
            walk_blocks(t, cost);
            decode_block_tile(t, nibbles);
        }
    }
    finish_block_rows(s);
}

#endif
