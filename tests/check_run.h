/*
 * One case of the kernel check: input data, packing, the oracle's answer on the dequantized inputs,
 * a kernel's run into guarded memory, and the comparison.
 */
#ifndef HEADROOM_CHECK_RUN_H
#define HEADROOM_CHECK_RUN_H

#include "check_bound.h"
#include "check_fill.h"
#include "check_shapes.h"

typedef struct check_case {
    check_shape shape;
    check_fill fill;
    hr_recipe recipe;
    uint32_t features; /* of feature_sets */
    uint64_t seed;
    hr_attention_problem problem; /* arrays point into the two below and into shape */
    float alibi_slopes[16], sinks[16];
    hr_block_mask blocks; /* owned */
    hr_tensor q, k, v;    /* F32, owned */
    /* Filled by answer_case. */
    float *dequantized[3]; /* of q, k, v */
    double *o, *lse;       /* the oracle's */
    double *o_bound, *lse_bound;
    error_model bound_model; /* what the bounds hold for; tile_kv 0: not computed */
} check_case;

static inline void describe_case(const check_case *test, char text[512])
{
    const check_shape *shape = &test->shape;
    int used =
        snprintf(text, 512, "recipe %s, fill %s, heads %d/%d, head_dim %d, q", test->recipe.name,
                 fill_names[test->fill], shape->num_heads, shape->num_kv_heads, shape->head_dim);
    for (int b = 0; b < shape->batch; b++)
        used += snprintf(text + used, 512 - (size_t)used, " %d",
                         shape->cu_seqlens_q[b + 1] - shape->cu_seqlens_q[b]);
    used += snprintf(text + used, 512 - (size_t)used, ", kv");
    for (int b = 0; b < shape->batch; b++)
        used += snprintf(text + used, 512 - (size_t)used, " %d",
                         shape->cu_seqlens_kv[b + 1] - shape->cu_seqlens_kv[b]);
    for (uint32_t bit = 0; bit < HR_FEATURE_COUNT; bit++)
        if (test->features >> bit & 1)
            used += snprintf(text + used, 512 - (size_t)used, ", %s", hr_feature_name(1u << bit));
    snprintf(text + used, 512 - (size_t)used,
             ", window %d %d, keep %d, blocks %d x %d of %d heads, seed %llu",
             test->problem.mask.window_left, test->problem.mask.window_right,
             test->problem.mask.keep, test->blocks.block_q, test->blocks.block_kv,
             test->blocks.heads, (unsigned long long)test->seed);
}

static inline void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count + 1, size);
    cr_assert_not_null(memory);
    return memory;
}

static inline hr_tensor make_tensor(int32_t tokens, int32_t heads, int32_t head_dim)
{
    const int64_t extent[3] = {tokens, heads, head_dim};
    float *data = allocate((size_t)tokens * (size_t)heads * (size_t)head_dim, sizeof *data);
    return hr_tensor_view(HR_DTYPE_F32, 3, extent, data);
}

/* A random map of blocks; some rows see nothing, and some keys nobody sees. */
static inline void make_block_mask(check_case *test, check_random *random)
{
    static const int32_t sizes_q[] = {1, 7, 16, 64, 96, 128};
    static const int32_t sizes_kv[] = {3, 16, 40, 64, 64, 128};
    const check_shape *shape = &test->shape;
    const int32_t block_q = sizes_q[random_below(random, 6)];
    const int32_t block_kv = sizes_kv[random_below(random, 6)];
    const int32_t choices[] = {1, shape->num_kv_heads, shape->num_heads};
    const int32_t heads = choices[random_below(random, 3)];
    int32_t rows = 0, columns = 0;
    for (int32_t b = 0; b < shape->batch; b++) {
        int32_t n = shape->cu_seqlens_q[b + 1] - shape->cu_seqlens_q[b];
        int32_t m = shape->cu_seqlens_kv[b + 1] - shape->cu_seqlens_kv[b];
        rows += (n + block_q - 1) / block_q;
        if ((m + block_kv - 1) / block_kv > columns) columns = (m + block_kv - 1) / block_kv;
    }
    const size_t count = (size_t)heads * (size_t)rows * (size_t)columns;
    uint8_t *map = allocate(count, 1);
    for (size_t row = 0; row < (size_t)heads * (size_t)rows; row++) {
        const int32_t per_ten = random_below(random, 10); /* 0: a row of no blocks */
        for (int32_t c = 0; c < columns; c++)
            map[row * (size_t)columns + (size_t)c] = random_below(random, 10) < per_ten;
    }
    cr_assert_eq(hr_block_mask_from_map(map, block_q, block_kv, heads, shape->batch,
                                        shape->cu_seqlens_q, shape->cu_seqlens_kv, &test->blocks),
                 HR_OK, "%s", hr_last_error());
    free(map);
}

