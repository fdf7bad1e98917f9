/*
 * Recipes: presets, the text form and its canonical name, every rule and every error message, bits
 * per KV element.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format_inputs.h"
#include "headroom/recipe.h"

static hr_recipe parse(const char *text)
{
    hr_recipe recipe;
    cr_assert_eq(hr_recipe_parse(text, &recipe), HR_OK, "%s: %s", text, hr_last_error());
    return recipe;
}

static void expect_operand(const hr_operand_recipe *operand, hr_dtype dtype,
                           hr_granularity granularity, int block, bool dynamic, unsigned transform)
{
    cr_expect_eq(operand->dtype, dtype);
    cr_expect_eq(operand->granularity, granularity);
    cr_expect_eq(operand->block, block);
    cr_expect_eq(operand->dynamic, dynamic);
    cr_expect_eq(operand->transform, transform);
}

static bool same_operand(const hr_operand_recipe *a, const hr_operand_recipe *b)
{
    return a->dtype == b->dtype && a->granularity == b->granularity && a->block == b->block &&
           a->dynamic == b->dynamic && a->transform == b->transform;
}

static bool same_recipe(const hr_recipe *a, const hr_recipe *b)
{
    return !strcmp(a->name, b->name) && a->residual == b->residual && same_operand(&a->q, &b->q) &&
           same_operand(&a->k, &b->k) && same_operand(&a->v, &b->v) && same_operand(&a->p, &b->p);
}

Test(recipe, presets_are_the_documented_ones)
{
    static const char *const names[] = {"bf16", "fp8", "int8", "int8-fp8", "int4"};
    cr_assert_eq(hr_recipe_preset_count(), 5);
    for (int i = 0; i < 5; i++) {
        const hr_recipe *preset = hr_recipe_preset(i);
        cr_expect_str_eq(preset->name, names[i]);
        cr_expect_str_not_empty(hr_recipe_preset_summary(i));
        hr_recipe parsed = parse(names[i]);
        cr_expect(same_recipe(&parsed, preset), "%s", names[i]);
    }
    cr_expect_null(hr_recipe_preset(-1));
    cr_expect_null(hr_recipe_preset(5));
    cr_expect_str_empty(hr_recipe_preset_summary(5));
}

Test(recipe, preset_fields)
{
    hr_recipe r = parse("bf16");
    expect_operand(&r.q, HR_DTYPE_BF16, HR_GRANULARITY_NONE, 0, false, 0);
    expect_operand(&r.v, HR_DTYPE_BF16, HR_GRANULARITY_NONE, 0, false, 0);
    cr_expect_eq(r.p.dtype, HR_DTYPE_BF16);
    r = parse("fp8");
    expect_operand(&r.q, HR_DTYPE_E4M3, HR_GRANULARITY_HEAD, 0, false, 0);
    expect_operand(&r.v, HR_DTYPE_E4M3, HR_GRANULARITY_HEAD, 0, false, 0);
    cr_expect_eq(r.p.dtype, HR_DTYPE_E4M3);
    r = parse("int8");
    expect_operand(&r.q, HR_DTYPE_I8, HR_GRANULARITY_TOKEN, 0, true, 0);
    expect_operand(&r.k, HR_DTYPE_I8, HR_GRANULARITY_TOKEN, 0, true, HR_TRANSFORM_MEAN);
    cr_expect_eq(r.p.dtype, HR_DTYPE_U8);
    r = parse("int8-fp8");
    expect_operand(&r.v, HR_DTYPE_E4M3, HR_GRANULARITY_CHANNEL, 0, true, 0);
    cr_expect_eq(r.p.dtype, HR_DTYPE_E4M3);
}

Test(recipe, settings_replace_fields)
{
    hr_recipe r = parse("fp8:qkv.granularity=tensor,qk.transform=hadamard");
    expect_operand(&r.q, HR_DTYPE_E4M3, HR_GRANULARITY_TENSOR, 0, false, HR_TRANSFORM_HADAMARD);
    expect_operand(&r.k, HR_DTYPE_E4M3, HR_GRANULARITY_TENSOR, 0, false, HR_TRANSFORM_HADAMARD);
    expect_operand(&r.v, HR_DTYPE_E4M3, HR_GRANULARITY_TENSOR, 0, false, 0);
    r = parse(
        "int8:k.transform=mean+hadamard,q.transform=hadamard,p.dtype=f32,v.granularity=group32,"
        "k.granularity=block64,k.dtype=e5m2");
    expect_operand(&r.k, HR_DTYPE_E5M2, HR_GRANULARITY_BLOCK, 64, true, 3);
    expect_operand(&r.v, HR_DTYPE_I8, HR_GRANULARITY_GROUP, 32, true, 0);
    cr_expect_eq(r.p.dtype, HR_DTYPE_F32);
    r = parse("int8:v.granularity=head,v.scale=static");
    expect_operand(&r.v, HR_DTYPE_I8, HR_GRANULARITY_HEAD, 0, false, 0);
    r = parse("int8:v.granularity=head");
    expect_operand(&r.v, HR_DTYPE_I8, HR_GRANULARITY_HEAD, 0, true, 0);
}

Test(recipe, implied_fields_follow_from_those_set)
{
    hr_recipe r = parse("fp8:qkv.granularity=token");
    expect_operand(&r.q, HR_DTYPE_E4M3, HR_GRANULARITY_TOKEN, 0, true, 0);
    r = parse("fp8:v.dtype=f16");
    expect_operand(&r.v, HR_DTYPE_F16, HR_GRANULARITY_NONE, 0, false, 0);
    r = parse("int8:qk.dtype=bf16");
    expect_operand(&r.k, HR_DTYPE_BF16, HR_GRANULARITY_NONE, 0, false, HR_TRANSFORM_MEAN);
    r = parse("bf16:q.dtype=i8,q.granularity=token");
    expect_operand(&r.q, HR_DTYPE_I8, HR_GRANULARITY_TOKEN, 0, true, 0);
}

static void expect_name(const char *text, const char *name)
{
    hr_recipe recipe = parse(text);
    cr_expect_str_eq(recipe.name, name, "%s", text);
}

Test(recipe, names_are_canonical)
{
    expect_name("fp8:q.granularity=tensor,v.granularity=tensor,k.granularity=tensor",
                "fp8:qkv.granularity=tensor");
    expect_name("fp8:qkv.granularity=head,p.dtype=e4m3", "fp8");
    expect_name("fp8:qkvp.dtype=bf16", "bf16");
    expect_name("int8:v.dtype=e4m3,v.granularity=channel,p.dtype=e4m3", "int8-fp8");
    expect_name("int8:qk.granularity=block64,v.granularity=block128",
                "int8:qk.granularity=block64,v.granularity=block128");
    expect_name("fp8:qkv.scale=dynamic", "fp8:qkv.scale=dynamic");
    expect_name("int8:k.transform=none", "int8:k.transform=none");
    expect_name("int8:p.dtype=i16,k.transform=mean", "int8:p.dtype=i16");
}

/* A random recipe; some break a rule (scales per channel of q or k, static u4). */
static hr_recipe random_recipe(uint64_t *seed)
{
    static const hr_dtype dtypes[] = {HR_DTYPE_F32,  HR_DTYPE_F16,  HR_DTYPE_BF16,
                                      HR_DTYPE_E4M3, HR_DTYPE_E5M2, HR_DTYPE_I8,
                                      HR_DTYPE_I4,   HR_DTYPE_U4,   HR_DTYPE_C4};
    static const hr_dtype p[] = {HR_DTYPE_F32, HR_DTYPE_BF16, HR_DTYPE_E4M3, HR_DTYPE_U8,
                                 HR_DTYPE_I16};
    hr_recipe recipe;
    memset(&recipe, 0xa5, sizeof recipe);
    hr_operand_recipe *operands[] = {&recipe.q, &recipe.k, &recipe.v};
    for (int i = 0; i < 3; i++) {
        uint64_t bits = random_bits(seed);
        hr_operand_recipe operand = {.dtype = dtypes[bits % 9]};
        if (operand.dtype >= HR_DTYPE_E4M3) {
            operand.granularity = (hr_granularity)(1 + (bits >> 8) % (HR_GRANULARITY_COUNT - 1));
            operand.block =
                operand.granularity == HR_GRANULARITY_GROUP ? 128 : 16384 + (int)(bits >> 40) % 3;
            operand.dynamic = operand.granularity == HR_GRANULARITY_TOKEN ||
                              operand.granularity == HR_GRANULARITY_BLOCK ||
                              operand.granularity == HR_GRANULARITY_GROUP || bits >> 24 & 1;
        }
        *operands[i] = operand;
    }
    uint64_t bits = random_bits(seed);
    recipe.residual = bits >> 60 ? 0 : 16 * (int32_t)(1 + (bits >> 20) % 4096);
    recipe.p.dtype = p[bits % 5];
    recipe.q.transform = bits >> 8 & HR_TRANSFORM_HADAMARD;
    recipe.k.transform = recipe.q.transform | (bits >> 16 & HR_TRANSFORM_MEAN);
    return recipe;
}

