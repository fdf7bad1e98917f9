/*
 * Packing and unpacking: every dtype and granularity comes back within the bound of its format,
 * scales cover what they say, results do not depend on threads, and edge values stay finite.
 */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/format.h"
#include "headroom/pack.h"
#include "pack_scale.h"
#include "test_random.h"

enum { HEADS = 3, TOKENS = 193, HEAD_DIM = 64 };

/* Lengths on both sides of a tile. */
static const int32_t cu_seqlens[] = {0, 1, 64, 128, 193};
enum { BATCH = 4 };

static const hr_operand_recipe plain[] = {
    {.dtype = HR_DTYPE_F32}, {.dtype = HR_DTYPE_F16}, {.dtype = HR_DTYPE_BF16}};

static const hr_dtype scaled_dtypes[] = {HR_DTYPE_E4M3, HR_DTYPE_E5M2, HR_DTYPE_I8,
                                         HR_DTYPE_I4,   HR_DTYPE_U4,   HR_DTYPE_C4};

static float *gaussian_input(uint64_t seed, int64_t count)
{
    float *values = malloc((size_t)count * sizeof *values);
    cr_assert_not_null(values);
    test_random random = {seed};
    random_gaussians(&random, values, count);
    return values;
}

static hr_tensor view(float *values, int64_t tokens, int64_t heads, int64_t head_dim)
{
    return hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){tokens, heads, head_dim}, values);
}

static hr_packed pack_ok(hr_operand operand, hr_operand_recipe recipe, float *values,
                         hr_pack_options options)
{
    hr_packed packed;
    if (options.batch == 0) {
        options.batch = BATCH;
        options.cu_seqlens = cu_seqlens;
    }
    hr_tensor x = view(values, options.cu_seqlens[options.batch], HEADS, HEAD_DIM);
    hr_status status = hr_pack(operand, &recipe, &x, &options, &packed);
    cr_assert_eq(status, HR_OK, "%s", hr_last_error());
    return packed;
}

/* The scale of one element, by the index formulas of hr_granularity. */
static int64_t scale_index(const hr_packed *packed, int32_t head, int64_t token, int32_t channel)
{
    int64_t blocks = 0, block_of_token = 0, block = packed->recipe.block;
    switch (packed->recipe.granularity) {
    case HR_GRANULARITY_TENSOR:
        return 0;
    case HR_GRANULARITY_HEAD:
        return head;
    case HR_GRANULARITY_TOKEN:
        return head * packed->total_tokens + token;
    case HR_GRANULARITY_BLOCK:
        for (int32_t b = 0; b < packed->batch; b++) {
            int64_t first = packed->cu_seqlens[b], end = packed->cu_seqlens[b + 1];
            if (token >= first && token < end) block_of_token = blocks + (token - first) / block;
            blocks += (end - first + block - 1) / block;
        }
        return head * blocks + block_of_token;
    case HR_GRANULARITY_CHANNEL:
        return (int64_t)head * packed->head_dim + channel;
    case HR_GRANULARITY_GROUP:
        return (head * packed->total_tokens + token) * (packed->head_dim / block) + channel / block;
    default:
        return -1;
    }
}

/*
 * The largest error of a value under a scale: half a step for integers (plus what clipping cuts
 * off), half a unit in the last place for floats, half the widest gap for the codebook. The factor
 * covers the roundings of value / scale and scale * code to float, each 2^-24 of the value.
 */
static double error_bound(hr_dtype dtype, double value, double scale, int zero_point)
{
    double low = -hr_dtype_max(dtype), high = hr_dtype_max(dtype), step = scale / 2;
    double magnitude = fabs(value), clipped;
    if (dtype == HR_DTYPE_E4M3) step = fmax(magnitude * 0x1p-4, scale * 0x1p-10);
    if (dtype == HR_DTYPE_E5M2) step = fmax(magnitude * 0x1p-3, scale * 0x1p-17);
    if (dtype == HR_DTYPE_U4) {
        low = -zero_point;
        high = 15 - zero_point;
    }
    if (dtype == HR_DTYPE_C4) {
        const int8_t *level = hr_codebook_c4();
        int gap = 0;
        for (int i = 0; i < 15; i++)
            gap = level[i + 1] - level[i] > gap ? level[i + 1] - level[i] : gap;
        step = scale * gap / 2;
    }
    clipped = fmax(value - high * scale, low * scale - value);
    return fmax(step, clipped) + 0x1p-21 * (magnitude + scale);
}

