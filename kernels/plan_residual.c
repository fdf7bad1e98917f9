/*
 * Plans over a cache whose recipe has a residual: the last tokens of each sequence are read in
 * BF16, all before them from their codes.
 *
 *     tokens   0 .......... quantized | .......... seqlen_kv
 *              the plan itself        | plan->residual->recent, a plan of recipe bf16
 *
 * Each is a plan over its own keys, which knows how many keys come before and after them, and gives
 * an attention state; the two are merged row by row, and an epilogue follows when all heads of a
 * token are. A block mask's blocks are of the whole sequence, wherever the residual begins. Codes
 * stay in their pages and the residual in its own, so nothing is copied.
 */
#include "plan_residual.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "epilogue.h"
#include "kv_cache_internal.h"
#include "memory.h"
#include "status_internal.h"

enum { OLD, RECENT, PARTS };

struct hr_plan_residual {
    hr_plan *recent;
    int32_t tokens;              /* the recipe's residual */
    int32_t *cu_old, *cu_recent; /* [batch + 1] */
    int32_t *old, *kept;         /* [batch] keys of either part */
    int32_t *table;              /* [batch, ring pages]: the recent part's block table */
    int32_t blocks;              /* residual blocks that the cache must have */
    float *o, *lse;              /* [PARTS][total_q][num_heads][head_dim]; the same less head_dim */
    float *sinks;
    hr_epilogue *epilogue; /* NULL: none */
    float *rows;           /* with an epilogue: [threads][num_heads * head_dim] */
};

const hr_epilogue *hr_plan_residual_epilogue(const hr_plan_residual *residual)
{
    return residual->epilogue;
}

void hr_plan_residual_free(hr_plan_residual *residual)
{
    if (!residual) return;
    hr_plan_free(residual->recent);
    free(residual->cu_old);
    free(residual->cu_recent);
    free(residual->old);
    free(residual->kept);
    free(residual->table);
    free(residual->o);
    free(residual->lse);
    free(residual->sinks);
    free(residual->epilogue);
    free(residual->rows);
    free(residual);
}

static hr_status check_problem(const hr_attention_problem *problem, const hr_recipe *recipe)
{
    if (!problem->paging.page_size)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "recipe %s has a residual, which a paged KV cache keeps; a problem without "
                       "paging takes the recipe without it",
                       recipe->name);
    if (!problem->paging.residual_blocks)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "recipe %s has a residual; paging.residual_blocks must not be NULL",
                       recipe->name);
    for (int32_t b = 0; b < problem->batch; b++)
        if (problem->paging.residual_blocks[b] < 0)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "paging.residual_blocks[%d] is %d; it must be at least 0", b,
                           problem->paging.residual_blocks[b]);
    return HR_OK;
}

/* Which keys each part has, and the pages of the recent ones. */
static hr_status divide_keys(hr_plan_residual *residual, const hr_attention_problem *problem)
{
    const int32_t batch = problem->batch, pages = hr_kv_ring_pages(residual->tokens);
    for (int32_t b = 0; b < batch; b++) {
        const int32_t keys = problem->cu_seqlens_kv[b + 1] - problem->cu_seqlens_kv[b];
        const int32_t block = problem->paging.residual_blocks[b];
        residual->old[b] = hr_kv_quantized_tokens(residual->tokens, keys);
        residual->kept[b] = keys - residual->old[b];
        residual->cu_old[b + 1] = residual->cu_old[b] + residual->old[b];
        residual->cu_recent[b + 1] = residual->cu_recent[b] + residual->kept[b];
        if (((int64_t)block + 1) * pages > INT32_MAX)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "paging.residual_blocks[%d] is %d, more than a cache can have", b,
                           block);
        if (block >= residual->blocks) residual->blocks = block + 1;
        for (int32_t i = 0; i < pages; i++)
            residual->table[(int64_t)b * pages + i] =
                block * pages + (residual->old[b] / HR_RESIDUAL_MULTIPLE + i) % pages;
    }
    return HR_OK;
}

