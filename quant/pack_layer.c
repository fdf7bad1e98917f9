/*
 * Q, K and V of one layer, packed so that they belong together: K first, because its mean feeds
 * Q's lse_bias; one sign seed for Q and K.
 */
#include "headroom/pack.h"
#include "pack_check.h"
#include "status_internal.h"
#include "tensor_rows.h"

static hr_status check_shapes(const hr_tensor *q, const hr_tensor *k, const hr_tensor *v)
{
    HR_TRY(hr_tensor_rows_check(q, "q"));
    HR_TRY(hr_tensor_rows_check(k, "k"));
    HR_TRY(hr_tensor_rows_check(v, "v"));
    for (int i = 0; i < 3; i++)
        if (k->shape[i] != v->shape[i])
            return hr_fail(HR_ERROR_MISMATCH,
                           "k is [%lld, %lld, %lld], but v is [%lld, %lld, %lld]",
                           (long long)k->shape[0], (long long)k->shape[1], (long long)k->shape[2],
                           (long long)v->shape[0], (long long)v->shape[1], (long long)v->shape[2]);
    if (q->shape[2] != k->shape[2])
        return hr_fail(HR_ERROR_MISMATCH, "q has head_dim %lld, but k has %lld",
                       (long long)q->shape[2], (long long)k->shape[2]);
    if (k->shape[1] < 1 || q->shape[1] % k->shape[1] != 0)
        return hr_fail(HR_ERROR_MISMATCH, "the %lld heads of k do not divide the %lld heads of q",
                       (long long)k->shape[1], (long long)q->shape[1]);
    return HR_OK;
}

static hr_status pack_operands(const hr_recipe *recipe, const hr_layer_layouts *layouts,
                               const hr_tensor *const x[3], int32_t batch,
                               const int32_t *cu_seqlens_q, const int32_t *cu_seqlens_kv,
                               const hr_layer_scales *scales, hr_packed_layer *out)
{
    hr_pack_options k_options = {.layout = layouts->k,
                                 .batch = batch,
                                 .cu_seqlens = cu_seqlens_kv,
                                 .static_scale = scales->k,
                                 .mean = scales->k_mean,
                                 .hadamard_seed = scales->hadamard_seed};
    HR_TRY(hr_pack(HR_OPERAND_K, &recipe->k, x[1], &k_options, &out->k));
    hr_pack_options q_options = {.layout = layouts->q,
                                 .batch = batch,
                                 .cu_seqlens = cu_seqlens_q,
                                 .static_scale = scales->q,
                                 .k_mean = out->k.mean,
                                 .num_kv_heads = out->k.num_heads,
                                 .hadamard_seed = scales->hadamard_seed};
    HR_TRY(hr_pack(HR_OPERAND_Q, &recipe->q, x[0], &q_options, &out->q));
    hr_pack_options v_options = {.layout = layouts->v,
                                 .batch = batch,
                                 .cu_seqlens = cu_seqlens_kv,
                                 .static_scale = scales->v};
    return hr_pack(HR_OPERAND_V, &recipe->v, x[2], &v_options, &out->v);
}

hr_status hr_pack_layer(const hr_recipe *recipe, const hr_layer_layouts *layouts,
                        const hr_tensor *q, const hr_tensor *k, const hr_tensor *v, int32_t batch,
                        const int32_t *cu_seqlens_q, const int32_t *cu_seqlens_kv,
                        const hr_layer_scales *scales, hr_packed_layer *out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out is NULL");
    *out = (hr_packed_layer){0};
    if (!recipe || !layouts)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is NULL", recipe ? "layouts" : "recipe");
    HR_TRY(check_shapes(q, k, v));
    if ((recipe->q.transform ^ recipe->k.transform) & HR_TRANSFORM_HADAMARD)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "only one of q and k is rotated; rotation leaves q.k unchanged only when "
                       "both are");
    hr_layer_scales none = {0};
    const hr_tensor *const x[3] = {q, k, v};
    hr_status status = pack_operands(recipe, layouts, x, batch, cu_seqlens_q, cu_seqlens_kv,
                                     scales ? scales : &none, out);
    if (status != HR_OK) hr_packed_layer_free(out);
    return status;
}

void hr_packed_layer_free(hr_packed_layer *layer)
{
    if (!layer) return;
    hr_packed_free(&layer->q);
    hr_packed_free(&layer->k);
    hr_packed_free(&layer->v);
}
