/*
 * FP8 attention through AVX512-FP16: Q, K and V in E4M3, P and products in FP16, statistics and O
 * in FP32. Query rows are the lanes, 96 a block, so every step is vertical:
 *
 *     for every tile of 128 keys: decode K and V to FP16, once for all blocks
 *         for every block of 96 rows:
 *             S^T [keys][rows]     = K Q^T                      FP16, in pieces of 64 channels
 *             m', P, sum           = softmax                    P relative to the tile's maximum
 *             O^T [channels][rows] = alpha O^T + beta V^T P^T   FP16 in pieces of 32 keys, the
 *                                                               tile's sum joined to O in FP32
 *
 * Pieces keep FP16 sums short, and those of S exact where terms are alike: products of two E4M3
 * values have 8 significant bits of FP16's 11. tests/check_bound_half.h bounds what remains.
 *
 * Ranges. Codes become FP16 as value * 2^-8, exactly (all of E4M3 is in FP16 then). Q is multiplied
 * by a power of two such that |S| <= 448^2 head_dim 2^-a < 32752 for all inputs, and differences of
 * scores stay finite. P <= 1 and V is taken as value / v_scale <= 448: |sum| <= 448 * 128 < 65504.
 * A task with a NaN, or a softmax scale that FP16 would not hold in full, goes to the AVX-512
 * kernel of the same recipe.
 *
 * Limited by the FP16 multiply-add rate. Against 2 head_dim of them a vector of 32 rows and key
 * stand 12 operations for the softmax, 9 a channel and tile for joining O, and decoding.
 */
#include "vec_avx512.h"

#include "float_tile.h"
#include "half_load_avx512fp16.h"
#include "half_product_avx512fp16.h"
#include "half_softmax_avx512fp16.h"
#include "kernel_rows.h"

enum {
    TILE_Q = HR_TILE_Q(fp8, avx512fp16),
    TILE_KV = HR_TILE_KV(fp8, avx512fp16),
    BLOCKS = TILE_Q / BLOCK_ROWS,
    CHANNELS_AT_ONCE = 64, /* of a dot product in one FP16 sum */
    KEYS_AT_ONCE = 32,     /* of an output in one FP16 sum */
};

_Static_assert((int)PRODUCT_LINES == WEIGHT_KEYS && (int)BLOCK_ROWS == WEIGHT_STRIDE,
               "of the same scores");
_Static_assert(TILE_Q % BLOCK_ROWS == 0, "tasks are whole blocks");
_Static_assert(TILE_KV % HR_TILE_KV(fp8, avx512) == 0, "tasks are handed to that kernel");

/* Statistics of a block's rows: logits in log2 units are score * factor. */
typedef struct row_block {
    _Float16 c[BLOCK_ROWS], limit[BLOCK_ROWS]; /* factor, and HALF_EXPONENTS / factor */
    float factor[BLOCK_ROWS], max[BLOCK_ROWS], sum[BLOCK_ROWS];
    float alpha[BLOCK_ROWS], beta[BLOCK_ROWS];
    _Float16 largest[BLOCK_ROWS]; /* of the tile's scores */
    float tile_sum[BLOCK_ROWS];   /* of its weights */
    int32_t rows;
    bool started;  /* O holds something */
    bool rescales; /* some alpha is not 1 */
} row_block;

typedef struct workspace {
    row_block *blocks;       /* [BLOCKS] */
    _Float16 *q;             /* [BLOCKS][head_dim][BLOCK_ROWS] */
    float *o;                /* the same shape */
    uint32_t *keys, *values; /* [TILE_KV][channels], each value in both halves */
    _Float16 *scores;        /* [TILE_KV][BLOCK_ROWS]: S, then P */
    int32_t channels, blocks_used;
} workspace;

