/*
 * The audit as a whole on small synthetic recordings: the three-way error split, sums over heads
 * and layers, the per-head choice, progress and errors.
 */
#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "audit_internal.h"
#include "headroom/headroom.h"
#include "scratch_dir.h"

enum { LAYERS = 2, HEADS = 4, KV_HEADS = 2 };

typedef struct fixture {
    scratch_dir scratch;
    hr_recording *recording;
} fixture;

static fixture open_fixture(const char *mode)
{
    fixture f = {.scratch = scratch_open()};
    scratch_path path = scratch_file(&f.scratch, "rec.safetensors");
    hr_synth_options synth;
    hr_synth_options_init(&synth);
    synth.mode = mode;
    synth.num_heads = HEADS;
    synth.num_kv_heads = KV_HEADS;
    synth.head_dim = 32;
    synth.tokens = 96;
    synth.batch = 2;
    synth.layers = LAYERS;
    cr_assert_eq(hr_synth_write(&synth, path.text), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_recording_open(path.text, &f.recording), HR_OK, "%s", hr_last_error());
    return f;
}

static void close_fixture(fixture *f)
{
    hr_recording_close(f->recording);
    scratch_close(&f->scratch);
}

static hr_audit *run(const fixture *f, const hr_audit_options *options)
{
    hr_audit *audit;
    cr_assert_eq(hr_audit_run(f->recording, options, &audit), HR_OK, "%s", hr_last_error());
    return audit;
}

static const hr_audit_config *find(const hr_audit *audit, const char *id)
{
    for (int32_t c = 0; c < audit->config_count; c++)
        if (strcmp(audit->configs[c].id, id) == 0) return &audit->configs[c];
    cr_assert_fail("no config %s", id);
    return NULL;
}

Test(audit, presets_and_observers_become_configs)
{
    fixture f = open_fixture("mixed");
    const char *const observers[] = {"absmax", "mse"};
    hr_audit_options options = {.observers = observers, .observer_count = 2, .repeats = 1};
    hr_audit *audit = run(&f, &options);
    cr_assert_str_eq(audit->configs[0].id, "bf16");
    cr_assert_eq(audit->config_count, hr_recipe_preset_count() + 1, "fp8 twice, all others once");
    find(audit, "fp8/absmax");
    find(audit, "fp8/mse");
    find(audit, "int8");
    cr_assert_eq(audit->layer_count, LAYERS);
    cr_assert_eq(audit->head_offset[LAYERS], LAYERS * HEADS);
    hr_audit_free(audit);
    close_fixture(&f);
}

/* |total| <= |quant| + |kernel| in any norm, and each norm of a layer is made of its heads'. */
static void check_scores(const hr_audit *audit, const hr_audit_config *config)
{
    double squares = 0;
    for (int32_t h = 0; h < audit->head_offset[LAYERS]; h++) {
        const hr_audit_scores *s = &config->heads[h];
        cr_assert(s->total.rmse <= (s->quant.rmse + s->kernel.rmse) * (1 + 1e-12), "%s head %d",
                  config->id, h);
        cr_assert(s->total.max_abs <= (s->quant.max_abs + s->kernel.max_abs) * (1 + 1e-12));
        cr_assert_eq(s->total.count, 96 * 32);
        cr_assert_eq(s->lse.count, 96);
        cr_assert_eq(s->total.nonfinite, 0);
        cr_assert(s->softmax_kl >= -1e-12 && s->top_k_agreement > 0 && s->top_k_agreement <= 1);
        squares += s->total.rmse * s->total.rmse / audit->head_offset[LAYERS];
    }
    double rmse = config->summary.total.rmse;
    cr_assert(fabs(rmse - sqrt(squares)) <= 1e-12 * rmse, "%s: %.17g, heads give %.17g", config->id,
              rmse, sqrt(squares));
}

Test(audit, errors_split_and_add_up)
{
    fixture f = open_fixture("mixed");
    hr_audit_options options = {.repeats = 2};
    hr_audit *audit = run(&f, &options);
    for (int32_t c = 0; c < audit->config_count; c++)
        check_scores(audit, &audit->configs[c]);
    const hr_audit_config *bf16 = &audit->configs[0], *int4 = find(audit, "int4");
    cr_assert(int4->summary.total.rel_l2 > bf16->summary.total.rel_l2);
    cr_assert(int4->kv_bits < 8 && bf16->kv_bits == 16);
    cr_assert(int4->timing.kv_bytes < bf16->timing.kv_bytes / 2);
    cr_assert_eq(bf16->timing.x_baseline, 1);
    cr_assert(int4->timing.min_ms <= int4->timing.median_ms &&
              int4->timing.median_ms <= int4->timing.max_ms);
    hr_audit_free(audit);
    close_fixture(&f);
}

