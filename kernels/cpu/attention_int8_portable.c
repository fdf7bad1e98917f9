/*
 * Recipe `int8` in plain C: Q, K and V are I8 in rows. Scales of K and V may also be per group of
 * channels. The arithmetic is integer_softmax.h, the work is integer_body.c.
 */
#include "integer_body.h"
#include "kernel_rows.h"

void hr_attention_int8_portable(const hr_kernel_args *args)
{
    hr_integer_attention_portable(args, hr_integer_expand_i8, hr_integer_expand_i8);
}

size_t hr_attention_int8_portable_scratch(int32_t head_dim)
{
    return hr_integer_attention_portable_scratch(head_dim);
}
