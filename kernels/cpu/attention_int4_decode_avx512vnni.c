/*
 * Decode with recipe `int4` on AVX-512 VNNI: K and V are rows of nibbles, which become INT8 on the
 * way into the first-level cache; then as with recipe `int8`. One entry for each 4-bit format:
 * hr_kernel_operand.dtype tells the code which it is. int8_int4 and int4_int8 have one of K and V
 * in 8 bits.
 */
#include "integer_decode_avx512vnni.h"
#include "kernel_rows.h"

static void decode_nibbles(const hr_kernel_args *args)
{
    integer_decode(args, CODES_NIBBLES);
}

static void decode_shifted(const hr_kernel_args *args)
{
    integer_decode(args, CODES_SHIFTED);
}

#define DEFINE_ENTRY(recipe, decode)                                                               \
    void hr_attention_##recipe##_decode_avx512vnni(const hr_kernel_args *args)                     \
    {                                                                                              \
        decode(args);                                                                              \
    }                                                                                              \
    size_t hr_attention_##recipe##_decode_avx512vnni_scratch(int32_t head_dim)                     \
    {                                                                                              \
        return integer_decode_scratch(head_dim);                                                   \
    }

static void decode_bytes_nibbles(const hr_kernel_args *args)
{
    integer_decode(args, CODES_BYTES_NIBBLES);
}

static void decode_nibbles_bytes(const hr_kernel_args *args)
{
    integer_decode(args, CODES_NIBBLES_BYTES);
}

DEFINE_ENTRY(int4, decode_nibbles)
DEFINE_ENTRY(int4_uniform, decode_nibbles)
DEFINE_ENTRY(int4_asymmetric, decode_shifted)
DEFINE_ENTRY(int8_int4, decode_bytes_nibbles)
DEFINE_ENTRY(int4_int8, decode_nibbles_bytes)
