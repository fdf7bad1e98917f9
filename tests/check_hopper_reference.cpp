/*
 * The FP32 reference of kernels/cuda/reference_sm90.cu, under the emulator and through its public
 * call, against the FP64 oracle; and what that call refuses.
 */
#include <criterion/criterion.h>

#include <cmath>
#include <random>
#include <vector>

#include "reference_sm90.cu"

#include "fake_cuda.h"
#include "headroom/headroom.h"

static int emulated_reference(const hr_sm90_reference_args *args)
{
    return hr_reference_sm90(args);
}

/* FP32 sums of some hundred terms of order 1: 1e-5 is many times their rounding. */
static void run_case(int head_dim, bool causal, int left, int right)
{
    const int heads = 4, kv_heads = 2;
    const int32_t cu_seqlens_q[] = {0, 5, 5, 40}, cu_seqlens_kv[] = {0, 150, 160, 170};
    hr_attention_problem problem;
    hr_attention_problem_init(&problem, heads, kv_heads, head_dim);
    problem.batch = 3;
    problem.cu_seqlens_q = cu_seqlens_q;
    problem.cu_seqlens_kv = cu_seqlens_kv;
    problem.mask.causal = causal;
    problem.mask.window_left = left;
    problem.mask.window_right = right;
    std::mt19937 random((unsigned)head_dim);
    std::normal_distribution<float> normal;
    std::vector<float> q(40 * heads * head_dim), k(170 * kv_heads * head_dim), v(k.size()),
        o(q.size(), NAN), lse(40 * heads, NAN);
    for (std::vector<float> *x : {&q, &k, &v})
        for (float &value : *x)
            value = normal(random);
    const int64_t q_shape[3] = {40, heads, head_dim}, kv_shape[3] = {170, kv_heads, head_dim};
    hr_tensor tensors[5] = {hr_tensor_view(HR_DTYPE_F32, 3, q_shape, q.data()),
                            hr_tensor_view(HR_DTYPE_F32, 3, kv_shape, k.data()),
                            hr_tensor_view(HR_DTYPE_F32, 3, kv_shape, v.data()),
                            hr_tensor_view(HR_DTYPE_F32, 3, q_shape, o.data()),
                            hr_tensor_view(HR_DTYPE_F32, 2, q_shape, lse.data())};
    std::vector<double> reference(q.size()), reference_lse(lse.size());
    cr_assert_eq(hr_reference_attention(&problem, &tensors[0], &tensors[1], &tensors[2],
                                        reference.data(), reference_lse.data()),
                 HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_device_reference_attention(&problem, &tensors[0], &tensors[1], &tensors[2],
                                               &tensors[3], &tensors[4]),
                 HR_ERROR_MISMATCH);
    for (hr_tensor &tensor : tensors)
        tensor.device = HR_DEVICE_CUDA;
    cr_assert_eq(hr_device_reference_attention(&problem, &tensors[0], &tensors[1], &tensors[2],
                                               &tensors[3], &tensors[4]),
                 HR_OK, "%s\n%s", hr_last_error(), hopper_emulator::report().text().c_str());
    for (size_t i = 0; i < o.size(); i++)
        cr_assert(fabs(o[i] - reference[i]) <= 1e-5, "O %zu is %g, not %g", i, o[i], reference[i]);
    for (size_t i = 0; i < lse.size(); i++)
        cr_assert(lse[i] == reference_lse[i] || fabs(lse[i] - reference_lse[i]) <= 1e-5,
                  "LSE %zu is %g, not %g", i, lse[i], reference_lse[i]);
    problem.softcap = 1;
    cr_assert_eq(hr_device_reference_attention(&problem, &tensors[0], &tensors[1], &tensors[2],
                                               &tensors[3], &tensors[4]),
                 HR_ERROR_UNSUPPORTED);
    cr_assert_eq(fake.live, 0);
}

Test(hopper_reference, is_attention_in_fp32)
{
    fake_start();
    fake_api.reference = emulated_reference;
    run_case(64, false, -1, -1);
    run_case(128, true, -1, -1);
    run_case(200, false, 7, 20);
    run_case(24, true, 3, -1);
}
