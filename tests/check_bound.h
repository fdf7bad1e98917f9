/*
 * How far a kernel may be from the FP64 oracle, derived row by row, to first order in the unit
 * roundoff u = 2^-24 of FP32 and in the rounding of P. Nothing here is fitted to a kernel's
 * results.
 *
 * Let s_j be row i's exact logits (nats), lse their log-sum, w_j = exp(s_j - lse) the exact
 * weights.
 *
 * 1. Logits. A dot product of n terms in FP32, in any order and fused or not, is off by at most
 *    n u sum |q_c k_c| <= n u |q| |k_j| (Higham 2002, 3.1; then Cauchy and Schwarz). Integer
 * products are exact: n = 0. Scales, log2(e), cap and bias are at most 16 more roundings of the
 * result: D_j = softmax_scale (n u |q| |k_j| + 16 u |q.k_j|) + 8 u softcap + 4 u |alibi term| With
 *    K's scales in groups the integer kernels add an exact product a group in FP32: n groups.
 *    Hopper's tensor cores add E4M3 products in 14 bits (DeepSeek-V3 technical report, 2024,
 *    3.5.2): an instruction aligns its 32 products and the accumulator to the largest of them, of
 *    magnitude L, cuts each 13 bits below L's leading one, and its sum likewise. From operands:
 *        2^-13 (33 L + |sum|) of each 32 channels, L and sum with what was lost before
 *    Of a tile's P V, whose accumulator starts at 0, L and |sum| are at most the sum of the tile's
 *    P |v|: tile / 32 instructions add 34 * 2^-13 (1 + p_relative) times it each to step 5.
 * 2. Weights before rounding. Relative error of exp(s_j - m): the logit's, the subtraction's
 *    u |s_j - m|, the exponential's own, six roundings a tile when tiles are joined, and the FP32
 *    sums over a tile's keys:
 *        E_j = (e^D_j - 1) + exp_error + u (4 max |s| + 6 tiles + tile_kv + 8)
 * 3. P. Rounding is relative to the largest weight M_t of the row's keys in the tile:
 *        R_j = p_relative w_j + p_absolute M_t
 *    A format of b significant bits rounds by at most 2^-b of the value: 2^-8 for BF16, 2^-4 for
 *    E4M3. Below 2^-6 the step of E4M3 is 2^-9, with M_t at 448: 2^-10 / 448 absolute. U8 has M_t
 *    at 255: 0.5 / 255 absolute; I16 has it at 128 * 255. When V's token scales f_j are folded into
 *    P before it is rounded, M_t = max w_j f_j and R_j is divided by f_j. Where V's scales f_jg are
 *    in groups, P of a group is relative to max w_j f_jg, and before that rounded twice to integers
 *    on the scale of 128 * 255, relative to M_t C_g, C_g = max f_jg / f_j of the tile's keys. P is
 *    254 or 255 at its largest, or a unit of P is one of those. All is divided by f_jg; and 8 u.
 *    On Hopper P is a half before it is U8, 1/16 more at 255 (halves from 128 on are 1/8 apart),
 * and takes f_j as 1 / f_j is in halves, 2^-11 of the value.
 * 4. Normalization. The sum of weights is taken before rounding, so its relative error is the mean
 *    of the E_j: T = sum w_j E_j + w_sink u (...) + 8 u. The integer kernels round weights to
 *    integers on a scale of 128 * 255 first: + 0.5 / (128 * 255) sum M_t / f_j. Hopper's sums P as
 *    halves: 2^-11 of each weight, in E_j, and half of the smallest half, 2^-25, of those below
 *    2^-14: + 2^-25 / 255 sum M_t / f_j. Matrix products cut their sums of 16: 17 * 2^-24 each, as
 *    much as FP32 sums of the tile's keys.
 *    Where O is in units of V's scale of the tile at work, two more roundings a tile: + 2 u tiles.
 * 5. Output.  |O_c - o_c| <= (sum_j (w_j (E_j + T + 2 u) + R_j) |v_jc|) / (1 - T)
 *    LSE.     |LSE - lse| <= T / (1 - T) + 4 u (|lse| + |bias| + max |s| + 1)
 */
#ifndef HEADROOM_CHECK_BOUND_H
#define HEADROOM_CHECK_BOUND_H

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "check_bound_half.h"
#include "check_bound_half_decode.h"
#include "check_recipes.h"
#include "cpu/integer_softmax.h"
#include "pack_scale.h"
#include "plan.h"

