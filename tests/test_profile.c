/*
 * Profile files: what is written comes back bit for bit, under the names and shapes vLLM reads; any
 * file that is not a whole, consistent profile is refused with a message that says what is wrong.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/calibration.h"
#include "headroom/safetensors.h"
#include "scratch_dir.h"
#include "test_random.h"

enum { TOKENS = 40, HEADS = 4, KV_HEADS = 2, DIM = 16 };

static const char *const recipe_text = "fp8:q.granularity=tensor,k.transform=mean";

static hr_recipe parse(const char *text)
{
    hr_recipe recipe;
    cr_assert_eq(hr_recipe_parse(text, &recipe), HR_OK, "%s", hr_last_error());
    return recipe;
}

static hr_tensor gaussian(float *values, uint64_t seed, int64_t heads)
{
    test_random random = {seed};
    random_gaussians(&random, values, TOKENS * heads * DIM);
    return hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){TOKENS, heads, DIM}, values);
}

/* Two layers, 1 and 10, of 40 tokens (so there is a warning), with a source. */
static hr_profile *make_profile(const char *recipe, bool with_source)
{
    static float values[3][TOKENS * HEADS * DIM];
    hr_calibrator_options options = {.recipe = parse(recipe), .observer = "percentile"};
    hr_recording_info info = {.path = "rec.safetensors",
                              .model = "tiny \"quoted\" \xc3\xa9",
                              .rope = "applied",
                              .causal = true,
                              .softmax_scale = 0.1f,
                              .data_hash = "0123456789abcdef0123456789abcdef"};
    hr_calibrator *calibrator;
    cr_assert_eq(hr_calibrator_create(&options, &calibrator), HR_OK, "%s", hr_last_error());
    if (with_source) cr_assert_eq(hr_calibrator_set_source(calibrator, &info), HR_OK);
    for (int pass = 1; pass <= hr_calibrator_passes(calibrator); pass++) {
        if (pass == 2) cr_assert_eq(hr_calibrator_next_pass(calibrator), HR_OK);
        for (int32_t layer = 1; layer <= 10; layer += 9) {
            hr_tensor q = gaussian(values[0], (uint64_t)layer, HEADS);
            hr_tensor k = gaussian(values[1], (uint64_t)layer + 50, KV_HEADS);
            hr_tensor v = gaussian(values[2], (uint64_t)layer + 70, KV_HEADS);
            cr_assert_eq(hr_calibrator_observe(calibrator, layer, &q, &k, &v), HR_OK);
        }
    }
    hr_profile *profile;
    cr_assert_eq(hr_calibrator_finish(calibrator, NULL, 0, &profile), HR_OK);
    hr_calibrator_free(calibrator);
    return profile;
}

static scratch_path write_profile(const scratch_dir *scratch, const char *recipe)
{
    scratch_path path = scratch_file(scratch, "profile.safetensors");
    hr_profile *profile = make_profile(recipe, true);
    cr_assert_eq(hr_profile_write(profile, path.text), HR_OK, "%s", hr_last_error());
    hr_profile_free(profile);
    return path;
}

static void assert_same(const float *a, const float *b, size_t count)
{
    cr_assert_eq(memcmp(a, b, count * sizeof *a), 0);
}

