/*
 * Decode with recipe `int4` on AVX-512 VNNI where K's scales are in groups of channels, and V's in
 * groups or not: nibbles become bytes and a group's products are exact in int32; see
 * integer_decode_groups_avx512vnni.h.
 */
#include "integer_decode_groups_avx512vnni.h"
#include "kernel_rows.h"

/* Rows of a half and of one cache line are compiled on their own. */
static void decode_nibbles(const hr_kernel_args *args)
{
    if (args->head_dim == PART)
        decode_group_rows(args, CODES_NIBBLES, PART / 2, PART / 2);
    else if (args->head_dim == 2 * PART)
        decode_group_rows(args, CODES_NIBBLES, PART, PART);
    else
        decode_group_rows(args, CODES_NIBBLES, 0, 0);
}

void hr_attention_int4_groups_decode_avx512vnni(const hr_kernel_args *args)
{
    decode_nibbles(args);
}

size_t hr_attention_int4_groups_decode_avx512vnni_scratch(int32_t head_dim)
{
    return integer_decode_groups_scratch(head_dim);
}

void hr_attention_int4_uniform_groups_decode_avx512vnni(const hr_kernel_args *args)
{
    decode_nibbles(args);
}

size_t hr_attention_int4_uniform_groups_decode_avx512vnni_scratch(int32_t head_dim)
{
    return integer_decode_groups_scratch(head_dim);
}
