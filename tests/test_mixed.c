/*
 * A recipe for each KV head: every head's output has the bits that a plan of its recipe over all
 * heads gives, with everything a problem can have for each head; static scales reach their heads;
 * wrong arguments are refused.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/headroom.h"
#include "plan_setup.h"

enum { HEADS = 8, KV_HEADS = 4, GROUP = HEADS / KV_HEADS, HEAD_DIM = 32, RECIPES = 4 };

static const char *const texts[RECIPES] = {"int8", "bf16", "int8:p.dtype=i16", "int4"};
static const int32_t of_head[KV_HEADS] = {3, 0, 3, 1}; /* nobody has the third */

static plan_setup *make(const char *recipe)
{
    plan_setup *s = calloc(1, sizeof *s);
    cr_assert_not_null(s);
    const int32_t lengths[2][3] = {{0, 70, 183}, {0, 70, 190}};
    memcpy(s->cu_seqlens_q, lengths[0], sizeof lengths[0]);
    memcpy(s->cu_seqlens_kv, lengths[1], sizeof lengths[1]);
    setup_fill(s, recipe, 2, HEADS, KV_HEADS, HEAD_DIM);
    s->problem.mask.causal = true;
    return s;
}

static hr_mixed *mix(plan_setup *s, const hr_recipe *recipes, const hr_layer_scales *scales)
{
    hr_mixed *mixed;
    cr_assert_eq(hr_mixed_create(&s->problem, recipes, RECIPES, of_head, NULL, &mixed), HR_OK, "%s",
                 hr_last_error());
    cr_assert_eq(hr_mixed_pack(mixed, &s->q, &s->k, &s->v, scales), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_mixed_start(mixed), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_mixed_wait(mixed), HR_OK, "%s", hr_last_error());
    return mixed;
}

/* O and LSE of the heads that have this recipe are those of the setup, which all heads ran. */
static int same_heads(const plan_setup *s, const float *o, const float *lse, int32_t recipe)
{
    int compared = 0;
    for (int64_t t = 0; t < s->o.shape[0]; t++)
        for (int32_t h = 0; h < HEADS; h++) {
            if (of_head[h / GROUP] != recipe) continue;
            const int64_t row = t * HEADS + h;
            cr_assert_arr_eq(o + row * HEAD_DIM, (const float *)s->o.data + row * HEAD_DIM,
                             HEAD_DIM * sizeof *o, "recipe %d: O of token %d, head %d", recipe,
                             (int)t, h);
            cr_assert_arr_eq(lse + row, (const float *)s->lse.data + row, sizeof *lse,
                             "recipe %d: LSE of token %d, head %d", recipe, (int)t, h);
            compared++;
        }
    return compared;
}

static void check_mixed(void (*change)(plan_setup *s))
{
    plan_setup *s = make("bf16");
    change(s);
    hr_recipe recipes[RECIPES];
    for (int r = 0; r < RECIPES; r++)
        cr_assert_eq(hr_recipe_parse(texts[r], &recipes[r]), HR_OK);
    hr_mixed *mixed = mix(s, recipes, NULL);
    float *o = calloc(1, o_bytes(s)), *lse = calloc(1, lse_bytes(s));
    cr_assert(o && lse);
    cr_assert_eq(hr_mixed_fetch(mixed, o, lse), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_mixed_part_count(mixed), 3);
    double flops = 0;
    int compared = 0;
    for (int32_t r = 0; r < RECIPES; r++) {
        s->recipe = recipes[r];
        hr_plan *plan = setup_plan(s, NULL);
        const hr_layer_layouts layouts = hr_plan_layouts(plan);
        setup_pack(s, &layouts);
        setup_run(s, plan);
        compared += same_heads(s, o, lse, r);
        flops = hr_plan_flops(plan);
        hr_plan_free(plan);
    }
    cr_assert_eq(compared, s->o.shape[0] * HEADS);
    cr_assert(fabs(hr_mixed_flops(mixed) - flops) <= 1e-9 * flops);
    const hr_mixed_part last = hr_mixed_get_part(mixed, 2);
    cr_assert_eq(last.recipe, 3);
    cr_assert_eq(last.num_kv_heads, 2);
    cr_assert(last.kv_heads[0] == 0 && last.kv_heads[1] == 2);
    cr_assert(last.kv_bytes > 0 && last.kernel->k_dtype == recipes[3].k.dtype);
    free(o);
    free(lse);
    hr_mixed_free(mixed);
    setup_free(s);
}

