/*
 * FP8 decode on AVX512-FP16 with K and V in blocks of 16 tokens. For each tile of 256 keys:
 *
 *     S[row][key]    half_blocks_avx512fp16.h: 16 products to a sum at head_dim 128, 8 sums added
 *                    up. Q is kept at 2^-2, K at 2^-8: the sum stays below 448 * 2^-2 * 1.75 * 256
 *     x, M, P, l     the softmax in FP32; P relative to the tile's maximum, at most 224, in FP16,
 *                    which holds more than E4M3
 *     T[row][...]    two halves, of 128 keys: below 224 * 1.75 * 128 = 50176; O = alpha O + beta T
 *                    in FP32
 *
 * tests/check_bound_half_decode.h has what that costs. NaN among the codes of a tile, which become
 * numbers, are handled key by key. The limit is memory for up to 4 rows, the vector ports for 8.
 */
#include <string.h>

#include "e4m3_decode_avx512.h"

#define PRODUCT_SCALE 0x1p10f
#define VALUE_SCALE E4M3_SCALE
#define QUERY_SCALE 0x1p6f16 /* times 2^-8 of half_of: 2^-2 */

enum { PEAK_WEIGHT = 224 };

#include "float_decode_task_avx512.h"
#include "half_blocks_avx512fp16.h"
#include "kernel_rows.h"

typedef struct blocks_decode {
    half_products products;
    float_task task;
    tile_blocks place[2];
    int64_t found;                          /* first key of the tile that `next` is; -1: none */
    size_t k_bytes, v_bytes;                /* of a block */
    ALIGNED float x[DECODE_ROWS][X_STRIDE]; /* logits that are more than S scaled */
    ALIGNED float o[DECODE_ROWS][2 * MAX_CHANNELS]; /* as T */
} blocks_decode;

static const ALIGNED uint8_t no_block[BLOCK_KEYS * MAX_CHANNELS];

/*
 * Where the blocks of K or V of a tile lie. Past the sequence there are none; `ahead` lets those of
 * a sequence in one piece go on, with the next task's as a rule, to be prefetched.
 */
static void find_blocks_of(const hr_kernel_operand *operand, size_t block_bytes, int32_t first,
                           int32_t seqlen_kv, bool ahead, const uint8_t *blocks[TILE_BLOCKS])
{
    const uint8_t *codes = operand->codes;
    for (int32_t i = 0; i < TILE_BLOCKS; i++) {
        const int32_t key = first + i * BLOCK_KEYS;
        const bool there = key < seqlen_kv || (ahead && !operand->pages);
        blocks[i] = there ? codes + (size_t)hr_kernel_slot(operand, key) / BLOCK_KEYS * block_bytes
                          : no_block;
    }
}

static void find_tile(blocks_decode *s, int32_t first, bool ahead, tile_blocks *tile)
{
    const hr_kernel_args *args = s->task.args;
    find_blocks_of(&args->k, s->k_bytes, first, args->seqlen_kv, ahead, tile->k);
    find_blocks_of(&args->v, s->v_bytes, first, args->seqlen_kv, ahead, tile->v);
}

static int32_t tile_cost(const blocks_decode *s)
{
    const int32_t rows = s->task.rows < GROUP_ROWS ? s->task.rows : GROUP_ROWS;
    return 2 * TILE_BLOCKS * s->products.vectors * 4 * (LINE_COST + ROW_COST * rows) +
           SOFTMAX_COST * s->task.rows;
}

