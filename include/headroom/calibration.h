/*
 * Calibration: recorded Q/K/V in, a profile of per-head scales out.
 *
 * A calibrator streams tokens. Recipes that smooth K with its mean before a static scale need two
 * passes over the data (means, then ranges); all others need one. Shards calibrated apart merge
 * into what one pass would have given: bit for bit for absmax, and exactly in counts for
 * histograms.
 */
#ifndef HEADROOM_CALIBRATION_H
#define HEADROOM_CALIBRATION_H

#include "headroom/pack.h"
#include "headroom/recording.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Observers decide which magnitude a static scale maps to the largest code:
 *     absmax          the largest seen
 *     percentile:P    the one that P percent of the values do not exceed, 50 < P <= 100
 *                     (default 99.99; TensorRT and ModelOpt calibrate activations so)
 *     mse             the one of the least squared error of the operand's real quantizer
 * They are the rows of calibration/observers.def.
 */
HR_API int hr_observer_count(void);
HR_API const char *hr_observer_name(int index);
HR_API const char *hr_observer_summary(int index);

typedef struct hr_calibrator hr_calibrator;

typedef struct hr_calibrator_options {
    hr_recipe recipe;     /* formats, granularity (tensor or head for static scales), transforms */
    const char *observer; /* "absmax", "percentile:99.99", "mse"; NULL: absmax */
    uint64_t hadamard_seed; /* 0: HR_HADAMARD_DEFAULT_SEED */
    int64_t min_tokens;     /* fewer observed tokens make a warning in the profile; 0: 128 */
} hr_calibrator_options;

HR_API hr_status hr_calibrator_create(const hr_calibrator_options *options,
                                      hr_calibrator **out) HR_NODISCARD;
HR_API void hr_calibrator_free(hr_calibrator *calibrator);

/*
 * 1, or 2 for a K that is smoothed before a static scale. Feed all data once, then call
 * hr_calibrator_next_pass and feed it again if 2.
 */
HR_API int hr_calibrator_passes(const hr_calibrator *calibrator);
HR_API hr_status hr_calibrator_next_pass(hr_calibrator *calibrator) HR_NODISCARD;

/*
 * Observes one layer's q [tokens, num_heads, head_dim], k and v [tokens, num_kv_heads, head_dim].
 * NaN or infinity is HR_ERROR_NUMERIC naming layer, tensor, token, head and channel, and the
 * calibrator is left as before the call. The first call for a layer fixes its shapes.
 */
HR_API hr_status hr_calibrator_observe(hr_calibrator *calibrator, int32_t layer, const hr_tensor *q,
                                       const hr_tensor *k, const hr_tensor *v) HR_NODISCARD;

/*
 * Adds what `other` (same options, same pass) observed; other is unchanged. In the second pass both
 * must have the same first pass behind them, that is, have merged each other's before
 * hr_calibrator_next_pass; then only the second pass adds up. HR_ERROR_MISMATCH otherwise, with the
 * calibrator unchanged.
 */
HR_API hr_status hr_calibrator_merge(hr_calibrator *calibrator,
                                     const hr_calibrator *other) HR_NODISCARD;

typedef struct hr_profile hr_profile; /* opaque, immutable */

typedef struct hr_profile_info {
    const char *model, *observer; /* model is "" when no source was set */
    const char *data_hash; /* of one recording its own; of several, of their sorted hashes; or "" */
    hr_recipe recipe;
    int32_t layer_count;
    int64_t tokens; /* of the layer that saw the fewest */
    int32_t warning_count;
    bool causal;         /* from the recording, if hr_calibrator_set_source was called */
    float softmax_scale; /* likewise */
} hr_profile_info;

/*
 * What the profile should say of its source; called once per recording. HR_ERROR_MISMATCH when
 * model, rope stage, causal or softmax_scale is not that of the recordings before, or when the
 * second pass has a recording that the first had not.
 */
HR_API hr_status hr_calibrator_set_source(hr_calibrator *calibrator,
                                          const hr_recording_info *source) HR_NODISCARD;

/*
 * Ends calibration. `layers`, when not NULL, lists layers that must have been observed:
 * HR_ERROR_NOT_FOUND names the first that was not. A head whose values are all zero gets a warning
 * and the smallest scale, 2^-60, which keeps products of scales and their reciprocals finite; never
 * a silent 1.0. Operands with dynamic scales get scales per head for information: of a K that is
 * smoothed, before smoothing. F32, F16 and BF16 operands have scale 1.
 */
