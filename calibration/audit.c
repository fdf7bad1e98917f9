/*
 * The audit: sets up one config a recipe (and observer), calibrates those with static scales, walks
 * the recording layer by layer and sums errors from heads to layers to the recording.
 *
 * Timing is interleaved: for each layer, repeat r runs every config once before repeat r + 1, so
 * that a drift of the machine's speed falls on all configs alike. A sample is the sum over layers;
 * a run too short for the clock is repeated inside the sample.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "audit_internal.h"
#include "memory.h"
#include "observer.h"
#include "status_internal.h"
#include "threads.h"

enum { DEFAULT_REPEATS = 7, DEFAULT_TOP_K = 8 };

/* A sample of one layer lasts at least this long, so that the clock's grain does not matter. */
static const double SAMPLE_SECONDS = 1e-3;

typedef struct config_state {
    double *seconds; /* [repeats], summed over layers */
    double flops;
    hr_audit_sums *heads;   /* all layers' heads */
    hr_audit_run_state run; /* of the layer at hand */
} config_state;

typedef struct audit_work {
    const hr_recording *recording;
    const hr_audit_options *options;
    hr_recording_info info;
    int32_t repeats, top_k, threads;
    hr_audit *audit;
    config_state *states; /* [config_count] */
    hr_audit_baseline_state *baselines;
    int64_t steps_done, steps;
} audit_work;

static hr_status step(audit_work *work, const char *what)
{
    work->steps_done++;
    const hr_audit_options *options = work->options;
    if (!options->progress) return HR_OK;
    double fraction = (double)work->steps_done / (double)work->steps;
    if (fraction > 1) fraction = 1;
    if (options->progress(options->progress_context, fraction, what))
        return hr_fail(HR_ERROR_IO, "the audit was stopped at \"%s\"", what);
    return HR_OK;
}

static hr_status add_config(audit_work *work, const hr_recipe *recipe, const char *observer,
                            const hr_profile *profile)
{
    hr_audit *audit = work->audit;
    if (audit->config_count == HR_AUDIT_CONFIGS_MAX)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "more than %d recipes x observers",
                       HR_AUDIT_CONFIGS_MAX);
    hr_audit_config config = {.recipe = *recipe};
    snprintf(config.observer, sizeof config.observer, "%s", observer);
    snprintf(config.id, sizeof config.id, "%s%s%s", recipe->name, *observer ? "/" : "", observer);
    for (int32_t i = 0; i < audit->config_count; i++)
        if (strcmp(audit->configs[i].id, config.id) == 0) return HR_OK;
    audit->configs[audit->config_count] = config;
    audit->configs[audit->config_count].profile = profile;
    audit->config_count++;
    return HR_OK;
}

/*
 * Whether the profile was made for a recipe of the same static scales. One that lacks a layer of
 * the audit is an error now, not when that layer's turn comes.
 */
static hr_status profile_fits(const audit_work *work, const hr_recipe *recipe, bool *fits)
{
    const hr_audit *audit = work->audit;
    *fits = work->options->profile != NULL;
    for (int32_t i = 0; *fits && i < audit->layer_count; i++) {
        hr_layer_scales scales;
        hr_status status =
            hr_profile_scales(work->options->profile, audit->layers[i].layer, recipe, &scales);
        if (status == HR_ERROR_MISMATCH)
            *fits = false;
        else if (status != HR_OK)
            return status;
    }
    return HR_OK;
}

static hr_status add_recipe(audit_work *work, const hr_recipe *recipe)
{
    const hr_audit_options *options = work->options;
    bool fits;
    HR_TRY(profile_fits(work, recipe, &fits));
    if (fits) {
        bool is_static = hr_recipe_needs_profile(recipe);
        return add_config(work, recipe,
                          is_static ? hr_profile_get_info(options->profile).observer : "",
                          options->profile);
    }
    if (!hr_recipe_needs_profile(recipe)) return add_config(work, recipe, "", NULL);
    int32_t count = options->observers ? options->observer_count : 1;
    for (int32_t i = 0; i < count; i++) {
        hr_observer_config observer; /* its canonical text: "percentile" is "percentile:99.99" */
        HR_TRY(hr_observer_parse(options->observers ? options->observers[i] : NULL, &observer));
        HR_TRY(add_config(work, recipe, observer.text, NULL));
    }
    return HR_OK;
}

