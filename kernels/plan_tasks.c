/*
 * How a plan's work is cut into tasks.
 *
 * Tasks are sorted longest first, so that with dynamic scheduling no thread starts a long task when
 * the others are about to finish; equal ones keep the order (sequence, head, row), which reads a
 * head's K and V from cache for all its query tiles. With a causal mask no two tasks of a head are
 * equal: where each thread has many tasks, the long ones run head by head, and only the short ones,
 * which even out the end, are mixed. The order changes no bit of the result.
 *
 * Decode has few tasks over many keys, and so its kv axis is cut at fixed multiples of chunk_keys:
 *
 *     keys    0 ........ c ........ 2c ........ 3c ...
 *
 * and each chunk in which a task's rows see keys is a part of it. With a block-sparse mask a task
 * has rows of one block row only: all see the same ranges of keys, and kernels mask them further by
 * causality and window alone.
 *
 * chunk_keys depends on the problem alone, neither on threads nor on the kernel, so that all
 * kernels of an exact recipe still agree bit for bit.
 */
#include "memory.h"
#include "plan.h"

#include <stdlib.h>

enum {
    SPLIT_TILE = 256,        /* chunks are multiples of it: every CPU kernel's tile_kv divides it */
    SPLIT_MAX_SEQLEN_Q = 16, /* longer problems have enough tasks, or enough work in each */
    SPLIT_TASKS = 32,        /* tasks wanted: even shares for any number of threads below that */
    SPLIT_MIN_KEYS = 2048,   /* some 50 us of reading: starting and merging a chunk costs about 1 */
    TASKS_OF_THREAD = 8, /* longest tasks' worth of work a thread has: the end is a small part */
    SHORT_TASK = 4       /* tasks of a quarter of the longest even out the end */
};

static int64_t task_work(const hr_task *task)
{
    return (int64_t)(task->q_end - task->q_begin) * task->heads * task->keys;
}

static int compare_tasks(const void *left, const void *right)
{
    const hr_task *a = left, *b = right;
    const int64_t work_a = task_work(a), work_b = task_work(b);
    if (a->by_head != b->by_head) return a->by_head ? -1 : 1;
    if (!a->by_head && work_a != work_b) return work_a > work_b ? -1 : 1;
    if (a->sequence != b->sequence) return a->sequence < b->sequence ? -1 : 1;
    if (a->head != b->head) return a->head < b->head ? -1 : 1;
    if (work_a != work_b) return work_a > work_b ? -1 : 1;
    if (a->q_begin != b->q_begin) return a->q_begin < b->q_begin ? -1 : 1;
    return a->part < b->part ? -1 : a->part > b->part;
}

static void sort_tasks(hr_plan *plan)
{
    int64_t longest = 0;
    double all = 0;
    for (int64_t i = 0; i < plan->task_count; i++) {
        const int64_t work = task_work(&plan->tasks[i]);
        all += (double)work;
        if (work > longest) longest = work;
    }
    const bool many = all >= (double)TASKS_OF_THREAD * plan->threads * (double)longest;
    for (int64_t i = 0; i < plan->task_count; i++)
        plan->tasks[i].by_head = many && SHORT_TASK * task_work(&plan->tasks[i]) > longest;
    qsort(plan->tasks, (size_t)plan->task_count, sizeof *plan->tasks, compare_tasks);
}

/* The arguments of a task as far as they say which keys its rows see. */
static hr_kernel_args key_args(const hr_plan *plan, const hr_task *task)
{
    hr_kernel_args args = hr_plan_sequence_args(plan, task->sequence);
    args.q_begin = task->q_begin;
    args.q_end = task->q_end;
    args.kv_begin = task->kv_begin;
    args.kv_end = task->kv_end;
    args.ranges = plan->ranges + task->first_range;
    args.range_count = task->range_count;
    return args;
}

/*
 * Narrows kv_begin, kv_end and the ranges of a task to the keys that its rows see between kv_begin
 * and kv_end, and counts them; false when they see none.
 */
static bool narrow_task(const hr_plan *plan, hr_task *task)
{
    const hr_kernel_args args = key_args(plan, task);
    hr_task narrow = *task;
    narrow.keys = narrow.range_count = narrow.kv_begin = narrow.kv_end = 0;
    for (int32_t i = 0; i < args.range_count; i++) {
        hr_kernel_range range;
        if (!hr_kernel_visit(&args, i, &range)) continue;
        if (narrow.keys == 0) {
            narrow.first_range = task->first_range + i;
            narrow.kv_begin = range.begin;
        }
        narrow.range_count = (int32_t)(task->first_range + i - narrow.first_range) + 1;
        narrow.kv_end = range.end;
        narrow.keys += range.end - range.begin;
    }
    *task = narrow;
    return narrow.keys > 0;
}

