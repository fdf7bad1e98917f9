/*
 * Plans on a GPU, with a pretended CUDA (fake_cuda.h): which kernel is chosen, what it is launched
 * with, what is refused and that nothing leaks. What the kernels compute is checked under the
 * Hopper emulator.
 */
#include <criterion/criterion.h>

#include "fake_cuda.h"
#include "headroom/headroom.h"
#include "plan_device.h"

enum { HEADS = 4, KV_HEADS = 2, HEAD_DIM = 32, TOKENS_Q = 20, TOKENS_KV = 300 };

static const int32_t cu_seqlens_q[] = {0, 5, 20}, cu_seqlens_kv[] = {0, 170, 300};
static const float sinks[HEADS] = {1, 2, 3, 4};

typedef struct device_case {
    hr_attention_problem problem;
    hr_recipe recipe;
    hr_plan *plan;
    hr_packed_layer here, there;
    hr_tensor o, lse;
} device_case;

static device_case the;

static hr_status plan_with(hr_plan_options options)
{
    options.device = HR_DEVICE_CUDA;
    return hr_plan_create(&the.problem, &the.recipe, &options, &the.plan);
}

static void pack_operands(void)
{
    static float x[TOKENS_KV * HEADS * HEAD_DIM];
    for (int i = 0; i < TOKENS_KV * HEADS * HEAD_DIM; i++)
        x[i] = (float)((i * 37) % 101 - 50);
    const int64_t q_shape[3] = {TOKENS_Q, HEADS, HEAD_DIM};
    const int64_t kv_shape[3] = {TOKENS_KV, KV_HEADS, HEAD_DIM};
    hr_tensor q = hr_tensor_view(HR_DTYPE_F32, 3, q_shape, x);
    hr_tensor kv = hr_tensor_view(HR_DTYPE_F32, 3, kv_shape, x);
    const hr_layer_layouts layouts = hr_plan_layouts(the.plan);
    cr_assert_eq(hr_pack_layer(&the.recipe, &layouts, &q, &kv, &kv, 2, cu_seqlens_q, cu_seqlens_kv,
                               NULL, &the.here),
                 HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_packed_layer_copy(&the.here, HR_DEVICE_CUDA, &the.there), HR_OK);
}

static void make_outputs(void)
{
    const int64_t shape[3] = {TOKENS_Q, HEADS, HEAD_DIM};
    void *o, *lse;
    cr_assert_eq(hr_device_alloc(HR_DEVICE_CUDA, TOKENS_Q * HEADS * HEAD_DIM, 4, &o), HR_OK);
    cr_assert_eq(hr_device_alloc(HR_DEVICE_CUDA, TOKENS_Q * HEADS, 4, &lse), HR_OK);
    the.o = hr_tensor_view(HR_DTYPE_F32, 3, shape, o);
    the.lse = hr_tensor_view(HR_DTYPE_F32, 2, shape, lse);
    the.o.device = the.lse.device = HR_DEVICE_CUDA;
}

static void set_problem(const char *recipe)
{
    fake_start();
    unsetenv("HEADROOM_ISA");
    hr_attention_problem_init(&the.problem, HEADS, KV_HEADS, HEAD_DIM);
    the.problem.batch = 2;
    the.problem.cu_seqlens_q = cu_seqlens_q;
    the.problem.cu_seqlens_kv = cu_seqlens_kv;
    the.problem.mask.causal = true;
    cr_assert_eq(hr_recipe_parse(recipe, &the.recipe), HR_OK, "%s", hr_last_error());
}

static void set_up(void)
{
    set_problem("int8");
    the.problem.sinks = sinks;
    cr_assert_eq(plan_with((hr_plan_options){.stream = &the}), HR_OK, "%s", hr_last_error());
    pack_operands();
    make_outputs();
}

static void tear_down(void)
{
    hr_device_free(HR_DEVICE_CUDA, the.o.data);
    hr_device_free(HR_DEVICE_CUDA, the.lse.data);
    hr_packed_layer_free(&the.here);
    hr_packed_layer_free(&the.there);
    hr_plan_free(the.plan);
    cr_assert_eq(fake.live, 0, "%d allocations are left", fake.live);
}

static void expect_error(hr_status status, hr_status expected, const char *part)
{
    cr_assert_eq(status, expected, "%s: %s", hr_status_string(status), hr_last_error());
    cr_assert(strstr(hr_last_error(), part), "no \"%s\" in: %s", part, hr_last_error());
}

