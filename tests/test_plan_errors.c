/*
 * What hr_plan_create and hr_plan_run refuse: each rule of headroom/attention.h, by the message
 * that names the field and the value.
 */
#include <math.h>

#include "plan_setup.h"

typedef struct rule {
    const char *message; /* a part of it */
    void (*breaks)(hr_attention_problem *problem);
} rule;

static int32_t lengths[3];
static const float bad_slopes[2] = {1, INFINITY}, bad_sinks[2] = {-INFINITY, INFINITY};
static const float nan_sinks[2] = {NAN, 0};
static const int32_t bad_pages[2] = {0, -3};

static void no_batch(hr_attention_problem *p)
{
    p->batch = 0;
}
static void no_heads(hr_attention_problem *p)
{
    p->num_heads = 0;
}
static void negative_kv_heads(hr_attention_problem *p)
{
    p->num_kv_heads = -1;
}
static void uneven_heads(hr_attention_problem *p)
{
    p->num_heads = 3;
}
static void no_head_dim(hr_attention_problem *p)
{
    p->head_dim = 0;
}
static void null_q_lengths(hr_attention_problem *p)
{
    p->cu_seqlens_q = NULL;
}
static void null_kv_lengths(hr_attention_problem *p)
{
    p->cu_seqlens_kv = NULL;
}
static void late_start(hr_attention_problem *p)
{
    lengths[0] = 2;
    lengths[1] = 9;
    p->cu_seqlens_q = lengths;
}
static void falling_lengths(hr_attention_problem *p)
{
    lengths[0] = 0;
    lengths[1] = -4;
    p->cu_seqlens_kv = lengths;
}
static void zero_scale(hr_attention_problem *p)
{
    p->softmax_scale = 0;
}
static void nan_scale(hr_attention_problem *p)
{
    p->softmax_scale = NAN;
}
static void infinite_scale(hr_attention_problem *p)
{
    p->softmax_scale = INFINITY;
}
static void negative_left(hr_attention_problem *p)
{
    p->mask.window_left = -2;
}
static void negative_right(hr_attention_problem *p)
{
    p->mask.window_right = -7;
}
static void causal_right(hr_attention_problem *p)
{
    p->mask.causal = true;
    p->mask.window_right = 1;
}
static void negative_cap(hr_attention_problem *p)
{
    p->softcap = -1;
}
static void nan_cap(hr_attention_problem *p)
{
    p->softcap = NAN;
}
static void infinite_slope(hr_attention_problem *p)
{
    p->alibi_slopes = bad_slopes;
}
static void infinite_sink(hr_attention_problem *p)
{
    p->sinks = bad_sinks;
}
static void nan_sink(hr_attention_problem *p)
{
    p->sinks = nan_sinks;
}
static void odd_rope(hr_attention_problem *p)
{
    p->rope = (hr_rope){7, false, 10000};
}
static void wide_rope(hr_attention_problem *p)
{
    p->rope = (hr_rope){18, false, 10000};
}
static void rope_without_base(hr_attention_problem *p)
{
    p->rope = (hr_rope){8, false, 0};
}
static void negative_page(hr_attention_problem *p)
{
    p->paging.page_size = -1;
}
static void no_block_table(hr_attention_problem *p)
{
    p->paging = (hr_paging){.page_size = 16, .max_pages = 1};
}
static void few_pages(hr_attention_problem *p)
{
    p->paging = (hr_paging){.page_size = 2, .max_pages = 2, .block_table = bad_pages};
}
static void bad_page(hr_attention_problem *p)
{
    p->paging = (hr_paging){.page_size = 4, .max_pages = 2, .block_table = bad_pages};
}

static const rule rules[] = {
    {"batch is 0", no_batch},
    {"num_heads is 0", no_heads},
    {"num_kv_heads is -1", negative_kv_heads},
    {"num_heads is 3, which num_kv_heads, 2, does not divide", uneven_heads},
    {"head_dim is 0", no_head_dim},
    {"cu_seqlens_q must not be NULL", null_q_lengths},
    {"cu_seqlens_kv must not be NULL", null_kv_lengths},
    {"cu_seqlens_q[0] is 2; it must be 0", late_start},
    {"cu_seqlens_kv[1] is -4", falling_lengths},
    {"softmax_scale is 0", zero_scale},
    {"softmax_scale is nan", nan_scale},
    {"softmax_scale is inf", infinite_scale},
    {"window_left is -2", negative_left},
    {"window_right is -7", negative_right},
    {"window_right is 1 with a causal mask", causal_right},
    {"softcap is -1", negative_cap},
    {"softcap is nan", nan_cap},
    {"alibi_slopes[1] is inf", infinite_slope},
    {"sinks[1] is inf", infinite_sink},
    {"sinks[0] is nan", nan_sink},
    {"rotary_dim is 7", odd_rope},
    {"rotary_dim is 18", wide_rope},
    {"rope theta is 0", rope_without_base},
    {"page_size is -1", negative_page},
    {"block_table must not be NULL", no_block_table},
    {"max_pages is 2, but sequence 0 has 6 tokens, which take 3 pages of 2", few_pages},
    {"block_table[0][1] is -3", bad_page},
};

