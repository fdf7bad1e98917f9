/*
 * Choosing a kernel: a pure function of the query and the ISA mask, so made-up machines can be
 * tested here; detection and its limit by HEADROOM_ISA; plans at every level this machine has; the
 * log of a choice.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dispatch.h"
#include "isa.h"
#include "plan_setup.h"

static const uint32_t every_isa = (1u << HR_ISA_COUNT) - 1;
static const uint32_t portable_only = 1u << HR_ISA_PORTABLE;

static hr_kernel_query query_for(const char *recipe, int32_t head_dim, uint32_t features)
{
    hr_kernel_query query = {.head_dim = head_dim, .features = features};
    cr_assert_eq(hr_recipe_parse(recipe, &query.recipe), HR_OK, "%s", hr_last_error());
    return query;
}

/* An instruction set of another architecture: no row of this build is for it. */
static hr_isa foreign_isa(void)
{
    for (int isa = 0; isa < HR_ISA_COUNT; isa++) {
        bool used = false;
        for (int i = 0; i < hr_kernel_count(); i++)
            used = used || hr_kernel_at(i)->isa == (hr_isa)isa;
        if (!used) return (hr_isa)isa;
    }
    cr_assert_fail("every instruction set has a row in this build");
    return HR_ISA_PORTABLE;
}

static void expect_failure(const hr_kernel_query *query, uint32_t mask, hr_status status,
                           const char *part)
{
    const hr_kernel_info *info = hr_kernel_at(0);
    cr_assert_eq(hr_kernel_find(query, mask, &info), status);
    cr_assert_null(info);
    cr_assert(strstr(hr_last_error(), part), "\"%s\" does not say \"%s\"", hr_last_error(), part);
}

Test(dispatch, portable_serves_bf16_on_any_machine)
{
    hr_kernel_query query = query_for("bf16", 64, HR_FEATURE_CAUSAL | HR_FEATURE_GQA);
    const hr_kernel_info *info;
    cr_assert_eq(hr_kernel_find(&query, portable_only, &info), HR_OK, "%s", hr_last_error());
    cr_assert_str_eq(info->name, "attention_bf16_portable");
}

Test(dispatch, first_row_in_the_mask_wins)
{
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        hr_kernel_query query = {.head_dim = row->head_dim_multiple,
                                 .seqlen_q = row->max_seqlen_q,
                                 .features = row->features,
                                 .k_layout = row->k_layout,
                                 .v_layout = row->v_layout};
        query.recipe.q.dtype = row->q_dtype;
        query.recipe.k.dtype = row->k_dtype;
        query.recipe.v.dtype = row->v_dtype;
        query.recipe.p.dtype = row->p_dtype;
        query.recipe.q.granularity = (hr_granularity)__builtin_ctz(row->q_granularities);
        query.recipe.k.granularity = (hr_granularity)__builtin_ctz(row->k_granularities);
        query.recipe.v.granularity = (hr_granularity)__builtin_ctz(row->v_granularities);
        const hr_kernel_info *found;
        cr_assert_eq(hr_kernel_find(&query, 1u << row->isa, &found), HR_OK, "%s", hr_last_error());
        cr_assert_eq(found, row, "%s found instead of %s", found->name, row->name);
        query.name = row->name;
        cr_assert_eq(hr_kernel_find(&query, every_isa, &found), HR_OK, "%s", hr_last_error());
        cr_assert_eq(found, row);
    }
}

Test(dispatch, errors_name_the_closest_kernel_and_what_it_lacks)
{
    hr_kernel_query query = query_for("bf16", 64, 1u << HR_FEATURE_COUNT);
    expect_failure(&query, portable_only, HR_ERROR_UNSUPPORTED, "an unknown feature bit");
    query = query_for("bf16", 20, 0);
    expect_failure(&query, portable_only, HR_ERROR_UNSUPPORTED, "multiple of 8 up to 256, not 20");
    query = query_for("bf16", 264, 0);
    expect_failure(&query, portable_only, HR_ERROR_UNSUPPORTED, "not 264");
    query = query_for("bf16", 64, 0);
    const hr_isa foreign = foreign_isa();
    char usable[64];
    snprintf(usable, sizeof usable, "; usable instruction sets: %s", hr_isa_name(foreign));
    expect_failure(&query, 1u << foreign, HR_ERROR_UNSUPPORTED, usable);
    query.recipe.v.dtype = HR_DTYPE_I64;
    expect_failure(&query, every_isa, HR_ERROR_UNSUPPORTED, "takes V as bf16, not i64");
    query = query_for("bf16", 64, 0);
    query.recipe.k.granularity = HR_GRANULARITY_GROUP;
    expect_failure(&query, every_isa, HR_ERROR_UNSUPPORTED, "does not take K scales per group");
}

