/*
 * One case of headroom bench: a kernel on one shape. Inputs are made, packed, checked against the
 * oracle on a small problem and timed in turn with the machine's peaks.
 */
#ifndef HEADROOM_BENCH_CASE_H
#define HEADROOM_BENCH_CASE_H

#include "bench_job.h"

typedef struct bench_case {
    const hr_kernel_info *kernel;
    bench_shape shape;
    const cli_mask *mask;   /* what else hides keys */
    hr_norm norm;           /* of an epilogue that is timed fused and afterwards; NONE: is not */
    const hr_recipe *given; /* NULL: the preset the kernel serves */
    hr_recipe recipe;       /* set by bench_case_name */
    char name[512];         /* likewise */
} bench_case;

typedef struct bench_result {
    int32_t repeats, threads;
    double median_ms, min_ms, max_ms;
    double gops;       /* 1e9 multiply-adds x 2 the mask leaves, a second */
    double roof_gops;  /* the register-only peak loop of the kernel's arithmetic */
    double roof_ratio; /* median over repeats of gops / the roof measured beside it */
    double kv_gbps;    /* packed K and V bytes / time */
    double roof_gbps;  /* streaming read */
    double kv_ratio;   /* median over repeats of kv_gbps / the streaming read beside it */
    double x_bf16;     /* median of the bf16 kernel on this shape / this median; NaN when not run */
    double density;    /* pairs that the options of mask leave, of those without them */
    double x_after;    /* attention, then the epilogue / both fused; NaN without one */
    double x_dense;    /* median of this kernel without them / this median; 1 without options */
    hr_error check;    /* e_kernel on the small problem */
} bench_result;

typedef struct bench_state {
    hr_device device;
    int32_t repeats, threads;
    int32_t cases;      /* timed so far */
    int32_t skipped;    /* and those that could not be */
    bool naming;        /* cases are named, not run, */
    int name_width;     /* for the longest name */
    int64_t cold_bytes; /* memory that the copies of K and V take together at least; 0: one copy */
    void *stream;       /* read by the streaming loop */
    size_t stream_bytes;
} bench_state;

int bench_state_init(bench_state *state);
void bench_state_free(bench_state *state);

/* Chooses the recipe and names the case; false when the kernel does not serve it. */
bool bench_case_name(bench_case *c);

/* Whether the kernel (NULL: any of this machine) serves the case; else hr_last_error says why. */
hr_status bench_case_find(const bench_case *c, const char *kernel);

/* CLI_OK, or an error or BENCH_SKIPPED, reported. */
int bench_case_run(const bench_case *c, bench_state *state, bench_result *out);

#endif