static void expect_create_error(const hr_attention_problem *problem, const hr_recipe *recipe,
                                const hr_plan_options *options, hr_status status,
                                const char *message)
{
    hr_plan *plan = (hr_plan *)&status; /* anything but NULL */
    cr_expect_eq(hr_plan_create(problem, recipe, options, &plan), status, "%s", message);
    cr_expect_null(plan);
    cr_expect(strstr(hr_last_error(), message), "\"%s\" does not say \"%s\"", hr_last_error(),
              message);
}

Test(plan_errors, every_rule_of_the_problem)
{
    plan_setup *s = setup_make("bf16", 2, 2, 16, 6, 6);
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        hr_attention_problem broken = s->problem;
        rules[i].breaks(&broken);
        expect_create_error(&broken, &s->recipe, NULL, HR_ERROR_INVALID_ARGUMENT, rules[i].message);
    }
    setup_free(s);
}

Test(plan_errors, arguments_and_options)
{
    plan_setup *s = setup_make("bf16", 2, 2, 16, 6, 6);
    const hr_attention_problem *problem = &s->problem;
    expect_create_error(NULL, &s->recipe, NULL, HR_ERROR_INVALID_ARGUMENT, "problem must not");
    expect_create_error(problem, NULL, NULL, HR_ERROR_INVALID_ARGUMENT, "recipe");
    cr_expect_eq(hr_plan_create(problem, &s->recipe, NULL, NULL), HR_ERROR_INVALID_ARGUMENT);
    expect_create_error(problem, &s->recipe, &(hr_plan_options){.threads = -2},
                        HR_ERROR_INVALID_ARGUMENT, "threads is -2");
    expect_create_error(problem, &s->recipe, &(hr_plan_options){.stream = s},
                        HR_ERROR_INVALID_ARGUMENT, "stream must be NULL");
    expect_create_error(problem, &s->recipe, &(hr_plan_options){.kernel = "attention_fast"},
                        HR_ERROR_NOT_FOUND, "\"attention_fast\"");
    expect_create_error(problem, &s->recipe, &(hr_plan_options){.kernel = "attention_fp8_portable"},
                        HR_ERROR_UNSUPPORTED, "takes Q as e4m3, not bf16");
    /* A mask never adds what the machine or HEADROOM_ISA lacks. */
    setenv("HEADROOM_ISA", "portable", 1);
    expect_create_error(problem, &s->recipe,
                        &(hr_plan_options){.isa_mask = ~(1u << HR_ISA_PORTABLE)},
                        HR_ERROR_UNSUPPORTED, "no kernel runs recipe bf16");
    hr_plan *plan = setup_plan(s, &(hr_plan_options){.isa_mask = ~0u});
    cr_expect_eq(hr_plan_kernel(plan)->isa, HR_ISA_PORTABLE);
    hr_plan_free(plan);
    setenv("HEADROOM_ISA", "avx512,avx9", 1);
    expect_create_error(problem, &s->recipe, NULL, HR_ERROR_INVALID_ARGUMENT,
                        "HEADROOM_ISA: unknown instruction set \"avx9\"");
    unsetenv("HEADROOM_ISA");
    setenv("HEADROOM_LOG", "/nonexistent/log", 1);
    expect_create_error(problem, &s->recipe, NULL, HR_ERROR_IO, "/nonexistent/log");
    hr_plan_free(NULL);
    setup_free(s);
}

/* Layouts in tiles cannot be paged; elsewhere than on x86-64 there is no such row. */
Test(plan_errors, unsupported_features_name_kernel_and_feature)
{
    const int32_t pages[1] = {0};
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (row->features & HR_FEATURE_PAGED || strcmp(row->name, "attention_int8_avx512vnni"))
            continue;
        plan_setup *s = setup_make("int8", 2, 2, 16, 6, 6);
        s->problem.paging = (hr_paging){.page_size = 16, .max_pages = 1, .block_table = pages};
        expect_create_error(&s->problem, &s->recipe, &(hr_plan_options){.kernel = row->name},
                            HR_ERROR_UNSUPPORTED, "does not support paged");
        cr_expect(strstr(hr_last_error(), row->name));
        setup_free(s);
    }
}

static void expect_run_error(hr_plan *plan, const hr_packed_layer *operands, const hr_tensor *o,
                             const hr_tensor *lse, hr_status status, const char *message)
{
    cr_expect_eq(hr_plan_run(plan, operands, o, lse), status, "%s", message);
    cr_expect(strstr(hr_last_error(), message), "\"%s\" does not say \"%s\"", hr_last_error(),
              message);
}

