/*
 * The contract between the host's code and the fused attention kernels for NVIDIA Hopper.
 *
 *     S = softmax_scale * (Q K^T + bias)     O = softmax(softcap(S) + mask) V     LSE = ln sum exp
 *
 * One launch computes all heads of all sequences; it allocates nothing, does not synchronize and
 * validates nothing (the plan did). All pointers are to device memory, readable by TMA: 16-byte
 * aligned. Q and K are HR_LAYOUT_ROWS, V is HR_LAYOUT_SM90_V (headroom/pack.h), as hr_pack makes
 * them, so an hr_packed can be copied to the device byte by byte; a kernel that packs on the device
 * writes the same. head_dim is a multiple of 16 up to 256; TMA pads it with zeros to the kernel's
 * 64, 128 or 256.
 *
 *     recipe      Q, K     V      scales read
 *     bf16        BF16     BF16   none
 *     fp8         E4M3     E4M3   q_scale, k_scale by head or tile_scale, v_scale
 *     int8        I8       I8     q_scale, tile_scale
 *     int8_fp8    I8       E4M3   q_scale, tile_scale, v_scale
 */
#ifndef HEADROOM_ATTENTION_SM90_H
#define HEADROOM_ATTENTION_SM90_H

#include <math.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    HR_SM90_TILE_KV = 128, /* keys a tile has, in every kernel */
    /*
     * Floats of tile_scale a tile of INT8 keys, so that a thread, which has keys 8 j + 2 q and the
     * next for one q, reads 16 bytes at once. Of each pair of keys: k_scale of both, magic of both.
     * Then for pairs of j, for each q: log2 v_scale of its four keys. Then for fours of j, for each
     * q: v_unit / v_scale of its eight keys, in halves. Then 1 / v_unit, v_step (of E4M3 V), and
     * two that are not read.
     */
    HR_SM90_LOG2_V = 2 * HR_SM90_TILE_KV,
    HR_SM90_INVERSE_V = 3 * HR_SM90_TILE_KV,
    HR_SM90_V_UNIT = HR_SM90_INVERSE_V + HR_SM90_TILE_KV / 2,
    HR_SM90_V_STEP,
    HR_SM90_TILE_SCALES = HR_SM90_V_UNIT + 4,
    /* Of E4M3 keys: k_scale of the tile, v_step, and two that are not read. */
    HR_SM90_BLOCK_SCALES = 4,
    HR_SM90_BLOCK_V_STEP = 1
};

/* 1.5 * 2^23: an int32 x with |x| < 2^22, added to this number's bits, is this number plus x. */
#define HR_SM90_MAGIC 12582912.0f

/*
 * A scale vector on the device; element (head, i) is at base[head * head_stride + i * stride]. By
 * block, token i of a sequence has base[head * head_stride + block_offset[sequence] + i / block].
 */
typedef struct hr_sm90_scale {
    const float *base;
    int64_t head_stride;         /* 0: one scale for all heads */
    int64_t stride;              /* q_scale: of tokens; v_scale: of channels; 0: the same for all */
    int32_t block;               /* tokens of a sequence that share one; 0: not by block */
    const int32_t *block_offset; /* [batch] by block: the first one of a sequence */
} hr_sm90_scale;

typedef struct hr_sm90_args {
    /* Codes; head h starts at x + h * x_head_bytes, a multiple of 16. */
    const void *q, *k, *v;
    int64_t q_head_bytes, k_head_bytes, v_head_bytes;
    int64_t total_q, total_kv; /* tokens */
    int64_t kv_tiles;          /* tiles of 128 token slots that a head of V has */
    int32_t batch, num_heads, num_kv_heads, head_dim;
    const int32_t *cu_seqlens_q, *cu_seqlens_kv; /* [batch + 1] */
    const int32_t *kv_tile_offset;       /* [batch + 1] first tile of V: slot_offset / 128 */
    int32_t max_seqlen_q, max_seqlen_kv; /* of one sequence */

    hr_sm90_scale q_scale, k_scale, v_scale;
    /*
     * [num_kv_heads][kv_tiles][HR_SM90_TILE_SCALES] of INT8 keys; of E4M3 keys
     * [HR_SM90_BLOCK_SCALES] where K or V has scales by block, which are a multiple of 128 tokens
     * then, else NULL. Where E4M3 V has, O is kept in units of the scale of the last tile that
     * joined it: v_step is the scale of the tile of keys behind this one over this tile's, 1 for
     * the last of a sequence.
     */
    const float *tile_scale;

    float softmax_scale, softcap; /* softcap 0: none */
    const float *lse_bias;        /* [num_heads][total_q] q . mean(k) of smoothed keys, or NULL */
    const float *sinks;           /* [num_heads] natural-log logits, -inf: none; or NULL */
    /*
     * Row i of a sequence sees the keys from i + d - window_left to i + d + window_right, d =
     * seqlen_kv - seqlen_q; INT32_MAX: no limit. Causal is window_right 0.
     */
    int32_t window_left, window_right;

    void *o; /* element (token, head, channel) at o[token * o_token_stride + ...]; 8-byte aligned */
    int64_t o_token_stride, o_head_stride; /* elements, even numbers */
    int32_t o_is_bf16;                     /* else F32 */
    float *lse;                            /* or NULL */
    int64_t lse_token_stride, lse_head_stride;

    int32_t multiprocessors; /* of the device: as many blocks are launched at most */
    void *stream;            /* cudaStream_t */
} hr_sm90_args;

