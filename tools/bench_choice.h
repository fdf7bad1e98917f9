/*
 * headroom bench --choice: the layers of a choice on synthetic inputs of their shapes, each head
 * with its recipe, beside the bf16 kernel.
 */
#ifndef HEADROOM_BENCH_CHOICE_H
#define HEADROOM_BENCH_CHOICE_H

#include "bench_job.h"

typedef struct bench_choice {
    const char *path;
    int32_t seqlen_q, seqlen_kv, batch;
    bool causal;
    const cli_mask *mask;
    hr_device device;
    int32_t repeats, threads;
} bench_choice;

/*
 * Prints a table, a row a layer and one for all; or, with json, puts the layers into rows. CLI_OK,
 * or CLI_FAILED or CLI_USAGE, reported.
 */
int bench_choice_run(const bench_choice *bench, json_t *rows, bool json);

#endif