static bool device_has_kernel(hr_device device, const hr_recipe *recipe)
{
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if ((row->isa == HR_ISA_SM90) == (device == HR_DEVICE_CUDA) &&
            row->q_dtype == recipe->q.dtype && row->k_dtype == recipe->k.dtype &&
            row->v_dtype == recipe->v.dtype && row->p_dtype == recipe->p.dtype)
            return true;
    }
    return false;
}

static hr_status add_recipes(audit_work *work)
{
    const hr_audit_options *options = work->options;
    hr_recipe baseline;
    HR_TRY(hr_recipe_parse("bf16", &baseline));
    HR_TRY(add_recipe(work, &baseline));
    int32_t count = options->recipes ? options->recipe_count : hr_recipe_preset_count();
    for (int32_t i = 0; i < count; i++) {
        const hr_recipe *recipe = options->recipes ? &options->recipes[i] : hr_recipe_preset(i);
        if (options->recipes || device_has_kernel(options->device, recipe))
            HR_TRY(add_recipe(work, recipe));
    }
    return HR_OK;
}

static int compare_layers(const void *a, const void *b)
{
    const hr_audit_layer *x = a, *y = b;
    return (x->layer > y->layer) - (x->layer < y->layer);
}

static hr_status set_layers(audit_work *work)
{
    const hr_audit_options *options = work->options;
    hr_audit *audit = work->audit;
    int32_t count = options->layers ? options->layer_count : work->info.layer_count;
    if (count < 1) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "no layers to audit");
    audit->layers = hr_alloc((size_t)count, sizeof *audit->layers);
    audit->head_offset = hr_alloc((size_t)count + 1, sizeof *audit->head_offset);
    if (!audit->layers || !audit->head_offset) return HR_ERROR_OUT_OF_MEMORY;
    for (int32_t i = 0; i < count; i++) {
        hr_recording_layer layer;
        if (options->layers)
            HR_TRY(hr_recording_find_layer(work->recording, options->layers[i], &layer));
        else
            HR_TRY(hr_recording_get_layer(work->recording, i, &layer));
        audit->layers[i] = (hr_audit_layer){layer.layer, layer.num_heads, layer.num_kv_heads,
                                            layer.head_dim, layer.q.dtype};
    }
    qsort(audit->layers, (size_t)count, sizeof *audit->layers, compare_layers);
    for (int32_t i = 0; i < count; i++) {
        if (i > 0 && audit->layers[i].layer == audit->layers[i - 1].layer)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT, "layer %d is listed twice",
                           audit->layers[i].layer);
        audit->head_offset[i + 1] = audit->head_offset[i] + audit->layers[i].num_heads;
    }
    audit->layer_count = count;
    return HR_OK;
}

static hr_status find_layer(const audit_work *work, int32_t at, hr_recording_layer *out)
{
    return hr_recording_find_layer(work->recording, work->audit->layers[at].layer, out);
}

static hr_status calibrate_passes(audit_work *work, hr_calibrator *calibrator)
{
    for (int pass = 1; pass <= hr_calibrator_passes(calibrator); pass++) {
        if (pass > 1) HR_TRY(hr_calibrator_next_pass(calibrator));
        for (int32_t i = 0; i < work->audit->layer_count; i++) {
            hr_recording_layer layer;
            HR_TRY(find_layer(work, i, &layer));
            HR_TRY(hr_calibrator_observe(calibrator, layer.layer, &layer.q, &layer.k, &layer.v));
        }
    }
    return HR_OK;
}

