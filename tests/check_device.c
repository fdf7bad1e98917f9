/*
 * A real GPU, where there is one: packing on it against packing on the host, bit for bit, and what
 * the kernels make of operands that were packed there against the FP64 oracle. Prints SKIP
 * elsewhere; HEADROOM_EXPECT_ISA=sm90 makes a missing GPU a failure in check_kernels, which checks
 * the kernels themselves on every shape.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/headroom.h"

enum { HEADS = 4, KV_HEADS = 2, BATCH = 3, TOKENS = 700 };

static const int32_t cu_seqlens[BATCH + 1] = {0, 129, 130, TOKENS};

typedef struct gpu_case {
    const char *recipe;
    int32_t head_dim;
    hr_rope rope;
    double error; /* largest relative L2 against the oracle on the codes' values */
} gpu_case;

static bool gpu_is_here(void)
{
    if (hr_device_check(HR_DEVICE_CUDA) == HR_OK) return true;
    printf("SKIP check_device: %s\n", hr_last_error());
    return false;
}

/* Gaussian values with a mean in one channel, rounded to BF16; token 7 is all zeros. */
static void *make_input(int32_t heads, int32_t head_dim, unsigned seed)
{
    const int64_t count = (int64_t)TOKENS * heads * head_dim;
    float *x = malloc((size_t)count * sizeof *x);
    uint16_t *codes = malloc((size_t)count * sizeof *codes);
    cr_assert(x && codes);
    srand(seed);
    for (int64_t i = 0; i < count; i++) {
        double sum = -6;
        for (int j = 0; j < 12; j++)
            sum += rand() / (double)RAND_MAX;
        x[i] = (float)sum + (i % head_dim == 3 ? 4.0f : 0.0f);
        if (i / head_dim / heads == 7) x[i] = 0;
    }
    cr_assert_eq(hr_encode(HR_DTYPE_BF16, x, count, 1, 0, codes), HR_OK);
    free(x);
    return codes;
}

static hr_tensor bf16_view(void *data, int32_t heads, int32_t head_dim, hr_device device)
{
    const int64_t shape[3] = {TOKENS, heads, head_dim};
    hr_tensor view = hr_tensor_view(HR_DTYPE_BF16, 3, shape, data);
    view.device = device;
    return view;
}

typedef struct inputs {
    hr_tensor here[3], there[3];
    int32_t positions[TOKENS];
    float *scale, *mean; /* long enough for any operand */
    hr_layer_scales scales;
} inputs;

static bool takes_scale(const hr_operand_recipe *operand)
{
    return operand->dtype == HR_DTYPE_E4M3 && !operand->dynamic;
}

static void make_inputs(const gpu_case *test, const hr_recipe *recipe, inputs *in)
{
    for (int i = 0; i < 3; i++) {
        const int32_t heads = i ? KV_HEADS : HEADS;
        const size_t bytes = (size_t)TOKENS * (size_t)heads * (size_t)test->head_dim * 2;
        void *codes = make_input(heads, test->head_dim, 11u + (unsigned)i), *there;
        cr_assert_eq(hr_device_alloc(HR_DEVICE_CUDA, bytes, 1, &there), HR_OK, "%s",
                     hr_last_error());
        cr_assert_eq(hr_device_copy(HR_DEVICE_CUDA, there, HR_DEVICE_CPU, codes, bytes, NULL),
                     HR_OK);
        in->here[i] = bf16_view(codes, heads, test->head_dim, HR_DEVICE_CPU);
        in->there[i] = bf16_view(there, heads, test->head_dim, HR_DEVICE_CUDA);
    }
    for (int t = 0; t < TOKENS; t++)
        in->positions[t] = (t * 7) % 300;
    const size_t count = (size_t)HEADS * (size_t)test->head_dim;
    in->scale = malloc(count * sizeof *in->scale);
    in->mean = malloc(count * sizeof *in->mean);
    cr_assert(in->scale && in->mean);
    for (size_t i = 0; i < count; i++) {
        in->scale[i] = 0.01f + 0.001f * (float)(i % 5);
        in->mean[i] = i % (size_t)test->head_dim == 3 ? 4.0f : 0.01f * (float)(i % 3);
    }
    in->scales = (hr_layer_scales){.q = takes_scale(&recipe->q) ? in->scale : NULL,
                                   .k = takes_scale(&recipe->k) ? in->scale : NULL,
                                   .v = takes_scale(&recipe->v) ? in->scale : NULL};
    if (recipe->k.transform & HR_TRANSFORM_MEAN) in->scales.k_mean = in->mean;
}