Test(audit, a_profile_replaces_calibration)
{
    fixture f = open_fixture("gaussian");
    hr_recipe fp8;
    cr_assert_eq(hr_recipe_parse("fp8", &fp8), HR_OK);
    hr_calibrator_options calibration = {.recipe = fp8, .observer = "percentile:99"};
    hr_calibrator *calibrator;
    cr_assert_eq(hr_calibrator_create(&calibration, &calibrator), HR_OK, "%s", hr_last_error());
    for (int32_t i = 0; i < LAYERS; i++) {
        hr_recording_layer layer;
        cr_assert_eq(hr_recording_get_layer(f.recording, i, &layer), HR_OK);
        cr_assert_eq(hr_calibrator_observe(calibrator, layer.layer, &layer.q, &layer.k, &layer.v),
                     HR_OK);
    }
    hr_profile *profile;
    cr_assert_eq(hr_calibrator_finish(calibrator, NULL, 0, &profile), HR_OK);
    hr_audit_options options = {
        .recipes = &fp8, .recipe_count = 1, .profile = profile, .repeats = 1};
    hr_audit *audit = run(&f, &options);
    cr_assert_eq(audit->config_count, 2);
    find(audit, "fp8/percentile:99");
    hr_audit_free(audit);
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    close_fixture(&f);
}

Test(audit, choice_takes_fewest_bits_within_the_budget)
{
    fixture f = open_fixture("gaussian");
    hr_audit_options options = {.repeats = 1};
    hr_audit *audit = run(&f, &options);
    int32_t choice[LAYERS * HEADS];
    cr_assert_eq(hr_audit_choose(audit, 1.0, choice), HR_OK);
    for (int h = 0; h < LAYERS * HEADS; h++)
        cr_assert_str_eq(audit->configs[choice[h]].id, "int4");
    cr_assert_eq(hr_audit_choose(audit, 1e-9, choice), HR_OK);
    for (int h = 0; h < LAYERS * HEADS; h++)
        cr_assert_eq(choice[h], -1);
    cr_assert_eq(hr_audit_choose(audit, 0.04, choice), HR_OK);
    for (int h = 0; h < LAYERS * HEADS; h++)
        cr_assert(audit->configs[choice[h]].heads[h].total.rel_l2 <= 0.04);
    /* A head exactly at the budget is within it. */
    const hr_audit_config *int4 = find(audit, "int4");
    cr_assert_eq(hr_audit_choose(audit, int4->heads[0].total.rel_l2, choice), HR_OK);
    cr_assert_eq(&audit->configs[choice[0]], int4);
    cr_assert_eq(hr_audit_choose(audit, 0, choice), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_audit_choose(audit, NAN, choice), HR_ERROR_INVALID_ARGUMENT);
    hr_audit_free(audit);
    close_fixture(&f);
}

Test(audit, timing_is_the_median_of_the_repeats)
{
    hr_audit_timing timing;
    double odd[3] = {3, 1, 2}, even[4] = {1, 16, 2, 4};
    hr_audit_timing_finish(odd, 3, 4e9, 4000, &timing);
    cr_assert_eq(timing.median_ms, 2000);
    cr_assert_eq(timing.gops, 2);
    cr_assert_eq(timing.x_baseline, 2);
    hr_audit_timing_finish(even, 4, 6e9, 0, &timing);
    cr_assert_eq(timing.median_ms, 3000);
    cr_assert(timing.min_ms == 1000 && timing.max_ms == 16000 && timing.repeats == 4);
    cr_assert_eq(timing.x_baseline, 1);
}

/* Reports have seven digits. */
static void check_number(const json_t *object, const char *key, double expected)
{
    const json_t *value = json_object_get(object, key);
    cr_assert(json_is_number(value), "no number %s", key);
    const double found = json_number_value(value);
    cr_assert(fabs(found - expected) <= 1e-6 * fabs(expected), "%s is %.9g, not %.9g", key, found,
              expected);
}

