/*
 * Decode with recipe `int8` on AVX-512 VNNI: up to 16 queries of each head, K and V in blocks of 16
 * keys. The arithmetic is integer_softmax.h, bit for bit; the work is
 * integer_blocks_decode_avx512vnni.h.
 */
#include "integer_blocks_decode_avx512vnni.h"
#include "kernel_rows.h"

static void decode_blocks(const hr_kernel_args *args)
{
    integer_blocks_decode(args, false);
}

#define DEFINE_ENTRY(recipe)                                                                       \
    void hr_attention_##recipe##_avx512vnni(const hr_kernel_args *args)                            \
    {                                                                                              \
        decode_blocks(args);                                                                       \
    }                                                                                              \
    size_t hr_attention_##recipe##_avx512vnni_scratch(int32_t head_dim)                            \
    {                                                                                              \
        return integer_blocks_scratch(head_dim);                                                   \
    }

/* One row of kernels.def a format of P; hr_kernel_args.p_dtype tells the code which it is. */
DEFINE_ENTRY(int8_blocks_decode)
DEFINE_ENTRY(int8_p16_blocks_decode)
