/*
 * What hr_pack and hr_pack_layer refuse: the status, and that the message names the value.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "headroom/format.h"
#include "headroom/pack.h"

enum { TOKENS = 6, HEADS = 2, HEAD_DIM = 16, COUNT = TOKENS * HEADS * HEAD_DIM };

static float values[COUNT];
static const int32_t one_sequence[] = {0, TOKENS};

#define DYNAMIC(type, gran)                                                                        \
    {                                                                                              \
        .dtype = HR_DTYPE_##type, .granularity = HR_GRANULARITY_##gran, .dynamic = true            \
    }
#define STATIC(type, gran)                                                                         \
    {                                                                                              \
        .dtype = HR_DTYPE_##type, .granularity = HR_GRANULARITY_##gran                             \
    }

static hr_tensor input(void)
{
    for (int i = 0; i < COUNT; i++)
        values[i] = (float)(i % 13) - 6.0f;
    return hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){TOKENS, HEADS, HEAD_DIM}, values);
}

static hr_pack_options whole(void)
{
    return (hr_pack_options){.batch = 1, .cu_seqlens = one_sequence};
}

static void refuse(hr_status expected, const char *message, hr_operand operand,
                   hr_operand_recipe recipe, hr_tensor x, hr_pack_options options)
{
    hr_packed out;
    memset(&out, 0xff, sizeof out);
    hr_status status = hr_pack(operand, &recipe, &x, &options, &out);
    cr_assert_eq(status, expected, "%s, not %s: %s", hr_status_string(status),
                 hr_status_string(expected), hr_last_error());
    cr_assert(strstr(hr_last_error(), message), "no \"%s\" in: %s", message, hr_last_error());
    cr_assert_null(out.codes);
    cr_assert_null(out.scale);
    cr_assert_null(out.cu_seqlens);
}

Test(pack_errors, recipes_that_packing_does_not_have)
{
    static const struct {
        hr_operand operand;
        hr_operand_recipe recipe;
        hr_status status;
        const char *message;
    } cases[] = {
        {HR_OPERAND_K, STATIC(I8, TOKEN), HR_ERROR_UNSUPPORTED, "static scales per token"},
        {HR_OPERAND_K, STATIC(I8, BLOCK), HR_ERROR_INVALID_ARGUMENT, "blocks of 0 tokens"},
        {HR_OPERAND_K, STATIC(I8, HEAD), HR_ERROR_INVALID_ARGUMENT, "static scales per head"},
        {HR_OPERAND_V, STATIC(E4M3, CHANNEL), HR_ERROR_INVALID_ARGUMENT, "from a profile"},
        {HR_OPERAND_V, STATIC(U4, HEAD), HR_ERROR_UNSUPPORTED, "zero points"},
        {HR_OPERAND_V, DYNAMIC(I8, NONE), HR_ERROR_UNSUPPORTED, "needs scales"},
        {HR_OPERAND_V, DYNAMIC(BF16, TOKEN), HR_ERROR_UNSUPPORTED, "bf16"},
        {HR_OPERAND_V, DYNAMIC(U8, TOKEN), HR_ERROR_UNSUPPORTED, "u8"},
        {HR_OPERAND_V, DYNAMIC(I32, TOKEN), HR_ERROR_UNSUPPORTED, "i32"},
        {HR_OPERAND_V, DYNAMIC(I8, COUNT), HR_ERROR_INVALID_ARGUMENT, "granularity"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(cases[i].status, cases[i].message, cases[i].operand, cases[i].recipe, input(),
               whole());
    hr_operand_recipe group = DYNAMIC(I8, GROUP), smoothed = DYNAMIC(I8, TOKEN);
    group.block = 12;
    refuse(HR_ERROR_INVALID_ARGUMENT, "groups of 12", HR_OPERAND_K, group, input(), whole());
    group.dtype = HR_DTYPE_I4;
    group.block = 1;
    refuse(HR_ERROR_INVALID_ARGUMENT, "even", HR_OPERAND_K, group, input(), whole());
    smoothed.transform = HR_TRANSFORM_MEAN;
    refuse(HR_ERROR_UNSUPPORTED, "is for K", HR_OPERAND_Q, smoothed, input(), whole());
    smoothed.transform = HR_TRANSFORM_HADAMARD;
    refuse(HR_ERROR_UNSUPPORTED, "for Q and K", HR_OPERAND_V, smoothed, input(), whole());
    refuse(HR_ERROR_INVALID_ARGUMENT, "operand", (hr_operand)3, smoothed, input(), whole());
}

Test(pack_errors, layouts_of_other_operands)
{
    hr_operand_recipe recipe = DYNAMIC(I8, TOKEN);
    hr_pack_options options = whole();
    options.layout = HR_LAYOUT_VNNI_V;
    refuse(HR_ERROR_UNSUPPORTED, "K in i8", HR_OPERAND_K, recipe, input(), options);
    options.layout = HR_LAYOUT_VNNI_K;
    refuse(HR_ERROR_UNSUPPORTED, "vnni_k", HR_OPERAND_Q, recipe, input(), options);
    recipe.dtype = HR_DTYPE_C4;
    refuse(HR_ERROR_UNSUPPORTED, "c4", HR_OPERAND_K, recipe, input(), options);
}

Test(pack_errors, tensors_and_sequences)
{
    hr_operand_recipe recipe = DYNAMIC(I8, TOKEN);
    hr_tensor x = input();
    x.ndim = 2;
    refuse(HR_ERROR_INVALID_ARGUMENT, "2 dimensions", HR_OPERAND_K, recipe, x, whole());
    x = input();
    x.dtype = HR_DTYPE_I8;
    refuse(HR_ERROR_UNSUPPORTED, "dtype i8", HR_OPERAND_K, recipe, x, whole());
    x = input();
    x.data = NULL;
    refuse(HR_ERROR_INVALID_ARGUMENT, "no data", HR_OPERAND_K, recipe, x, whole());
    x = input();
    x.shape[2] = 12;
    refuse(HR_ERROR_UNSUPPORTED, "head_dim 12", HR_OPERAND_K, recipe, x, whole());
    x.shape[2] = 264;
    refuse(HR_ERROR_UNSUPPORTED, "head_dim 264", HR_OPERAND_K, recipe, x, whole());
    static const int32_t late[] = {1, 6}, falling[] = {0, 4, 3, 6}, short_[] = {0, 5};
    hr_pack_options options = whole();
    options.batch = 0;
    refuse(HR_ERROR_INVALID_ARGUMENT, "batch is 0", HR_OPERAND_K, recipe, input(), options);
    options.batch = 1;
    options.cu_seqlens = NULL;
    refuse(HR_ERROR_INVALID_ARGUMENT, "NULL", HR_OPERAND_K, recipe, input(), options);
    options.cu_seqlens = late;
    refuse(HR_ERROR_INVALID_ARGUMENT, "[0] is 1", HR_OPERAND_K, recipe, input(), options);
    options.cu_seqlens = short_;
    refuse(HR_ERROR_MISMATCH, "ends at 5", HR_OPERAND_K, recipe, input(), options);
    options.cu_seqlens = falling;
    options.batch = 3;
    refuse(HR_ERROR_INVALID_ARGUMENT, "from 4 to 3", HR_OPERAND_K, recipe, input(), options);
}

/* In every granularity, and for the first bad value of the lowest head. */
Test(pack_errors, values_that_are_not_finite_are_named)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int g = HR_GRANULARITY_TENSOR; g < HR_GRANULARITY_COUNT; g++) {
        for (int i = 0; i < 3; i++) {
            hr_tensor x = input();
            hr_operand_recipe recipe = {.dtype = HR_DTYPE_I4,
                                        .granularity = (hr_granularity)g,
                                        .block = 8,
                                        .dynamic = true};
            values[(4 * HEADS + 1) * HEAD_DIM + 9] = bad[i];
            values[(5 * HEADS + 1) * HEAD_DIM + 2] = bad[i];
            refuse(HR_ERROR_NUMERIC, "token 4, head 1, channel 9", HR_OPERAND_K, recipe, x,
                   whole());
        }
    }
    hr_operand_recipe plain = {.dtype = HR_DTYPE_BF16};
    hr_tensor x = input();
    values[0] = NAN;
    refuse(HR_ERROR_NUMERIC, "token 0, head 0, channel 0", HR_OPERAND_V, plain, x, whole());
}

