/*
 * The baselines of a GPU, with a pretended CUDA and a pretended cuBLASLt (fake_cuda.h,
 * fake_cublaslt.h): what they launch, what they refuse, and that every failure is reported and
 * leaks nothing. What they compute is checked in check_hopper_baseline.cpp.
 */
#include <criterion/criterion.h>
#include <stdio.h>

#include "device_baseline.h"
#include "fake_cuda.h"

#include "fake_cublaslt.h"
#include "headroom/headroom.h"

enum { HEADS = 4, KV_HEADS = 2, HEAD_DIM = 32, TOKENS_Q = 9, TOKENS_KV = 50 };

static const int32_t cu_seqlens_q[] = {0, 5, 5, 9, 9}, cu_seqlens_kv[] = {0, 17, 20, 20, 50};
static float q[TOKENS_Q * HEADS * HEAD_DIM], k[TOKENS_KV * KV_HEADS * HEAD_DIM], v[sizeof k / 4];
static hr_attention_problem problem;

static void pretend(void)
{
    fake_start();
    fake_cublaslt_start();
    unsetenv("HEADROOM_ISA");
    for (size_t i = 0; i < sizeof q / sizeof *q; i++)
        q[i] = (float)(i * 37 % 101) - 50;
    for (size_t i = 0; i < sizeof k / sizeof *k; i++)
        k[i] = v[i] = (float)(i * 53 % 89) - 44;
    hr_attention_problem_init(&problem, HEADS, KV_HEADS, HEAD_DIM);
    problem.batch = 4;
    problem.cu_seqlens_q = cu_seqlens_q;
    problem.cu_seqlens_kv = cu_seqlens_kv;
}

static void expect_error(hr_status status, hr_status expected, const char *part)
{
    cr_assert_eq(status, expected, "%s: %s", hr_status_string(status), hr_last_error());
    cr_assert(strstr(hr_last_error(), part), "no \"%s\" in: %s", part, hr_last_error());
}

static void expect_no_leak(void)
{
    cr_assert_eq(fake.live, 0);
    cr_assert_eq(fake_blas.live, 0);
    cr_assert_null(fake_blas.broken, "cuBLASLt was not given %s", fake_blas.broken);
}

static hr_status create(hr_baseline kind, hr_device_baseline **out)
{
    return hr_device_baseline_create(kind, &problem, q, k, v, out);
}

Test(device_baseline, names_are_known)
{
    cr_assert_str_eq(hr_baseline_name(HR_BASELINE_FP32), "fp32-reference");
    cr_assert_str_eq(hr_baseline_name(HR_BASELINE_CUBLASLT_FP8), "cublaslt-fp8");
    cr_assert_str_eq(hr_baseline_name(HR_BASELINE_COUNT), "unknown");
}

Test(device_baseline, an_unfused_run_is_two_products_and_a_softmax_a_head, .init = pretend)
{
    hr_device_baseline *baseline;
    cr_assert_eq(create(HR_BASELINE_CUBLASLT_FP8, &baseline), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_device_baseline_start(baseline), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_device_baseline_wait(baseline), HR_OK);
    /* Sequence 0 has queries and keys, 1 no query, 2 no key, 3 no query. */
    cr_assert_eq(fake.softmax_launches, 2 * HEADS);
    cr_assert_eq(fake_blas.products, 2 * HEADS);
    cr_assert_eq(fake.normalize_launches, 1);
    cr_assert_eq(hr_device_baseline_kv_bytes(baseline),
                 2 * (TOKENS_KV * KV_HEADS * HEAD_DIM + 4 * KV_HEADS));
    float o[sizeof q / sizeof *q], lse[TOKENS_Q * HEADS];
    cr_assert_eq(hr_device_baseline_fetch(baseline, o, lse), HR_OK);
    for (size_t i = 0; i < sizeof q / sizeof *q; i++)
        cr_assert_eq(o[i], 0, "nothing was computed");
    hr_device_baseline_free(baseline);
    hr_device_baseline_free(NULL);
    expect_no_leak();
}

Test(device_baseline, the_reference_needs_no_cublaslt, .init = pretend)
{
    hr_device_baseline *baseline;
    fake.cublaslt = NULL;
    cr_assert_eq(create(HR_BASELINE_FP32, &baseline), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_device_baseline_start(baseline), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_device_baseline_kv_bytes(baseline), 2 * 4 * TOKENS_KV * KV_HEADS * HEAD_DIM);
    fake.launch_error = 719;
    expect_error(hr_device_baseline_start(baseline), HR_ERROR_DEVICE, "launch the reference");
    hr_device_baseline_free(baseline);
    expect_no_leak();
}

Test(device_baseline, what_is_missing_is_named, .init = pretend)
{
    hr_device_baseline *baseline;
    fake.cublaslt = NULL;
    expect_error(create(HR_BASELINE_CUBLASLT_FP8, &baseline), HR_ERROR_NOT_FOUND,
                 "cuBLASLt was not found: pretended");
    cr_assert_null(baseline);
    fake.cublaslt = &fake_cublaslt;
    problem.softcap = 1;
    expect_error(create(HR_BASELINE_CUBLASLT_FP8, &baseline), HR_ERROR_UNSUPPORTED, "windows");
    problem.softcap = 0;
    problem.head_dim = 24;
    expect_error(create(HR_BASELINE_CUBLASLT_FP8, &baseline), HR_ERROR_UNSUPPORTED,
                 "head_dim is 24; FP8 products of cuBLASLt take multiples of 16");
    problem.head_dim = HEAD_DIM;
    fake_blas.finds_nothing = true;
    expect_error(create(HR_BASELINE_CUBLASLT_FP8, &baseline), HR_ERROR_UNSUPPORTED,
                 "no E4M3 product of [5, 32] and [32, 32] transposed");
    fake_blas.finds_nothing = false;
    fake_blas.fails = FAKE_HEURISTIC;
    fake_blas.error = HR_CUBLASLT_UNSUPPORTED;
    expect_error(create(HR_BASELINE_CUBLASLT_FP8, &baseline), HR_ERROR_UNSUPPORTED,
                 "no E4M3 product");
    fake.count = 0;
    expect_error(create(HR_BASELINE_CUBLASLT_FP8, &baseline), HR_ERROR_DEVICE, "no GPU");
    expect_error(create((hr_baseline)9, &baseline), HR_ERROR_INVALID_ARGUMENT, "9");
    expect_no_leak();
}

