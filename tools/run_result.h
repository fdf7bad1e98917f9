/*
 * What headroom run computed: kept while it runs, then written to a file and printed.
 */
#ifndef HEADROOM_RUN_RESULT_H
#define HEADROOM_RUN_RESULT_H

#include "cli.h"

/* One layer's result, kept until the file is written. */
typedef struct layer_output {
    int32_t layer, num_heads, head_dim;
    int64_t total_q;
    const char *kernel; /* NULL: of each head its own */
    float *o, *lse;
    hr_error error; /* with --check */
} layer_output;

/* The heads that have one config of a choice. */
typedef struct run_part {
    hr_choice_config config; /* its profile is not to be used: the choice has been closed */
    const char *kernel;      /* of the first layer that has such heads */
    int64_t kv_heads;        /* of all layers */
} run_part;

typedef struct run_result {
    layer_output *layers;
    int32_t count;
    char *recipe, *kernel, *model; /* the first two of a choice: all, with "; " between */
    run_part *parts;               /* of a choice, [part_count] */
    int32_t part_count;
    const char *output, *choice; /* paths; choice: NULL when there was none */
    bool checked;
    double check_max;         /* of rel_l2; infinite: any */
    bool against_dequantized; /* a packed file has no originals: e_kernel, not e_total */
} run_result;

/* Writes O and LSE of all layers to result->output. CLI_OK or CLI_FAILED, reported. */
int run_result_write(run_result *result);

/*
 * Prints what ran and, where they were checked, the errors. CLI_FAILED where one is above check_max
 * or an output is not finite.
 */
int run_result_print(const run_result *result, bool json);

void run_result_free(run_result *result);

#endif
