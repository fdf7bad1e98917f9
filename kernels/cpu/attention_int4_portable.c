/*
 * Recipe `int4` in plain C: Q is I8, K and V are I4, U4 or C4 in rows. Nibbles become int16 codes a
 * tile at a time (integer_expand_nibbles.c); the rest is the arithmetic of integer_softmax.h, in
 * integer_body.c.
 */
#include "integer_body.h"
#include "kernel_rows.h"

#define DEFINE_ENTRY(recipe, expand_k, expand_v)                                                   \
    void hr_attention_##recipe##_portable(const hr_kernel_args *args)                              \
    {                                                                                              \
        hr_integer_attention_portable(args, expand_k, expand_v);                                   \
    }                                                                                              \
    size_t hr_attention_##recipe##_portable_scratch(int32_t head_dim)                              \
    {                                                                                              \
        return hr_integer_attention_portable_scratch(head_dim);                                    \
    }

/* One row of kernels.def a format; hr_kernel_operand.dtype tells the code which it is. */
DEFINE_ENTRY(int4, hr_integer_expand_nibbles, hr_integer_expand_nibbles)
DEFINE_ENTRY(int4_uniform, hr_integer_expand_nibbles, hr_integer_expand_nibbles)
DEFINE_ENTRY(int4_asymmetric, hr_integer_expand_nibbles, hr_integer_expand_nibbles)

/* One of K and V in I8, the other in 4 bits. */
DEFINE_ENTRY(int8_int4, hr_integer_expand_i8, hr_integer_expand_nibbles)
DEFINE_ENTRY(int4_int8, hr_integer_expand_nibbles, hr_integer_expand_i8)
