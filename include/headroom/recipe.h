/*
 * A recipe says, for each of Q, K, V and P, the number format, the granularity of its scales,
 * whether they are static (from a profile) or computed from the data, and the transform applied
 * first.
 *
 * A recipe is a plain value. Presets name the common ones; text names any:
 *
 *     recipe  := preset [ ":" setting { "," setting } ]
 *     setting := operand "." field "=" value | "residual" "=" tokens
 *     operand := any of the letters q k v p, once each ("q", "qk", "qkv")
 *     field   := "dtype" | "granularity" | "scale" | "transform"
 *     value   := dtype name | "tensor" | "head" | "token" | "block"N | "channel" | "group"N
 *              | "static" | "dynamic" | "none" | "mean" | "hadamard" | "mean+hadamard"
 *
 * e.g. "fp8:qkv.granularity=tensor,qk.transform=hadamard". A setting replaces the preset's value.
 * Fields the text leaves alone follow from those it sets: a plain float (f32, f16, bf16) has
 * granularity none and no scale, and scales per token, block or group are dynamic. p has only a
 * dtype.
 *
 * Rules: q, k and v are f32, f16, bf16 (granularity none) or e4m3, e5m2, i8, i4, u4, c4 (with a
 * scale); p is f32, bf16, e4m3, u8 or i16. Static scales are per tensor, head or channel, and
 * not for u4, whose zero points no profile holds. Only v has scales per channel, because q.k sums
 * over channels. Smoothing (mean) is for k, rotation (hadamard) for q and k together. A block has 1
 * to 65536 tokens, a group an even number of channels up to 256 that divides head_dim (checked when
 * packing).
 *
 * residual=N: a KV cache keeps at least the last N tokens of each sequence in BF16 too (KIVI, Liu
 * et al. 2024, section 3.2), and attention reads these instead of their codes. N is a multiple of
 * 16 up to 65536; only caches look at it (headroom/kv_cache.h).
 */
#ifndef HEADROOM_RECIPE_H
#define HEADROOM_RECIPE_H

#include <stdbool.h>

#include "headroom/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Which elements of a [tokens, heads, head_dim] operand share one scale. Scale shapes, with
 * B = ceil(sequence length / block) summed over the sequences and G = head_dim / group:
 */
typedef enum hr_granularity {
    HR_GRANULARITY_NONE = 0, /* no scale: F32, BF16 and F16 operands */
    HR_GRANULARITY_TENSOR,   /* [1] */
    HR_GRANULARITY_HEAD,     /* [heads] */
    HR_GRANULARITY_TOKEN,    /* [heads, tokens] */
    HR_GRANULARITY_BLOCK,    /* [heads, B]: `block` tokens of one sequence */
    HR_GRANULARITY_CHANNEL,  /* [heads, head_dim] */
    HR_GRANULARITY_GROUP,    /* [heads, tokens, G]: `block` neighbouring channels of one token */
    HR_GRANULARITY_COUNT
} hr_granularity;

/* "none", "tensor", "head", "token", "block", "channel", "group". */
HR_API const char *hr_granularity_name(hr_granularity granularity);

/* Bits of hr_operand_recipe.transform. Mean smoothing is applied before rotation. */
enum {
    HR_TRANSFORM_NONE = 0,
    HR_TRANSFORM_MEAN = 1,    /* K only: subtract the per-head channel mean (SageAttention, 4.2) */
    HR_TRANSFORM_HADAMARD = 2 /* Q and K together: random signs, then a normalized Hadamard matrix
                                 (QuaRot, 3; FlashAttention-3, 3.3 "incoherent processing") */
};

typedef struct hr_operand_recipe {
    hr_dtype dtype;
    hr_granularity granularity;
    int32_t block;      /* tokens a block (BLOCK) or channels a group (GROUP); 0 otherwise */
    bool dynamic;       /* scales computed from the data being packed, not from a profile */
    uint32_t transform; /* HR_TRANSFORM_* bits */
} hr_operand_recipe;

enum { HR_RECIPE_NAME_BYTES = 256 }; /* more than any canonical text */

typedef struct hr_recipe {
    char name[HR_RECIPE_NAME_BYTES]; /* canonical text; parses back to the same recipe */
    hr_operand_recipe q, k, v;
    hr_operand_recipe p; /* only dtype is meaningful: F32, BF16, E4M3, U8 or I16 */
    int32_t residual;    /* tokens that a cache keeps in BF16; 0: none */
} hr_recipe;

enum { HR_RESIDUAL_MULTIPLE = 16, HR_RESIDUAL_MAX = 65536 };

/* Number of presets, and the i-th one in table order (bf16, fp8, int8, int8-fp8, int4). */
HR_API int hr_recipe_preset_count(void);
HR_API const hr_recipe *hr_recipe_preset(int index);

/* One line on what a preset is for; "" for an index out of range. */
HR_API const char *hr_recipe_preset_summary(int index);

/*
 * Parses the grammar above. An unknown preset is HR_ERROR_NOT_FOUND, a malformed setting
 * HR_ERROR_INVALID_ARGUMENT; both name the bad word and list what would be accepted. A recipe that
 * breaks a rule (smoothing V, Q and K rotated differently) is HR_ERROR_UNSUPPORTED with that rule.
 * out is unchanged on error.
 */
HR_API hr_status hr_recipe_parse(const char *text, hr_recipe *out) HR_NODISCARD;

/*
 * Checks a recipe built by hand against the same rules, sets fields without meaning to 0 and
 * rewrites its canonical name: the shortest text over all presets. Unchanged on error.
 */
HR_API hr_status hr_recipe_normalize(hr_recipe *recipe) HR_NODISCARD;

/*
 * Average bits one K plus one V element takes in the cache, scales included (FP32 scales,
 * zero points of a byte), for the given head_dim; BF16 is 16. Scales per tensor, head and channel
 * do not grow with the sequence and count as 0. NaN for head_dim < 1. The "how few bits" figure of
 * the audit.
 */
HR_API double hr_recipe_kv_bits(const hr_recipe *recipe, int head_dim);

/* True when packing with this recipe needs scales from a profile: q, k or v has static ones. */
HR_API bool hr_recipe_needs_profile(const hr_recipe *recipe);

#ifdef __cplusplus
}
#endif

#endif
