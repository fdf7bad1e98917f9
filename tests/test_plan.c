/*
 * Plans at work: the same bits whatever the threads and whoever calls, rows and sequences without
 * keys, counts of work, very long sequences and very large logits.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <omp.h>
#include <pthread.h>

#include "plan_setup.h"

static bool runnable(const hr_kernel_info *row)
{
    return hr_isa_mask() >> row->isa & 1;
}

/* A causal problem with enough tasks to spread, in the recipe of a row; the row's own plan. */
static plan_setup *make_for(const hr_kernel_info *row, int32_t threads, hr_plan **plan)
{
    const int32_t queries = row->max_seqlen_q ? row->max_seqlen_q : 301;
    plan_setup *s = setup_make("bf16", 4, 2, head_dim_for(row, 40), queries, 301);
    recipe_for(row, &s->recipe);
    s->problem.mask.causal = true;
    *plan = setup_plan(s, &(hr_plan_options){.kernel = row->name, .threads = threads});
    hr_layer_layouts layouts = hr_plan_layouts(*plan);
    setup_pack(s, &layouts);
    return s;
}

Test(plan, results_do_not_depend_on_threads)
{
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (!runnable(row)) continue;
        hr_plan *plan;
        plan_setup *one = make_for(row, 1, &plan);
        setup_run(one, plan);
        hr_plan_free(plan);
        for (int threads = 2; threads <= 5; threads++) {
            plan_setup *many = make_for(row, threads, &plan);
            for (int repeat = 0; repeat < 2; repeat++) {
                memset(many->o.data, 0xff, o_bytes(many));
                memset(many->lse.data, 0xff, lse_bytes(many));
                setup_run(many, plan);
                cr_expect_arr_eq(many->o.data, one->o.data, o_bytes(one), "%s", row->name);
                cr_expect_arr_eq(many->lse.data, one->lse.data, lse_bytes(one), "%s", row->name);
            }
            hr_plan_free(plan);
            setup_free(many);
        }
        setup_free(one);
    }
}

/* Best row this machine runs for the preset. */
static const hr_kernel_info *best_row(const char *recipe)
{
    plan_setup *s = setup_make(recipe, 2, 2, 16, 17, 1);
    hr_plan *plan = setup_plan(s, NULL);
    const hr_kernel_info *row = hr_plan_kernel(plan);
    hr_plan_free(plan);
    setup_free(s);
    return row;
}

Test(plan, runs_inside_a_parallel_region_and_on_other_threads)
{
    const hr_kernel_info *row = best_row("bf16");
    hr_plan *plan;
    plan_setup *alone = make_for(row, 2, &plan);
    setup_run(alone, plan);
    hr_plan_free(plan);

    enum { CALLERS = 3 };
    plan_setup *setups[CALLERS];
    hr_plan *plans[CALLERS];
    for (int i = 0; i < CALLERS; i++)
        setups[i] = make_for(row, 2, &plans[i]);
    omp_set_max_active_levels(2); /* a nested team would be possible, and must not be made */
    hr_status status[CALLERS];
#pragma omp parallel for num_threads(CALLERS)
    for (int i = 0; i < CALLERS; i++)
        status[i] = hr_plan_run(plans[i], &setups[i]->packed, &setups[i]->o, &setups[i]->lse);
    for (int i = 0; i < CALLERS; i++) {
        cr_expect_eq(status[i], HR_OK);
        cr_expect_arr_eq(setups[i]->o.data, alone->o.data, o_bytes(alone));
        hr_plan_free(plans[i]);
        setup_free(setups[i]);
    }
    setup_free(alone);
}

static void *run_in_thread(void *argument)
{
    const hr_kernel_info *row = best_row("bf16");
    hr_plan *plan;
    plan_setup *s = make_for(row, 1, &plan);
    setup_run(s, plan);
    memcpy(argument, s->o.data, o_bytes(s));
    hr_plan_free(plan);
    setup_free(s);
    return NULL;
}

Test(plan, plans_of_different_threads_do_not_meet)
{
    enum { THREADS = 3, BYTES = 301 * 4 * 40 * (int)sizeof(float) };
    char *results = malloc((size_t)THREADS * BYTES);
    cr_assert_not_null(results);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, run_in_thread, results + i * BYTES), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 1; i < THREADS; i++)
        cr_expect_arr_eq(results + i * BYTES, results, BYTES);
    free(results);
}

