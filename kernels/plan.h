/*
 * Inside of a plan: the validated problem, the chosen kernel and the list of tasks.
 *
 * A task is up to tile_q neighbouring query rows of one head of one sequence (of all heads that
 * share a KV head, for decode kernels), with the ranges of keys that any of them sees; with a
 * block-sparse mask all of one row of blocks, so that the ranges are the same for all. Few queries
 * over many keys are split into tasks along the keys too, whose results are merged afterwards.
 * Tasks are independent, each is computed by one thread, and how they are cut does not depend on
 * the number of threads: results are the same bits whatever that is.
 */
#ifndef HEADROOM_PLAN_H
#define HEADROOM_PLAN_H

#include "kernel.h"

typedef struct hr_task {
    int32_t sequence;
    int32_t head, heads; /* query heads [head, head + heads), of one KV head */
    int32_t q_begin, q_end;
    int32_t kv_begin, kv_end; /* equal: no row of the task sees any key, and no kernel is called */
    int32_t range_count;      /* hr_plan.ranges [first_range, first_range + range_count) */
    int64_t first_range;
    int64_t keys; /* in the ranges, less those that no row sees */
    int32_t part; /* its part of a split kv axis; HR_TASK_WHOLE: not split */
    bool by_head; /* runs beside the other tasks of its head */
} hr_task;

enum { HR_TASK_WHOLE = -1 };

/* The rows of tasks that were split: parts 0 .. parts - 1 are merged when all tasks are done. */
typedef struct hr_merge {
    int32_t sequence, head, heads, q_begin, q_end, parts;
} hr_merge;

/* All heads of a query tile: tasks, or merges when there are any (plan_groups.c). */
typedef struct hr_group {
    int32_t sequence, q_begin, q_end;
    int64_t first, count; /* tasks or merges [first, first + count) */
    int64_t work;
} hr_group;

struct hr_plan_device;
typedef struct hr_plan_residual hr_plan_residual;

struct hr_plan {
    hr_attention_problem problem; /* its arrays point to the copies below */
    int32_t *cu_seqlens_q, *cu_seqlens_kv, *block_table;
    int32_t *keys_before, *keys_after; /* [batch] of each sequence, not this plan's; NULL: none */
    float *alibi_slopes, *sinks;
    hr_recipe recipe;
    const hr_kernel *kernel;
    uint32_t isa_mask; /* that the kernel may use */
    int32_t threads;
    size_t args_bytes;     /* of an array of hr_kernel_args, rounded up to 64 */
    size_t tile_offset;    /* of a group's rows, after the array and the kernel's scratch */
    size_t scratch_stride; /* bytes a thread, a multiple of 64: all three */
    unsigned char *scratch;
    hr_kernel_range *ranges; /* lists of ranges, one after the other: hr_plan_range_list */
    int64_t *range_begin;    /* where each list begins; [lists + 1] */
    hr_task *tasks;          /* most work first */
    int64_t task_count;
    int32_t kv_splits; /* hr_plan_options.kv_splits */
    hr_merge *merges;
    int64_t merge_count;
    int32_t parts;            /* most parts a merge has; 0: nothing is split */
    float *part_o, *part_lse; /* [parts][total_q][num_heads][head_dim]; the same less head_dim */
    double flops;
    hr_epilogue *epilogue; /* NULL: none; of hr_epilogue_copy */
    hr_group *groups;      /* with an epilogue only; most work first */
    int64_t group_count;
    int32_t group_rows;            /* most rows a group has */
    hr_plan_residual *residual;    /* NULL: this is all of the plan */
    struct hr_plan_device *device; /* NULL on the CPU; else nothing from tasks to parts is used */
};

/* HR_ERROR_INVALID_ARGUMENT unless it starts with 0 and never decreases. [batch + 1] */
hr_status hr_cu_seqlens_check(const char *name, const int32_t *cu_seqlens,
                              int32_t batch) HR_NODISCARD;