Test(recipe, canonical_names_parse_back)
{
    uint64_t seed = 11;
    int valid = 0;
    for (int i = 0; i < 20000; i++) {
        hr_recipe recipe = random_recipe(&seed);
        if (hr_recipe_normalize(&recipe) != HR_OK) continue;
        valid++;
        hr_recipe parsed = parse(recipe.name);
        cr_assert(same_recipe(&parsed, &recipe), "%s became %s", recipe.name, parsed.name);
    }
    cr_expect_gt(valid, 5000);
}

Test(recipe, normalize_clears_fields_without_meaning)
{
    hr_recipe recipe = *hr_recipe_preset(1);
    strcpy(recipe.name, "something else");
    recipe.q.block = 77;
    recipe.p = (hr_operand_recipe){HR_DTYPE_E4M3, HR_GRANULARITY_HEAD, 3, true, 1};
    cr_assert_eq(hr_recipe_normalize(&recipe), HR_OK);
    cr_expect(same_recipe(&recipe, hr_recipe_preset(1)));
}

Test(recipe, residual)
{
    cr_expect_eq(hr_recipe_preset(4)->residual, 0);
    cr_expect_eq(parse("int4:residual=128").residual, 128);
    cr_expect_str_eq(parse("int4:residual=128,v.dtype=i4").name, "int4:v.dtype=i4,residual=128");
    hr_recipe recipe;
    cr_expect_eq(hr_recipe_parse("int4:residual=100", &recipe), HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), "residual=100: it is a multiple of 16"), "%s",
              hr_last_error());
    cr_expect_eq(hr_recipe_parse("int4:residual=16,residual=16", &recipe),
                 HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), "residual is set twice"));
    cr_expect_eq(hr_recipe_parse("int4:residual=0", &recipe), HR_ERROR_INVALID_ARGUMENT);
}

