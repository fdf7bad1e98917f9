/*
 * FP8 attention that is not fused, for comparison. Of each sequence and query head, with L keys
 * padded to Lp, a multiple of 16:
 *
 *     logits  [Lq, Lp] F32   = softmax_scale log2(e) * Q [Lq, D] K [Lp, D]^T      cuBLASLt
 *     weights [Lq, Lp] E4M3  = 448 * 2^(logits - row maximum)                     softmax_sm90.h
 *     O       [Lq, D]  F32   = 1/448 * weights [Lq, Lp] VT [D, Lp]^T              cuBLASLt
 *
 * and after the last of them O's rows are divided by their sums. Q, K and V are E4M3 with one
 * dynamic scale a head, which cuBLASLt applies (device_gemm.h). V is stored transposed, because
 * both operands of an FP8 product must have the summed dimension contiguous. Logits and weights of
 * one head exist at a time: 5 Lq Lp bytes, which at 32k keys are 5.4 GB; every logit is written
 * and read once in FP32, which at length costs more than the products.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda/softmax_sm90.h"
#include "cuda_api.h"
#include "device_baseline.h"
#include "device_gemm.h"
#include "memory.h"
#include "plan.h"
#include "status_internal.h"

static const float LOG2_E = 1.44269504f, LARGEST_E4M3 = 448;

/* One sequence: keys padded, and where they begin in a head. */
typedef struct unfused_sequence {
    int64_t padded, slot;
    hr_gemm_shape logits, output;
} unfused_sequence;

struct hr_unfused {
    const hr_attention_problem *problem;
    hr_gemm gemm;
    unfused_sequence *sequences; /* [batch] */
    int64_t slots;               /* of a KV head */
    size_t q_head_bytes;
    /* On the GPU. */
    void *q;       /* [heads][q_head_bytes], tokens of D codes */
    void *k, *v;   /* [kv_heads][slots * D]; of a sequence [padded][D] and [D][padded] */
    float *scale;  /* Q's [heads], K's and V's [kv_heads], then 1, which is P's */
    float *logits; /* of the largest sequence */
    uint8_t *weights;
    float *inverse; /* [total_q, heads]: 1 / row sum */
};

static int64_t pad(int64_t keys)
{
    return (keys + HR_GEMM_ALIGN - 1) / HR_GEMM_ALIGN * HR_GEMM_ALIGN;
}

static hr_status copy_in(const void *source, size_t bytes, void **out)
{
    HR_TRY(hr_device_alloc(HR_DEVICE_CUDA, bytes, 1, out));
    return hr_device_copy(HR_DEVICE_CUDA, *out, HR_DEVICE_CPU, source, bytes, NULL);
}

/* K's or V's codes of all heads with padded sequences, V's of a sequence transposed. */
static void lay_out(const hr_unfused *unfused, const hr_packed *packed, bool transposed,
                    uint8_t *out)
{
    const int64_t head_dim = packed->head_dim;
    for (int32_t head = 0; head < packed->num_heads; head++) {
        const uint8_t *codes = (const uint8_t *)packed->codes + (size_t)head * packed->head_bytes;
        for (int32_t b = 0; b < packed->batch; b++) {
            const unfused_sequence *sequence = &unfused->sequences[b];
            uint8_t *to = out + (head * unfused->slots + sequence->slot) * head_dim;
            const uint8_t *from = codes + packed->slot_offset[b] * head_dim;
            const int64_t keys = packed->cu_seqlens[b + 1] - packed->cu_seqlens[b];
            if (!transposed) {
                memcpy(to, from, (size_t)(keys * head_dim));
                continue;
            }
            for (int64_t key = 0; key < keys; key++)
                for (int64_t c = 0; c < head_dim; c++)
                    to[c * sequence->padded + key] = from[key * head_dim + c];
        }
    }
}

static hr_status copy_keys(const hr_unfused *unfused, const hr_packed *packed, bool transposed,
                           void **out)
{
    const size_t bytes =
        (size_t)packed->num_heads * (size_t)unfused->slots * (size_t)packed->head_dim;
    uint8_t *codes = hr_alloc(bytes, 1); /* zeroed: padding is code 0 */
    if (!codes) return HR_ERROR_OUT_OF_MEMORY;
    lay_out(unfused, packed, transposed, codes);
    const hr_status status = copy_in(codes, bytes, out);
    free(codes);
    return status;
}

static hr_status copy_scales(hr_unfused *unfused, const hr_packed_layer *packed)
{
    const size_t heads = (size_t)packed->q.num_heads, kv_heads = (size_t)packed->k.num_heads;
    const size_t count = heads + 2 * kv_heads + 1;
    float *scale = hr_alloc(count, sizeof *scale);
    if (!scale) return HR_ERROR_OUT_OF_MEMORY;
    memcpy(scale, packed->q.scale, heads * sizeof *scale);
    memcpy(scale + heads, packed->k.scale, kv_heads * sizeof *scale);
    memcpy(scale + heads + kv_heads, packed->v.scale, kv_heads * sizeof *scale);
    scale[count - 1] = 1;
    void *memory = NULL;
    const hr_status status = copy_in(scale, count * sizeof *scale, &memory);
    unfused->scale = memory;
    free(scale);
    return status;
}