Test(dispatch, a_named_kernel_is_found_or_explained)
{
    hr_kernel_query query = query_for("bf16", 64, 1u << HR_FEATURE_COUNT);
    query.name = "attention_bf16_portable";
    expect_failure(&query, every_isa, HR_ERROR_UNSUPPORTED, "an unknown feature bit");
    query.name = "attention_bf17_portable";
    expect_failure(&query, every_isa, HR_ERROR_NOT_FOUND, "those that run recipe bf16 here: none");
    query.features = 0;
    expect_failure(&query, portable_only, HR_ERROR_NOT_FOUND,
                   "those that run recipe bf16 here: attention_bf16_portable");
}

static uint32_t features_of(const hr_attention_problem *problem)
{
    hr_kernel_query query;
    cr_assert_eq(hr_kernel_query_from(problem, hr_recipe_preset(0), &query), HR_OK, "%s",
                 hr_last_error());
    return query.features;
}

Test(dispatch, a_query_has_what_the_problem_asks_for)
{
    static const int32_t even[] = {0, 5, 10}, uneven[] = {0, 4, 10}, none[] = {0, 0, 0};
    const float per_head[2] = {0.5f, 0.25f};
    hr_attention_problem plain;
    hr_attention_problem_init(&plain, 2, 2, 32);
    plain.batch = 2;
    plain.cu_seqlens_q = plain.cu_seqlens_kv = even;
    cr_expect_eq(features_of(&plain), 0);
    hr_attention_problem problem = plain;
    problem.mask.causal = true;
    cr_expect_eq(features_of(&problem), HR_FEATURE_CAUSAL);
    problem.mask.window_right = 0; /* as causal */
    cr_expect_eq(features_of(&problem), HR_FEATURE_CAUSAL);
    problem = plain;
    problem.mask.window_left = 0; /* a window of one key's reach is one */
    cr_expect_eq(features_of(&problem), HR_FEATURE_WINDOW);
    problem = plain;
    problem.mask.window_right = 0;
    cr_expect_eq(features_of(&problem), HR_FEATURE_WINDOW);
    problem = plain;
    problem.cu_seqlens_q = uneven;
    cr_expect_eq(features_of(&problem), HR_FEATURE_VARLEN);
    problem = plain;
    problem.cu_seqlens_kv = none; /* equal, but a kernel must be ready for no keys */
    cr_expect_eq(features_of(&problem), HR_FEATURE_VARLEN);
    problem = plain;
    problem.num_kv_heads = 1;
    cr_expect_eq(features_of(&problem), HR_FEATURE_GQA);
    problem = plain;
    problem.softcap = 30;
    cr_expect_eq(features_of(&problem), HR_FEATURE_SOFTCAP);
    problem = plain;
    problem.alibi_slopes = per_head;
    cr_expect_eq(features_of(&problem), HR_FEATURE_ALIBI);
    problem = plain;
    problem.sinks = per_head;
    cr_expect_eq(features_of(&problem), HR_FEATURE_SINKS);
    problem = plain;
    problem.rope = (hr_rope){.rotary_dim = 16, .theta = 10000};
    cr_expect_eq(features_of(&problem), HR_FEATURE_ROPE);
}