/* Moves to the tile at task.first, and plans the prefetching of the next. */
static void walk_blocks(blocks_decode *s)
{
    half_products *products = &s->products;
    const int32_t first = s->task.first;
    tile_blocks *tile = &s->place[s->found == first && products->ahead.next == &s->place[1]];
    if (s->found != first || s->task.count < DECODE_TILE) find_tile(s, first, false, tile);
    products->tile = tile;
    tile_blocks *next = &s->place[tile == &s->place[0]];
    find_tile(s, first + DECODE_TILE, true, next);
    s->found = first + DECODE_TILE;
    const int32_t turns = (int32_t)((s->v_bytes + TURN_BYTES - 1) / TURN_BYTES);
    products->ahead =
        (block_prefetcher){.next = next,
                           .turns = turns,
                           .share = (TILE_BLOCKS / PLACES * turns + 1) * 4096 / tile_cost(s) + 1};
}

/* Rows that are multiplied together with `row`: the last group is filled up with zeros. */
static int32_t group_of(int32_t rows, int32_t row)
{
    const int32_t left = rows - row;
    return left > 4 ? 8 : left > 2 ? 4 : left;
}

DECODE_INLINE void score_tile(blocks_decode *s, int32_t head_dim)
{
    half_products *p = &s->products;
    const int32_t from = s->task.from / BLOCK_KEYS, end = (s->task.end + 63) / 64 * STEP_BLOCKS;
    for (int32_t row = 0, rows; row < s->task.rows; row += rows) {
        rows = group_of(s->task.rows, row);
        for (int32_t block = from; block < end; block += rows == 8 ? 2 : 4)
            if (rows == 8 && row == 0)
                score_blocks(p, 8, 2, head_dim, true, row, block);
            else if (rows == 8)
                score_blocks(p, 8, 2, head_dim, false, row, block);
            else if (rows == 4)
                score_blocks(p, 4, 4, head_dim, true, row, block);
            else if (rows == 2)
                score_blocks(p, 2, 4, head_dim, true, row, block);
            else
                score_blocks(p, 1, 4, head_dim, true, row, block);
    }
}

/* T of some rows and vectors for a step; rows and vectors are constants. */
DECODE_INLINE void sum_step(blocks_decode *s, int rows, int vectors, int32_t row, int32_t vector,
                            int32_t block)
{
    const bool begin = block == s->task.from / BLOCK_KEYS;
    if (rows == 8 && row > 0)
        sum_blocks(&s->products, rows, vectors, false, begin, row, vector, block);
    else
        sum_blocks(&s->products, rows, vectors, true, begin, row, vector, block);
}

/* T of some rows for a step, `vectors` at a time, which is a constant as rows is. */
DECODE_INLINE void sum_rows(blocks_decode *s, int rows, int vectors, int32_t row, int32_t block)
{
    const int32_t all = s->products.vectors;
    int32_t vector = 0;
    for (; vector + vectors <= all; vector += vectors)
        sum_step(s, rows, vectors, row, vector, block);
    if (vectors > 4 && vector + 4 <= all) {
        sum_step(s, rows, 4, row, vector, block);
        vector += 4;
    }
    if (vectors > 2 && vector + 2 <= all) {
        sum_step(s, rows, 2, row, vector, block);
        vector += 2;
    }
    if (vector < all) sum_step(s, rows, 1, row, vector, block);
}

static void sum_tile(blocks_decode *s)
{
    for (int32_t key = s->task.from; key < s->task.end; key += STEP_KEYS)
        for (int32_t row = 0, rows; row < s->task.rows; row += rows) {
            rows = group_of(s->task.rows, row);
            const int32_t block = key / BLOCK_KEYS;
            if (rows == 8)
                sum_rows(s, 8, 2, row, block);
            else if (rows == 4)
                sum_rows(s, 4, 4, row, block);
            else if (rows == 2)
                sum_rows(s, 2, 8, row, block);
            else
                sum_rows(s, 1, 8, row, block);
        }
}

static uint32_t key_code(const blocks_decode *s, int32_t key, int32_t channel)
{
    const uint8_t *block = s->products.tile->k[key / BLOCK_KEYS];
    return block[channel / 4 * LINE + key % BLOCK_KEYS * 4 + channel % 4];
}