static void check_round_trip(bool with_source)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "profile.safetensors");
    hr_profile *made = make_profile(recipe_text, with_source), *read;
    cr_assert_eq(hr_profile_write(made, path.text), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_profile_read(path.text, &read), HR_OK, "%s", hr_last_error());
    hr_profile_info a = hr_profile_get_info(made), b = hr_profile_get_info(read);
    cr_assert_str_eq(a.model, b.model);
    cr_assert_str_eq(b.observer, "percentile:99.99");
    cr_assert_str_eq(a.data_hash, b.data_hash);
    cr_assert_str_eq(a.recipe.name, b.recipe.name);
    cr_assert_eq(b.layer_count, 2);
    cr_assert_eq(b.tokens, TOKENS);
    cr_assert_eq(b.causal, with_source);
    cr_assert(a.softmax_scale == b.softmax_scale);
    cr_assert_eq(b.warning_count, 1);
    cr_assert_str_eq(hr_profile_warning(made, 0), hr_profile_warning(read, 0));
    cr_assert_str_eq(hr_profile_warning(read, 1), "");
    for (int32_t i = 0; i < 2; i++) {
        hr_profile_layer x, y;
        cr_assert_eq(hr_profile_get_layer(made, i, &x), HR_OK);
        cr_assert_eq(hr_profile_get_layer(read, i, &y), HR_OK);
        cr_assert_eq(y.layer, i ? 10 : 1);
        cr_assert_eq(y.tokens, TOKENS);
        assert_same(x.q_scale, y.q_scale, HEADS);
        assert_same(x.k_scale, y.k_scale, KV_HEADS);
        assert_same(x.v_scale, y.v_scale, KV_HEADS);
        assert_same(x.k_mean, y.k_mean, KV_HEADS * DIM);
        assert_same(x.q_amax, y.q_amax, HEADS * DIM);
        assert_same(x.k_amax, y.k_amax, KV_HEADS * DIM);
        assert_same(x.v_amax, y.v_amax, KV_HEADS * DIM);
        assert_same(x.v_channel_scale, y.v_channel_scale, KV_HEADS * DIM);
    }
    hr_profile_layer layer;
    cr_assert_eq(hr_profile_get_layer(read, 2, &layer), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_profile_find_layer(read, 2, &layer), HR_ERROR_NOT_FOUND);
    cr_assert(strstr(hr_last_error(), "no layer 2; it has 2: 1, 10"), "%s", hr_last_error());
    hr_profile_free(made);
    hr_profile_free(read);
    scratch_close(&scratch);
}

Test(profile, round_trip)
{
    check_round_trip(true);
    check_round_trip(false);
}

Test(profile, file_has_vllm_names_and_shapes)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = write_profile(&scratch, "fp8");
    hr_safetensors *file;
    cr_assert_eq(hr_safetensors_open(path.text, &file), HR_OK, "%s", hr_last_error());
    static const struct {
        const char *name;
        int64_t heads;
    } expected[] = {
        {"model.layers.1.self_attn.q_scale", HEADS},
        {"model.layers.1.self_attn.k_scale", KV_HEADS},
        {"model.layers.10.self_attn.v_scale", KV_HEADS},
    };
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        hr_tensor tensor;
        cr_assert_eq(hr_safetensors_find(file, expected[i].name, &tensor), HR_OK);
        cr_assert_eq(tensor.dtype, HR_DTYPE_F32);
        cr_assert_eq(tensor.ndim, 3);
        cr_assert_eq(tensor.shape[0], expected[i].heads);
        cr_assert_eq(tensor.shape[1], 1);
        cr_assert_eq(tensor.shape[2], 1);
    }
    cr_assert_str_eq(hr_safetensors_metadata(file, "headroom.kind"), "profile");
    cr_assert_str_eq(hr_safetensors_metadata(file, "headroom.recipe"), "fp8");
    cr_assert_str_eq(hr_safetensors_metadata(file, "headroom.softmax_scale"), "0.100000001");
    hr_safetensors_close(file);
    scratch_close(&scratch);
}

Test(profile, scales_by_granularity)
{
    hr_profile *profile =
        make_profile("fp8:q.granularity=tensor,k.transform=mean,v.granularity=channel", true);
    hr_profile_layer layer;
    hr_layer_scales scales;
    hr_recipe recipe = hr_profile_get_info(profile).recipe;
    cr_assert_eq(hr_profile_find_layer(profile, 10, &layer), HR_OK);
    cr_assert_eq(hr_profile_scales(profile, 10, &recipe, &scales), HR_OK, "%s", hr_last_error());
    cr_assert_eq(scales.q, layer.q_scale);
    cr_assert_eq(scales.k, layer.k_scale);
    cr_assert_eq(scales.v, layer.v_channel_scale);
    cr_assert_eq(scales.k_mean, layer.k_mean);
    cr_assert_eq(scales.hadamard_seed, HR_HADAMARD_DEFAULT_SEED);
    cr_assert(layer.q_scale[0] == layer.q_scale[HEADS - 1]);

    /* Dynamic operands ask for nothing, whatever the profile was made for; means are there. */
    recipe = parse("int8");
    cr_assert_eq(hr_profile_scales(profile, 1, &recipe, &scales), HR_OK, "%s", hr_last_error());
    cr_assert(!scales.q && !scales.k && !scales.v);
    cr_assert_not_null(scales.k_mean);
    recipe = parse("bf16");
    cr_assert_eq(hr_profile_scales(profile, 1, &recipe, &scales), HR_OK, "%s", hr_last_error());
    cr_assert(!scales.q && !scales.k && !scales.v && !scales.k_mean);
    cr_assert_eq(hr_profile_scales(profile, 2, &recipe, &scales), HR_ERROR_NOT_FOUND);
    hr_profile_free(profile);
}

