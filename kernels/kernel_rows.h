/*
 * What kernels.def says, as C declarations: each row's entry and scratch function, and its tile
 * sizes as constants HR_TILE_Q(recipe, isa) and HR_TILE_KV(recipe, isa), so that a kernel's file
 * and the plan cannot disagree about them.
 */
#ifndef HEADROOM_KERNEL_ROWS_H
#define HEADROOM_KERNEL_ROWS_H

#include "kernel.h"

#define HR_KERNEL(recipe, isa, ISA, q, k, v, p, q_gran, k_gran, v_gran, q_lay, k_lay, v_lay,       \
                  multiple, max, features, tile_q, tile_kv)                                        \
    void hr_attention_##recipe##_##isa(const hr_kernel_args *args);                                \
    size_t hr_attention_##recipe##_##isa##_scratch(int32_t head_dim);                              \
    enum { hr_tile_q_##recipe##_##isa = (tile_q), hr_tile_kv_##recipe##_##isa = (tile_kv) };
#include "kernels.def"
#undef HR_KERNEL

#define HR_TILE_Q(recipe, isa) hr_tile_q_##recipe##_##isa
#define HR_TILE_KV(recipe, isa) hr_tile_kv_##recipe##_##isa

#endif