/* Pairs (i, j) of one list of ranges for queries [q_begin, q_end) of a sequence. */
static int64_t visible_pairs(const hr_kernel_args *args, int32_t q_begin, int32_t q_end)
{
    int64_t pairs = 0;
    for (int32_t row = q_begin; row < q_end; row++)
        for (int32_t i = 0; i < args->range_count; i++) {
            int32_t lo, hi;
            hr_kernel_row_range(args, &args->ranges[i], row, &lo, &hi);
            if (hi > lo) pairs += hi - lo;
        }
    return pairs;
}

/* The same over all queries and heads; heads of one mask are counted together. */
static double total_pairs(const hr_plan *plan)
{
    const hr_attention_problem *problem = &plan->problem;
    const hr_block_mask *blocks = problem->mask.blocks;
    const int32_t mask_heads = blocks ? blocks->heads : 1;
    const int32_t group = problem->num_heads / mask_heads;
    double pairs = 0;
    for (int32_t b = 0; b < problem->batch; b++) {
        hr_kernel_args args = hr_plan_sequence_args(plan, b);
        const int32_t step = blocks ? blocks->block_q : args.seqlen_q;
        for (int32_t head = 0; head < problem->num_heads; head += group)
            for (int32_t q = 0, end; q < args.seqlen_q; q = end) {
                const int64_t list = hr_plan_range_list(plan, b, head, q);
                end = step < args.seqlen_q - q ? q + step : args.seqlen_q;
                args.ranges = plan->ranges + plan->range_begin[list];
                args.range_count = (int32_t)(plan->range_begin[list + 1] - plan->range_begin[list]);
                pairs += (double)visible_pairs(&args, q, end) * group;
            }
    }
    return pairs;
}

/* Keys of a chunk; 0: the kv axis is not split. */
static int64_t chunk_keys(const hr_plan *plan)
{
    const hr_attention_problem *problem = &plan->problem;
    const int32_t tile_kv = plan->kernel->info.tile_kv;
    const int64_t longest = hr_longest_sequence(problem->cu_seqlens_kv, problem->batch);
    int64_t chunks = plan->kv_splits;
    if (chunks == 0) {
        if (hr_longest_sequence(problem->cu_seqlens_q, problem->batch) > SPLIT_MAX_SEQLEN_Q)
            return 0;
        const int64_t tasks = (int64_t)problem->batch * problem->num_kv_heads;
        chunks = (SPLIT_TASKS + tasks - 1) / tasks;
        if (chunks > longest / SPLIT_MIN_KEYS) chunks = longest / SPLIT_MIN_KEYS;
    }
    if (chunks <= 1) return 0;
    const int64_t unit = (SPLIT_TILE + tile_kv - 1) / tile_kv * tile_kv;
    const int64_t keys = (longest + chunks - 1) / chunks;
    return (keys + unit - 1) / unit * unit;
}

/* What the building passes append to: counted first, then filled. */
typedef struct task_lists {
    hr_task *task; /* NULL: count only */
    hr_merge *merge;
    int64_t tasks, merges;
    int32_t parts;
    bool deferred; /* every task is a part, also where there is only one */
} task_lists;

static void add_task(task_lists *lists, const hr_task *task)
{
    if (lists->task) lists->task[lists->tasks] = *task;
    lists->tasks++;
}

/* `whole` as one task, or as one for each chunk of the kv axis in which it sees keys. */
static void add_parts(task_lists *lists, const hr_plan *plan, const hr_task *whole, int64_t chunk)
{
    const bool single =
        !chunk || whole->keys == 0 || whole->kv_begin / chunk == (whole->kv_end - 1) / chunk;
    if (single && !lists->deferred) {
        add_task(lists, whole);
        return;
    }
    int32_t parts = 0;
    if (single) {
        hr_task task = *whole;
        task.part = parts++;
        add_task(lists, &task);
    }
    for (int64_t begin = single ? 0 : whole->kv_begin / chunk * chunk;
         !single && begin < whole->kv_end; begin += chunk) {
        hr_task task = *whole;
        if (begin > task.kv_begin) task.kv_begin = (int32_t)begin;
        if (begin + chunk < task.kv_end) task.kv_end = (int32_t)(begin + chunk);
        if (!narrow_task(plan, &task)) continue;
        task.part = parts++;
        add_task(lists, &task);
    }
    if (lists->merge)
        lists->merge[lists->merges] = (hr_merge){.sequence = whole->sequence,
                                                 .head = whole->head,
                                                 .heads = whole->heads,
                                                 .q_begin = whole->q_begin,
                                                 .q_end = whole->q_end,
                                                 .parts = parts};
    lists->merges++;
    if (parts > lists->parts) lists->parts = parts;
}

