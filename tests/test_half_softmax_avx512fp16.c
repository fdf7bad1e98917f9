/*
 * The FP16 softmax of attention_fp8_avx512fp16 on its own: the exponential over all distances; and
 * tasks whose factor FP16 does not hold in full, which give what the AVX-512 kernel gives.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "check_run.h"
#include "cpu/half_softmax_avx512fp16.h"
#include "isa.h"

static void need_fp16(void)
{
    if (!(hr_isa_mask() >> HR_ISA_AVX512FP16 & 1)) cr_skip("this machine has no AVX512-FP16");
}

static _Float16 half_from_bits(uint16_t bits)
{
    _Float16 value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The weight of one score among others that have none; the sum of eight is that weight then. */
static float weight(_Float16 score, _Float16 largest, _Float16 c)
{
    _Float16 scores[WEIGHT_KEYS * WEIGHT_STRIDE] __attribute__((aligned(64)));
    for (int i = 0; i < WEIGHT_KEYS * WEIGHT_STRIDE; i++)
        scores[i] = i / WEIGHT_STRIDE == 3 ? score : -(_Float16)INFINITY;
    const __m512h sum = half_weigh_keys(scores, _mm512_set1_ph(largest), _mm512_set1_ph(c),
                                        _mm512_set1_ph((_Float16)(HALF_EXPONENTS / (float)c)));
    const float p = (float)scores[3 * WEIGHT_STRIDE];
    cr_assert_eq((float)_mm512_cvtsh_h(sum), p);
    return p;
}

/* 2 u relative, and what the FP16 of small weights costs. */
Test(half_softmax, exponential_keeps_its_promise)
{
    need_fp16();
    const float factors[] = {0x1p-11f, 0.0037f, 0.11f, 1, 1.44f, 33, 0x1p12f};
    for (size_t f = 0; f < sizeof factors / sizeof factors[0]; f++) {
        const _Float16 c = (_Float16)factors[f];
        double worst = 0;
        for (uint16_t bits = 0; bits < 0x7c00; bits++) {
            const _Float16 score = half_from_bits(bits | 0x8000);
            const double exact = exp2((double)score * (double)c);
            const double error = fabs((double)weight(score, 0, c) - exact);
            const double excess = (error - 0x1p-24) / exact;
            if (!(excess <= worst)) worst = excess;
        }
        cr_expect(worst <= 2 * 0x1p-11, "factor %g: %g units", (double)factors[f], worst / 0x1p-11);
    }
}

Test(half_softmax, ends_of_the_exponential)
{
    need_fp16();
    const _Float16 least = -(_Float16)INFINITY;
    cr_expect_eq(weight(0, 0, 1), 1);
    cr_expect_eq(weight(-30000, -30000, 4), 1);
    cr_expect_eq(weight(-32000, 32000, 0.001f), weight(-64000, 0, 0.001f));
    cr_expect_eq(weight(least, 5, 1), 0);
    cr_expect_eq(weight(least, 5, 0x1p-11f), 0, "the smallest factor, whose limit is largest");
    cr_expect_eq(weight(least, least, 1), 0, "a row that sees no key of the tile");
}

/* Smaller than 2^-11 or larger than 2^12, whichever the factor becomes. */
Test(half_softmax, extreme_factors_go_to_the_avx512_kernel)
{
    need_fp16();
    const float scales[] = {1e-9f, 1e9f};
    const char *const names[2] = {"attention_fp8_avx512", "attention_fp8_avx512fp16"};
    for (size_t i = 0; i < 2; i++) {
        check_case test = {.shape = {.num_heads = 1, .num_kv_heads = 1, .head_dim = 64, .batch = 1},
                           .fill = FILL_GAUSSIAN};
        test.shape.cu_seqlens_q[1] = 500;
        test.shape.cu_seqlens_kv[1] = 300;
        cr_assert_eq(hr_recipe_parse("fp8:qkv.scale=dynamic", &test.recipe), HR_OK, "%s",
                     hr_last_error());
        make_case(&test);
        test.problem.softmax_scale = scales[i];
        hr_packed_layer packed;
        pack_case(&test, &(hr_layer_layouts){0}, &packed);
        guarded_output output[2];
        for (int k = 0; k < 2; k++) {
            hr_plan *plan;
            hr_plan_options options = {.kernel = names[k], .threads = 1};
            cr_assert_eq(hr_plan_create(&test.problem, &test.recipe, &options, &plan), HR_OK, "%s",
                         hr_last_error());
            output[k] = make_output(&test.shape);
            cr_assert_eq(hr_plan_run(plan, &packed, &output[k].o, &output[k].lse), HR_OK, "%s",
                         hr_last_error());
            hr_plan_free(plan);
        }
        cr_expect_arr_eq(output[0].memory, output[1].memory, output[0].count * sizeof(float),
                         "softmax_scale %g", (double)scales[i]);
        free(output[0].memory);
        free(output[1].memory);
        hr_packed_layer_free(&packed);
        free_case(&test);
    }
}
