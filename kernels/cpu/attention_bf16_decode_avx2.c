/*
 * BF16 decode on AVX2 with FMA: up to 16 queries of each head; Q, K, V and P in BF16, products and
 * statistics in FP32.
 */
#include "vec_avx2.h"

#include "float_decode_tile.h"
#include "kernel_rows.h"

_Static_assert((int)HR_TILE_Q(bf16_decode, avx2) == DECODE_ROWS, "kernels.def says the rows");

size_t hr_attention_bf16_decode_avx2_scratch(int32_t head_dim)
{
    return float_decode_tile_scratch(head_dim);
}

void hr_attention_bf16_decode_avx2(const hr_kernel_args *args)
{
    float_decode_tile_run(args, HR_DTYPE_BF16);
}