/* Calibrates a config with static scales on the recording itself. */
static hr_status calibrate(audit_work *work, hr_audit_config *config)
{
    hr_calibrator_options options = {.recipe = config->recipe, .observer = config->observer};
    hr_calibrator *calibrator = NULL;
    hr_profile *profile = NULL;
    HR_TRY(hr_calibrator_create(&options, &calibrator));
    hr_status status = hr_calibrator_set_source(calibrator, &work->info);
    if (status == HR_OK) status = calibrate_passes(work, calibrator);
    if (status == HR_OK) status = hr_calibrator_finish(calibrator, NULL, 0, &profile);
    hr_calibrator_free(calibrator);
    config->profile = profile;
    return status;
}

static hr_status allocate_configs(audit_work *work)
{
    hr_audit *audit = work->audit;
    size_t layers = (size_t)audit->layer_count, heads = (size_t)audit->head_offset[layers];
    for (int32_t c = 0; c < audit->config_count; c++) {
        hr_audit_config *config = &audit->configs[c];
        config_state *state = &work->states[c];
        config->layers = hr_alloc(layers, sizeof *config->layers);
        config->heads = hr_alloc(heads, sizeof *config->heads);
        state->heads = hr_alloc(heads, sizeof *state->heads);
        state->seconds = hr_alloc((size_t)work->repeats, sizeof *state->seconds);
        if (!config->layers || !config->heads || !state->heads || !state->seconds)
            return HR_ERROR_OUT_OF_MEMORY;
        if (*config->observer && !config->profile) {
            hr_status status = calibrate(work, config);
            if (status != HR_OK) return hr_fail_in(status, "calibrating %s", config->id);
        }
        HR_TRY(step(work, config->id));
    }
    return HR_OK;
}

/* Runs config `i`, or the baseline that follows the configs in number, once. */
static hr_status time_once(audit_work *work, int32_t i, double *seconds)
{
    const int32_t configs = work->audit->config_count;
    return i < configs ? hr_audit_time(&work->states[i].run, seconds)
                       : hr_audit_baseline_time(&work->baselines[i - configs], seconds);
}

/* Runs every config and baseline `repeats` times in turn and adds each repeat's seconds. */
static hr_status time_layer(audit_work *work)
{
    const int32_t configs = work->audit->config_count;
    const int32_t count = configs + work->audit->baseline_count;
    int32_t inner[HR_AUDIT_CONFIGS_MAX + HR_BASELINE_COUNT];
    for (int32_t i = 0; i < count; i++) {
        double seconds;
        HR_TRY(time_once(work, i, &seconds));
        double wanted = seconds > 0 ? ceil(SAMPLE_SECONDS / seconds) : 1000;
        inner[i] = wanted < 1 ? 1 : wanted > 1000 ? 1000 : (int32_t)wanted;
        if (i >= configs && !work->baselines[i - configs].run) inner[i] = 0;
    }
    for (int32_t r = 0; r < work->repeats; r++) {
        for (int32_t i = 0; i < count; i++) {
            double sum = 0;
            for (int32_t n = 0; n < inner[i]; n++) {
                double seconds;
                HR_TRY(time_once(work, i, &seconds));
                sum += seconds;
            }
            double *all =
                i < configs ? work->states[i].seconds : work->baselines[i - configs].seconds;
            if (inner[i] > 0) all[r] += sum / inner[i];
        }
    }
    return HR_OK;
}

