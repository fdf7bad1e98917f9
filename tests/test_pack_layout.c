/*
 * Layouts: every code lies where headroom/pack.h's formulas say, padding is code 0, and codes
 * survive every change of layout. Sequences of 1, 63, 64 and 65 tokens: both sides of a tile.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/format.h"
#include "headroom/pack.h"
#include "test_random.h"

enum { HEADS = 2, TOKENS = 193, BATCH = 5 };
static const int32_t cu_seqlens[BATCH + 1] = {0, 1, 64, 64, 128, 193};
static const int64_t tile_slots[BATCH + 1] = {0, 64, 128, 128, 192, 320};
static const hr_operand_recipe per_token = {
    .dtype = HR_DTYPE_I8, .granularity = HR_GRANULARITY_TOKEN, .dynamic = true};

static float *input(int32_t head_dim)
{
    float *values = malloc((size_t)TOKENS * HEADS * (size_t)head_dim * sizeof *values);
    cr_assert_not_null(values);
    test_random random = {(uint64_t)head_dim};
    random_gaussians(&random, values, (int64_t)TOKENS * HEADS * head_dim);
    return values;
}

static hr_packed pack(hr_operand operand, hr_operand_recipe recipe, hr_layout layout, float *values,
                      int32_t head_dim)
{
    hr_tensor x = hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){TOKENS, HEADS, head_dim}, values);
    hr_pack_options options = {.layout = layout, .batch = BATCH, .cu_seqlens = cu_seqlens};
    hr_packed packed;
    cr_assert_eq(hr_pack(operand, &recipe, &x, &options, &packed), HR_OK, "%s", hr_last_error());
    return packed;
}

/* The code of one value under its token's scale, straight from the encoder. */
static int8_t expected_code(const hr_packed *packed, const float *values, int h, int t, int c)
{
    int8_t code;
    cr_assert_eq(hr_encode(HR_DTYPE_I8, &values[((int64_t)t * HEADS + h) * packed->head_dim + c], 1,
                           packed->scale[h * TOKENS + t], 0, &code),
                 HR_OK);
    return code;
}

Test(layout, names_parse_back)
{
    for (int i = 0; i < HR_LAYOUT_COUNT; i++) {
        hr_layout layout;
        cr_assert_eq(hr_layout_parse(hr_layout_name((hr_layout)i), &layout), HR_OK);
        cr_assert_eq(layout, (hr_layout)i);
    }
    hr_layout layout;
    cr_assert_eq(hr_layout_parse("columns", &layout), HR_ERROR_NOT_FOUND);
    cr_assert(strstr(hr_last_error(), "vnni_k"));
    cr_assert_eq(hr_layout_parse(NULL, &layout), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_layout_tile_tokens(HR_LAYOUT_ROWS), 1);
    cr_assert_eq(hr_layout_tile_tokens(HR_LAYOUT_VNNI_K), 64);
    cr_assert_eq(hr_layout_tile_tokens(HR_LAYOUT_VNNI_V), 64);
    cr_assert_eq(hr_layout_tile_tokens(HR_LAYOUT_SM90_V), 128);
    cr_assert_eq(hr_layout_tile_tokens(HR_LAYOUT_BLOCKS_K), 16);
    cr_assert_eq(hr_layout_tile_tokens(HR_LAYOUT_BLOCKS_V), 16);
}

Test(layout, rows_are_token_by_token)
{
    float *values = input(72);
    hr_packed packed = pack(HR_OPERAND_Q, per_token, HR_LAYOUT_ROWS, values, 72);
    cr_assert_eq(packed.total_slots, TOKENS);
    for (int b = 0; b <= BATCH; b++)
        cr_assert_eq(packed.slot_offset[b], cu_seqlens[b]);
    for (int h = 0; h < HEADS; h++)
        for (int t = 0; t < TOKENS; t++)
            for (int c = 0; c < 72; c++)
                cr_assert_eq(
                    ((int8_t *)packed.codes)[(size_t)h * packed.head_bytes + (size_t)(t * 72 + c)],
                    expected_code(&packed, values, h, t, c));
    hr_packed_free(&packed);
    free(values);
}

