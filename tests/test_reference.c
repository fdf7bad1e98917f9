/*
 * The FP64 oracle against closed forms and against the mask's definition written out: everything
 * else is measured against the oracle, so it is tested against nothing but mathematics.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check_fill.h"
#include "headroom/attention.h"

enum {
    MAX_TOKENS = 64,
    MAX_HEADS = 4,
    MAX_DIM = 8,
    MAX_ELEMENTS = MAX_TOKENS * MAX_HEADS * MAX_DIM
};

typedef struct setup {
    hr_attention_problem problem;
    int32_t cu_seqlens_q[4], cu_seqlens_kv[4];
    float q[MAX_ELEMENTS], k[MAX_ELEMENTS], v[MAX_ELEMENTS];
    double o[MAX_ELEMENTS], lse[MAX_TOKENS * MAX_HEADS];
} setup;

/* Gaussian data, one sequence, softmax_scale 1. */
static setup *make(int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t seqlen_q,
                   int32_t seqlen_kv)
{
    setup *s = calloc(1, sizeof *s);
    cr_assert_not_null(s);
    hr_attention_problem_init(&s->problem, heads, kv_heads, head_dim);
    s->problem.softmax_scale = 1;
    s->problem.cu_seqlens_q = s->cu_seqlens_q;
    s->problem.cu_seqlens_kv = s->cu_seqlens_kv;
    s->cu_seqlens_q[1] = seqlen_q;
    s->cu_seqlens_kv[1] = seqlen_kv;
    check_random random = {11};
    for (int i = 0; i < MAX_ELEMENTS; i++) {
        s->q[i] = (float)random_normal(&random);
        s->k[i] = (float)random_normal(&random);
        s->v[i] = (float)random_normal(&random);
    }
    return s;
}

static hr_tensor view(const setup *s, const float *data, bool kv)
{
    const hr_attention_problem *problem = &s->problem;
    const int32_t *cu_seqlens = kv ? s->cu_seqlens_kv : s->cu_seqlens_q;
    const int64_t shape[3] = {cu_seqlens[problem->batch],
                              kv ? problem->num_kv_heads : problem->num_heads, problem->head_dim};
    return hr_tensor_view(HR_DTYPE_F32, 3, shape, (float *)data);
}

static void run(setup *s)
{
    hr_tensor q = view(s, s->q, false), k = view(s, s->k, true), v = view(s, s->v, true);
    cr_assert_eq(hr_reference_attention(&s->problem, &q, &k, &v, s->o, s->lse), HR_OK, "%s",
                 hr_last_error());
}

static void expect_close(double value, double expected, const char *what)
{
    cr_expect(fabs(value - expected) <= 1e-13 * (1 + fabs(expected)), "%s: %.17g, not %.17g", what,
              value, expected);
}

