/*
 * Packing on a GPU: validates as hr_pack does, lays memory out once, and turns a run into the
 * launches of kernels/cuda/pack_sm90.h.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda/pack_sm90.h"
#include "cuda_api.h"
#include "device_internal.h"
#include "memory.h"
#include "pack_check.h"
#include "packed_memory.h"
#include "plan.h"
#include "rope_internal.h"
#include "status_internal.h"
#include "transform.h"

enum { OPERANDS = 3, ARRAYS = 24 };

struct hr_device_packer {
    hr_packed_layer out;
    hr_sm90_pack_args args; /* without x */
    void *stream;
    void *array[ARRAYS]; /* on the GPU: all that args points to beside out */
    int arrays;
};

/* What the fields of one operand come from. */
typedef struct operand_source {
    const hr_operand_recipe *recipe;
    hr_packed *out;
    hr_sm90_pack_operand *args;
    const float *scale;
    const int32_t *positions, *cu_seqlens;
    int32_t heads;
} operand_source;

static hr_status add_array(hr_device_packer *packer, const void *source, size_t count, size_t size,
                           void *out)
{
    void *memory;
    HR_TRY(hr_device_alloc(HR_DEVICE_CUDA, count, size, &memory));
    packer->array[packer->arrays++] = memory;
    memcpy(out, &memory, sizeof memory);
    if (!source) return HR_OK;
    return hr_device_copy(HR_DEVICE_CUDA, memory, HR_DEVICE_CPU, source, count * size, NULL);
}

static bool by_block(const hr_operand_recipe *recipe)
{
    return recipe->granularity == HR_GRANULARITY_BLOCK;
}

static hr_status check_recipe(const char *name, const hr_operand_recipe *recipe)
{
    const hr_granularity granularity = recipe->granularity;
    const bool shared = granularity == HR_GRANULARITY_TENSOR ||
                        granularity == HR_GRANULARITY_HEAD || granularity == HR_GRANULARITY_BLOCK;
    const bool bf16 = recipe->dtype == HR_DTYPE_BF16;
    const bool int8 =
        recipe->dtype == HR_DTYPE_I8 && (shared || granularity == HR_GRANULARITY_TOKEN);
    const bool fp8 =
        recipe->dtype == HR_DTYPE_E4M3 && (shared || granularity == HR_GRANULARITY_CHANNEL);
    if (!bf16 && !int8 && !fp8)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%s in %s with %s scales per %s is not packed on cuda, which takes bf16, i8 "
                       "with scales per tensor, head, token or block and e4m3 with scales per "
                       "tensor, head, channel or block; hr_pack_layer and hr_packed_layer_copy do "
                       "the rest",
                       name, hr_dtype_name(recipe->dtype), recipe->dynamic ? "dynamic" : "static",
                       hr_granularity_name(granularity));
    if (by_block(recipe) && recipe->block % HR_SM90_PACK_TILE != 0)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%s has a scale for every %d tokens; packing on cuda takes blocks of a "
                       "multiple of %d, hr_pack_layer and hr_packed_layer_copy any",
                       name, recipe->block, HR_SM90_PACK_TILE);
    return HR_OK;
}