static hr_status allocate(hr_plan_residual *residual, const hr_attention_problem *problem)
{
    const size_t batch = (size_t)problem->batch, heads = (size_t)problem->num_heads;
    const size_t vectors = PARTS * heads * (size_t)problem->cu_seqlens_q[batch];
    residual->cu_old = hr_alloc(batch + 1, sizeof(int32_t));
    residual->cu_recent = hr_alloc(batch + 1, sizeof(int32_t));
    residual->old = hr_alloc(batch, sizeof(int32_t));
    residual->kept = hr_alloc(batch, sizeof(int32_t));
    residual->table = hr_alloc(batch * (size_t)hr_kv_ring_pages(residual->tokens), sizeof(int32_t));
    residual->o = hr_alloc(vectors, (size_t)problem->head_dim * sizeof(float));
    residual->lse = hr_alloc(vectors, sizeof(float));
    residual->sinks = hr_alloc(heads, sizeof(float));
    const bool complete = residual->cu_old && residual->cu_recent && residual->old &&
                          residual->kept && residual->table && residual->o && residual->lse &&
                          residual->sinks;
    return complete ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
}

static hr_status create_parts(hr_plan_residual *residual, const hr_attention_problem *problem,
                              const hr_recipe *recipe, const hr_plan_options *options,
                              hr_plan **out)
{
    hr_recipe bf16, codes = *recipe;
    HR_TRY(hr_recipe_parse("bf16", &bf16));
    codes.residual = 0;
    hr_attention_problem old = *problem, recent = *problem;
    old.sinks = recent.sinks = NULL; /* they join once, when the parts are merged */
    old.cu_seqlens_kv = residual->cu_old;
    old.paging.residual_blocks = NULL;
    recent.cu_seqlens_kv = residual->cu_recent;
    recent.paging = (hr_paging){.page_size = HR_RESIDUAL_MULTIPLE,
                                .max_pages = hr_kv_ring_pages(residual->tokens),
                                .block_table = residual->table};
    hr_plan_options of_old = {0};
    if (options) of_old = *options;
    of_old.epilogue = NULL; /* follows when the parts are merged */
    hr_plan_options of_recent = of_old;
    of_recent.kernel = NULL; /* a name means the kernel of the codes */
    const hr_plan_place first = {.after = residual->kept}, last = {.before = residual->old};
    HR_TRY(hr_plan_create_placed(&recent, &bf16, &of_recent, &last, &residual->recent));
    return hr_plan_create_placed(&old, &codes, &of_old, &first, out);
}

hr_status hr_plan_create_residual(const hr_attention_problem *problem, const hr_recipe *recipe,
                                  const hr_plan_options *options, hr_plan **out)
{
    HR_TRY(hr_attention_problem_check(problem));
    HR_TRY(check_problem(problem, recipe));
    hr_plan_residual *residual = hr_alloc(1, sizeof *residual);
    if (!residual) return HR_ERROR_OUT_OF_MEMORY;
    residual->tokens = recipe->residual;
    hr_status status = allocate(residual, problem);
    if (status == HR_OK) status = divide_keys(residual, problem);
    if (status == HR_OK && options && options->epilogue)
        status = hr_epilogue_copy(options->epilogue, problem, &residual->epilogue);
    if (status == HR_OK) status = create_parts(residual, problem, recipe, options, out);
    if (status == HR_OK && residual->epilogue) {
        residual->rows =
            hr_alloc((size_t)(*out)->threads,
                     (size_t)problem->num_heads * (size_t)problem->head_dim * sizeof(float));
        if (!residual->rows) status = HR_ERROR_OUT_OF_MEMORY;
    }
    if (status != HR_OK) {
        hr_plan_free(*out);
        *out = NULL;
        hr_plan_residual_free(residual);
        return status;
    }
    for (int32_t head = 0; head < problem->num_heads; head++)
        residual->sinks[head] = problem->sinks ? problem->sinks[head] : -INFINITY;
    (*out)->flops += residual->recent->flops;
    (*out)->residual = residual;
    return HR_OK;
}