static void check_round_trip(const hr_packed *packed, const float *values)
{
    float *out = calloc((size_t)packed->total_tokens * HEADS * HEAD_DIM, sizeof *out);
    cr_assert_eq(hr_unpack(packed, out), HR_OK, "%s", hr_last_error());
    for (int64_t t = 0; t < packed->total_tokens; t++) {
        for (int32_t h = 0; h < HEADS; h++) {
            for (int32_t c = 0; c < HEAD_DIM; c++) {
                int64_t at = (t * HEADS + h) * HEAD_DIM + c;
                int64_t index = scale_index(packed, h, t, c);
                double scale = packed->scale[index];
                int zero = packed->zero_point ? packed->zero_point[index] : 0;
                double bound = error_bound(packed->recipe.dtype, values[at], scale, zero);
                cr_assert(fabs((double)out[at] - values[at]) <= bound,
                          "%s per %s, token %ld, head %d, channel %d: %g became %g, bound %g",
                          hr_dtype_name(packed->recipe.dtype),
                          hr_granularity_name(packed->recipe.granularity), (long)t, h, c,
                          (double)values[at], (double)out[at], bound);
            }
        }
    }
    free(out);
}

Test(pack, every_dtype_and_granularity_round_trips)
{
    static const hr_operand_recipe granularities[] = {
        {.granularity = HR_GRANULARITY_TENSOR},
        {.granularity = HR_GRANULARITY_HEAD},
        {.granularity = HR_GRANULARITY_TOKEN},
        {.granularity = HR_GRANULARITY_BLOCK, .block = 48},
        {.granularity = HR_GRANULARITY_BLOCK, .block = 1000},
        {.granularity = HR_GRANULARITY_CHANNEL},
        {.granularity = HR_GRANULARITY_GROUP, .block = 16},
        {.granularity = HR_GRANULARITY_GROUP, .block = 32},
    };
    static const int64_t counts[] = {1,
                                     HEADS,
                                     HEADS * TOKENS,
                                     HEADS * 7, /* 1 + 2 + 2 + 2 blocks */
                                     HEADS * 4,
                                     HEADS * HEAD_DIM,
                                     HEADS * TOKENS * 4,
                                     HEADS * TOKENS * 2};
    float *values = gaussian_input(1, TOKENS * HEADS * HEAD_DIM);
    /* Heads and channels of different sizes, and a shifted one for U4's zero point. */
    for (int64_t i = 0; i < TOKENS * HEADS * HEAD_DIM; i++)
        values[i] = values[i] * (1.0f + (float)(i / HEAD_DIM % HEADS)) + (i % 7 == 0 ? 2.0f : 0.0f);
    for (size_t d = 0; d < sizeof scaled_dtypes / sizeof *scaled_dtypes; d++) {
        for (size_t g = 0; g < sizeof granularities / sizeof *granularities; g++) {
            hr_operand_recipe recipe = granularities[g];
            recipe.dtype = scaled_dtypes[d];
            recipe.dynamic = true;
            hr_packed packed = pack_ok(HR_OPERAND_V, recipe, values, (hr_pack_options){0});
            cr_assert_eq(packed.scale_count, counts[g], "granularity %zu: %ld scales", g,
                         (long)packed.scale_count);
            cr_assert_eq(packed.zero_point != NULL, recipe.dtype == HR_DTYPE_U4);
            check_round_trip(&packed, values);
            hr_packed_free(&packed);
        }
    }
    free(values);
}

Test(pack, plain_floats_are_the_format_itself)
{
    float *values = gaussian_input(2, TOKENS * HEADS * HEAD_DIM);
    float *out = calloc(TOKENS * HEADS * HEAD_DIM, sizeof *out);
    for (size_t i = 0; i < 3; i++) {
        hr_packed packed = pack_ok(HR_OPERAND_K, plain[i], values, (hr_pack_options){0});
        cr_assert_eq(packed.scale_count, 0);
        cr_assert_null(packed.scale);
        cr_assert_eq(hr_packed_bytes(&packed),
                     TOKENS * HEADS * HEAD_DIM * hr_dtype_bits(plain[i].dtype) / 8);
        cr_assert_eq(hr_unpack(&packed, out), HR_OK);
        for (int64_t j = 0; j < TOKENS * HEADS * HEAD_DIM; j++) {
            uint16_t code = 0;
            float expected = values[j];
            if (plain[i].dtype != HR_DTYPE_F32) {
                cr_assert_eq(hr_encode(plain[i].dtype, &values[j], 1, 1.0f, 0, &code), HR_OK);
                cr_assert_eq(hr_decode(plain[i].dtype, &code, 1, 1.0f, 0, &expected), HR_OK);
            }
            cr_assert_eq(out[j], expected);
        }
        hr_packed_free(&packed);
    }
    free(out);
    free(values);
}