#define UNIT 0x1p-24
#define SMALLEST 0x1p-126 /* weights below may be 0 in a kernel */

/* The constants of 1 to 3 for one kernel and recipe. */
typedef struct error_model {
    double dot_terms;              /* n */
    double exp_error;              /* relative */
    double p_relative, p_absolute; /* of the weight; of the tile's largest */
    double sum_absolute;           /* of the tile's largest, in the sum of an even or wide tile */
    double tile_least;             /* a tile that weighs less than this counts as this much */
    bool fp22_qk, fp22_pv;         /* products of E4M3 on Hopper's tensor cores */
    bool sum_everywhere;           /* the same in other tiles */
    bool fold_v;                   /* V's token scales are rounded together with P */
    bool v_groups;                 /* those of its groups are */
    bool v_steps;                  /* O changes its unit where V's scale by block does */
    bool p_running;   /* P is rounded relative to a running maximum: M_t is that of all keys */
    bool half;        /* products are in FP16: check_bound_half.h */
    bool half_decode; /* likewise, in the decode kernel: check_bound_half_decode.h */
    bool half_blocks; /* and that with K in blocks */
    int32_t tile_kv;
} error_model;

/*
 * int8 on Hopper. ex2.approx is right to 2^-22, twice a weight (of the tile and of the row), and
 * log2 of V's scale by token, up to 16 in magnitude, adds 2^-21 of its own rounding and 16 u when
 * it joins the exponent; 2^-11 is a weight's rounding to a half.
 */
static inline void set_hopper_int8(error_model *model)
{
    model->dot_terms = 0;
    model->exp_error = 0x1p-21 + 0x1p-21 + 16 * UNIT + 0x1p-11;
    model->p_relative = 0x1p-11;
    model->p_absolute = (0.5 + 1.0 / 16) / 255 * (1 + 0x1p-10);
    model->sum_absolute = 0x1p-25 / 255;
    model->sum_everywhere = true;
    model->tile_least = 0x1p-98; /* 2^-126 after 2^16 of LEAD, and what V's scales differ by */
    model->fold_v = true;
}

static inline error_model model_of(const hr_kernel_info *row, const hr_recipe *recipe,
                                   int32_t head_dim)
{
    error_model model = {.tile_kv = row->tile_kv, .dot_terms = head_dim};
    const bool q_groups = recipe->q.granularity == HR_GRANULARITY_GROUP;
    const bool k_groups = recipe->k.granularity == HR_GRANULARITY_GROUP;
    if (is_integer(row->q_dtype) && is_integer(row->k_dtype) && !q_groups && !k_groups)
        model.dot_terms = 0;
    model.exp_error = 0x1p-22;
    switch (row->p_dtype) {
    case HR_DTYPE_BF16:
        model.p_relative = 0x1p-8;
        if (row->isa == HR_ISA_AVX512 && row->max_seqlen_q > 0) model.p_relative = 0; /* FP32 P */
        break;
    case HR_DTYPE_E4M3:
        model.p_relative = 0x1p-4;
        model.p_absolute = 0x1p-10 / 448;
        model.p_running = row->isa == HR_ISA_SM90; /* 448 at the running maximum, not the tile's */
        model.fp22_pv = row->isa == HR_ISA_SM90;
        model.fp22_qk = model.fp22_pv && row->k_dtype == HR_DTYPE_E4M3;
        model.v_steps = model.fp22_pv && recipe->v.granularity == HR_GRANULARITY_BLOCK;
        model.half = row->isa == HR_ISA_AVX512FP16 && row->max_seqlen_q == 0;
        model.half_decode = row->isa == HR_ISA_AVX512FP16 && row->max_seqlen_q > 0;
        model.half_blocks = model.half_decode && row->k_layout == HR_LAYOUT_BLOCKS_K;
        if (!model.half && !model.half_decode) break;
        model.dot_terms = 0;
        model.p_relative = model.half ? 0 : HALF_DECODE_P_RELATIVE;
        model.p_absolute = model.half ? 0 : HALF_DECODE_P_ABSOLUTE;
        break;
    case HR_DTYPE_U8:
    case HR_DTYPE_I16:
        if (row->isa == HR_ISA_SM90) {
            set_hopper_int8(&model);
            break;
        }
        /*
         * kernels/cpu/integer_softmax.h: a logit is rounded to 1/1024 octave, half a unit each for
         * the key and for the maximum; weights are good to HR_INTEGER_WEIGHT_ERROR and R_j to
         * 2^-10. A weight is rounded to an integer on a scale of 128 * 255, then to U8 or not.
         */
        model.exp_error = HR_INTEGER_WEIGHT_ERROR + 0x1p-10 * HR_INTEGER_LN2 + 0x1p-10 + 1e-5;
        model.sum_absolute = 0.5 / 128 / 255;
        model.p_absolute =
            row->p_dtype == HR_DTYPE_U8 ? (0.5 + 1.0 / 256) / 255 : model.sum_absolute;
        model.tile_least = 0x1p-98; /* 2^-100, over weights that rounding may have made smaller */
        model.fold_v = true;
        if (k_groups) model.dot_terms = (double)head_dim / recipe->k.block;
        model.v_groups = recipe->v.granularity == HR_GRANULARITY_GROUP;
        break;
    default:
        cr_assert_fail("no error model for P in %s", hr_dtype_name(row->p_dtype));
    }
    return model;
}