Test(recipe, errors_leave_the_output_alone)
{
    hr_recipe recipe, before;
    memset(&recipe, 0xa5, sizeof recipe);
    memcpy(&before, &recipe, sizeof recipe);
    cr_expect_eq(hr_recipe_parse("fp8:q.dtype=u8", &recipe), HR_ERROR_UNSUPPORTED);
    cr_expect_arr_eq(&recipe, &before, sizeof recipe);
    cr_expect_eq(hr_recipe_parse(NULL, &recipe), HR_ERROR_INVALID_ARGUMENT);
    cr_expect_str_eq(hr_last_error(), "recipe parse: text or out is NULL");
    cr_expect_eq(hr_recipe_parse("fp8", NULL), HR_ERROR_INVALID_ARGUMENT);
    cr_expect_eq(hr_recipe_normalize(NULL), HR_ERROR_INVALID_ARGUMENT);
    cr_expect_str_eq(hr_last_error(), "recipe normalize: recipe is NULL");
}

typedef struct bad_text {
    const char *text;
    hr_status status;
    const char *message;
} bad_text;

static void expect_errors(const bad_text *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        hr_recipe recipe;
        cr_expect_eq(hr_recipe_parse(cases[i].text, &recipe), cases[i].status, "%s", cases[i].text);
        cr_expect_str_eq(hr_last_error(), cases[i].message);
    }
}

