/*
 * Recipes `int8` and `int4` on AVX-512 VNNI with K and V in blocks of 16 tokens, which caches for
 * decode hold: Q I8, each of K and V I8 or 4-bit. Tiles are filled by
 * integer_expand_blocks_avx512vnni.c; the body of the `int8` recipe does the rest.
 */
#include "integer_expand_avx512vnni.h"
#include "kernel_rows.h"

#define DEFINE_ENTRY(recipe)                                                                       \
    void hr_attention_##recipe##_avx512vnni(const hr_kernel_args *args)                            \
    {                                                                                              \
        hr_integer_attention_avx512vnni(args, hr_integer_expand_blocks_avx512vnni);                \
    }                                                                                              \
    size_t hr_attention_##recipe##_avx512vnni_scratch(int32_t head_dim)                            \
    {                                                                                              \
        return hr_integer_expand_avx512vnni_scratch(head_dim);                                     \
    }

/* One row of kernels.def a format; hr_kernel_operand.dtype tells the code which it is. */
DEFINE_ENTRY(int8_blocks)
DEFINE_ENTRY(int8_p16_blocks)
DEFINE_ENTRY(int8_int4_blocks)
DEFINE_ENTRY(int4_int8_blocks)
DEFINE_ENTRY(int4_blocks)
DEFINE_ENTRY(int4_uniform_blocks)
DEFINE_ENTRY(int4_asymmetric_blocks)