/* Codes of a head: U8 = code + 128 at [tile][head_dim / 4][64 tokens][4 channels]. */
Test(layout, vnni_k_follows_its_formula)
{
    static const int32_t head_dims[] = {8, 64, 72};
    for (int d = 0; d < 3; d++) {
        int32_t head_dim = head_dims[d];
        float *values = input(head_dim);
        hr_packed packed = pack(HR_OPERAND_K, per_token, HR_LAYOUT_VNNI_K, values, head_dim);
        cr_assert_eq(packed.total_slots, 320);
        cr_assert_arr_eq(packed.slot_offset, tile_slots, sizeof tile_slots);
        for (int h = 0; h < HEADS; h++) {
            const uint8_t *codes = (uint8_t *)packed.codes + (size_t)h * packed.head_bytes;
            int64_t used = 320 * head_dim, seen = 0;
            for (int b = 0; b < BATCH; b++) {
                for (int64_t s = tile_slots[b]; s < tile_slots[b + 1]; s++) {
                    int t = cu_seqlens[b] + (int)(s - tile_slots[b]);
                    for (int c = 0; c < head_dim; c++, seen++) {
                        int64_t at = ((s / 64 * (head_dim / 4) + c / 4) * 64 + s % 64) * 4 + c % 4;
                        int code =
                            t < cu_seqlens[b + 1] ? expected_code(&packed, values, h, t, c) : 0;
                        cr_assert_eq(codes[at], code + 128, "head_dim %d, slot %ld, channel %d",
                                     head_dim, (long)s, c);
                    }
                }
            }
            cr_assert_eq(seen, used);
        }
        hr_packed_free(&packed);
        free(values);
    }
}

/*
 * Codes of a head: I8 at [tile][quad j][head_dim padded to 16][e]; the token there is
 * tile * 64 + 16 * (j % 4) + 4 * (j / 4) + e.
 */
Test(layout, vnni_v_follows_its_formula)
{
    static const int32_t head_dims[] = {8, 64, 72};
    for (int d = 0; d < 3; d++) {
        int32_t head_dim = head_dims[d], padded = (head_dim + 15) / 16 * 16;
        float *values = input(head_dim);
        hr_packed packed = pack(HR_OPERAND_V, per_token, HR_LAYOUT_VNNI_V, values, head_dim);
        cr_assert_arr_eq(packed.slot_offset, tile_slots, sizeof tile_slots);
        for (int h = 0; h < HEADS; h++) {
            const int8_t *code = (int8_t *)packed.codes + (size_t)h * packed.head_bytes;
            for (int tile = 0; tile < 5; tile++) {
                int b = 0;
                while (tile_slots[b + 1] <= tile * 64)
                    b++;
                for (int j = 0; j < 16; j++) {
                    for (int c = 0; c < padded; c++) {
                        for (int e = 0; e < 4; e++, code++) {
                            int slot = tile * 64 + 16 * (j % 4) + 4 * (j / 4) + e;
                            int t = cu_seqlens[b] + slot - (int)tile_slots[b];
                            int expected = t < cu_seqlens[b + 1] && c < head_dim
                                               ? expected_code(&packed, values, h, t, c)
                                               : 0;
                            cr_assert_eq(*code, expected, "head_dim %d, token %d, channel %d",
                                         head_dim, t, c);
                        }
                    }
                }
            }
        }
        hr_packed_free(&packed);
        free(values);
    }
}

/*
 * I8 at [tile][head_dim][position]; in each group of 16 positions, byte b of quad q is token
 * 8 (b / 2) + 2 q + b % 2. Padding is code 0.
 */
