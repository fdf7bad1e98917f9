/*
 * A profile in memory, and the table of a layer's arrays that building, reading and writing share.
 */
#ifndef HEADROOM_PROFILE_H
#define HEADROOM_PROFILE_H

#include "headroom/calibration.h"
#include "observer.h"
#include "source.h"

enum { HR_PROFILE_VERSION = 1, HR_PROFILE_NAME_BYTES = 96 };

#define HR_PROFILE_TOKENS_SUFFIX "headroom.tokens" /* I64 [1] */

struct hr_profile {
    char *model; /* never NULL; "" when no source was set */
    char *rope;  /* likewise */
    char observer[HR_OBSERVER_TEXT_BYTES];
    char data_hash[HR_HASH_BYTES];
    hr_recipe recipe;
    uint64_t hadamard_seed;
    bool causal;
    float softmax_scale; /* 0 when no source was set */
    int32_t layer_count;
    hr_profile_layer *layers; /* ascending by number; each owns its arrays */
    int32_t warning_count;
    char **warnings;
};

/* The arrays of a layer, in the order of hr_profile_arrays. */
typedef enum hr_profile_array_id {
    HR_PROFILE_Q_SCALE = 0,
    HR_PROFILE_K_SCALE,
    HR_PROFILE_V_SCALE,
    HR_PROFILE_K_MEAN,
    HR_PROFILE_Q_AMAX,
    HR_PROFILE_K_AMAX,
    HR_PROFILE_V_AMAX,
    HR_PROFILE_V_CHANNEL_SCALE,
    HR_PROFILE_ARRAYS
} hr_profile_array_id;

typedef struct hr_profile_array {
    const char *suffix; /* of its name in the file, after model.layers.{i}.self_attn. */
    size_t offset;      /* of its pointer in hr_profile_layer */
    hr_operand operand; /* whose heads are its rows */
    bool per_channel;   /* [heads, head_dim], else [heads, 1, 1] */
    float least;        /* values are at least this */
} hr_profile_array;

extern const hr_profile_array hr_profile_arrays[HR_PROFILE_ARRAYS];

/* One array of a layer, writable; its rows (heads) and elements. */
float *hr_profile_array_data(const hr_profile_layer *layer, hr_profile_array_id id);
int32_t hr_profile_array_rows(const hr_profile_layer *layer, hr_profile_array_id id);
int64_t hr_profile_array_size(const hr_profile_layer *layer, hr_profile_array_id id);

/* model.layers.{layer}.self_attn.{suffix} */
void hr_profile_tensor_name(char name[HR_PROFILE_NAME_BYTES], int32_t layer, const char *suffix);

/* A profile with room for layer_count layers, model and rope copied. Release: hr_profile_free. */
hr_status hr_profile_create(int32_t layer_count, const char *model, const char *rope,
                            hr_profile **out) HR_NODISCARD;

/* Allocates one array of a layer whose heads and head_dim are set. */
hr_status hr_profile_array_allocate(hr_profile_layer *layer, hr_profile_array_id id) HR_NODISCARD;

/* Appends a warning. */
hr_status hr_profile_warn(hr_profile *profile, const char *format, ...)
    HR_PRINTF(2, 3) HR_NODISCARD;

#endif
