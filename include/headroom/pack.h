/*
 * Packing: Q, K or V in floating point -> codes and scales in the layout a kernel reads.
 *
 * Packed operands are head-major. The payload of head h starts at codes + h * head_bytes. Inside a
 * head, sequence b starts at token slot slot_offset[b] (layouts that work in tiles pad every
 * sequence to whole tiles, with zero codes); codes of one sequence are laid out as hr_layout says.
 * Scales are indexed by real tokens (no padding), by granularity: see hr_granularity.
 */
#ifndef HEADROOM_PACK_H
#define HEADROOM_PACK_H

#include "headroom/recipe.h"
#include "headroom/rope.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hr_operand { HR_OPERAND_Q = 0, HR_OPERAND_K, HR_OPERAND_V } hr_operand;

/* Layout ids are written into packed files by name and never reused. */
typedef enum hr_layout {
    /* [slots][head_dim] codes; no padding between sequences. Every dtype and operand has it. */
    HR_LAYOUT_ROWS = 0,

    /*
     * K in I8 for vpdpbusd (unsigned operand): U8 = code + 128 in tiles of 64 tokens,
     * [tile][head_dim / 4][64 tokens][4 channels].
     */
    HR_LAYOUT_VNNI_K,

    /*
     * V in I8 for vpdpbusd (signed operand), in tiles of 64 tokens:
     * [tile][16 token quads][head_dim padded with code 0 to 16][4 tokens]. The token at quad j,
     * element e is tile * 64 + 16 * (j % 4) + 4 * (j / 4) + e: the order in which four int32
     * vectors of P narrow to bytes without a shuffle.
     */
    HR_LAYOUT_VNNI_V,

    /*
     * V in I8, E4M3 or BF16 for Hopper's wgmma, transposed in tiles of 128 tokens:
     * [tile][head_dim][128 tokens]. BF16 in the order of tokens; of 8-bit codes, position
     * 16 g + 4 q + 2 j + e of a channel holds token 16 g + 8 j + 2 q + e (g 0..7, q 0..3, j and e
     * 0..1):
     *
     *     position   0 1  2 3 | 4 5   6  7 | 8 9  10 11 | 12 13  14 15      in each group of 16
     *     token      0 1  8 9 | 2 3  10 11 | 4 5  12 13 |  6  7  14 15
     *                 q = 0        q = 1        q = 2         q = 3
     *
     * Thread q of a quad has columns 8 j + 2 q + e of S in its accumulators, and its four bytes of
     * an A operand are positions 4 q ... 4 q + 3: so P goes from one to the other without a
     * shuffle.
     */
    HR_LAYOUT_SM90_V,

    /*
     * K of 8 or 4 bits for decode and KV caches, in blocks of 16 tokens, so that one cache line is
     * one vector whose lanes are tokens. 8 bits (I8 as U8 = code + 128, E4M3):
     * [block][head_dim / 4][16 tokens][4 channels]. 4 bits: [block][head_dim / 8][16 tokens][4
     * bytes], where byte b of line i has channel 8 i + b in its low half and 8 i + 4 + b in its
     * high half.
     */
    HR_LAYOUT_BLOCKS_K,

    /*
     * V of 8 or 4 bits for the same, lanes being channels (d: head_dim padded with code 0 to 16).
     * 8 bits: [block][4 quads][d][4 tokens], quad q having tokens 4 q to 4 q + 3. 4 bits:
     * [block][2][d][4 bytes], where byte e of a channel of half h has token 8 h + e in its low
     * half and 8 h + 4 + e in its high half.
     */
    HR_LAYOUT_BLOCKS_V,
    HR_LAYOUT_COUNT
} hr_layout;

/* "rows", "vnni_k", "vnni_v", "sm90_v", "blocks_k", "blocks_v". */
HR_API const char *hr_layout_name(hr_layout layout);
HR_API hr_status hr_layout_parse(const char *name, hr_layout *out) HR_NODISCARD;

/* Token slots a tile of this layout holds: 1 for ROWS, 64 for the VNNI layouts, 128 for SM90_V. */
HR_API int hr_layout_tile_tokens(hr_layout layout);

/*
 * One packed operand. Made by hr_pack or read from a file; owned by the caller, released with
 * hr_packed_free. Fields are read-only to callers.
 */