/*
 * Launch a kernel on args->stream. Returns a cudaError_t: 0, or what describing the tensors or the
 * launch gave; faults of the kernel itself show at the next synchronization.
 */
int hr_attention_bf16_sm90(const hr_sm90_args *args);
int hr_attention_fp8_sm90(const hr_sm90_args *args);
int hr_attention_int8_sm90(const hr_sm90_args *args);
int hr_attention_int8_fp8_sm90(const hr_sm90_args *args);

#ifdef __CUDACC__
#define HR_SM90_INLINE static inline __host__ __device__
#else
#define HR_SM90_INLINE static inline
#endif

/* Where the scale of token `i` of a sequence is, whose first token is `first`. */
HR_SM90_INLINE int64_t hr_sm90_scale_index(const hr_sm90_scale *scale, int head, int sequence,
                                           int32_t first, int32_t i)
{
    const int64_t at = head * scale->head_stride;
    if (scale->block > 0) return at + scale->block_offset[sequence] + i / scale->block;
    return at + (first + i) * scale->stride;
}

/* v_unit of a tile with this largest v_scale: the power of two in (largest / 4, largest / 2]. */
HR_SM90_INLINE float hr_sm90_v_unit(float largest)
{
    return ldexpf(1.0f, ilogbf(largest) - 1);
}

/*
 * Writes what one key has in a tile of tile_scale, key 0..127. v_scale is 1 where V's scales are
 * not by token. Slots past the end of a sequence have a scale of K of 1, and v_unit for V's.
 *
 * The scale of K keeps 22 of its 24 significant bits, so that MAGIC (3 * 2^22) times it is exact
 * and fma(MAGIC + x, k_scale, magic) is x * k_scale, rounded once. V's inverse, at most 2^15, keeps
 * 11, and its logarithm is that of the same number, so that sums of weights lose nothing by it.
 */
HR_SM90_INLINE void hr_sm90_set_tile_scale(float *tile, int key, float k_scale, float v_scale,
                                           float v_unit)
{
    union {
        float value;
        uint32_t bits;
    } k = {k_scale}, inverse = {v_unit / v_scale};
    const int j = key / 8, q = key / 2 % 4, e = key % 2;
    k.bits = (k.bits + 2) & ~UINT32_C(3);
    tile[4 * (key / 2) + e] = k.value;
    tile[4 * (key / 2) + 2 + e] = -HR_SM90_MAGIC * k.value;
    inverse.bits = (inverse.bits + (1 << 12)) & ~((UINT32_C(1) << 13) - 1);
    tile[HR_SM90_LOG2_V + 16 * (j / 2) + 4 * q + 2 * (j % 2) + e] = log2f(v_unit / inverse.value);
    uint16_t *halves = (uint16_t *)(tile + HR_SM90_INVERSE_V);
    halves[32 * (j / 4) + 8 * q + 2 * (j % 4) + e] =
        (uint16_t)((inverse.bits >> 13) - ((127 - 15) << 10));
}

/* Writes what a tile of tile_scale has once. */
HR_SM90_INLINE void hr_sm90_end_tile_scale(float *tile, float v_unit, float v_step)
{
    tile[HR_SM90_V_UNIT] = 1 / v_unit;
    tile[HR_SM90_V_STEP] = v_step;
    tile[HR_SM90_V_STEP + 1] = tile[HR_SM90_V_STEP + 2] = 0;
}

#ifdef __cplusplus
}
#endif

#endif