static hr_status pack(hr_unfused *unfused, const float *q, const float *k, const float *v,
                      hr_packed_layer *out)
{
    const hr_attention_problem *problem = unfused->problem;
    const int64_t batch = problem->batch, head_dim = problem->head_dim;
    const int64_t q_shape[3] = {problem->cu_seqlens_q[batch], problem->num_heads, head_dim};
    const int64_t kv_shape[3] = {problem->cu_seqlens_kv[batch], problem->num_kv_heads, head_dim};
    /* Views are read only. */
    const hr_tensor tensors[3] = {hr_tensor_view(HR_DTYPE_F32, 3, q_shape, (void *)(uintptr_t)q),
                                  hr_tensor_view(HR_DTYPE_F32, 3, kv_shape, (void *)(uintptr_t)k),
                                  hr_tensor_view(HR_DTYPE_F32, 3, kv_shape, (void *)(uintptr_t)v)};
    const hr_layer_layouts rows = {HR_LAYOUT_ROWS, HR_LAYOUT_ROWS, HR_LAYOUT_ROWS};
    hr_recipe recipe;
    HR_TRY(hr_recipe_parse("fp8:qkv.scale=dynamic", &recipe));
    return hr_pack_layer(&recipe, &rows, &tensors[0], &tensors[1], &tensors[2], problem->batch,
                         problem->cu_seqlens_q, problem->cu_seqlens_kv, NULL, out);
}

static hr_status copy_operands(hr_unfused *unfused, const float *q, const float *k, const float *v)
{
    hr_packed_layer packed = {0};
    HR_TRY(pack(unfused, q, k, v, &packed));
    unfused->q_head_bytes = packed.q.head_bytes;
    hr_status status =
        copy_in(packed.q.codes, (size_t)packed.q.num_heads * packed.q.head_bytes, &unfused->q);
    if (status == HR_OK) status = copy_keys(unfused, &packed.k, false, &unfused->k);
    if (status == HR_OK) status = copy_keys(unfused, &packed.v, true, &unfused->v);
    if (status == HR_OK) status = copy_scales(unfused, &packed);
    hr_packed_layer_free(&packed);
    return status;
}

static int64_t queries_of(const hr_attention_problem *problem, int32_t sequence)
{
    return problem->cu_seqlens_q[sequence + 1] - problem->cu_seqlens_q[sequence];
}

/* Pads the sequences, chooses their products' algorithms and makes room for the largest. */
static hr_status set_sequences(hr_unfused *unfused)
{
    const hr_attention_problem *problem = unfused->problem;
    const int64_t head_dim = problem->head_dim, pitch = problem->num_heads * head_dim;
    int64_t largest = 0;
    for (int32_t b = 0; b < problem->batch; b++) {
        unfused_sequence *sequence = &unfused->sequences[b];
        const int64_t queries = queries_of(problem, b);
        sequence->padded = pad(problem->cu_seqlens_kv[b + 1] - problem->cu_seqlens_kv[b]);
        sequence->slot = unfused->slots;
        unfused->slots += sequence->padded;
        if (queries * sequence->padded > largest) largest = queries * sequence->padded;
        if (queries == 0 || sequence->padded == 0) continue;
        HR_TRY(hr_gemm_shape_create(&unfused->gemm, sequence->padded, queries, head_dim,
                                    sequence->padded, &sequence->logits));
        HR_TRY(hr_gemm_shape_create(&unfused->gemm, head_dim, queries, sequence->padded, pitch,
                                    &sequence->output));
    }
    void *memory = NULL;
    HR_TRY(hr_device_alloc(HR_DEVICE_CUDA, (size_t)largest, sizeof *unfused->logits, &memory));
    unfused->logits = memory;
    HR_TRY(hr_device_alloc(HR_DEVICE_CUDA, (size_t)largest, 1, &memory));
    unfused->weights = memory;
    const size_t rows = (size_t)problem->cu_seqlens_q[problem->batch] * (size_t)problem->num_heads;
    HR_TRY(hr_device_alloc(HR_DEVICE_CUDA, rows, sizeof *unfused->inverse, &memory));
    unfused->inverse = memory;
    return HR_OK;
}

static hr_status prepare(hr_unfused *unfused, const float *q, const float *k, const float *v)
{
    const hr_attention_problem *problem = unfused->problem;
    if (problem->head_dim % HR_GEMM_ALIGN)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "head_dim is %d; FP8 products of cuBLASLt take multiples of %d",
                       problem->head_dim, HR_GEMM_ALIGN);
    HR_TRY(hr_gemm_open(&unfused->gemm));
    unfused->sequences = hr_alloc((size_t)problem->batch, sizeof *unfused->sequences);
    if (!unfused->sequences) return HR_ERROR_OUT_OF_MEMORY;
    HR_TRY(set_sequences(unfused));
    return copy_operands(unfused, q, k, v);
}

