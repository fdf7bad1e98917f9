/*
 * Recipes as text: "fp8:qkv.granularity=tensor,qk.transform=hadamard".
 *
 * A setting changes one field of some operands of the preset. What a setting implies is filled in
 * for the fields the text leaves alone: a plain float has no granularity and no scale, and scales
 * per token, block or group are dynamic. The canonical text of a recipe is the shortest list of
 * settings over all presets, with the operands that share a value joined.
 */
#include "headroom/recipe.h"

#include <stdio.h>
#include <string.h>

#include "recipe_internal.h"
#include "status_internal.h"

enum { Q, K, V, P, OPERANDS };
enum { DTYPE, GRANULARITY, SCALE, TRANSFORM, FIELDS };

static const char letters[] = "qkvp";
static const char *const fields[FIELDS] = {"dtype", "granularity", "scale", "transform"};
static const char *const transforms[] = {"none", "mean", "hadamard", "mean+hadamard"};

/* A piece of the text that is being parsed. */
typedef struct word {
    const char *begin;
    int length;
} word;

static bool word_is(word w, const char *text)
{
    return (size_t)w.length == strlen(text) && !memcmp(w.begin, text, (size_t)w.length);
}

/* The word before the first `end` (or all of *rest); *rest moves behind it, to NULL at the end. */
static word next_word(const char **rest, char end)
{
    const char *begin = *rest, *stop = strchr(begin, end);
    *rest = stop ? stop + 1 : NULL;
    return (word){begin, stop ? (int)(stop - begin) : (int)strlen(begin)};
}

/* "block64" with prefix "block": 64; 0 when the word is something else or N is not 1 .. 999999. */
static int32_t counted(word w, const char *prefix)
{
    int length = (int)strlen(prefix);
    if (w.length <= length || w.length > length + 6 || memcmp(w.begin, prefix, (size_t)length))
        return 0;
    int32_t count = 0;
    for (int i = length; i < w.length; i++) {
        if (w.begin[i] < '0' || w.begin[i] > '9' || (i == length && w.begin[i] == '0')) return 0;
        count = count * 10 + (w.begin[i] - '0');
    }
    return count;
}

static bool parse_granularity(word value, hr_operand_recipe *operand)
{
    static const char *const sized[] = {"block", "group"};
    static const hr_granularity sized_id[] = {HR_GRANULARITY_BLOCK, HR_GRANULARITY_GROUP};
    for (int i = 0; i < 2; i++) {
        int32_t count = counted(value, sized[i]);
        if (count) {
            operand->granularity = sized_id[i];
            operand->block = count;
            return true;
        }
    }
    for (int i = 0; i < HR_GRANULARITY_COUNT; i++)
        if (i != HR_GRANULARITY_BLOCK && i != HR_GRANULARITY_GROUP &&
            word_is(value, hr_granularity_name((hr_granularity)i))) {
            operand->granularity = (hr_granularity)i;
            operand->block = 0;
            return true;
        }
    return false;
}

static hr_status bad_value(int field, word value)
{
    static const char *const accepted[FIELDS] = {
        "f32, f16, bf16, e4m3, e5m2, i8, i4, u4, c4; for p f32, bf16, e4m3, u8, i16",
        "none, tensor, head, token, block<N>, channel, group<N>", "static, dynamic",
        "none, mean, hadamard, mean+hadamard"};
    return hr_fail(HR_ERROR_INVALID_ARGUMENT, "recipe: no %s '%.*s'; accepted: %s", fields[field],
                   value.length, value.begin, accepted[field]);
}

static hr_status apply(int field, word value, hr_operand_recipe *operand)
{
    switch (field) {
    case DTYPE:
        for (int i = 0; i < HR_DTYPE_COUNT; i++)
            if (word_is(value, hr_dtype_name((hr_dtype)i))) {
                operand->dtype = (hr_dtype)i;
                return HR_OK;
            }
        break;
    case GRANULARITY:
        if (parse_granularity(value, operand)) return HR_OK;
        break;
    case SCALE:
        operand->dynamic = word_is(value, "dynamic");
        if (operand->dynamic || word_is(value, "static")) return HR_OK;
        break;
    default:
        for (uint32_t i = 0; i < 4; i++)
            if (word_is(value, transforms[i])) {
                operand->transform = i;
                return HR_OK;
            }
    }
    return bad_value(field, value);
}

