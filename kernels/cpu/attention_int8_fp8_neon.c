/*
 * INT8-FP8 attention on NEON with FMA: Q and K in INT8 with exact integer dot products, V and P in
 * E4M3 (SageAttention2, Zhang et al. 2024); statistics in FP32.
 */
#include "vec_neon.h"

#include "float_tile.h"
#include "kernel_rows.h"

enum { TILE_Q = HR_TILE_Q(int8_fp8, neon), TILE_KV = HR_TILE_KV(int8_fp8, neon) };

size_t hr_attention_int8_fp8_neon_scratch(int32_t head_dim)
{
    return float_tile_scratch(head_dim, TILE_Q, TILE_KV);
}

void hr_attention_int8_fp8_neon(const hr_kernel_args *args)
{
    float_tile_run(args, (float_formats){.qk = HR_DTYPE_I8,
                                         .v = HR_DTYPE_E4M3,
                                         .p = HR_DTYPE_E4M3,
                                         .tile_q = TILE_Q,
                                         .tile_kv = TILE_KV});
}