static void nothing(plan_setup *s)
{
    (void)s;
}

Test(mixed, heads_have_the_bits_of_a_plan_of_their_recipe)
{
    check_mixed(nothing);
}

static void per_head(plan_setup *s)
{
    static float slopes[HEADS], sinks[HEADS];
    for (int h = 0; h < HEADS; h++) {
        slopes[h] = 0.01f * (float)(h + 1);
        sinks[h] = (float)h - 2;
    }
    s->problem.alibi_slopes = slopes;
    s->problem.sinks = sinks;
}

Test(mixed, slopes_and_sinks_go_with_their_heads)
{
    check_mixed(per_head);
}

static hr_block_mask blocks;

static void block_mask_of(plan_setup *s, int32_t heads)
{
    enum { ROWS = 2 + 2, COLUMNS = 2 };
    uint8_t map[HEADS * ROWS * COLUMNS];
    for (size_t i = 0; i < sizeof map; i++)
        map[i] = (uint8_t)((i * 2654435761u >> 7) % 3 != 0);
    cr_assert_eq(
        hr_block_mask_from_map(map, 64, 96, heads, 2, s->cu_seqlens_q, s->cu_seqlens_kv, &blocks),
        HR_OK, "%s", hr_last_error());
    s->problem.mask.blocks = &blocks;
}

static void blocks_of_heads(plan_setup *s)
{
    block_mask_of(s, HEADS);
}

static void blocks_of_kv_heads(plan_setup *s)
{
    block_mask_of(s, KV_HEADS);
}

static void blocks_of_all(plan_setup *s)
{
    block_mask_of(s, 1);
}

Test(mixed, block_masks_go_with_their_heads)
{
    void (*const changes[])(plan_setup *) = {blocks_of_heads, blocks_of_kv_heads, blocks_of_all};
    for (int i = 0; i < 3; i++) {
        check_mixed(changes[i]);
        hr_block_mask_free(&blocks);
    }
}

/* Scales that differ by head and channel, in every granularity that can be static. */
Test(mixed, static_scales_go_with_their_heads)
{
    static const char *const statics[RECIPES] = {
        "fp8", "fp8:qkv.granularity=tensor", "bf16",
        "int8:v.granularity=channel,v.scale=static,v.dtype=e4m3,p.dtype=e4m3,k.transform=mean"};
    plan_setup *s = make("bf16");
    hr_recipe recipes[RECIPES];
    hr_layer_scales scales[RECIPES] = {0};
    float q[HEADS], k[KV_HEADS], channels[KV_HEADS * HEAD_DIM], mean[KV_HEADS * HEAD_DIM];
    const float one = 0.02f;
    for (int h = 0; h < HEADS; h++)
        q[h] = 0.01f * (float)(h + 1);
    for (int h = 0; h < KV_HEADS; h++)
        k[h] = 0.02f * (float)(h + 1);
    for (int i = 0; i < KV_HEADS * HEAD_DIM; i++) {
        channels[i] = 0.01f + 1e-4f * (float)i;
        mean[i] = 1e-3f * (float)i;
    }
    for (int r = 0; r < RECIPES; r++)
        cr_assert_eq(hr_recipe_parse(statics[r], &recipes[r]), HR_OK, "%s", hr_last_error());
    scales[0] = (hr_layer_scales){.q = q, .k = k, .v = k};
    scales[1] = (hr_layer_scales){.q = &one, .k = &one, .v = &one};
    scales[3] = (hr_layer_scales){.v = channels, .k_mean = mean};
    hr_mixed *mixed = mix(s, recipes, scales);
    float *o = calloc(1, o_bytes(s)), *lse = calloc(1, lse_bytes(s));
    cr_assert_eq(hr_mixed_fetch(mixed, o, lse), HR_OK, "%s", hr_last_error());
    for (int32_t r = 0; r < RECIPES; r++) {
        s->recipe = recipes[r];
        hr_plan *plan = setup_plan(s, NULL);
        const hr_layer_layouts layouts = hr_plan_layouts(plan);
        hr_packed_layer_free(&s->packed);
        cr_assert_eq(hr_pack_layer(&s->recipe, &layouts, &s->q, &s->k, &s->v, 2, s->cu_seqlens_q,
                                   s->cu_seqlens_kv, &scales[r], &s->packed),
                     HR_OK, "%s", hr_last_error());
        setup_run(s, plan);
        same_heads(s, o, lse, r);
        hr_plan_free(plan);
    }
    free(o);
    free(lse);
    hr_mixed_free(mixed);
    setup_free(s);
}

