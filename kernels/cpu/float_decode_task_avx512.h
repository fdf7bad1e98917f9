/*
 * What the float decode kernels keep of a task's rows whatever the order of their codes: which keys
 * a row sees, the running maximum and sum of its softmax, and how its products become logits. A
 * kernel's file defines before it includes this:
 *
 *     PRODUCT_SCALE, VALUE_SCALE   S and T times these are in true units
 *     PEAK_WEIGHT                  P of a row's largest logit
 */
#ifndef HEADROOM_FLOAT_DECODE_TASK_AVX512_H
#define HEADROOM_FLOAT_DECODE_TASK_AVX512_H

#include <assert.h>

#include "decode_rows_avx512.h"
#include "vec_avx512.h"

#include "float_softmax.h"

typedef struct float_task {
    ALIGNED float max[DECODE_ROWS], sum[DECODE_ROWS], largest[DECODE_ROWS];
    ALIGNED float alpha[DECODE_ROWS], beta[DECODE_ROWS];
    float scale[DECODE_ROWS]; /* what the logits are still to be multiplied by */
    ALIGNED float column_scale[DECODE_TILE];
    int32_t lo[DECODE_ROWS], hi[DECODE_ROWS];
    const hr_kernel_args *args;
    int32_t rows;
    int32_t first, count; /* keys [first, first + count) are the tile's */
    int32_t from, end;    /* those of the range are in [from, end), from a multiple of 64 */
} float_task;

/* Head and query of a row: rows of one head lie side by side. */
static inline const hr_kernel_args *args_of(const float_task *task, int32_t row, int32_t *query)
{
    const int32_t queries = task->args->q_end - task->args->q_begin;
    *query = task->args->q_begin + row % queries;
    return task->args + row / queries;
}

/* The part of the logits that mean smoothing removed, in nats; 0 without. */
static inline float bias_of(const hr_kernel_args *args, int32_t query)
{
    return args->lse_bias ? args->softmax_scale * args->lse_bias[query] : 0;
}

static inline bool keys_have_scales(const hr_kernel_operand *operand)
{
    return operand->granularity == HR_GRANULARITY_TOKEN ||
           operand->granularity == HR_GRANULARITY_BLOCK;
}

static inline void begin_task(float_task *task, const hr_kernel_args *args)
{
    task->args = args;
    task->rows = args->heads * (args->q_end - args->q_begin);
    assert(task->rows >= 1 && task->rows <= DECODE_ROWS);
    assert(args->k.pages == args->v.pages && args->k.page_slots == args->v.page_slots);
    for (int32_t row = 0; row < (task->rows + 15) / 16 * 16; row++)
        task->max[row] = task->largest[row] = -INFINITY;
    for (int32_t row = 0; row < task->rows; row++) {
        int32_t query;
        const hr_kernel_args *head = args_of(task, row, &query);
        /* Smoothing shifted every logit but the sink's, unless the bias was put back for the cap.
         */
        const float shift = head->softcap != 0 ? 0 : bias_of(head, query);
        task->max[row] = (head->sink - shift) * LOG2E;
        task->sum[row] = head->sink > -INFINITY ? 1 : 0;
    }
}

/* The keys of a range that rows see, and its first tile. */
static inline void begin_range(float_task *task, const hr_kernel_range *range)
{
    for (int32_t row = 0; row < task->rows; row++) {
        int32_t query;
        const hr_kernel_args *args = args_of(task, row, &query);
        hr_kernel_row_range(args, range, query, &task->lo[row], &task->hi[row]);
    }
    task->first = range->begin / DECODE_TILE * DECODE_TILE;
}

/* The range's part of the tile at task->first. */
static inline void begin_tile(float_task *task, const hr_kernel_range *range)
{
    const int32_t left = task->args->seqlen_kv - task->first, end = range->end - task->first;
    task->count = left < DECODE_TILE ? left : DECODE_TILE;
    task->from = range->begin > task->first ? (range->begin - task->first) / 64 * 64 : 0;
    task->end = end < task->count ? end : task->count;
}

/* The tile's scales of K or V, if keys have them; 0 for those past the sequence. */
static inline void gather_scales(const float_task *task, const hr_kernel_operand *operand,
                                 float *scale)
{
    if (operand->granularity == HR_GRANULARITY_TOKEN)
        copy_token_scales(operand, task->first, task->count, scale);
    else if (operand->granularity == HR_GRANULARITY_BLOCK)
        for (int32_t j = 0; j < task->count; j++)
            scale[j] = token_scale(operand, task->first + j);
    else
        return;
    memset(scale + task->count, 0, (size_t)(DECODE_TILE - task->count) * sizeof *scale);
}

/* What turns a row's S into logits. */
static inline logit_rule rule_of(const float_task *task, int32_t row)
{
    int32_t query;
    const hr_kernel_args *args = args_of(task, row, &query);
    float scale = PRODUCT_SCALE * args->softmax_scale * token_scale(&args->q, query);
    if (!keys_have_scales(&args->k)) scale *= token_scale(&args->k, 0);
    logit_rule rule = {
        .scale = args->softcap != 0 ? scale / args->softcap : scale * LOG2E,
        .column_scale = keys_have_scales(&args->k) ? task->column_scale + task->from : NULL,
        .alibi_slope = args->alibi_slope * LOG2E,
        .diagonal = (float)((int64_t)query + args->shift - task->first - task->from)};
    if (args->softcap == 0) return rule;
    rule.bias = bias_of(args, query) / args->softcap;
    rule.softcap = args->softcap * LOG2E;
    return rule;
}

/* True when logits are S times a positive number, which the maximum can do without. */
static inline bool only_scales(const logit_rule *rule)
{
    return rule->scale > 0 && !rule->column_scale && rule->softcap == 0 && rule->alibi_slope == 0;
}

/*
 * 16 rows from `row` on: joins the tile's maxima to the running ones. O and the sums are to be
 * rescaled by alpha = 2^(old - new) and the tile's by beta = 2^(tile - new) / PEAK_WEIGHT; the
 * floor turns -inf - -inf, of rows that have seen no key at all, into -inf.
 */
static inline void join_rows(float_task *task, int32_t row)
{
    const vec before = vec_load(task->max + row), here = vec_load(task->largest + row);
    const vec joined = vec_max(here, before), reference = vec_max(vec_set(-0x1p127f), joined);
    const vec alpha = vec_exp2(vec_sub(before, reference));
    const vec beta = vec_mul(vec_exp2(vec_sub(here, reference)), vec_set(1 / (float)PEAK_WEIGHT));
    vec_store(task->alpha + row, alpha);
    vec_store(task->beta + row, beta);
    vec_store(task->max + row, joined);
}

/* What a row's O is to be multiplied by but V's scales by channel. */
static inline float output_factor(const float_task *task, int32_t row)
{
    const hr_kernel_operand *v = &task->args->v;
    /* A sum of 0 is a row that sees no key. */
    const float factor = task->sum[row] == 0 ? 0 : VALUE_SCALE / task->sum[row];
    return keys_have_scales(v) ? factor : factor * token_scale(v, 0);
}

static inline void store_lse(const float_task *task, int32_t row)
{
    int32_t query;
    const hr_kernel_args *args = args_of(task, row, &query);
    if (!args->lse) return;
    const float bias = args->softcap != 0 ? 0 : bias_of(args, query);
    /* Taking the bias off the sink and adding it again would round: without keys, don't. */
    args->lse[query * args->lse_stride] =
        hr_kernel_row_sees(args, query) ? (task->max[row] + log2f(task->sum[row])) * LN2 + bias
                                        : args->sink;
}

#endif