/* The scale that a token's codes share; the largest of its groups. */
static inline double token_scale(const hr_packed *packed, int32_t head, int32_t sequence,
                                 int32_t token)
{
    const float *scale =
        packed->scale + hr_scale_offset(packed, head, sequence) + hr_scale_step(packed, token);
    if (packed->recipe.granularity != HR_GRANULARITY_GROUP) return (double)scale[0];
    double largest = 0;
    for (int32_t g = 0; g < packed->head_dim / packed->recipe.block; g++)
        largest = fmax(largest, (double)scale[g]);
    return largest;
}

static inline double dot_product(const float *a, const float *b, int32_t count)
{
    double sum[4] = {0};
    for (int32_t i = 0; i < count; i += 4)
        for (int32_t k = 0; k < 4; k++)
            sum[k] += (double)a[i + k] * (double)b[i + k];
    return sum[0] + sum[1] + sum[2] + sum[3];
}

/* What Hopper's tensor cores lose of a dot product of E4M3 operands; step 1. */
static inline double fp22_dot_error(const float *a, const float *b, int32_t count)
{
    double sum = 0, error = 0;
    for (int32_t begin = 0; begin < count; begin += 32) {
        double largest = fabs(sum) + error;
        for (int32_t i = begin; i < begin + 32 && i < count; i++) {
            const double product = (double)a[i] * (double)b[i];
            largest = fmax(largest, fabs(product));
            sum += product;
        }
        error += 0x1p-13 * (33 * largest + fabs(sum) + error);
    }
    return error;
}

/* What the bound is computed from; dequantized operands are [tokens][heads][head_dim]. */
typedef struct bound_input {
    const hr_attention_problem *problem;
    const hr_packed_layer *packed;
    error_model model;
    const float *q, *k, *v;
    const double *lse; /* the oracle's, [total_q][num_heads] */
    double *o_bound;   /* [total_q][num_heads][head_dim] */
    double *lse_bound; /* [total_q][num_heads] */
} bound_input;

/* What a bound needs to know of a sequence's keys under one KV head. */
typedef struct key_facts {
    const float *k, *v;  /* of the key */
    double scale;        /* of k's codes */
    double norm, fold;   /* |k|, f */
    const float *groups; /* f_jg */
} key_facts;

static inline key_facts *list_keys(const bound_input *in, int32_t sequence, int32_t kv_head)
{
    const hr_attention_problem *problem = in->problem;
    const hr_packed *k = &in->packed->k, *v = &in->packed->v;
    const int32_t first = problem->cu_seqlens_kv[sequence], head_dim = problem->head_dim;
    const int32_t count = problem->cu_seqlens_kv[sequence + 1] - first;
    const bool fold = in->model.fold_v && v->recipe.granularity != HR_GRANULARITY_CHANNEL;
    key_facts *keys = calloc((size_t)count + 1, sizeof *keys);
    cr_assert_not_null(keys);
    for (int32_t j = 0; j < count; j++) {
        int64_t offset = ((int64_t)(first + j) * problem->num_kv_heads + kv_head) * head_dim;
        key_facts *key = &keys[j];
        key->k = in->k + offset;
        key->v = in->v + offset;
        key->norm = sqrt(dot_product(key->k, key->k, head_dim));
        key->scale = k->scale ? token_scale(k, kv_head, sequence, j) : 1;
        key->fold = fold ? token_scale(v, kv_head, sequence, j) : 1;
        if (in->model.v_groups)
            key->groups = v->scale + hr_scale_offset(v, kv_head, sequence) + hr_scale_step(v, j);
    }
    return keys;
}

