/*
 * Decode with recipe `int8` on AVX-512 VNNI: up to 16 queries of each head, K and V in rows. The
 * arithmetic is integer_softmax.h, bit for bit; the work is integer_decode_avx512vnni.h.
 */
#include "integer_decode_avx512vnni.h"
#include "kernel_rows.h"

static void decode_bytes(const hr_kernel_args *args)
{
    integer_decode(args, CODES_BYTES);
}

#define DEFINE_ENTRY(recipe)                                                                       \
    void hr_attention_##recipe##_avx512vnni(const hr_kernel_args *args)                            \
    {                                                                                              \
        decode_bytes(args);                                                                        \
    }                                                                                              \
    size_t hr_attention_##recipe##_avx512vnni_scratch(int32_t head_dim)                            \
    {                                                                                              \
        return integer_decode_scratch(head_dim);                                                   \
    }

/* One row of kernels.def a format of P; hr_kernel_args.p_dtype tells the code which it is. */
DEFINE_ENTRY(int8_decode)
DEFINE_ENTRY(int8_p16_decode)
