/*
 * How a plan's work is cut into tasks.
 *
 * Tasks are sorted longest first, so that with dynamic scheduling no thread starts a long task when
 * the others are about to finish; equal ones keep the order (sequence, head, row), which reads a
 * head's K and V from cache for all its query tiles.
 *
 * Decode has few tasks over many keys, and so its kv axis is cut at fixed multiples of chunk_keys:
 *
 *     keys    0 ........ c ........ 2c ........ 3c ...   part p of a task: keys [p c, (p + 1) c)
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
    SPLIT_MIN_KEYS = 2048    /* some 50 us of reading: starting and merging a chunk costs about 1 */
};

static int64_t task_work(const hr_task *task)
{
    return (int64_t)(task->q_end - task->q_begin) * task->heads * (task->kv_end - task->kv_begin);
}

static int compare_tasks(const void *left, const void *right)
{
    const hr_task *a = left, *b = right;
    int64_t work_a = task_work(a), work_b = task_work(b);
    if (work_a != work_b) return work_a > work_b ? -1 : 1;
    if (a->sequence != b->sequence) return a->sequence < b->sequence ? -1 : 1;
    if (a->head != b->head) return a->head < b->head ? -1 : 1;
    if (a->q_begin != b->q_begin) return a->q_begin < b->q_begin ? -1 : 1;
    return a->part < b->part ? -1 : a->part > b->part;
}

/*
 * The keys that rows [q_begin, q_end) see. Both ends of a row's range grow with the row, so the
 * union runs from the first row's start to the last row's end, unless a window leaves gaps.
 */
static void set_key_range(hr_task *task, const hr_kernel_args *args, int32_t tile_kv)
{
    int32_t first_lo, first_hi, last_lo, last_hi;
    hr_kernel_row_range(args, task->q_begin, &first_lo, &first_hi);
    hr_kernel_row_range(args, task->q_end - 1, &last_lo, &last_hi);
    if (first_lo >= last_hi) return;
    task->kv_begin = first_lo / tile_kv * tile_kv;
    task->kv_end = last_hi;
}

static int64_t visible_pairs(const hr_kernel_args *args)
{
    int64_t pairs = 0;
    for (int32_t row = 0; row < args->seqlen_q; row++) {
        int32_t lo, hi;
        hr_kernel_row_range(args, row, &lo, &hi);
        if (hi > lo) pairs += hi - lo;
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
} task_lists;

/* `whole` as one task, or as one a chunk of its keys. */
static void add_parts(task_lists *lists, const hr_task *whole, int64_t chunk)
{
    int64_t first = 0, parts = 1;
    if (chunk && whole->kv_begin < whole->kv_end) {
        first = whole->kv_begin / chunk;
        parts = (whole->kv_end - 1) / chunk - first + 1;
    }
    for (int64_t p = 0; p < parts; p++, lists->tasks++) {
        if (!lists->task) continue;
        hr_task *task = &lists->task[lists->tasks];
        *task = *whole;
        if (parts == 1) continue;
        const int64_t begin = (first + p) * chunk, end = begin + chunk;
        task->part = (int32_t)p;
        if (begin > whole->kv_begin) task->kv_begin = (int32_t)begin;
        if (end < whole->kv_end) task->kv_end = (int32_t)end;
    }
    if (parts == 1) return;
    if (lists->merge)
        lists->merge[lists->merges] = (hr_merge){.sequence = whole->sequence,
                                                 .head = whole->head,
                                                 .heads = whole->heads,
                                                 .q_begin = whole->q_begin,
                                                 .q_end = whole->q_end,
                                                 .parts = (int32_t)parts};
    lists->merges++;
    if (parts > lists->parts) lists->parts = (int32_t)parts;
}

/* Query heads that a task of `rows` rows takes together. */
static int32_t heads_together(const hr_plan *plan, int32_t rows)
{
    const hr_kernel_info *info = &plan->kernel->info;
    if (info->max_seqlen_q == 0 || rows == 0) return 1;
    const int32_t group = plan->problem.num_heads / plan->problem.num_kv_heads;
    return group * (int64_t)rows <= info->tile_q ? group : info->tile_q / rows;
}

static void add_sequence(task_lists *lists, const hr_plan *plan, int32_t sequence, int64_t chunk)
{
    const hr_attention_problem *problem = &plan->problem;
    const int32_t tile_q = plan->kernel->info.tile_q, tile_kv = plan->kernel->info.tile_kv;
    const int32_t group = problem->num_heads / problem->num_kv_heads;
    const hr_kernel_args args = hr_sequence_args(problem, sequence);
    const int32_t together = heads_together(plan, args.seqlen_q < tile_q ? args.seqlen_q : tile_q);
    int32_t heads;
    for (int32_t head = 0; head < problem->num_heads; head += heads) {
        const int32_t left = group - head % group;
        heads = left < together ? left : together;
        for (int32_t row = 0; row < args.seqlen_q; row += tile_q) {
            hr_task task = {.sequence = sequence,
                            .head = head,
                            .heads = heads,
                            .q_begin = row,
                            .part = HR_TASK_WHOLE};
            task.q_end = args.seqlen_q - row > tile_q ? row + tile_q : args.seqlen_q;
            set_key_range(&task, &args, tile_kv);
            add_parts(lists, &task, chunk);
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

hr_status hr_plan_build_tasks(hr_plan *plan)
{
    const hr_attention_problem *problem = &plan->problem;
    const int64_t chunk = chunk_keys(plan);
    task_lists lists = {0};
    double pairs = 0;
    for (int32_t b = 0; b < problem->batch; b++) {
        hr_kernel_args args = hr_sequence_args(problem, b);
        pairs += (double)visible_pairs(&args);
        add_sequence(&lists, plan, b, chunk);
    }
    plan->flops = 4.0 * problem->head_dim * problem->num_heads * pairs;
    plan->tasks = hr_alloc((size_t)lists.tasks, sizeof *plan->tasks);
    plan->merges = hr_alloc((size_t)lists.merges, sizeof *plan->merges);
    if (!plan->tasks || !plan->merges) return HR_ERROR_OUT_OF_MEMORY;

    lists = (task_lists){.task = plan->tasks, .merge = plan->merges};
    for (int32_t b = 0; b < problem->batch; b++)
        add_sequence(&lists, plan, b, chunk);
    plan->task_count = lists.tasks;
    plan->merge_count = lists.merges;
    plan->parts = lists.parts;
    qsort(plan->tasks, (size_t)plan->task_count, sizeof *plan->tasks, compare_tasks);
    return HR_OK;
}