/* One row's logit errors and weights; arrays are indexed by key. */
typedef struct row_state {
    double *weight, *error; /* w_j; D_j, then E_j; 0 for keys that are not seen */
    double largest;         /* max |s_j| */
    double q_scale;         /* of q's codes */
    const float *v_scale;   /* of v's, one a channel or one for all */
    bool v_channels;
    bool *visible;
    int32_t keys; /* seqlen_kv */
} row_state;

/* Step 1. `bias` is what smoothing took from every logit, in nats. */
static inline void bound_logits(const bound_input *in, const key_facts *keys, const float *q,
                                double bias, const hr_kernel_args *args, int32_t row, int32_t head,
                                double lse, row_state *state)
{
    const hr_attention_problem *problem = in->problem;
    const int32_t head_dim = problem->head_dim;
    const double scale = (double)problem->softmax_scale, cap = (double)problem->softcap;
    const double slope = problem->alibi_slopes ? (double)problem->alibi_slopes[head] : 0;
    const double q_norm = sqrt(dot_product(q, q, head_dim));
    state->largest = 0;
    for (int32_t j = 0; j < state->keys; j++) {
        state->weight[j] = state->error[j] = 0;
        if (!state->visible[j]) continue;
        const key_facts *key = &keys[j];
        double s = scale * dot_product(q, key->k, head_dim);
        double error = scale * in->model.dot_terms * UNIT * q_norm * key->norm;
        if (in->model.fp22_qk) error += scale * fp22_dot_error(q, key->k, head_dim);
        if (in->model.half)
            error += scale * half_dot_error(q, key->k, head_dim, state->q_scale * key->scale);
        if (in->model.half_decode)
            error += scale * half_decode_dot_error(q, key->k, head_dim, in->model.half_blocks,
                                                   state->q_scale * key->scale);
        error += 16 * UNIT * (fabs(s) + (cap > 0 ? fabs(bias) : 0));
        if (cap > 0) {
            s = cap * tanh((s + bias) / cap);
            error += 8 * UNIT * cap;
        }
        double term = slope * fabs((double)row + args->shift - j);
        s -= term;
        error += 4 * UNIT * fabs(term);
        state->largest = fmax(state->largest, fabs(s));
        state->weight[j] = exp(s + (cap > 0 ? 0 : bias) - lse);
        state->error[j] = error;
    }
}

/* Tiles a row's keys are spread over: each run of them starts one, and each multiple of `tile`. */
static inline int32_t count_tiles(const row_state *state, int32_t tile)
{
    int32_t tiles = 0;
    for (int32_t j = 0; j < state->keys; j++)
        tiles += state->visible[j] && (j % tile == 0 || !state->visible[j - 1]);
    return tiles + 1; /* kept keys end one without a gap */
}

/* M_t of the tile that starts at key `begin`; *running, negative at first, keeps that of all. */
static inline double tile_top(const error_model *model, const row_state *state,
                              const key_facts *keys, int32_t begin, double *running)
{
    double top = 0;
    const int32_t end = model->p_running ? state->keys : begin + model->tile_kv;
    if (model->p_running && *running >= 0) return *running;
    for (int32_t j = model->p_running ? 0 : begin; j < end && j < state->keys; j++)
        top = fmax(top, state->weight[j] * keys[j].fold);
    *running = top;
    return top;
}

/* What rounding weights to integers adds to T: in even and wide tiles. */
static inline double bound_sum(const error_model *model, const row_state *state,
                               const key_facts *keys)
{
    double total = 0, running = -1;
    for (int32_t begin = 0; begin < state->keys; begin += model->tile_kv) {
        double least = INFINITY, largest = 0, inverse = 0;
        for (int32_t j = begin; j < begin + model->tile_kv && j < state->keys; j++) {
            least = fmin(least, keys[j].fold);
            largest = fmax(largest, keys[j].fold);
            if (state->visible[j]) inverse += 1 / keys[j].fold;
        }
        if (model->sum_everywhere || largest <= (double)HR_INTEGER_WIDE * 1.0001 * least)
            total += model->sum_absolute * inverse * tile_top(model, state, keys, begin, &running);
    }
    return total;
}