Test(pack_errors, scales_and_means)
{
    hr_operand_recipe fixed = STATIC(E4M3, HEAD), recipe = DYNAMIC(I8, TOKEN);
    static const float bad[] = {0.0f, -1.0f, NAN, INFINITY, 1e-45f, 3e38f};
    for (int i = 0; i < 6; i++) {
        float scales[HEADS] = {1.0f, bad[i]};
        hr_pack_options options = whole();
        options.static_scale = scales;
        refuse(HR_ERROR_NUMERIC, "static scale 1 of k", HR_OPERAND_K, fixed, input(), options);
    }
    float numbers[HEADS * HEAD_DIM] = {1.0f};
    hr_pack_options options = whole();
    options.static_scale = numbers;
    refuse(HR_ERROR_INVALID_ARGUMENT, "takes none", HR_OPERAND_K, recipe, input(), options);
    options = whole();
    options.mean = numbers;
    refuse(HR_ERROR_INVALID_ARGUMENT, "does not smooth", HR_OPERAND_K, recipe, input(), options);
    numbers[HEAD_DIM + 3] = NAN;
    recipe.transform = HR_TRANSFORM_MEAN;
    refuse(HR_ERROR_NUMERIC, "head 1, channel 3", HR_OPERAND_K, recipe, input(), options);
    recipe.transform = 0;
    options = whole();
    options.k_mean = numbers;
    options.num_kv_heads = 2;
    refuse(HR_ERROR_NUMERIC, "k_mean of head 1", HR_OPERAND_Q, recipe, input(), options);
    refuse(HR_ERROR_INVALID_ARGUMENT, "for Q", HR_OPERAND_V, recipe, input(), options);
    options.num_kv_heads = 3;
    refuse(HR_ERROR_MISMATCH, "num_kv_heads 3", HR_OPERAND_Q, recipe, input(), options);
    options.num_kv_heads = 0;
    refuse(HR_ERROR_MISMATCH, "num_kv_heads 0", HR_OPERAND_Q, recipe, input(), options);
}