static hr_status check_options(const hr_device_pack_options *options)
{
    const hr_attention_problem *problem = options->problem;
    const hr_recipe *recipe = options->recipe;
    const hr_layer_scales none = {.q = NULL}, *scales = options->scales ? options->scales : &none;
    const int32_t head_dim = problem->head_dim;
    HR_TRY(hr_attention_problem_check(problem));
    if (head_dim % HR_SM90_PACK_PART != 0 || head_dim > HR_HEAD_DIM_MAX)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "head_dim is %d; packing on cuda takes multiples of %d up to %d", head_dim,
                       HR_SM90_PACK_PART, HR_HEAD_DIM_MAX);
    HR_TRY(check_recipe("q", &recipe->q));
    HR_TRY(check_recipe("k", &recipe->k));
    HR_TRY(check_recipe("v", &recipe->v));
    HR_TRY(hr_pack_check_static_scales("q", &recipe->q, problem->num_heads, head_dim, scales->q));
    HR_TRY(
        hr_pack_check_static_scales("k", &recipe->k, problem->num_kv_heads, head_dim, scales->k));
    HR_TRY(
        hr_pack_check_static_scales("v", &recipe->v, problem->num_kv_heads, head_dim, scales->v));
    if (recipe->k.transform & HR_TRANSFORM_MEAN && !scales->k_mean)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "k is smoothed by its mean, which packing on cuda does not compute; give "
                       "scales.k_mean");
    HR_TRY(hr_pack_check_mean("k_mean", scales->k_mean, problem->num_kv_heads, head_dim));
    const hr_rope *rope = &problem->rope;
    if (rope->rotary_dim == 0) return HR_OK;
    if (!rope->interleaved && rope->rotary_dim % 16 != 0)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "rotary_dim is %d; packing on cuda takes multiples of 16, or any even one "
                       "of interleaved pairs",
                       rope->rotary_dim);
    HR_TRY(hr_rope_check_positions(options->q_positions, problem->cu_seqlens_q[problem->batch]));
    return hr_rope_check_positions(options->k_positions, problem->cu_seqlens_kv[problem->batch]);
}

static hr_sm90_pack_format format_of(const hr_operand_recipe *recipe)
{
    if (recipe->dtype == HR_DTYPE_BF16) return HR_SM90_PACK_BF16;
    if (recipe->dtype == HR_DTYPE_E4M3) return HR_SM90_PACK_E4M3;
    return recipe->granularity == HR_GRANULARITY_TOKEN ? HR_SM90_PACK_I8_BY_TOKEN : HR_SM90_PACK_I8;
}

/* hr_packed_allocate on the GPU. */
static hr_status allocate_packed(hr_packed *out, const float *scale, bool mean, bool lse_bias)
{
    const size_t heads = (size_t)out->num_heads, scales = (size_t)out->scale_count;
    void *memory = NULL;
    HR_TRY(hr_device_alloc(HR_DEVICE_CUDA, heads, out->head_bytes, &out->codes));
    if (out->recipe.granularity != HR_GRANULARITY_NONE) {
        HR_TRY(hr_device_alloc(HR_DEVICE_CUDA, scales, sizeof(float), &memory));
        out->scale = memory;
    }
    if (scale)
        HR_TRY(hr_device_copy(HR_DEVICE_CUDA, out->scale, HR_DEVICE_CPU, scale,
                              scales * sizeof(float), NULL));
    if (mean) {
        HR_TRY(
            hr_device_alloc(HR_DEVICE_CUDA, heads * (size_t)out->head_dim, sizeof(float), &memory));
        out->mean = memory;
    }
    if (!lse_bias) return HR_OK;
    HR_TRY(
        hr_device_alloc(HR_DEVICE_CUDA, heads * (size_t)out->total_tokens, sizeof(float), &memory));
    out->lse_bias = memory;
    return HR_OK;
}

static int32_t tiles_of(int64_t tokens)
{
    return (int32_t)((tokens + HR_SM90_PACK_TILE - 1) / HR_SM90_PACK_TILE);
}