Test(layout, sm90_v_follows_its_formula)
{
    static const int64_t slots[BATCH + 1] = {0, 128, 256, 256, 384, 512};
    static const int32_t head_dims[] = {64, 72};
    for (int d = 0; d < 2; d++) {
        int32_t head_dim = head_dims[d];
        float *values = input(head_dim);
        hr_packed packed = pack(HR_OPERAND_V, per_token, HR_LAYOUT_SM90_V, values, head_dim);
        cr_assert_arr_eq(packed.slot_offset, slots, sizeof slots);
        for (int h = 0; h < HEADS; h++) {
            const int8_t *code = (int8_t *)packed.codes + (size_t)h * packed.head_bytes;
            for (int tile = 0; tile < 4; tile++) {
                int b = tile + (tile >= 2); /* sequence 2 is empty */
                for (int c = 0; c < head_dim; c++)
                    for (int p = 0; p < 128; p++, code++) {
                        int q = p % 16 / 4, byte = p % 4;
                        int i = p / 16 * 16 + byte / 2 * 8 + 2 * q + byte % 2;
                        int t = cu_seqlens[b] + i;
                        int expected =
                            t < cu_seqlens[b + 1] ? expected_code(&packed, values, h, t, c) : 0;
                        cr_assert_eq(*code, expected, "head_dim %d, token %d, channel %d", head_dim,
                                     t, c);
                    }
            }
        }
        hr_packed_free(&packed);
        free(values);
    }
}

/* BF16 at [tile][head_dim][token], and back. */
Test(layout, sm90_v_of_bf16_is_a_transposition)
{
    const hr_operand_recipe bf16 = {.dtype = HR_DTYPE_BF16};
    float *values = input(72);
    hr_packed rows = pack(HR_OPERAND_V, bf16, HR_LAYOUT_ROWS, values, 72), tiles, back;
    cr_assert_eq(hr_packed_relayout(&rows, HR_LAYOUT_SM90_V, &tiles), HR_OK);
    cr_assert_eq(hr_packed_relayout(&tiles, HR_LAYOUT_ROWS, &back), HR_OK);
    cr_assert_eq(memcmp(rows.codes, back.codes, HEADS * rows.head_bytes), 0);
    for (int h = 0; h < HEADS; h++) {
        const uint16_t *row = (uint16_t *)((char *)rows.codes + (size_t)h * rows.head_bytes);
        const uint16_t *tile = (uint16_t *)((char *)tiles.codes + (size_t)h * tiles.head_bytes);
        for (int i = 0; i < 65; i++) /* of the last sequence, in the fourth tile */
            for (int c = 0; c < 72; c++)
                cr_assert_eq(tile[(3 * 72 + c) * 128 + i], row[(128 + i) * 72 + c]);
        for (int i = 65; i < 128; i++)
            cr_assert_eq(tile[(3 * 72 + 71) * 128 + i], 0);
    }
    hr_packed_free(&rows);
    hr_packed_free(&tiles);
    hr_packed_free(&back);
    free(values);
}

/* The byte and the half of it that BLOCKS_K or BLOCKS_V have a code at, in a head, by the book. */
static int64_t block_byte(hr_operand operand, bool nibbles, int32_t head_dim, int64_t slot, int c,
                          int *shift)
{
    const int64_t block = slot / 16, token = slot % 16, padded = (head_dim + 15) / 16 * 16;
    *shift = 0;
    if (operand == HR_OPERAND_K && !nibbles)
        return ((block * (head_dim / 4) + c / 4) * 16 + token) * 4 + c % 4;
    if (operand == HR_OPERAND_K) {
        *shift = c % 8 / 4 * 4;
        return ((block * (head_dim / 8) + c / 8) * 16 + token) * 4 + c % 4;
    }
    if (!nibbles) return ((block * 4 + token / 4) * padded + c) * 4 + token % 4;
    *shift = (int)(token % 8 / 4 * 4);
    return ((block * 2 + token / 8) * padded + c) * 4 + token % 4;
}

