/*
 * Reading one head of a [tokens, heads, head_dim] view as contiguous floats.
 */
#ifndef HEADROOM_TENSOR_ROWS_H
#define HEADROOM_TENSOR_ROWS_H

#include "headroom/tensor.h"

/*
 * HR_OK when the view is [tokens, heads, head_dim] in F32, F16 or BF16 with non-NULL data (or no
 * elements). `name` goes into the message.
 */
hr_status hr_tensor_rows_check(const hr_tensor *tensor, const char *name) HR_NODISCARD;

/*
 * rows [count, head_dim] = tokens first .. first + count - 1 of head `head`. Returns the index in
 * rows of the first element that is NaN or infinite, or -1. The view must have passed the check.
 */
int64_t hr_tensor_rows_load(const hr_tensor *tensor, int32_t head, int64_t first, int64_t count,
                            float *rows);

#endif