/* Tiles that start with the sequences, and the block that each is in. */
static hr_status set_sequences(hr_device_packer *packer, int32_t batch,
                               const operand_source *source)
{
    hr_sm90_pack_operand *args = source->args;
    const int32_t *cu_seqlens = source->cu_seqlens, block = source->recipe->block;
    int64_t tiles = 0, first_block = 0;
    for (int32_t b = 0; b < batch; b++)
        tiles += tiles_of(cu_seqlens[b + 1] - cu_seqlens[b]);
    int32_t *staged = hr_alloc((size_t)batch + 1 + (size_t)tiles, sizeof *staged);
    if (!staged) return HR_ERROR_OUT_OF_MEMORY;
    int32_t *offset = staged, *tile_block = staged + batch + 1;
    offset[0] = 0;
    for (int32_t b = 0; b < batch; b++) {
        const int64_t tokens = (int64_t)cu_seqlens[b + 1] - cu_seqlens[b], first = offset[b];
        offset[b + 1] = offset[b] + tiles_of(tokens);
        if (!by_block(source->recipe)) continue;
        for (int64_t t = first; t < offset[b + 1]; t++)
            tile_block[t] = (int32_t)(first_block + (t - first) * HR_SM90_PACK_TILE / block);
        first_block += (tokens + block - 1) / block;
    }
    args->tiles = (int32_t)tiles;
    hr_status status =
        add_array(packer, offset, (size_t)batch + 1, sizeof *offset, &args->tile_offset);
    if (status == HR_OK && by_block(source->recipe))
        status =
            add_array(packer, tile_block, (size_t)tiles, sizeof *tile_block, &args->tile_block);
    free(staged);
    if (status != HR_OK) return status;
    return add_array(packer, cu_seqlens, (size_t)batch + 1, sizeof *cu_seqlens, &args->cu_seqlens);
}

static hr_status set_operand(hr_device_packer *packer, const hr_device_pack_options *options,
                             hr_operand operand, const operand_source *source)
{
    const hr_attention_problem *problem = options->problem;
    const bool is_v = operand == HR_OPERAND_V, smoothed = packer->args.k_mean != NULL;
    hr_packed *out = source->out;
    *out = (hr_packed){
        .operand = operand,
        .recipe = *source->recipe,
        .layout = is_v ? HR_LAYOUT_SM90_V : HR_LAYOUT_ROWS,
        .batch = problem->batch,
        .num_heads = source->heads,
        .head_dim = problem->head_dim,
        .total_tokens = source->cu_seqlens[problem->batch],
        .device = HR_DEVICE_CUDA,
    };
    if (!is_v) out->rope = problem->rope;
    HR_TRY(hr_packed_measure(out, source->cu_seqlens));
    HR_TRY(allocate_packed(out, source->scale, operand == HR_OPERAND_K && smoothed,
                           operand == HR_OPERAND_Q && smoothed));
    const hr_granularity granularity = source->recipe->granularity;
    const bool by_token = granularity == HR_GRANULARITY_TOKEN;
    hr_sm90_pack_operand *args = source->args;
    *args = (hr_sm90_pack_operand){
        .tokens = out->total_tokens,
        .heads = source->heads,
        .tiles = tiles_of(out->total_tokens),
        .format = format_of(source->recipe),
        .transposed = is_v,
        .codes = out->codes,
        .head_bytes = (int64_t)out->head_bytes,
        .scale = out->scale,
        .scale_head_stride = granularity == HR_GRANULARITY_HEAD      ? 1
                             : granularity == HR_GRANULARITY_CHANNEL ? out->head_dim
                             : by_block(source->recipe) ? out->scale_count / source->heads
                                                        : 0,
        .scale_channel_stride = granularity == HR_GRANULARITY_CHANNEL,
        .dynamic = granularity != HR_GRANULARITY_NONE && !by_token && source->recipe->dynamic,
        .mean = operand == HR_OPERAND_K ? packer->args.k_mean : NULL,
        .rotate = (source->recipe->transform & HR_TRANSFORM_HADAMARD) != 0,
    };
    if (is_v || by_block(source->recipe)) HR_TRY(set_sequences(packer, problem->batch, source));
    if (source->positions)
        HR_TRY(add_array(packer, source->positions, (size_t)out->total_tokens, sizeof(int32_t),
                         &args->positions));
    if (!by_token && !args->dynamic) return HR_OK;
    const size_t largest = args->dynamic ? (size_t)out->scale_count : (size_t)source->heads;
    HR_TRY(add_array(packer, NULL, largest, sizeof(uint32_t), &args->largest));
    return add_array(packer, NULL, (size_t)source->heads, sizeof(uint32_t), &args->finished);
}

