/*
 * Which 4-bit format should K and V have? Prints, as Markdown, the relative L2 error of the
 * attention output that comes from packing K and V alone, computed in double precision:
 *
 *     error = |A(q, unpack(pack(k)), unpack(pack(v))) - A(q, k, v)| / |A(q, k, v)|
 *
 * without arguments for synthetic activations; for a recording, when one is named:
 * int4_formats [RECORDING.safetensors]. docs/int4-formats.md has its output.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/headroom.h"

enum { QUERIES = 256, HEADS = 2, TRANSFORMS = 4, DTYPES = 3, GRANULARITIES = 5 };

static const char *const dtypes[DTYPES] = {"i4", "u4", "c4"};
static const char *const granularities[GRANULARITIES] = {"head", "token", "group64", "group32",
                                                         "group16"};
static const char *const transforms[TRANSFORMS] = {"none", "mean", "hadamard", "mean+hadamard"};

/* Q, K and V of one layer and the exact output. */
typedef struct layer_data {
    hr_attention_problem problem;
    hr_tensor q, k, v;
    double *exact; /* [total_q, num_heads, head_dim] */
} layer_data;

static void fail(const char *what)
{
    fprintf(stderr, "int4_formats: %s: %s\n", what, hr_last_error());
    exit(1);
}

static void *allocate(int64_t count, size_t size)
{
    void *memory = calloc((size_t)count, size);
    if (!memory) {
        fprintf(stderr, "int4_formats: out of memory\n");
        exit(1);
    }
    return memory;
}

static double *attend(const layer_data *data, const hr_tensor *k, const hr_tensor *v)
{
    double *o = allocate(hr_tensor_size(&data->q), sizeof *o);
    if (hr_reference_attention(&data->problem, &data->q, k, v, o, NULL) != HR_OK) fail("reference");
    return o;
}

/* What K or V becomes: original values -> codes -> values, transforms undone. */
static hr_tensor through_codes(const layer_data *data, hr_operand operand,
                               const hr_operand_recipe *recipe, const hr_tensor *x)
{
    hr_pack_options options = {.batch = data->problem.batch,
                               .cu_seqlens = data->problem.cu_seqlens_kv};
    hr_packed packed;
    float *values = allocate(hr_tensor_size(x), sizeof *values);
    if (hr_pack(operand, recipe, x, &options, &packed) != HR_OK) fail("pack");
    if (hr_unpack_original(&packed, values) != HR_OK) fail("unpack");
    hr_packed_free(&packed);
    return hr_tensor_view(HR_DTYPE_F32, 3, x->shape, values);
}

static double relative_l2(const layer_data *data, const hr_tensor *k, const hr_tensor *v)
{
    double *o = attend(data, k, v), error = 0.0, total = 0.0;
    for (int64_t i = 0; i < hr_tensor_size(&data->q); i++) {
        error += (o[i] - data->exact[i]) * (o[i] - data->exact[i]);
        total += data->exact[i] * data->exact[i];
    }
    free(o);
    return sqrt(error / total);
}

static hr_recipe recipe_for(const char *dtype, const char *granularity, const char *transform)
{
    char text[HR_RECIPE_NAME_BYTES];
    bool rotated = strstr(transform, "hadamard") != NULL;
    snprintf(text, sizeof text, "int4:kv.dtype=%s,kv.granularity=%s,q.transform=%s,k.transform=%s",
             dtype, granularity, rotated ? "hadamard" : "none", transform);
    hr_recipe recipe;
    if (hr_recipe_parse(text, &recipe) != HR_OK) fail(text);
    return recipe;
}

/* The first QUERIES queries of a synthetic layer against all of its keys, not causal. */
static layer_data synthesize(const char *mode, int32_t keys, int32_t head_dim, int32_t bounds[4])
{
    hr_synth_options options;
    hr_synth_options_init(&options);
    options.mode = mode;
    options.num_heads = options.num_kv_heads = HEADS;
    options.head_dim = head_dim;
    options.tokens = keys;
    float *values[3];
    for (int i = 0; i < 3; i++)
        values[i] = allocate((int64_t)keys * HEADS * head_dim, sizeof **values);
    if (hr_synth_fill(&options, 0, values[0], values[1], values[2]) != HR_OK) fail(mode);
    const int64_t q_shape[] = {QUERIES, HEADS, head_dim}, kv_shape[] = {keys, HEADS, head_dim};
    layer_data data = {.q = hr_tensor_view(HR_DTYPE_F32, 3, q_shape, values[0]),
                       .k = hr_tensor_view(HR_DTYPE_F32, 3, kv_shape, values[1]),
                       .v = hr_tensor_view(HR_DTYPE_F32, 3, kv_shape, values[2])};
    hr_attention_problem_init(&data.problem, HEADS, HEADS, head_dim);
    bounds[0] = bounds[2] = 0;
    bounds[1] = QUERIES;
    bounds[3] = keys;
    data.problem.batch = 1;
    data.problem.cu_seqlens_q = bounds;
    data.problem.cu_seqlens_kv = bounds + 2;
    data.exact = attend(&data, &data.k, &data.v);
    return data;
}

static void free_synthetic(layer_data *data)
{
    free(data->q.data);
    free(data->k.data);
    free(data->v.data);
    free(data->exact);
}