Test(pack, static_scales_are_taken_as_given_and_saturate)
{
    float *values = gaussian_input(3, TOKENS * HEADS * HEAD_DIM);
    float scales[HEADS * HEAD_DIM];
    for (int i = 0; i < HEADS * HEAD_DIM; i++)
        scales[i] = 0.005f + 0.0001f * (float)i; /* the first ones clip at .6 to 1.6 */
    static const hr_granularity granularities[] = {HR_GRANULARITY_TENSOR, HR_GRANULARITY_HEAD,
                                                   HR_GRANULARITY_CHANNEL};
    for (int g = 0; g < 3; g++) {
        hr_operand_recipe recipe = {.dtype = HR_DTYPE_I8, .granularity = granularities[g]};
        hr_packed packed =
            pack_ok(HR_OPERAND_K, recipe, values, (hr_pack_options){.static_scale = scales});
        cr_assert_eq(memcmp(packed.scale, scales, (size_t)packed.scale_count * sizeof *scales), 0);
        check_round_trip(&packed, values);
        hr_packed_free(&packed);
    }
    free(values);
}

/* F16 and BF16 input, and strides that are not contiguous, give what their float values give. */
Test(pack, input_dtypes_and_strides_do_not_matter)
{
    enum { COUNT = TOKENS * HEADS * HEAD_DIM };
    static uint16_t halves[COUNT];
    static float decoded[COUNT], permuted[COUNT];
    float *values = gaussian_input(4, COUNT);
    hr_operand_recipe recipe = {
        .dtype = HR_DTYPE_I8, .granularity = HR_GRANULARITY_TOKEN, .dynamic = true};
    hr_pack_options options = {.batch = BATCH, .cu_seqlens = cu_seqlens};
    static const hr_dtype inputs[] = {HR_DTYPE_F16, HR_DTYPE_BF16};
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(hr_encode(inputs[i], values, COUNT, 1.0f, 0, halves), HR_OK);
        cr_assert_eq(hr_decode(inputs[i], halves, COUNT, 1.0f, 0, decoded), HR_OK);
        hr_packed expected = pack_ok(HR_OPERAND_K, recipe, decoded, options), packed, strided;
        hr_tensor x = view(NULL, TOKENS, HEADS, HEAD_DIM);
        x.dtype = inputs[i];
        x.data = halves;
        cr_assert_eq(hr_pack(HR_OPERAND_K, &recipe, &x, &options, &packed), HR_OK);
        cr_assert_eq(memcmp(packed.codes, expected.codes, HEADS * packed.head_bytes), 0);
        /* Channels slowest: [head_dim][heads][tokens]. */
        for (int t = 0; t < TOKENS; t++)
            for (int h = 0; h < HEADS; h++)
                for (int c = 0; c < HEAD_DIM; c++)
                    permuted[(c * HEADS + h) * TOKENS + t] =
                        decoded[(t * HEADS + h) * HEAD_DIM + c];
        x.dtype = HR_DTYPE_F32;
        x.data = permuted;
        x.stride[0] = 1;
        x.stride[1] = TOKENS;
        x.stride[2] = TOKENS * HEADS;
        cr_assert_eq(hr_pack(HR_OPERAND_K, &recipe, &x, &options, &strided), HR_OK);
        cr_assert_eq(memcmp(strided.codes, expected.codes, HEADS * packed.head_bytes), 0);
        hr_packed_free(&packed);
        hr_packed_free(&strided);
        hr_packed_free(&expected);
    }
    free(values);
}

static bool same_packed(const hr_packed *a, const hr_packed *b)
{
    size_t elements = (size_t)a->num_heads * (size_t)a->head_dim;
    return a->head_bytes == b->head_bytes && a->scale_count == b->scale_count &&
           !memcmp(a->codes, b->codes, (size_t)a->num_heads * a->head_bytes) &&
           !memcmp(a->scale, b->scale, (size_t)a->scale_count * sizeof *a->scale) &&
           (!a->zero_point || !memcmp(a->zero_point, b->zero_point, (size_t)a->scale_count)) &&
           (!a->mean || !memcmp(a->mean, b->mean, elements * sizeof *a->mean));
}