static hr_status measure_config(audit_work *work, const hr_audit_reference *reference, int32_t at,
                                int32_t c)
{
    hr_audit *audit = work->audit;
    hr_audit_config *config = &audit->configs[c];
    config_state *state = &work->states[c];
    hr_layer_scales scales;
    if (config->profile)
        HR_TRY(
            hr_profile_scales(config->profile, audit->layers[at].layer, &config->recipe, &scales));
    hr_audit_sums *heads = state->heads + audit->head_offset[at];
    HR_TRY(hr_audit_measure(
        reference, &config->recipe, config->profile ? &scales : NULL,
        &(hr_plan_options){.threads = work->threads, .device = work->options->device}, work->top_k,
        &state->run, heads));

    hr_audit_sums layer = {0};
    for (int32_t h = 0; h < reference->problem.num_heads; h++) {
        config->heads[audit->head_offset[at] + h] = hr_audit_sums_finish(&heads[h]);
        hr_audit_sums_merge(&layer, &heads[h]);
    }
    config->layers[at] = hr_audit_sums_finish(&layer);
    config->kernel = hr_plan_kernel(state->run.plan);
    config->kv_bits +=
        hr_recipe_kv_bits(&config->recipe, reference->problem.head_dim) / audit->layer_count;
    config->timing.kv_bytes +=
        hr_packed_bytes(&state->run.packed.k) + hr_packed_bytes(&state->run.packed.v);
    state->flops += hr_plan_flops(state->run.plan);
    return HR_OK;
}

static hr_status measure_configs(audit_work *work, const hr_audit_reference *reference, int32_t at)
{
    hr_audit *audit = work->audit;
    for (int32_t c = 0; c < audit->config_count; c++) {
        hr_status status = measure_config(work, reference, at, c);
        if (status != HR_OK)
            return hr_fail_in(status, "layer %d, %s", audit->layers[at].layer,
                              audit->configs[c].id);
        HR_TRY(step(work, audit->configs[c].id));
    }
    HR_TRY(hr_audit_baselines_measure(audit, reference, at, hr_plan_flops(work->states[0].run.plan),
                                      work->baselines));
    HR_TRY(time_layer(work));
    return step(work, "timing");
}

static hr_status audit_layer(audit_work *work, int32_t at)
{
    hr_recording_layer layer;
    HR_TRY(find_layer(work, at, &layer));
    hr_audit_reference reference;
    hr_status status =
        hr_audit_reference_create(&work->info, &layer, work->options->mask, &reference);
    if (status != HR_OK) {
        hr_fail_in(status, "layer %d", layer.layer);
    } else {
        status = step(work, "reference");
        if (status == HR_OK) status = measure_configs(work, &reference, at);
    }
    for (int32_t c = 0; c < work->audit->config_count; c++)
        hr_audit_run_state_free(&work->states[c].run);
    hr_audit_baselines_layer_end(work->audit, work->baselines);
    hr_audit_reference_free(&reference);
    return status;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void hr_audit_timing_finish(double *seconds, int32_t n, double flops, double bf16_ms,
                            hr_audit_timing *timing)
{
    qsort(seconds, (size_t)n, sizeof *seconds, compare_doubles);
    timing->repeats = n;
    timing->median_ms = 500 * (seconds[(n - 1) / 2] + seconds[n / 2]);
    timing->min_ms = 1e3 * seconds[0];
    timing->max_ms = 1e3 * seconds[n - 1];
    timing->gops = 1e-6 * flops / timing->median_ms;
    timing->x_baseline = bf16_ms > 0 ? bf16_ms / timing->median_ms : 1;
}

static void finish_config(audit_work *work, int32_t c)
{
    hr_audit *audit = work->audit;
    hr_audit_config *config = &audit->configs[c];
    config_state *state = &work->states[c];
    hr_audit_sums all = {0};
    for (int32_t h = 0; h < audit->head_offset[audit->layer_count]; h++)
        hr_audit_sums_merge(&all, &state->heads[h]);
    config->summary = hr_audit_sums_finish(&all);

    hr_audit_timing_finish(state->seconds, work->repeats, state->flops,
                           c > 0 ? audit->configs[0].timing.median_ms : 0, &config->timing);
}

static hr_status check_options(const hr_audit_options *options)
{
    if (options->repeats < 0 || options->repeats > 10000)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "repeats is %d; it must be in 1..10000, or 0 for %d", options->repeats,
                       DEFAULT_REPEATS);
    if (options->top_k < 0 || options->top_k > 64)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "top_k is %d; it must be in 1..64, or 0 for %d",
                       options->top_k, DEFAULT_TOP_K);
    if ((options->recipes && options->recipe_count < 1) ||
        (options->observers && options->observer_count < 1))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "an empty list of recipes or observers; pass NULL for the default");
    return HR_OK;
}

