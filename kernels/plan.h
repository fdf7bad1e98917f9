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
    int32_t *cu_seqlens_q, *cu_seqlens_kv, *block_table;
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

/* What one run reads and writes: K and V either packed or in a cache. */
typedef struct hr_plan_io {
    const hr_packed *q, *k, *v;
    const hr_kv_cache *cache; /* NULL: k and v */
    const hr_tensor *o, *lse;
} hr_plan_io;

/* HR_ERROR_MISMATCH, naming the field, unless the operands are what the plan's kernel reads. */
hr_status hr_plan_check_operands(const hr_plan *plan, const hr_plan_io *io) HR_NODISCARD;

/* The same for the cache of a paged plan, against which io->q is checked too. */
hr_status hr_plan_check_cache(const hr_plan *plan, const hr_plan_io *io) HR_NODISCARD;

/* Both of K and V, or Q, against the plan's recipe and problem. */
hr_status hr_plan_check_recipe(const char *name, const hr_operand_recipe *has,
                               const hr_operand_recipe *wanted) HR_NODISCARD;
hr_status hr_plan_check_rope(const char *name, const hr_rope *has,
                             const hr_rope *wanted) HR_NODISCARD;

/* K or V of a cache as the kernel sees it from one KV head of one sequence. */
hr_kernel_operand hr_plan_paged_operand(const hr_plan *plan, const hr_kv_cache *cache,
                                        hr_operand operand, int32_t kv_head, int32_t sequence);

#endif
