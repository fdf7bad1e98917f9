/*
 * How a tile of keys enters a task of the integer kernels on short vectors: step 1 of
 * integer_softmax.h for its scales, and K and V in the layouts of integer_tile_task.h. Loops are
 * written so that compilers vectorize them; what a tile costs is shared by the 96 rows of a task.
 */
#ifndef HEADROOM_INTEGER_TILE_LOAD_H
#define HEADROOM_INTEGER_TILE_LOAD_H

#include "integer_tile_task.h"

/* x[] * 2^exponent, rounded once. */
static void scale_by_power(float *x, int32_t count, int32_t exponent)
{
    if (exponent >= -126 && exponent <= 126) {
        const float power = hr_integer_power(exponent);
        for (int32_t j = 0; j < count; j++)
            x[j] *= power;
        return;
    }
    for (int32_t j = 0; j < count; j++)
        x[j] = ldexpf(x[j], exponent);
}

/* The largest of numbers above 0: their bits are in the same order, and compilers vectorize that.
 */
static float largest_of(const float *x, int32_t count)
{
    int32_t largest = 0;
    for (int32_t j = 0; j < count; j++) {
        const int32_t bits = (int32_t)hr_integer_bits(x[j]);
        largest = bits > largest ? bits : largest;
    }
    return hr_integer_float((uint32_t)largest);
}

/* The tokens' scales, and their exponent F or E. */
static int32_t gather_scales(const task *t, const hr_kernel_operand *operand, int32_t count,
                             float scale[HR_INTEGER_TILE])
{
    if (operand->granularity == HR_GRANULARITY_TOKEN && !operand->pages)
        memcpy(scale, operand->scale + t->first, (size_t)count * sizeof *scale);
    else
        for (int32_t j = 0; j < count; j++)
            scale[j] = hr_integer_token_scale(operand, t->head_dim, t->first + j);
    return hr_integer_exponent(largest_of(scale, count));
}

/* Words in the order of the keys -> packed order. */
static void pack_keys(const int16_t in[HR_INTEGER_TILE], int16_t out[HR_INTEGER_TILE])
{
    for (int32_t j = 0; j < HR_INTEGER_TILE; j += 4)
        memcpy(out + j, in + j / CHUNK * CHUNK + packed_key(j % CHUNK), 4 * sizeof *out);
}

/* The scales of a token's group, group g of `groups`, times 2^exponent; 0 past `count`. */
static void gather_groups(const task *t, const hr_kernel_operand *operand, int32_t groups,
                          int32_t g, int32_t count, int32_t exponent, float scale[HR_INTEGER_TILE])
{
    for (int32_t j = 0; j < count; j++)
        scale[j] = hr_integer_group_scales(operand, groups, t->first + j)[g];
    scale_by_power(scale, count, exponent);
    memset(scale + count, 0, (size_t)(HR_INTEGER_TILE - count) * sizeof *scale);
}

/* Step 1 for scales in groups; r is 1 / w. */
static void prepare_groups(task *t, const float r[HR_INTEGER_TILE], int32_t count)
{
    tile_scales *tile = &t->tile;
    for (int32_t g = 0; g < t->k_groups; g++)
        gather_groups(t, &t->args->k, t->k_groups, g, count, -tile->f, tile->k_group[g]);
    for (int32_t g = 0; g < t->v_groups; g++) {
        float share[HR_INTEGER_TILE];
        int16_t words[HR_INTEGER_TILE];
        gather_groups(t, &t->args->v, t->v_groups, g, count, -tile->e, share);
        for (int32_t j = 0; j < count; j++)
            share[j] = hr_integer_max(share[j] * r[j], HR_INTEGER_MIN_SHARE);
        const float largest = largest_of(share, count), unit = HR_INTEGER_SHARE_UNIT / largest;
        for (int32_t j = 0; j < HR_INTEGER_TILE; j++)
            words[j] = (int16_t)hr_integer_round(share[j] * unit);
        pack_keys(words, tile->share[g]);
        tile->largest[g] = largest * HR_INTEGER_SHARE_STEP;
    }
}

/* A_j and B_j of step 1 from r = r_j * (4096 / H), in packed order. */
static void make_sum_factors(tile_scales *tile, const float r[HR_INTEGER_TILE])
{
    int16_t sum[HR_INTEGER_TILE], rest[HR_INTEGER_TILE];
    for (int32_t j = 0; j < HR_INTEGER_TILE; j++) {
        const int32_t whole = hr_integer_round(r[j]);
        sum[j] = (int16_t)whole;
        rest[j] = (int16_t)hr_integer_round((r[j] - (float)whole) * 4096);
    }
    pack_keys(sum, tile->sum);
    pack_keys(rest, tile->rest);
}

/* Step 1 for the first `count` keys of the tile; those behind them are seen by no row. */
static void prepare_tile(task *t, int32_t count)
{
    const hr_kernel_args *args = t->args;
    tile_scales *tile = &t->tile;
    float r[HR_INTEGER_TILE] = {0};
    memset(tile->k, 0, sizeof tile->k);
    memset(tile->u, 0, sizeof tile->u);
    tile->f = gather_scales(t, &args->k, count, tile->k);
    tile->e = gather_scales(t, &args->v, count, r);
    scale_by_power(tile->k, count, -tile->f);
    scale_by_power(r, count, -tile->e);
    const float r_min = 1 / largest_of(r, count);
    for (int32_t j = 0; j < count; j++) {
        tile->k[j] = hr_integer_round22(tile->k[j]);
        const float w = hr_integer_max(r[j], HR_INTEGER_MIN_V);
        tile->u[j] = fmaf(hr_integer_log2(w), -HR_INTEGER_OCTAVE, HR_INTEGER_OFFSET);
        r[j] = 1.0f / w;
    }
    const float r_max = largest_of(r, count);
    tile->even = r_max <= HR_INTEGER_EVEN * r_min;
    tile->wide = !tile->even && r_max <= HR_INTEGER_WIDE * r_min;
    tile->h = r_max;
    prepare_groups(t, r, count);
    if (!tile->even && !tile->wide) return;
    const float unit = 4096 / r_max;
    for (int32_t j = 0; j < HR_INTEGER_TILE; j++)
        r[j] *= unit;
    make_sum_factors(tile, r);
}

