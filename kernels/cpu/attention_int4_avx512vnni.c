/*
 * Recipes `int4` and `int8` on AVX-512 VNNI with K and V in rows, so that they can be in pages: Q
 * I8, each of K and V I8 or 4-bit. Tiles are expanded by integer_expand_avx512vnni.c; the body of
 * the `int8` recipe does the rest. Scales are per token, group, block, head or tensor.
 */
#include "integer_expand_avx512vnni.h"
#include "kernel_rows.h"

#define DEFINE_ENTRY(recipe)                                                                       \
    void hr_attention_##recipe##_avx512vnni(const hr_kernel_args *args)                            \
    {                                                                                              \
        hr_integer_attention_avx512vnni(args, hr_integer_expand_avx512vnni);                       \
    }                                                                                              \
    size_t hr_attention_##recipe##_avx512vnni_scratch(int32_t head_dim)                            \
    {                                                                                              \
        return hr_integer_expand_avx512vnni_scratch(head_dim);                                     \
    }

/* One row of kernels.def a format; hr_kernel_operand.dtype tells the code which it is. */
DEFINE_ENTRY(int4)
DEFINE_ENTRY(int4_uniform)
DEFINE_ENTRY(int4_asymmetric)
DEFINE_ENTRY(int8_rows)
DEFINE_ENTRY(int8_p16_rows)
DEFINE_ENTRY(int8_int4)
DEFINE_ENTRY(int4_int8)