Test(plan_device, the_device_chooses_among_its_own_kernels)
{
    const struct {
        const char *recipe, *kernel;
    } expected[] = {{"bf16", "attention_bf16_sm90"},
                    {"fp8", "attention_fp8_sm90"},
                    {"int8", "attention_int8_sm90"},
                    {"int8-fp8", "attention_int8_fp8_sm90"}};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        set_problem(expected[i].recipe);
        cr_assert_eq(plan_with((hr_plan_options){.threads = 0}), HR_OK, "%s", hr_last_error());
        cr_assert_str_eq(hr_plan_kernel(the.plan)->name, expected[i].kernel);
        cr_assert_eq(hr_plan_layouts(the.plan).v, HR_LAYOUT_SM90_V);
        const double on_gpu = hr_plan_flops(the.plan);
        hr_plan_free(the.plan);
        /* With a GPU there, too, a plan runs on the CPU unless asked otherwise. */
        hr_plan *plan;
        cr_assert_eq(hr_plan_create(&the.problem, &the.recipe, NULL, &plan), HR_OK);
        cr_assert_neq(hr_plan_kernel(plan)->isa, HR_ISA_SM90);
        cr_assert_eq(hr_plan_flops(plan), on_gpu);
        hr_plan_free(plan);
    }
    cr_assert_eq(fake.live, 0);
}

Test(plan_device, the_kernel_gets_the_operands_as_they_lie, .init = set_up, .fini = tear_down)
{
    cr_assert_eq(hr_plan_run(the.plan, &the.there, &the.o, &the.lse), HR_OK, "%s", hr_last_error());
    const hr_sm90_args *args = &fake.args;
    const hr_packed *q = &the.there.q, *k = &the.there.k, *v = &the.there.v;
    cr_assert_eq(fake.attention_launches, 1);
    cr_assert_eq(fake.tile_scale_launches, 1);
    cr_assert_eq(fake.kernel, hr_device_kernel_int8);
    cr_assert_eq(args->q, q->codes);
    cr_assert_eq(args->v, v->codes);
    cr_assert_eq(args->k_head_bytes, (int64_t)k->head_bytes);
    cr_assert_eq(args->kv_tiles, 4);
    cr_assert_eq(args->kv_tiles * 128, v->total_slots);
    cr_assert_eq(args->total_q, TOKENS_Q);
    cr_assert_eq(args->total_kv, TOKENS_KV);
    cr_assert_eq(args->max_seqlen_q, 15);
    cr_assert_eq(args->max_seqlen_kv, 170);
    cr_assert_eq(args->q_scale.base, q->scale);
    cr_assert_eq(args->q_scale.head_stride, TOKENS_Q);
    cr_assert_eq(args->q_scale.stride, 1);
    cr_assert_eq(args->lse_bias, q->lse_bias);
    cr_assert_eq(args->window_left, INT32_MAX);
    cr_assert_eq(args->window_right, 0);
    cr_assert_eq(args->multiprocessors, 132);
    cr_assert_eq(args->stream, &the);
    cr_assert_eq(args->o, the.o.data);
    cr_assert_eq(args->o_token_stride, HEADS * HEAD_DIM);
    cr_assert_eq(args->lse_head_stride, 1);
    cr_assert_eq(args->o_is_bf16, 0);
    cr_assert_eq(memcmp(args->cu_seqlens_kv, cu_seqlens_kv, sizeof cu_seqlens_kv), 0);
    cr_assert_eq(memcmp(args->cu_seqlens_q, cu_seqlens_q, sizeof cu_seqlens_q), 0);
    const int32_t tiles[] = {0, 2, 4};
    cr_assert_eq(memcmp(args->kv_tile_offset, tiles, sizeof tiles), 0);
    cr_assert_eq(memcmp(args->sinks, sinks, sizeof sinks), 0);

    the.o.dtype = HR_DTYPE_BF16;
    cr_assert_eq(hr_plan_run(the.plan, &the.there, &the.o, NULL), HR_OK, "%s", hr_last_error());
    cr_assert_eq(fake.args.o_is_bf16, 1);
    cr_assert_null(fake.args.lse);
}

Test(plan_device, memory_on_the_wrong_device_is_refused, .init = set_up, .fini = tear_down)
{
    expect_error(hr_plan_run(the.plan, &the.here, &the.o, NULL), HR_ERROR_MISMATCH,
                 "q is in cpu memory; it must be in cuda memory");
    hr_tensor o = the.o, lse = the.lse;
    o.device = HR_DEVICE_CPU;
    expect_error(hr_plan_run(the.plan, &the.there, &o, NULL), HR_ERROR_MISMATCH,
                 "o is in cpu memory");
    lse.device = HR_DEVICE_CPU;
    expect_error(hr_plan_run(the.plan, &the.there, &the.o, &lse), HR_ERROR_MISMATCH,
                 "lse is in cpu memory");
    lse = the.lse;
    lse.dtype = HR_DTYPE_BF16;
    expect_error(hr_plan_run(the.plan, &the.there, &the.o, &lse), HR_ERROR_MISMATCH,
                 "lse is bf16; it must be f32");
    cr_assert_eq(fake.attention_launches, 0);

    hr_plan *plan;
    hr_plan_options options = {.kernel = "attention_int8_portable"};
    cr_assert_eq(hr_plan_create(&the.problem, &the.recipe, &options, &plan), HR_OK);
    hr_packed_layer rows;
    memset(&rows, 0, sizeof rows);
    hr_packed_layer mixed = the.here;
    cr_assert_eq(hr_packed_relayout(&the.here.v, HR_LAYOUT_ROWS, &rows.v), HR_OK);
    mixed.v = rows.v;
    expect_error(hr_plan_run(plan, &mixed, &the.o, NULL), HR_ERROR_MISMATCH, "o is in cuda memory");
    mixed.q = the.there.q;
    expect_error(hr_plan_run(plan, &mixed, &the.o, NULL), HR_ERROR_MISMATCH, "q is in cuda memory");
    hr_packed_free(&rows.v);
    hr_plan_free(plan);
}

