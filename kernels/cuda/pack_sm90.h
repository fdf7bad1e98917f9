/*
 * The contract of the fused packing kernel for NVIDIA Hopper: Q, K and V from BF16 to the codes and
 * scales that attention_sm90.h reads, in one launch, or in two where scales are dynamic other than
 * by token: the first finds them, for which it reads all of those operands.
 *
 *     x -> rope -> (lse_bias) -> subtract mean -> rotate -> scale -> encode -> lay out
 *
 * Every step rounds as hr_pack on the host does, so that codes and scales have the same bits;
 * lse_bias is summed in another order and may differ in its last bit. All pointers are to device
 * memory; nothing is validated (the caller did); the result is a cudaError_t.
 */
#ifndef HEADROOM_PACK_SM90_H
#define HEADROOM_PACK_SM90_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    HR_SM90_PACK_PART = 16, /* channels a thread takes of a row; head_dim is a multiple */
    HR_SM90_PACK_TILE = 128 /* tokens a block takes of a head */
};

typedef enum hr_sm90_pack_format {
    HR_SM90_PACK_BF16, /* no scale */
    HR_SM90_PACK_E4M3,
    HR_SM90_PACK_I8,
    HR_SM90_PACK_I8_BY_TOKEN /* a scale a token, found here and written */
} hr_sm90_pack_format;

typedef struct hr_sm90_pack_operand {
    const void *x; /* BF16, 16-byte aligned; strides in elements, multiples of 8 */
    int64_t token_stride, head_stride;
    int64_t tokens;
    int32_t heads, tiles; /* tiles: of HR_SM90_PACK_TILE tokens that a head has */
    hr_sm90_pack_format format;
    int32_t transposed; /* 0: HR_LAYOUT_ROWS; 1: HR_LAYOUT_SM90_V */
    void *codes;
    int64_t head_bytes;
    /*
     * Where tiles start with sequences, as those of V and of an operand with scales by block do:
     * [batch + 1] tokens and tiles before a sequence; else NULL.
     */
    const int32_t *cu_seqlens, *tile_offset;
    /*
     * Channel c of head h has scale[h * scale_head_stride + c * scale_channel_stride]; by block,
     * tile t has scale[h * scale_head_stride + tile_block[t]]; by token, token t has scale[h *
     * tokens + t], at least 2^-16 of the head's largest.
     */
    float *scale;
    int64_t scale_head_stride, scale_channel_stride;
    const int32_t *tile_block; /* [tiles] or NULL: not by block */
    int32_t dynamic;           /* other scales are written, not given */
    const float *mean;         /* [heads][head_dim] to subtract, or NULL */
    const int32_t *positions;  /* [tokens] rows of turns, or NULL: no rope */
    int32_t rotate;            /* 1: by the Hadamard matrix and its signs */
    /*
     * Zero before the first launch, and left zero. By token: [heads] each. Dynamic: largest as
     * scale, finished [heads].
     */
    uint32_t *largest, *finished;
} hr_sm90_pack_operand;

typedef struct hr_sm90_pack_args {
    hr_sm90_pack_operand q, k, v;
    int32_t head_dim, batch;
    const float *k_mean; /* [k.heads][head_dim] for lse_bias, or NULL */
    float *lse_bias;     /* [q.heads][q.tokens] or NULL */
    /* Row p of turns: cosine and sine of every pair at position p, [rotary_dim]. */
    const float *turns;
    int32_t rotary_dim;  /* half-split: a multiple of 16 */
    int32_t interleaved; /* pairs (2 i, 2 i + 1), else (i, i + rotary_dim / 2) */
    const float *signs;  /* [head_dim] +1 or -1 */
    int32_t hadamard_block;
    uint32_t *nonfinite; /* set to 1 where x has a NaN or infinity, whose codes mean nothing */
    void *stream;        /* cudaStream_t */
} hr_sm90_pack_args;

int hr_pack_sm90(const hr_sm90_pack_args *args);

#ifdef __cplusplus
}
#endif

#endif