Test(dispatch, decode_kernels_take_short_queries_only)
{
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (row->max_seqlen_q == 0) continue;
        /* Rows for caches are told apart by the layouts that they read. */
        hr_kernel_query query = {.head_dim = 64,
                                 .features = row->features & HR_FEATURE_PAGED,
                                 .k_layout = row->k_layout,
                                 .v_layout = row->v_layout,
                                 .name = row->name};
        query.recipe.q.dtype = row->q_dtype;
        query.recipe.k.dtype = row->k_dtype;
        query.recipe.v.dtype = row->v_dtype;
        query.recipe.p.dtype = row->p_dtype;
        query.recipe.q.granularity = (hr_granularity)__builtin_ctz(row->q_granularities);
        query.recipe.k.granularity = (hr_granularity)__builtin_ctz(row->k_granularities);
        query.recipe.v.granularity = (hr_granularity)__builtin_ctz(row->v_granularities);
        expect_failure(&query, every_isa, HR_ERROR_UNSUPPORTED, "not 0");
        query.seqlen_q = row->max_seqlen_q + 1;
        expect_failure(&query, every_isa, HR_ERROR_UNSUPPORTED, "takes a seqlen_q of 1 to");
        query.name = NULL;
        const hr_kernel_info *found;
        cr_assert_eq(hr_kernel_find(&query, 1u << row->isa | portable_only, &found), HR_OK);
        cr_assert_eq(found->max_seqlen_q, 0);
        query.seqlen_q = row->max_seqlen_q;
        cr_assert_eq(hr_kernel_find(&query, 1u << row->isa | portable_only, &found), HR_OK);
        cr_assert_eq(found, row);
    }
}

/* Whatever the machine, a cache of the layouts it asks for is read, by any problem. */
Test(dispatch, layouts_of_caches_serve_every_problem)
{
    static const char *const recipes[] = {"bf16",
                                          "fp8",
                                          "int8",
                                          "int8:p.dtype=i16",
                                          "int8-fp8",
                                          "int4",
                                          "int4:kv.dtype=u4",
                                          "int8:v.dtype=c4",
                                          "int8:k.granularity=group32"};
    static const char *const machines[] = {"portable",
                                           "avx2",
                                           "avx2,avx512",
                                           "avx2,avx512,avx512vnni",
                                           "avx2,avx512,avx512vnni,avx512fp16",
                                           "neon",
                                           "neon,neoni8mm"};
    for (size_t i = 0; i < sizeof recipes / sizeof recipes[0]; i++)
        for (size_t m = 0; m < sizeof machines / sizeof machines[0]; m++) {
            uint32_t mask;
            cr_assert_eq(hr_isa_parse(machines[m], &mask), HR_OK);
            hr_kernel_query query = query_for(recipes[i], 128, (1u << HR_FEATURE_COUNT) - 1);
            cr_assert_eq(
                hr_kernel_cache_layouts(&query.recipe, 128, mask, &query.k_layout, &query.v_layout),
                HR_OK, "%s: %s", recipes[i], hr_last_error());
            const hr_kernel_info *row;
            cr_expect_eq(hr_kernel_find(&query, mask, &row), HR_OK, "%s with %s: %s", recipes[i],
                         machines[m], hr_last_error());
            query.features = HR_FEATURE_PAGED;
            query.seqlen_q = 1;
            cr_expect_eq(hr_kernel_find(&query, mask, &row), HR_OK, "%s with %s: %s", recipes[i],
                         machines[m], hr_last_error());
            cr_expect_eq(row->k_layout, query.k_layout);
            if (row->isa == HR_ISA_AVX512VNNI || row->isa == HR_ISA_AVX512FP16) continue;
            cr_expect_eq(query.k_layout, HR_LAYOUT_ROWS, "%s", row->name);
        }
    hr_layout k, v;
    hr_recipe recipe = query_for("int8", 64, 0).recipe;
    cr_expect_eq(hr_kv_cache_layouts(&recipe, 60, &k, &v), HR_ERROR_UNSUPPORTED);
    cr_expect_eq(hr_kv_cache_layouts(NULL, 64, &k, &v), HR_ERROR_INVALID_ARGUMENT);
}

Test(dispatch, rows_are_well_formed)
{
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        cr_expect_lt((int)row->isa, (int)HR_ISA_COUNT);
        cr_expect(row->q_granularities && row->k_granularities && row->v_granularities);
        cr_expect(row->head_dim_multiple >= 1 && row->head_dim_max % row->head_dim_multiple == 0);
        cr_expect(row->tile_q >= 1 && row->tile_kv >= 1);
        cr_expect(row->max_seqlen_q >= 0 && row->max_seqlen_q <= row->tile_q);
        cr_expect_eq(row->tile_kv % hr_layout_tile_tokens(row->k_layout), 0, "%s", row->name);
        cr_expect_eq(row->tile_kv % hr_layout_tile_tokens(row->v_layout), 0, "%s", row->name);
        cr_expect_eq(row->features >> HR_FEATURE_COUNT, 0);
        for (int j = 0; j < i; j++)
            cr_expect_str_neq(row->name, hr_kernel_at(j)->name);
    }
    cr_assert_null(hr_kernel_at(-1));
    cr_assert_null(hr_kernel_at(hr_kernel_count()));
}