/* Each function fails in turn, at its first call, its second, ... */
Test(device_baseline, failures_of_cublaslt_are_reported_and_leak_nothing, .init = pretend)
{
    static const char *const names[FAKE_FUNCTIONS] = {
        "",
        "cublasLtCreate",
        "cublasLtMatmulDescCreate",
        "cublasLtMatmulDescSetAttribute",
        "cublasLtMatrixLayoutCreate",
        "cublasLtMatmulPreferenceCreate",
        "cublasLtMatmulPreferenceSetAttribute",
        "cublasLtMatmulAlgoGetHeuristic",
        "cublasLtMatmul",
    };
    for (int function = FAKE_CREATE; function < FAKE_FUNCTIONS; function++) {
        int failures = 0;
        for (bool failed = true; failed; failures += failed) {
            fake_blas.fails = (fake_function)function;
            fake_blas.calls_left = failures;
            fake_blas.error = failures % 2 ? HR_CUBLASLT_OUT_OF_MEMORY : 14;
            hr_device_baseline *baseline;
            hr_status status = create(HR_BASELINE_CUBLASLT_FP8, &baseline);
            if (status == HR_OK) status = hr_device_baseline_start(baseline);
            failed = status != HR_OK;
            if (failed)
                expect_error(status, failures % 2 ? HR_ERROR_OUT_OF_MEMORY : HR_ERROR_DEVICE,
                             names[function]);
            hr_device_baseline_free(baseline);
            expect_no_leak();
        }
        cr_assert_gt(failures, 0, "%s was never called", names[function]);
    }
}

Test(device_baseline, running_out_of_gpu_memory_leaks_nothing, .init = pretend)
{
    for (int kind = 0; kind < HR_BASELINE_COUNT; kind++) {
        int failures = 0;
        fake.allocate_error = HR_CUDA_OUT_OF_MEMORY;
        for (bool failed = true; failed; failures += failed) {
            hr_device_baseline *baseline;
            fake.allocations_left = failures;
            const hr_status status = create((hr_baseline)kind, &baseline);
            failed = status != HR_OK;
            if (failed) expect_error(status, HR_ERROR_OUT_OF_MEMORY, "no memory for");
            hr_device_baseline_free(baseline);
            expect_no_leak();
        }
        cr_assert_geq(failures, 6);
    }
}

Test(device_baseline, failed_launches_and_copies_are_reported, .init = pretend)
{
    hr_device_baseline *baseline;
    fake.copy_error = 1;
    expect_error(create(HR_BASELINE_CUBLASLT_FP8, &baseline), HR_ERROR_DEVICE, "queue a copy");
    fake.copy_error = 0;
    cr_assert_eq(create(HR_BASELINE_CUBLASLT_FP8, &baseline), HR_OK, "%s", hr_last_error());
    fake.launch_error = 719;
    expect_error(hr_device_baseline_start(baseline), HR_ERROR_DEVICE, "launch the softmax");
    fake.launch_error = 0;
    fake.synchronize_error = 719;
    expect_error(hr_device_baseline_wait(baseline), HR_ERROR_DEVICE, "finish what was queued");
    hr_device_baseline_free(baseline);
    expect_no_leak();
}

/* What a machine has of cuBLASLt loads, or says why not; the first file named here is nowhere. */
Test(device_baseline, a_file_that_is_not_there_is_named)
{
    const char *reason = NULL;
    hr_cuda_replace(NULL);
    if (!hr_cuda()) return; /* a build without CUDA has nothing that loads it */
    setenv("HEADROOM_CUBLASLT", "/nowhere/libcublasLt.so.13", 1);
    cr_assert_null(hr_cuda()->cublaslt(&reason));
    cr_assert(strstr(reason, "/nowhere/libcublasLt.so.13"), "%s", reason);
    cr_assert(strstr(reason, "HEADROOM_CUBLASLT"), "%s", reason);
}

Test(device_baseline, the_real_library_has_every_function)
{
    static const char path[] = "/usr/local/cuda/lib64/libcublasLt.so.13";
    const char *reason = NULL;
    hr_cuda_replace(NULL);
    if (!hr_cuda()) return;
    FILE *file = getenv("HEADROOM_CUBLASLT") ? NULL : fopen(path, "rb");
    if (file) {
        setenv("HEADROOM_CUBLASLT", path, 1);
        fclose(file);
    }
    const hr_cublaslt *library = hr_cuda()->cublaslt(&reason);
    if (!library) {
        cr_assert(strstr(reason, "not found"), "%s", reason);
        printf("no cuBLASLt here: %s\n", reason);
        return;
    }
    cr_assert_str_eq(library->status_text(HR_CUBLASLT_UNSUPPORTED),
                     "the requested functionality is not supported");
    void *layout = NULL;
    cr_assert_eq(library->layout_create(&layout, HR_CUBLASLT_E4M3, 64, 32, 64), 0);
    cr_assert_eq(library->layout_destroy(layout), 0);
}