Test(profile, scales_that_do_not_fit_the_recipe_are_refused)
{
    static const struct {
        const char *made, *wanted, *message;
    } cases[] = {
        {"fp8", "fp8:k.dtype=e5m2", "has k scales for e4m3, static per head, no transform"},
        {"fp8", "fp8:q.granularity=tensor", "needs e4m3, static per tensor"},
        {"fp8:q.granularity=tensor", "fp8", "has q scales"},
        {"fp8", "fp8:qk.transform=hadamard", "needs e4m3, static per head, rotation"},
        {"fp8:k.transform=mean", "fp8", "mean smoothing"},
        {"int8", "fp8:qk.dtype=i8,qk.granularity=tensor", "dynamic per token"},
        {"int8", "int8:v.granularity=head,v.scale=static", "has v scales"},
        {"fp8", "fp8:v.dtype=i8,v.granularity=channel", "needs i8, static per channel"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_profile *profile = make_profile(cases[i].made, false);
        hr_recipe recipe = parse(cases[i].wanted);
        hr_layer_scales scales = {0};
        cr_assert_eq(hr_profile_scales(profile, 1, &recipe, &scales), HR_ERROR_MISMATCH, "case %zu",
                     i);
        cr_assert(strstr(hr_last_error(), cases[i].message), "case %zu: %s", i, hr_last_error());
        cr_assert(strstr(hr_last_error(), "headroom calibrate RECORDING -o PROFILE --recipe"));
        cr_assert_null(scales.k);
        hr_profile_free(profile);
    }
}

/* Packing with a profile's scales: the whole path that the CLI takes. */
Test(profile, packs_with_the_scales)
{
    static const char *const recipes[] = {
        "fp8",
        "fp8:qkv.granularity=tensor",
        "fp8:q.transform=hadamard,k.transform=mean+hadamard,v.granularity=channel",
        "int8:qkv.granularity=head,qkv.scale=static",
    };
    static float values[3][TOKENS * HEADS * DIM];
    hr_tensor q = gaussian(values[0], 1, HEADS), k = gaussian(values[1], 51, KV_HEADS);
    hr_tensor v = gaussian(values[2], 71, KV_HEADS);
    const int32_t cu_seqlens[] = {0, TOKENS};
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        hr_profile *profile = make_profile(recipes[i], false);
        hr_recipe recipe = parse(recipes[i]);
        hr_layer_layouts layouts = {0};
        hr_layer_scales scales;
        hr_packed_layer packed;
        static float out[TOKENS * HEADS * DIM];
        cr_assert_eq(hr_profile_scales(profile, 1, &recipe, &scales), HR_OK, "%s", hr_last_error());
        cr_assert_eq(hr_pack_layer(&recipe, &layouts, &q, &k, &v, 1, cu_seqlens, cu_seqlens,
                                   &scales, &packed),
                     HR_OK, "%s", hr_last_error());
        cr_assert_eq(hr_unpack_original(&packed.k, out), HR_OK);
        double error = 0, square = 0;
        for (int64_t j = 0; j < TOKENS * KV_HEADS * DIM; j++) {
            error += pow((double)out[j] - values[1][j], 2);
            square += pow(values[1][j], 2);
        }
        /* E4M3 rounds by at most 2^-4 of the value, INT8 by less than that of a gaussian's rms. */
        cr_assert(sqrt(error / square) <= 0x1p-4, "%s: %g", recipes[i], sqrt(error / square));
        hr_packed_layer_free(&packed);
        hr_profile_free(profile);
    }
}

