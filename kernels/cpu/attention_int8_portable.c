/*
 * Recipe `int8` in plain C: Q, K and V are I8 in rows. Scales of K and V may also be per group of
 * channels. The arithmetic is integer_softmax.h, the work is integer_body.c.
 */
#include "integer_body.h"
#include "kernel_rows.h"

#define DEFINE_ENTRY(recipe)                                                                       \
    void hr_attention_##recipe##_portable(const hr_kernel_args *args)                              \
    {                                                                                              \
        hr_integer_attention_portable(args, hr_integer_expand_i8, hr_integer_expand_i8);           \
    }                                                                                              \
    size_t hr_attention_##recipe##_portable_scratch(int32_t head_dim)                              \
    {                                                                                              \
        return hr_integer_attention_portable_scratch(head_dim);                                    \
    }

/* One row of kernels.def a format of P; hr_kernel_args.p_dtype tells the code which it is. */
DEFINE_ENTRY(int8)
DEFINE_ENTRY(int8_p16)
