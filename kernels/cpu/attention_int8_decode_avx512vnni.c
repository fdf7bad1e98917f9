/*
 * Decode with recipe `int8` on AVX-512 VNNI: up to 16 queries of each head, K and V in rows. The
 * arithmetic is integer_softmax.h, bit for bit; the work is integer_decode_avx512vnni.h.
 */
#include "integer_decode_avx512vnni.h"
#include "kernel_rows.h"

void hr_attention_int8_decode_avx512vnni(const hr_kernel_args *args)
{
    integer_decode(args, CODES_BYTES);
}

size_t hr_attention_int8_decode_avx512vnni_scratch(int32_t head_dim)
{
    return integer_decode_scratch(head_dim);
}