Test(plan_device, what_a_kernel_cannot_do_is_refused, .init = set_up, .fini = tear_down)
{
    hr_tensor o = the.o;
    o.data = (char *)o.data + 4;
    expect_error(hr_plan_run(the.plan, &the.there, &o, NULL), HR_ERROR_MISMATCH, "multiple of 8");
    o = the.o;
    o.stride[1]++;
    expect_error(hr_plan_run(the.plan, &the.there, &o, NULL), HR_ERROR_MISMATCH, "even strides");
    hr_plan *plan = the.plan;
    expect_error(plan_with((hr_plan_options){.kv_splits = 4}), HR_ERROR_UNSUPPORTED,
                 "does not split the kv axis");
    cr_assert_null(the.plan);
    the.problem.head_dim = 24;
    expect_error(plan_with((hr_plan_options){.threads = 0}), HR_ERROR_UNSUPPORTED, "not 24");
    the.problem.head_dim = HEAD_DIM;
    cr_assert_eq(hr_recipe_parse("int4", &the.recipe), HR_OK);
    expect_error(plan_with((hr_plan_options){.threads = 0}), HR_ERROR_UNSUPPORTED, "int4");
    cr_assert_eq(hr_recipe_parse("fp8:k.granularity=block192", &the.recipe), HR_OK);
    expect_error(plan_with((hr_plan_options){.threads = 0}), HR_ERROR_UNSUPPORTED,
                 "K scales per block of a multiple of 128 tokens, not 192");
    the.plan = plan;
}

Test(plan_device, failures_are_reported_and_leak_nothing, .init = set_up, .fini = tear_down)
{
    fake.launch_error = 719;
    expect_error(
        hr_plan_run(the.plan, &the.there, &the.o, NULL), HR_ERROR_DEVICE,
        "attention_int8_sm90: CUDA failed to launch the kernel: unspecified launch failure");
    hr_plan *plan = the.plan;
    fake.allocate_error = HR_CUDA_OUT_OF_MEMORY;
    const int live = fake.live;
    int failures = 0;
    for (;; failures++) {
        fake.allocations_left = failures;
        if (plan_with((hr_plan_options){.threads = 0}) == HR_OK) break;
        cr_assert(strstr(hr_last_error(), "the GPU has no memory"), "%s", hr_last_error());
        cr_assert_eq(fake.live, live);
    }
    cr_assert_eq(failures, 2);
    hr_plan_free(the.plan);
    fake.capability = 80;
    expect_error(plan_with((hr_plan_options){.threads = 0}), HR_ERROR_DEVICE,
                 "compute capability 8.0");
    fake.capability = 90;
    the.plan = plan;
}

Test(plan_device, nothing_to_attend_to)
{
    static const int32_t none[] = {0, 0, 0};
    set_problem("bf16");
    the.problem.cu_seqlens_kv = none;
    cr_assert_eq(plan_with((hr_plan_options){.threads = 0}), HR_OK, "%s", hr_last_error());
    make_outputs();
    static float x[TOKENS_Q * HEADS * HEAD_DIM];
    hr_tensor q = hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){TOKENS_Q, HEADS, HEAD_DIM}, x);
    hr_tensor kv = hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){0, KV_HEADS, HEAD_DIM}, x);
    const hr_layer_layouts layouts = hr_plan_layouts(the.plan);
    cr_assert_eq(
        hr_pack_layer(&the.recipe, &layouts, &q, &kv, &kv, 2, cu_seqlens_q, none, NULL, &the.here),
        HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_packed_layer_copy(&the.here, HR_DEVICE_CUDA, &the.there), HR_OK);
    cr_assert_eq(hr_plan_run(the.plan, &the.there, &the.o, &the.lse), HR_OK, "%s", hr_last_error());
    cr_assert_eq(fake.no_keys_launches, 1);
    cr_assert_eq(fake.attention_launches, 0);
    tear_down();
}