static double dot(const float *a, const float *b, int32_t count)
{
    double sum = 0;
    for (int32_t i = 0; i < count; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

Test(reference, one_key_gives_its_value_and_logit)
{
    setup *s = make(1, 1, 8, 3, 1);
    s->problem.softmax_scale = 0.25f;
    run(s);
    for (int i = 0; i < 3; i++) {
        expect_close(s->lse[i], 0.25 * dot(s->q + i * 8, s->k, 8), "lse");
        for (int c = 0; c < 8; c++)
            cr_expect_eq(s->o[i * 8 + c], (double)s->v[c]);
    }
    free(s);
}

Test(reference, equal_logits_give_the_mean)
{
    setup *s = make(1, 1, 4, 1, 37);
    memset(s->q, 0, sizeof s->q);
    run(s);
    expect_close(s->lse[0], log(37), "lse");
    for (int c = 0; c < 4; c++) {
        double mean = 0;
        for (int j = 0; j < 37; j++)
            mean += (double)s->v[j * 4 + c] / 37;
        expect_close(s->o[c], mean, "o");
    }
    free(s);
}

Test(reference, equal_values_are_returned)
{
    setup *s = make(1, 1, 4, 5, 37);
    for (int i = 0; i < MAX_ELEMENTS; i++)
        s->v[i] = (float)(i % 4) - 1.5f;
    run(s);
    for (int i = 0; i < 5 * 4; i++)
        expect_close(s->o[i], i % 4 - 1.5, "o");
    free(s);
}

Test(reference, large_logits_do_not_overflow)
{
    setup *s = make(1, 1, 1, 1, 2);
    s->q[0] = 1000;
    s->k[0] = 900;
    s->k[1] = -900;
    run(s);
    expect_close(s->lse[0], 900000, "lse");
    expect_close(s->o[0], (double)s->v[0], "o");
    free(s);
}

Test(reference, softcap_is_a_scaled_tanh)
{
    setup *s = make(1, 1, 1, 1, 2);
    s->problem.softcap = 2;
    s->q[0] = 3;
    s->k[0] = 1;
    s->k[1] = -0.5f;
    run(s);
    double a = exp(2 * tanh(1.5)), b = exp(2 * tanh(-0.75));
    expect_close(s->lse[0], log(a + b), "lse");
    expect_close(s->o[0], (a * (double)s->v[0] + b * (double)s->v[1]) / (a + b), "o");
    free(s);
}

Test(reference, alibi_is_linear_in_distance)
{
    setup *s = make(2, 2, 1, 2, 3);
    const float slopes[2] = {0.5f, -0.25f};
    s->problem.alibi_slopes = slopes;
    memset(s->q, 0, sizeof s->q);
    run(s);
    for (int i = 0; i < 2; i++)
        for (int head = 0; head < 2; head++) {
            double sum = 0, o = 0;
            for (int j = 0; j < 3; j++) {
                double weight = exp(-(double)slopes[head] * abs(i + 1 - j)); /* d = 3 - 2 */
                sum += weight;
                o += weight * (double)s->v[j * 2 + head];
            }
            expect_close(s->lse[i * 2 + head], log(sum), "lse");
            expect_close(s->o[i * 2 + head], o / sum, "o");
        }
    free(s);
}

Test(reference, a_sink_joins_the_denominator_only)
{
    setup *s = make(2, 1, 1, 1, 1);
    const float sinks[2] = {0.7f, -INFINITY};
    s->problem.sinks = sinks;
    run(s);
    double weight = exp((double)s->q[0] * (double)s->k[0]), sink = exp((double)sinks[0]);
    expect_close(s->lse[0], log(weight + sink), "lse");
    expect_close(s->o[0], weight / (weight + sink) * (double)s->v[0], "o");
    expect_close(s->o[1], (double)s->v[0], "o without a sink");
    s->cu_seqlens_kv[1] = 0;
    run(s);
    expect_close(s->lse[0], (double)sinks[0], "lse without keys");
    cr_expect_eq(s->lse[1], -INFINITY);
    cr_expect_eq(s->o[0], 0);
    cr_expect_eq(s->o[1], 0);
    free(s);
}

/* The mask as headroom/attention.h words it. */
static bool visible(const hr_mask *mask, int64_t i, int64_t j, int64_t d)
{
    if (mask->causal && !(j <= i + d)) return false;
    if (j < mask->keep) return true;
    if (mask->window_left >= 0 && !(j >= i + d - mask->window_left)) return false;
    if (mask->window_right >= 0 && !(j <= i + d + mask->window_right)) return false;
    return true;
}

Test(reference, masks_are_what_the_header_says)
{
    const int32_t lengths[][2] = {{9, 9}, {5, 17}, {17, 5}, {1, 12}, {12, 1}};
    for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++)
        for (int causal = 0; causal < 2; causal++)
            for (int32_t left = -1; left < 9; left += 2)
                for (int32_t right = -1; right < (causal ? 1 : 9); right++) {
                    int32_t n = lengths[l][0], m = lengths[l][1];
                    setup *s = make(1, 1, 2, n, m);
                    s->problem.mask = (hr_mask){causal, left, right, l % 3 * 2, NULL};
                    run(s);
                    for (int32_t i = 0; i < n; i++) {
                        double sum = 0, o = 0;
                        for (int32_t j = 0; j < m; j++) {
                            if (!visible(&s->problem.mask, i, j, m - n)) continue;
                            double weight = exp(dot(s->q + i * 2, s->k + j * 2, 2));
                            sum += weight;
                            o += weight * (double)s->v[j * 2 + 1];
                        }
                        if (sum == 0) {
                            cr_expect_eq(s->lse[i], -INFINITY);
                            cr_expect_eq(s->o[i * 2 + 1], 0);
                            continue;
                        }
                        expect_close(s->lse[i], log(sum), "lse");
                        expect_close(s->o[i * 2 + 1], o / sum, "o");
                    }
                    free(s);
                }
}

Test(reference, query_heads_share_kv_heads_in_groups)
{
    setup *grouped = make(4, 2, 4, 6, 6), *single = make(1, 1, 4, 6, 6);
    run(grouped);
    for (int head = 0; head < 4; head++) {
        for (int t = 0; t < 6; t++) {
            memcpy(single->q + t * 4, grouped->q + (t * 4 + head) * 4, 4 * sizeof(float));
            memcpy(single->k + t * 4, grouped->k + (t * 2 + head / 2) * 4, 4 * sizeof(float));
            memcpy(single->v + t * 4, grouped->v + (t * 2 + head / 2) * 4, 4 * sizeof(float));
        }
        run(single);
        for (int t = 0; t < 6; t++) {
            cr_expect_eq(single->lse[t], grouped->lse[t * 4 + head]);
            cr_expect_arr_eq(single->o + t * 4, grouped->o + (t * 4 + head) * 4,
                             4 * sizeof(double));
        }
    }
    free(grouped);
    free(single);
}

Test(reference, sequences_do_not_see_each_other)
{
    setup *all = make(1, 1, 4, 0, 0), *one = make(1, 1, 4, 0, 0);
    const int32_t q[4] = {0, 3, 3, 10}, kv[4] = {0, 5, 9, 11};
    memcpy(all->cu_seqlens_q, q, sizeof q);
    memcpy(all->cu_seqlens_kv, kv, sizeof kv);
    all->problem.batch = 3;
    all->problem.mask.causal = one->problem.mask.causal = true;
    run(all);
    for (int b = 0; b < 3; b++) {
        one->cu_seqlens_q[1] = q[b + 1] - q[b];
        one->cu_seqlens_kv[1] = kv[b + 1] - kv[b];
        memcpy(one->q, all->q + q[b] * 4, sizeof one->q - (size_t)q[b] * 16);
        memcpy(one->k, all->k + kv[b] * 4, sizeof one->k - (size_t)kv[b] * 16);
        memcpy(one->v, all->v + kv[b] * 4, sizeof one->v - (size_t)kv[b] * 16);
        run(one);
        size_t rows = (size_t)(q[b + 1] - q[b]);
        cr_expect_arr_eq(one->o, all->o + q[b] * 4, rows * 4 * sizeof(double));
        cr_expect_arr_eq(one->lse, all->lse + q[b], rows * sizeof(double));
    }
    free(all);
    free(one);
}

/* With q = k = (1, 0, 0, 0, ..) the logit is the cosine of the angle between the positions. */
Test(reference, rope_turns_logits_into_functions_of_distance)
{
    for (int interleaved = 0; interleaved < 2; interleaved++)
        for (int pair = 0; pair < 2; pair++) {
            setup *s = make(1, 1, 6, 3, 5);
            s->problem.rope = (hr_rope){4, interleaved, 100};
            memset(s->q, 0, sizeof s->q);
            memset(s->k, 0, sizeof s->k);
            int channel = interleaved ? 2 * pair : pair;
            for (int t = 0; t < 5; t++)
                s->q[t * 6 + channel] = s->k[t * 6 + channel] = 1;
            run(s);
            for (int i = 0; i < 3; i++) {
                double sum = 0;
                for (int j = 0; j < 5; j++) /* d = 2; frequencies 1 and 100^(-1/2) */
                    sum += exp(cos((i + 2 - j) * (pair ? 0.1 : 1.0)));
                expect_close(s->lse[i], log(sum), "lse");
            }
            /* Channels from rotary_dim on stay as they are. */
            memset(s->q, 0, sizeof s->q);
            memset(s->k, 0, sizeof s->k);
            for (int t = 0; t < 5; t++)
                s->q[t * 6 + 5] = s->k[t * 6 + 5] = 1;
            run(s);
            expect_close(s->lse[0], 1 + log(5), "lse of unrotated channels");
            free(s);
        }
}

Test(reference, takes_any_float_dtype_and_strides)
{
    setup *s = make(1, 1, 2, 1, 2);
    const double q[2] = {1, 0.5};
    const uint16_t k[2][2] = {{0x3f80, 0x4000}, {0xbf80, 0x3f00}}; /* BF16 1, 2; -1, 0.5 */
    const uint16_t v[2][2] = {{0x3c00, 0x4200}, {0xbc00, 0x3800}}; /* F16 [channel][token] 1, 3.. */
    hr_tensor q_tensor = hr_tensor_view(HR_DTYPE_F64, 3, (int64_t[]){1, 1, 2}, (double *)q);
    hr_tensor k_tensor = hr_tensor_view(HR_DTYPE_BF16, 3, (int64_t[]){2, 1, 2}, (uint16_t *)k);
    hr_tensor v_tensor = hr_tensor_view(HR_DTYPE_F16, 3, (int64_t[]){2, 1, 2}, (uint16_t *)v);
    v_tensor.stride[0] = 1;
    v_tensor.stride[2] = 2;
    cr_assert_eq(hr_reference_attention(&s->problem, &q_tensor, &k_tensor, &v_tensor, s->o, NULL),
                 HR_OK, "%s", hr_last_error());
    double a = exp(2), b = exp(-0.75);
    expect_close(s->o[0], (a * 1 + b * 3) / (a + b), "o");
    expect_close(s->o[1], (a * -1 + b * 0.5) / (a + b), "o");
    free(s);
}

Test(reference, nan_reaches_the_rows_that_see_it)
{
    setup *s = make(1, 1, 2, 3, 3);
    s->problem.mask.causal = true;
    s->v[1 * 2 + 0] = NAN;
    run(s);
    cr_expect(!isnan(s->o[0]) && isnan(s->o[2]) && !isnan(s->o[3]) && isnan(s->o[4]));
    cr_expect(!isnan(s->lse[1]));
    s->k[2 * 2] = NAN;
    run(s);
    cr_expect(!isnan(s->lse[1]) && isnan(s->lse[2]) && isnan(s->o[5]));
    free(s);
}

static void expect_error(const setup *s, const hr_tensor *q, const hr_tensor *k, const hr_tensor *v,
                         hr_status status, const char *part)
{
    double o[MAX_ELEMENTS];
    cr_expect_eq(hr_reference_attention(&s->problem, q, k, v, o, NULL), status);
    cr_expect(strstr(hr_last_error(), part), "\"%s\" does not say \"%s\"", hr_last_error(), part);
}

Test(reference, rejects_what_it_cannot_answer)
{
    setup *s = make(2, 1, 4, 3, 5);
    const hr_tensor q = view(s, s->q, false), k = view(s, s->k, true), v = view(s, s->v, true);
    hr_tensor bad = q;
    bad.shape[1] = 3;
    expect_error(s, &bad, &k, &v, HR_ERROR_MISMATCH, "q has shape[1] 3; the problem has 2");
    bad = k;
    bad.shape[0] = 4;
    expect_error(s, &q, &bad, &v, HR_ERROR_MISMATCH, "k has shape[0] 4; the problem has 5");
    bad = v;
    bad.ndim = 2;
    expect_error(s, &q, &k, &bad, HR_ERROR_MISMATCH, "v has 2 dimensions");
    bad = v;
    bad.dtype = HR_DTYPE_I8;
    expect_error(s, &q, &k, &bad, HR_ERROR_UNSUPPORTED, "v is i8");
    bad = v;
    bad.data = NULL;
    expect_error(s, &q, &k, &bad, HR_ERROR_INVALID_ARGUMENT, "the data of v");
    expect_error(s, &q, NULL, &v, HR_ERROR_INVALID_ARGUMENT, "k must not be NULL");
    const int32_t pages[1] = {0};
    s->problem.paging = (hr_paging){.page_size = 8, .max_pages = 1, .block_table = pages};
    expect_error(s, &q, &k, &v, HR_ERROR_UNSUPPORTED, "does not support paged");
    free(s);
}