/* Parameters of the features, drawn small enough to matter at the shapes' lengths. */
static inline void make_problem(check_case *test, check_random *random)
{
    static const int32_t windows[] = {0, 1, 7, 40, 64, 200};
    const check_shape *shape = &test->shape;
    hr_attention_problem *problem = &test->problem;
    hr_attention_problem_init(problem, shape->num_heads, shape->num_kv_heads, shape->head_dim);
    problem->batch = shape->batch;
    problem->cu_seqlens_q = shape->cu_seqlens_q;
    problem->cu_seqlens_kv = shape->cu_seqlens_kv;
    problem->mask.causal = test->features & HR_FEATURE_CAUSAL;
    int32_t left = windows[random_below(random, 6)], right = windows[random_below(random, 6)];
    if (test->features & HR_FEATURE_WINDOW) {
        problem->mask.window_left = left;
        problem->mask.window_right = problem->mask.causal ? -1 : right;
    }
    if (test->features & HR_FEATURE_KEPT) problem->mask.keep = 1 + windows[random_below(random, 6)];
    if (test->features & HR_FEATURE_BLOCK_SPARSE) {
        make_block_mask(test, random);
        problem->mask.blocks = &test->blocks;
    }
    if (test->features & HR_FEATURE_SOFTCAP) problem->softcap = 5;
    for (int32_t head = 0; head < shape->num_heads; head++) {
        test->alibi_slopes[head] = exp2f(-1 - (float)head);
        test->sinks[head] = head % 3 == 2 ? -INFINITY : (float)(2 * random_normal(random));
    }
    if (test->features & HR_FEATURE_ALIBI) problem->alibi_slopes = test->alibi_slopes;
    if (test->features & HR_FEATURE_SINKS) problem->sinks = test->sinks;
}

/* shape, fill, recipe, features and seed are set; free with free_case. */
static inline void make_case(check_case *test)
{
    check_random random = {test->seed};
    const check_shape *shape = &test->shape;
    make_problem(test, &random);
    hr_tensor *tensors[3] = {&test->q, &test->k, &test->v};
    for (int i = 0; i < 3; i++) {
        int32_t tokens = (i ? shape->cu_seqlens_kv : shape->cu_seqlens_q)[shape->batch];
        int32_t heads = i ? shape->num_kv_heads : shape->num_heads;
        *tensors[i] = make_tensor(tokens, heads, shape->head_dim);
        fill_tensor(test->fill, &random, tokens, heads, shape->head_dim, tensors[i]->data);
    }
}

static inline void free_case(check_case *test)
{
    free(test->q.data);
    free(test->k.data);
    free(test->v.data);
    for (int i = 0; i < 3; i++)
        free(test->dequantized[i]);
    free(test->o);
    free(test->lse);
    free(test->o_bound);
    free(test->lse_bound);
    hr_block_mask_free(&test->blocks);
}

static inline void pack_case(const check_case *test, const hr_layer_layouts *layouts,
                             hr_packed_layer *packed)
{
    hr_status status =
        hr_pack_layer(&test->recipe, layouts, &test->q, &test->k, &test->v, test->shape.batch,
                      test->shape.cu_seqlens_q, test->shape.cu_seqlens_kv, NULL, packed);
    cr_assert_eq(status, HR_OK, "%s", hr_last_error());
}

/* x [tokens][heads][head_dim] with one more channel: bias[head][token], or `constant`, or 0. */
static inline hr_tensor add_channel(const float *x, int32_t tokens, int32_t heads, int32_t head_dim,
                                    const float *bias, float constant)
{
    hr_tensor wide = make_tensor(tokens, heads, head_dim + 1);
    float *out = wide.data;
    for (int64_t t = 0; t < tokens; t++)
        for (int32_t head = 0; head < heads; head++) {
            int64_t vector = t * heads + head;
            memcpy(out + vector * (head_dim + 1), x + vector * head_dim,
                   (size_t)head_dim * sizeof *x);
            out[vector * (head_dim + 1) + head_dim] =
                bias ? bias[(int64_t)head * tokens + t] : constant;
        }
    return wide;
}

/*
 * The oracle on the dequantized operands. What smoothing took from q.k is put back as one more
 * channel, q's bias times 1, so that cap and sinks act on the whole logit.
 */
