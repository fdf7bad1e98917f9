/*
 * FP8 matrix products through cuBLASLt; see device_gemm.h.
 */
#include "device_gemm.h"

#include "cuda_api.h"
#include "status_internal.h"

/* What NVIDIA recommends for Hopper ("cuBLAS Workspace" in the User Guide). */
static const size_t WORKSPACE_BYTES = (size_t)32 << 20;

static hr_status check(const hr_gemm *gemm, int status, const char *function)
{
    if (status == 0) return HR_OK;
    return hr_fail(status == HR_CUBLASLT_OUT_OF_MEMORY ? HR_ERROR_OUT_OF_MEMORY : HR_ERROR_DEVICE,
                   "%s failed: %s (cuBLAS status %d)", function, gemm->api->status_text(status),
                   status);
}

static hr_status set(const hr_gemm *gemm, int attribute, const void *value, size_t bytes)
{
    return check(gemm, gemm->api->desc_set(gemm->desc, attribute, value, bytes),
                 "cublasLtMatmulDescSetAttribute");
}

static hr_status set_scales(const hr_gemm *gemm, const float *a, const float *b)
{
    HR_TRY(set(gemm, HR_CUBLASLT_DESC_A_SCALE, &a, sizeof a));
    return set(gemm, HR_CUBLASLT_DESC_B_SCALE, &b, sizeof b);
}

hr_status hr_gemm_open(hr_gemm *gemm)
{
    const char *reason = "";
    *gemm = (hr_gemm){0};
    HR_TRY(hr_device_check(HR_DEVICE_CUDA));
    const hr_cublaslt *api = hr_cuda()->cublaslt(&reason);
    if (!api) return hr_fail(HR_ERROR_NOT_FOUND, "%s", reason);
    gemm->api = api;
    HR_TRY(check(gemm, api->create(&gemm->handle), "cublasLtCreate"));
    HR_TRY(check(gemm, api->desc_create(&gemm->desc, HR_CUBLASLT_COMPUTE_32F, HR_CUBLASLT_F32),
                 "cublasLtMatmulDescCreate"));
    const int32_t transposed = HR_CUBLASLT_OP_T, plain = HR_CUBLASLT_OP_N;
    HR_TRY(set(gemm, HR_CUBLASLT_DESC_TRANSA, &transposed, sizeof transposed));
    HR_TRY(set(gemm, HR_CUBLASLT_DESC_TRANSB, &plain, sizeof plain));
    HR_TRY(hr_device_alloc(HR_DEVICE_CUDA, WORKSPACE_BYTES, 1, &gemm->workspace));
    /* Algorithms are chosen for products with scales, wherever these then are. */
    return set_scales(gemm, gemm->workspace, gemm->workspace);
}

void hr_gemm_close(hr_gemm *gemm)
{
    if (gemm->desc) (void)gemm->api->desc_destroy(gemm->desc);
    if (gemm->handle) (void)gemm->api->destroy(gemm->handle);
    hr_device_free(HR_DEVICE_CUDA, gemm->workspace);
    *gemm = (hr_gemm){0};
}

static hr_status choose(const hr_gemm *gemm, void *preference, hr_gemm_shape *shape, int *found)
{
    const hr_cublaslt *api = gemm->api;
    const uint32_t alignment = HR_GEMM_ALIGN;
    int status = api->preference_set(preference, HR_CUBLASLT_PREF_WORKSPACE, &WORKSPACE_BYTES,
                                     sizeof WORKSPACE_BYTES);
    for (int i = 0; i < 4 && status == 0; i++)
        status = api->preference_set(preference, HR_CUBLASLT_PREF_ALIGNMENT_A + i, &alignment,
                                     sizeof alignment);
    HR_TRY(check(gemm, status, "cublasLtMatmulPreferenceSetAttribute"));
    status = api->heuristic(gemm->handle, gemm->desc, shape->a, shape->b, shape->d, shape->d,
                            preference, 1, &shape->choice, found);
    if (status == HR_CUBLASLT_UNSUPPORTED || shape->choice.status != 0) *found = 0;
    return status == HR_CUBLASLT_UNSUPPORTED
               ? HR_OK
               : check(gemm, status, "cublasLtMatmulAlgoGetHeuristic");
}

hr_status hr_gemm_shape_create(const hr_gemm *gemm, int64_t m, int64_t n, int64_t k,
                               int64_t d_pitch, hr_gemm_shape *out)
{
    const hr_cublaslt *api = gemm->api;
    *out = (hr_gemm_shape){0};
    int status = api->layout_create(&out->a, HR_CUBLASLT_E4M3, (uint64_t)k, (uint64_t)m, k);
    if (status == 0)
        status = api->layout_create(&out->b, HR_CUBLASLT_E4M3, (uint64_t)k, (uint64_t)n, k);
    if (status == 0)
        status = api->layout_create(&out->d, HR_CUBLASLT_F32, (uint64_t)m, (uint64_t)n, d_pitch);
    HR_TRY(check(gemm, status, "cublasLtMatrixLayoutCreate"));

    void *preference = NULL;
    HR_TRY(check(gemm, api->preference_create(&preference), "cublasLtMatmulPreferenceCreate"));
    int found = 0;
    const hr_status chosen = choose(gemm, preference, out, &found);
    (void)api->preference_destroy(preference);
    if (chosen == HR_OK && found == 0)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "cuBLASLt has no E4M3 product of [%lld, %lld] and [%lld, %lld] transposed",
                       (long long)n, (long long)k, (long long)m, (long long)k);
    return chosen;
}

void hr_gemm_shape_free(const hr_gemm *gemm, hr_gemm_shape *shape)
{
    if (shape->a) (void)gemm->api->layout_destroy(shape->a);
    if (shape->b) (void)gemm->api->layout_destroy(shape->b);
    if (shape->d) (void)gemm->api->layout_destroy(shape->d);
    *shape = (hr_gemm_shape){0};
}

hr_status hr_gemm_run(const hr_gemm *gemm, const hr_gemm_shape *shape, float alpha,
                      hr_gemm_operand a, hr_gemm_operand b, float *d, void *stream)
{
    const float beta = 0;
    HR_TRY(set_scales(gemm, a.scale, b.scale));
    return check(gemm,
                 gemm->api->matmul(gemm->handle, gemm->desc, &alpha, a.codes, shape->a, b.codes,
                                   shape->b, &beta, d, shape->d, d, shape->d,
                                   &shape->choice.algorithm, gemm->workspace, WORKSPACE_BYTES,
                                   stream),
                 "cublasLtMatmul");
}
