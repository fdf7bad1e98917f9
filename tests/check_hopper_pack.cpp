/*
 * Packing on a GPU against packing on the host, bit for bit: the kernel of
 * kernels/cuda/pack_sm90.cu runs under the Hopper emulator behind a pretended CUDA (fake_cuda.h),
 * through the public calls.
 */
#include <criterion/criterion.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "pack_sm90.cu"

#include "fake_cuda.h"
#include "headroom/headroom.h"

namespace
{

struct Shape {
    int heads, kv_heads, head_dim;
    std::vector<int32_t> cu_seqlens_q, cu_seqlens_kv;
};

enum class Fill { gaussian, zero_tokens, wide, zeros };

struct Case {
    const char *recipe;
    Shape shape;
    Fill fill;
    hr_rope rope;
};

int emulated_pack(const hr_sm90_pack_args *args)
{
    return hr_pack_sm90(args);
}

uint16_t to_bf16(float x)
{
    uint16_t code;
    cr_assert_eq(hr_encode(HR_DTYPE_BF16, &x, 1, 1, 0, &code), HR_OK);
    return code;
}

/* [tokens][heads][head_dim] between gaps, in memory aligned as the GPU's is. */
struct Input {
    std::vector<uint16_t> memory;
    hr_tensor view;
};

void fill_input(Input &input, const Case &test, int tokens, int heads, std::mt19937 &random)
{
    std::normal_distribution<float> normal;
    const int head_dim = test.shape.head_dim, gap = 8;
    const int64_t shape[3] = {tokens, heads, head_dim};
    const int64_t stride = heads * (head_dim + gap);
    input.memory.assign((size_t)(tokens * stride + 8), 0xFFFF);
    uint16_t *data = input.memory.data();
    while ((uintptr_t)data % 16)
        data++;
    input.view = hr_tensor_view(HR_DTYPE_BF16, 3, shape, data);
    input.view.stride[0] = stride;
    input.view.stride[1] = head_dim + gap;
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < heads; h++)
            for (int c = 0; c < head_dim; c++) {
                float x = normal(random) + (c == 3 ? 8 : 0);
                if (test.fill == Fill::zeros || (test.fill == Fill::zero_tokens && t % 3 == 1))
                    x = 0;
                if (test.fill == Fill::wide) x = ldexpf(x, t % 7 * 20 - 60);
                data[t * stride + h * (head_dim + gap) + c] = to_bf16(x);
            }
}

std::vector<float> some_scales(int count, std::mt19937 &random)
{
    std::uniform_real_distribution<float> uniform(0.003f, 0.03f);
    std::vector<float> scales(count);
    for (float &scale : scales)
        scale = uniform(random);
    return scales;
}

/* An ulp or so of the sum's terms: the order of the additions differs. */
void compare_bias(const hr_packed &host, const hr_packed &device)
{
    for (int64_t i = 0; i < host.num_heads * host.total_tokens; i++) {
        const float a = host.lse_bias[i], b = device.lse_bias[i];
        cr_assert(fabsf(a - b) <= 2e-7f * fabsf(a) + 1e-30f, "bias %d: %a, %a", (int)i, a, b);
    }
}

void compare(const char *what, const hr_packed &host, const hr_packed &device)
{
    const unsigned char *a = (const unsigned char *)host.codes;
    const unsigned char *b = (const unsigned char *)device.codes;
    cr_assert_eq(host.head_bytes, device.head_bytes);
    cr_assert_eq(host.scale_count, device.scale_count);
    for (int64_t i = 0; i < host.scale_count; i++)
        cr_assert_eq(host.scale[i], device.scale[i], "%s: scale %d is %a, host %a", what, (int)i,
                     device.scale[i], host.scale[i]);
    for (size_t i = 0; i < host.num_heads * host.head_bytes; i++)
        cr_assert_eq(a[i], b[i], "%s: byte %zu is %d, host %d", what, i, b[i], a[i]);
    cr_assert_eq(host.hadamard_seed, device.hadamard_seed);
    if (host.lse_bias) compare_bias(host, device);
}