Test(plan_errors, operands_of_another_problem)
{
    plan_setup *s = setup_make("int8", 4, 2, 16, 6, 9);
    hr_plan *plan = setup_plan(s, &(hr_plan_options){.kernel = "attention_int8_portable"});
    hr_layer_layouts layouts = hr_plan_layouts(plan);
    setup_pack(s, &layouts);
    setup_run(s, plan);

    int32_t other_lengths[2] = {0, 8};
    float *const scale = s->packed.k.scale, *const bias = s->packed.q.lse_bias;
#define EXPECT(change, restore, message)                                                           \
    change;                                                                                        \
    expect_run_error(plan, &s->packed, &s->o, &s->lse, HR_ERROR_MISMATCH, message);                \
    restore;                                                                                       \
    setup_run(s, plan)
    hr_packed *q = &s->packed.q, *k = &s->packed.k, *v = &s->packed.v;
    EXPECT(q->operand = HR_OPERAND_K, q->operand = HR_OPERAND_Q, "q was packed as another");
    EXPECT(q->batch = 2, q->batch = 1, "q was packed with batch 2; the plan has 1");
    EXPECT(q->num_heads = 2, q->num_heads = 4, "q was packed with num_heads 2; the plan has 4");
    EXPECT(v->num_heads = 4, v->num_heads = 2, "v was packed with num_heads 4; the plan has 2");
    EXPECT(k->head_dim = 8, k->head_dim = 16, "k was packed with head_dim 8");
    EXPECT(v->total_tokens = 8, v->total_tokens = 9, "v was packed with total_tokens 8");
    int32_t *own_lengths = k->cu_seqlens;
    EXPECT(k->cu_seqlens = other_lengths, k->cu_seqlens = own_lengths,
           "k was packed with cu_seqlens[1] 8; the plan has 9");
    EXPECT(v->recipe.dtype = HR_DTYPE_E4M3, v->recipe.dtype = HR_DTYPE_I8,
           "v was packed with dtype e4m3; the plan has i8");
    EXPECT(k->recipe.granularity = HR_GRANULARITY_HEAD,
           k->recipe.granularity = HR_GRANULARITY_TOKEN, "k was packed with granularity head");
    EXPECT(k->recipe.block = 4, k->recipe.block = 0, "k was packed with a block of 4");
    EXPECT(k->recipe.transform = 0, k->recipe.transform = HR_TRANSFORM_MEAN,
           "k was packed with no smoothing and no rotation; the plan has mean smoothing");
    EXPECT(k->layout = HR_LAYOUT_VNNI_K, k->layout = HR_LAYOUT_ROWS,
           "k was packed in layout vnni_k; the plan's kernel reads rows");
    EXPECT(k->scale_count = 3, k->scale_count = 18, "k has 3 scales; its recipe and shape need 18");
    EXPECT(k->scale = NULL, k->scale = scale, "k has 0 scales");
    size_t head_bytes = v->head_bytes;
    EXPECT(v->head_bytes = 64, v->head_bytes = head_bytes, "v has 64 bytes a head");
    EXPECT(q->hadamard_seed = 5, q->hadamard_seed = 0, "q was rotated with seed 5 and k with");
    EXPECT(q->lse_bias = NULL, q->lse_bias = bias, "q has no lse_bias");
#undef EXPECT
    void *codes = k->codes;
    k->codes = NULL;
    expect_run_error(plan, &s->packed, &s->o, NULL, HR_ERROR_INVALID_ARGUMENT, "it has no codes");
    k->codes = codes;
    hr_plan_free(plan);
    setup_free(s);
}

Test(plan_errors, outputs_of_another_shape)
{
    plan_setup *s = setup_make("bf16", 2, 2, 16, 6, 9);
    hr_plan *plan = setup_plan(s, NULL);
    hr_layer_layouts layouts = hr_plan_layouts(plan);
    setup_pack(s, &layouts);
    hr_tensor bad = s->o;
    bad.dtype = HR_DTYPE_F64;
    expect_run_error(plan, &s->packed, &bad, NULL, HR_ERROR_MISMATCH, "o is f64; it must be f32");
    bad = s->o;
    bad.ndim = 2;
    expect_run_error(plan, &s->packed, &bad, NULL, HR_ERROR_MISMATCH, "o has 2 dimensions");
    bad = s->o;
    bad.shape[0] = 5;
    expect_run_error(plan, &s->packed, &bad, NULL, HR_ERROR_MISMATCH, "o has shape[0] 5");
    bad = s->o;
    bad.stride[2] = 2;
    expect_run_error(plan, &s->packed, &bad, NULL, HR_ERROR_MISMATCH, "the last stride of o is 2");
    bad = s->o;
    bad.data = NULL;
    expect_run_error(plan, &s->packed, &bad, NULL, HR_ERROR_INVALID_ARGUMENT, "the data of o");
    bad = s->lse;
    bad.shape[1] = 3;
    expect_run_error(plan, &s->packed, &s->o, &bad, HR_ERROR_MISMATCH, "lse has shape[1] 3");
    expect_run_error(plan, &s->packed, NULL, NULL, HR_ERROR_INVALID_ARGUMENT, "must not be NULL");
    expect_run_error(plan, NULL, &s->o, NULL, HR_ERROR_INVALID_ARGUMENT, "must not be NULL");
    expect_run_error(NULL, &s->packed, &s->o, NULL, HR_ERROR_INVALID_ARGUMENT, "must not be NULL");
    hr_plan_free(plan);
    setup_free(s);
}