Test(plan, arrays_of_the_problem_are_copied)
{
    plan_setup *s = setup_make("bf16", 2, 1, 16, 7, 7);
    float sinks[2] = {1, 2}, slopes[2] = {0.5f, 0.25f};
    s->problem.sinks = sinks;
    s->problem.alibi_slopes = slopes;
    hr_plan *plan = setup_plan(s, NULL);
    hr_layer_layouts layouts = hr_plan_layouts(plan);
    setup_pack(s, &layouts);
    setup_run(s, plan);
    float first[7 * 2 * 16];
    memcpy(first, s->o.data, sizeof first);
    sinks[0] = sinks[1] = slopes[0] = slopes[1] = 100;
    s->cu_seqlens_q[1] = s->cu_seqlens_kv[1] = 3;
    setup_run(s, plan);
    cr_expect_arr_eq(first, s->o.data, sizeof first);
    hr_plan_free(plan);
    setup_free(s);
}

/* With a causal mask and more queries than keys, the first rows see nothing. */
Test(plan, rows_without_keys_are_zero_or_their_sink)
{
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (!runnable(row)) continue;
        for (int sinks = 0; sinks < 2; sinks++) {
            const float sink[2] = {3, -INFINITY};
            const int32_t queries = row->max_seqlen_q ? row->max_seqlen_q : 300;
            const int32_t keys = row->max_seqlen_q ? 5 : 40;
            const int32_t head_dim = head_dim_for(row, 24);
            plan_setup *s = setup_make("bf16", 2, 2, head_dim, queries, keys);
            recipe_for(row, &s->recipe);
            s->problem.mask.causal = true;
            s->problem.sinks = sinks ? sink : NULL;
            hr_plan *plan = setup_plan(s, &(hr_plan_options){.kernel = row->name});
            hr_layer_layouts layouts = hr_plan_layouts(plan);
            setup_pack(s, &layouts);
            memset(s->o.data, 0xff, o_bytes(s));
            setup_run(s, plan);
            const float *o = s->o.data, *lse = s->lse.data;
            for (int t = 0; t < queries; t++)
                for (int head = 0; head < 2; head++) {
                    bool empty = t < queries - keys;
                    float expected = sinks ? sink[head] : -INFINITY, got = lse[t * 2 + head];
                    if (empty)
                        cr_expect(got == expected || fabsf(got - expected) < 1e-6f, "%s: lse %g",
                                  row->name, (double)got);
                    else
                        cr_expect(isfinite(got));
                    for (int c = 0; c < head_dim && empty; c++)
                        cr_expect_eq(o[(t * 2 + head) * head_dim + c], 0);
                }
            hr_plan_free(plan);
            setup_free(s);
        }
    }
}

Test(plan, nothing_to_do_is_fine)
{
    const int32_t lengths[][2] = {{0, 0}, {0, 5}, {5, 0}};
    for (int i = 0; i < 3; i++) {
        plan_setup *s = setup_make("bf16", 2, 1, 16, lengths[i][0], lengths[i][1]);
        hr_plan *plan = setup_plan(s, NULL);
        hr_layer_layouts layouts = hr_plan_layouts(plan);
        setup_pack(s, &layouts);
        memset(s->lse.data, 0xff, lse_bytes(s));
        setup_run(s, plan);
        for (int t = 0; t < lengths[i][0] * 2; t++)
            cr_expect_eq(((float *)s->lse.data)[t], -INFINITY);
        cr_expect_eq(hr_plan_flops(plan), 0);
        cr_assert_eq(hr_plan_run(plan, &s->packed, &s->o, NULL), HR_OK, "%s", hr_last_error());
        hr_plan_free(plan);
        setup_free(s);
    }
}

static double count_pairs(const plan_setup *s)
{
    const hr_mask *mask = &s->problem.mask;
    double pairs = 0;
    for (int32_t b = 0; b < s->problem.batch; b++) {
        int32_t n = s->cu_seqlens_q[b + 1] - s->cu_seqlens_q[b];
        int32_t m = s->cu_seqlens_kv[b + 1] - s->cu_seqlens_kv[b];
        for (int32_t row = 0; row < n; row++)
            for (int32_t j = 0; j < m; j++) {
                int32_t i = row + m - n;
                const bool window = (mask->window_left < 0 || j >= i - mask->window_left) &&
                                    (mask->window_right < 0 || j <= i + mask->window_right);
                pairs += (!mask->causal || j <= i) && (window || j < mask->keep);
            }
    }
    return pairs;
}

