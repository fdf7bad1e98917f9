/*
 * A recipe for each KV head; see headroom/mixed.h.
 *
 *     KV head   0  1  2  3  4          recipe a:  heads 0 2 3  ->  packed, plan, O [total_q, 3, d]
 *     recipe    a  b  a  a  b          recipe b:  heads 1 4    ->  packed, plan, O [total_q, 2, d]
 *
 * A part's problem is the whole one with the arrays that have an entry a head cut down to its
 * heads. Copying a part's rows of O to where they belong costs total_q * head_dim a head, next to
 * seqlen_kv times that for attention.
 */
#include "headroom/mixed.h"

#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "plan.h"
#include "status_internal.h"
#include "tensor_rows.h"

typedef struct part {
    int32_t recipe_index, num_kv_heads, group; /* group: query heads a KV head */
    hr_recipe recipe;
    int32_t *kv_heads;
    float *alibi_slopes, *sinks; /* NULL: none */
    hr_block_mask blocks;
    hr_plan *plan;
    hr_packed_layer packed;
    hr_device_run *run;
} part;

struct hr_mixed {
    int32_t num_heads, num_kv_heads, head_dim, batch;
    int32_t *cu_seqlens_q, *cu_seqlens_kv;
    int32_t part_count;
    part *parts;
    float *o, *lse; /* of the part with the most heads, before they go to their places */
};

/* The problem's number of the part's head `head`, where a KV head has `group` of them. */
static int32_t head_of(const part *at, int32_t head, int32_t group)
{
    return at->kv_heads[head / group] * group + head % group;
}

/* The same of a query head. */
static int32_t query_head(const part *at, int32_t head)
{
    return head_of(at, head, at->group);
}

static void part_unpack(part *at)
{
    hr_device_run_free(at->run);
    at->run = NULL;
    hr_packed_layer_free(&at->packed);
}

void hr_mixed_free(hr_mixed *mixed)
{
    if (!mixed) return;
    for (int32_t i = 0; mixed->parts && i < mixed->part_count; i++) {
        part *at = &mixed->parts[i];
        part_unpack(at);
        hr_plan_free(at->plan);
        hr_block_mask_free(&at->blocks);
        free(at->kv_heads);
        free(at->alibi_slopes);
        free(at->sinks);
    }
    free(mixed->parts);
    free(mixed->cu_seqlens_q);
    free(mixed->cu_seqlens_kv);
    free(mixed->o);
    free(mixed->lse);
    free(mixed);
}

static hr_status check_arguments(const hr_attention_problem *problem, int32_t recipe_count,
                                 const int32_t *of_head, const hr_plan_options *options)
{
    HR_TRY(hr_attention_problem_check(problem));
    if (problem->paging.page_size > 0 || problem->rope.rotary_dim > 0)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "the problem has %s; a recipe for each head takes operands that it packs "
                       "itself, without",
                       problem->paging.page_size > 0 ? "paging" : "rope");
    if (options && (options->kernel || options->epilogue))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "options.%s must be NULL: each recipe has a plan of its own",
                       options->kernel ? "kernel" : "epilogue");
    for (int32_t h = 0; h < problem->num_kv_heads; h++)
        if (of_head[h] < 0 || of_head[h] >= recipe_count)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "of_head[%d] is %d; it must be in 0 .. %d, a recipe's index", h,
                           of_head[h], recipe_count - 1);
    return HR_OK;
}

/* The entries of a part's query heads; NULL stays NULL. */
static hr_status gather_floats(const part *at, const float *all, float **out)
{
    if (!all) return HR_OK;
    const int32_t heads = at->num_kv_heads * at->group;
    *out = hr_alloc((size_t)heads, sizeof **out);
    if (!*out) return HR_ERROR_OUT_OF_MEMORY;
    for (int32_t h = 0; h < heads; h++)
        (*out)[h] = all[query_head(at, h)];
    return HR_OK;
}