Test(layout, blocks_follow_their_formula)
{
    static const hr_dtype dtypes[] = {HR_DTYPE_I8, HR_DTYPE_E4M3, HR_DTYPE_C4, HR_DTYPE_I4};
    static const int32_t head_dims[] = {8, 64, 72};
    for (int i = 0; i < 4 * 2 * 3; i++) {
        const hr_operand operand = i % 2 ? HR_OPERAND_K : HR_OPERAND_V;
        const hr_layout layout = i % 2 ? HR_LAYOUT_BLOCKS_K : HR_LAYOUT_BLOCKS_V;
        const int32_t head_dim = head_dims[i / 2 % 3], padded = (head_dim + 15) / 16 * 16;
        hr_operand_recipe recipe = per_token;
        recipe.dtype = dtypes[i / 6];
        const bool nibbles = hr_dtype_bits(recipe.dtype) == 4;
        const int added = operand == HR_OPERAND_K && recipe.dtype == HR_DTYPE_I8 ? 128 : 0;
        float *values = input(head_dim);
        hr_packed rows = pack(operand, recipe, HR_LAYOUT_ROWS, values, head_dim);
        hr_packed blocks = pack(operand, recipe, layout, values, head_dim);
        const int width = nibbles ? 2 : 1, channels = operand == HR_OPERAND_K ? head_dim : padded;
        for (int h = 0; h < HEADS; h++) {
            const uint8_t *row = (uint8_t *)rows.codes + (size_t)h * rows.head_bytes;
            const uint8_t *codes = (uint8_t *)blocks.codes + (size_t)h * blocks.head_bytes;
            int64_t first = 0;
            for (int b = 0; b < BATCH; b++) {
                const int64_t length = cu_seqlens[b + 1] - cu_seqlens[b];
                cr_assert_eq(blocks.slot_offset[b], first);
                for (int64_t s = 0; s < (length + 15) / 16 * 16; s++) {
                    for (int c = 0; c < channels; c++) {
                        int shift, expected = 0;
                        const uint8_t *code =
                            codes + block_byte(operand, nibbles, head_dim, first + s, c, &shift);
                        if (s < length && c < head_dim) {
                            const int64_t at = (cu_seqlens[b] + s) * head_dim + c;
                            expected = row[at / width] >> (nibbles ? at % 2 * 4 : 0);
                        }
                        const int mask = nibbles ? 15 : 255;
                        cr_assert_eq(*code >> shift & mask, (expected + added) & mask,
                                     "%s %s, head_dim %d, slot %ld, channel %d",
                                     hr_layout_name(layout), hr_dtype_name(recipe.dtype), head_dim,
                                     (long)(first + s), c);
                    }
                }
                first += (length + 15) / 16 * 16;
            }
            cr_assert_eq(blocks.total_slots, first);
        }
        hr_packed_free(&rows);
        hr_packed_free(&blocks);
        free(values);
    }
}

/* Kernels load whole vectors: 64 bytes past a head's last code are readable and heads aligned. */
Test(layout, heads_are_aligned_and_have_slack)
{
    static const hr_dtype dtypes[] = {HR_DTYPE_C4, HR_DTYPE_I8, HR_DTYPE_BF16, HR_DTYPE_F32};
    for (int d = 0; d < 4; d++) {
        for (int32_t head_dim = 8; head_dim <= 256; head_dim += 40) {
            hr_operand_recipe recipe = per_token;
            recipe.dtype = dtypes[d];
            if (d >= 2) recipe = (hr_operand_recipe){.dtype = dtypes[d]};
            float *values = input(head_dim);
            hr_packed packed = pack(HR_OPERAND_V, recipe, HR_LAYOUT_ROWS, values, head_dim);
            size_t used = (size_t)TOKENS * (size_t)head_dim * (size_t)hr_dtype_bits(dtypes[d]) / 8;
            cr_assert_eq((uintptr_t)packed.codes % 64, 0);
            cr_assert_eq(packed.head_bytes % 64, 0);
            cr_assert(packed.head_bytes >= used + 64 && packed.head_bytes < used + 128);
            hr_packed_free(&packed);
            free(values);
        }
    }
}