/* What sums of weighted values of keys [begin, end) in FP16 add to step 5. */
static inline void bound_value_sums(const row_state *state, const key_facts *keys, int32_t begin,
                                    int32_t end, int32_t head_dim, double top, double *o_bound)
{
    for (int32_t c = 0; c < head_dim; c++) {
        half_path path = {0};
        for (int32_t j = begin; j < end; j++)
            if (state->visible[j]) half_path_add(&path, state->weight[j] * (double)keys[j].v[c]);
        double unit = top * (double)state->v_scale[state->v_channels ? c : 0];
        o_bound[c] += half_sum_error(&path, unit);
    }
}

/*
 * A row whose logits are too uncertain for first-order bounds. What stays certain: LSE is off by no
 * more than the worst logit and what follows it; O is a mean of values, each weight rounded by 2^-4
 * at most.
 */
static inline void bound_undecided(const row_state *state, const key_facts *keys, int32_t head_dim,
                                   double *o_bound, double *lse_bound)
{
    double worst = 0;
    for (int32_t j = 0; j < state->keys; j++) {
        if (!state->visible[j]) continue;
        worst = fmax(worst, log1p(state->error[j]));
        for (int32_t c = 0; c < head_dim; c++)
            o_bound[c] = fmax(o_bound[c], 2.25 * fabs((double)keys[j].v[c]));
    }
    *lse_bound = worst + state->keys * HALF_LOST;
}

/*
 * What step 5 adds for a key whose weight is off by `error` and, in rounding P, by `rounding`, or
 * `group_rounding` of the units of each group's weights.
 */
static inline void add_key(const bound_input *in, const key_facts *key, double error,
                           double rounding, const double *group_rounding, double *o_bound)
{
    const int32_t head_dim = in->problem->head_dim;
    const int32_t width = in->model.v_groups ? in->packed->v.recipe.block : head_dim;
    for (int32_t g = 0; g * width < head_dim; g++) {
        const double p = in->model.v_groups ? group_rounding[g] / (double)key->groups[g] : rounding;
        for (int32_t c = g * width; c < (g + 1) * width; c++)
            o_bound[c] += (error + p) * fabs((double)key->v[c]);
    }
}

/* What rounding P adds to the weights of each group of the tile's keys [begin, end); see step 3. */
static inline void bound_groups(const bound_input *in, const row_state *state,
                                const key_facts *keys, int32_t begin, int32_t end, double top,
                                double *rounding)
{
    const int32_t groups =
        in->model.v_groups ? in->problem->head_dim / in->packed->v.recipe.block : 0;
    for (int32_t g = 0; g < groups; g++) {
        double largest = 0, share = 0;
        for (int32_t j = begin; j < end; j++) {
            const double scale = (double)keys[j].groups[g];
            share = fmax(share, scale / keys[j].fold);
            if (state->visible[j]) largest = fmax(largest, state->weight[j] * scale);
        }
        rounding[g] = 0.5 / 254 * largest + 4 * in->model.sum_absolute * top * share;
    }
}

