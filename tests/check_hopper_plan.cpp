/*
 * A plan on a GPU from end to end under the emulator: packed on the host, copied to a pretended GPU
 * (fake_cuda.h), run by hr_plan_run through the emulated kernels, fetched, and compared with the
 * oracle on the values that the codes stand for. The kernels' own checks have the sharp bounds;
 * this one is about the way from a plan to a kernel's arguments.
 */
#include <criterion/criterion.h>

#include <cmath>
#include <random>
#include <vector>

#include "attention_bf16_sm90.cu"
#include "attention_fp8_sm90.cu"
#include "attention_int8_fp8_sm90.cu"
#include "attention_int8_sm90.cu"
#include "prepare_sm90.cu"

#include "fake_cuda.h"
#include "headroom/headroom.h"
#include "plan_device.h"

namespace
{

struct Case {
    const char *recipe;
    double error; /* largest relative L2 */
};

int emulated_attention(int kernel, const hr_sm90_args *args)
{
    fake.attention_launches++;
    switch (kernel) {
    case hr_device_kernel_bf16:
        return hr_attention_bf16_sm90(args);
    case hr_device_kernel_fp8:
        return hr_attention_fp8_sm90(args);
    case hr_device_kernel_int8:
        return hr_attention_int8_sm90(args);
    case hr_device_kernel_int8_fp8:
        return hr_attention_int8_fp8_sm90(args);
    }
    return -1;
}

int emulated_tile_scale(const hr_sm90_tile_scale_args *args)
{
    return hr_tile_scale_sm90(args);
}

int emulated_no_keys(const hr_sm90_args *args)
{
    return hr_no_keys_sm90(args);
}

const int heads = 4, kv_heads = 2, head_dim = 64;
const int32_t cu_seqlens_q[] = {0, 3, 3, 140}, cu_seqlens_kv[] = {0, 7, 7, 170};
const float sinks[heads] = {0.5f, -INFINITY, 2, -1};

std::vector<float> gaussian(int count, unsigned seed)
{
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float &value : values)
        value = normal(random);
    return values;
}

hr_tensor view(std::vector<float> &values, int tensor_heads)
{
    const int64_t shape[3] = {(int64_t)values.size() / tensor_heads / head_dim, tensor_heads,
                              head_dim};
    return hr_tensor_view(HR_DTYPE_F32, 3, shape, values.data());
}

void run_case(const Case &test)
{
    fake_start();
    fake_api.attention = emulated_attention;
    fake_api.tile_scale = emulated_tile_scale;
    fake_api.no_keys = emulated_no_keys;
    hr_attention_problem problem;
    hr_attention_problem_init(&problem, heads, kv_heads, head_dim);
    problem.batch = 3;
    problem.cu_seqlens_q = cu_seqlens_q;
    problem.cu_seqlens_kv = cu_seqlens_kv;
    problem.mask.causal = true;
    problem.sinks = sinks;
    hr_recipe recipe;
    cr_assert_eq(hr_recipe_parse(test.recipe, &recipe), HR_OK, "%s", hr_last_error());
    hr_plan_options options = {};
    options.device = HR_DEVICE_CUDA;
    hr_plan *plan;
    cr_assert_eq(hr_plan_create(&problem, &recipe, &options, &plan), HR_OK, "%s", hr_last_error());

    std::vector<float> q = gaussian(140 * heads * head_dim, 1),
                       k = gaussian(170 * kv_heads * head_dim, 2),
                       v = gaussian(170 * kv_heads * head_dim, 3);
    hr_tensor views[3] = {view(q, heads), view(k, kv_heads), view(v, kv_heads)};
    const hr_layer_layouts layouts = hr_plan_layouts(plan);
    hr_packed_layer packed;
    cr_assert_eq(hr_pack_layer(&recipe, &layouts, &views[0], &views[1], &views[2], 3, cu_seqlens_q,
                               cu_seqlens_kv, nullptr, &packed),
                 HR_OK, "%s", hr_last_error());
    std::vector<float> o(q.size(), NAN), lse(140 * heads, NAN);
    hr_device_run *run;
    cr_assert_eq(hr_device_run_create(plan, &packed, &run), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_device_run_start(run), HR_OK, "%s: %s\n%s", test.recipe, hr_last_error(),
                 hopper_emulator::report().text().c_str());
    cr_assert_eq(hr_device_run_fetch(run, o.data(), lse.data()), HR_OK);
    cr_assert_eq(fake.attention_launches, 1);

    /* What the codes stand for: unpack, and add back what smoothing took from q . k. */
    cr_assert_eq(hr_unpack_original(&packed.q, q.data()), HR_OK);
    cr_assert_eq(hr_unpack_original(&packed.k, k.data()), HR_OK);
    cr_assert_eq(hr_unpack_original(&packed.v, v.data()), HR_OK);
    std::vector<double> reference(q.size()), reference_lse(lse.size());
    cr_assert_eq(hr_reference_attention(&problem, &views[0], &views[1], &views[2], reference.data(),
                                        reference_lse.data()),
                 HR_OK, "%s", hr_last_error());
    hr_error error;
    hr_error_measure(o.data(), head_dim, reference.data(), head_dim, 140 * heads, head_dim, &error);
    cr_expect(error.rel_l2 <= test.error, "%s: relative L2 %g", test.recipe, error.rel_l2);
    for (size_t i = 0; i < lse.size(); i++)
        cr_expect(fabs(lse[i] - reference_lse[i]) <= 0.05, "%s: LSE %zu is %g, not %g", test.recipe,
                  i, lse[i], reference_lse[i]);
    hr_device_run_free(run);
    hr_plan_free(plan);
    hr_packed_layer_free(&packed);
    cr_assert_eq(fake.live, 0);
}

} // namespace

Test(hopper_plan, kernels_get_what_plans_say)
{
    const Case cases[] = {
        {"bf16", 0.01},
        {"fp8:qkv.scale=dynamic", 0.0625},
        {"fp8:qkv.granularity=tensor,qkv.scale=dynamic", 0.0625},
        {"fp8:q.granularity=token,k.scale=dynamic,v.granularity=channel,v.scale=dynamic", 0.0625},
        {"int8", 0.02},
        {"int8:qkv.granularity=head", 0.02},
        {"int8:q.granularity=tensor,v.granularity=tensor", 0.02},
        {"int8-fp8", 0.0625},
        {"int8-fp8:k.granularity=head,v.granularity=head", 0.0625},
        {"fp8:qkv.granularity=block128", 0.0625},
        {"fp8:q.granularity=block16,k.scale=dynamic,v.granularity=block128", 0.0625},
        {"fp8:qv.scale=dynamic,k.granularity=block128", 0.0625},
        {"int8:q.granularity=block64,k.granularity=block32,v.granularity=block100", 0.02},
        {"int8-fp8:qk.granularity=block64,v.granularity=block128", 0.0625},
    };
    for (const Case &test : cases)
        run_case(test);
}
