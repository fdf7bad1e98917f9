/*
 * Which 4-bit format should K and V have? Prints, as Markdown, the relative L2 error of the
 * attention output that comes from packing K and V alone, computed in double precision:
 *
 *     error = |A(q, unpack(pack(k)), unpack(pack(v))) - A(q, k, v)| / |A(q, k, v)|
 *
 * for 4096 keys of N(0,1), and for the recording named as the argument, where the transforms of K
 * matter. Usage: int4_formats [RECORDING.safetensors]. docs/int4-formats.md has its output.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/headroom.h"

enum { QUERIES = 256, KEYS = 4096, HEADS = 2 };

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

static double uniform(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15); /* SplitMix64 */
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return ((double)((z ^ (z >> 31)) >> 11) + 1.0) * 0x1p-53;
}

static hr_tensor gaussian(uint64_t *state, int64_t tokens, int64_t head_dim)
{
    int64_t count = tokens * HEADS * head_dim;
    float *values = allocate(count, sizeof *values);
    for (int64_t i = 0; i < count; i++) {
        double radius = sqrt(-2.0 * log(uniform(state)));
        values[i] = (float)(radius * cos(6.283185307179586 * uniform(state)));
    }
    return hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){tokens, HEADS, head_dim}, values);
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

/* Errors from K alone, V alone and both. */
static void measure(const layer_data *data, const hr_recipe *recipe, double error[3])
{
    hr_tensor k = through_codes(data, HR_OPERAND_K, &recipe->k, &data->k);
    hr_tensor v = through_codes(data, HR_OPERAND_V, &recipe->v, &data->v);
    error[0] = relative_l2(data, &k, &data->v);
    error[1] = relative_l2(data, &data->k, &v);
    error[2] = relative_l2(data, &k, &v);
    free(k.data);
    free(v.data);
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

static const char *const dtypes[] = {"i4", "u4", "c4"};
static const char *const granularities[] = {"head", "token", "group64", "group32", "group16"};
enum { DTYPES = 3, GRANULARITIES = 5 };

static void measure_gaussian(int32_t head_dim)
{
    static const int32_t bounds_q[] = {0, QUERIES}, bounds_kv[] = {0, KEYS};
    uint64_t state = 1;
    layer_data data = {.q = gaussian(&state, QUERIES, head_dim),
                       .k = gaussian(&state, KEYS, head_dim),
                       .v = gaussian(&state, KEYS, head_dim)};
    hr_attention_problem_init(&data.problem, HEADS, HEADS, head_dim);
    data.problem.batch = 1;
    data.problem.cu_seqlens_q = bounds_q;
    data.problem.cu_seqlens_kv = bounds_kv;
    data.exact = attend(&data, &data.k, &data.v);
    printf("\n### N(0,1), %d keys, head_dim %d\n\n", KEYS, head_dim);
    printf(
        "| scale per | format | bits | K alone | V alone | K and V |\n|---|---|---|---|---|---|\n");
    for (int g = 0; g < GRANULARITIES; g++) {
        for (int d = 0; d < DTYPES; d++) {
            hr_recipe recipe = recipe_for(dtypes[d], granularities[g], "none");
            double error[3];
            measure(&data, &recipe, error);
            printf("| %s | %s | %.2f | %.4f | %.4f | %.4f |\n", granularities[g], dtypes[d],
                   hr_recipe_kv_bits(&recipe, head_dim), error[0], error[1], error[2]);
            fflush(stdout);
        }
    }
    free(data.q.data);
    free(data.k.data);
    free(data.v.data);
    free(data.exact);
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

static void measure_recording(const char *path)
{
    static const char *const transforms[] = {"none", "mean", "hadamard", "mean+hadamard"};
    static const char *const scales[] = {"token", "group16"};
    hr_recording *recording;
    if (hr_recording_open(path, &recording) != HR_OK) fail("recording");
    hr_recording_info info = hr_recording_get_info(recording);
    layer_data *layers = allocate(info.layer_count, sizeof *layers);
    for (int32_t i = 0; i < info.layer_count; i++)
        layers[i] = load_layer(recording, i);
    printf("\n### %s, %lld tokens, %d layers, head_dim %d: mean (worst) layer\n\n", info.model,
           (long long)info.total_tokens, info.layer_count, layers[0].problem.head_dim);
    printf("| scale per | format | K's transform | K alone | V alone | K and V |\n");
    printf("|---|---|---|---|---|---|\n");
    for (int c = 0; c < 2 * DTYPES * 4; c++) {
        const char *scale = scales[c / (DTYPES * 4)], *dtype = dtypes[c / 4 % DTYPES];
        hr_recipe recipe = recipe_for(dtype, scale, transforms[c % 4]);
        double mean[3] = {0}, worst[3] = {0};
        for (int32_t i = 0; i < info.layer_count; i++) {
            double error[3];
            measure(&layers[i], &recipe, error);
            for (int e = 0; e < 3; e++) {
                mean[e] += error[e] / info.layer_count;
                worst[e] = fmax(worst[e], error[e]);
            }
        }
        printf("| %s | %s | %s | %.4f (%.4f) | %.4f (%.4f) | %.4f (%.4f) |\n", scale, dtype,
               transforms[c % 4], mean[0], worst[0], mean[1], worst[1], mean[2], worst[2]);
    }
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
    measure_gaussian(64);
    measure_gaussian(128);
    if (argc == 2) measure_recording(argv[1]);
    return 0;
}