static size_t lay_out(char *scratch, int32_t head_dim, workspace *work)
{
    const size_t channels = (size_t)padded_channels(head_dim), rows = TILE_Q;
    const size_t sizes[] = {BLOCKS * sizeof(row_block),
                            rows * channels * sizeof(_Float16),
                            rows * channels * sizeof(float),
                            TILE_KV * channels * sizeof(uint32_t),
                            TILE_KV * channels * sizeof(uint32_t),
                            TILE_KV * BLOCK_ROWS * sizeof(_Float16)};
    size_t at[7] = {0};
    for (int i = 0; i < 6; i++)
        at[i + 1] = at[i] + (sizes[i] + 63) / 64 * 64;
    if (scratch)
        *work = (workspace){.blocks = (row_block *)(scratch + at[0]),
                            .q = (_Float16 *)(scratch + at[1]),
                            .o = (float *)(scratch + at[2]),
                            .keys = (uint32_t *)(scratch + at[3]),
                            .values = (uint32_t *)(scratch + at[4]),
                            .scores = (_Float16 *)(scratch + at[5]),
                            .channels = (int32_t)channels};
    return at[6];
}

size_t hr_attention_fp8_avx512fp16_scratch(int32_t head_dim)
{
    const size_t own = lay_out(NULL, head_dim, NULL);
    const size_t other = hr_attention_fp8_avx512_scratch(head_dim);
    return own > other ? own : other;
}

/* a: 448^2 head_dim 2^-a stays below 32752, with room for rounding. */
static int score_exponent(int32_t head_dim)
{
    return head_dim <= 64 ? 9 : head_dim <= 128 ? 10 : 11;
}

/*
 * Queries and statistics of the task's blocks. False when FP16 cannot serve the task: a NaN among
 * the queries, or a factor with which the limit of distances would be infinite, or subnormal.
 */
static bool start_blocks(const hr_kernel_args *args, workspace *work)
{
    const int32_t head_dim = args->head_dim, exponent = score_exponent(head_dim);
    const int32_t total = args->q_end - args->q_begin;
    work->blocks_used = (total + BLOCK_ROWS - 1) / BLOCK_ROWS;
    bool fits = true;
    for (int32_t b = 0; b < work->blocks_used; b++) {
        row_block *block = &work->blocks[b];
        const int32_t first = args->q_begin + b * BLOCK_ROWS;
        block->rows = args->q_end - first < BLOCK_ROWS ? args->q_end - first : BLOCK_ROWS;
        block->started = false;
        const int32_t lanes = (block->rows + HALF_LANES - 1) / HALF_LANES * HALF_LANES;
        _Float16 *q = work->q + (size_t)b * (size_t)work->channels * BLOCK_ROWS;
        for (int32_t row = 0; row < lanes; row += HALF_LANES)
            fits &= load_transposed(&args->q, first + row, block->rows - row, head_dim,
                                    (float)(1 << (16 - exponent)), q + row, BLOCK_ROWS);
        for (int32_t i = 0; i < lanes; i++) {
            const int32_t row = first + (i < block->rows ? i : 0);
            block->factor[i] = row_factor(args, row) * (float)(1 << exponent);
            /* Smoothing shifted every logit but the sink's. */
            block->max[i] = (args->sink - row_bias(args, row)) * LOG2E;
            block->sum[i] = args->sink > -INFINITY ? 1 : 0;
        }
        for (int32_t i = 0; i < lanes; i += VEC_WIDTH) {
            const vec factor = vec_load(block->factor + i);
            fits &= _mm512_cmp_ps_mask(factor, vec_set(0x1p-11f), _CMP_GE_OQ) == 0xffff &&
                    _mm512_cmp_ps_mask(factor, vec_set(0x1p12f), _CMP_LE_OQ) == 0xffff;
            _mm256_storeu_ph(block->c + i, _mm512_cvtxps_ph(factor));
            _mm256_storeu_ph(block->limit + i,
                             _mm512_cvtxps_ph(vec_div(vec_set(HALF_EXPONENTS), factor)));
        }
    }
    return fits;
}

/*
 * The keys of a tile that a block's rows see: from `first` on, all but the first `begin` vectors of
 * rows, each to its end; both are multiples of 8. Limits rise with the row, so two rows of a vector
 * tell, and the ends rise too: along the diagonal of a causal mask the lower vectors stop early.
 */
typedef struct block_span {
    int32_t first, last; /* the union: last is the last vector's end */
    int32_t begin, vecs;
    int32_t ends[BLOCK_VECS];
    int32_t all_first[BLOCK_VECS], all_last[BLOCK_VECS]; /* what all rows of a vector see, if any */
} block_span;