static hr_status run_audit(audit_work *work)
{
    hr_audit *audit = work->audit;
    HR_TRY(set_layers(work));
    audit->configs = hr_alloc(HR_AUDIT_CONFIGS_MAX, sizeof *audit->configs);
    work->states = hr_alloc(HR_AUDIT_CONFIGS_MAX, sizeof *work->states);
    if (!audit->configs || !work->states) return HR_ERROR_OUT_OF_MEMORY;
    HR_TRY(add_recipes(work));
    work->steps = audit->config_count + (int64_t)audit->layer_count * (audit->config_count + 2);
    HR_TRY(allocate_configs(work));
    HR_TRY(hr_audit_baselines_begin(audit, work->options->device, work->repeats, &work->baselines));
    for (int32_t at = 0; at < audit->layer_count; at++)
        HR_TRY(audit_layer(work, at));
    for (int32_t c = 0; c < audit->config_count; c++)
        finish_config(work, c);
    hr_audit_baselines_finish(audit, work->repeats, work->baselines);
    return HR_OK;
}

hr_status hr_audit_run(const hr_recording *recording, const hr_audit_options *options,
                       hr_audit **out)
{
    static const hr_audit_options defaults;
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out is NULL");
    *out = NULL;
    if (!recording) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the recording is NULL");
    if (!options) options = &defaults;
    HR_TRY(check_options(options));
    HR_TRY(hr_device_check(options->device));
    hr_audit *audit = hr_alloc(1, sizeof *audit);
    if (!audit) return HR_ERROR_OUT_OF_MEMORY;
    audit_work work = {
        .recording = recording,
        .options = options,
        .info = hr_recording_get_info(recording),
        .repeats = options->repeats ? options->repeats : DEFAULT_REPEATS,
        .top_k = options->top_k ? options->top_k : DEFAULT_TOP_K,
        .threads = options->threads ? options->threads : hr_threads(),
        .audit = audit,
    };
    audit->recording = work.info;
    audit->top_k = work.top_k;
    audit->threads = work.threads;
    audit->profile = options->profile;
    audit->masked = options->mask != NULL;
    if (options->mask) audit->mask = *options->mask;
    if (audit->mask.blocks) audit->blocks = *audit->mask.blocks;
    audit->mask.blocks = NULL;
    audit->blocks.row_begin = NULL;
    audit->blocks.columns = NULL;
    hr_status status = run_audit(&work);
    for (int32_t c = 0; c < audit->config_count; c++) {
        free(work.states[c].seconds);
        free(work.states[c].heads);
    }
    free(work.states);
    hr_audit_baselines_end(audit, work.baselines);
    if (status == HR_OK)
        *out = audit;
    else
        hr_audit_free(audit);
    return status;
}

void hr_audit_free(hr_audit *audit)
{
    if (!audit) return;
    for (int32_t c = 0; c < audit->config_count; c++) {
        if (audit->configs[c].profile != audit->profile)
            hr_profile_free((hr_profile *)audit->configs[c].profile);
        free(audit->configs[c].layers);
        free(audit->configs[c].heads);
    }
    for (int32_t i = 0; i < audit->baseline_count; i++) {
        free(audit->baselines[i].layers);
        free(audit->baselines[i].heads);
    }
    free(audit->configs);
    free(audit->baselines);
    free(audit->layers);
    free(audit->head_offset);
    free(audit);
}