/* The rows of a part's query heads, of a mask that has rows of their own for heads. */
static hr_status gather_blocks(part *at, const hr_attention_problem *problem)
{
    const hr_block_mask *all = problem->mask.blocks;
    const int32_t heads = at->num_kv_heads * at->group;
    hr_block_mask *out = &at->blocks;
    *out = (hr_block_mask){
        .block_q = all->block_q, .block_kv = all->block_kv, .heads = heads, .rows = all->rows};
    int64_t count = 0;
    for (int pass = 0; pass < 2; pass++) {
        int64_t row = 0, used = 0;
        for (int32_t h = 0; h < heads; h++) {
            const int64_t from =
                (int64_t)query_head(at, h) * all->heads / problem->num_heads * all->rows;
            for (int32_t r = 0; r < all->rows; r++, row++) {
                const int64_t begin = all->row_begin[from + r], end = all->row_begin[from + r + 1];
                if (pass) {
                    memcpy(out->columns + used, all->columns + begin,
                           (size_t)(end - begin) * sizeof *out->columns);
                    out->row_begin[row + 1] = used + end - begin;
                }
                used += end - begin;
            }
        }
        count = used;
        if (pass) break;
        out->row_begin = hr_alloc((size_t)heads * (size_t)all->rows + 1, sizeof *out->row_begin);
        out->columns = hr_alloc((size_t)count, sizeof *out->columns);
        if (!out->row_begin || !out->columns) return HR_ERROR_OUT_OF_MEMORY;
    }
    return HR_OK;
}

static hr_status create_part(part *at, const hr_attention_problem *whole,
                             const hr_plan_options *options)
{
    hr_attention_problem problem = *whole;
    problem.num_kv_heads = at->num_kv_heads;
    problem.num_heads = at->num_kv_heads * at->group;
    HR_TRY(gather_floats(at, whole->alibi_slopes, &at->alibi_slopes));
    HR_TRY(gather_floats(at, whole->sinks, &at->sinks));
    problem.alibi_slopes = at->alibi_slopes;
    problem.sinks = at->sinks;
    if (whole->mask.blocks && whole->mask.blocks->heads > 1) {
        HR_TRY(gather_blocks(at, whole));
        problem.mask.blocks = &at->blocks;
    }
    hr_status status = hr_plan_create(&problem, &at->recipe, options, &at->plan);
    return status == HR_OK ? HR_OK : hr_fail_in(status, "recipe %s", at->recipe.name);
}

/* Every recipe that has heads becomes a part, in the order of recipes. */
static hr_status create_parts(hr_mixed *mixed, const hr_attention_problem *problem,
                              const hr_recipe *recipes, int32_t recipe_count,
                              const int32_t *of_head, const hr_plan_options *options)
{
    const int32_t kv_heads = problem->num_kv_heads;
    mixed->parts =
        hr_alloc((size_t)(recipe_count < kv_heads ? recipe_count : kv_heads), sizeof *mixed->parts);
    if (!mixed->parts) return HR_ERROR_OUT_OF_MEMORY;
    int32_t most = 0;
    for (int32_t recipe = 0; recipe < recipe_count; recipe++) {
        int32_t count = 0;
        for (int32_t h = 0; h < kv_heads; h++)
            count += of_head[h] == recipe;
        if (count == 0) continue;
        if (count > most) most = count;
        part *at = &mixed->parts[mixed->part_count++];
        at->recipe_index = recipe;
        at->recipe = recipes[recipe];
        at->group = problem->num_heads / kv_heads;
        at->kv_heads = hr_alloc((size_t)count, sizeof *at->kv_heads);
        if (!at->kv_heads) return HR_ERROR_OUT_OF_MEMORY;
        for (int32_t h = 0; h < kv_heads; h++)
            if (of_head[h] == recipe) at->kv_heads[at->num_kv_heads++] = h;
        HR_TRY(create_part(at, problem, options));
    }
    const size_t rows = (size_t)problem->cu_seqlens_q[problem->batch] * (size_t)most *
                        (size_t)(problem->num_heads / kv_heads);
    mixed->o = hr_alloc(rows, (size_t)problem->head_dim * sizeof(float));
    mixed->lse = hr_alloc(rows, sizeof(float));
    return mixed->o && mixed->lse ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
}