static int32_t clip(int32_t key, const key_tile *tile)
{
    int32_t at = key - tile->begin;
    return at < 0 ? 0 : at < tile->count ? at : tile->count;
}

static block_span visible_keys(const hr_kernel_args *args, const key_tile *tile, int32_t row,
                               int32_t rows)
{
    block_span span = {.vecs = (rows + HALF_LANES - 1) / HALF_LANES};
    for (int32_t v = 0; v < span.vecs; v++) {
        const int32_t first = row + v * HALF_LANES, end = first + HALF_LANES;
        int32_t lo, hi, last_lo, last_hi;
        hr_kernel_row_range(args, tile->range, first, &lo, &hi);
        hr_kernel_row_range(args, tile->range, (end < row + rows ? end : row + rows) - 1, &last_lo,
                            &last_hi);
        if (v == 0) span.first = clip(lo, tile) / PRODUCT_LINES * PRODUCT_LINES;
        span.all_first[v] = clip(last_lo, tile);
        span.all_last[v] = clip(hi, tile);
        span.last = (clip(last_hi, tile) + PRODUCT_LINES - 1) / PRODUCT_LINES * PRODUCT_LINES;
        span.ends[v] = span.last;
        if (span.last <= span.first) span.begin = v + 1;
    }
    return span;
}

/* S^T of a block: keys up to the first vector's end, then without it up to the second's. */
static void multiply_keys(const workspace *work, int32_t head_dim, const _Float16 *q,
                          const block_span *span)
{
    half_product product = {
        .line = work->channels, .step = 1, .depth = head_dim, .piece = CHANNELS_AT_ONCE};
    for (int32_t v = span->begin, key = span->first; v < span->vecs; v++)
        for (; key < span->ends[v]; key += PRODUCT_LINES) {
            product.a = work->keys + key * work->channels;
            product.b = q + v * HALF_LANES;
            product.c = work->scores + key * BLOCK_ROWS + v * HALF_LANES;
            half_multiply(&product, span->vecs - v);
        }
}

/* The keys of the tile that each row of a vector sees. */
typedef struct row_limits {
    int16_t lo[HALF_LANES], hi[HALF_LANES];
} row_limits;

static row_limits limits_of(const hr_kernel_args *args, const key_tile *tile, int32_t row)
{
    row_limits limits;
    for (int32_t i = 0; i < HALF_LANES; i++) {
        int32_t lo, hi;
        hr_kernel_row_range(args, tile->range, row + i < args->q_end ? row + i : row, &lo, &hi);
        limits.lo[i] = (int16_t)clip(lo, tile);
        limits.hi[i] = (int16_t)clip(hi, tile);
    }
    return limits;
}

/* Sets scores of keys [begin, end) to -inf in the rows that do not see them. */
static void mask_keys(const row_limits *limits, _Float16 *scores, int32_t begin, int32_t end)
{
    const __m512i masked = _mm512_set1_epi16((short)0xfc00);
    const __m512i lo = _mm512_loadu_si512(limits->lo), hi = _mm512_loadu_si512(limits->hi);
    for (int32_t key = begin; key < end; key++) {
        const __m512i at = _mm512_set1_epi16((short)key);
        __mmask32 hidden = _mm512_cmpgt_epi16_mask(lo, at) | _mm512_cmple_epi16_mask(hi, at);
        _mm512_mask_storeu_epi16(scores + key * BLOCK_ROWS, hidden, masked);
    }
}

static void apply_mask(const hr_kernel_args *args, const workspace *work, const key_tile *tile,
                       int32_t row, const block_span *span)
{
    for (int32_t v = span->begin; v < span->vecs; v++) {
        const int32_t end = span->ends[v];
        int32_t all_first = span->all_first[v], all_last = span->all_last[v];
        if (all_first <= span->first && all_last >= end) continue;
        if (all_first >= all_last) all_first = all_last = end;
        const row_limits limits = limits_of(args, tile, row + v * HALF_LANES);
        _Float16 *scores = work->scores + v * HALF_LANES;
        mask_keys(&limits, scores, span->first, all_first);
        mask_keys(&limits, scores, all_last, end);
    }
}

