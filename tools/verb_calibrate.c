/*
 * headroom calibrate REC... -o PROFILE: streams recordings through a calibrator and writes the
 * profile. Several recordings of one model count as one.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

typedef struct calibrate_arguments {
    cli_common common;
    const char *output, *recipe, *observer, *granularity;
    char **recordings;
    int recording_count;
    long min_tokens;
} calibrate_arguments;

enum { KEY_MIN_TOKENS = 256 };

static const struct argp_option options[] = {
    {"output", 'o', "PROFILE", 0, "The profile to write (required)", 0},
    {"recipe", 'r', "RECIPE", 0,
     "Recipe to calibrate for: a preset with static scales or a change of one, such as "
     "fp8:qk.transform=hadamard (default fp8)",
     0},
    {"observer", 'b', "OBSERVER", 0,
     "absmax, percentile:P or mse: how a head's range is chosen (default absmax)", 0},
    {"granularity", 'g', "G", 0,
     "head or tensor: what shares a static scale (default: the recipe's)", 0},
    {"min-tokens", KEY_MIN_TOKENS, "N", 0, "Warn when a layer saw fewer tokens (default 128)", 0},
    {0},
};

static error_t parse(int key, char *text, struct argp_state *state)
{
    calibrate_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        return cli_child_input(state, &arguments->common);
    case 'o':
        arguments->output = text;
        return 0;
    case 'r':
        arguments->recipe = text;
        return 0;
    case 'b':
        arguments->observer = text;
        return 0;
    case 'g':
        arguments->granularity = text;
        return 0;
    case KEY_MIN_TOKENS:
        arguments->min_tokens = cli_number("--min-tokens", text, 1, INT_MAX);
        return 0;
    case ARGP_KEY_ARG:
        return ARGP_ERR_UNKNOWN; /* all at once, as ARGP_KEY_ARGS */
    case ARGP_KEY_ARGS:
        arguments->recordings = state->argv + state->next;
        arguments->recording_count = state->argc - state->next;
        return 0;
    case ARGP_KEY_END:
        if (arguments->recording_count == 0) cli_bad_argument("REC is missing: no recording given");
        if (!arguments->output) cli_bad_argument("-o PROFILE is missing");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int make_recipe(const calibrate_arguments *arguments, hr_recipe *recipe)
{
    char *text = NULL;
    const char *granularity = arguments->granularity;
    if (asprintf(&text, granularity ? "%s%cqkv.granularity=%s" : "%s", arguments->recipe,
                 strchr(arguments->recipe, ':') ? ',' : ':', granularity) < 0)
        return cli_fail("out of memory");
    int code = hr_recipe_parse(text, recipe) == HR_OK ? CLI_OK : cli_usage("%s", hr_last_error());
    free(text);
    return code;
}

static int observe_recording(const calibrate_arguments *arguments, hr_calibrator *calibrator,
                             const hr_recording *recording, double done, double share)
{
    const char *path = hr_recording_get_info(recording).path;
    int32_t *layers, count;
    int code = cli_select_layers(&arguments->common, recording, &layers, &count);
    for (int32_t i = 0; code == CLI_OK && i < count; i++) {
        hr_recording_layer layer;
        if (hr_recording_find_layer(recording, layers[i], &layer) != HR_OK ||
            hr_calibrator_observe(calibrator, layer.layer, &layer.q, &layer.k, &layer.v) != HR_OK)
            code = cli_fail_library(path);
        cli_progress(done + share * (i + 1) / count, path);
    }
    free(layers);
    return code;
}

static int observe_all(const calibrate_arguments *arguments, hr_calibrator *calibrator)
{
    int passes = hr_calibrator_passes(calibrator), code = CLI_OK;
    double share = 1.0 / (passes * arguments->recording_count);
    for (int pass = 0; pass < passes && code == CLI_OK; pass++) {
        if (pass > 0 && hr_calibrator_next_pass(calibrator) != HR_OK) return cli_fail_library(NULL);
        for (int r = 0; r < arguments->recording_count && code == CLI_OK; r++) {
            hr_recording *recording;
            if (hr_recording_open(arguments->recordings[r], &recording) != HR_OK)
                return cli_fail_library(NULL);
            hr_recording_info info = hr_recording_get_info(recording);
            if (pass == 0) cli_warn_rope(recording);
            double done = share * (pass * arguments->recording_count + r);
            if (pass == 0 && hr_calibrator_set_source(calibrator, &info) != HR_OK)
                code = cli_fail_library(info.path);
            else
                code = observe_recording(arguments, calibrator, recording, done, share);
            hr_recording_close(recording);
        }
    }
    cli_progress_end();
    return code;
}

static int report(const calibrate_arguments *arguments, const hr_profile *profile)
{
    hr_profile_info info = hr_profile_get_info(profile);
    if (arguments->common.json) {
        json_t *warnings = json_array();
        for (int32_t i = 0; i < info.warning_count; i++)
            json_array_append_new(warnings, json_string(hr_profile_warning(profile, i)));
        return cli_print_json(json_pack("{so ss ss ss si sI ss so}", "profile",
                                        cli_path(arguments->output), "model", info.model, "recipe",
                                        info.recipe.name, "observer", info.observer, "layers",
                                        info.layer_count, "tokens", (json_int_t)info.tokens,
                                        "data_hash", info.data_hash, "warnings", warnings));
    }
    for (int32_t i = 0; i < info.warning_count; i++)
        fprintf(stderr, "headroom calibrate: warning: %s\n", hr_profile_warning(profile, i));
    printf("%s: %s with %s, %d layer%s, %lld token%s of %s\n", arguments->output, info.recipe.name,
           info.observer, info.layer_count, cli_s(info.layer_count), (long long)info.tokens,
           cli_s(info.tokens), *info.model ? info.model : "an unnamed model");
    return CLI_OK;
}

int verb_calibrate(int argc, char **argv)
{
    static const struct argp_child children[] = {{&cli_common_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "REC...",
        .doc = "Compute per-head scales for Q, K and V from recorded activations.\v"
               "Example: headroom calibrate data/minilm.safetensors --observer percentile:99.99 -o "
               "profile.safetensors",
        .children = children,
    };
    calibrate_arguments arguments = {
        .common = cli_common_defaults(), .recipe = "fp8", .observer = "absmax"};
    cli_parse(&argp, argc, argv, &arguments);

    hr_calibrator_options calibration = {.observer = arguments.observer,
                                         .min_tokens = arguments.min_tokens};
    int code = make_recipe(&arguments, &calibration.recipe);
    if (code != CLI_OK) return code;
    hr_calibrator *calibrator;
    hr_status status = hr_calibrator_create(&calibration, &calibrator);
    if (status == HR_ERROR_INVALID_ARGUMENT || status == HR_ERROR_NOT_FOUND)
        return cli_usage("%s", hr_last_error());
    if (status != HR_OK) return cli_fail_library(NULL);

    hr_profile *profile = NULL;
    code = cli_check_output(arguments.output, (const char *const *)arguments.recordings,
                            arguments.recording_count);
    if (code == CLI_OK) code = observe_all(&arguments, calibrator);
    if (code == CLI_OK && (hr_calibrator_finish(calibrator, NULL, 0, &profile) != HR_OK ||
                           hr_profile_write(profile, arguments.output) != HR_OK))
        code = cli_fail_library(NULL);
    if (code == CLI_OK) code = report(&arguments, profile);
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    return code;
}