static hr_status copy_lengths(const int32_t *cu_seqlens, int32_t batch, int32_t **out)
{
    *out = hr_alloc((size_t)batch + 1, sizeof **out);
    if (!*out) return HR_ERROR_OUT_OF_MEMORY;
    memcpy(*out, cu_seqlens, ((size_t)batch + 1) * sizeof **out);
    return HR_OK;
}

hr_status hr_mixed_create(const hr_attention_problem *problem, const hr_recipe *recipes,
                          int32_t recipe_count, const int32_t *of_head,
                          const hr_plan_options *options, hr_mixed **out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out is NULL");
    *out = NULL;
    if (!problem || !recipes || !of_head || recipe_count < 1)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "problem, recipes and of_head must not be NULL, nor recipe_count below 1");
    HR_TRY(check_arguments(problem, recipe_count, of_head, options));
    hr_mixed *mixed = hr_alloc(1, sizeof *mixed);
    if (!mixed) return HR_ERROR_OUT_OF_MEMORY;
    mixed->num_heads = problem->num_heads;
    mixed->num_kv_heads = problem->num_kv_heads;
    mixed->head_dim = problem->head_dim;
    mixed->batch = problem->batch;
    hr_status status = copy_lengths(problem->cu_seqlens_q, problem->batch, &mixed->cu_seqlens_q);
    if (status == HR_OK)
        status = copy_lengths(problem->cu_seqlens_kv, problem->batch, &mixed->cu_seqlens_kv);
    if (status == HR_OK)
        status = create_parts(mixed, problem, recipes, recipe_count, of_head, options);
    if (status != HR_OK) {
        hr_mixed_free(mixed);
        return status;
    }
    *out = mixed;
    return HR_OK;
}

int32_t hr_mixed_part_count(const hr_mixed *mixed)
{
    return mixed->part_count;
}

hr_mixed_part hr_mixed_get_part(const hr_mixed *mixed, int32_t index)
{
    const part *at = &mixed->parts[index];
    return (hr_mixed_part){
        .recipe = at->recipe_index,
        .num_kv_heads = at->num_kv_heads,
        .kv_heads = at->kv_heads,
        .kernel = hr_plan_kernel(at->plan),
        .kv_bytes = at->run ? hr_packed_bytes(&at->packed.k) + hr_packed_bytes(&at->packed.v) : 0,
    };
}

double hr_mixed_flops(const hr_mixed *mixed)
{
    double flops = 0;
    for (int32_t i = 0; i < mixed->part_count; i++)
        flops += hr_plan_flops(mixed->parts[i].plan);
    return flops;
}

/* Whether the tensor is [tokens, heads, head_dim] of the problem. */
static hr_status check_tensor(const hr_mixed *mixed, const char *name, const hr_tensor *tensor,
                              int32_t heads, const int32_t *cu_seqlens)
{
    if (!tensor) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is NULL", name);
    HR_TRY(hr_tensor_rows_check(tensor, name));
    const int64_t tokens = cu_seqlens[mixed->batch];
    if (tensor->shape[0] == tokens && tensor->shape[1] == heads &&
        tensor->shape[2] == mixed->head_dim)
        return HR_OK;
    return hr_fail(HR_ERROR_MISMATCH, "%s is [%lld, %lld, %lld]; the problem's is [%lld, %d, %d]",
                   name, (long long)tensor->shape[0], (long long)tensor->shape[1],
                   (long long)tensor->shape[2], (long long)tokens, heads, mixed->head_dim);
}