HR_API hr_status hr_calibrator_finish(hr_calibrator *calibrator, const int32_t *layers,
                                      int32_t layer_count, hr_profile **out) HR_NODISCARD;

/*
 * Profile files are safetensors; {i} is a layer's number:
 *
 *     model.layers.{i}.self_attn.{q,k,v}_scale            F32 [heads, 1, 1], the names and shape
 *                                                         of vLLM's per-attention-head scheme
 *     model.layers.{i}.self_attn.headroom.k_mean          F32 [num_kv_heads, head_dim]
 *     model.layers.{i}.self_attn.headroom.{q,k,v}_amax    F32 [heads, head_dim]
 *     model.layers.{i}.self_attn.headroom.v_channel_scale F32 [num_kv_heads, head_dim]
 *     model.layers.{i}.self_attn.headroom.tokens          I64 [1]
 *     __metadata__: headroom.kind=profile, headroom.version=1, headroom.recipe (text),
 *                   headroom.observer, headroom.hadamard_seed (0x and 16 digits; the seed gives the
 *                   signs), headroom.warnings (JSON array of strings); and, all or none,
 *                   headroom.model, headroom.rope, headroom.causal=true|false,
 *                   headroom.softmax_scale, headroom.data_hash
 *
 * Reading checks everything: nothing else in the file, every layer whole, shapes consistent, values
 * finite, scales > 0 and equal where the recipe has one a tensor. Errors name the file, the tensor
 * and the offending value. Release with hr_profile_free.
 */
HR_API hr_status hr_profile_read(const char *path, hr_profile **out) HR_NODISCARD;
HR_API hr_status hr_profile_write(const hr_profile *profile, const char *path) HR_NODISCARD;
HR_API void hr_profile_free(hr_profile *profile);
HR_API hr_profile_info hr_profile_get_info(const hr_profile *profile);
HR_API const char *hr_profile_warning(const hr_profile *profile, int32_t index);

/* One layer of a profile. Pointers belong to the profile. */
typedef struct hr_profile_layer {
    int32_t layer, num_heads, num_kv_heads, head_dim;
    int64_t tokens;
    const float *q_scale;         /* [num_heads]; the same value repeated for tensor granularity */
    const float *k_scale;         /* [num_kv_heads] */
    const float *v_scale;         /* [num_kv_heads] */
    const float *k_mean;          /* [num_kv_heads, head_dim] */
    const float *q_amax;          /* [num_heads, head_dim] channel maxima before any transform */
    const float *k_amax;          /* [num_kv_heads, head_dim] */
    const float *v_amax;          /* [num_kv_heads, head_dim] */
    const float *v_channel_scale; /* [num_kv_heads, head_dim]: v_amax / format maximum */
} hr_profile_layer;

HR_API hr_status hr_profile_get_layer(const hr_profile *profile, int32_t index,
                                      hr_profile_layer *out) HR_NODISCARD;
HR_API hr_status hr_profile_find_layer(const hr_profile *profile, int32_t layer,
                                       hr_profile_layer *out) HR_NODISCARD;

/*
 * The static scales of one layer as packing takes them, for `recipe`; NULL for dynamic operands.
 * The format, granularity and transform of static operands must be those the profile was made with
 * (V per channel needs the format only): HR_ERROR_MISMATCH says what differs and which command
 * makes a fitting profile. k_mean is set when the recipe smooths K, dynamic or not. Pointers belong
 * to the profile.
 */
HR_API hr_status hr_profile_scales(const hr_profile *profile, int32_t layer,
                                   const hr_recipe *recipe, hr_layer_scales *out) HR_NODISCARD;

/*
 * HR_ERROR_MISMATCH unless the recording is of the profile's model and rope stage (where both say),
 * and the layers they share, at least one, have the same heads and head_dim. A layer that the
 * profile lacks is reported when its scales are asked for.
 */
HR_API hr_status hr_profile_check(const hr_profile *profile,
                                  const hr_recording *recording) HR_NODISCARD;

#ifdef __cplusplus
}
#endif

#endif
