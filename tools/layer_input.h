/*
 * A recording with its profile and recipe: what pack and run start from.
 */
#ifndef HEADROOM_LAYER_INPUT_H
#define HEADROOM_LAYER_INPUT_H

#include "cli.h"

typedef struct layer_input {
    hr_recording *recording;
    hr_recording_info info;
    hr_profile *profile; /* NULL when none was given */
    hr_recipe recipe;    /* of all heads, without a choice */
    hr_choice *choice;   /* a recipe for each head; NULL: none was given */
    int32_t *layers, layer_count;
} layer_input;

/*
 * Opens the recording and the profile (path or NULL), checks that they belong together and settles
 * the recipe: the text given, else the profile's. CLI_OK, CLI_FAILED or CLI_USAGE, reported.
 */
int layer_input_open(layer_input *input, const cli_common *common, const char *recording,
                     const char *profile, const char *recipe);
/* Opens the recording and a choice, and checks that they belong together. Returns likewise. */
int layer_input_open_choice(layer_input *input, const cli_common *common, const char *recording,
                            const char *choice);
void layer_input_close(layer_input *input);

/* The index-th selected layer and the problem it poses (self-attention of each sequence). */
int layer_input_get(const layer_input *input, int32_t index, hr_recording_layer *layer,
                    hr_attention_problem *problem);

/* Packs a layer with the profile's scales. */
int layer_input_pack(const layer_input *input, const hr_recording_layer *layer,
                     const hr_layer_layouts *layouts, hr_packed_layer *out);

/* Plans and packs a layer as the choice says; release *out with hr_mixed_free, on failure too. */
int layer_input_mix(const layer_input *input, const hr_recording_layer *layer,
                    const hr_attention_problem *problem, const hr_plan_options *options,
                    hr_mixed **out);

#endif