/*
 * The part's heads of a tensor as one F32 block [heads][tokens][head_dim] and a view of it as
 * [tokens, heads, head_dim]. `group`: heads of the tensor a KV head.
 */
static hr_status gather_heads(const part *at, const char *name, const hr_tensor *all, int32_t group,
                              hr_tensor *out)
{
    const int64_t tokens = all->shape[0], head_dim = all->shape[2];
    const int64_t shape[3] = {tokens, (int64_t)at->num_kv_heads * group, head_dim};
    float *data = hr_alloc((size_t)(shape[0] * shape[1] * shape[2]), sizeof *data);
    if (!data) return HR_ERROR_OUT_OF_MEMORY;
    *out = hr_tensor_view(HR_DTYPE_F32, 3, shape, data);
    out->stride[0] = head_dim;
    out->stride[1] = tokens * head_dim;
    for (int32_t h = 0; h < shape[1]; h++) {
        const int32_t head = head_of(at, h, group);
        const int64_t bad = hr_tensor_rows_load(all, head, 0, tokens, data + h * out->stride[1]);
        if (bad >= 0)
            return hr_fail(HR_ERROR_NUMERIC,
                           "%s has a NaN or infinity at token %lld, head %d, channel %lld; packing "
                           "takes finite values",
                           name, (long long)(bad / head_dim), head, (long long)(bad % head_dim));
    }
    return HR_OK;
}

/* A part's share of static values with `each` of them a head of `group` to a KV head. */
static hr_status gather_scale(const part *at, const float *all, int64_t each, int32_t group,
                              const float **out, float **owned)
{
    if (!all) return HR_OK;
    const int32_t heads = at->num_kv_heads * group;
    *out = *owned = hr_alloc((size_t)(heads * each), sizeof **owned);
    if (!*owned) return HR_ERROR_OUT_OF_MEMORY;
    for (int32_t h = 0; h < heads; h++)
        memcpy(*owned + h * each, all + head_of(at, h, group) * each,
               (size_t)each * sizeof **owned);
    return HR_OK;
}

enum { SCALES = 4 }; /* q, k, v and k_mean */

static hr_status gather_scales(const part *at, const hr_layer_scales *all, int32_t head_dim,
                               hr_layer_scales *out, float *owned[SCALES])
{
    const struct {
        const float *all;
        const float **out;
        const hr_operand_recipe *recipe;
        int32_t group;
    } scales[SCALES - 1] = {{all->q, &out->q, &at->recipe.q, at->group},
                            {all->k, &out->k, &at->recipe.k, 1},
                            {all->v, &out->v, &at->recipe.v, 1}};
    *out = (hr_layer_scales){.hadamard_seed = all->hadamard_seed};
    for (int i = 0; i < SCALES - 1; i++) {
        if (scales[i].recipe->granularity == HR_GRANULARITY_TENSOR)
            *scales[i].out = scales[i].all;
        else
            HR_TRY(
                gather_scale(at, scales[i].all,
                             scales[i].recipe->granularity == HR_GRANULARITY_CHANNEL ? head_dim : 1,
                             scales[i].group, scales[i].out, &owned[i]));
    }
    return gather_scale(at, all->k_mean, head_dim, 1, &out->k_mean, &owned[SCALES - 1]);
}