/* Steps 2 to 5 for one row; o_bound has head_dim entries. */
static inline void bound_row(const bound_input *in, const key_facts *keys, double bias, double sink,
                             double lse, row_state *state, double *o_bound, double *lse_bound)
{
    const error_model *model = &in->model;
    const int32_t head_dim = in->problem->head_dim, tile = model->tile_kv;
    const int32_t tiles = count_tiles(state, tile);
    const double joined = UNIT * (4 * state->largest + 6 * tiles + tile + 8);
    double total = 8 * UNIT; /* T */
    if (sink > -INFINITY)
        total += exp(sink - lse) * (joined + 4 * UNIT * (fabs(sink) + fabs(bias)));
    double top = 0, running = -1, largest_fold = 0; /* M_t */
    for (int32_t j = 0; j < state->keys; j++) {
        largest_fold = fmax(largest_fold, keys[j].fold);
        if (j % tile == 0) top = tile_top(model, state, keys, j, &running);
        if (!state->visible[j]) continue;
        state->error[j] = expm1(state->error[j]) + model->exp_error + joined;
        if (model->half) state->error[j] += half_weight_error(state->weight[j], top);
        total += state->weight[j] * state->error[j];
        if (model->half) total += HALF_LOST * top;
    }
    if (model->sum_absolute > 0) total += bound_sum(model, state, keys);
    /*
     * A bound of a quarter or more would say nothing. The shapes and fills stay far below, but for
     * products in FP16 or 22 bits under logits of some dozens: e_quant is near 1 there too.
     */
    if ((model->half || model->half_decode || model->fp22_qk) && total >= 0.25) {
        bound_undecided(state, keys, head_dim, o_bound, lse_bound);
        return;
    }
    cr_assert_lt(total, 0.25, "the error bound is too loose to test anything: %g", total);

    for (int32_t begin = 0; begin < state->keys;) {
        int32_t end = (begin / tile + 1) * tile;
        if (end > state->keys) end = state->keys;
        double group_rounding[HR_INTEGER_MAX_HEAD_DIM / 2];
        top = tile_top(model, state, keys, begin, &running);
        bound_groups(in, state, keys, begin, end, top, group_rounding);
        for (int32_t j = begin; j < end; j++) {
            if (!state->visible[j]) continue;
            const double weight = state->weight[j];
            double factor = weight * (state->error[j] + total + 2 * UNIT) + SMALLEST;
            if (model->v_steps) factor += 2 * tiles * UNIT * weight;
            factor += model->tile_least * largest_fold / keys[j].fold;
            if (model->half) factor += HALF_LOST * top;
            if (model->fp22_pv)
                factor += tile / 32 * 34 * 0x1p-13 * (1 + model->p_relative) * weight;
            if (model->v_groups) factor += 8 * UNIT * weight;
            add_key(in, &keys[j], factor,
                    model->p_relative * weight + model->p_absolute * top / keys[j].fold,
                    group_rounding, o_bound);
        }
        if (model->half) bound_value_sums(state, keys, begin, end, head_dim, top, o_bound);
        begin = end;
    }
    for (int32_t c = 0; c < head_dim; c++)
        o_bound[c] = o_bound[c] / (1 - total) + 1e-37;
    *lse_bound = total / (1 - total) + 4 * UNIT * (fabs(lse) + fabs(bias) + state->largest + 1);
}

static inline void bound_head(const bound_input *in, int32_t sequence, int32_t head)
{
    const hr_attention_problem *problem = in->problem;
    const int32_t heads = problem->num_heads, head_dim = problem->head_dim;
    const int32_t kv_head = head / (heads / problem->num_kv_heads);
    const hr_packed *q_packed = &in->packed->q;
    const double sink = problem->sinks ? (double)problem->sinks[head] : -INFINITY;
    hr_kernel_args args = hr_sequence_args(problem, sequence);
    key_facts *keys = list_keys(in, sequence, kv_head);
    size_t count = (size_t)args.seqlen_kv + 1;
    row_state state = {.weight = malloc(count * sizeof(double)),
                       .error = malloc(count * sizeof(double)),
                       .visible = malloc(count),
                       .v_scale = in->packed->v.scale,
                       .v_channels = in->packed->v.recipe.granularity == HR_GRANULARITY_CHANNEL,
                       .keys = args.seqlen_kv};
    cr_assert(state.weight && state.error && state.visible);
    if (state.v_scale) state.v_scale += hr_scale_offset(&in->packed->v, kv_head, sequence);
    for (int32_t row = 0; row < args.seqlen_q; row++) {
        const int64_t token = problem->cu_seqlens_q[sequence] + row, index = token * heads + head;
        hr_mask_row(problem, sequence, head, row, state.visible);
        for (int32_t c = 0; c < head_dim; c++)
            in->o_bound[index * head_dim + c] = 0;
        if (!memchr(state.visible, true, (size_t)state.keys)) {
            in->lse_bound[index] = sink > -INFINITY ? 4 * UNIT * fabs(sink) : 0;
            continue;
        }
        double bias = 0;
        if (q_packed->lse_bias)
            bias = (double)problem->softmax_scale *
                   (double)q_packed->lse_bias[head * q_packed->total_tokens + token];
        if (in->model.half || in->model.half_decode)
            state.q_scale = token_scale(q_packed, head, sequence, row);
        bound_logits(in, keys, in->q + index * head_dim, bias, &args, row, head, in->lse[index],
                     &state);
        bound_row(in, keys, bias, sink, in->lse[index], &state, in->o_bound + index * head_dim,
                  &in->lse_bound[index]);
    }
    free(state.weight);
    free(state.error);
    free(state.visible);
    free(keys);
}

static inline void compute_bound(const bound_input *in)
{
    for (int32_t b = 0; b < in->problem->batch; b++)
        for (int32_t head = 0; head < in->problem->num_heads; head++)
            bound_head(in, b, head);
}

#endif