/* Cosines and sines of every position up to the largest. */
static hr_status set_turns(hr_device_packer *packer, const hr_device_pack_options *options)
{
    const hr_attention_problem *problem = options->problem;
    const hr_rope *rope = &problem->rope;
    int32_t largest = 0;
    for (int32_t i = 0; i < problem->cu_seqlens_q[problem->batch]; i++)
        if (options->q_positions[i] > largest) largest = options->q_positions[i];
    for (int32_t i = 0; i < problem->cu_seqlens_kv[problem->batch]; i++)
        if (options->k_positions[i] > largest) largest = options->k_positions[i];
    const size_t count = ((size_t)largest + 1) * (size_t)rope->rotary_dim;
    float *turns = hr_alloc(count, sizeof *turns);
    if (!turns) return HR_ERROR_OUT_OF_MEMORY;
    double rates[HR_ROPE_PAIRS];
    hr_rope_rates(rope, rates);
    for (int32_t p = 0; p <= largest; p++)
        hr_rope_turns(rope, rates, p, turns + (size_t)p * (size_t)rope->rotary_dim);
    hr_status status = add_array(packer, turns, count, sizeof *turns, &packer->args.turns);
    free(turns);
    packer->args.rotary_dim = rope->rotary_dim;
    packer->args.interleaved = rope->interleaved;
    return status;
}

static hr_status set_rotation(hr_device_packer *packer, const hr_device_pack_options *options)
{
    const int32_t head_dim = options->problem->head_dim;
    const uint64_t given = options->scales ? options->scales->hadamard_seed : 0;
    const uint64_t seed = given ? given : HR_HADAMARD_DEFAULT_SEED;
    float signs[HR_HEAD_DIM_MAX];
    hr_hadamard_signs(seed, head_dim, signs);
    packer->out.q.hadamard_seed = packer->out.k.hadamard_seed = seed;
    packer->args.hadamard_block = hr_hadamard_block(head_dim);
    return add_array(packer, signs, (size_t)head_dim, sizeof *signs, &packer->args.signs);
}

static hr_status build(hr_device_packer *packer, const hr_device_pack_options *options)
{
    const hr_attention_problem *problem = options->problem;
    const hr_recipe *recipe = options->recipe;
    const hr_layer_scales none = {.q = NULL}, *scales = options->scales ? options->scales : &none;
    const bool rope = problem->rope.rotary_dim > 0;
    hr_sm90_pack_args *args = &packer->args;
    packer->stream = options->stream;
    *args = (hr_sm90_pack_args){
        .head_dim = problem->head_dim, .batch = problem->batch, .stream = options->stream};
    if (recipe->k.transform & HR_TRANSFORM_MEAN)
        HR_TRY(add_array(packer, scales->k_mean,
                         (size_t)problem->num_kv_heads * (size_t)problem->head_dim, sizeof(float),
                         &args->k_mean));
    const operand_source sources[OPERANDS] = {
        {&recipe->q, &packer->out.q, &args->q, scales->q, rope ? options->q_positions : NULL,
         problem->cu_seqlens_q, problem->num_heads},
        {&recipe->k, &packer->out.k, &args->k, scales->k, rope ? options->k_positions : NULL,
         problem->cu_seqlens_kv, problem->num_kv_heads},
        {&recipe->v, &packer->out.v, &args->v, scales->v, NULL, problem->cu_seqlens_kv,
         problem->num_kv_heads}};
    for (int i = 0; i < OPERANDS; i++)
        HR_TRY(set_operand(packer, options, (hr_operand)i, &sources[i]));
    args->lse_bias = packer->out.q.lse_bias;
    if (packer->out.k.mean)
        HR_TRY(hr_device_copy(
            HR_DEVICE_CUDA, packer->out.k.mean, HR_DEVICE_CPU, scales->k_mean,
            (size_t)problem->num_kv_heads * (size_t)problem->head_dim * sizeof(float), NULL));
    if (rope) HR_TRY(set_turns(packer, options));
    if (recipe->q.transform & HR_TRANSFORM_HADAMARD) HR_TRY(set_rotation(packer, options));
    return add_array(packer, NULL, 1, sizeof(uint32_t), &args->nonfinite);
}