static inline void run_oracle(check_case *test, const hr_packed_layer *packed)
{
    const check_shape *shape = &test->shape;
    const int32_t head_dim = shape->head_dim, heads = shape->num_heads;
    const int32_t tokens_q = shape->cu_seqlens_q[shape->batch];
    const int32_t tokens_kv = shape->cu_seqlens_kv[shape->batch];
    const float *const *x = (const float *const *)test->dequantized;
    hr_tensor q = add_channel(x[0], tokens_q, heads, head_dim, packed->q.lse_bias, 0);
    hr_tensor k = add_channel(x[1], tokens_kv, shape->num_kv_heads, head_dim, NULL, 1);
    hr_tensor v = add_channel(x[2], tokens_kv, shape->num_kv_heads, head_dim, NULL, 0);
    hr_attention_problem wide = test->problem;
    wide.head_dim++;
    const size_t rows = (size_t)tokens_q * (size_t)heads;
    double *o = allocate(rows * (size_t)wide.head_dim, sizeof *o);
    cr_assert_eq(hr_reference_attention(&wide, &q, &k, &v, o, test->lse), HR_OK, "%s",
                 hr_last_error());
    for (size_t row = 0; row < rows; row++)
        memcpy(test->o + row * (size_t)head_dim, o + row * (size_t)wide.head_dim,
               (size_t)head_dim * sizeof *o);
    free(o);
    free(q.data);
    free(k.data);
    free(v.data);
}

static inline void answer_case(check_case *test, const hr_packed_layer *packed)
{
    const hr_packed *operands[3] = {&packed->q, &packed->k, &packed->v};
    for (int i = 0; i < 3; i++) {
        size_t count = (size_t)operands[i]->total_tokens * (size_t)operands[i]->num_heads *
                       (size_t)operands[i]->head_dim;
        test->dequantized[i] = allocate(count, sizeof(float));
        cr_assert_eq(hr_unpack(operands[i], test->dequantized[i]), HR_OK, "%s", hr_last_error());
    }
    const size_t rows = (size_t)packed->q.total_tokens * (size_t)packed->q.num_heads;
    const size_t elements = rows * (size_t)packed->q.head_dim;
    test->o = allocate(elements, sizeof(double));
    test->o_bound = allocate(elements, sizeof(double));
    test->lse = allocate(rows, sizeof(double));
    test->lse_bound = allocate(rows, sizeof(double));
    run_oracle(test, packed);
}

/* Bounds for the row, kept from the last call when the model is the same. */
static inline void bound_case(check_case *test, const hr_packed_layer *packed,
                              const hr_kernel_info *row)
{
    error_model model = model_of(row, &test->recipe, test->shape.head_dim);
    if (test->bound_model.tile_kv == model.tile_kv && test->bound_model.half == model.half &&
        test->bound_model.half_decode == model.half_decode &&
        test->bound_model.half_blocks == model.half_blocks &&
        test->bound_model.fp22_qk == model.fp22_qk && test->bound_model.fp22_pv == model.fp22_pv &&
        test->bound_model.p_relative == model.p_relative)
        return;
    test->bound_model = model;
    compute_bound(&(bound_input){.problem = &test->problem,
                                 .packed = packed,
                                 .model = model,
                                 .q = test->dequantized[0],
                                 .k = test->dequantized[1],
                                 .v = test->dequantized[2],
                                 .lse = test->lse,
                                 .o_bound = test->o_bound,
                                 .lse_bound = test->lse_bound});
}

/*
 * A kernel's O and LSE, strided, between guard words that the kernel must leave alone. The guard is
 * a NaN of a pattern that no computation gives, so an element that was never written shows too.
 */
enum { GUARD_FLOATS = 64, HEAD_GAP = 2, TOKEN_GAP = 6 }; /* even: GPU kernels store pairs */
#define GUARD_BITS UINT32_C(0x7fd15ea5)

typedef struct guarded_output {
    float *memory;
    size_t count; /* floats in memory */
    hr_tensor o, lse;
} guarded_output;

static inline guarded_output make_output(const check_shape *shape)
{
    const int64_t tokens = shape->cu_seqlens_q[shape->batch], heads = shape->num_heads;
    const int64_t head_stride = shape->head_dim + HEAD_GAP;
    const int64_t token_stride = heads * head_stride + TOKEN_GAP;
    const size_t o_count = (size_t)(tokens * token_stride);
    const size_t lse_count = (size_t)(tokens * (heads + 1));
    guarded_output output = {.count = o_count + lse_count + 3 * GUARD_FLOATS};
    output.memory = allocate(output.count, sizeof(float));
    const uint32_t guard = GUARD_BITS;
    for (size_t i = 0; i < output.count; i++)
        memcpy(&output.memory[i], &guard, sizeof guard);
    output.o = hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){tokens, heads, shape->head_dim},
                              output.memory + GUARD_FLOATS);
    output.o.stride[0] = token_stride;
    output.o.stride[1] = head_stride;
    output.lse = hr_tensor_view(HR_DTYPE_F32, 2, (int64_t[]){tokens, heads},
                                output.memory + 2 * GUARD_FLOATS + o_count);
    output.lse.stride[0] = heads + 1;
    return output;
}