/* Largest score of every row. Eight chains, as a maximum takes some cycles. */
static void find_largest(const workspace *work, row_block *block, const block_span *span)
{
    for (int32_t v = 0; v < span->vecs; v++) {
        const _Float16 *s = work->scores + span->first * BLOCK_ROWS + v * HALF_LANES;
        __m512h most[PRODUCT_LINES];
        for (int i = 0; i < PRODUCT_LINES; i++)
            most[i] = v < span->begin ? half_set(-INFINITY) : _mm512_load_ph(s + i * BLOCK_ROWS);
        for (int32_t key = span->first + PRODUCT_LINES; key < span->ends[v]; key += PRODUCT_LINES) {
            s += PRODUCT_LINES * BLOCK_ROWS;
            for (int i = 0; i < PRODUCT_LINES; i++)
                most[i] = _mm512_max_ph(most[i], _mm512_load_ph(s + i * BLOCK_ROWS));
        }
        for (int width = PRODUCT_LINES / 2; width > 0; width /= 2)
            for (int i = 0; i < width; i++)
                most[i] = _mm512_max_ph(most[i], most[i + width]);
        _mm512_storeu_ph(block->largest + v * HALF_LANES, most[0]);
    }
}

/* Where the product that sums the weights before `key` ends. */
static int32_t product_end(const block_span *span, int32_t key)
{
    const int32_t pieces = (key - span->first + KEYS_AT_ONCE - 1) / KEYS_AT_ONCE;
    const int32_t end = span->first + pieces * KEYS_AT_ONCE;
    return end < span->last ? end : span->last;
}

/*
 * Scores -> weights, and each row's sum of them: up to 16 keys in FP16, then FP32. Weights are 0
 * from a vector's end to the end of the product that reads them.
 */
static void apply_weights_half(const workspace *work, row_block *block, const block_span *span)
{
    for (int32_t v = 0; v < span->vecs; v++) {
        const int32_t lane = v * HALF_LANES, end = v < span->begin ? span->first : span->ends[v];
        const __m512h largest = _mm512_loadu_ph(block->largest + lane);
        const __m512h c = _mm512_loadu_ph(block->c + lane);
        const __m512h limit = _mm512_loadu_ph(block->limit + lane);
        __m512 low = _mm512_setzero_ps(), high = low;
        _Float16 *s = work->scores + lane;
        for (int32_t key = span->first; key < end; key += 2 * PRODUCT_LINES) {
            __m512h sum = half_weigh_keys(s + key * BLOCK_ROWS, largest, c, limit);
            if (key + PRODUCT_LINES < end)
                sum = _mm512_add_ph(sum, half_weigh_keys(s + (key + PRODUCT_LINES) * BLOCK_ROWS,
                                                         largest, c, limit));
            low = _mm512_add_ps(low, half_low(sum));
            high = _mm512_add_ps(high, half_high(sum));
        }
        for (int32_t key = end; key < product_end(span, end); key++)
            _mm512_store_ph(s + key * BLOCK_ROWS, _mm512_setzero_ph());
        _mm512_storeu_ps(block->tile_sum + lane, low);
        _mm512_storeu_ps(block->tile_sum + lane + VEC_WIDTH, high);
    }
}

/*
 * The tile's maxima and sums into the running ones; alpha and beta are what rescales O. A row's
 * running maximum follows only where a tile's is more than 8 octaves above it, as beta and sums may
 * as well be larger than 1 in FP32: so nearly all alphas are 1.
 */
static void join_tile(row_block *block, int32_t vecs)
{
    __mmask16 moved = 0;
    for (int32_t i = 0; i < vecs * HALF_LANES; i += VEC_WIDTH) {
        vec before = vec_load(block->max + i);
        vec here = vec_mul(_mm512_cvtxph_ps(_mm256_loadu_ph(block->largest + i)),
                           vec_load(block->factor + i));
        __mmask16 above = _mm512_cmp_ps_mask(here, vec_add(before, vec_set(8)), _CMP_GT_OQ);
        vec joined = _mm512_mask_mov_ps(before, above, here);
        vec reference = vec_max(vec_set(-0x1p127f), joined);
        vec alpha = vec_exp2(vec_sub(before, reference));
        vec beta = vec_exp2(vec_sub(here, reference));
        vec sum = vec_mul(vec_load(block->sum + i), alpha);
        vec_store(block->sum + i, vec_fma(vec_load(block->tile_sum + i), beta, sum));
        vec_store(block->max + i, joined);
        vec_store(block->alpha + i, alpha);
        vec_store(block->beta + i, beta);
        moved |= above;
    }
    block->rescales = moved != 0;
}