static uint32_t value_code(const blocks_decode *s, int32_t key, int32_t channel)
{
    const uint8_t *block = s->products.tile->v[key / BLOCK_KEYS];
    return block[key % BLOCK_KEYS / 4 * s->products.vectors * LINE + channel * 4 + key % 4];
}

/* Scores of keys with a NaN among their codes are NaN: halves_of has taken it for a number. */
static void poison_scores(blocks_decode *s)
{
    for (int32_t key = s->task.from; key < s->task.end; key++)
        for (int32_t c = 0; c < s->products.head_dim; c++)
            if (isnan(value_of(key_code(s, key, c)))) {
                for (int32_t row = 0; row < s->task.rows; row++)
                    s->products.s[row][key] = (_Float16)NAN;
                break;
            }
}

/* The weight of a key, from how sum_blocks takes it. */
static float weight_of(const uint32_t *p, int32_t key)
{
    const uint32_t pair = p[key / 4 * 2 + key % 2];
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128((int)(pair >> key % 4 / 2 * 16 & 0xffff))));
}

/*
 * T in O when V has NaN in the tile: a weight of 0 times it would be NaN in rows that do not see
 * that key, so each row goes over its own keys alone.
 */
static void add_special_values(blocks_decode *s)
{
    const float_task *task = &s->task;
    for (int32_t row = 0; row < task->rows; row++) {
        const int32_t lo = task->lo[row] - task->first, hi = task->hi[row] - task->first;
        const int32_t from = lo > task->from ? lo : task->from,
                      end = hi < task->end ? hi : task->end;
        for (int32_t c = 0; c < s->products.head_dim; c++) {
            float sum = 0, *o = s->o[row] + 2 * c;
            for (int32_t key = from; key < end; key++)
                sum += weight_of(s->products.p[row], key) * value_of(value_code(s, key, c));
            o[0] = o[0] * task->alpha[row] + sum / VALUE_SCALE * task->beta[row];
            o[1] *= task->alpha[row];
        }
    }
}

/* O = alpha O + beta T. */
static void add_outputs(blocks_decode *s)
{
    for (int32_t row = 0; row < s->task.rows; row++) {
        const vec alpha = vec_set(s->task.alpha[row]), beta = vec_set(s->task.beta[row]);
        const _Float16 *t = s->products.t[row];
        float *o = s->o[row];
        for (int32_t i = 0; i < s->products.vectors * LANES; i += VEC_WIDTH) {
            const vec part = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(t + i)));
            vec_store(o + i, vec_fma(part, beta, vec_mul(vec_load(o + i), alpha)));
        }
    }
}

/* 16 keys' S, as floats. */
static inline vec scores_at(const blocks_decode *s, int32_t row, int32_t key)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)&s->products.s[row][key]));
}

/* The largest S of keys [lo, hi) of the tile, those outside becoming -inf. */
static float mask_scores(blocks_decode *s, int32_t row, int32_t lo, int32_t hi)
{
    _Float16 *scores = s->products.s[row];
    __m512h largest = _mm512_set1_ph((_Float16)-INFINITY);
    for (int32_t key = s->task.from; key < s->task.end; key += LANES) {
        __m512h x = _mm512_load_ph(scores + key);
        if (key < lo || key + LANES > hi) {
            const uint32_t from = lo <= key ? ~0u : lo - key < 32 ? ~0u << (lo - key) : 0;
            const uint32_t to = hi >= key + 32 ? ~0u : hi > key ? (1u << (hi - key)) - 1 : 0;
            x = _mm512_mask_blend_ph(from & to, _mm512_set1_ph((_Float16)-INFINITY), x);
            _mm512_store_ph(scores + key, x);
        }
        largest = _mm512_max_ph(largest, x);
    }
    return (float)_mm512_reduce_max_ph(largest);
}

/*
 * Logits of a row and the largest of them: S itself, which is left to be multiplied by a positive
 * factor, or x. Rows that see nothing of the tile have -inf.
 */
