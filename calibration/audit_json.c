/*
 * The report: an audit as one JSON document, field by field as tools/report.schema.json defines it.
 * JSON has no NaN or infinity; a figure that is not finite becomes null.
 *
 * jansson's constructors return NULL when memory runs out and its setters fail on NULL, so a tree
 * is built without checks in between and every setter's failure is collected in one flag.
 */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "audit_internal.h"
#include "headroom/machine.h"
#include "memory.h"
#include "status_internal.h"

enum { WORST_HEADS = 10 };

typedef struct builder {
    const hr_audit *audit;
    bool failed;
} builder;

static void set(builder *b, json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) != 0) b->failed = true;
}

static void append(builder *b, json_t *array, json_t *value)
{
    if (json_array_append_new(array, value) != 0) b->failed = true;
}

static json_t *figure(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *text_or_null(const char *text)
{
    return text ? json_string(text) : json_null();
}

/* A path is any bytes; where they are not UTF-8, those above ASCII are written as \xNN. */
static json_t *path_text(const char *path)
{
    enum { ESCAPE_BYTES = 4 };
    json_t *text = json_string(path);
    char *escaped = text ? NULL : hr_alloc(strlen(path) + 1, ESCAPE_BYTES);
    if (!escaped) return text;
    size_t used = 0;
    for (const char *at = path; *at; at++)
        used += (size_t)sprintf(escaped + used, *at & 0x80 ? "\\x%02x" : "%c", (unsigned char)*at);
    text = json_string(escaped);
    free(escaped);
    return text;
}

static json_t *error_object(builder *b, const hr_error *error)
{
    json_t *object = json_object();
    set(b, object, "max_abs", figure(error->max_abs));
    set(b, object, "rmse", figure(error->rmse));
    set(b, object, "rel_l1", figure(error->rel_l1));
    set(b, object, "rel_l2", figure(error->rel_l2));
    set(b, object, "cosine", figure(error->cosine));
    set(b, object, "sqnr_db", figure(error->sqnr_db));
    set(b, object, "count", json_integer(error->count));
    set(b, object, "nonfinite", json_integer(error->nonfinite));
    return object;
}

static json_t *scores_object(builder *b, const hr_audit_scores *scores)
{
    json_t *object = json_object();
    set(b, object, "quant", error_object(b, &scores->quant));
    set(b, object, "kernel", error_object(b, &scores->kernel));
    set(b, object, "total", error_object(b, &scores->total));
    set(b, object, "lse", error_object(b, &scores->lse));
    set(b, object, "softmax_kl", figure(scores->softmax_kl));
    set(b, object, "top_k_agreement", figure(scores->top_k_agreement));
    return object;
}

static const char *transform_name(uint32_t transform)
{
    static const char *const names[] = {"none", "mean", "hadamard", "mean+hadamard"};
    return names[transform & (HR_TRANSFORM_MEAN | HR_TRANSFORM_HADAMARD)];
}

static json_t *operand_object(builder *b, const hr_operand_recipe *operand)
{
    bool scaled = operand->granularity != HR_GRANULARITY_NONE;
    json_t *object = json_object();
    set(b, object, "dtype", json_string(hr_dtype_name(operand->dtype)));
    set(b, object, "granularity", json_string(hr_granularity_name(operand->granularity)));
    set(b, object, "block", json_integer(operand->block));
    set(b, object, "scale",
        json_string(!scaled            ? "none"
                    : operand->dynamic ? "dynamic"
                                       : "static"));
    set(b, object, "transform", json_string(transform_name(operand->transform)));
    return object;
}

static json_t *formats_object(builder *b, const hr_recipe *recipe)
{
    json_t *object = json_object(), *p = json_object();
    set(b, object, "q", operand_object(b, &recipe->q));
    set(b, object, "k", operand_object(b, &recipe->k));
    set(b, object, "v", operand_object(b, &recipe->v));
    set(b, p, "dtype", json_string(hr_dtype_name(recipe->p.dtype)));
    set(b, object, "p", p);
    return object;
}

static json_t *timing_object(builder *b, const hr_audit_timing *timing)
{
    json_t *object = json_object();
    set(b, object, "repeats", json_integer(timing->repeats));
    set(b, object, "median_ms", json_real(timing->median_ms));
    set(b, object, "min_ms", json_real(timing->min_ms));
    set(b, object, "max_ms", json_real(timing->max_ms));
    set(b, object, "gops", figure(timing->gops));
    set(b, object, "x_baseline", figure(timing->x_baseline));
    set(b, object, "kv_bytes", json_integer(timing->kv_bytes));
    return object;
}

/* What is said of a layer (head < 0) or of a head, counted over all layers. */
typedef json_t *make_item(builder *b, const void *owner, int32_t layer, int32_t head);

/* [{"layer", KEY: item, "heads": [{"head", KEY: item}, ...]}, ...] */
static json_t *layers_array(builder *b, const char *key, make_item *make, const void *owner)
{
    const hr_audit *audit = b->audit;
    json_t *array = json_array();
    for (int32_t l = 0; l < audit->layer_count; l++) {
        json_t *layer = json_object(), *heads = json_array();
        for (int32_t h = 0; h < audit->layers[l].num_heads; h++) {
            json_t *head = json_object();
            set(b, head, "head", json_integer(h));
            set(b, head, key, make(b, owner, l, audit->head_offset[l] + h));
            append(b, heads, head);
        }
        set(b, layer, "layer", json_integer(audit->layers[l].layer));
        set(b, layer, key, make(b, owner, l, -1));
        set(b, layer, "heads", heads);
        append(b, array, layer);
    }
    return array;
}

static json_t *config_scores(builder *b, const void *owner, int32_t layer, int32_t head)
{
    const hr_audit_config *config = owner;
    return scores_object(b, head < 0 ? &config->layers[layer] : &config->heads[head]);
}

static json_t *baseline_error(builder *b, const void *owner, int32_t layer, int32_t head)
{
    const hr_audit_baseline *baseline = owner;
    return error_object(b, head < 0 ? &baseline->layers[layer] : &baseline->heads[head]);
}

/* True when head a belongs before head b among the worst; a NaN is worse than any number. */
static bool worse(const hr_audit_config *config, int32_t a, int32_t b)
{
    double x = config->heads[a].total.rel_l2, y = config->heads[b].total.rel_l2;
    bool x_finite = isfinite(x), y_finite = isfinite(y);
    if (x_finite != y_finite) return !x_finite;
    if (x_finite && x != y) return x > y;
    return a < b;
}

static json_t *worst_array(builder *b, const hr_audit_config *config)
{
    const hr_audit *audit = b->audit;
    int32_t total = audit->head_offset[audit->layer_count], worst[WORST_HEADS], held = 0;
    for (int32_t i = 0; i < total; i++) {
        if (held == WORST_HEADS && !worse(config, i, worst[held - 1])) continue;
        int32_t at = held < WORST_HEADS ? held++ : held - 1;
        for (; at > 0 && worse(config, i, worst[at - 1]); at--)
            worst[at] = worst[at - 1];
        worst[at] = i;
    }
    json_t *array = json_array();
    for (int32_t i = 0; i < held; i++) {
        int32_t l = 0;
        while (audit->head_offset[l + 1] <= worst[i])
            l++;
        json_t *head = json_object();
        set(b, head, "layer", json_integer(audit->layers[l].layer));
        set(b, head, "head", json_integer(worst[i] - audit->head_offset[l]));
        set(b, head, "rel_l2", figure(config->heads[worst[i]].total.rel_l2));
        set(b, head, "cosine", figure(config->heads[worst[i]].total.cosine));
        append(b, array, head);
    }
    return array;
}

static json_t *configs_array(builder *b)
{
    json_t *array = json_array();
    for (int32_t c = 0; c < b->audit->config_count; c++) {
        const hr_audit_config *config = &b->audit->configs[c];
        json_t *object = json_object(), *kernel = json_object();
        set(b, kernel, "name", json_string(config->kernel->name));
        set(b, kernel, "isa", json_string(hr_isa_name(config->kernel->isa)));
        set(b, object, "id", json_string(config->id));
        set(b, object, "recipe", json_string(config->recipe.name));
        set(b, object, "formats", formats_object(b, &config->recipe));
        set(b, object, "observer", text_or_null(*config->observer ? config->observer : NULL));
        set(b, object, "kernel", kernel);
        set(b, object, "kv_bits", json_real(config->kv_bits));
        set(b, object, "timing", timing_object(b, &config->timing));
        set(b, object, "summary", scores_object(b, &config->summary));
        set(b, object, "layers", layers_array(b, "scores", config_scores, config));
        set(b, object, "worst_heads", worst_array(b, config));
        append(b, array, object);
    }
    return array;
}

static json_t *baselines_array(builder *b)
{
    json_t *array = json_array();
    for (int32_t i = 0; i < b->audit->baseline_count; i++) {
        const hr_audit_baseline *baseline = &b->audit->baselines[i];
        const bool ran = !*baseline->skipped;
        json_t *object = json_object();
        set(b, object, "id", json_string(baseline->id));
        set(b, object, "skipped", text_or_null(ran ? NULL : baseline->skipped));
        set(b, object, "timing", ran ? timing_object(b, &baseline->timing) : json_null());
        set(b, object, "total", ran ? error_object(b, &baseline->total) : json_null());
        set(b, object, "lse", ran ? error_object(b, &baseline->lse) : json_null());
        set(b, object, "layers",
            ran ? layers_array(b, "total", baseline_error, baseline) : json_array());
        append(b, array, object);
    }
    return array;
}

static bool dominates(const hr_audit_config *a, const hr_audit_config *b)
{
    double ax = a->timing.median_ms, ay = a->summary.total.rel_l2;
    double bx = b->timing.median_ms, by = b->summary.total.rel_l2;
    return ax <= bx && ay <= by && (ax < bx || ay < by);
}

/* Configs nothing beats on both axes, fastest first. Quadratic in configs, which are few. */
static json_t *pareto_array(builder *b)
{
    const hr_audit *audit = b->audit;
    json_t *array = json_array();
    double after = -INFINITY;
    for (;;) {
        const hr_audit_config *next = NULL;
        for (int32_t c = 0; c < audit->config_count; c++) {
            const hr_audit_config *config = &audit->configs[c];
            bool on_front = isfinite(config->summary.total.rel_l2);
            for (int32_t other = 0; other < audit->config_count && on_front; other++)
                on_front = !dominates(&audit->configs[other], config);
            if (on_front && config->timing.median_ms > after &&
                (!next || config->timing.median_ms < next->timing.median_ms))
                next = config;
        }
        if (!next) return array;
        append(b, array, json_string(next->id));
        after = next->timing.median_ms;
    }
}

/* Bits of one query head: its config's, or the recording's own width when none serves. */
static double head_bits(const hr_audit *audit, int32_t layer, int32_t config)
{
    return config >= 0 ? audit->configs[config].kv_bits : hr_dtype_bits(audit->layers[layer].dtype);
}

/* A KV head is stored once, for the most demanding of the query heads that read it. */
static double mean_bits(const hr_audit *audit, const int32_t *choice)
{
    double sum = 0, weight = 0;
    for (int32_t l = 0; l < audit->layer_count; l++) {
        const hr_audit_layer *layer = &audit->layers[l];
        int32_t group = layer->num_heads / layer->num_kv_heads;
        for (int32_t kv = 0; kv < layer->num_kv_heads; kv++) {
            double bits = 0;
            for (int32_t h = kv * group; h < (kv + 1) * group; h++)
                bits = fmax(bits, head_bits(audit, l, choice[audit->head_offset[l] + h]));
            sum += bits * layer->head_dim;
            weight += layer->head_dim;
        }
    }
    return sum / weight;
}

static json_t *uniform_object(builder *b, const hr_audit_uniform *uniform)
{
    const hr_audit_config *configs = b->audit->configs;
    const bool none = uniform->config < 0, alone = uniform->narrower < 0;
    json_t *object = json_object(), *narrower = alone ? json_null() : json_object();
    set(b, object, "config", text_or_null(none ? NULL : configs[uniform->config].id));
    set(b, object, "rel_l2", figure(uniform->worst));
    if (!alone) {
        set(b, narrower, "config", json_string(configs[uniform->narrower].id));
        set(b, narrower, "broken_heads", json_integer(uniform->broken));
    }
    set(b, object, "narrower", narrower);
    return object;
}

static json_t *choice_object(builder *b, double budget, const int32_t *choice,
                             const hr_audit_uniform *uniform)
{
    const hr_audit *audit = b->audit;
    json_t *object = json_object(), *heads = json_array(), *counts = json_object();
    json_int_t chosen[HR_AUDIT_CONFIGS_MAX] = {0}, unmet = 0;
    for (int32_t l = 0; l < audit->layer_count; l++) {
        for (int32_t h = 0; h < audit->layers[l].num_heads; h++) {
            int32_t at = audit->head_offset[l] + h, c = choice[at];
            const hr_audit_config *config = c >= 0 ? &audit->configs[c] : NULL;
            json_t *head = json_object();
            set(b, head, "layer", json_integer(audit->layers[l].layer));
            set(b, head, "head", json_integer(h));
            set(b, head, "config", text_or_null(config ? config->id : NULL));
            set(b, head, "rel_l2", config ? figure(config->heads[at].total.rel_l2) : json_null());
            set(b, head, "kv_bits", json_real(head_bits(audit, l, c)));
            append(b, heads, head);
            if (config)
                chosen[c]++;
            else
                unmet++;
        }
    }
    for (int32_t c = 0; c < audit->config_count; c++)
        set(b, counts, audit->configs[c].id, json_integer(chosen[c]));
    set(b, object, "budget", json_real(budget));
    set(b, object, "heads", heads);
    set(b, object, "counts", counts);
    set(b, object, "unmet", json_integer(unmet));
    set(b, object, "mean_kv_bits", json_real(mean_bits(audit, choice)));
    set(b, object, "uniform", uniform_object(b, uniform));
    return object;
}

static json_t *machine_object(builder *b)
{
    char cpu[256], os[256];
    json_t *object = json_object(), *isas = json_array();
    uint32_t mask = hr_isa_mask();
    for (int isa = 0; isa < HR_ISA_COUNT; isa++)
        if (mask >> isa & 1) append(b, isas, json_string(hr_isa_name((hr_isa)isa)));
    set(b, object, "cpu", text_or_null(hr_machine_cpu(cpu, sizeof cpu)));
    set(b, object, "isa", isas);
    set(b, object, "threads", json_integer(b->audit->threads));
    set(b, object, "compiler", json_string(hr_machine_compiler()));
    set(b, object, "os", text_or_null(hr_machine_os(os, sizeof os)));
    return object;
}

static json_t *mask_object(builder *b)
{
    const hr_mask *mask = &b->audit->mask;
    const hr_block_mask *blocks = &b->audit->blocks;
    json_t *object = json_object();
    set(b, object, "window_left", json_integer(mask->window_left));
    set(b, object, "window_right", json_integer(mask->window_right));
    set(b, object, "keep", json_integer(mask->keep));
    set(b, object, "block_q", json_integer(blocks->block_q));
    set(b, object, "block_kv", json_integer(blocks->block_kv));
    return object;
}

static json_t *recording_object(builder *b)
{
    const hr_recording_info *recording = &b->audit->recording;
    json_t *object = json_object(), *layers = json_array();
    for (int32_t l = 0; l < b->audit->layer_count; l++) {
        const hr_audit_layer *layer = &b->audit->layers[l];
        json_t *entry = json_object();
        set(b, entry, "layer", json_integer(layer->layer));
        set(b, entry, "num_heads", json_integer(layer->num_heads));
        set(b, entry, "num_kv_heads", json_integer(layer->num_kv_heads));
        set(b, entry, "head_dim", json_integer(layer->head_dim));
        set(b, entry, "dtype", json_string(hr_dtype_name(layer->dtype)));
        append(b, layers, entry);
    }
    set(b, object, "path", path_text(recording->path));
    set(b, object, "model", json_string(recording->model));
    set(b, object, "data_hash", json_string(recording->data_hash));
    set(b, object, "total_tokens", json_integer(recording->total_tokens));
    set(b, object, "batch", json_integer(recording->batch));
    set(b, object, "causal", json_boolean(recording->causal));
    set(b, object, "softmax_scale", json_real(recording->softmax_scale));
    set(b, object, "rope", json_string(recording->rope));
    set(b, object, "mask", b->audit->masked ? mask_object(b) : json_null());
    set(b, object, "layers", layers);
    return object;
}

static json_t *created_text(void)
{
    char text[32];
    struct tm utc;
    time_t now = time(NULL);
    if (now == (time_t)-1 || !gmtime_r(&now, &utc)) return json_null();
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return json_string(text);
}

static json_t *report_object(builder *b, double budget, const int32_t *choice,
                             const hr_audit_uniform *uniform)
{
    json_t *report = json_object(), *headroom = json_object();
    set(b, headroom, "version", json_string(hr_version()));
    set(b, headroom, "commit", text_or_null(hr_machine_commit()));
    set(b, report, "schema", json_string("headroom-report"));
    set(b, report, "schema_version", json_integer(1));
    set(b, report, "headroom", headroom);
    set(b, report, "created", created_text());
    set(b, report, "machine", machine_object(b));
    set(b, report, "recording", recording_object(b));
    set(b, report, "top_k", json_integer(b->audit->top_k));
    set(b, report, "configs", configs_array(b));
    set(b, report, "baselines", baselines_array(b));
    set(b, report, "pareto", pareto_array(b));
    set(b, report, "choice", choice_object(b, budget, choice, uniform));
    return report;
}

hr_status hr_audit_json(const hr_audit *audit, double budget, char **out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out is NULL");
    *out = NULL;
    if (!audit) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the audit is NULL");
    int32_t heads = audit->head_offset[audit->layer_count];
    int32_t *choice = hr_alloc((size_t)heads, sizeof *choice);
    if (!choice) return HR_ERROR_OUT_OF_MEMORY;
    hr_audit_uniform uniform;
    hr_status status = hr_audit_choose(audit, budget, choice);
    if (status == HR_OK) status = hr_audit_choose_uniform(audit, budget, &uniform);
    if (status == HR_OK) {
        builder b = {.audit = audit};
        json_t *report = report_object(&b, budget, choice, &uniform);
        if (!b.failed) *out = json_dumps(report, JSON_COMPACT | JSON_REAL_PRECISION(7));
        json_decref(report);
        if (!*out) status = hr_fail(HR_ERROR_OUT_OF_MEMORY, "out of memory for the report");
    }
    free(choice);
    return status;
}