/*
 * V^T P^T of 8 channels, from `channel` on. Vectors that end early take part up to the end of the
 * piece, where weights are 0, and have their sum then; the others' go on.
 */
static void sum_values(const workspace *work, int32_t channel, const block_span *span,
                       _Float16 *sums)
{
    half_product product = {.line = 1, .step = work->channels, .piece = KEYS_AT_ONCE};
    for (int32_t v = span->begin, key = span->first; v < span->vecs; v++) {
        const int32_t end = product_end(span, span->ends[v]);
        if (key >= end) continue;
        product.a = work->values + key * work->channels + channel;
        product.b = work->scores + key * BLOCK_ROWS + v * HALF_LANES;
        product.c = sums + v * HALF_LANES;
        product.depth = end - key;
        product.add = key > span->first;
        half_multiply(&product, span->vecs - v);
        key = end;
    }
}

/* 8 channels of O^T = alpha O^T + beta sums, where alpha is 1 and where there is no O^T before. */
FLOAT_INLINE void join_sums(const row_block *block, const _Float16 *sums, float *o, int32_t begin,
                            int32_t end, bool started, bool rescales)
{
    for (int32_t i = begin; i < end; i += VEC_WIDTH) {
        const vec alpha = vec_load(block->alpha + i), beta = vec_load(block->beta + i);
        float *target = o + i;
        for (int line = 0; line < PRODUCT_LINES; line++, target += BLOCK_ROWS) {
            vec sum = _mm512_cvtxph_ps(_mm256_load_ph(sums + line * BLOCK_ROWS + i));
            if (!started)
                sum = vec_mul(sum, beta);
            else if (!rescales)
                sum = vec_fma(sum, beta, vec_load(target));
            else
                sum = vec_fma(sum, beta, vec_mul(vec_load(target), alpha));
            vec_store(target, sum);
        }
    }
}

/* O^T = alpha O^T + beta V^T P^T. */
static void multiply_values(const workspace *work, row_block *block, int32_t head_dim, float *o,
                            const block_span *span)
{
    const int32_t begin = span->begin * HALF_LANES, end = span->vecs * HALF_LANES;
    _Float16 sums[PRODUCT_LINES * BLOCK_ROWS] __attribute__((aligned(64)));
    if (!block->started && begin > 0) {
        memset(o, 0, (size_t)head_dim * BLOCK_ROWS * sizeof *o);
        block->started = true;
    }
    for (int32_t channel = 0; channel < head_dim; channel += PRODUCT_LINES) {
        float *target = o + channel * BLOCK_ROWS;
        sum_values(work, channel, span, sums);
        if (!block->started)
            join_sums(block, sums, target, begin, end, false, false);
        else if (!block->rescales)
            join_sums(block, sums, target, begin, end, true, false);
        else
            join_sums(block, sums, target, begin, end, true, true);
    }
    block->started = true;
}

static void process_rows(const hr_kernel_args *args, workspace *work, const key_tile *tile,
                         int32_t b)
{
    row_block *block = &work->blocks[b];
    const int32_t row = args->q_begin + b * BLOCK_ROWS;
    const size_t offset = (size_t)b * (size_t)work->channels * BLOCK_ROWS;
    const block_span span = visible_keys(args, tile, row, block->rows);
    if (span.first >= span.last) return;
    multiply_keys(work, args->head_dim, work->q + offset, &span);
    apply_mask(args, work, tile, row, &span);
    find_largest(work, block, &span);
    apply_weights_half(work, block, &span);
    join_tile(block, span.vecs);
    multiply_values(work, block, args->head_dim, work->o + offset, &span);
}