/* The operand letters of a setting as bits; every letter at most once. */
static hr_status parse_operands(word operands, unsigned *bits)
{
    *bits = 0;
    for (int i = 0; i < operands.length; i++) {
        const char *letter = memchr(letters, operands.begin[i], OPERANDS);
        if (!letter || *bits >> (letter - letters) & 1) {
            *bits = 0;
            break;
        }
        *bits |= 1u << (letter - letters);
    }
    if (!*bits)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "recipe: no operands '%.*s'; accepted: letters of q, k, v and p, each once",
                       operands.length, operands.begin);
    return HR_OK;
}

/* True when the setting is "residual=N", which `recipe` then has. */
static bool parse_residual(word setting, hr_recipe *recipe)
{
    const int32_t tokens = counted(setting, "residual=");
    if (tokens) recipe->residual = tokens;
    return tokens;
}

/* "operands.field=value"; `set` has one bit for every operand and field set so far. */
static hr_status parse_setting(word setting, hr_recipe *recipe, unsigned *set)
{
    const unsigned residual_bit = 1u << (OPERANDS * FIELDS);
    if (parse_residual(setting, recipe)) {
        if (*set & residual_bit)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT, "recipe: residual is set twice");
        *set |= residual_bit;
        return HR_OK;
    }
    const char *end = setting.begin + setting.length;
    const char *dot = memchr(setting.begin, '.', (size_t)setting.length);
    const char *equals = dot ? memchr(dot, '=', (size_t)(end - dot)) : NULL;
    if (!equals)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "recipe: '%.*s' is not a setting; write operands.field=value, as in "
                       "qk.transform=hadamard",
                       setting.length, setting.begin);
    word operands = {setting.begin, (int)(dot - setting.begin)};
    word name = {dot + 1, (int)(equals - dot - 1)}, value = {equals + 1, (int)(end - equals - 1)};
    unsigned bits;
    HR_TRY(parse_operands(operands, &bits));
    int field = 0;
    while (field < FIELDS && !word_is(name, fields[field]))
        field++;
    if (field == FIELDS)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "recipe: no field '%.*s'; accepted: dtype, granularity, scale, transform",
                       name.length, name.begin);
    if (field != DTYPE && bits >> P & 1)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "recipe: p.%s: p has only a dtype; the kernel chooses its scale",
                       fields[field]);
    for (int i = 0; i < OPERANDS; i++) {
        if (!(bits >> i & 1)) continue;
        unsigned bit = 1u << (i * FIELDS + field);
        if (*set & bit)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT, "recipe: %c.%s is set twice", letters[i],
                           fields[field]);
        *set |= bit;
        HR_TRY(apply(field, value, hr_recipe_operand(recipe, i)));
    }
    return HR_OK;
}

/* Fields the text left alone follow from those it set. */
static void fill_implied(hr_operand_recipe *operand, bool granularity_set, bool scale_set)
{
    if (hr_dtype_is_plain_float(operand->dtype)) {
        if (!granularity_set) operand->granularity = HR_GRANULARITY_NONE;
        if (!scale_set) operand->dynamic = false;
    } else if (hr_granularity_is_dynamic_only(operand->granularity) && !scale_set) {
        operand->dynamic = true;
    }
}

static hr_status parse_preset(word name, hr_recipe *out)
{
    char accepted[256] = "";
    for (int i = 0; i < hr_recipe_preset_count(); i++) {
        const hr_recipe *preset = hr_recipe_preset(i);
        if (word_is(name, preset->name)) {
            *out = *preset;
            return HR_OK;
        }
        strncat(accepted, i ? ", " : "", sizeof accepted - strlen(accepted) - 1);
        strncat(accepted, preset->name, sizeof accepted - strlen(accepted) - 1);
    }
    return hr_fail(HR_ERROR_NOT_FOUND, "recipe: no preset '%.*s'; accepted: %s", name.length,
                   name.begin, accepted);
}