Test(plan, flops_count_what_the_mask_leaves)
{
    const hr_mask masks[] = {{false, -1, -1, 0, NULL}, {true, -1, -1, 7, NULL},
                             {true, 9, -1, 0, NULL},   {false, 4, 11, 0, NULL},
                             {false, -1, 3, 0, NULL},  {false, 0, 0, 0, NULL},
                             {true, 9, -1, 5, NULL},   {false, 4, 2, 12, NULL}};
    for (size_t i = 0; i < sizeof masks / sizeof masks[0]; i++) {
        plan_setup *s = calloc(1, sizeof *s);
        cr_assert_not_null(s);
        const int32_t q[4] = {0, 30, 37, 60}, kv[4] = {0, 30, 47, 49};
        memcpy(s->cu_seqlens_q, q, sizeof q);
        memcpy(s->cu_seqlens_kv, kv, sizeof kv);
        setup_fill(s, "bf16", 3, 6, 2, 24);
        s->problem.mask = masks[i];
        hr_plan *plan = setup_plan(s, NULL);
        cr_expect_eq(hr_plan_flops(plan), 4.0 * 24 * 6 * count_pairs(s));
        hr_plan_free(plan);
        setup_free(s);
    }
}

/* Sums over 100,000 equal keys: O is the value, LSE is ln 100,000. */
Test(plan, long_sequences_do_not_overflow)
{
    enum { KEYS = 100000 };
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (!runnable(row)) continue;
        const int32_t head_dim = head_dim_for(row, 8);
        plan_setup *s = setup_make("bf16", 1, 1, head_dim, 2, KEYS);
        recipe_for(row, &s->recipe);
        memset(s->q.data, 0, (size_t)(2 * head_dim) * sizeof(float));
        for (int j = 0; j < KEYS * head_dim; j++)
            ((float *)s->v.data)[j] = -2;
        hr_plan *plan = setup_plan(s, &(hr_plan_options){.kernel = row->name});
        hr_layer_layouts layouts = hr_plan_layouts(plan);
        setup_pack(s, &layouts);
        setup_run(s, plan);
        float *values = malloc((size_t)(KEYS * head_dim) * sizeof *values);
        cr_assert_not_null(values);
        cr_assert_eq(hr_unpack(&s->packed.v, values), HR_OK, "%s", hr_last_error());
        /*
         * u per key in the running sums, in the worst case; far less when errors cancel. Sums of
         * 128 keys in FP16 have u = 2^-11 and are off by half of it times 128, for equal terms.
         * The integer kernels round logits to 1/1024 octave and weights to .29%.
         */
        const float o_tolerance = row->isa == HR_ISA_AVX512FP16 ? 64 * 0x1p-11f : 1e-4f;
        const bool integer = row->p_dtype == HR_DTYPE_U8 || row->p_dtype == HR_DTYPE_I16;
        const double lse_tolerance = integer ? 3.4e-3 : 1e-4;
        for (int c = 0; c < 2 * head_dim; c++)
            cr_expect(fabsf(((float *)s->o.data)[c] / values[c % head_dim] - 1) <= o_tolerance,
                      "%s: %g", row->name, (double)((float *)s->o.data)[c]);
        cr_expect(fabs((double)((float *)s->lse.data)[0] - log(KEYS)) <= lse_tolerance, "%s: %g",
                  row->name, (double)((float *)s->lse.data)[0]);
        free(values);
        hr_plan_free(plan);
        setup_free(s);
    }
}

/* Logits of thousands: softmax picks the largest, in the first tile, the last, or between. */
Test(plan, huge_logits_pick_one_key)
{
    enum { KEYS = 700 };
    const int winners[] = {0, 255, 256, 431, 699};
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (!runnable(row)) continue;
        for (size_t w = 0; w < sizeof winners / sizeof winners[0]; w++) {
            const int32_t head_dim = head_dim_for(row, 8);
            plan_setup *s = setup_make("bf16", 1, 1, head_dim, 3, KEYS);
            recipe_for(row, &s->recipe);
            float *q = s->q.data, *k = s->k.data, *v = s->v.data;
            for (int c = 0; c < 3 * head_dim; c++)
                q[c] = 64;
            for (int j = 0; j < KEYS; j++)
                for (int c = 0; c < head_dim; c++) {
                    k[j * head_dim + c] = j == winners[w] ? 64 : -64;
                    v[j * head_dim + c] = j == winners[w] ? 2 : -1;
                }
            hr_plan *plan = setup_plan(s, &(hr_plan_options){.kernel = row->name});
            hr_layer_layouts layouts = hr_plan_layouts(plan);
            setup_pack(s, &layouts);
            setup_run(s, plan);
            float lse = ((float *)s->lse.data)[0], expected = 64 * 64 * sqrtf((float)head_dim);
            for (int c = 0; c < 3 * head_dim; c++)
                cr_expect(fabsf(((float *)s->o.data)[c] - 2) <= 1e-5f, "%s, key %d: %g", row->name,
                          winners[w], (double)((float *)s->o.data)[c]);
            cr_expect(fabsf(lse / expected - 1) <= 1e-2f, "%s: lse %g", row->name, (double)lse);
            hr_plan_free(plan);
            setup_free(s);
        }
    }
}
