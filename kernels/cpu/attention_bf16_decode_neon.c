/*
 * BF16 attention on NEON with FMA: Q, K, V and P in BF16, products and statistics in FP32.
 */
#include "vec_neon.h"

#include "float_tile.h"
#include "kernel_rows.h"

enum { TILE_Q = HR_TILE_Q(bf16_decode, neon), TILE_KV = HR_TILE_KV(bf16_decode, neon) };

size_t hr_attention_bf16_decode_neon_scratch(int32_t head_dim)
{
    return float_tile_scratch(head_dim, TILE_Q, TILE_KV);
}

void hr_attention_bf16_decode_neon(const hr_kernel_args *args)
{
    float_tile_run(args, (float_formats){.qk = HR_DTYPE_BF16,
                                         .v = HR_DTYPE_BF16,
                                         .p = HR_DTYPE_BF16,
                                         .tile_q = TILE_Q,
                                         .tile_kv = TILE_KV});
}