Test(dispatch, names)
{
    cr_assert_str_eq(hr_feature_name(HR_FEATURE_CAUSAL), "causal");
    cr_assert_str_eq(hr_feature_name(HR_FEATURE_PAGED), "paged");
    cr_assert_null(hr_feature_name(0));
    cr_assert_null(hr_feature_name(HR_FEATURE_CAUSAL | HR_FEATURE_GQA));
    cr_assert_null(hr_feature_name(1u << HR_FEATURE_COUNT));
    cr_assert_str_eq(hr_isa_name(HR_ISA_AVX512VNNI), "avx512vnni");
    cr_assert_str_eq(hr_isa_name(HR_ISA_AVX512FP16), "avx512fp16");
    cr_assert_str_eq(hr_isa_name(HR_ISA_COUNT), "unknown");
}

Test(isa, lists_are_parsed)
{
    uint32_t mask = 0;
    cr_assert_eq(hr_isa_parse("avx2,sm90", &mask), HR_OK);
    cr_assert_eq(mask, portable_only | 1u << HR_ISA_AVX2 | 1u << HR_ISA_SM90);
    cr_assert_eq(hr_isa_parse("portable", &mask), HR_OK);
    cr_assert_eq(mask, portable_only);
    const char *const bad[] = {"avx", "avx2,", ",avx2", "avx2 ", "AVX2", ""};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_assert_eq(hr_isa_parse(bad[i], &mask), HR_ERROR_INVALID_ARGUMENT, "\"%s\"", bad[i]);
    cr_assert_eq(hr_isa_parse("avx2,mmx", &mask), HR_ERROR_INVALID_ARGUMENT);
    cr_assert(strstr(hr_last_error(), "\"mmx\""));
    cr_assert(strstr(hr_last_error(), "avx512vnni"));
}

Test(isa, the_environment_limits_and_never_adds)
{
    uint32_t machine = hr_isa_detect();
    cr_assert(machine & portable_only);
    unsetenv("HEADROOM_ISA");
    cr_assert_eq(hr_isa_mask(), machine);
    setenv("HEADROOM_ISA", "portable", 1);
    cr_assert_eq(hr_isa_mask(), portable_only);
    setenv("HEADROOM_ISA", "avx2,avxvnni,avx512,avx512vnni,avx512fp16,neon,neoni8mm,sm90", 1);
    cr_assert_eq(hr_isa_mask(), machine);
    setenv("HEADROOM_ISA", "sse9", 1);
    cr_assert_eq(hr_isa_mask(), 0);
    cr_assert(strstr(hr_last_error(), "HEADROOM_ISA"));
    cr_assert(strstr(hr_last_error(), "\"sse9\""));
}

/* What a recipe gets on a machine with these instruction sets. */
static void expect_row(const char *recipe, int32_t seqlen_q, const char *isas, const char *name)
{
    uint32_t mask;
    cr_assert_eq(hr_isa_parse(isas, &mask), HR_OK, "%s", hr_last_error());
    hr_kernel_query query = query_for(recipe, 64, HR_FEATURE_CAUSAL);
    query.seqlen_q = seqlen_q;
    const hr_kernel_info *row;
    cr_assert_eq(hr_kernel_find(&query, mask, &row), HR_OK, "%s", hr_last_error());
    cr_expect_str_eq(row->name + strlen("attention_"), name, "%s with %s: %s", recipe, isas,
                     row->name);
}