Test(pack_errors, null_arguments)
{
    hr_operand_recipe recipe = DYNAMIC(I8, TOKEN);
    hr_tensor x = input();
    hr_pack_options options = whole();
    hr_packed out;
    hr_packed_layer layer;
    float unpacked[1];
    cr_assert_eq(hr_pack(HR_OPERAND_K, NULL, &x, &options, &out), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_pack(HR_OPERAND_K, &recipe, NULL, &options, &out), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_pack(HR_OPERAND_K, &recipe, &x, NULL, &out), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_pack(HR_OPERAND_K, &recipe, &x, &options, NULL), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_unpack(&out, unpacked), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_pack_layer(NULL, NULL, &x, &x, &x, 1, one_sequence, one_sequence, NULL, &layer),
                 HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_packed_bytes(&out), 0);
    hr_packed_free(&out);
    hr_packed_free(NULL);
    hr_packed_layer_free(NULL);
}

Test(pack_errors, layers_whose_operands_do_not_fit)
{
    static float other[TOKENS * 3 * 24];
    hr_tensor x = input();
    hr_tensor heads = hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){TOKENS, 3, HEAD_DIM}, other);
    hr_tensor wide = hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){TOKENS, HEADS, 24}, other);
    hr_recipe recipe = *hr_recipe_preset(0);
    hr_layer_layouts rows = {HR_LAYOUT_ROWS, HR_LAYOUT_ROWS, HR_LAYOUT_ROWS};
    const hr_tensor *const cases[][3] = {
        {&x, &x, &heads}, {&x, &heads, &heads}, {&x, &wide, &wide}};
    hr_packed_layer layer;
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(hr_pack_layer(&recipe, &rows, cases[i][0], cases[i][1], cases[i][2], 1,
                                   one_sequence, one_sequence, NULL, &layer),
                     HR_ERROR_MISMATCH);
        cr_assert_null(layer.q.codes);
    }
    recipe.k.transform = HR_TRANSFORM_HADAMARD;
    cr_assert_eq(
        hr_pack_layer(&recipe, &rows, &x, &x, &x, 1, one_sequence, one_sequence, NULL, &layer),
        HR_ERROR_UNSUPPORTED);
    cr_assert(strstr(hr_last_error(), "only one of q and k"));
}
