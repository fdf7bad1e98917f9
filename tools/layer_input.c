/*
 * Opening a recording with its profile and recipe; see layer_input.h.
 */
#include "layer_input.h"

#include <stdlib.h>
#include <string.h>

static int settle_recipe(layer_input *input, const char *recipe)
{
    if (recipe) {
        if (hr_recipe_parse(recipe, &input->recipe) != HR_OK)
            return cli_usage("--recipe: %s", hr_last_error());
    } else if (input->profile) {
        input->recipe = hr_profile_get_info(input->profile).recipe;
    } else {
        return cli_usage("give --profile PROFILE, or --recipe RECIPE for a recipe without static "
                         "scales, such as int8");
    }
    if (hr_recipe_needs_profile(&input->recipe) && !input->profile)
        return cli_fail("recipe %s has static scales and needs --profile PROFILE; make one with "
                        "headroom calibrate %s --recipe %s -o PROFILE",
                        input->recipe.name, input->info.path, input->recipe.name);
    return CLI_OK;
}

int layer_input_open(layer_input *input, const cli_common *common, const char *recording,
                     const char *profile, const char *recipe)
{
    memset(input, 0, sizeof *input);
    if (hr_recording_open(recording, &input->recording) != HR_OK) return cli_fail_library(NULL);
    input->info = hr_recording_get_info(input->recording);
    cli_warn_rope(input->recording);
    if (profile && hr_profile_read(profile, &input->profile) != HR_OK)
        return cli_fail_library(NULL);
    if (profile && hr_profile_check(input->profile, input->recording) != HR_OK)
        return cli_fail_library(profile);
    int code = settle_recipe(input, recipe);
    if (code != CLI_OK) return code;
    return cli_select_layers(common, input->recording, &input->layers, &input->layer_count);
}

int layer_input_open_choice(layer_input *input, const cli_common *common, const char *recording,
                            const char *choice)
{
    memset(input, 0, sizeof *input);
    if (hr_recording_open(recording, &input->recording) != HR_OK ||
        hr_choice_read(choice, &input->choice) != HR_OK)
        return cli_fail_library(NULL);
    input->info = hr_recording_get_info(input->recording);
    cli_warn_rope(input->recording);
    int code = cli_select_layers(common, input->recording, &input->layers, &input->layer_count);
    if (code != CLI_OK) return code;
    if (hr_choice_check(input->choice, input->recording, input->layers, input->layer_count) !=
        HR_OK)
        return cli_fail_library(choice);
    return CLI_OK;
}

void layer_input_close(layer_input *input)
{
    hr_choice_free(input->choice);
    hr_recording_close(input->recording);
    hr_profile_free(input->profile);
    free(input->layers);
    memset(input, 0, sizeof *input);
}

int layer_input_get(const layer_input *input, int32_t index, hr_recording_layer *layer,
                    hr_attention_problem *problem)
{
    if (hr_recording_find_layer(input->recording, input->layers[index], layer) != HR_OK)
        return cli_fail_library(NULL);
    hr_attention_problem_init(problem, layer->num_heads, layer->num_kv_heads, layer->head_dim);
    problem->batch = input->info.batch;
    problem->cu_seqlens_q = problem->cu_seqlens_kv = input->info.cu_seqlens;
    problem->softmax_scale = input->info.softmax_scale;
    problem->mask.causal = input->info.causal;
    return CLI_OK;
}

int layer_input_pack(const layer_input *input, const hr_recording_layer *layer,
                     const hr_layer_layouts *layouts, hr_packed_layer *out)
{
    hr_layer_scales scales;
    if (input->profile &&
        hr_profile_scales(input->profile, layer->layer, &input->recipe, &scales) != HR_OK)
        return cli_fail_library(NULL);
    if (hr_pack_layer(&input->recipe, layouts, &layer->q, &layer->k, &layer->v, input->info.batch,
                      input->info.cu_seqlens, input->info.cu_seqlens,
                      input->profile ? &scales : NULL, out) == HR_OK)
        return CLI_OK;
    return cli_fail("%s: layer %d: %s", input->info.path, layer->layer, hr_last_error());
}

int layer_input_mix(const layer_input *input, const hr_recording_layer *layer,
                    const hr_attention_problem *problem, const hr_plan_options *options,
                    hr_mixed **out)
{
    const hr_choice *choice = input->choice;
    const hr_choice_layer *chosen = hr_choice_find_layer(choice, layer->layer);
    hr_recipe *recipes = calloc((size_t)choice->config_count, sizeof *recipes);
    hr_layer_scales *scales = calloc((size_t)choice->config_count, sizeof *scales);
    *out = NULL;
    int code = recipes && scales ? CLI_OK : cli_fail("out of memory");
    if (code == CLI_OK) {
        hr_choice_recipes(choice, recipes);
        if (hr_choice_scales(choice, layer->layer, scales) != HR_OK ||
            hr_mixed_create(problem, recipes, choice->config_count, chosen->config, options, out) !=
                HR_OK ||
            hr_mixed_pack(*out, &layer->q, &layer->k, &layer->v, scales) != HR_OK)
            code = cli_fail("%s: layer %d: %s", input->info.path, layer->layer, hr_last_error());
    }
    free(recipes);
    free(scales);
    return code;
}
