/*
 * Recordings: Q, K and V of a model's attention layers, as tools/record_activations.py or
 * hr_synth_write make them. One safetensors file:
 *
 *     model.layers.{i}.self_attn.q   F32, F16 or BF16 [total_tokens, num_heads, head_dim]
 *     model.layers.{i}.self_attn.k   same dtype       [total_tokens, num_kv_heads, head_dim]
 *     model.layers.{i}.self_attn.v   same             [total_tokens, num_kv_heads, head_dim]
 *     cu_seqlens                     I32 [batch + 1]
 *     __metadata__: headroom.kind=recording, headroom.version=1, headroom.causal=true|false,
 *                   headroom.softmax_scale, headroom.rope=none|applied|before, headroom.model
 *
 * Layers need not be consecutive; every layer has all three tensors. Shapes may differ by layer but
 * for total_tokens.
 */
#ifndef HEADROOM_RECORDING_H
#define HEADROOM_RECORDING_H

#include <stdbool.h>

#include "headroom/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hr_recording hr_recording; /* opaque, read-only, mapped */

typedef struct hr_recording_info {
    const char *path;
    const char *model; /* metadata headroom.model; "" when absent */
    const char *rope;  /* "none", "applied" (Q and K rotated already) or "before" */
    bool causal;
    float softmax_scale; /* finite and > 0 */
    int32_t batch;
    const int32_t *cu_seqlens; /* [batch + 1] */
    int32_t total_tokens;
    int32_t layer_count;
    char data_hash[33]; /* XXH3-128 of the data, hex */
} hr_recording_info;

typedef struct hr_recording_layer {
    int32_t layer; /* the {i} of the tensor names */
    int32_t num_heads, num_kv_heads, head_dim;
    hr_tensor q, k, v; /* views into the mapped file */
} hr_recording_layer;

/*
 * Opens and validates shapes, dtypes, cu_seqlens (from 0 to total_tokens, non-decreasing, no empty
 * sequence) and metadata. Values are not scanned here: NaN is found by calibrate and pack, which
 * name layer, token and channel.
 */
HR_API hr_status hr_recording_open(const char *path, hr_recording **out) HR_NODISCARD;
HR_API void hr_recording_close(hr_recording *recording);
HR_API hr_recording_info hr_recording_get_info(const hr_recording *recording);

/* The index-th layer in ascending order of layer number; index in 0 .. layer_count-1. */
HR_API hr_status hr_recording_get_layer(const hr_recording *recording, int32_t index,
                                        hr_recording_layer *out) HR_NODISCARD;

/* The layer with number `layer`; HR_ERROR_NOT_FOUND lists the numbers there are. */
HR_API hr_status hr_recording_find_layer(const hr_recording *recording, int32_t layer,
                                         hr_recording_layer *out) HR_NODISCARD;

#ifdef __cplusplus
}
#endif

#endif