Test(recipe, malformed_text_is_named)
{
    enum { BAD = HR_ERROR_INVALID_ARGUMENT };
    static const char presets[] = "accepted: bf16, fp8, int8, int8-fp8, int4";
    static const char granularities[] =
        "accepted: none, tensor, head, token, block<N>, channel, group<N>";
    char unknown[128], empty[128], values[7][160];
    snprintf(unknown, sizeof unknown, "recipe: no preset 'fp4'; %s", presets);
    snprintf(empty, sizeof empty, "recipe: no preset ''; %s", presets);
    static const char *const bad_values[] = {"block",  "block0",  "group",       "group08",
                                             "token8", "block6x", "block1234567"};
    bad_text granularity_cases[7];
    char texts[7][64];
    for (int i = 0; i < 7; i++) {
        snprintf(texts[i], sizeof texts[i], "int8:v.granularity=%s", bad_values[i]);
        snprintf(values[i], sizeof values[i], "recipe: no granularity '%s'; %s", bad_values[i],
                 granularities);
        granularity_cases[i] = (bad_text){texts[i], BAD, values[i]};
    }
    expect_errors(granularity_cases, 7);
    const bad_text cases[] = {
        {"fp4", HR_ERROR_NOT_FOUND, unknown},
        {"", HR_ERROR_NOT_FOUND, empty},
        {"fp8:", BAD,
         "recipe: '' is not a setting; write operands.field=value, as in qk.transform=hadamard"},
        {"fp8:q.dtype=i8,", BAD,
         "recipe: '' is not a setting; write operands.field=value, as in qk.transform=hadamard"},
        {"fp8:q.dtype", BAD,
         "recipe: 'q.dtype' is not a setting; write operands.field=value, as in "
         "qk.transform=hadamard"},
        {"fp8:q=a.b", BAD,
         "recipe: 'q=a.b' is not a setting; write operands.field=value, as in "
         "qk.transform=hadamard"},
        {"fp8:x.dtype=i8", BAD,
         "recipe: no operands 'x'; accepted: letters of q, k, v and p, each once"},
        {"fp8:qkq.dtype=i8", BAD,
         "recipe: no operands 'qkq'; accepted: letters of q, k, v and p, each once"},
        {"fp8:.dtype=i8", BAD,
         "recipe: no operands ''; accepted: letters of q, k, v and p, each once"},
        {"fp8:q.scales=static", BAD,
         "recipe: no field 'scales'; accepted: dtype, granularity, scale, transform"},
        {"fp8:q. dtype=i8", BAD,
         "recipe: no field ' dtype'; accepted: dtype, granularity, scale, transform"},
        {"fp8:q.dtype=fp8", BAD,
         "recipe: no dtype 'fp8'; accepted: f32, f16, bf16, e4m3, e5m2, i8, i4, u4, c4; for p "
         "f32, bf16, e4m3, u8, i16"},
        {"fp8:q.scale=fixed", BAD, "recipe: no scale 'fixed'; accepted: static, dynamic"},
        {"int8:k.transform=hadamard+mean", BAD,
         "recipe: no transform 'hadamard+mean'; accepted: none, mean, hadamard, mean+hadamard"},
        {"fp8:qk.dtype=i8,k.dtype=i8", BAD, "recipe: k.dtype is set twice"},
    };
    expect_errors(cases, sizeof cases / sizeof cases[0]);
}

Test(recipe, broken_rules_are_named)
{
    enum { BAD = HR_ERROR_UNSUPPORTED };
    static const bad_text cases[] = {
        {"fp8:p.granularity=head", BAD,
         "recipe: p.granularity: p has only a dtype; the kernel chooses its scale"},
        {"fp8:qkvp.scale=static", BAD,
         "recipe: p.scale: p has only a dtype; the kernel chooses its scale"},
        {"fp8:p.dtype=i8", BAD, "recipe: p.dtype=i8: p takes f32, bf16, e4m3, u8 or i16"},
        {"fp8:k.dtype=u8", BAD,
         "recipe: k.dtype=u8: q, k and v take f32, f16, bf16, e4m3, e5m2, i8, i4, u4 or c4"},
        {"fp8:v.dtype=f64", BAD,
         "recipe: v.dtype=f64: q, k and v take f32, f16, bf16, e4m3, e5m2, i8, i4, u4 or c4"},
        {"bf16:k.granularity=token", BAD,
         "recipe: k.granularity=token: bf16 has no scale; its granularity is none"},
        {"bf16:k.scale=dynamic", BAD, "recipe: k.scale: bf16 has no scale"},
        {"fp8:v.dtype=f16,v.scale=static", BAD, "recipe: v.scale: f16 has no scale"},
        {"bf16:q.dtype=i8", BAD,
         "recipe: q.granularity=none: i8 needs a scale; set q.granularity to tensor, head, token, "
         "block<N>, channel (v only) or group<N>"},
        {"fp8:qkv.granularity=channel", BAD,
         "recipe: q.granularity=channel: the sum q.k runs over channels, so that a scale per "
         "channel cannot be taken out of it; only v has channel scales"},
        {"fp8:qkv.granularity=token,k.scale=static", BAD,
         "recipe: k.scale=static: scales per token depend on the data and are dynamic; static "
         "scales are per tensor, head or channel"},
        {"fp8:v.granularity=group32,v.scale=static", BAD,
         "recipe: v.scale=static: scales per group depend on the data and are dynamic; static "
         "scales are per tensor, head or channel"},
        {"fp8:v.dtype=u4", BAD,
         "recipe: v.scale=static: u4 also needs zero points, which profiles do not hold; set "
         "v.scale=dynamic"},
        {"int8:k.granularity=block65537", BAD,
         "recipe: k.granularity=block65537: a block has 1 to 65536 tokens"},
        {"int8:k.granularity=group3", BAD,
         "recipe: k.granularity=group3: a group has an even number of channels, 2 to 256"},
        {"int8:k.granularity=group258", BAD,
         "recipe: k.granularity=group258: a group has an even number of channels, 2 to 256"},
        {"int8:v.transform=hadamard", BAD,
         "recipe: v has no transform: the output is a sum of v, which neither smoothing nor "
         "rotation leaves unchanged"},
        {"int8:q.transform=mean", BAD,
         "recipe: q.transform=mean: mean smoothing is for k, where softmax cancels it"},
        {"int8:q.transform=hadamard", BAD,
         "recipe: q.transform=hadamard without k: q.k is unchanged only when both are rotated"},
        {"int8:k.transform=mean+hadamard", BAD,
         "recipe: k.transform=hadamard without q: q.k is unchanged only when both are rotated"},
    };
    expect_errors(cases, sizeof cases / sizeof cases[0]);
}

