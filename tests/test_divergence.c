/*
 * Divergence of attention weights against closed forms: two keys, one query, by hand.
 */
#include <criterion/criterion.h>
#include <math.h>

#include "divergence.h"
#include "test_random.h"

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

enum { QUERY_HEADS = 4, KV_HEADS = 2, HEAD_DIM = 24, TOKENS = 60, TOP_K = 4 };

/* The share of the TOP_K keys of greatest logit that both sides have among theirs. */
static double row_agreement(const double logits[2][TOKENS], int32_t count)
{
    int32_t both = 0;
    for (int32_t j = 0; j < count; j++) {
        int32_t greater[2] = {0, 0};
        for (int side = 0; side < 2; side++)
            for (int32_t i = 0; i < count; i++)
                greater[side] += logits[side][i] > logits[side][j];
        both += greater[0] < TOP_K && greater[1] < TOP_K;
    }
    return (double)both / (count < TOP_K ? count : TOP_K);
}

/* The divergence of one row that sees keys [0, count), by the formulas. */
static hr_divergence row_divergence(const float *q[2], const float *k[2], int32_t count)
{
    double logits[2][TOKENS], norm[2] = {0, 0}, kl = 0;
    for (int side = 0; side < 2; side++) {
        for (int32_t j = 0; j < count; j++) {
            double dot = 0;
            for (int c = 0; c < HEAD_DIM; c++)
                dot += (double)q[side][c] * (double)k[side][j * KV_HEADS * HEAD_DIM + c];
            logits[side][j] = 0.125 * dot;
            norm[side] += exp(logits[side][j]);
        }
    }
    for (int32_t j = 0; j < count; j++) {
        double p = exp(logits[0][j]) / norm[0];
        kl += p * (log(p) - (logits[1][j] - log(norm[1])));
    }
    return (hr_divergence){.kl = kl, .agree = row_agreement(logits, count)};
}

/* Lengths that fill neither a tile of keys nor a block of rows; the longer sequence comes first. */
Test(divergence, sequences_and_grouped_heads_match_the_formula)
{
    static const int32_t cu_seqlens[] = {0, 37, TOKENS};
    static float q[2][TOKENS * QUERY_HEADS * HEAD_DIM], k[2][TOKENS * KV_HEADS * HEAD_DIM];
    test_random random = {1};
    for (int side = 0; side < 2; side++) {
        random_gaussians(&random, q[side], TOKENS * QUERY_HEADS * HEAD_DIM);
        random_gaussians(&random, k[side], TOKENS * KV_HEADS * HEAD_DIM);
    }
    hr_attention_problem problem;
    hr_attention_problem_init(&problem, QUERY_HEADS, KV_HEADS, HEAD_DIM);
    problem.batch = 2;
    problem.cu_seqlens_q = problem.cu_seqlens_kv = cu_seqlens;
    problem.softmax_scale = 0.125f;
    problem.mask.causal = true;
    for (int32_t head = 0; head < QUERY_HEADS; head++) {
        hr_divergence sum = {0};
        cr_assert_eq(hr_divergence_add(&problem, head, q[0], k[0], q[1], k[1], TOP_K, &sum), HR_OK);
        hr_divergence expected = {0};
        for (int32_t t = 0; t < TOKENS; t++) {
            const int32_t start = t < cu_seqlens[1] ? 0 : cu_seqlens[1];
            const float *query[2], *keys[2];
            for (int side = 0; side < 2; side++) {
                query[side] = q[side] + (t * QUERY_HEADS + head) * HEAD_DIM;
                keys[side] = k[side] + (start * KV_HEADS + head / 2) * HEAD_DIM;
            }
            const hr_divergence row = row_divergence(query, keys, t - start + 1);
            expected.kl += row.kl;
            expected.agree += row.agree;
        }
        cr_assert_eq(sum.rows, TOKENS);
        cr_assert(fabs(sum.kl - expected.kl) <= 1e-11 * expected.kl,
                  "head %d: %.17g, expected %.17g", head, sum.kl, expected.kl);
        cr_assert(fabs(sum.agree - expected.agree) <= 1e-12 * TOKENS, "head %d: %g, expected %g",
                  head, sum.agree, expected.agree);
    }
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