/* Each figure stands under its own name; no two of these are alike in a real audit. */
static void check_json_scores(const json_t *json, const hr_audit_scores *scores)
{
    const struct {
        const char *name;
        const hr_error *error;
    } parts[] = {{"quant", &scores->quant},
                 {"kernel", &scores->kernel},
                 {"total", &scores->total},
                 {"lse", &scores->lse}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const json_t *part = json_object_get(json, parts[i].name);
        const hr_error *e = parts[i].error;
        check_number(part, "max_abs", e->max_abs);
        check_number(part, "rmse", e->rmse);
        check_number(part, "rel_l1", e->rel_l1);
        check_number(part, "rel_l2", e->rel_l2);
        check_number(part, "cosine", e->cosine);
        check_number(part, "sqnr_db", e->sqnr_db);
        check_number(part, "count", (double)e->count);
        check_number(part, "nonfinite", (double)e->nonfinite);
    }
    check_number(json, "softmax_kl", scores->softmax_kl);
    check_number(json, "top_k_agreement", scores->top_k_agreement);
}

Test(audit, json_holds_every_head_and_names_the_worst)
{
    fixture f = open_fixture("mixed");
    hr_audit_options options = {.repeats = 1};
    hr_audit *audit = run(&f, &options);
    char *text;
    cr_assert_eq(hr_audit_json(audit, 0.05, &text), HR_OK, "%s", hr_last_error());
    json_t *report = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    cr_assert_not_null(report);
    json_t *configs = json_object_get(report, "configs");
    cr_assert_eq(json_array_size(configs), (size_t)audit->config_count);
    for (int32_t c = 0; c < audit->config_count; c++) {
        json_t *config = json_array_get(configs, (size_t)c);
        json_t *layers = json_object_get(config, "layers");
        cr_assert_eq(json_array_size(layers), LAYERS);
        cr_assert_eq(json_array_size(json_object_get(json_array_get(layers, 1), "heads")), HEADS);
        json_t *layer = json_array_get(layers, 1);
        check_json_scores(json_object_get(layer, "scores"), &audit->configs[c].layers[1]);
        json_t *head = json_array_get(json_object_get(layer, "heads"), 2);
        check_json_scores(json_object_get(head, "scores"), &audit->configs[c].heads[HEADS + 2]);
        json_t *worst = json_object_get(config, "worst_heads");
        cr_assert_eq(json_array_size(worst), LAYERS * HEADS, "all heads, as there are under ten");
        double last = INFINITY;
        for (size_t i = 0; i < json_array_size(worst); i++) {
            double error = json_number_value(json_object_get(json_array_get(worst, i), "rel_l2"));
            cr_assert(error <= last);
            last = error;
        }
    }
    cr_assert(json_array_size(json_object_get(report, "pareto")) >= 1);
    json_decref(report);
    free(text);
    hr_audit_free(audit);
    close_fixture(&f);
}

static int stop_at_half(void *context, double fraction, const char *what)
{
    (void)what;
    double *last = context;
    cr_assert(fraction >= *last && fraction <= 1);
    *last = fraction;
    return fraction >= 0.5;
}

Test(audit, progress_rises_and_can_stop_it)
{
    fixture f = open_fixture("gaussian");
    double last = 0;
    hr_audit_options options = {.repeats = 1, .progress = stop_at_half, .progress_context = &last};
    hr_audit *audit;
    cr_assert_eq(hr_audit_run(f.recording, &options, &audit), HR_ERROR_IO);
    cr_assert_null(audit);
    cr_assert(strstr(hr_last_error(), "stopped"));
    cr_assert(last >= 0.5 && last < 1);
    close_fixture(&f);
}

Test(audit, bad_options_are_refused)
{
    fixture f = open_fixture("gaussian");
    const int32_t missing[] = {7}, twice[] = {1, 1};
    const char *const nonsense[] = {"median"};
    struct {
        hr_audit_options options;
        hr_status status;
        const char *says;
    } cases[] = {
        {{.layers = missing, .layer_count = 1}, HR_ERROR_NOT_FOUND, "7"},
        {{.layers = twice, .layer_count = 2}, HR_ERROR_INVALID_ARGUMENT, "twice"},
        {{.repeats = -1}, HR_ERROR_INVALID_ARGUMENT, "repeats"},
        {{.top_k = 65}, HR_ERROR_INVALID_ARGUMENT, "top_k"},
        {{.observers = nonsense, .observer_count = 1}, HR_ERROR_NOT_FOUND, "median"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        hr_audit *audit;
        hr_status status = hr_audit_run(f.recording, &cases[i].options, &audit);
        cr_assert_eq(status, cases[i].status, "case %zu: %d %s", i, status, hr_last_error());
        cr_assert(strstr(hr_last_error(), cases[i].says), "%s", hr_last_error());
        cr_assert_null(audit);
    }
    close_fixture(&f);
}