/* hr_pack_layer with positions: K and V as it does, Q with rope of its own. */
void pack_on_host(const hr_recipe &recipe, const hr_attention_problem &problem,
                  const Input (&input)[3], const hr_layer_scales &scales,
                  const std::vector<int32_t> (&positions)[2], hr_packed_layer &out)
{
    hr_packed *packed[3] = {&out.q, &out.k, &out.v};
    const hr_operand_recipe *recipes[3] = {&recipe.q, &recipe.k, &recipe.v};
    const float *scale[3] = {scales.q, scales.k, scales.v};
    for (int i = 0; i < 3; i++) {
        hr_pack_options options = {};
        options.layout = i == 2 ? HR_LAYOUT_SM90_V : HR_LAYOUT_ROWS;
        options.batch = problem.batch;
        options.cu_seqlens = i ? problem.cu_seqlens_kv : problem.cu_seqlens_q;
        options.static_scale = scale[i];
        if (i == 1) options.mean = scales.k_mean;
        if (i == 0) options.k_mean = scales.k_mean;
        options.num_kv_heads = problem.num_kv_heads;
        if (i < 2) {
            options.rope = problem.rope;
            options.positions = positions[i].data();
        }
        cr_assert_eq(hr_pack((hr_operand)i, recipes[i], &input[i].view, &options, packed[i]), HR_OK,
                     "%s", hr_last_error());
    }
}

void run_case(const Case &test, hopper_emulator::Schedule schedule)
{
    std::mt19937 random(7);
    const Shape &shape = test.shape;
    hr_recipe recipe;
    cr_assert_eq(hr_recipe_parse(test.recipe, &recipe), HR_OK, "%s", hr_last_error());
    hr_attention_problem problem;
    hr_attention_problem_init(&problem, shape.heads, shape.kv_heads, shape.head_dim);
    problem.batch = (int32_t)shape.cu_seqlens_q.size() - 1;
    problem.cu_seqlens_q = shape.cu_seqlens_q.data();
    problem.cu_seqlens_kv = shape.cu_seqlens_kv.data();
    problem.rope = test.rope;

    const int tokens[2] = {shape.cu_seqlens_q.back(), shape.cu_seqlens_kv.back()};
    Input input[3];
    std::vector<int32_t> positions[2];
    for (int i = 0; i < 3; i++)
        fill_input(input[i], test, tokens[i > 0], i ? shape.kv_heads : shape.heads, random);
    for (int i = 0; i < 2; i++)
        for (int t = 0; t < tokens[i]; t++)
            positions[i].push_back((t * 13) % 97);
    const bool plain = recipe.q.dtype == HR_DTYPE_BF16;
    const int v_scales = recipe.v.granularity == HR_GRANULARITY_CHANNEL ? shape.head_dim : 1;
    const auto q_scale = some_scales(shape.heads, random);
    const auto k_scale = some_scales(shape.kv_heads, random);
    const auto v_scale = some_scales(shape.kv_heads * v_scales, random);
    const auto k_mean = some_scales(shape.kv_heads * shape.head_dim, random);
    hr_layer_scales scales = {};
    if (!plain && !recipe.q.dynamic) scales.q = q_scale.data();
    if (!plain && !recipe.k.dynamic) scales.k = k_scale.data();
    if (!plain && !recipe.v.dynamic) scales.v = v_scale.data();
    if (recipe.k.transform & HR_TRANSFORM_MEAN) scales.k_mean = k_mean.data();

    fake_start();
    fake_api.pack = emulated_pack;
    hopper_emulator::options().schedule = schedule;
    hr_packed_layer host = {};
    pack_on_host(recipe, problem, input, scales, positions, host);
    hr_device_pack_options options = {};
    options.problem = &problem;
    options.recipe = &recipe;
    options.scales = &scales;
    options.q_positions = positions[0].data();
    options.k_positions = positions[1].data();
    hr_device_packer *packer;
    cr_assert_eq(hr_device_packer_create(&options, &packer), HR_OK, "%s", hr_last_error());
    for (Input &x : input)
        x.view.device = HR_DEVICE_CUDA;
    for (int run = 0; run < 2; run++) { /* the second finds what the first left behind */
        cr_assert_eq(hr_device_packer_run(packer, &input[0].view, &input[1].view, &input[2].view),
                     HR_OK, "%s\n%s", hr_last_error(), hopper_emulator::report().text().c_str());
        cr_assert_eq(hr_device_packer_check(packer), HR_OK, "%s", hr_last_error());
        const hr_packed_layer *device = hr_device_packer_layer(packer);
        compare("q", host.q, device->q);
        compare("k", host.k, device->k);
        compare("v", host.v, device->v);
    }
    hr_device_packer_free(packer);
    hr_packed_layer_free(&host);
    cr_assert_eq(fake.live, 0);
}

