/*
 * Divergence of attention weights against closed forms: two keys, one query, by hand.
 */
#include <criterion/criterion.h>
#include <math.h>

#include "divergence.h"

static const int32_t one_query[2] = {0, 1}, two_keys[2] = {0, 2}, two_queries[2] = {0, 2};

static hr_attention_problem two_key_problem(void)
{
    hr_attention_problem problem;
    hr_attention_problem_init(&problem, 1, 1, 8);
    problem.batch = 1;
    problem.cu_seqlens_q = one_query;
    problem.cu_seqlens_kv = two_keys;
    problem.softmax_scale = 1;
    return problem;
}

/* Logits x and 0 come from q = (1, 0, ...) and keys (x, 0, ...), (0, ...). */
static void set_logit(float *k, float x)
{
    for (int c = 0; c < 16; c++)
        k[c] = 0;
    k[0] = x;
}

Test(divergence, equal_inputs_do_not_diverge)
{
    hr_attention_problem problem = two_key_problem();
    float q[8] = {1}, k[16];
    set_logit(k, 3);
    hr_divergence sum = {0};
    cr_assert_eq(hr_divergence_add(&problem, 0, q, k, q, k, 1, &sum), HR_OK);
    cr_assert_eq(sum.kl, 0);
    cr_assert_eq(sum.agree, 1);
    cr_assert_eq(sum.rows, 1);
}

Test(divergence, two_keys_match_the_closed_form)
{
    hr_attention_problem problem = two_key_problem();
    float q[8] = {1}, original[16], quantized[16];
    set_logit(original, 1);
    set_logit(quantized, -0.5f);
    double a = 1 / (1 + exp(-1.0)), b = 1 / (1 + exp(0.5));
    double kl = a * log(a / b) + (1 - a) * log((1 - a) / (1 - b));
    hr_divergence sum = {0};
    cr_assert_eq(hr_divergence_add(&problem, 0, q, original, q, quantized, 1, &sum), HR_OK);
    cr_assert(fabs(sum.kl - kl) <= 1e-15, "%.17g, expected %.17g", sum.kl, kl);
    cr_assert_eq(sum.agree, 0, "the strongest key changed");
}

Test(divergence, top_k_is_cut_to_the_visible_keys)
{
    hr_attention_problem problem = two_key_problem();
    float q[8] = {1}, original[16], quantized[16];
    set_logit(original, 1);
    set_logit(quantized, -0.5f);
    hr_divergence sum = {0};
    cr_assert_eq(hr_divergence_add(&problem, 0, q, original, q, quantized, 8, &sum), HR_OK);
    cr_assert_eq(sum.agree, 1, "both keys are among the top 2 of 2");
}

Test(divergence, masked_keys_do_not_count)
{
    hr_attention_problem problem = two_key_problem();
    problem.cu_seqlens_q = two_queries;
    problem.mask.causal = true;
    float q[16] = {1}, original[16], quantized[16];
    set_logit(original, 1);
    set_logit(quantized, -4);
    hr_divergence sum = {0};
    cr_assert_eq(hr_divergence_add(&problem, 0, q, original, q, quantized, 1, &sum), HR_OK);
    /* Row 0 sees one key, whatever its logit; row 1 is all zeros, so both logits are equal. */
    cr_assert_eq(sum.rows, 2);
    cr_assert_eq(sum.kl, 0);
    cr_assert_eq(sum.agree, 2);
}

Test(divergence, top_k_outside_its_range_is_refused)
{
    hr_attention_problem problem = two_key_problem();
    float q[8] = {1}, k[16] = {0};
    hr_divergence sum = {0};
    cr_assert_eq(hr_divergence_add(&problem, 0, q, k, q, k, 0, &sum), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_divergence_add(&problem, 0, q, k, q, k, 65, &sum), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_str_eq(hr_last_error(), "top_k is 65; it must be in 1..64");
}