typedef struct hr_packed {
    hr_operand operand;
    hr_operand_recipe recipe;
    hr_layout layout;
    int32_t batch;
    int32_t num_heads; /* heads of this operand: num_kv_heads for K and V */
    int32_t head_dim;
    int64_t total_tokens;
    int64_t total_slots; /* token slots a head holds, padding included */
    /*
     * Distance between heads in codes: a multiple of 64, with at least 64 readable zero bytes after
     * the head's last code, so that a vector load may start at any code.
     */
    size_t head_bytes;
    int32_t *cu_seqlens;    /* [batch + 1] */
    int64_t *slot_offset;   /* [batch + 1] first slot of each sequence; the last is total_slots */
    void *codes;            /* 64-byte aligned, num_heads * head_bytes bytes */
    int64_t scale_count;    /* elements of scale, 0 for GRANULARITY_NONE */
    float *scale;           /* see hr_granularity; finite and > 0 */
    uint8_t *zero_point;    /* same shape as scale, for U4; NULL otherwise */
    float *mean;            /* [heads, head_dim] subtracted from K; NULL otherwise */
    uint64_t hadamard_seed; /* sign seed; 0 when not rotated */
    hr_rope rope;           /* what Q or K was rotated by; rotary_dim 0: nothing */
    /*
     * [num_heads, total_tokens] for Q packed against a smoothed K: q . mean(k), before
     * softmax_scale; the kernel adds softmax_scale times it to the LSE. NULL otherwise.
     */
    float *lse_bias;
    hr_device device; /* of codes, scale, zero_point, mean and lse_bias (headroom/device.h) */
} hr_packed;

/* What packing takes besides the data. Zero-initialize, then set what applies. */
typedef struct hr_pack_options {
    hr_layout layout;
    int32_t batch;             /* >= 1 */
    const int32_t *cu_seqlens; /* [batch + 1], from 0 to total_tokens, non-decreasing */
    /*
     * Static scales from a profile, in the recipe's granularity: TENSOR [1], HEAD [heads], CHANNEL
     * [heads, head_dim]. Required unless the recipe says dynamic, and then NULL; other
     * granularities cannot be static.
     */
    const float *static_scale;
    /* K with HR_TRANSFORM_MEAN: [heads, head_dim]; NULL computes the mean of the tokens given. */
    const float *mean;
    /* Q against a smoothed K: [num_kv_heads, head_dim] and num_kv_heads, to fill lse_bias. */
    const float *k_mean;
    int32_t num_kv_heads;
    uint64_t hadamard_seed; /* 0 means HR_HADAMARD_DEFAULT_SEED */
    /* Q and K: rotated by position before anything else; k_mean is then the mean of rotated keys.
     */
    hr_rope rope;
    const int32_t *positions; /* [total_tokens], >= 0; required with rope, else NULL or ignored */
} hr_pack_options;

#define HR_HADAMARD_DEFAULT_SEED UINT64_C(0x48656164726f6f6d)

/*
 * Packs x [total_tokens, heads, head_dim] (F32, F16 or BF16; any strides; head_dim a multiple of 8
 * up to 256). NaN or infinity in x is HR_ERROR_NUMERIC naming token, head and channel. A layout the
 * recipe's dtype does not have is HR_ERROR_UNSUPPORTED. Nothing is allocated on error; *out is then
 * zeroed.
 *
 * Dynamic scales map the largest magnitude of their group to the format's largest code; for I4, U4
 * and C4 they are the best of a few by squared error, clipping included (docs/int4-formats.md).
 * A scale is at least 2^-16 of the largest of its head, and 1 (2^-60 in C4, which has no code for
 * 0) where the whole head is zero, so that log2(scale) is always finite and of use. Results do not
 * depend on the number of threads.
 */
HR_API hr_status hr_pack(hr_operand operand, const hr_operand_recipe *recipe, const hr_tensor *x,
                         const hr_pack_options *options, hr_packed *out) HR_NODISCARD;

/* Releases what hr_pack or hr_packed_read allocated and zeroes the struct. NULL and zeroed are
 * fine. */
HR_API void hr_packed_free(hr_packed *packed);

/*
 * The floating-point tensor that the codes stand for: out F32 contiguous [total_tokens, heads,
 * head_dim]. The mean is not added back and the rotation not undone: Q.K^T in this space is what
 * the kernel computes. unpack_original also undoes the Hadamard rotation and smoothing; what rope
 * turned stays turned.
 */
HR_API hr_status hr_unpack(const hr_packed *packed, float *out) HR_NODISCARD;
HR_API hr_status hr_unpack_original(const hr_packed *packed, float *out) HR_NODISCARD;