const Shape small = {2, 1, 64, {0, 3, 3, 140}, {0, 5, 5, 150}};
const Shape wide = {1, 1, 128, {0, 20}, {0, 133}};
const Shape widest = {1, 1, 256, {0, 5}, {0, 40}};
const Shape blocks = {2, 1, 64, {0, 130, 130, 300}, {0, 5, 5, 400}};
const Shape odd = {2, 2, 96, {0, 33}, {0, 33}}, narrow = {1, 1, 16, {0, 9}, {0, 130}},
            odder = {1, 1, 80, {0, 31}, {0, 31}}, large_odd = {1, 1, 192, {0, 12}, {0, 12}};

} // namespace

Test(hopper_pack, codes_and_scales_are_the_hosts)
{
    const hr_rope none = {};
    const Case cases[] = {
        {"bf16", small, Fill::gaussian, none},
        {"fp8", small, Fill::gaussian, none},
        {"int8", small, Fill::gaussian, none},
        {"int8", wide, Fill::gaussian, none},
        {"fp8", wide, Fill::gaussian, none},
        {"fp8", widest, Fill::gaussian, none},
        {"int8", odd, Fill::gaussian, none},
        {"int8", odder, Fill::gaussian, none},
        {"fp8", narrow, Fill::gaussian, none},
        {"bf16", large_odd, Fill::gaussian, none},
        {"int8", small, Fill::zero_tokens, none},
        {"int8", small, Fill::wide, none},
        {"int8", small, Fill::zeros, none},
        {"fp8", small, Fill::wide, none},
        {"int8-fp8:v.scale=static", small, Fill::gaussian, none},
    };
    for (const Case &test : cases)
        run_case(test, hopper_emulator::Schedule::earliest);
    run_case(cases[2], hopper_emulator::Schedule::latest);
    run_case(cases[2], hopper_emulator::Schedule::random);
}

Test(hopper_pack, turned_and_rotated_as_on_the_host)
{
    for (const Shape &shape : {small, wide, widest, odd, odder, large_odd, narrow}) {
        const int32_t some = shape.head_dim >= 64 ? 32 : 16;
        run_case({"fp8", shape, Fill::gaussian, {shape.head_dim, false, 10000}},
                 hopper_emulator::Schedule::earliest);
        run_case({"int8", shape, Fill::gaussian, {some, false, 10000}},
                 hopper_emulator::Schedule::random);
        run_case({"int8", shape, Fill::wide, {some + 2 - 16, true, 500}},
                 hopper_emulator::Schedule::latest);
        run_case({"int8:q.transform=hadamard,k.transform=mean+hadamard", shape, Fill::gaussian, {}},
                 hopper_emulator::Schedule::latest);
        run_case({"fp8:qk.transform=hadamard", shape, Fill::zero_tokens, {some, false, 10000}},
                 hopper_emulator::Schedule::earliest);
    }
}

Test(hopper_pack, dynamic_scales_are_the_hosts)
{
    const char *const recipes[] = {"fp8:qkv.scale=dynamic", "int8-fp8",
                                   "fp8:qkv.granularity=tensor,qkv.scale=dynamic",
                                   "fp8:qkv.scale=dynamic,v.granularity=channel"};
    const hopper_emulator::Schedule schedules[] = {hopper_emulator::Schedule::earliest,
                                                   hopper_emulator::Schedule::latest,
                                                   hopper_emulator::Schedule::random};
    int number = 0;
    for (const char *recipe : recipes)
        for (const Shape &shape : {small, wide, widest, odd, odder, large_odd, narrow}) {
            const Fill fill = number % 4 == 1   ? Fill::wide
                              : number % 4 == 2 ? Fill::zero_tokens
                                                : Fill::gaussian;
            run_case({recipe, shape, fill, {}}, schedules[number++ % 3]);
        }
    run_case({"int8-fp8", small, Fill::zeros, {}}, hopper_emulator::Schedule::latest);
    run_case({"fp8:qkv.scale=dynamic", small, Fill::zeros, {}}, hopper_emulator::Schedule::latest);
    run_case(
        {"fp8:qkv.scale=dynamic,qk.transform=hadamard", wide, Fill::gaussian, {32, false, 10000}},
        hopper_emulator::Schedule::random);
    run_case({"fp8:qkv.scale=dynamic", odd, Fill::wide, {48, true, 500}},
             hopper_emulator::Schedule::earliest);
}