/* Formats against granularities, with the shares of K and V. */
static void print_formats(int32_t keys, int32_t head_dim)
{
    int32_t bounds[4];
    layer_data data = synthesize("gaussian", keys, head_dim, bounds);
    printf("\n### N(0,1), %d keys, head_dim %d\n\n", keys, head_dim);
    printf(
        "| scale per | format | bits | K alone | V alone | K and V |\n|---|---|---|---|---|---|\n");
    for (int g = 0; g < GRANULARITIES; g++) {
        for (int d = 0; d < DTYPES; d++) {
            hr_recipe recipe = recipe_for(dtypes[d], granularities[g], "none");
            hr_tensor k = through_codes(&data, HR_OPERAND_K, &recipe.k, &data.k);
            hr_tensor v = through_codes(&data, HR_OPERAND_V, &recipe.v, &data.v);
            printf("| %s | %s | %.2f | %.4f | %.4f | %.4f |\n", granularities[g], dtypes[d],
                   hr_recipe_kv_bits(&recipe, head_dim), relative_l2(&data, &k, &data.v),
                   relative_l2(&data, &data.k, &v), relative_l2(&data, &k, &v));
            fflush(stdout);
            free(k.data);
            free(v.data);
        }
    }
    free_synthetic(&data);
}

/* Rows of scales and formats, columns of K's transforms: mean error over layers, and the worst. */
static void print_transforms(const char *title, const layer_data *layers, int32_t count)
{
    static const char *const scales[] = {"token", "group32"};
    printf("\n### %s\n\n| scale per | format |", title);
    for (int t = 0; t < TRANSFORMS; t++)
        printf(" %s |", transforms[t]);
    printf("\n|---|---|---|---|---|---|\n");
    for (int row = 0; row < 2 * DTYPES; row++) {
        printf("| %s | %s |", scales[row / DTYPES], dtypes[row % DTYPES]);
        for (int t = 0; t < TRANSFORMS; t++) {
            hr_recipe recipe =
                recipe_for(dtypes[row % DTYPES], scales[row / DTYPES], transforms[t]);
            double mean = 0.0, worst = 0.0;
            for (int32_t i = 0; i < count; i++) {
                hr_tensor k = through_codes(&layers[i], HR_OPERAND_K, &recipe.k, &layers[i].k);
                hr_tensor v = through_codes(&layers[i], HR_OPERAND_V, &recipe.v, &layers[i].v);
                double error = relative_l2(&layers[i], &k, &v);
                mean += error / count;
                worst = fmax(worst, error);
                free(k.data);
                free(v.data);
            }
            if (count > 1)
                printf(" %.4f (%.4f) |", mean, worst);
            else
                printf(" %.4f |", mean);
            fflush(stdout);
        }
        printf("\n");
    }
}

static void print_mode(const char *mode, int32_t keys, int32_t head_dim)
{
    int32_t bounds[4];
    char title[80];
    layer_data data = synthesize(mode, keys, head_dim, bounds);
    snprintf(title, sizeof title, "%s, %d keys, head_dim %d, by K's transform", mode, keys,
             head_dim);
    print_transforms(title, &data, 1);
    free_synthetic(&data);
}

static layer_data load_layer(const hr_recording *recording, int32_t index)
{
    hr_recording_info info = hr_recording_get_info(recording);
    hr_recording_layer layer;
    if (hr_recording_get_layer(recording, index, &layer) != HR_OK) fail("recording");
    layer_data data = {.q = layer.q, .k = layer.k, .v = layer.v};
    hr_attention_problem_init(&data.problem, layer.num_heads, layer.num_kv_heads, layer.head_dim);
    data.problem.batch = info.batch;
    data.problem.cu_seqlens_q = info.cu_seqlens;
    data.problem.cu_seqlens_kv = info.cu_seqlens;
    data.problem.softmax_scale = info.softmax_scale;
    data.problem.mask.causal = info.causal;
    data.exact = attend(&data, &data.k, &data.v);
    return data;
}

static void print_recording(const char *path)
{
    hr_recording *recording;
    if (hr_recording_open(path, &recording) != HR_OK) fail("recording");
    hr_recording_info info = hr_recording_get_info(recording);
    layer_data *layers = allocate(info.layer_count, sizeof *layers);
    for (int32_t i = 0; i < info.layer_count; i++)
        layers[i] = load_layer(recording, i);
    char title[240];
    snprintf(title, sizeof title, "%s, %lld tokens, head_dim %d: mean (worst) of %d layers",
             info.model, (long long)info.total_tokens, layers[0].problem.head_dim,
             info.layer_count);
    print_transforms(title, layers, info.layer_count);
    for (int32_t i = 0; i < info.layer_count; i++)
        free(layers[i].exact);
    free(layers);
    hr_recording_close(recording);
}

int main(int argc, char **argv)
{
    if (argc > 2) {
        fprintf(stderr, "usage: int4_formats [RECORDING.safetensors]\n");
        return 2;
    }
    if (argc == 2) {
        print_recording(argv[1]);
        return 0;
    }
    print_formats(4096, 64);
    print_formats(4096, 128);
    print_mode("sparse-outliers", 1024, 64);
    print_mode("outlier-channels", 1024, 64);
    print_mode("mean-bias", 1024, 64);
    print_mode("sink", 1024, 64);
    return 0;
}
