/*
 * Every row of kernels.def that claims paged, on a KV cache: its result must have the same bits as
 * on the same codes in contiguous operands, and be within the bound of check_bound.h of the FP64
 * oracle on the dequantized cache.
 *
 * Cases walk the shapes of the kernel check and lengths at the edges of pages; page sizes, recipes,
 * features, fills and rope are taken in rotation. Sequences are appended in chunks of random sizes
 * to pages in random order, over what was there before. HEADROOM_SEED and HEADROOM_FILTER are those
 * of check_kernels; HEADROOM_QUICK=1 runs every third case, chosen by the seed.
 */
#include <criterion/criterion.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "check_run.h"
#include "dispatch.h"

enum { SPARE_PAGES = 3 };

static const int32_t page_sizes[] = {16, 48, 64, 256};

/* Sequences that end one before, at and one after an edge of every page size. */
static const char *const edge_shapes[] = {
    "2 1 64 q=1,1,2,1,1,3,1,1 kv=15,16,17,47,48,49,63,64",
    "2 2 32 q=2,1,1,1,1,3,1,1 kv=65,127,128,129,255,256,257,1",
    "1 1 128 q=37,0,5 kv=96,16,0",
};

enum { EDGE_SHAPES = sizeof edge_shapes / sizeof edge_shapes[0] };

typedef struct paged_case {
    check_case base;
    hr_recipe recipe; /* base.recipe with static scales where a cache needs them */
    hr_rope rope;
    int32_t page_size, max_pages, num_pages;
    int32_t *block_table;
    int32_t *positions_q, *positions_kv;
    int64_t *slots;
    hr_kv_cache *cache;
    hr_packed_layer packed; /* q, and k and v gathered from the cache */
} paged_case;

/* False when no cache can hold the recipe: scales per block, or static ones for u4. */
static bool make_storable(hr_operand_recipe *operand)
{
    switch (operand->granularity) {
    case HR_GRANULARITY_BLOCK:
        return false;
    case HR_GRANULARITY_TENSOR:
    case HR_GRANULARITY_HEAD:
    case HR_GRANULARITY_CHANNEL:
        operand->dynamic = false;
        return operand->dtype != HR_DTYPE_U4;
    default:
        return true;
    }
}

/* The row's recipes that a cache can hold. */
static void list_storable(const hr_kernel_info *row, recipe_list *list)
{
    static recipe_list all;
    all.count = 0;
    list->count = 0;
    list_recipes(row, &all);
    for (int i = 0; i < all.count; i++) {
        hr_recipe recipe = all.recipe[i];
        if (make_storable(&recipe.k) && make_storable(&recipe.v)) add_recipe(list, &recipe);
    }
}

static hr_rope make_rope(int index, int32_t head_dim)
{
    hr_rope rope = {.rotary_dim = 0, .interleaved = index % 3 == 2, .theta = 10000};
    if (index % 3 == 1) rope.rotary_dim = head_dim;
    if (index % 3 == 2) rope.rotary_dim = head_dim / 4 * 2;
    return rope;
}