hr_status hr_recipe_parse(const char *text, hr_recipe *out)
{
    if (!text || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "recipe parse: text or out is NULL");
    hr_recipe recipe;
    const char *rest = text;
    HR_TRY(parse_preset(next_word(&rest, ':'), &recipe));
    unsigned set = 0;
    while (rest)
        HR_TRY(parse_setting(next_word(&rest, ','), &recipe, &set));
    for (int i = 0; i < P; i++) {
        unsigned of_operand = set >> (i * FIELDS);
        hr_operand_recipe *operand = hr_recipe_operand(&recipe, i);
        fill_implied(operand, of_operand >> GRANULARITY & 1, of_operand >> SCALE & 1);
        if (of_operand >> SCALE & 1 && hr_dtype_is_plain_float(operand->dtype))
            return hr_fail(HR_ERROR_UNSUPPORTED, "recipe: %c.scale: %s has no scale", letters[i],
                           hr_dtype_name(operand->dtype));
    }
    HR_TRY(hr_recipe_normalize(&recipe));
    *out = recipe;
    return HR_OK;
}

/* The value of a field as text, at most 15 characters. */
static void format_value(const hr_operand_recipe *operand, int field, char out[16])
{
    switch (field) {
    case DTYPE:
        snprintf(out, 16, "%s", hr_dtype_name(operand->dtype));
        break;
    case GRANULARITY:
        snprintf(out, 16, "%s", hr_granularity_name(operand->granularity));
        if (operand->block)
            snprintf(out + strlen(out), 16 - strlen(out), "%d", (int)operand->block);
        break;
    case SCALE:
        snprintf(out, 16, "%s", operand->dynamic ? "dynamic" : "static");
        break;
    default:
        snprintf(out, 16, "%s", transforms[operand->transform]);
    }
}

/*
 * The settings that turn `preset` into `recipe`, in `out`. Fields are written in the order of
 * `fields`; after each, `from` holds what the parser would know, implications included.
 *
 * The longest text is four dtypes (52 characters), three granularities such as
 * "q.granularity=block65536," (75), two scales (33), two transforms (48), the preset's name (9) and
 * "residual=65536," (15): 232, so that HR_RECIPE_NAME_BYTES always holds it.
 */
static void write_settings(const hr_recipe *preset, hr_recipe *recipe, char *out, size_t size)
{
    hr_recipe from = *preset;
    size_t used = (size_t)snprintf(out, size, "%s", preset->name);
    char separator = ':';
    for (int field = 0; field < FIELDS; field++) {
        bool done[OPERANDS] = {false};
        for (int i = 0; i < OPERANDS; i++) {
            char have[16], want[16], joined[OPERANDS + 1] = "";
            for (int j = i; j < OPERANDS; j++) {
                char other[16];
                format_value(hr_recipe_operand(&from, j), field, have);
                format_value(hr_recipe_operand(recipe, j), field, other);
                if (j == i) memcpy(want, other, sizeof want);
                if (done[j] || !strcmp(have, other) || strcmp(want, other)) {
                    if (j == i) break;
                    continue;
                }
                done[j] = true;
                joined[strlen(joined)] = letters[j]; /* its end stays 0 */
                apply(field, (word){want, (int)strlen(want)}, hr_recipe_operand(&from, j));
            }
            if (!joined[0]) continue;
            used += (size_t)snprintf(out + used, size - used, "%c%s.%s=%s", separator, joined,
                                     fields[field], want);
            separator = ',';
        }
        for (int i = 0; i < P; i++)
            fill_implied(hr_recipe_operand(&from, i), field >= GRANULARITY, field >= SCALE);
    }
    if (recipe->residual)
        snprintf(out + used, size - used, "%cresidual=%d", separator, recipe->residual);
}

void hr_recipe_write_name(hr_recipe *recipe)
{
    char best[HR_RECIPE_NAME_BYTES] = "";
    for (int i = 0; i < hr_recipe_preset_count(); i++) {
        char text[HR_RECIPE_NAME_BYTES];
        write_settings(hr_recipe_preset(i), recipe, text, sizeof text);
        if (!i || strlen(text) < strlen(best)) memcpy(best, text, sizeof best);
    }
    memcpy(recipe->name, best, sizeof best);
}