static void expect_normalize_error(hr_recipe recipe, hr_status status, const char *message)
{
    cr_expect_eq(hr_recipe_normalize(&recipe), status);
    cr_expect_str_eq(hr_last_error(), message);
}

Test(recipe, recipes_built_by_hand_keep_the_rules)
{
    hr_recipe recipe = parse("bf16");
    recipe.k.dynamic = true;
    expect_normalize_error(recipe, HR_ERROR_UNSUPPORTED,
                           "recipe: k.scale=dynamic: bf16 has no scale");
    recipe = parse("int8");
    recipe.v.granularity = HR_GRANULARITY_COUNT;
    expect_normalize_error(recipe, HR_ERROR_INVALID_ARGUMENT,
                           "recipe: v: 7 is not an hr_granularity");
    recipe = parse("int8");
    recipe.q.transform = 12;
    expect_normalize_error(recipe, HR_ERROR_INVALID_ARGUMENT,
                           "recipe: q: transform bits 0xc are not known");
    recipe = parse("int8");
    recipe.q.granularity = HR_GRANULARITY_BLOCK;
    expect_normalize_error(recipe, HR_ERROR_UNSUPPORTED,
                           "recipe: q.granularity=block0: a block has 1 to 65536 tokens");
    recipe = parse("int8");
    recipe.p.dtype = (hr_dtype)99;
    expect_normalize_error(recipe, HR_ERROR_UNSUPPORTED,
                           "recipe: p.dtype=unknown: p takes f32, bf16, e4m3, u8 or i16");
}

Test(recipe, granularities_have_names)
{
    static const char *const names[] = {"none",  "tensor",  "head", "token",
                                        "block", "channel", "group"};
    for (int i = 0; i < HR_GRANULARITY_COUNT; i++)
        cr_expect_str_eq(hr_granularity_name((hr_granularity)i), names[i]);
    cr_expect_str_eq(hr_granularity_name(HR_GRANULARITY_COUNT), "unknown");
    cr_expect_str_eq(hr_granularity_name((hr_granularity)-1), "unknown");
}

static void expect_kv_bits(const char *text, int head_dim, double bits)
{
    hr_recipe recipe = parse(text);
    cr_expect_eq(hr_recipe_kv_bits(&recipe, head_dim), bits, "%s: %g", text,
                 hr_recipe_kv_bits(&recipe, head_dim));
}

Test(recipe, kv_bits_count_codes_scales_and_zero_points)
{
    expect_kv_bits("bf16", 64, 16);
    expect_kv_bits("fp8", 64, 8);
    expect_kv_bits("int8", 64, 8 + 32.0 / 64);
    expect_kv_bits("int8", 128, 8 + 32.0 / 128);
    expect_kv_bits("int8-fp8", 64, (8 + 32.0 / 64 + 8) / 2);
    expect_kv_bits("int8:kv.granularity=block64", 128, 8 + 32.0 / (64 * 128));
    expect_kv_bits("int8:kv.dtype=i4,kv.granularity=group32", 128, 4 + 32.0 / 32);
    expect_kv_bits("int8:kv.dtype=u4,kv.granularity=group32", 128, 4 + 40.0 / 32);
    hr_recipe recipe = parse("int8");
    cr_expect(isnan(hr_recipe_kv_bits(&recipe, 0)));
    cr_expect(isnan(hr_recipe_kv_bits(NULL, 64)));
}

Test(recipe, static_scales_need_a_profile)
{
    static const struct {
        const char *text;
        bool needs;
    } cases[] = {{"bf16", false},
                 {"fp8", true},
                 {"int8", false},
                 {"int8-fp8", false},
                 {"int4", false},
                 {"fp8:qkv.granularity=token", false},
                 {"fp8:qk.granularity=token", true},
                 {"fp8:qkv.scale=dynamic", false}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        hr_recipe recipe = parse(cases[i].text);
        cr_expect_eq(hr_recipe_needs_profile(&recipe), cases[i].needs, "%s", cases[i].text);
    }
}
