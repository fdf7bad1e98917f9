/*
 * Synthetic activations with the statistics that make low-precision attention hard. Deterministic:
 * a mode, a shape and a seed give the same bits on every machine with IEEE 754 arithmetic, whatever
 * its libm and number of threads.
 *
 * Where the modes come from: "sparse-outliers" is table 3 of FlashAttention-3 (Shah et al., 2024);
 * "outlier-channels" the keys of KIVI (Liu et al., 2024); "mean-bias" the key bias of Qwen2.5 and
 * the smoothing of SageAttention (Zhang et al., 2024); "sink" Xiao et al., "Efficient streaming
 * language models with attention sinks", 2023, scaled for softmax_scale = 1 / sqrt(head_dim).
 */
#ifndef HEADROOM_SYNTH_H
#define HEADROOM_SYNTH_H

#include <stdbool.h>

#include "headroom/status.h"
#include "headroom/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Number of modes, name ("gaussian", "sparse-outliers", ...) and one-line description of each; NULL
 * for an index out of range.
 */
HR_API int hr_synth_mode_count(void);
HR_API const char *hr_synth_mode_name(int index);
HR_API const char *hr_synth_mode_summary(int index);

typedef struct hr_synth_options {
    const char *mode;                /* one of the modes' names */
    int32_t num_heads, num_kv_heads; /* num_heads a multiple of num_kv_heads */
    int32_t head_dim;                /* a multiple of 8, at most 256 */
    int32_t tokens;                  /* tokens in all */
    int32_t batch; /* sequences the tokens are split into, as evenly as possible; >= 1 */
    int32_t layers;
    uint64_t seed;
    bool causal;
    bool rope; /* rotate Q and K (half-split, theta 10000) */
} hr_synth_options;

/* 8 heads, 8 KV heads, head_dim 64, 1024 tokens, 1 sequence, 1 layer, seed 1, causal, no rope. */
HR_API void hr_synth_options_init(hr_synth_options *options);

/*
 * Fills q [tokens, num_heads, head_dim], k and v [tokens, num_kv_heads, head_dim] of one layer, 0
 * .. layers-1 (caller's memory, F32, contiguous). HR_ERROR_NOT_FOUND lists the modes;
 * HR_ERROR_INVALID_ARGUMENT names the option.
 */
HR_API hr_status hr_synth_fill(const hr_synth_options *options, int32_t layer, float *q, float *k,
                               float *v) HR_NODISCARD;

/*
 * Writes a recording (F32) with all layers; holds one tensor in memory at a time. softmax_scale is
 * 1 / sqrt(head_dim).
 */
HR_API hr_status hr_synth_write(const hr_synth_options *options, const char *path) HR_NODISCARD;

#ifdef __cplusplus
}
#endif

#endif