/* Checks a block mask against the lengths and heads of a problem. */
hr_status hr_block_mask_check(const hr_block_mask *mask,
                              const hr_attention_problem *problem) HR_NODISCARD;

/* The row of the block mask, as in its row_begin, that a query has. */
int64_t hr_block_mask_row(const hr_block_mask *mask, const hr_attention_problem *problem,
                          int32_t sequence, int32_t head, int32_t query);

/* visible [seqlen_kv]: which keys a query sees, by the words of headroom/attention.h. */
void hr_mask_row(const hr_attention_problem *problem, int32_t sequence, int32_t head, int32_t query,
                 bool *visible);

/* Checks every field against the rules of headroom/attention.h. */
hr_status hr_attention_problem_check(const hr_attention_problem *problem) HR_NODISCARD;

/* hr_kernel_query_from for some keys of a problem that has been checked: a block mask's rows are of
 * all its keys. */
hr_status hr_kernel_query_of_part(const hr_attention_problem *problem, const hr_recipe *recipe,
                                  hr_kernel_query *out) HR_NODISCARD;

/* The lengths and mask of one sequence as a kernel sees them; other fields are zero. */
hr_kernel_args hr_sequence_args(const hr_attention_problem *problem, int32_t sequence);

/* The same, where the plan's keys are followed by others. */
hr_kernel_args hr_plan_sequence_args(const hr_plan *plan, int32_t sequence);

int32_t hr_longest_sequence(const int32_t *cu_seqlens, int32_t batch);

/* Fills ranges and range_begin of a plan whose problem is set, block mask included. */
hr_status hr_plan_build_ranges(hr_plan *plan) HR_NODISCARD;

/* The number of the list of ranges that a query has; the block mask must still be there. */
int64_t hr_plan_range_list(const hr_plan *plan, int32_t sequence, int32_t head, int32_t query);

/* Floating-point operations that the mask leaves; ranges are built. */
double hr_plan_count_flops(const hr_plan *plan);

/* Fills tasks, merges, parts and flops of a plan with problem, kernel, kv_splits and ranges. */
hr_status hr_plan_build_tasks(hr_plan *plan) HR_NODISCARD;

/* True when a plan with an epilogue and so many query tiles computes attention before it. */
bool hr_plan_defers(const hr_plan *plan, int64_t groups);

/* Fills groups of a plan with an epilogue from its tasks or merges, which are put in its order. */
hr_status hr_plan_build_groups(hr_plan *plan) HR_NODISCARD;

/* What one run reads and writes: K and V either packed or in a cache. */
typedef struct hr_plan_io {
    const hr_packed *q, *k, *v;
    const hr_kv_cache *cache; /* NULL: k and v */
    const hr_tensor *o, *lse;
    const hr_tensor *residual, *stream; /* of the epilogue; NULL: none */
} hr_plan_io;

/* Checks and runs: hr_plan_run_tensors without a residual. */
hr_status hr_plan_run_io(const hr_plan *plan, const hr_plan_io *io) HR_NODISCARD;

/*
 * HR_ERROR_MISMATCH unless o, lse and the epilogue's tensors have the plan's shape; the last two
 * are HR_ERROR_INVALID_ARGUMENT for a plan without an epilogue.
 */
hr_status hr_plan_check_outputs(const hr_plan *plan, const hr_plan_io *io) HR_NODISCARD;

/* Bytes of one hr_kernel_args for each head of the task with most heads, a multiple of 64. */
size_t hr_plan_args_bytes(const hr_plan *plan);

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

/*
 * One row of hr_merge_states: part p has its O at o + p * o_stride and its LSE at lse + p *
 * lse_stride. `sink` is -inf without one; out_lse may be NULL.
 */
void hr_merge_row(const float *o, int64_t o_stride, const float *lse, int64_t lse_stride,
                  int32_t parts, int32_t head_dim, float sink, float *out, float *out_lse);

#endif