#if defined(__x86_64__)
/* The rows that recipes get on x86 machines, from the barest to the one with everything. */
static const struct {
    const char *recipe;
    int32_t seqlen_q;
    const char *rows[6]; /* portable, avx2, avxvnni, avx512, avx512vnni, avx512fp16 */
} x86_choices[] = {
    {"bf16",
     0,
     {"bf16_portable", "bf16_avx2", "bf16_avx2", "bf16_avx512", "bf16_avx512", "bf16_avx512"}},
    {"bf16",
     1,
     {"bf16_portable", "bf16_decode_avx2", "bf16_decode_avx2", "bf16_decode_avx512",
      "bf16_decode_avx512", "bf16_decode_avx512"}},
    {"fp8",
     0,
     {"fp8_portable", "fp8_avx2", "fp8_avx2", "fp8_avx512", "fp8_avx512", "fp8_avx512fp16"}},
    {"fp8",
     1,
     {"fp8_portable", "fp8_decode_avx2", "fp8_decode_avx2", "fp8_decode_avx512",
      "fp8_decode_avx512", "fp8_blocks_decode_avx512fp16"}},
    {"int8-fp8",
     0,
     {"int8_fp8_portable", "int8_fp8_avx2", "int8_fp8_avx2", "int8_fp8_avx512", "int8_fp8_avx512",
      "int8_fp8_avx512"}},
    {"int8",
     0,
     {"int8_portable", "int8_avx2", "int8_avxvnni", "int8_avx2", "int8_avx512vnni",
      "int8_avx512vnni"}},
    {"int8",
     1,
     {"int8_portable", "int8_decode_avx2", "int8_decode_avxvnni", "int8_decode_avx2",
      "int8_blocks_decode_avx512vnni", "int8_blocks_decode_avx512vnni"}},
    {"int8:p.dtype=i16",
     0,
     {"int8_p16_portable", "int8_p16_avx2", "int8_p16_avxvnni", "int8_p16_avx2",
      "int8_p16_avx512vnni", "int8_p16_avx512vnni"}},
    {"int4",
     0,
     {"int4_portable", "int4_avx2", "int4_avxvnni", "int4_avx2", "int4_avx512vnni",
      "int4_avx512vnni"}},
    {"int4",
     1,
     {"int4_portable", "int4_decode_avx2", "int4_decode_avxvnni", "int4_decode_avx2",
      "int4_blocks_decode_avx512vnni", "int4_blocks_decode_avx512vnni"}},
};

Test(levels, every_x86_machine_gets_its_best_rows)
{
    static const char *const levels[6] = {"portable",
                                          "avx2",
                                          "avx2,avxvnni",
                                          "avx2,avx512",
                                          "avx2,avx512,avx512vnni",
                                          "avx2,avx512,avx512vnni,avx512fp16"};
    for (size_t i = 0; i < sizeof x86_choices / sizeof x86_choices[0]; i++)
        for (int level = 0; level < 6; level++)
            expect_row(x86_choices[i].recipe, x86_choices[i].seqlen_q, levels[level],
                       x86_choices[i].rows[level]);
}
#endif

#if defined(__aarch64__)
Test(levels, every_arm_machine_gets_its_best_rows)
{
    static const struct {
        const char *recipe;
        const char *rows[3]; /* portable, neon, neoni8mm */
    } choices[] = {
        {"bf16", {"bf16_portable", "bf16_neon", "bf16_neon"}},
        {"fp8", {"fp8_portable", "fp8_neon", "fp8_neon"}},
        {"int8-fp8", {"int8_fp8_portable", "int8_fp8_neon", "int8_fp8_neon"}},
        {"int8", {"int8_portable", "int8_neon", "int8_neoni8mm"}},
        {"int8:p.dtype=i16", {"int8_p16_portable", "int8_p16_neon", "int8_p16_neoni8mm"}},
        {"int4", {"int4_portable", "int4_neon", "int4_neoni8mm"}},
    };
    static const char *const levels[3] = {"portable", "neon", "neon,neoni8mm"};
    for (size_t i = 0; i < sizeof choices / sizeof choices[0]; i++)
        for (int level = 0; level < 3; level++)
            expect_row(choices[i].recipe, 0, levels[level], choices[i].rows[level]);
}
#endif

/* HEADROOM_ISA limits this process to what the machine has up to `last`. */
static uint32_t set_level(hr_isa last)
{
    char names[128] = "portable";
    uint32_t mask = portable_only;
    for (int isa = HR_ISA_PORTABLE + 1; isa <= (int)last; isa++) {
        if (!(hr_isa_detect() >> isa & 1)) continue;
        mask |= 1u << isa;
        snprintf(names + strlen(names), sizeof names - strlen(names), ",%s",
                 hr_isa_name((hr_isa)isa));
    }
    setenv("HEADROOM_ISA", names, 1);
    return mask;
}

/*
 * No row of a later instruction set in the mask takes what the plan was given an earlier one's for,
 * unless that is a row for decode and the other is not.
 */
