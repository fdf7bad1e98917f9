/*
 * Every attention kernel against the FP64 oracle, on every machine.
 *
 * The rows of kernels.def are taken in groups of equal dtypes. For each group, every shape
 * (tests/shapes) is run with fills (check_fill.h), recipes and features (check_recipes.h) in
 * rotation, every fill with every feature set, every row of the group on the same data, within a
 * bound derived in
 * check_bound.h; kernels of integer recipes must moreover agree bit for bit with the group's
 * portable kernel.
 *
 * Environment: HEADROOM_SEED repeats a run, HEADROOM_FILTER (a glob on kernel names) selects
 * kernels, HEADROOM_QUICK=1 runs one fill a shape, HEADROOM_EXPECT_ISA (comma separated) fails the
 * check when this machine cannot run one of those instruction sets.
 */
#include <criterion/criterion.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "check_run.h"
#include "dispatch.h"
#include "isa.h"

enum { ROWS_MAX = 128 };

static uint64_t run_seed(void)
{
    const char *text = getenv("HEADROOM_SEED");
    return text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL);
}

static bool quick(void)
{
    const char *text = getenv("HEADROOM_QUICK");
    return text && strcmp(text, "1") == 0;
}

static bool selected(const hr_kernel_info *row)
{
    const char *filter = getenv("HEADROOM_FILTER");
    return !filter || fnmatch(filter, row->name, 0) == 0;
}

/* What one row went through. */
typedef struct row_result {
    int cases, failures;
    double worst_o, worst_lse; /* error over bound */
    bool recipe_seen[RECIPES_MAX], features_seen[FEATURE_SET_COUNT];
} row_result;

static row_result results[ROWS_MAX];

static void fail_case(const hr_kernel_info *row, const check_case *test, const char *what)
{
    char text[512];
    describe_case(test, text);
    results[hr_kernel_of(row) - hr_kernels].failures++;
    fprintf(stderr, "FAIL %s: %s\n     %s\n", row->name, what, text);
}

/* Runs one row; the packed operands in its layouts are handed back for the next row's use. */
static guarded_output run_row(const hr_kernel_info *row, const check_case *test,
                              hr_packed_layer *packed, hr_layer_layouts *packed_layouts)
{
    hr_plan *plan;
    /* One thread owns all scratch, so that a sanitizer sees any step past its end. */
    const bool gpu = row->isa == HR_ISA_SM90;
    hr_plan_options options = {.kernel = row->name,
                               .threads = 1 + (int32_t)(test->seed % 2),
                               .device = gpu ? HR_DEVICE_CUDA : HR_DEVICE_CPU};
    cr_assert_eq(hr_plan_create(&test->problem, &test->recipe, &options, &plan), HR_OK, "%s: %s",
                 row->name, hr_last_error());
    hr_layer_layouts layouts = hr_plan_layouts(plan);
    if (layouts.q != packed_layouts->q || layouts.k != packed_layouts->k ||
        layouts.v != packed_layouts->v) {
        hr_packed_layer_free(packed);
        pack_case(test, &layouts, packed);
        *packed_layouts = layouts;
    }
    guarded_output output = make_output(&test->shape);
    hr_status status = gpu ? run_on_device(plan, packed, &output)
                           : hr_plan_run(plan, packed, &output.o, &output.lse);
    cr_assert_eq(status, HR_OK, "%s: %s", row->name, hr_last_error());
    hr_plan_free(plan);
    return output;
}

static void check_against_oracle(const hr_kernel_info *row, check_case *test,
                                 const hr_packed_layer *packed, const guarded_output *output)
{
    row_result *result = &results[hr_kernel_of(row) - hr_kernels];
    char what[160];
    bound_case(test, packed, row);
    comparison worst = compare_output(test, output);
    result->cases++;
    if (!(worst.o <= result->worst_o)) result->worst_o = worst.o;
    if (!(worst.lse <= result->worst_lse)) result->worst_lse = worst.lse;
    if (!(worst.o <= 1)) {
        snprintf(what, sizeof what,
                 "O is %.3g times its bound off at token %lld, head %lld, "
                 "channel %lld",
                 worst.o, (long long)worst.token, (long long)worst.head, (long long)worst.channel);
        fail_case(row, test, what);
    }
    if (!(worst.lse <= 1)) {
        snprintf(what, sizeof what, "LSE is %.3g times its bound off", worst.lse);
        fail_case(row, test, what);
    }
    if (!guards_intact(output, &test->shape))
        fail_case(row, test, "memory outside O and LSE was written");
}

/* The rows of one group that this machine runs and the filter selects. */
typedef struct row_group {
    const hr_kernel_info *row[ROWS_MAX];
    int count;
} row_group;

static bool row_takes(const hr_kernel_info *row, const check_case *test)
{
    hr_kernel_query query;
    cr_assert_eq(hr_kernel_query_from(&test->problem, &test->recipe, &query), HR_OK, "%s",
                 hr_last_error());
    query.name = row->name;
    const hr_kernel_info *found;
    return hr_kernel_find(&query, hr_isa_mask(), &found) == HR_OK;
}