hr_status hr_unfused_create(const hr_attention_problem *problem, const float *q, const float *k,
                            const float *v, hr_unfused **out)
{
    *out = NULL;
    hr_unfused *unfused = hr_alloc(1, sizeof *unfused);
    if (!unfused) return HR_ERROR_OUT_OF_MEMORY;
    unfused->problem = problem;
    const hr_status status = prepare(unfused, q, k, v);
    if (status != HR_OK)
        hr_unfused_free(unfused);
    else
        *out = unfused;
    return status;
}

void hr_unfused_free(hr_unfused *unfused)
{
    if (!unfused) return;
    for (int32_t b = 0; unfused->sequences && b < unfused->problem->batch; b++) {
        hr_gemm_shape_free(&unfused->gemm, &unfused->sequences[b].logits);
        hr_gemm_shape_free(&unfused->gemm, &unfused->sequences[b].output);
    }
    free(unfused->sequences);
    hr_gemm_close(&unfused->gemm);
    void *const memory[] = {unfused->q,      unfused->k,       unfused->v,      unfused->scale,
                            unfused->logits, unfused->weights, unfused->inverse};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++)
        hr_device_free(HR_DEVICE_CUDA, memory[i]);
    free(unfused);
}

static hr_status start_head(const hr_unfused *unfused, int32_t b, int32_t head, float *o,
                            float *lse)
{
    const hr_attention_problem *problem = unfused->problem;
    const unfused_sequence *sequence = &unfused->sequences[b];
    const hr_kernel_args mask = hr_sequence_args(problem, b);
    const int64_t heads = problem->num_heads, kv_heads = problem->num_kv_heads;
    const int64_t head_dim = problem->head_dim, first = problem->cu_seqlens_q[b];
    const int64_t kv_head = head / (heads / kv_heads), row = first * heads + head;
    const int64_t key = (kv_head * unfused->slots + sequence->slot) * head_dim;
    const float *scale = unfused->scale;
    const hr_gemm_operand q = {(const uint8_t *)unfused->q + (size_t)head * unfused->q_head_bytes +
                                   first * head_dim,
                               scale + head};
    const hr_gemm_operand k = {(const uint8_t *)unfused->k + key, scale + heads + kv_head};
    const hr_gemm_operand v = {(const uint8_t *)unfused->v + key,
                               scale + heads + kv_heads + kv_head};
    const hr_gemm_operand p = {unfused->weights, scale + heads + 2 * kv_heads};
    const hr_sm90_softmax_args softmax = {
        .logits = unfused->logits,
        .weights = unfused->weights,
        .inverse = unfused->inverse + row,
        .lse = lse + row,
        .pitch = sequence->padded,
        .row_stride = heads,
        .seqlen_q = mask.seqlen_q,
        .seqlen_kv = mask.seqlen_kv,
        .window_left = mask.window_left,
        .window_right = mask.window_right,
    };
    if (mask.seqlen_kv > 0)
        HR_TRY(hr_gemm_run(&unfused->gemm, &sequence->logits, problem->softmax_scale * LOG2_E, k, q,
                           unfused->logits, NULL));
    HR_TRY(hr_cuda_status(hr_cuda()->softmax(&softmax), "launch the softmax"));
    if (mask.seqlen_kv == 0) return HR_OK; /* O stays 0 */
    return hr_gemm_run(&unfused->gemm, &sequence->output, 1 / LARGEST_E4M3, v, p,
                       o + row * head_dim, NULL);
}

hr_status hr_unfused_start(const hr_unfused *unfused, float *o, float *lse)
{
    const hr_attention_problem *problem = unfused->problem;
    for (int32_t b = 0; b < problem->batch; b++)
        for (int32_t head = 0; head < problem->num_heads && queries_of(problem, b) > 0; head++)
            HR_TRY(start_head(unfused, b, head, o, lse));
    const hr_sm90_normalize_args normalize = {
        .o = o,
        .inverse = unfused->inverse,
        .rows = (int64_t)problem->cu_seqlens_q[problem->batch] * problem->num_heads,
        .head_dim = problem->head_dim,
    };
    return hr_cuda_status(hr_cuda()->normalize(&normalize), "launch the division by row sums");
}

int64_t hr_unfused_kv_bytes(const hr_unfused *unfused)
{
    const hr_attention_problem *problem = unfused->problem;
    const int64_t codes =
        (int64_t)problem->cu_seqlens_kv[problem->batch] * problem->num_kv_heads * problem->head_dim;
    return 2 * (codes + problem->num_kv_heads * (int64_t)sizeof(float));
}