Test(pack, threads_do_not_change_a_bit)
{
    float *values = gaussian_input(5, TOKENS * HEADS * HEAD_DIM);
    int threads = omp_get_max_threads();
    for (size_t d = 0; d < sizeof scaled_dtypes / sizeof *scaled_dtypes; d++) {
        for (int g = HR_GRANULARITY_TENSOR; g < HR_GRANULARITY_COUNT; g++) {
            hr_operand_recipe recipe = {.dtype = scaled_dtypes[d],
                                        .granularity = (hr_granularity)g,
                                        .block = 32,
                                        .dynamic = true,
                                        .transform = HR_TRANSFORM_MEAN | HR_TRANSFORM_HADAMARD};
            omp_set_num_threads(1);
            hr_packed one = pack_ok(HR_OPERAND_K, recipe, values, (hr_pack_options){0});
            omp_set_num_threads(5);
            hr_packed five = pack_ok(HR_OPERAND_K, recipe, values, (hr_pack_options){0});
            cr_assert(same_packed(&one, &five), "%s, granularity %d",
                      hr_dtype_name(scaled_dtypes[d]), g);
            hr_packed_free(&one);
            hr_packed_free(&five);
        }
    }
    omp_set_num_threads(threads);
    free(values);
}

/* Against an absolute bound: one relative to the scale would pass whatever the scale is. */
static void check_zero_head(const hr_packed *packed, int head)
{
    static float out[TOKENS * HEADS * HEAD_DIM];
    cr_assert_eq(hr_unpack(packed, out), HR_OK, "%s", hr_last_error());
    for (int t = 0; t < TOKENS; t++)
        for (int c = 0; c < HEAD_DIM; c++)
            cr_assert(fabsf(out[(t * HEADS + head) * HEAD_DIM + c]) <= 0x1p-57f, "%s",
                      hr_dtype_name(packed->recipe.dtype));
}

/*
 * Zero tokens take the floor, a zero head takes 1 (C4, without a level 0, next to nothing) and
 * reads back as zero; all scales stay finite with finite logarithms.
 */
Test(pack, zero_rows_and_zero_heads_take_a_floor)
{
    float *values = gaussian_input(6, TOKENS * HEADS * HEAD_DIM);
    for (int t = 0; t < TOKENS; t++) {
        memset(values + (t * HEADS + 1) * HEAD_DIM, 0, HEAD_DIM * sizeof *values); /* head 1 */
        for (int i = 0; t % 5 == 0 && i < HEADS * HEAD_DIM; i++)
            values[t * HEADS * HEAD_DIM + i] *= t % 2 ? 0.0f : 1e-9f;
    }
    for (size_t d = 0; d < sizeof scaled_dtypes / sizeof *scaled_dtypes; d++) {
        hr_operand_recipe recipe = {
            .dtype = scaled_dtypes[d], .granularity = HR_GRANULARITY_TOKEN, .dynamic = true};
        hr_packed packed = pack_ok(HR_OPERAND_V, recipe, values, (hr_pack_options){0});
        for (int h = 0; h < HEADS; h++) {
            float largest = 0.0f;
            for (int t = 0; t < TOKENS; t++)
                largest = fmaxf(largest, packed.scale[h * TOKENS + t]);
            const float empty = scaled_dtypes[d] == HR_DTYPE_C4 ? 0x1p-60f : 1.0f;
            for (int t = 0; t < TOKENS; t++) {
                float scale = packed.scale[h * TOKENS + t];
                if (h == 1)
                    cr_assert_eq(scale, empty);
                else if (t % 5 == 0)
                    cr_assert_eq(scale, largest * 0x1p-16f);
                else
                    cr_assert(scale > largest * 0x1p-10f);
            }
        }
        check_round_trip(&packed, values);
        check_zero_head(&packed, 1);
        hr_packed_free(&packed);
    }
    free(values);
}