static void check_same(const hr_packed *a, const hr_packed *b)
{
    cr_assert_eq(a->head_bytes, b->head_bytes);
    cr_assert_eq(memcmp(a->codes, b->codes, HEADS * a->head_bytes), 0);
    cr_assert_eq(memcmp(a->scale, b->scale, (size_t)a->scale_count * sizeof *a->scale), 0);
    cr_assert_eq(memcmp(a->slot_offset, b->slot_offset, (BATCH + 1) * sizeof *a->slot_offset), 0);
}

Test(layout, relayout_is_lossless_both_ways)
{
    static const hr_operand operands[] = {HR_OPERAND_K, HR_OPERAND_V, HR_OPERAND_V, HR_OPERAND_K,
                                          HR_OPERAND_V, HR_OPERAND_K, HR_OPERAND_V};
    static const hr_layout layouts[] = {HR_LAYOUT_VNNI_K,   HR_LAYOUT_VNNI_V,   HR_LAYOUT_SM90_V,
                                        HR_LAYOUT_BLOCKS_K, HR_LAYOUT_BLOCKS_V, HR_LAYOUT_BLOCKS_K,
                                        HR_LAYOUT_BLOCKS_V};
    for (int i = 0; i < 7; i++) {
        hr_operand_recipe recipe = per_token;
        if (i >= 5) recipe.dtype = HR_DTYPE_C4;
        if (i == 0) recipe.transform = HR_TRANSFORM_MEAN | HR_TRANSFORM_HADAMARD;
        float *values = input(72), *a = input(72), *b = input(72);
        hr_packed rows = pack(operands[i], recipe, HR_LAYOUT_ROWS, values, 72);
        hr_packed tiles = pack(operands[i], recipe, layouts[i], values, 72);
        hr_packed to_tiles, back;
        cr_assert_eq(hr_packed_relayout(&rows, layouts[i], &to_tiles), HR_OK);
        cr_assert_eq(hr_packed_relayout(&tiles, HR_LAYOUT_ROWS, &back), HR_OK);
        check_same(&to_tiles, &tiles);
        check_same(&back, &rows);
        cr_assert_eq(hr_unpack_original(&rows, a), HR_OK);
        cr_assert_eq(hr_unpack_original(&to_tiles, b), HR_OK);
        cr_assert_eq(memcmp(a, b, TOKENS * HEADS * 72 * sizeof *a), 0);
        cr_assert_eq(hr_packed_bytes(&rows), HEADS * TOKENS * ((i < 5 ? 72 : 36) + 4));
        cr_assert_eq(hr_packed_bytes(&tiles), hr_packed_bytes(&rows));
        hr_packed_free(&rows);
        hr_packed_free(&tiles);
        hr_packed_free(&to_tiles);
        hr_packed_free(&back);
        free(values);
        free(a);
        free(b);
    }
}

Test(layout, a_dtype_without_the_layout_is_refused)
{
    float *values = input(64);
    hr_packed rows = pack(HR_OPERAND_V, per_token, HR_LAYOUT_ROWS, values, 64), out;
    cr_assert_eq(hr_packed_relayout(&rows, HR_LAYOUT_VNNI_K, &out), HR_ERROR_UNSUPPORTED);
    cr_assert_null(out.codes);
    cr_assert_eq(hr_packed_relayout(&rows, (hr_layout)99, &out), HR_ERROR_INVALID_ARGUMENT);
    hr_packed_free(&rows);
    hr_operand_recipe fp8 = per_token;
    fp8.dtype = HR_DTYPE_E4M3;
    rows = pack(HR_OPERAND_K, fp8, HR_LAYOUT_ROWS, values, 64);
    cr_assert_eq(hr_packed_relayout(&rows, HR_LAYOUT_VNNI_K, &out), HR_ERROR_UNSUPPORTED);
    cr_assert(strstr(hr_last_error(), "e4m3"));
    hr_packed_free(&rows);
    free(values);
}