static void make_logits(blocks_decode *s, int32_t row)
{
    float_task *task = &s->task;
    const int32_t columns = (task->end - task->from + 31) / 32 * 32;
    int32_t lo = task->lo[row] - task->first, hi = task->hi[row] - task->first;
    lo = lo > task->from ? lo : task->from;
    hi = hi < task->end ? hi : task->end;
    if (lo >= hi) {
        mask_scores(s, row, 0, 0);
        task->scale[row] = 1;
        task->largest[row] = -INFINITY;
        return;
    }
    const logit_rule rule = rule_of(task, row);
    task->scale[row] = rule.scale;
    if (only_scales(&rule)) {
        task->largest[row] = rule.scale * mask_scores(s, row, lo, hi);
        return;
    }
    task->scale[row] = 0;
    float *x = s->x[row] + task->from;
    for (int32_t j = 0; j < columns; j += VEC_WIDTH)
        vec_store(x + j, scores_at(s, row, task->from + j));
    apply_rule(x, columns, &rule);
    task->largest[row] = mask_and_maximum(x, columns, lo - task->from, hi - task->from);
}

/* 16 weights as pairs of keys. */
static inline __m256i pairs_of(vec p)
{
    const __m256i half = _mm512_cvtps_ph(p, 0);
    return _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(half, 0xd8), 0xd8);
}

/* Logits -> weights of one row, and their sum before they are rounded. */
static void make_weights(blocks_decode *s, int32_t row)
{
    float_task *task = &s->task;
    const bool scaled = task->scale[row] != 0;
    const vec minus = vec_sub(vec_set(0), vec_max(vec_set(-0x1p127f), vec_set(task->largest[row])));
    const vec scale = vec_set(scaled ? task->scale[row] : 1);
    vec sum[2] = {vec_set(0), vec_set(0)};
    const int32_t end = (task->end + 63) / 64 * 64;
    for (int32_t j = task->from; j < end; j += 32)
        for (int i = 0; i < 2; i++) {
            const int32_t key = j + 16 * i;
            const vec x = scaled ? scores_at(s, row, key) : vec_load(s->x[row] + key);
            vec p = vec_exp2_times(vec_fma(x, scale, minus), PEAK_WEIGHT);
            /* Vectors past the end have what an earlier tile left. */
            if (key >= task->end) p = vec_set(0);
            sum[i] = vec_add(sum[i], p);
            _mm256_store_si256((__m256i *)&s->products.p[row][key / 2], pairs_of(p));
        }
    task->sum[row] = task->sum[row] * task->alpha[row] +
                     vec_reduce_add(vec_add(sum[0], sum[1])) * task->beta[row];
}

static void update_softmax(blocks_decode *s)
{
    gather_scales(&s->task, &s->task.args->k, s->task.column_scale);
    for (int32_t row = 0; row < s->task.rows; row++) {
        prefetch_turns(&s->products.ahead, SOFTMAX_COST / 2);
        make_logits(s, row);
    }
    for (int32_t row = 0; row < s->task.rows; row += 16)
        join_rows(&s->task, row);
    for (int32_t row = 0; row < s->task.rows; row++) {
        prefetch_turns(&s->products.ahead, SOFTMAX_COST / 2);
        make_weights(s, row);
    }
}

static void start_row(blocks_decode *s, int32_t row)
{
    int32_t query;
    const hr_kernel_args *args = args_of(&s->task, row, &query);
    const size_t bytes = (size_t)args->head_dim;
    const uint8_t *codes = (const uint8_t *)args->q.codes + (size_t)query * bytes;
    const code_rows rows = rows_of(&args->q, bytes);
    for (int32_t part = 0; part < rows.parts; part++)
        for (int plane = 0; plane < 2; plane++) {
            const __m512i half = half_or_nan_of(load_part(&rows, codes, part), plane);
            const __m512h q = _mm512_mul_ph(_mm512_castsi512_ph(half), _mm512_set1_ph(QUERY_SCALE));
            _mm512_store_ph(&s->products.q[row][plane * Q_ODD + part * (PART / 4)], q);
        }
    memset(s->o[row], 0, sizeof s->o[row]);
}

