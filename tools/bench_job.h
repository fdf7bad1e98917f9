/*
 * What headroom bench runs: synthetic inputs of a shape, packed with a recipe (or stored in paged
 * KV caches), and the plan of one kernel on them.
 */
#ifndef HEADROOM_BENCH_JOB_H
#define HEADROOM_BENCH_JOB_H

#include "mask_option.h"

/* Besides CLI_OK, CLI_FAILED and CLI_USAGE: the library does not do this case; reported. */
enum { BENCH_SKIPPED = -1 };

typedef struct bench_shape {
    int32_t head_dim, seqlen_q, seqlen_kv, num_heads, num_kv_heads;
    int32_t batch;     /* sequences of these lengths */
    int32_t page_size; /* 0: K and V are contiguous */
    bool causal;
} bench_shape;

typedef struct bench_job_options {
    const char *name; /* for messages */
    bench_shape shape;
    const cli_mask *mask; /* NULL: none but causality */
    const hr_recipe *recipe;
    const char *kernel; /* NULL: the best */
    hr_device device;
    int32_t threads;
    int64_t cold_bytes; /* memory that the copies of K and V take together at least; 0: one copy */
} bench_job_options;

typedef struct bench_job {
    const char *name;
    bench_shape shape;
    hr_recipe recipe;
    hr_attention_problem problem;
    hr_block_mask blocks;
    int32_t *cu_q, *cu_kv, *block_table;
    float *q, *k, *v, *o;
    hr_plan *plan;          /* NULL: the job is not there */
    hr_packed_layer packed; /* with pages: Q only */
    double kv_bytes;        /* of K and V once */
    int32_t copies;         /* of K and V, which runs go through in turn; at least 1 */
    hr_packed_layer
        *copy; /* [copies] K and V with packed's Q, and how they are run; without pages */
    hr_device_run **run;
    hr_kv_cache **cache; /* [copies], with pages */
    int32_t rounds;      /* of all copies that are timed together; 0: one */
} bench_job;

/* Of a cache: the layouts that a named kernel reads, or those that decode fastest. */
hr_status bench_layouts(const hr_recipe *recipe, int32_t head_dim, const char *kernel, hr_layout *k,
                        hr_layout *v);

/* Release with bench_job_free, on failure too. The name must live as long as the job. */
int bench_job_create(bench_job *job, const bench_job_options *options);
void bench_job_free(bench_job *job);

/* The inputs, as long as bench_job_check has not been called. */
void bench_job_tensors(const bench_job *job, hr_tensor *q, hr_tensor *k, hr_tensor *v);

/* Seconds a run takes, the mean over rounds and copies. */
int bench_job_run(bench_job *job, double *seconds);

/* Runs once, untimed, and finds how many runs a timed one has. */
int bench_job_warm_up(bench_job *job);

/* The kernel's output against the oracle on the dequantized inputs; overwrites q, k and v. */
int bench_job_check(bench_job *job, hr_error *error);

#endif