/* 16 rows of O from O^T [head_dim][BLOCK_ROWS], times `inverse` a row and `scales` a channel. */
static void store_rows(const float *o, int32_t head_dim, vec inverse, const float *scales,
                       int32_t rows, float *target, int64_t stride)
{
    for (int32_t channel = 0; channel < head_dim; channel += VEC_WIDTH) {
        const __mmask16 there = head_dim - channel < VEC_WIDTH ? 0xff : 0xffff;
        const vec scale = vec_load(scales + channel);
        vec x[VEC_WIDTH];
        for (int c = 0; c < VEC_WIDTH; c++)
            x[c] = vec_mul(vec_load(o + (channel + c) * BLOCK_ROWS), inverse);
        vec_transpose(x);
        for (int32_t r = 0; r < rows; r++)
            _mm512_mask_storeu_ps(target + r * stride + channel, there, vec_mul(x[r], scale));
    }
}

/* O and LSE of a block. */
static void finish_block(const hr_kernel_args *args, const workspace *work, int32_t b)
{
    const row_block *block = &work->blocks[b];
    float *o = work->o + (size_t)b * (size_t)work->channels * BLOCK_ROWS;
    if (!block->started) memset(o, 0, (size_t)work->channels * BLOCK_ROWS * sizeof *o);
    const int32_t first = args->q_begin + b * BLOCK_ROWS;
    float scales[MAX_CHANNELS];
    if (has_channel_scales(&args->v))
        channel_scales(&args->v, 0, args->head_dim, scales);
    else
        for (int32_t c = 0; c < work->channels; c++)
            scales[c] = token_scale(&args->v, 0);
    for (int32_t i = 0; i < block->rows; i += VEC_WIDTH) {
        const vec sum = vec_load(block->sum + i);
        const __mmask16 some = _mm512_cmp_ps_mask(sum, vec_set(0), _CMP_NEQ_UQ);
        const vec inverse = _mm512_maskz_div_ps(some, vec_set(1), sum); /* 0: sees no key */
        const int32_t rows = block->rows - i < VEC_WIDTH ? block->rows - i : VEC_WIDTH;
        store_rows(o + i, args->head_dim, inverse, scales, rows,
                   args->o + (first + i) * args->o_stride, args->o_stride);
    }
    for (int32_t i = 0; i < block->rows && args->lse; i++) {
        /* Taking the bias off the sink and adding it again would round: without keys, don't. */
        args->lse[(first + i) * args->lse_stride] =
            hr_kernel_row_sees(args, first + i)
                ? (block->max[i] + log2f(block->sum[i])) * LN2 + row_bias(args, first + i)
                : args->sink;
    }
}

/* All blocks over one tile; false when a code of it is NaN. */
static bool process_tile(const hr_kernel_args *args, workspace *work, const key_tile *tile)
{
    if (!load_twice(&args->k, tile->begin, tile->count, PRODUCT_LINES, args->head_dim, 1,
                    work->keys) ||
        !load_twice(&args->v, tile->begin, tile->count, PRODUCT_LINES, args->head_dim, 256,
                    work->values))
        return false;
    for (int32_t b = 0; b < work->blocks_used; b++)
        process_rows(args, work, tile, b);
    return true;
}

static bool run_in_half(const hr_kernel_args *args)
{
    workspace work = {0};
    lay_out(args->scratch, args->head_dim, &work);
    if (!start_blocks(args, &work)) return false;
    for (int32_t i = 0; i < args->range_count; i++) {
        hr_kernel_range range;
        if (!hr_kernel_visit(args, i, &range)) continue;
        for (int32_t begin = range.begin; begin < range.end;) {
            const int32_t left = range.end - begin, most = TILE_KV - begin % TILE_KV;
            const key_tile tile = {
                .begin = begin, .count = left < most ? left : most, .range = &range};
            if (!process_tile(args, &work, &tile)) return false;
            begin += tile.count;
        }
    }
    for (int32_t b = 0; b < work.blocks_used; b++)
        finish_block(args, &work, b);
    return true;
}

void hr_attention_fp8_avx512fp16(const hr_kernel_args *args)
{
    if (run_in_half(args)) return;
    for (int32_t begin = args->q_begin; begin < args->q_end; begin += HR_TILE_Q(fp8, avx512)) {
        hr_kernel_args part = *args;
        part.q_begin = begin;
        if (part.q_end - begin > HR_TILE_Q(fp8, avx512))
            part.q_end = begin + HR_TILE_Q(fp8, avx512);
        hr_attention_fp8_avx512(&part);
    }
}