/* From denormals to FLT_MAX: scales are normal floats and unpacked values finite and close. */
Test(pack, tiny_and_huge_values_stay_finite)
{
    static const float magnitudes[] = {1e-45f, 1e-40f, FLT_MIN, 1e-30f, 1e30f, 1e38f, FLT_MAX};
    static const hr_granularity granularities[] = {HR_GRANULARITY_TENSOR, HR_GRANULARITY_TOKEN,
                                                   HR_GRANULARITY_CHANNEL, HR_GRANULARITY_GROUP};
    static float values[TOKENS * HEADS * HEAD_DIM], out[TOKENS * HEADS * HEAD_DIM];
    for (size_t m = 0; m < sizeof magnitudes / sizeof *magnitudes; m++) {
        test_random random = {8};
        for (int i = 0; i < TOKENS * HEADS * HEAD_DIM; i++)
            values[i] = magnitudes[m] * (float)(2.0 * random_uniform(&random) - 1.0);
        values[5] = magnitudes[m];
        values[6] = -magnitudes[m];
        for (size_t d = 0; d < sizeof scaled_dtypes / sizeof *scaled_dtypes; d++) {
            for (int g = 0; g < 4; g++) {
                hr_operand_recipe recipe = {.dtype = scaled_dtypes[d],
                                            .granularity = granularities[g],
                                            .block =
                                                granularities[g] == HR_GRANULARITY_GROUP ? 8 : 0,
                                            .dynamic = true};
                hr_packed packed = pack_ok(HR_OPERAND_V, recipe, values, (hr_pack_options){0});
                for (int64_t i = 0; i < packed.scale_count; i++)
                    cr_assert(hr_scale_is_valid(recipe.dtype, packed.scale[i]) &&
                                  packed.scale[i] >= FLT_MIN,
                              "%s, magnitude %g: scale %g", hr_dtype_name(recipe.dtype),
                              (double)magnitudes[m], (double)packed.scale[i]);
                cr_assert_eq(hr_unpack(&packed, out), HR_OK);
                for (int i = 0; i < TOKENS * HEADS * HEAD_DIM; i++)
                    cr_assert(isfinite(out[i]));
                check_round_trip(&packed, values);
                hr_packed_free(&packed);
            }
        }
    }
}

/* K is smoothed first, then rotated; unpack_original undoes both. */
Test(pack, smoothing_and_rotation_are_undone)
{
    float *values = gaussian_input(9, TOKENS * HEADS * HEAD_DIM);
    float *out = calloc(TOKENS * HEADS * HEAD_DIM, sizeof *out);
    double sum[HEADS * HEAD_DIM] = {0};
    for (int64_t i = 0; i < TOKENS * HEADS * HEAD_DIM; i++) {
        values[i] += 8.0f * (float)(i % 3);
        sum[i % (HEADS * HEAD_DIM)] += values[i];
    }
    for (uint32_t transform = 0; transform < 4; transform++) {
        hr_operand_recipe recipe = {.dtype = HR_DTYPE_F32, .transform = transform};
        hr_packed packed =
            pack_ok(HR_OPERAND_K, recipe, values, (hr_pack_options){.hadamard_seed = 77});
        cr_assert_eq(packed.mean != NULL, (transform & HR_TRANSFORM_MEAN) != 0);
        cr_assert_eq(packed.hadamard_seed, transform & HR_TRANSFORM_HADAMARD ? 77 : 0);
        for (int i = 0; packed.mean && i < HEADS * HEAD_DIM; i++)
            cr_assert_eq(packed.mean[i], (float)(sum[i] / TOKENS));
        if (transform) {
            cr_assert_eq(hr_unpack(&packed, out), HR_OK);
            cr_assert_neq(out[0], values[0]);
        }
        cr_assert_eq(hr_unpack_original(&packed, out), HR_OK);
        /* Four float roundings of rows no longer than 16 * 8. */
        for (int64_t i = 0; i < TOKENS * HEADS * HEAD_DIM; i++)
            cr_assert(fabsf(out[i] - values[i]) <= 128.0f * 0x1p-22f, "transform %u", transform);
        hr_packed_free(&packed);
    }
    free(out);
    free(values);
}

