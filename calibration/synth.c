/*
 * Synthetic recordings: walks layers, tensors, tokens and heads and lets the mode fill each row
 * (synth_modes.c), then rotates Q and K when a rotary embedding is asked for:
 *
 *     (x[c], x[c + head_dim/2])  turned by  position * 10000^(-2c / head_dim),  c < head_dim/2
 *
 * (Su et al., "RoFormer", 2021, in the half-split order of Llama). Rows do not depend on one
 * another, so tokens are filled in parallel, and a file is written with one tensor in memory.
 */
#include "headroom/synth.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/safetensors.h"
#include "memory.h"
#include "metadata.h"
#include "status_internal.h"
#include "synth_modes.h"
#include "synth_random.h"
#include "threads.h"

enum { HEAD_DIM_STEP = 8, MAX_HEAD_DIM = 256, KINDS = 3 };

int hr_synth_mode_count(void)
{
    return hr_synth_modes_count;
}

const char *hr_synth_mode_name(int index)
{
    return index >= 0 && index < hr_synth_modes_count ? hr_synth_modes[index].name : NULL;
}

const char *hr_synth_mode_summary(int index)
{
    return index >= 0 && index < hr_synth_modes_count ? hr_synth_modes[index].summary : NULL;
}

void hr_synth_options_init(hr_synth_options *options)
{
    *options = (hr_synth_options){.mode = "gaussian",
                                  .num_heads = 8,
                                  .num_kv_heads = 8,
                                  .head_dim = 64,
                                  .tokens = 1024,
                                  .batch = 1,
                                  .layers = 1,
                                  .seed = 1,
                                  .causal = true};
}

static hr_status find_mode(const char *name, const hr_synth_mode **out)
{
    char accepted[512] = "";
    for (int i = 0; i < hr_synth_modes_count; i++) {
        *out = &hr_synth_modes[i];
        if (name && strcmp(name, (*out)->name) == 0) return HR_OK;
        strncat(accepted, i ? ", " : "", sizeof accepted - strlen(accepted) - 1);
        strncat(accepted, (*out)->name, sizeof accepted - strlen(accepted) - 1);
    }
    return hr_fail(HR_ERROR_NOT_FOUND, "mode is \"%s\"; accepted: %s", name ? name : "(null)",
                   accepted);
}

static hr_status check_options(const hr_synth_options *options, const hr_synth_mode **mode)
{
    if (!options) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "options is NULL");
    HR_TRY(find_mode(options->mode, mode));
    const struct {
        const char *name;
        int32_t value;
    } positive[] = {{"num_heads", options->num_heads},
                    {"num_kv_heads", options->num_kv_heads},
                    {"tokens", options->tokens},
                    {"batch", options->batch},
                    {"layers", options->layers}};
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++)
        if (positive[i].value < 1)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is %d; at least 1 is accepted",
                           positive[i].name, positive[i].value);
    if (options->num_heads % options->num_kv_heads != 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "num_heads %d is not divisible by num_kv_heads %d", options->num_heads,
                       options->num_kv_heads);
    if (options->head_dim < HEAD_DIM_STEP || options->head_dim > MAX_HEAD_DIM ||
        options->head_dim % HEAD_DIM_STEP != 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "head_dim is %d; a multiple of %d up to %d is accepted", options->head_dim,
                       HEAD_DIM_STEP, MAX_HEAD_DIM);
    if (options->batch > options->tokens)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "%d sequences need at least as many tokens; tokens is %d", options->batch,
                       options->tokens);
    int64_t bytes = (int64_t)options->num_heads * options->head_dim * (int64_t)sizeof(float);
    if (__builtin_mul_overflow(bytes, options->tokens, &bytes))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "a layer's size overflows 64 bits");
    return HR_OK;
}

/* Sequence i holds tokens cu_seqlen(i) .. cu_seqlen(i + 1) - 1. */
static int32_t cu_seqlen(const hr_synth_options *options, int64_t sequence)
{
    return (int32_t)(sequence * options->tokens / options->batch);
}

/* The last sequence that does not begin after token. */
static int32_t sequence_of(const hr_synth_options *options, int64_t token)
{
    return (int32_t)(((token + 1) * options->batch - 1) / options->tokens);
}

/* frequencies[c] = 10000^(-2c / head_dim), c < head_dim/2 */
static void make_frequencies(int32_t head_dim, double frequencies[MAX_HEAD_DIM / 2])
{
    static const double log_theta = 9.21034037197618273608; /* log 10000 */
    for (int32_t c = 0; c < head_dim / 2; c++)
        frequencies[c] = hr_stable_exp(-(2.0 * c / head_dim) * log_theta);
}

/* Turns every head of one token, values [heads, head_dim]. */
static void rotate(const double *frequencies, int32_t position, int32_t heads, int32_t head_dim,
                   float *values)
{
    int32_t half = head_dim / 2;
    for (int32_t c = 0; c < half; c++) {
        double sine, cosine;
        hr_stable_sincos(position * frequencies[c], &sine, &cosine);
        for (int32_t head = 0; head < heads; head++) {
            float *x = values + (int64_t)head * head_dim + c;
            double first = x[0], second = x[half];
            x[0] = (float)(first * cosine - second * sine);
            x[half] = (float)(second * cosine + first * sine);
        }
    }
}