/* Query heads that a task of `rows` rows takes together. */
static int32_t heads_together(const hr_plan *plan, int32_t rows)
{
    const hr_kernel_info *info = &plan->kernel->info;
    if (info->max_seqlen_q == 0 || rows == 0) return 1;
    /* Heads with masks of their own see other keys of the KV head, and so are other tasks. */
    const hr_block_mask *blocks = plan->problem.mask.blocks;
    if (blocks && blocks->heads > plan->problem.num_kv_heads) return 1;
    const int32_t group = plan->problem.num_heads / plan->problem.num_kv_heads;
    return group * (int64_t)rows <= info->tile_q ? group : info->tile_q / rows;
}

/* The query after the last one that a task from `row` on may have. */
static int32_t task_end(const hr_plan *plan, int32_t row, int32_t seqlen_q)
{
    const hr_block_mask *blocks = plan->problem.mask.blocks;
    int64_t end = (int64_t)row + plan->kernel->info.tile_q;
    if (blocks && ((int64_t)row / blocks->block_q + 1) * blocks->block_q < end)
        end = ((int64_t)row / blocks->block_q + 1) * blocks->block_q;
    return (int32_t)(end < seqlen_q ? end : seqlen_q);
}

static void add_sequence(task_lists *lists, const hr_plan *plan, int32_t sequence, int64_t chunk)
{
    const hr_attention_problem *problem = &plan->problem;
    const int32_t tile_q = plan->kernel->info.tile_q;
    const int32_t group = problem->num_heads / problem->num_kv_heads;
    const hr_kernel_args args = hr_plan_sequence_args(plan, sequence);
    const int32_t together = heads_together(plan, args.seqlen_q < tile_q ? args.seqlen_q : tile_q);
    int32_t heads;
    for (int32_t head = 0; head < problem->num_heads; head += heads) {
        const int32_t left = group - head % group;
        heads = left < together ? left : together;
        for (int32_t row = 0, end; row < args.seqlen_q; row = end) {
            end = task_end(plan, row, args.seqlen_q);
            const int64_t list = hr_plan_range_list(plan, sequence, head, row);
            hr_task task = {.sequence = sequence,
                            .head = head,
                            .heads = heads,
                            .q_begin = row,
                            .q_end = end,
                            .kv_end = args.seqlen_kv,
                            .first_range = plan->range_begin[list],
                            .part = HR_TASK_WHOLE};
            task.range_count = (int32_t)(plan->range_begin[list + 1] - task.first_range);
            narrow_task(plan, &task); /* without keys it still writes its rows */
            add_parts(lists, plan, &task, chunk);
        }
    }
}

size_t hr_plan_args_bytes(const hr_plan *plan)
{
    int32_t heads = 1;
    for (int64_t i = 0; i < plan->task_count; i++)
        if (plan->tasks[i].heads > heads) heads = plan->tasks[i].heads;
    return ((size_t)heads * sizeof(hr_kernel_args) + 63) / 64 * 64;
}

double hr_plan_count_flops(const hr_plan *plan)
{
    return 4.0 * plan->problem.head_dim * total_pairs(plan);
}

hr_status hr_plan_build_tasks(hr_plan *plan)
{
    const hr_attention_problem *problem = &plan->problem;
    const int64_t chunk = chunk_keys(plan);
    int64_t groups = 0;
    for (int32_t b = 0; b < problem->batch; b++) {
        const int32_t rows = problem->cu_seqlens_q[b + 1] - problem->cu_seqlens_q[b];
        for (int32_t row = 0; row < rows; row = task_end(plan, row, rows))
            groups++;
    }
    const bool deferred = plan->epilogue && (chunk || hr_plan_defers(plan, groups));
    task_lists lists = {.deferred = deferred};
    for (int32_t b = 0; b < problem->batch; b++)
        add_sequence(&lists, plan, b, chunk);
    plan->flops = hr_plan_count_flops(plan);
    plan->tasks = hr_alloc((size_t)lists.tasks, sizeof *plan->tasks);
    plan->merges = hr_alloc((size_t)lists.merges, sizeof *plan->merges);
    if (!plan->tasks || !plan->merges) return HR_ERROR_OUT_OF_MEMORY;

    lists = (task_lists){.task = plan->tasks, .merge = plan->merges, .deferred = deferred};
    for (int32_t b = 0; b < problem->batch; b++)
        add_sequence(&lists, plan, b, chunk);
    plan->task_count = lists.tasks;
    plan->merge_count = lists.merges;
    plan->parts = lists.parts;
    sort_tasks(plan);
    return HR_OK;
}
