/*
 * Decode with recipe `int4` on AVX-512 VNNI, and with one of K and V in 8 bits: as
 * attention_int8_blocks_decode_avx512vnni.c with nibbles expanded on their way to the products. One
 * body for all formats: hr_kernel_operand.dtype tells which they are.
 */
#include "integer_blocks_decode_avx512vnni.h"
#include "kernel_rows.h"

static void decode_blocks(const hr_kernel_args *args)
{
    integer_blocks_decode(args, true);
}

#define DEFINE_ENTRY(recipe)                                                                       \
    void hr_attention_##recipe##_blocks_decode_avx512vnni(const hr_kernel_args *args)              \
    {                                                                                              \
        decode_blocks(args);                                                                       \
    }                                                                                              \
    size_t hr_attention_##recipe##_blocks_decode_avx512vnni_scratch(int32_t head_dim)              \
    {                                                                                              \
        return integer_blocks_scratch(head_dim);                                                   \
    }

DEFINE_ENTRY(int4)
DEFINE_ENTRY(int4_uniform)
DEFINE_ENTRY(int4_asymmetric)
DEFINE_ENTRY(int8_int4)
DEFINE_ENTRY(int4_int8)
