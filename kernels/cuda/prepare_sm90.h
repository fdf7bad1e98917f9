/*
 * Small launches around the attention kernels of attention_sm90.h, with the same rules: all
 * pointers are to device memory, nothing is validated, the result is a cudaError_t.
 */
#ifndef HEADROOM_PREPARE_SM90_H
#define HEADROOM_PREPARE_SM90_H

#include "attention_sm90.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the tiles' scales are made from; a scale whose base is NULL is 1. */
typedef struct hr_sm90_tile_scale_args {
    /* stride: of tokens, 0 where all tokens share one. V's is of INT8, NULL for E4M3. */
    hr_sm90_scale k_scale, v_scale;
    hr_sm90_scale v_block_scale;   /* of E4M3 V by block, whose changes v_step says; else NULL */
    const int32_t *cu_seqlens_kv;  /* [batch + 1] */
    const int32_t *kv_tile_offset; /* [batch + 1] first tile of a sequence */
    int32_t batch, num_kv_heads;
    int64_t kv_tiles;
    int32_t k_is_e4m3; /* tiles have HR_SM90_BLOCK_SCALES, else HR_SM90_TILE_SCALES */
    float *tile_scale; /* [num_kv_heads][kv_tiles][those], written whole */
    void *stream;      /* cudaStream_t */
} hr_sm90_tile_scale_args;

/* Lays scales by token or block out as the kernels read them, tile by tile (hr_sm90_args). */
int hr_tile_scale_sm90(const hr_sm90_tile_scale_args *args);

/* O = 0 and LSE = -inf or the head's sink: the answer where no sequence has a key. */
int hr_no_keys_sm90(const hr_sm90_args *args);

#ifdef __cplusplus
}
#endif

#endif
