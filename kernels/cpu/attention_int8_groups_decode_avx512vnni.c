/*
 * Decode with recipe `int8` on AVX-512 VNNI where K's scales are in groups of channels, and V's in
 * groups or not: a group's products are exact in int32; see integer_decode_groups_avx512vnni.h.
 */
#include "integer_decode_groups_avx512vnni.h"
#include "kernel_rows.h"

/* Rows of two cache lines are compiled on their own. */
void hr_attention_int8_groups_decode_avx512vnni(const hr_kernel_args *args)
{
    if (args->head_dim == 2 * PART)
        decode_group_rows(args, CODES_BYTES, 2 * PART, 2 * PART);
    else
        decode_group_rows(args, CODES_BYTES, 0, 0);
}

size_t hr_attention_int8_groups_decode_avx512vnni_scratch(int32_t head_dim)
{
    return integer_decode_groups_scratch(head_dim);
}