static void free_inputs(inputs *in)
{
    for (int i = 0; i < 3; i++) {
        free(in->here[i].data);
        hr_device_free(HR_DEVICE_CUDA, in->there[i].data);
    }
    free(in->scale);
    free(in->mean);
}

static void pack_here(const hr_recipe *recipe, const hr_attention_problem *problem,
                      const inputs *in, hr_packed_layer *out)
{
    hr_packed *packed[3] = {&out->q, &out->k, &out->v};
    const hr_operand_recipe *recipes[3] = {&recipe->q, &recipe->k, &recipe->v};
    const float *scales[3] = {in->scales.q, in->scales.k, in->scales.v};
    for (int i = 0; i < 3; i++) {
        hr_pack_options options = {.layout = i == 2 ? HR_LAYOUT_SM90_V : HR_LAYOUT_ROWS,
                                   .batch = BATCH,
                                   .cu_seqlens = cu_seqlens,
                                   .static_scale = scales[i],
                                   .num_kv_heads = KV_HEADS};
        if (i == 0) options.k_mean = in->scales.k_mean;
        if (i == 1) options.mean = in->scales.k_mean;
        if (i < 2) {
            options.rope = problem->rope;
            options.positions = in->positions;
        }
        cr_assert_eq(hr_pack((hr_operand)i, recipes[i], &in->here[i], &options, packed[i]), HR_OK,
                     "%s", hr_last_error());
    }
}

static void expect_same(const gpu_case *test, const char *name, const hr_packed *a,
                        const hr_packed *b)
{
    cr_assert_eq(memcmp(a->codes, b->codes, (size_t)a->num_heads * a->head_bytes), 0,
                 "%s, head_dim %d: codes of %s differ", test->recipe, test->head_dim, name);
    cr_assert_eq(memcmp(a->scale, b->scale, (size_t)a->scale_count * sizeof(float)), 0,
                 "%s, head_dim %d: scales of %s differ", test->recipe, test->head_dim, name);
    for (int64_t i = 0; a->lse_bias && i < a->num_heads * a->total_tokens; i++)
        cr_assert(fabsf(a->lse_bias[i] - b->lse_bias[i]) <= 2e-7f * fabsf(a->lse_bias[i]) + 1e-30f);
}

/* The kernel on what was packed there, against exact attention on what the codes stand for. */
static double run_error(const gpu_case *test, const hr_attention_problem *problem, hr_plan *plan,
                        const hr_packed_layer *here, const hr_packed_layer *there)
{
    const int64_t elements = (int64_t)TOKENS * HEADS * test->head_dim;
    const hr_packed *packed[3] = {&here->q, &here->k, &here->v};
    const int64_t q_shape[3] = {TOKENS, HEADS, test->head_dim};
    const int64_t kv_shape[3] = {TOKENS, KV_HEADS, test->head_dim};
    hr_tensor views[3];
    float *values[3], *o = malloc((size_t)elements * sizeof *o);
    double *reference = malloc((size_t)elements * sizeof *reference);
    cr_assert(o && reference);
    for (int i = 0; i < 3; i++) {
        values[i] = malloc((size_t)elements * sizeof(float));
        cr_assert_not_null(values[i]);
        cr_assert_eq(hr_unpack(packed[i], values[i]), HR_OK);
        views[i] = hr_tensor_view(HR_DTYPE_F32, 3, i ? kv_shape : q_shape, values[i]);
    }
    hr_attention_problem turned = *problem;
    turned.rope.rotary_dim = 0; /* the codes are of turned values */
    cr_assert_eq(hr_reference_attention(&turned, &views[0], &views[1], &views[2], reference, NULL),
                 HR_OK, "%s", hr_last_error());
    void *memory;
    cr_assert_eq(hr_device_alloc(HR_DEVICE_CUDA, (size_t)elements, sizeof(float), &memory), HR_OK);
    hr_tensor out = hr_tensor_view(HR_DTYPE_F32, 3, q_shape, memory);
    out.device = HR_DEVICE_CUDA;
    cr_assert_eq(hr_plan_run(plan, there, &out, NULL), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_device_copy(HR_DEVICE_CPU, o, HR_DEVICE_CUDA, memory,
                                (size_t)elements * sizeof *o, NULL),
                 HR_OK, "%s", hr_last_error());
    hr_error error;
    hr_error_measure(o, test->head_dim, reference, test->head_dim, (int64_t)TOKENS * HEADS,
                     test->head_dim, &error);
    for (int i = 0; i < 3; i++)
        free(values[i]);
    free(o);
    free(reference);
    hr_device_free(HR_DEVICE_CUDA, memory);
    return error.rel_l2;
}