/* The first `values` expanded codes as products take them. */
static const product_code *narrow_codes(task *t, int32_t values, int offset)
{
    if (CODES == 2) return (const product_code *)t->wide;
    const int16_t *restrict wide = t->wide;
    product_code *restrict narrow = t->narrow;
    for (int32_t i = 0; i < values; i++)
        narrow[i] = (product_code)(wide[i] + offset);
    return narrow;
}

/* I8 codes, where products take bytes: not by way of int16. */
static const product_code *load_bytes(task *t, const hr_kernel_operand *operand, int32_t first,
                                      int32_t count, int32_t padded, int offset)
{
    const int32_t head_dim = t->head_dim;
    for (int32_t i = 0, run; i < count; i += run) {
        run = hr_kernel_run(operand, first + i, count - i);
        const int8_t *restrict codes =
            (const int8_t *)operand->codes + hr_kernel_slot(operand, first + i) * head_dim;
        product_code *restrict row = t->narrow + (int64_t)i * head_dim;
        for (int32_t c = 0; c < run * head_dim; c++)
            row[c] = (product_code)(codes[c] + offset);
    }
    const size_t rest = (size_t)(padded - count) * (size_t)head_dim;
    memset(t->narrow + (int64_t)count * head_dim, offset, rest * sizeof *t->narrow);
    return t->narrow;
}

/* Tokens from `first` on, `count` of them and zeros up to `padded`, as rows. */
static const product_code *load_rows(task *t, hr_integer_expand expand,
                                     const hr_kernel_operand *operand, int32_t first, int32_t count,
                                     int32_t padded, int offset)
{
    if (CODES > 2 && expand == hr_integer_expand_i8)
        return load_bytes(t, operand, first, count, padded, offset);
    const size_t row = (size_t)t->head_dim;
    expand(operand, t->head_dim, first, count, t->wide);
    memset(t->wide + (size_t)count * row, 0, (size_t)(padded - count) * row * sizeof *t->wide);
    return narrow_codes(t, padded * t->head_dim, offset);
}

/* Keys [from, to) of the tile, multiples of 32, from rows to K's layout. */
static void lay_out_keys(task *t, const product_code *rows, int32_t from, int32_t to)
{
    const int32_t steps = t->head_dim / CODES;
    for (int32_t key = from; key < to; key += UNITS) {
        product_code *out = t->k + (int64_t)(key / BLOCK * steps * BLOCK + key % BLOCK) * CODES;
        for (int32_t step = 0; step < steps; step += UNITS) {
            ivec v[UNITS];
            for (int i = 0; i < UNITS; i++)
                v[i] = ivec_load(rows + (int64_t)(key - from + i) * t->head_dim + step * CODES);
            transpose(v);
            for (int i = 0; i < UNITS && step + i < steps; i++)
                ivec_store(out + (step + i) * BLOCK * CODES, v[i]);
        }
    }
}

/* 16 channels of CODES rows side by side, in the packed order. */
INLINE void interleave(const product_code *restrict in, int32_t stride, product_code *restrict out)
{
    for (int i = 0; i < BLOCK; i++)
        for (int n = 0; n < CODES; n++)
            out[i * CODES + n] = in[packed_key(n) * stride + i];
}

/* Keys [from, to) of the tile, multiples of 32, from rows to V's layout. */
static void lay_out_values(task *t, const product_code *rows, int32_t from, int32_t to)
{
    const int32_t head_dim = t->head_dim, channels = t->channels;
    for (int32_t at = from; at < to; at += CODES) {
        const int32_t key = at / CHUNK * CHUNK + packed_key(at % CHUNK) - from;
        const product_code *in = rows + (int64_t)key * head_dim;
        product_code *out = t->v + at * BLOCK;
        for (int32_t c = 0; c < channels; c += BLOCK, out += HR_INTEGER_TILE * BLOCK)
            interleave(in + c, head_dim, out);
    }
}

/* The tile at t->first, as far as the range goes. */
static void load_tile(task *t, const hr_kernel_range *range)
{
    const hr_kernel_args *args = t->args;
    const int32_t left = args->seqlen_kv - t->first;
    const int32_t keys = left < HR_INTEGER_TILE ? left : HR_INTEGER_TILE;
    const int32_t begin = range->begin - t->first, end = range->end - t->first;
    const int32_t from = begin > 0 ? begin / CHUNK * CHUNK : 0;
    const int32_t last = end < keys ? end : keys;
    const int32_t to = (last + CHUNK - 1) / CHUNK * CHUNK;
    prepare_tile(t, keys);
    const product_code *rows =
        load_rows(t, t->expand_k, &args->k, t->first + from, last - from, to - from, K_OFFSET);
    lay_out_keys(t, rows, from, to);
    rows = load_rows(t, t->expand_v, &args->v, t->first + from, last - from, to - from, V_OFFSET);
    lay_out_values(t, rows, from, to);
}

#endif