/* Scales that tokens share: given or found, by block (of which a sequence has several) or head. */
Test(hopper_pack, shared_scales_are_the_hosts)
{
    const char *const mixed_blocks = "int8:q.granularity=block384,k.granularity=block256,"
                                     "v.granularity=block128,qk.transform=hadamard";
    const char *const recipes[] = {"fp8:qkv.granularity=block128",
                                   "fp8:q.granularity=block256,kv.granularity=block128",
                                   "int8:qkv.granularity=block128,k.transform=none",
                                   mixed_blocks,
                                   "int8-fp8:qk.granularity=head,v.granularity=block256",
                                   "int8:qkv.granularity=head,qkv.scale=dynamic",
                                   "int8:qkv.granularity=tensor,qkv.scale=dynamic",
                                   "int8:qkv.granularity=head,qkv.scale=static",
                                   "int8:qkv.granularity=tensor,qkv.scale=static"};
    const hopper_emulator::Schedule schedules[] = {hopper_emulator::Schedule::earliest,
                                                   hopper_emulator::Schedule::latest,
                                                   hopper_emulator::Schedule::random};
    int number = 0;
    for (const char *recipe : recipes)
        for (const Shape &shape : {blocks, wide, odd}) {
            const Fill fill = number % 5 == 1   ? Fill::wide
                              : number % 5 == 3 ? Fill::zero_tokens
                                                : Fill::gaussian;
            run_case({recipe, shape, fill, {}}, schedules[number++ % 3]);
        }
    run_case({recipes[0], small, Fill::zeros, {}}, hopper_emulator::Schedule::latest);
    run_case({recipes[5], small, Fill::zeros, {32, false, 10000}},
             hopper_emulator::Schedule::earliest);
}

Test(hopper_pack, what_is_not_finite_is_reported_once)
{
    const int32_t cu_seqlens[2] = {0, 4};
    hr_attention_problem problem;
    hr_attention_problem_init(&problem, 1, 1, 16);
    problem.cu_seqlens_q = problem.cu_seqlens_kv = cu_seqlens;
    hr_recipe recipe;
    cr_assert_eq(hr_recipe_parse("bf16", &recipe), HR_OK);
    fake_start();
    fake_api.pack = emulated_pack;
    hr_device_pack_options options = {};
    options.problem = &problem;
    options.recipe = &recipe;
    hr_device_packer *packer;
    cr_assert_eq(hr_device_packer_create(&options, &packer), HR_OK, "%s", hr_last_error());
    alignas(16) static uint16_t x[4 * 16];
    const int64_t shape[3] = {4, 1, 16};
    hr_tensor view = hr_tensor_view(HR_DTYPE_BF16, 3, shape, x);
    cr_assert_eq(hr_device_packer_run(packer, &view, &view, &view), HR_ERROR_MISMATCH);
    view.device = HR_DEVICE_CUDA;
    for (uint16_t bad : {0x7F80, 0xFF80, 0x7FC1, 0xFFFF}) {
        for (int place : {0, 17, 63}) {
            x[place] = bad;
            cr_assert_eq(hr_device_packer_run(packer, &view, &view, &view), HR_OK);
            cr_assert_eq(hr_device_packer_check(packer), HR_ERROR_NUMERIC);
            x[place] = 0x7F7F;
            cr_assert_eq(hr_device_packer_run(packer, &view, &view, &view), HR_OK);
            cr_assert_eq(hr_device_packer_check(packer), HR_OK, "%s", hr_last_error());
        }
    }
    view.stride[0] = 20;
    cr_assert_eq(hr_device_packer_run(packer, &view, &view, &view), HR_ERROR_MISMATCH);
    hr_device_packer_free(packer);
    cr_assert_eq(hr_recipe_parse("fp8:v.granularity=token", &recipe), HR_OK);
    cr_assert_eq(hr_device_packer_create(&options, &packer), HR_ERROR_UNSUPPORTED);
    cr_assert_eq(hr_recipe_parse("fp8:k.granularity=block64", &recipe), HR_OK);
    cr_assert_eq(hr_device_packer_create(&options, &packer), HR_ERROR_UNSUPPORTED);
    cr_assert(strstr(hr_last_error(), "multiple of 128"), "%s", hr_last_error());
    cr_assert_eq(hr_recipe_parse("int8", &recipe), HR_OK);
    cr_assert_eq(hr_device_packer_create(&options, &packer), HR_ERROR_UNSUPPORTED);
    cr_assert(strstr(hr_last_error(), "k_mean"), "%s", hr_last_error());
    cr_assert_eq(fake.live, 0);
}