static void check_case(const gpu_case *test)
{
    hr_recipe recipe;
    hr_attention_problem problem;
    cr_assert_eq(hr_recipe_parse(test->recipe, &recipe), HR_OK, "%s", hr_last_error());
    hr_attention_problem_init(&problem, HEADS, KV_HEADS, test->head_dim);
    problem.batch = BATCH;
    problem.cu_seqlens_q = problem.cu_seqlens_kv = cu_seqlens;
    problem.mask.causal = true;
    problem.rope = test->rope;
    static inputs in;
    make_inputs(test, &recipe, &in);
    const hr_device_pack_options options = {.problem = &problem,
                                            .recipe = &recipe,
                                            .scales = &in.scales,
                                            .q_positions = in.positions,
                                            .k_positions = in.positions};
    hr_device_packer *packer;
    hr_packed_layer here, back;
    hr_plan *plan;
    memset(&here, 0, sizeof here);
    pack_here(&recipe, &problem, &in, &here);
    cr_assert_eq(hr_device_packer_create(&options, &packer), HR_OK, "%s", hr_last_error());
    cr_assert_eq(
        hr_plan_create(&problem, &recipe, &(hr_plan_options){.device = HR_DEVICE_CUDA}, &plan),
        HR_OK, "%s", hr_last_error());
    for (int run = 0; run < 2; run++) {
        cr_assert_eq(hr_device_packer_run(packer, &in.there[0], &in.there[1], &in.there[2]), HR_OK,
                     "%s", hr_last_error());
        cr_assert_eq(hr_device_packer_check(packer), HR_OK, "%s", hr_last_error());
        cr_assert_eq(hr_packed_layer_copy(hr_device_packer_layer(packer), HR_DEVICE_CPU, &back),
                     HR_OK);
        expect_same(test, "q", &here.q, &back.q);
        expect_same(test, "k", &here.k, &back.k);
        expect_same(test, "v", &here.v, &back.v);
        hr_packed_layer_free(&back);
    }
    const double error = run_error(test, &problem, plan, &here, hr_device_packer_layer(packer));
    printf("%s, head_dim %d: relative L2 %.3g\n", test->recipe, test->head_dim, error);
    cr_expect(error <= test->error, "%s, head_dim %d: relative L2 %g", test->recipe, test->head_dim,
              error);
    hr_plan_free(plan);
    hr_device_packer_free(packer);
    hr_packed_layer_free(&here);
    free_inputs(&in);
}

Test(device, packs_and_attends_as_the_host_does)
{
    if (!gpu_is_here()) return;
    const hr_rope none = {0}, half = {64, false, 10000}, pairs = {32, true, 10000};
    const gpu_case cases[] = {
        {"bf16", 64, none, 0.01},
        {"bf16", 128, half, 0.01},
        {"fp8", 64, pairs, 0.0625},
        {"fp8", 128, none, 0.0625},
        {"fp8", 256, half, 0.0625},
        {"int8", 64, none, 0.02},
        {"int8", 96, half, 0.02},
        {"int8", 128, none, 0.02},
        {"int8", 256, pairs, 0.02},
        {"fp8:qk.transform=hadamard", 128, half, 0.0625},
        {"int8:q.transform=hadamard,k.transform=mean+hadamard", 192, none, 0.02},
        {"int8-fp8:v.scale=static", 128, half, 0.0625},
        {"int8-fp8", 64, none, 0.0625},
        {"fp8:qkv.scale=dynamic", 128, half, 0.0625},
        {"fp8:qkv.granularity=block128", 128, half, 0.0625},
        {"fp8:q.granularity=block256,kv.granularity=block128", 256, none, 0.0625},
        {"int8:qkv.granularity=block128", 64, none, 0.03},
        {"int8-fp8:qk.granularity=head,qk.scale=dynamic,v.granularity=block128", 128, none, 0.0625},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_case(&cases[i]);
}