/* Same codes and scales in another layout; HR_ERROR_UNSUPPORTED where the dtype has none such. */
HR_API hr_status hr_packed_relayout(const hr_packed *packed, hr_layout layout,
                                    hr_packed *out) HR_NODISCARD;

/* Bytes of codes for the real tokens plus scales and zero points: what a cache would hold. */
HR_API int64_t hr_packed_bytes(const hr_packed *packed);

/*
 * The three operands of one attention layer, packed consistently: K first (its mean feeds Q's
 * lse_bias), one sign seed for Q and K. scales may be NULL when the recipe needs no profile.
 */
typedef struct hr_packed_layer {
    hr_packed q, k, v;
} hr_packed_layer;

typedef struct hr_layer_scales {
    const float *q, *k, *v; /* static scales as hr_pack_options.static_scale; NULL where dynamic */
    const float *k_mean;    /* [num_kv_heads, head_dim] or NULL */
    uint64_t hadamard_seed; /* 0: default */
} hr_layer_scales;

typedef struct hr_layer_layouts {
    hr_layout q, k, v;
} hr_layer_layouts;

/* cu_seqlens_q and cu_seqlens_kv have batch + 1 entries. */
HR_API hr_status hr_pack_layer(const hr_recipe *recipe, const hr_layer_layouts *layouts,
                               const hr_tensor *q, const hr_tensor *k, const hr_tensor *v,
                               int32_t batch, const int32_t *cu_seqlens_q,
                               const int32_t *cu_seqlens_kv, const hr_layer_scales *scales,
                               hr_packed_layer *out) HR_NODISCARD;
HR_API void hr_packed_layer_free(hr_packed_layer *layer);

/*
 * Packed files: safetensors with, for each layer i and operand x of q, k, v,
 *     model.layers.{i}.self_attn.{x}     codes: ROWS as [heads, tokens, head_dim] of the dtype
 *                                        (nibbles as U8 [heads, tokens, head_dim / 2]), other
 *                                        layouts as U8 [heads, head_bytes]
 *     ...{x}.scale                       F32, shaped as hr_granularity says
 *     ...{x}.zero_point                  U8, likewise, for U4
 *     ...k.mean, ...q.lse_bias           F32 [heads, head_dim] and [heads, tokens], where K is
 *                                        smoothed
 *     cu_seqlens                         I32 [batch + 1]
 *     cu_seqlens_kv                      the same for K and V, where they differ from Q's
 * and the __metadata__ headroom.kind=packed, headroom.version=1, headroom.recipe (text),
 * headroom.layers ("0,1,2"), headroom.{q,k,v}_layout (names), headroom.causal (true or false),
 * headroom.softmax_scale, headroom.hadamard_seed (decimal; 0 where nothing is rotated),
 * headroom.model.
 */
typedef struct hr_packed_file hr_packed_file; /* opaque: layers in memory */

typedef struct hr_packed_file_info {
    const char *path, *model;
    hr_recipe recipe;
    bool causal;
    float softmax_scale;
    int32_t layer_count;
} hr_packed_file_info;

/*
 * Writes layers with the rising numbers layer[i] and what `info` says; info->path and layer_count
 * are ignored. Layers that do not share recipe, layouts, sequences and seed are HR_ERROR_MISMATCH;
 * operands that hr_pack rotated by rope are HR_ERROR_UNSUPPORTED, as a file holds no positions.
 */
HR_API hr_status hr_packed_write(const char *path, const hr_packed_file_info *info,
                                 const int32_t *layer, const hr_packed_layer *layers,
                                 int32_t layer_count) HR_NODISCARD;

/*
 * Reads and validates everything: shapes, layout ids, scales finite and > 0, code ranges, padding.
 * A tensor or metadata that is missing, superfluous or wrong is HR_ERROR_FORMAT, and the message
 * names the file, the tensor and the value.
 */
HR_API hr_status hr_packed_read(const char *path, hr_packed_file **out) HR_NODISCARD;
HR_API void hr_packed_file_free(hr_packed_file *file);
HR_API hr_packed_file_info hr_packed_file_get_info(const hr_packed_file *file);

/* The index-th layer and its number; owned by the file. NULL when out of range. */
HR_API const hr_packed_layer *hr_packed_file_layer(const hr_packed_file *file, int32_t index,
                                                   int32_t *layer);

#ifdef __cplusplus
}
#endif

#endif