static void write_recording(const char *path, const char *model, int64_t heads, int32_t layer)
{
    static float values[TOKENS * 8 * DIM];
    int32_t cu_seqlens[] = {0, TOKENS};
    hr_safetensors_writer *writer;
    cr_assert_eq(hr_safetensors_writer_create(&writer), HR_OK);
    for (int i = 0; i < 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "model.layers.%d.self_attn.%c", layer, "qkv"[i]);
        hr_tensor tensor =
            hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){TOKENS, i ? KV_HEADS : heads, DIM}, values);
        cr_assert_eq(hr_safetensors_add(writer, name, &tensor), HR_OK);
    }
    hr_tensor cu = hr_tensor_view(HR_DTYPE_I32, 1, (int64_t[]){2}, cu_seqlens);
    cr_assert_eq(hr_safetensors_add(writer, "cu_seqlens", &cu), HR_OK);
    const char *const metadata[][2] = {
        {"headroom.kind", "recording"}, {"headroom.version", "1"},
        {"headroom.causal", "true"},    {"headroom.softmax_scale", "0.1"},
        {"headroom.rope", "applied"},   {"headroom.model", model},
    };
    for (size_t i = 0; i < sizeof metadata / sizeof *metadata; i++)
        cr_assert_eq(hr_safetensors_set_metadata(writer, metadata[i][0], metadata[i][1]), HR_OK);
    cr_assert_eq(hr_safetensors_write(writer, path), HR_OK, "%s", hr_last_error());
    hr_safetensors_writer_free(writer);
}

static hr_status check_against(const char *model, int64_t heads, int32_t layer)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "recording.safetensors");
    hr_recording *recording;
    hr_profile *profile = make_profile("fp8", true);
    write_recording(path.text, model, heads, layer);
    cr_assert_eq(hr_recording_open(path.text, &recording), HR_OK, "%s", hr_last_error());
    hr_status status = hr_profile_check(profile, recording);
    hr_recording_close(recording);
    hr_profile_free(profile);
    scratch_close(&scratch);
    return status;
}

Test(profile, a_profile_of_another_model_is_refused)
{
    static const char model[] = "tiny \"quoted\" \xc3\xa9";
    cr_assert_eq(check_against(model, HEADS, 10), HR_OK, "%s", hr_last_error());
    cr_assert_eq(check_against("other", HEADS, 10), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "made for model \"tiny"), "%s", hr_last_error());
    cr_assert(strstr(hr_last_error(), "has model \"other\""), "%s", hr_last_error());
    cr_assert_eq(check_against(model, 8, 10), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "layer 10: the profile was made for 4 heads, 2 KV heads"),
              "%s", hr_last_error());
    cr_assert_eq(check_against(model, HEADS, 3), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "none of the recording's layers"), "%s", hr_last_error());
}

/* How a good profile is spoilt before it is written again. */
typedef struct damage {
    const char *drop;        /* leave this tensor out */
    const char *rename, *to; /* write this tensor under another name */
    const char *poke;        /* set the `index`-th 4 bytes of this tensor to `value` */
    int64_t index;
    float value;
    const char *reshape;    /* write this tensor as [elements] */
    const char *key, *text; /* set this metadata; text NULL removes it */
    const char *message;    /* what the error must say */
} damage;

static const char *const metadata_keys[] = {
    "headroom.kind",     "headroom.version",       "headroom.recipe",   "headroom.observer",
    "headroom.warnings", "headroom.hadamard_seed", "headroom.model",    "headroom.rope",
    "headroom.causal",   "headroom.softmax_scale", "headroom.data_hash"};

static void copy_damaged(const hr_safetensors *file, const char *path, const damage *d)
{
    hr_safetensors_writer *writer;
    float *poked = NULL;
    cr_assert_eq(hr_safetensors_writer_create(&writer), HR_OK);
    for (int64_t i = 0; i < hr_safetensors_count(file); i++) {
        const char *name = hr_safetensors_name(file, i);
        hr_tensor tensor = hr_safetensors_tensor(file, i);
        if (d->drop && !strcmp(d->drop, name)) continue;
        if (d->rename && !strcmp(d->rename, name)) name = d->to;
        if (d->reshape && !strcmp(d->reshape, name))
            tensor =
                hr_tensor_view(tensor.dtype, 1, (int64_t[]){hr_tensor_size(&tensor)}, tensor.data);
        if (d->poke && !strcmp(d->poke, name)) {
            size_t bytes = (size_t)(hr_tensor_size(&tensor) * hr_dtype_bits(tensor.dtype) / 8);
            poked = malloc(bytes);
            memcpy(poked, tensor.data, bytes);
            poked[d->index] = d->value;
            tensor.data = poked;
        }
        cr_assert_eq(hr_safetensors_add(writer, name, &tensor), HR_OK, "%s", hr_last_error());
    }
    for (size_t i = 0; i < sizeof metadata_keys / sizeof *metadata_keys; i++) {
        bool hit = d->key && !strcmp(d->key, metadata_keys[i]);
        const char *text = hit ? d->text : hr_safetensors_metadata(file, metadata_keys[i]);
        if (text) cr_assert_eq(hr_safetensors_set_metadata(writer, metadata_keys[i], text), HR_OK);
    }
    cr_assert_eq(hr_safetensors_write(writer, path), HR_OK, "%s", hr_last_error());
    hr_safetensors_writer_free(writer);
    free(poked);
}