static void expect_best(const plan_setup *s, const hr_kernel_info *chosen, uint32_t mask)
{
    cr_expect(mask >> chosen->isa & 1, "%s", chosen->name);
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (row->isa <= chosen->isa || !(mask >> row->isa & 1)) continue;
        if (chosen->max_seqlen_q > 0 && row->max_seqlen_q == 0) continue;
        if (chosen->max_seqlen_q > 0 && row->max_seqlen_q == 0) continue; /* made for decode */
        hr_plan *plan;
        hr_plan_options options = {.kernel = row->name};
        hr_status status = hr_plan_create(&s->problem, &s->recipe, &options, &plan);
        cr_expect_neq(status, HR_OK, "%s chosen, %s serves too", chosen->name, row->name);
        hr_plan_free(plan);
    }
}

/*
 * One recipe at every level of this machine: the plan's row is the level's best, and what it
 * computes is in both the packing's and the kernel's instruction set the same, bit for bit, where
 * the recipe is one of integers.
 */
static void check_levels(const char *recipe, int32_t seqlen_q, bool exact)
{
    plan_setup *portable = NULL;
    for (int isa = 0; isa < HR_ISA_COUNT; isa++) {
        if (!(hr_isa_detect() & hr_isa_of_device(HR_DEVICE_CPU) & 1u << isa)) continue;
        const uint32_t mask = set_level((hr_isa)isa);
        cr_assert_eq(hr_isa_mask(), mask);
        plan_setup *s = setup_make(recipe, 4, 2, 64, seqlen_q, 301);
        s->problem.mask.causal = true;
        hr_plan *plan = setup_plan(s, NULL);
        expect_best(s, hr_plan_kernel(plan), mask);
        const hr_layer_layouts layouts = hr_plan_layouts(plan);
        setup_pack(s, &layouts);
        setup_run(s, plan);
        hr_plan_free(plan);
        const float *o = s->o.data, *expected = portable ? portable->o.data : o;
        for (int64_t i = 0; i < hr_tensor_size(&s->o); i++)
            cr_assert(exact ? o[i] == expected[i] : fabsf(o[i] - expected[i]) <= 0.05f,
                      "%s up to %s: element %lld is %g, not %g", recipe, hr_isa_name((hr_isa)isa),
                      (long long)i, o[i], expected[i]);
        if (portable)
            setup_free(s);
        else
            portable = s;
    }
    setup_free(portable);
    unsetenv("HEADROOM_ISA");
}

Test(levels, plans_run_the_best_row_of_every_level)
{
    static const int32_t lengths[] = {1, 40};
    for (int i = 0; i < 2; i++) {
        check_levels("bf16", lengths[i], false);
        check_levels("int8", lengths[i], true);
        check_levels("int8:p.dtype=i16", lengths[i], true);
        check_levels("int4", lengths[i], true);
        check_levels("fp8:q.granularity=token,kv.scale=dynamic", lengths[i], false);
        check_levels("int8-fp8", lengths[i], false);
    }
}

Test(log, says_what_was_asked_and_what_was_chosen)
{
    char path[] = "/tmp/headroom-log-XXXXXX";
    int descriptor = mkstemp(path);
    cr_assert_geq(descriptor, 0);
    setenv("HEADROOM_LOG", path, 1);
    hr_kernel_query query = query_for("bf16", 64, HR_FEATURE_CAUSAL);
    const hr_kernel_info *info;
    cr_assert_eq(hr_kernel_find(&query, portable_only, &info), HR_OK);
    cr_assert_eq(hr_kernel_log_choice(&query, portable_only, info), HR_OK, "%s", hr_last_error());
    char text[4096] = "";
    cr_assert_gt(read(descriptor, text, sizeof text - 1), 0);
    close(descriptor);
    unlink(path);
    cr_assert(strstr(text, "recipe bf16, head_dim 64, features causal\n"), "%s", text);
    cr_assert(strstr(text, "chose attention_bf16_portable\n"), "%s", text);

    setenv("HEADROOM_LOG", "/nonexistent/folder/log", 1);
    cr_assert_eq(hr_kernel_log_choice(&query, portable_only, info), HR_ERROR_IO);
    cr_assert(strstr(hr_last_error(), "/nonexistent/folder/log"));
}