static hr_status pack_part(const hr_mixed *mixed, part *at, const hr_tensor *const all[3],
                           const hr_layer_scales *scales)
{
    static const char *const names[3] = {"q", "k", "v"};
    hr_tensor gathered[3] = {0};
    float *owned[SCALES] = {NULL};
    hr_layer_scales own = {0};
    const hr_layer_layouts layouts = hr_plan_layouts(at->plan);
    hr_status status = HR_OK;
    for (int i = 0; i < 3 && status == HR_OK; i++)
        status = gather_heads(at, names[i], all[i], i == 0 ? at->group : 1, &gathered[i]);
    if (status == HR_OK && scales)
        status = gather_scales(at, &scales[at->recipe_index], mixed->head_dim, &own, owned);
    if (status == HR_OK)
        status = hr_pack_layer(&at->recipe, &layouts, &gathered[0], &gathered[1], &gathered[2],
                               mixed->batch, mixed->cu_seqlens_q, mixed->cu_seqlens_kv,
                               scales ? &own : NULL, &at->packed);
    if (status == HR_OK) status = hr_device_run_create(at->plan, &at->packed, &at->run);
    for (int i = 0; i < 3; i++)
        free(gathered[i].data);
    for (int i = 0; i < SCALES; i++)
        free(owned[i]);
    return status;
}

hr_status hr_mixed_pack(hr_mixed *mixed, const hr_tensor *q, const hr_tensor *k, const hr_tensor *v,
                        const hr_layer_scales *scales)
{
    if (!mixed) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "mixed is NULL");
    HR_TRY(check_tensor(mixed, "q", q, mixed->num_heads, mixed->cu_seqlens_q));
    HR_TRY(check_tensor(mixed, "k", k, mixed->num_kv_heads, mixed->cu_seqlens_kv));
    HR_TRY(check_tensor(mixed, "v", v, mixed->num_kv_heads, mixed->cu_seqlens_kv));
    for (int32_t i = 0; i < mixed->part_count; i++)
        part_unpack(&mixed->parts[i]);
    for (int32_t i = 0; i < mixed->part_count; i++) {
        part *at = &mixed->parts[i];
        hr_status status = pack_part(mixed, at, (const hr_tensor *const[3]){q, k, v}, scales);
        if (status != HR_OK) return hr_fail_in(status, "recipe %s", at->recipe.name);
    }
    return HR_OK;
}

static hr_status check_packed(const hr_mixed *mixed)
{
    if (!mixed) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "mixed is NULL");
    for (int32_t i = 0; i < mixed->part_count; i++)
        if (!mixed->parts[i].run)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "nothing is packed yet; hr_mixed_pack comes first");
    return HR_OK;
}

hr_status hr_mixed_start(hr_mixed *mixed)
{
    HR_TRY(check_packed(mixed));
    for (int32_t i = 0; i < mixed->part_count; i++)
        HR_TRY(hr_device_run_start(mixed->parts[i].run));
    return HR_OK;
}

hr_status hr_mixed_wait(hr_mixed *mixed)
{
    HR_TRY(check_packed(mixed));
    for (int32_t i = 0; i < mixed->part_count; i++)
        HR_TRY(hr_device_run_wait(mixed->parts[i].run));
    return HR_OK;
}

/* rows [tokens][heads of the part][width] to [tokens][all heads][width]. */
static void scatter(const hr_mixed *mixed, const part *at, const float *rows, int64_t tokens,
                    int64_t width, float *out)
{
    const int32_t heads = at->num_kv_heads * at->group;
    for (int64_t t = 0; t < tokens; t++)
        for (int32_t h = 0; h < heads; h++)
            memcpy(out + (t * mixed->num_heads + query_head(at, h)) * width,
                   rows + (t * heads + h) * width, (size_t)width * sizeof *out);
}

hr_status hr_mixed_fetch(hr_mixed *mixed, float *o, float *lse)
{
    HR_TRY(check_packed(mixed));
    const int64_t tokens = mixed->cu_seqlens_q[mixed->batch];
    for (int32_t i = 0; i < mixed->part_count; i++) {
        part *at = &mixed->parts[i];
        HR_TRY(hr_device_run_fetch(at->run, o ? mixed->o : NULL, lse ? mixed->lse : NULL));
        if (o) scatter(mixed, at, mixed->o, tokens, mixed->head_dim, o);
        if (lse) scatter(mixed, at, mixed->lse, tokens, 1, lse);
    }
    return HR_OK;
}