/* values [tokens, heads, head_dim] of one tensor; the options have been checked. */
static void fill_tensor(const hr_synth_options *options, const hr_synth_mode *mode, int32_t layer,
                        hr_synth_kind kind, float *values)
{
    int32_t heads = kind == HR_SYNTH_Q ? options->num_heads : options->num_kv_heads;
    int32_t group = heads / options->num_kv_heads, head_dim = options->head_dim;
    double frequencies[MAX_HEAD_DIM / 2];
    make_frequencies(head_dim, frequencies);
#pragma omp parallel for schedule(static) num_threads(hr_threads())
    for (int32_t token = 0; token < options->tokens; token++) {
        int32_t sequence = sequence_of(options, token), start = cu_seqlen(options, sequence);
        float *token_values = values + (int64_t)token * heads * head_dim;
        for (int32_t head = 0; head < heads; head++) {
            hr_synth_row row = {.seed = options->seed,
                                .layer = layer,
                                .kind = kind,
                                .head = head,
                                .kv_head = head / group,
                                .head_dim = head_dim,
                                .token = token,
                                .position = token - start,
                                .seqlen = cu_seqlen(options, (int64_t)sequence + 1) - start};
            mode->fill(&row, token_values + (int64_t)head * head_dim);
        }
        if (options->rope && kind != HR_SYNTH_V)
            rotate(frequencies, token - start, heads, head_dim, token_values);
    }
}

hr_status hr_synth_fill(const hr_synth_options *options, int32_t layer, float *q, float *k,
                        float *v)
{
    const hr_synth_mode *mode;
    HR_TRY(check_options(options, &mode));
    if (layer < 0 || layer >= options->layers)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "layer is %d; 0 .. %d are accepted", layer,
                       options->layers - 1);
    if (!q || !k || !v) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "q, k or v is NULL");
    fill_tensor(options, mode, layer, HR_SYNTH_Q, q);
    fill_tensor(options, mode, layer, HR_SYNTH_K, k);
    fill_tensor(options, mode, layer, HR_SYNTH_V, v);
    return HR_OK;
}

/* One tensor of the file, made when the writer comes to it. */
typedef struct tensor_source {
    const hr_synth_options *options;
    const hr_synth_mode *mode;
    int32_t layer;
    hr_synth_kind kind;
} tensor_source;

static hr_status fill_source(void *context, void *buffer)
{
    const tensor_source *source = context;
    fill_tensor(source->options, source->mode, source->layer, source->kind, buffer);
    return HR_OK;
}

static hr_status add_layers(const hr_synth_options *options, const hr_synth_mode *mode,
                            tensor_source *sources, hr_safetensors_writer *writer)
{
    static const char letters[KINDS] = {'q', 'k', 'v'};
    for (int32_t layer = 0; layer < options->layers; layer++)
        for (int kind = 0; kind < KINDS; kind++) {
            tensor_source *source = &sources[(int64_t)layer * KINDS + kind];
            *source = (tensor_source){options, mode, layer, (hr_synth_kind)kind};
            int32_t heads = kind == HR_SYNTH_Q ? options->num_heads : options->num_kv_heads;
            int64_t shape[] = {options->tokens, heads, options->head_dim};
            hr_tensor view = hr_tensor_view(HR_DTYPE_F32, 3, shape, NULL);
            char name[64];
            snprintf(name, sizeof name, "model.layers.%d.self_attn.%c", layer, letters[kind]);
            HR_TRY(hr_safetensors_add_source(writer, name, &view, fill_source, source));
        }
    return HR_OK;
}

static hr_status add_metadata(const hr_synth_options *options, hr_safetensors_writer *writer)
{
    char model[120];
    snprintf(model, sizeof model, "synth %s seed %llu", options->mode,
             (unsigned long long)options->seed);
    const char *const metadata[][2] = {
        {"headroom.kind", "recording"},
        {"headroom.version", "1"},
        {"headroom.causal", options->causal ? "true" : "false"},
        {"headroom.rope", options->rope ? "applied" : "none"},
        {"headroom.model", model},
    };
    for (size_t i = 0; i < sizeof metadata / sizeof *metadata; i++)
        HR_TRY(hr_safetensors_set_metadata(writer, metadata[i][0], metadata[i][1]));
    return hr_metadata_set_softmax_scale(writer, (float)(1 / sqrt((double)options->head_dim)));
}

hr_status hr_synth_write(const hr_synth_options *options, const char *path)
{
    const hr_synth_mode *mode;
    HR_TRY(check_options(options, &mode));
    hr_safetensors_writer *writer;
    HR_TRY(hr_safetensors_writer_create(&writer));
    hr_status status = HR_OK;
    int32_t *bounds = hr_alloc((size_t)options->batch + 1, sizeof *bounds);
    tensor_source *sources = hr_alloc((size_t)options->layers * KINDS, sizeof *sources);
    if (!bounds || !sources) status = HR_ERROR_OUT_OF_MEMORY;
    if (status == HR_OK) status = add_metadata(options, writer);
    if (status == HR_OK) status = add_layers(options, mode, sources, writer);
    if (status == HR_OK) {
        for (int64_t i = 0; i <= options->batch; i++)
            bounds[i] = cu_seqlen(options, i);
        int64_t shape[] = {(int64_t)options->batch + 1};
        hr_tensor view = hr_tensor_view(HR_DTYPE_I32, 1, shape, bounds);
        status = hr_safetensors_add(writer, "cu_seqlens", &view);
    }
    if (status == HR_OK) status = hr_safetensors_write(writer, path);
    hr_safetensors_writer_free(writer);
    free(sources);
    free(bounds);
    return status;
}