/* Runs a plan of a GPU on copies of the operands and of the whole guarded memory. */
static inline hr_status run_on_device(hr_plan *plan, const hr_packed_layer *packed,
                                      guarded_output *output)
{
    hr_packed_layer there;
    hr_tensor o = output->o, lse = output->lse;
    const size_t bytes = output->count * sizeof(float);
    void *memory = NULL;
    hr_status status = hr_packed_layer_copy(packed, HR_DEVICE_CUDA, &there);
    if (status == HR_OK) status = hr_device_alloc(HR_DEVICE_CUDA, bytes, 1, &memory);
    if (status == HR_OK)
        status = hr_device_copy(HR_DEVICE_CUDA, memory, HR_DEVICE_CPU, output->memory, bytes, NULL);
    o.device = lse.device = HR_DEVICE_CUDA;
    o.data = (float *)memory + ((float *)output->o.data - output->memory);
    lse.data = (float *)memory + ((float *)output->lse.data - output->memory);
    if (status == HR_OK) status = hr_plan_run(plan, &there, &o, &lse);
    if (status == HR_OK)
        status = hr_device_copy(HR_DEVICE_CPU, output->memory, HR_DEVICE_CUDA, memory, bytes, NULL);
    hr_device_free(HR_DEVICE_CUDA, memory);
    hr_packed_layer_free(&there);
    return status;
}

static inline float *o_row(const guarded_output *output, int64_t token, int64_t head)
{
    return (float *)output->o.data + token * output->o.stride[0] + head * output->o.stride[1];
}

static inline float *lse_of(const guarded_output *output, int64_t token, int64_t head)
{
    return (float *)output->lse.data + token * output->lse.stride[0] + head;
}

/* True when every float outside O and LSE still holds the guard. */
static inline bool guards_intact(const guarded_output *output, const check_shape *shape)
{
    const uint32_t guard = GUARD_BITS;
    unsigned char *written = allocate(output->count, 1);
    for (int64_t t = 0; t < shape->cu_seqlens_q[shape->batch]; t++)
        for (int64_t head = 0; head < shape->num_heads; head++) {
            memset(written + (o_row(output, t, head) - output->memory), 1, (size_t)shape->head_dim);
            written[lse_of(output, t, head) - output->memory] = 1;
        }
    bool intact = true;
    for (size_t i = 0; i < output->count; i++)
        if (!written[i] && memcmp(&output->memory[i], &guard, sizeof guard) != 0) intact = false;
    free(written);
    return intact;
}

/* Largest error over bound; a NaN anywhere is kept and passes no comparison. */
typedef struct comparison {
    double o, lse;                /* error over bound */
    int64_t token, head, channel; /* where O was worst */
} comparison;

/* 0 when equal, also both -inf: the LSE of a row without keys. */
static inline double error_ratio(double value, double reference, double bound)
{
    if (value == reference) return 0;
    return fabs(value - reference) / bound;
}

static inline comparison compare_output(const check_case *test, const guarded_output *output)
{
    const check_shape *shape = &test->shape;
    comparison worst = {0};
    for (int64_t t = 0; t < shape->cu_seqlens_q[shape->batch]; t++)
        for (int64_t head = 0; head < shape->num_heads; head++) {
            const int64_t row = t * shape->num_heads + head;
            double ratio =
                error_ratio((double)*lse_of(output, t, head), test->lse[row], test->lse_bound[row]);
            if (!(ratio <= worst.lse)) worst.lse = isnan(worst.lse) ? worst.lse : ratio;
            for (int64_t c = 0; c < shape->head_dim; c++) {
                const int64_t index = row * shape->head_dim + c;
                ratio = error_ratio((double)o_row(output, t, head)[c], test->o[index],
                                    test->o_bound[index]);
                if (ratio <= worst.o || isnan(worst.o)) continue;
                worst = (comparison){
                    .o = ratio, .lse = worst.lse, .token = t, .head = head, .channel = c};
            }
        }
    return worst;
}

#endif