/* O and LSE are compared as memory: guards, strides and all are equal when the results are. */
static void check_same_bits(const hr_kernel_info *row, const check_case *test,
                            const guarded_output *output, const guarded_output *portable)
{
    if (memcmp(output->memory, portable->memory, output->count * sizeof(float)) != 0)
        fail_case(row, test, "differs from the portable kernel, bit for bit");
}

static void run_case(const row_group *group, check_case *test, int recipe_index, int features_index)
{
    hr_packed_layer packed = {0};
    hr_layer_layouts layouts = {HR_LAYOUT_COUNT, HR_LAYOUT_COUNT, HR_LAYOUT_COUNT};
    guarded_output portable = {0};
    make_case(test);
    /* Rows stand best first, so backwards the portable one comes first. */
    for (int i = group->count - 1; i >= 0; i--) {
        const hr_kernel_info *row = group->row[i];
        if (!row_takes(row, test)) continue;
        guarded_output output = run_row(row, test, &packed, &layouts);
        if (!test->o) answer_case(test, &packed);
        row_result *result = &results[hr_kernel_of(row) - hr_kernels];
        result->recipe_seen[recipe_index] = true;
        result->features_seen[features_index] = true;
        check_against_oracle(row, test, &packed, &output);
        bool exact =
            is_integer(row->q_dtype) && is_integer(row->k_dtype) && is_integer(row->p_dtype);
        if (exact && portable.memory) check_same_bits(row, test, &output, &portable);
        if (exact && row->isa == HR_ISA_PORTABLE)
            portable = output;
        else
            free(output.memory);
    }
    free(portable.memory);
    hr_packed_layer_free(&packed);
    free_case(test);
}

/* Shapes of the group: every line for every pair of tile sizes in it, without repetition. */
static int list_shapes(const row_group *group, check_shape *shapes, int limit)
{
    static shape_lines lines;
    read_shapes(&lines);
    int count = 0;
    for (int i = 0; i < group->count; i++)
        for (int line = 0; line < lines.count; line++) {
            check_shape shape =
                parse_shape(lines.line[line], group->row[i]->tile_q, group->row[i]->tile_kv);
            int same = 0;
            while (same < count && memcmp(&shapes[same], &shape, sizeof shape) != 0)
                same++;
            if (same < count) continue;
            cr_assert_lt(count, limit);
            shapes[count++] = shape;
        }
    return count;
}

/* Groups that do not divide a shape's head_dim become groups of 8. */
static hr_recipe fit_recipe(const hr_recipe *recipe, int32_t head_dim)
{
    hr_recipe fitted = *recipe;
    hr_operand_recipe *operands[] = {&fitted.q, &fitted.k, &fitted.v};
    for (int i = 0; i < 3; i++)
        if (operands[i]->granularity == HR_GRANULARITY_GROUP && head_dim % operands[i]->block)
            operands[i]->block = 8;
    memset(fitted.name, 0, sizeof fitted.name);
    cr_assert_eq(hr_recipe_normalize(&fitted), HR_OK, "%s", hr_last_error());
    return fitted;
}

static int find_recipe(const recipe_list *list, const hr_recipe *recipe)
{
    int index = 0;
    while (index < list->count && strcmp(list->recipe[index].name, recipe->name) != 0)
        index++;
    return index;
}

/* Cases that a shape is run in: cheap shapes in every fill, others in some of them. */
static int cases_of(const check_shape *shape)
{
    if (quick()) return 1;
    return shape->cu_seqlens_q[shape->batch] <= 16 ? FILL_COUNT : 2;
}

/*
 * Smoothing takes a part of every logit away, which must come back before a cap, beside a sink and
 * in LSE. The rotation of recipes and features leaves most of these pairs out, so all are run here,
 * on queries that are few enough for decode rows.
 */
static void run_smoothed(const row_group *group, const recipe_list *recipes, int index,
                         uint64_t seed)
{
    static const check_shape shape = {.batch = 2,
                                      .num_heads = 4,
                                      .num_kv_heads = 2,
                                      .head_dim = 64,
                                      .cu_seqlens_q = {0, 5, 9},
                                      .cu_seqlens_kv = {0, 300, 377}};
    for (int r = 0; r < recipes->count; r++)
        for (int f = 0; f < FEATURE_SET_COUNT; f++) {
            if (!(recipes->recipe[r].k.transform & HR_TRANSFORM_MEAN)) continue;
            if (!(feature_sets[f] & (HR_FEATURE_SINKS | HR_FEATURE_SOFTCAP))) continue;
            check_case test = {.shape = shape,
                               .fill = FILL_MEAN_BIAS,
                               .recipe = recipes->recipe[r],
                               .features = feature_sets[f],
                               .seed = seed + (uint64_t)index++};
            run_case(group, &test, r, f);
        }
}

