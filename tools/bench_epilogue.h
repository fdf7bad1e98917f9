/*
 * What an epilogue fused into attention saves: for `headroom bench --epilogue`.
 */
#ifndef HEADROOM_BENCH_EPILOGUE_H
#define HEADROOM_BENCH_EPILOGUE_H

#include "cli.h"

typedef struct bench_epilogue {
    const hr_attention_problem *problem;
    const hr_recipe *recipe;
    const char *kernel;
    const hr_packed_layer *operands;
    hr_norm norm;
    int32_t threads, repeats;
} bench_epilogue;

/*
 * Sets *x_after to the median of attention and then hr_epilogue_run, over that of the fused plan,
 * in turn; residual, stream and output are F32. CLI_OK or CLI_FAILED, reported.
 */
int bench_epilogue_run(const bench_epilogue *bench, double *x_after);

#endif