hr_status hr_device_packer_create(const hr_device_pack_options *options, hr_device_packer **out)
{
    if (!options || !options->problem || !options->recipe || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "options, its problem and recipe, and out must not be NULL");
    *out = NULL;
    HR_TRY(hr_device_check(HR_DEVICE_CUDA));
    HR_TRY(check_options(options));
    hr_device_packer *packer = hr_alloc(1, sizeof *packer);
    if (!packer) return HR_ERROR_OUT_OF_MEMORY;
    hr_status status = build(packer, options);
    if (status != HR_OK) {
        hr_device_packer_free(packer);
        return status;
    }
    *out = packer;
    return HR_OK;
}

void hr_device_packer_free(hr_device_packer *packer)
{
    if (!packer) return;
    hr_packed_layer_free(&packer->out);
    for (int i = 0; i < packer->arrays; i++)
        hr_device_free(HR_DEVICE_CUDA, packer->array[i]);
    free(packer);
}

const hr_packed_layer *hr_device_packer_layer(const hr_device_packer *packer)
{
    return packer ? &packer->out : NULL;
}

static hr_status set_input(const char *name, const hr_tensor *x, const hr_packed *out,
                           hr_sm90_pack_operand *args)
{
    const int64_t expected[3] = {out->total_tokens, out->num_heads, out->head_dim};
    if (!x) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s must not be NULL", name);
    HR_TRY(hr_device_expect(name, x->device, HR_DEVICE_CUDA));
    if (x->dtype != HR_DTYPE_BF16 || x->ndim != 3)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "%s is %s with %d dimensions; packing on cuda takes bf16 [tokens, heads, "
                       "head_dim]",
                       name, hr_dtype_name(x->dtype), x->ndim);
    for (int i = 0; i < 3; i++)
        if (x->shape[i] != expected[i])
            return hr_fail(HR_ERROR_MISMATCH, "%s has shape[%d] %lld; the packer has %lld", name, i,
                           (long long)x->shape[i], (long long)expected[i]);
    if ((!x->data && expected[0] > 0) || (uintptr_t)x->data % 16 != 0 || x->stride[2] != 1 ||
        x->stride[0] % 8 != 0 || x->stride[1] % 8 != 0)
        return hr_fail(
            HR_ERROR_MISMATCH,
            "%s is at %p with strides %lld, %lld, %lld; packing on cuda needs a multiple "
            "of 16 bytes, multiples of 8 elements and 1",
            name, x->data, (long long)x->stride[0], (long long)x->stride[1],
            (long long)x->stride[2]);
    args->x = x->data;
    args->token_stride = x->stride[0];
    args->head_stride = x->stride[1];
    return HR_OK;
}

hr_status hr_device_packer_run(hr_device_packer *packer, const hr_tensor *q, const hr_tensor *k,
                               const hr_tensor *v)
{
    if (!packer) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "packer must not be NULL");
    hr_sm90_pack_args args = packer->args;
    HR_TRY(set_input("q", q, &packer->out.q, &args.q));
    HR_TRY(set_input("k", k, &packer->out.k, &args.k));
    HR_TRY(set_input("v", v, &packer->out.v, &args.v));
    return hr_cuda_status(hr_cuda()->pack(&args), "launch the packing kernel");
}

hr_status hr_device_packer_check(hr_device_packer *packer)
{
    if (!packer) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "packer must not be NULL");
    uint32_t nonfinite = 0;
    HR_TRY(hr_device_copy(HR_DEVICE_CPU, &nonfinite, HR_DEVICE_CUDA, packer->args.nonfinite,
                          sizeof nonfinite, packer->stream));
    if (!nonfinite) return HR_OK;
    const uint32_t none = 0;
    HR_TRY(hr_device_copy(HR_DEVICE_CUDA, packer->args.nonfinite, HR_DEVICE_CPU, &none, sizeof none,
                          packer->stream));
    return hr_fail(HR_ERROR_NUMERIC,
                   "q, k or v had a NaN or infinity; packing takes finite values");
}
