/*
 * Inside of a plan: the validated problem, the chosen kernel and the list of tasks.
 *
 * A task is up to tile_q neighbouring query rows of one head of one sequence, with the range of
 * keys that any of them sees. Tasks are independent and each is computed by one thread, so results
 * are the same bits whatever the number of threads.
 */
#ifndef HEADROOM_PLAN_H
#define HEADROOM_PLAN_H

#include "kernel.h"

typedef struct hr_task {
    int32_t sequence, head;
    int32_t q_begin, q_end;
    int32_t kv_begin, kv_end; /* equal: no row of the task sees any key, and no kernel is called */
} hr_task;

struct hr_plan {
    hr_attention_problem problem; /* its arrays point to the copies below */
    int32_t *cu_seqlens_q, *cu_seqlens_kv;
    float *alibi_slopes, *sinks;
    hr_recipe recipe;
    const hr_kernel *kernel;
    int32_t threads;
    size_t scratch_stride; /* bytes a thread, a multiple of 64 */
    unsigned char *scratch;
    hr_task *tasks; /* most work first */
    int64_t task_count;
    double flops;
};

/* Checks every field against the rules of headroom/attention.h. */
hr_status hr_attention_problem_check(const hr_attention_problem *problem) HR_NODISCARD;

/* The lengths and mask of one sequence as a kernel sees them; other fields are zero. */
hr_kernel_args hr_sequence_args(const hr_attention_problem *problem, int32_t sequence);

/* Fills tasks, task_count and flops of a plan whose problem and kernel are set. */
hr_status hr_plan_build_tasks(hr_plan *plan) HR_NODISCARD;

/* HR_ERROR_MISMATCH, naming the field, unless the operands are what the plan's kernel reads. */
hr_status hr_plan_check_operands(const hr_plan *plan, const hr_packed_layer *operands) HR_NODISCARD;

#endif
