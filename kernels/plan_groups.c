/*
 * Groups of tasks for plans with an epilogue: all heads of a query tile, which one thread finishes
 * so that the rows are still in its cache when they are normalized.
 *
 *     direct     for each group: its tasks, heads in turn, into the thread's tile; the epilogue
 *     deferred   all tasks as without an epilogue, into parts; then for each group: its merges into
 *                the thread's tile; the epilogue
 *
 * Deferred is for plans whose kv axis is split, for those with so few query tiles that a thread for
 * each would leave others idle, and for those whose K and V are more than a cache keeps from one
 * query tile to the next: taking heads in turn would then read them anew for each tile, which costs
 * more than writing O and reading it once (measured: docs/epilogue.md). Which of the two depends on
 * the problem, never on the number of threads.
 */
#include <stdlib.h>

#include "memory.h"
#include "plan.h"

enum { FEW_GROUPS = 16, CACHED_KV_BYTES = 1 << 20 };

bool hr_plan_defers(const hr_plan *plan, int64_t groups)
{
    const hr_attention_problem *problem = &plan->problem;
    const double elements = 2.0 * problem->num_kv_heads * problem->head_dim *
                            hr_longest_sequence(problem->cu_seqlens_kv, problem->batch);
    const double bytes = elements * hr_recipe_kv_bits(&plan->recipe, problem->head_dim) / 8;
    return plan->epilogue && (groups < FEW_GROUPS || bytes > CACHED_KV_BYTES);
}

static int compare_rows(int32_t sequence_a, int32_t q_a, int32_t head_a, int32_t sequence_b,
                        int32_t q_b, int32_t head_b)
{
    if (sequence_a != sequence_b) return sequence_a < sequence_b ? -1 : 1;
    if (q_a != q_b) return q_a < q_b ? -1 : 1;
    return head_a < head_b ? -1 : head_a > head_b;
}

static int compare_tasks(const void *left, const void *right)
{
    const hr_task *a = left, *b = right;
    return compare_rows(a->sequence, a->q_begin, a->head, b->sequence, b->q_begin, b->head);
}

static int compare_merges(const void *left, const void *right)
{
    const hr_merge *a = left, *b = right;
    return compare_rows(a->sequence, a->q_begin, a->head, b->sequence, b->q_begin, b->head);
}

/* Most work first; equal ones in order. */
static int compare_groups(const void *left, const void *right)
{
    const hr_group *a = left, *b = right;
    if (a->work != b->work) return a->work > b->work ? -1 : 1;
    return a->first < b->first ? -1 : a->first > b->first;
}

/* Joins member `index` to the last group, or begins one with it. */
static void add_member(hr_plan *plan, int64_t index, int32_t sequence, int32_t q_begin,
                       int32_t q_end, int64_t work)
{
    hr_group *last = plan->group_count ? &plan->groups[plan->group_count - 1] : NULL;
    if (!last || last->sequence != sequence || last->q_begin != q_begin) {
        last = &plan->groups[plan->group_count++];
        *last =
            (hr_group){.sequence = sequence, .q_begin = q_begin, .q_end = q_end, .first = index};
    }
    last->count++;
    last->work += work;
    if (q_end - q_begin > plan->group_rows) plan->group_rows = q_end - q_begin;
}

hr_status hr_plan_build_groups(hr_plan *plan)
{
    const bool deferred = plan->parts > 0;
    const int64_t members = deferred ? plan->merge_count : plan->task_count;
    plan->groups = hr_alloc((size_t)members, sizeof *plan->groups);
    if (!plan->groups) return HR_ERROR_OUT_OF_MEMORY;
    if (deferred)
        qsort(plan->merges, (size_t)members, sizeof *plan->merges, compare_merges);
    else
        qsort(plan->tasks, (size_t)members, sizeof *plan->tasks, compare_tasks);
    for (int64_t i = 0; i < members; i++) {
        const hr_task *task = &plan->tasks[i];
        const hr_merge *merge = &plan->merges[i];
        if (deferred)
            add_member(plan, i, merge->sequence, merge->q_begin, merge->q_end, 0);
        else
            add_member(plan, i, task->sequence, task->q_begin, task->q_end,
                       (int64_t)task->heads * task->keys);
    }
    qsort(plan->groups, (size_t)plan->group_count, sizeof *plan->groups, compare_groups);
    return HR_OK;
}