/* A permutation of all pages, dealt out to the sequences. */
static void make_block_table(paged_case *test, check_random *random)
{
    const check_shape *shape = &test->base.shape;
    int32_t needed = 0;
    for (int32_t b = 0; b < shape->batch; b++) {
        int32_t tokens = shape->cu_seqlens_kv[b + 1] - shape->cu_seqlens_kv[b];
        int32_t pages = (tokens + test->page_size - 1) / test->page_size;
        if (pages > test->max_pages) test->max_pages = pages;
        needed += pages;
    }
    test->num_pages = needed + SPARE_PAGES;
    int32_t *order = allocate((size_t)test->num_pages, sizeof *order);
    for (int32_t i = 0; i < test->num_pages; i++) {
        int32_t j = random_below(random, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    test->block_table =
        allocate((size_t)shape->batch * (size_t)test->max_pages, sizeof *test->block_table);
    int32_t used = 0;
    for (int32_t b = 0; b < shape->batch; b++) {
        int32_t tokens = shape->cu_seqlens_kv[b + 1] - shape->cu_seqlens_kv[b];
        for (int32_t i = 0; i < test->max_pages; i++)
            test->block_table[b * test->max_pages + i] =
                i * test->page_size < tokens ? order[used++] : -1;
    }
    free(order);
}

/* Where tokens are and which position they have; queries are aligned to the end of the keys. */
static void make_positions(paged_case *test)
{
    const check_shape *shape = &test->base.shape;
    const int32_t *cu_q = shape->cu_seqlens_q, *cu_kv = shape->cu_seqlens_kv;
    test->positions_q = allocate((size_t)cu_q[shape->batch], sizeof(int32_t));
    test->positions_kv = allocate((size_t)cu_kv[shape->batch], sizeof(int32_t));
    test->slots = allocate((size_t)cu_kv[shape->batch], sizeof(int64_t));
    for (int32_t b = 0; b < shape->batch; b++) {
        int32_t queries = cu_q[b + 1] - cu_q[b], keys = cu_kv[b + 1] - cu_kv[b];
        /* Positions start at 0 for whichever is longer: only distances matter. */
        int32_t first_q = keys > queries ? keys - queries : 0;
        int32_t first_kv = queries > keys ? queries - keys : 0;
        for (int32_t i = 0; i < queries; i++)
            test->positions_q[cu_q[b] + i] = first_q + i;
        for (int32_t j = 0; j < keys; j++) {
            test->positions_kv[cu_kv[b] + j] = first_kv + j;
            int32_t page = test->block_table[b * test->max_pages + j / test->page_size];
            test->slots[cu_kv[b] + j] = (int64_t)page * test->page_size + j % test->page_size;
        }
    }
}

static hr_tensor slice_tokens(const hr_tensor *x, int64_t first, int64_t count)
{
    hr_tensor part = *x;
    part.shape[0] = count;
    part.data = (float *)x->data + first * x->stride[0];
    return part;
}

/* Pages have been others' before: tokens of the same sizes in all slots. */
static void fill_with_others(paged_case *test)
{
    const int64_t slots = (int64_t)test->num_pages * test->page_size;
    const int64_t tokens = test->base.k.shape[0];
    int64_t *mapping = allocate((size_t)tokens, sizeof *mapping);
    for (int64_t first = 0; first < slots && tokens > 0; first += tokens) {
        const int64_t count = slots - first < tokens ? slots - first : tokens;
        const hr_tensor k = slice_tokens(&test->base.k, 0, count);
        const hr_tensor v = slice_tokens(&test->base.v, 0, count);
        for (int64_t i = 0; i < count; i++)
            mapping[i] = first + i;
        cr_assert_eq(hr_kv_cache_append(test->cache, &k, &v, test->positions_kv, mapping), HR_OK,
                     "%s", hr_last_error());
    }
    free(mapping);
}

static void fill_cache(paged_case *test, check_random *random)
{
    const int64_t tokens = test->base.k.shape[0];
    for (int64_t first = 0, count; first < tokens; first += count) {
        count = 1 + random_below(random, 90);
        if (count > tokens - first) count = tokens - first;
        hr_tensor k = slice_tokens(&test->base.k, first, count);
        hr_tensor v = slice_tokens(&test->base.v, first, count);
        cr_assert_eq(hr_kv_cache_append(test->cache, &k, &v, test->positions_kv + first,
                                        test->slots + first),
                     HR_OK, "%s", hr_last_error());
    }
}

static hr_paging paging_of(const paged_case *test)
{
    return (hr_paging){.page_size = test->page_size,
                       .max_pages = test->max_pages,
                       .block_table = test->block_table};
}

static void gather(const paged_case *test, hr_operand operand, hr_layout layout, hr_packed *out)
{
    hr_paging paging = paging_of(test);
    cr_assert_eq(hr_kv_cache_gather(test->cache, operand, &paging, test->base.shape.batch,
                                    test->base.shape.cu_seqlens_kv, layout, out),
                 HR_OK, "%s", hr_last_error());
}

/* Static scales and the mean come from packing the whole, as a profile's would. */
static void make_cache(paged_case *test, const hr_kernel_info *row)
{
    const check_shape *shape = &test->base.shape;
    hr_pack_options k_options = {.batch = shape->batch,
                                 .cu_seqlens = shape->cu_seqlens_kv,
                                 .rope = test->rope,
                                 .positions = test->positions_kv};
    hr_pack_options v_options = {.batch = shape->batch, .cu_seqlens = shape->cu_seqlens_kv};
    hr_operand_recipe k_recipe = test->recipe.k, v_recipe = test->recipe.v;
    k_recipe.dynamic = k_recipe.granularity != HR_GRANULARITY_NONE;
    v_recipe.dynamic = v_recipe.granularity != HR_GRANULARITY_NONE;
    hr_packed k, v;
    cr_assert_eq(hr_pack(HR_OPERAND_K, &k_recipe, &test->base.k, &k_options, &k), HR_OK, "%s",
                 hr_last_error());
    cr_assert_eq(hr_pack(HR_OPERAND_V, &v_recipe, &test->base.v, &v_options, &v), HR_OK, "%s",
                 hr_last_error());
    const hr_kv_cache_options options = {
        .recipe = &test->recipe,
        .num_kv_heads = shape->num_kv_heads,
        .head_dim = shape->head_dim,
        .page_size = test->page_size,
        .num_pages = test->num_pages,
        .rope = test->rope,
        .k_scale = test->recipe.k.dynamic ? NULL : k.scale,
        .v_scale = test->recipe.v.dynamic ? NULL : v.scale,
        .k_mean = k.mean,
        .k_layout = row->k_layout,
        .v_layout = row->v_layout,
    };
    cr_assert_eq(hr_kv_cache_create(&options, &test->cache), HR_OK, "%s", hr_last_error());
    hr_packed_free(&k);
    hr_packed_free(&v);
}

static void pack_queries(paged_case *test, hr_layout layout)
{
    const check_shape *shape = &test->base.shape;
    const hr_pack_options options = {.layout = layout,
                                     .batch = shape->batch,
                                     .cu_seqlens = shape->cu_seqlens_q,
                                     .k_mean = hr_kv_cache_view(test->cache, HR_OPERAND_K).mean,
                                     .num_kv_heads = shape->num_kv_heads,
                                     .rope = test->rope,
                                     .positions = test->positions_q};
    cr_assert_eq(hr_pack(HR_OPERAND_Q, &test->recipe.q, &test->base.q, &options, &test->packed.q),
                 HR_OK, "%s", hr_last_error());
}

static hr_plan *make_plan(const paged_case *test, const hr_kernel_info *row, bool paged)
{
    hr_attention_problem problem = test->base.problem;
    problem.rope = test->rope;
    if (paged) {
        problem.paging = paging_of(test);
        problem.paging.k_layout = row->k_layout;
        problem.paging.v_layout = row->v_layout;
    }
    hr_plan_options options = {.kernel = row->name};
    hr_plan *plan;
    cr_assert_eq(hr_plan_create(&problem, &test->recipe, &options, &plan), HR_OK, "%s: %s",
                 row->name, hr_last_error());
    return plan;
}

typedef struct row_result {
    int cases, failures;
    double worst_o, worst_lse; /* error over bound */
} row_result;

static void fail_case(const hr_kernel_info *row, const paged_case *test, row_result *result,
                      const char *what)
{
    char text[512];
    describe_case(&test->base, text);
    result->failures++;
    fprintf(stderr, "FAIL %s: %s\n     pages of %d, rotary_dim %d%s, %s\n", row->name, what,
            test->page_size, test->rope.rotary_dim, test->rope.interleaved ? " interleaved" : "",
            text);
}

static void check_row(const hr_kernel_info *row, paged_case *test, row_result *result)
{
    hr_plan *paged = make_plan(test, row, true), *contiguous = make_plan(test, row, false);
    pack_queries(test, hr_plan_layouts(paged).q);
    guarded_output output = make_output(&test->base.shape), same = make_output(&test->base.shape);
    cr_assert_eq(hr_plan_run_paged(paged, &test->packed.q, test->cache, &output.o, &output.lse),
                 HR_OK, "%s: %s", row->name, hr_last_error());
    cr_assert_eq(hr_plan_run(contiguous, &test->packed, &same.o, &same.lse), HR_OK, "%s: %s",
                 row->name, hr_last_error());
    hr_plan_free(paged);
    hr_plan_free(contiguous);

    answer_case(&test->base, &test->packed);
    bound_case(&test->base, &test->packed, row);
    comparison worst = compare_output(&test->base, &output);
    result->cases++;
    if (!(worst.o <= result->worst_o)) result->worst_o = worst.o;
    if (!(worst.lse <= result->worst_lse)) result->worst_lse = worst.lse;
    if (!(worst.o <= 1)) fail_case(row, test, result, "O is out of its bound");
    if (!(worst.lse <= 1)) fail_case(row, test, result, "LSE is out of its bound");
    if (memcmp(output.memory, same.memory, output.count * sizeof(float)) != 0)
        fail_case(row, test, result, "differs from the contiguous run, bit for bit");
    free(output.memory);
    free(same.memory);
}

static void run_case(const hr_kernel_info *row, paged_case *test, row_result *result)
{
    check_random random = {test->base.seed ^ UINT64_C(0x70616765)};
    make_case(&test->base);
    make_block_table(test, &random);
    make_positions(test);
    make_cache(test, row);
    fill_with_others(test);
    fill_cache(test, &random);
    gather(test, HR_OPERAND_K, row->k_layout, &test->packed.k);
    gather(test, HR_OPERAND_V, row->v_layout, &test->packed.v);
    check_row(row, test, result);
    hr_packed_layer_free(&test->packed);
    hr_kv_cache_free(test->cache);
    free(test->block_table);
    free(test->positions_q);
    free(test->positions_kv);
    free(test->slots);
    free_case(&test->base);
}

/* A feature set of the rotation that the row has. */
static uint32_t pick_features(const hr_kernel_info *row, int index)
{
    for (;; index++) {
        uint32_t features = feature_sets[index % FEATURE_SET_COUNT];
        if (!(features & ~row->features)) return features;
    }
}

static void run_row(const hr_kernel_info *row, uint64_t seed, row_result *result)
{
    static recipe_list recipes;
    static shape_lines lines;
    list_storable(row, &recipes);
    read_shapes(&lines);
    cr_assert_gt(recipes.count, 0, "%s has no recipe that a cache can hold", row->name);
    const int shapes = lines.count + EDGE_SHAPES;
    const int cases = recipes.count > shapes ? recipes.count : shapes;
    /* Quick: every third of them, the seed says which. */
    const char *quick = getenv("HEADROOM_QUICK");
    const int step = quick && strcmp(quick, "1") == 0 ? 3 : 1;
    for (int i = (int)(seed % (uint64_t)step); i < cases; i += step) {
        int line = i % shapes;
        const char *text = line < EDGE_SHAPES ? edge_shapes[line] : lines.line[line - EDGE_SHAPES];
        paged_case test = {.page_size = page_sizes[(i + line / 4) % 4]};
        test.base.shape = parse_shape(text, row->tile_q, row->tile_kv);
        const int32_t longest =
            hr_longest_sequence(test.base.shape.cu_seqlens_q, test.base.shape.batch);
        if (row->max_seqlen_q && longest > row->max_seqlen_q) continue;
        test.base.fill = (check_fill)(i % FILL_COUNT);
        test.recipe = test.base.recipe = recipes.recipe[i % recipes.count];
        if (!groups_divide(&test.base.recipe, test.base.shape.head_dim)) continue;
        test.base.features = pick_features(row, i);
        test.base.seed = seed + (uint64_t)i;
        test.rope = make_rope(i / 2, test.base.shape.head_dim);
        run_case(row, &test, result);
    }
}

Test(paged, rows_agree_with_the_oracle_and_with_contiguous_operands)
{
    const char *seed_text = getenv("HEADROOM_SEED"), *filter = getenv("HEADROOM_FILTER");
    const uint64_t seed = seed_text ? strtoull(seed_text, NULL, 0) : (uint64_t)time(NULL);
    printf("HEADROOM_SEED=%llu\n", (unsigned long long)seed);
    printf("%-34s %6s %6s   %s\n", "kernel", "cases", "failed", "worst error / bound: O, LSE");
    int ran = 0;
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (!(row->features & HR_FEATURE_PAGED)) continue;
        if (filter && fnmatch(filter, row->name, 0) != 0) continue;
        cr_expect(row->features & HR_FEATURE_ROPE, "%s has paged, but not rope", row->name);
        if (!(hr_isa_mask() >> row->isa & 1)) {
            printf("SKIP %s: needs %s\n", row->name, hr_isa_name(row->isa));
            continue;
        }
        row_result result = {0};
        run_row(row, seed, &result);
        printf("%-34s %6d %6d   %.3f  %.3f\n", row->name, result.cases, result.failures,
               result.worst_o, result.worst_lse);
        fflush(stdout);
        cr_expect_eq(result.failures, 0, "%s failed %d times", row->name, result.failures);
        ran++;
    }
    cr_assert_gt(ran, 0, "no kernel ran: HEADROOM_FILTER matches none that this machine has");
}