static void finish_row(const blocks_decode *s, int32_t row)
{
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    int32_t query;
    const hr_kernel_args *args = args_of(&s->task, row, &query);
    const bool channels = args->v.granularity == HR_GRANULARITY_CHANNEL;
    const vec factor = vec_set(output_factor(&s->task, row));
    float *out = args->o + query * args->o_stride;
    for (int32_t c = 0; c < args->head_dim; c += VEC_WIDTH) {
        const vec low = vec_load(s->o[row] + 2 * c), high = vec_load(s->o[row] + 2 * c + VEC_WIDTH);
        const vec sum = vec_add(_mm512_permutex2var_ps(low, even, high),
                                _mm512_permutex2var_ps(low, odd, high));
        const int32_t left = args->head_dim - c;
        const __mmask16 there = (__mmask16)(left < VEC_WIDTH ? (1 << left) - 1 : 0xffff);
        vec o = vec_mul(sum, factor);
        if (channels) o = vec_mul(o, _mm512_maskz_loadu_ps(there, args->v.scale + c));
        _mm512_mask_storeu_ps(out + c, there, o);
    }
    store_lse(&s->task, row);
}

/* What fills up the last group of rows. */
static void clear_rows(blocks_decode *s)
{
    int32_t row = s->task.rows - s->task.rows % GROUP_ROWS;
    if (row == s->task.rows) return;
    const int32_t end = row + group_of(s->task.rows, row);
    for (row = s->task.rows; row < end; row++) {
        memset(s->products.q[row], 0, sizeof s->products.q[row]);
        memset(s->products.p[row], 0, sizeof s->products.p[row]);
    }
}

DECODE_INLINE void decode_tile(blocks_decode *s, int32_t head_dim)
{
    s->products.seen_k = s->products.seen_v = _mm512_setzero_si512();
    score_tile(s, head_dim);
    if (is_special(s->products.seen_k)) poison_scores(s);
    update_softmax(s);
    sum_tile(s);
    if (is_special(s->products.seen_v))
        add_special_values(s);
    else
        add_outputs(s);
}

/* head_dim is a constant, unless it is 0. */
DECODE_INLINE void decode_blocks(const hr_kernel_args *args, int32_t head_dim)
{
    blocks_decode *s = args->scratch;
    begin_task(&s->task, args);
    assert(args->head_dim % 8 == 0 && args->head_dim <= MAX_CHANNELS);
    s->products.head_dim = args->head_dim;
    s->products.vectors = (args->head_dim + 15) / 16;
    s->k_bytes = (size_t)args->head_dim * BLOCK_KEYS;
    s->v_bytes = (size_t)s->products.vectors * 16 * BLOCK_KEYS;
    s->found = -1;
    for (int32_t row = 0; row < s->task.rows; row++)
        start_row(s, row);
    clear_rows(s);
    for (int32_t i = 0; i < args->range_count; i++) {
        hr_kernel_range range;
        if (!hr_kernel_visit(args, i, &range)) continue;
        begin_range(&s->task, &range);
        for (; s->task.first < range.end; s->task.first += DECODE_TILE) {
            begin_tile(&s->task, &range);
            walk_blocks(s);
            decode_tile(s, head_dim);
        }
    }
    for (int32_t row = 0; row < s->task.rows; row++)
        finish_row(s, row);
}

size_t hr_attention_fp8_blocks_decode_avx512fp16_scratch(int32_t head_dim)
{
    (void)head_dim;
    return sizeof(blocks_decode);
}

void hr_attention_fp8_blocks_decode_avx512fp16(const hr_kernel_args *args)
{
    if (args->head_dim == 128)
        decode_blocks(args, 128);
    else
        decode_blocks(args, 0);
}