Test(mixed, wrong_arguments)
{
    plan_setup *s = make("int8");
    hr_mixed *mixed;
    const hr_recipe *recipe = &s->recipe;
    const int32_t beyond[KV_HEADS] = {0, 0, 1, 0}, good[KV_HEADS] = {0};
#define REFUSED(status, text, ...)                                                                 \
    do {                                                                                           \
        cr_assert_eq((__VA_ARGS__), status);                                                       \
        cr_assert(strstr(hr_last_error(), text), "message: %s", hr_last_error());                  \
    } while (0)
    REFUSED(HR_ERROR_INVALID_ARGUMENT, "of_head[2] is 1; it must be in 0 .. 0",
            hr_mixed_create(&s->problem, recipe, 1, beyond, NULL, &mixed));
    REFUSED(HR_ERROR_INVALID_ARGUMENT, "must not be NULL",
            hr_mixed_create(&s->problem, recipe, 1, NULL, NULL, &mixed));
    const hr_plan_options named = {.kernel = "attention_int8_portable"};
    REFUSED(HR_ERROR_INVALID_ARGUMENT, "options.kernel must be NULL",
            hr_mixed_create(&s->problem, recipe, 1, good, &named, &mixed));
    s->problem.rope = (hr_rope){.rotary_dim = 16, .theta = 10000};
    REFUSED(HR_ERROR_UNSUPPORTED, "the problem has rope",
            hr_mixed_create(&s->problem, recipe, 1, good, NULL, &mixed));
    s->problem.rope = (hr_rope){0};
    cr_assert_eq(hr_mixed_create(&s->problem, recipe, 1, good, NULL, &mixed), HR_OK);
    REFUSED(HR_ERROR_INVALID_ARGUMENT, "nothing is packed yet", hr_mixed_start(mixed));
    REFUSED(HR_ERROR_MISMATCH, "k is [183, 8, 32]; the problem's is [190, 4, 32]",
            hr_mixed_pack(mixed, &s->q, &s->q, &s->v, NULL));
    ((float *)s->v.data)[(7 * KV_HEADS + 3) * HEAD_DIM + 5] = NAN;
    REFUSED(HR_ERROR_NUMERIC, "v has a NaN or infinity at token 7, head 3, channel 5",
            hr_mixed_pack(mixed, &s->q, &s->k, &s->v, NULL));
    REFUSED(HR_ERROR_INVALID_ARGUMENT, "nothing is packed yet", hr_mixed_start(mixed));
    hr_mixed_free(mixed);
    hr_mixed_free(NULL);
    setup_free(s);
}