/* Smoothing K leaves q.k = q.(k - mean) + lse_bias: the logit that the kernel has to add back. */
Test(pack, lse_bias_is_the_product_with_the_mean)
{
    enum { Q_HEADS = 2 * HEADS };
    float *q = gaussian_input(10, TOKENS * Q_HEADS * HEAD_DIM);
    float *k = gaussian_input(11, TOKENS * HEADS * HEAD_DIM);
    for (int64_t i = 0; i < TOKENS * HEADS * HEAD_DIM; i++)
        k[i] += 3.0f;
    hr_recipe recipe;
    cr_assert_eq(hr_recipe_parse("int8:q.transform=hadamard,k.transform=mean+hadamard", &recipe),
                 HR_OK, "%s", hr_last_error());
    hr_tensor qx = view(q, TOKENS, Q_HEADS, HEAD_DIM), kx = view(k, TOKENS, HEADS, HEAD_DIM);
    hr_layer_layouts layouts = {HR_LAYOUT_ROWS, HR_LAYOUT_VNNI_K, HR_LAYOUT_VNNI_V};
    hr_packed_layer layer;
    cr_assert_eq(hr_pack_layer(&recipe, &layouts, &qx, &kx, &kx, BATCH, cu_seqlens, cu_seqlens,
                               &(hr_layer_scales){.hadamard_seed = 9}, &layer),
                 HR_OK, "%s", hr_last_error());
    cr_assert_not_null(layer.q.lse_bias);
    cr_assert_eq(layer.q.hadamard_seed, 9);
    cr_assert_eq(layer.k.hadamard_seed, 9);
    cr_assert_eq(layer.v.hadamard_seed, 0);
    for (int h = 0; h < Q_HEADS; h++) {
        for (int t = 0; t < TOKENS; t++) {
            double sum = 0.0;
            for (int c = 0; c < HEAD_DIM; c++)
                sum += (double)q[(t * Q_HEADS + h) * HEAD_DIM + c] *
                       layer.k.mean[h / 2 * HEAD_DIM + c];
            cr_assert_eq(layer.q.lse_bias[h * TOKENS + t], (float)sum);
        }
    }
    /* The logits of the packed operands plus the bias are near the original ones. */
    float *qu = calloc(TOKENS * Q_HEADS * HEAD_DIM, sizeof *qu);
    float *ku = calloc(TOKENS * HEADS * HEAD_DIM, sizeof *ku);
    cr_assert_eq(hr_unpack(&layer.q, qu), HR_OK);
    cr_assert_eq(hr_unpack(&layer.k, ku), HR_OK);
    double difference = 0.0, total = 0.0;
    for (int t = 0; t < TOKENS; t++) {
        double exact = 0.0, packed = layer.q.lse_bias[5 * TOKENS + t];
        for (int c = 0; c < HEAD_DIM; c++) {
            exact +=
                (double)q[(t * Q_HEADS + 5) * HEAD_DIM + c] * k[(7 * HEADS + 2) * HEAD_DIM + c];
            packed +=
                (double)qu[(t * Q_HEADS + 5) * HEAD_DIM + c] * ku[(7 * HEADS + 2) * HEAD_DIM + c];
        }
        difference += (exact - packed) * (exact - packed);
        total += exact * exact;
    }
    cr_assert(sqrt(difference / total) <= 0.02, "relative error %g", sqrt(difference / total));
    free(qu);
    free(ku);
    hr_packed_layer_free(&layer);
    free(q);
    free(k);
}

Test(pack, empty_sequences_and_no_tokens_are_fine)
{
    float *values = gaussian_input(12, 10 * HEADS * HEAD_DIM);
    static const int32_t gaps[] = {0, 0, 10, 10};
    static const int32_t nothing[] = {0, 0};
    for (int g = HR_GRANULARITY_TENSOR; g < HR_GRANULARITY_COUNT; g++) {
        hr_operand_recipe recipe = {
            .dtype = HR_DTYPE_I8, .granularity = (hr_granularity)g, .block = 8, .dynamic = true};
        hr_packed packed = pack_ok(HR_OPERAND_K, recipe, values,
                                   (hr_pack_options){.batch = 3, .cu_seqlens = gaps});
        check_round_trip(&packed, values);
        hr_packed_free(&packed);
        recipe.transform = HR_TRANSFORM_MEAN;
        packed = pack_ok(
            HR_OPERAND_K, recipe, values,
            (hr_pack_options){.batch = 1, .cu_seqlens = nothing, .layout = HR_LAYOUT_VNNI_K});
        cr_assert_eq(packed.total_slots, 0);
        cr_assert_eq(packed.head_bytes, 64);
        cr_assert_eq(hr_unpack(&packed, values), HR_OK);
        hr_packed_free(&packed);
    }
    free(values);
}
