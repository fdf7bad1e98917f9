/*
 * What may follow attention in the same pass: see hr_epilogue in headroom/attention.h.
 */
#ifndef HEADROOM_EPILOGUE_H
#define HEADROOM_EPILOGUE_H

#include "headroom/attention.h"

hr_status hr_epilogue_check(const hr_epilogue *epilogue) HR_NODISCARD;

/* Checks it and copies it, weight and bias included, into one piece of memory that free() frees. */
hr_status hr_epilogue_copy(const hr_epilogue *epilogue, const hr_attention_problem *problem,
                           hr_epilogue **out) HR_NODISCARD;

/* The rows that one call finishes: `count` tokens from `first` on. */
typedef struct hr_epilogue_rows {
    float *o; /* [count][hidden]: attention's output, all heads; overwritten */
    int64_t first, count;
    int32_t hidden;
    const hr_tensor *residual, *stream; /* NULL: none */
    const hr_tensor *out;
} hr_epilogue_rows;

/* Writes stream and out of the rows. Tensors have been checked. */
void hr_epilogue_apply(const hr_epilogue *epilogue, const hr_epilogue_rows *rows);

#endif