static void run_group(const row_group *group, uint64_t seed)
{
    static check_shape shapes[SHAPE_LINES * 4];
    static recipe_list recipes;
    const int shape_count = list_shapes(group, shapes, SHAPE_LINES * 4);
    recipes.count = 0;
    for (int i = 0; i < group->count; i++)
        list_recipes(group->row[i], &recipes);
    /* Fills, features and recipes rotate together; the sizes of the first two have no common
     * divisor, so FILL_COUNT * FEATURE_SET_COUNT cases in a row have every pair. */
    int index = 0;
    for (int s = 0; s < shape_count; s++)
        for (int i = 0; i < cases_of(&shapes[s]); i++, index++) {
            const int features = index % FEATURE_SET_COUNT;
            const hr_recipe fitted =
                fit_recipe(&recipes.recipe[index % recipes.count], shapes[s].head_dim);
            const int recipe = find_recipe(&recipes, &fitted);
            check_case test = {.shape = shapes[s],
                               .fill = (check_fill)(index % FILL_COUNT),
                               .recipe = fitted,
                               .features = feature_sets[features],
                               .seed = seed + (uint64_t)index};
            run_case(group, &test, recipe, features);
        }
    if (!quick()) cr_assert_geq(index, FILL_COUNT * FEATURE_SET_COUNT);
    run_smoothed(group, &recipes, index, seed);
    if (quick()) return;
    for (int i = 0; i < group->count; i++) {
        const hr_kernel_info *row = group->row[i];
        const row_result *result = &results[hr_kernel_of(row) - hr_kernels];
        static recipe_list own;
        own.count = 0;
        list_recipes(row, &own);
        for (int r = 0; r < own.count; r++)
            cr_expect(result->recipe_seen[find_recipe(&recipes, &own.recipe[r])],
                      "%s never ran recipe %s", row->name, own.recipe[r].name);
        for (int f = 0; f < FEATURE_SET_COUNT; f++)
            cr_expect(result->features_seen[f] || (feature_sets[f] & ~row->features),
                      "%s never ran feature set %d", row->name, f);
    }
}

static void print_table(void)
{
    printf("%-34s %6s %6s   %s\n", "kernel", "cases", "failed", "worst error / bound: O, LSE");
    for (int i = 0; i < hr_kernel_count(); i++)
        if (results[i].cases)
            printf("%-34s %6d %6d   %.3f  %.3f\n", hr_kernel_at(i)->name, results[i].cases,
                   results[i].failures, results[i].worst_o, results[i].worst_lse);
    fflush(stdout);
}

/* False where HEADROOM_ISA names an instruction set that this machine lacks. */
static bool machine_has_level(void)
{
    const char *names = getenv("HEADROOM_ISA");
    uint32_t level = 0;
    if (names) cr_assert_eq(hr_isa_parse(names, &level), HR_OK, "%s", hr_last_error());
    return (level & ~hr_isa_detect()) == 0;
}

Test(kernels, agree_with_the_oracle)
{
    if (!machine_has_level()) {
        printf("SKIP level: this machine lacks some of %s\n", getenv("HEADROOM_ISA"));
        return;
    }
    const uint64_t seed = run_seed();
    printf("HEADROOM_SEED=%llu\n", (unsigned long long)seed);
    cr_assert_leq(hr_kernel_count(), ROWS_MAX);
    bool taken[ROWS_MAX] = {false};
    int ran = 0;
    for (int i = 0; i < hr_kernel_count(); i++) {
        row_group group = {0};
        for (int j = i; j < hr_kernel_count(); j++) {
            const hr_kernel_info *row = hr_kernel_at(j);
            if (taken[j] || !same_dtypes(row, hr_kernel_at(i))) continue;
            taken[j] = true;
            if (!selected(row)) continue;
            cr_expect_eq(row->features & ~exercised_features(), 0,
                         "%s claims a feature that no case exercises", row->name);
            if (!(hr_isa_mask() >> row->isa & 1))
                printf("SKIP %s: needs %s\n", row->name, hr_isa_name(row->isa));
            else
                group.row[group.count++] = row;
        }
        if (group.count) run_group(&group, seed);
        ran += group.count;
    }
    print_table();
    cr_assert_gt(ran, 0, "no kernel ran: HEADROOM_FILTER matches none that this machine has");
    for (int i = 0; i < hr_kernel_count(); i++)
        cr_expect_eq(results[i].failures, 0, "%s failed %d times", hr_kernel_at(i)->name,
                     results[i].failures);
}

Test(kernels, expected_instruction_sets_are_here)
{
    const char *names = getenv("HEADROOM_EXPECT_ISA");
    if (!names) return;
    uint32_t expected;
    cr_assert_eq(hr_isa_parse(names, &expected), HR_OK, "%s", hr_last_error());
    for (int isa = 0; isa < HR_ISA_COUNT; isa++)
        cr_expect(!(expected >> isa & 1) || hr_isa_detect() >> isa & 1,
                  "%s was expected, but its kernels were skipped", hr_isa_name((hr_isa)isa));
}