static hr_status check_cache(const hr_plan_residual *residual, const hr_plan_tensors *tensors)
{
    const hr_kv_cache *cache = tensors->cache;
    if (!tensors->q_recent)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "q_recent must not be NULL: the plan's recipe has a residual");
    if (!cache->recent || cache->residual != residual->tokens)
        return hr_fail(HR_ERROR_MISMATCH, "the cache has a residual of %d; the plan has %d",
                       cache->recent ? cache->residual : 0, residual->tokens);
    if (cache->max_sequences < residual->blocks)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the plan reads residual block %d; the cache has %d", residual->blocks - 1,
                       cache->max_sequences);
    return HR_OK;
}

/* O and LSE of one token's heads, to where its row of O begins; lse: NULL or that row of LSE. */
static void merge_token(const hr_plan *plan, int64_t token, float *o, int64_t head_stride,
                        float *lse, int64_t lse_stride)
{
    const hr_plan_residual *residual = plan->residual;
    const int64_t heads = plan->problem.num_heads, head_dim = plan->problem.head_dim;
    const int64_t rows = plan->problem.cu_seqlens_q[plan->problem.batch] * heads;
    for (int64_t head = 0; head < heads; head++) {
        const int64_t row = token * heads + head;
        hr_merge_row(residual->o + row * head_dim, rows * head_dim, residual->lse + row, rows,
                     PARTS, (int32_t)head_dim, residual->sinks[head], o + head * head_stride,
                     lse ? lse + head * lse_stride : NULL);
    }
}

static void merge(const hr_plan *plan, const hr_plan_io *io)
{
    const hr_plan_residual *residual = plan->residual;
    const int64_t tokens = io->o->shape[0], head_dim = io->o->shape[2];
    const int64_t hidden = io->o->shape[1] * head_dim;
    const int threads = omp_in_parallel() || tokens * hidden < 1 << 16 ? 1 : plan->threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t token = 0; token < tokens; token++) {
        float *lse = io->lse ? (float *)io->lse->data + token * io->lse->stride[0] : NULL;
        const int64_t lse_stride = io->lse ? io->lse->stride[1] : 0;
        if (!residual->epilogue) {
            float *o = (float *)io->o->data + token * io->o->stride[0];
            merge_token(plan, token, o, io->o->stride[1], lse, lse_stride);
            continue;
        }
        float *row = residual->rows + (threads > 1 ? omp_get_thread_num() : 0) * hidden;
        merge_token(plan, token, row, head_dim, lse, lse_stride);
        hr_epilogue_apply(residual->epilogue, &(hr_epilogue_rows){.o = row,
                                                                  .first = token,
                                                                  .count = 1,
                                                                  .hidden = (int32_t)hidden,
                                                                  .residual = io->residual,
                                                                  .stream = io->stream,
                                                                  .out = io->o});
    }
}

hr_status hr_plan_run_residual(const hr_plan *plan, const hr_plan_tensors *tensors)
{
    const hr_plan_residual *residual = plan->residual;
    const hr_attention_problem *problem = &plan->problem;
    HR_TRY(check_cache(residual, tensors));
    const hr_plan_io outputs = {.o = tensors->o,
                                .lse = tensors->lse,
                                .residual = tensors->residual,
                                .stream = tensors->stream};
    HR_TRY(hr_plan_check_outputs(plan, &outputs));
    const int64_t shape[3] = {problem->cu_seqlens_q[problem->batch], problem->num_heads,
                              problem->head_dim};
    const int64_t rows = shape[0] * shape[1];
    for (int part = 0; part < PARTS; part++) {
        const hr_tensor o =
            hr_tensor_view(HR_DTYPE_F32, 3, shape, residual->o + part * rows * shape[2]);
        const hr_tensor lse = hr_tensor_view(HR_DTYPE_F32, 2, shape, residual->lse + part * rows);
        const hr_plan_io io = {.q = part == OLD ? tensors->q : tensors->q_recent,
                               .cache = part == OLD ? tensors->cache : tensors->cache->recent,
                               .o = &o,
                               .lse = &lse};
        hr_status status = hr_plan_run_io(part == OLD ? plan : residual->recent, &io);
        if (status != HR_OK) return part == OLD ? status : hr_fail_in(status, "the recent tokens");
    }
    merge(plan, &outputs);
    return HR_OK;
}