#define ATTN "model.layers.10.self_attn."
#define EXTRA ATTN "headroom."

static const damage damages[] = {
    {.drop = ATTN "k_scale", .message = "should have 9 each"},
    {.drop = EXTRA "tokens", .message = "should have 9 each"},
    {.rename = EXTRA "k_mean", .to = EXTRA "k_median", .message = "does not belong in a profile"},
    {.rename = EXTRA "k_mean",
     .to = "model.layers.010.self_attn.headroom.k_mean",
     .message = "does not belong in a profile"},
    {.rename = EXTRA "k_mean",
     .to = "model.layers.11.self_attn.headroom.k_mean",
     .message = "k_mean"},
    {.rename = EXTRA "k_mean",
     .to = "model.layers.99999999999.self_attn.headroom.k_mean",
     .message = "does not belong in a profile"},
    {.poke = ATTN "k_scale", .index = 1, .value = 0, .message = "k_scale[1] is 0"},
    {.poke = ATTN "v_scale", .index = 0, .value = -0.5f, .message = "must be finite and > 0"},
    {.poke = ATTN "v_scale", .index = 1, .value = NAN, .message = "layer 10: v_scale[1] is nan"},
    {.poke = ATTN "q_scale", .index = 3, .value = INFINITY, .message = "q_scale[3] is inf"},
    {.poke = ATTN "q_scale", .index = 3, .value = 0.25f, .message = "q_scale has different values"},
    {.poke = EXTRA "k_mean", .index = 9, .value = NAN, .message = "headroom.k_mean[9] is nan"},
    {.poke = EXTRA "q_amax", .index = 0, .value = -1, .message = "headroom.q_amax[0] is -1"},
    {.poke = EXTRA "v_channel_scale", .index = 2, .value = 0, .message = "v_channel_scale[2]"},
    {.poke = EXTRA "tokens", .index = 0, .value = 0, .message = "0 tokens; there must be at least"},
    {.reshape = ATTN "q_scale", .message = "must be f32 of shape [*, 1, 1]"},
    {.reshape = EXTRA "v_amax", .message = "v_amax: must be f32 of shape [2, 16]"},
    {.key = "headroom.kind", .text = "recording", .message = "not a profile"},
    {.key = "headroom.kind", .text = NULL, .message = "headroom.kind is missing"},
    {.key = "headroom.version", .text = "2", .message = "version \"2\""},
    {.key = "headroom.version", .text = NULL, .message = "headroom.version is missing"},
    {.key = "headroom.recipe", .text = "fp9", .message = "headroom.recipe"},
    {.key = "headroom.recipe", .text = NULL, .message = "headroom.recipe is missing"},
    {.key = "headroom.observer", .text = "percentile:0", .message = "headroom.observer"},
    {.key = "headroom.hadamard_seed", .text = "12", .message = "hadamard_seed is \"12\""},
    {.key = "headroom.hadamard_seed", .text = "0x0000000000000000", .message = "not 0"},
    {.key = "headroom.warnings", .text = "{}", .message = "not a JSON array"},
    {.key = "headroom.warnings", .text = "[\"a\", 1]", .message = "entry 1 is not a string"},
    {.key = "headroom.warnings", .text = "[", .message = "not a JSON array"},
    {.key = "headroom.causal", .text = "yes", .message = "true and false are accepted"},
    {.key = "headroom.softmax_scale", .text = "inf", .message = "a finite number > 0"},
    {.key = "headroom.softmax_scale", .text = "0.1x", .message = "a finite number > 0"},
    {.key = "headroom.data_hash", .text = "0123", .message = "32 hexadecimal digits"},
    {.key = "headroom.model", .text = NULL, .message = "headroom.model is missing"},
};

Test(profile, damaged_files_are_refused)
{
    scratch_dir scratch = scratch_open();
    scratch_path good = write_profile(&scratch, recipe_text);
    scratch_path bad = scratch_file(&scratch, "bad.safetensors");
    hr_safetensors *file;
    cr_assert_eq(hr_safetensors_open(good.text, &file), HR_OK);
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        hr_profile *profile = (hr_profile *)&scratch;
        copy_damaged(file, bad.text, &damages[i]);
        hr_status status = hr_profile_read(bad.text, &profile);
        cr_assert(status == HR_ERROR_FORMAT || status == HR_ERROR_NOT_FOUND, "case %zu: %d, %s", i,
                  status, damages[i].message);
        cr_assert(strstr(hr_last_error(), damages[i].message), "case %zu: %s", i, hr_last_error());
        cr_assert(strstr(hr_last_error(), "bad.safetensors"), "%s", hr_last_error());
        cr_assert_null(profile);
    }
    /* An undamaged copy passes, so that the refusals above are due to the damage. */
    hr_profile *profile;
    copy_damaged(file, bad.text, &(damage){0});
    cr_assert_eq(hr_profile_read(bad.text, &profile), HR_OK, "%s", hr_last_error());
    hr_profile_free(profile);
    hr_safetensors_close(file);
    scratch_close(&scratch);
}

static char *read_bytes(const char *path, size_t *size)
{
    FILE *stream = fopen(path, "rb");
    cr_assert_not_null(stream);
    cr_assert_eq(fseek(stream, 0, SEEK_END), 0);
    *size = (size_t)ftell(stream);
    rewind(stream);
    char *bytes = malloc(*size);
    cr_assert_eq(fread(bytes, 1, *size, stream), *size);
    fclose(stream);
    return bytes;
}

static void write_bytes(const char *path, const char *bytes, size_t size)
{
    FILE *stream = fopen(path, "wb");
    cr_assert_not_null(stream);
    cr_assert_eq(fwrite(bytes, 1, size, stream), size);
    cr_assert_eq(fclose(stream), 0);
}

/* Whatever a read accepts must be usable: scales positive and finite in every layer. */
static void assert_usable_or_refused(const char *path)
{
    hr_profile *profile;
    if (hr_profile_read(path, &profile) != HR_OK) {
        cr_assert_null(profile);
        cr_assert_gt(strlen(hr_last_error()), 10);
        return;
    }
    for (int32_t i = 0; i < hr_profile_get_info(profile).layer_count; i++) {
        hr_profile_layer layer;
        cr_assert_eq(hr_profile_get_layer(profile, i, &layer), HR_OK);
        for (int32_t head = 0; head < layer.num_heads; head++)
            cr_assert(layer.q_scale[head] > 0 && isfinite(layer.q_scale[head]));
        for (int32_t j = 0; j < layer.num_kv_heads * layer.head_dim; j++)
            cr_assert(isfinite(layer.k_mean[j]) && layer.v_channel_scale[j] > 0);
    }
    hr_profile_free(profile);
}

/* Seeded damage to the bytes: five hundred files with one to four bytes changed, and cut files. */
Test(profile, random_damage_is_survived)
{
    scratch_dir scratch = scratch_open();
    scratch_path good = write_profile(&scratch, recipe_text);
    scratch_path bad = scratch_file(&scratch, "bad.safetensors");
    size_t size;
    char *bytes = read_bytes(good.text, &size), *copy = malloc(size);
    test_random random = {20240607};
    for (int i = 0; i < 500; i++) {
        memcpy(copy, bytes, size);
        for (uint64_t changes = 1 + random_bits(&random) % 4; changes; changes--)
            copy[random_bits(&random) % size] ^= (char)(1 + random_bits(&random) % 255);
        write_bytes(bad.text, copy, size);
        assert_usable_or_refused(bad.text);
    }
    for (size_t cut = 0; cut < size; cut += 1 + size / 200) {
        hr_profile *profile;
        write_bytes(bad.text, bytes, cut);
        cr_assert_eq(hr_profile_read(bad.text, &profile), HR_ERROR_FORMAT, "cut at %zu", cut);
    }
    free(bytes);
    free(copy);
    scratch_close(&scratch);
}

Test(profile, files_that_are_not_there_or_cannot_be_written)
{
    hr_profile *profile = make_profile("fp8", true), *read;
    cr_assert_eq(hr_profile_read("/nonexistent/profile", &read), HR_ERROR_IO);
    cr_assert_null(read);
    cr_assert_eq(hr_profile_write(profile, "/nonexistent/profile"), HR_ERROR_IO);
    cr_assert(strstr(hr_last_error(), "/nonexistent"));
    hr_profile_free(profile);
}
