/*
 * Packed files: what is written is read back bit for bit for every preset and layout; a damaged or
 * hostile file is refused with a message that says what is wrong.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "headroom/pack.h"
#include "headroom/safetensors.h"
#include "scratch_dir.h"
#include "test_random.h"

enum { Q_HEADS = 4, KV_HEADS = 2, TOKENS = 70, HEAD_DIM = 32, LAYERS = 2 };
static const int32_t cu_seqlens[] = {0, 3, TOKENS};
static const int32_t layer_numbers[LAYERS] = {0, 7};

typedef struct sample {
    hr_packed_file_info info;
    hr_packed_layer layers[LAYERS];
} sample;

/* Static scales for recipes that need them: 4 standard deviations at 448. */
static const float static_scales[Q_HEADS] = {0.009f, 0.009f, 0.01f, 0.01f};

static sample make_sample(const char *recipe, bool vnni)
{
    sample made = {.info = {.model = "toy", .causal = true, .softmax_scale = 0.17677669f}};
    cr_assert_eq(hr_recipe_parse(recipe, &made.info.recipe), HR_OK, "%s", hr_last_error());
    hr_layer_layouts layouts = {HR_LAYOUT_ROWS, HR_LAYOUT_ROWS, HR_LAYOUT_ROWS};
    if (vnni) {
        layouts.k = HR_LAYOUT_VNNI_K;
        layouts.v = HR_LAYOUT_VNNI_V;
    }
    const hr_recipe *r = &made.info.recipe;
    hr_layer_scales scales = {0};
    if (r->q.granularity == HR_GRANULARITY_HEAD) scales.q = static_scales;
    if (r->k.granularity == HR_GRANULARITY_HEAD) scales.k = static_scales;
    if (r->v.granularity == HR_GRANULARITY_HEAD) scales.v = static_scales;
    test_random random = {21};
    static float values[3][TOKENS * Q_HEADS * HEAD_DIM];
    for (int i = 0; i < LAYERS; i++) {
        hr_tensor x[3];
        for (int o = 0; o < 3; o++) {
            int64_t heads = o == 0 ? Q_HEADS : KV_HEADS;
            random_gaussians(&random, values[o], TOKENS * heads * HEAD_DIM);
            x[o] = hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){TOKENS, heads, HEAD_DIM}, values[o]);
        }
        cr_assert_eq(hr_pack_layer(r, &layouts, &x[0], &x[1], &x[2], 2, cu_seqlens, cu_seqlens,
                                   &scales, &made.layers[i]),
                     HR_OK, "%s: %s", recipe, hr_last_error());
    }
    return made;
}

static void free_sample(sample *made)
{
    for (int i = 0; i < LAYERS; i++)
        hr_packed_layer_free(&made->layers[i]);
}

static void check_equal(const hr_packed *a, const hr_packed *b)
{
    size_t heads = (size_t)a->num_heads, scales = (size_t)a->scale_count;
    cr_assert_eq(a->operand, b->operand);
    cr_assert_eq(a->recipe.dtype, b->recipe.dtype);
    cr_assert_eq(a->recipe.granularity, b->recipe.granularity);
    cr_assert_eq(a->layout, b->layout);
    cr_assert_eq(a->batch, b->batch);
    cr_assert_eq(a->num_heads, b->num_heads);
    cr_assert_eq(a->head_dim, b->head_dim);
    cr_assert_eq(a->total_tokens, b->total_tokens);
    cr_assert_eq(a->total_slots, b->total_slots);
    cr_assert_eq(a->head_bytes, b->head_bytes);
    cr_assert_eq(a->hadamard_seed, b->hadamard_seed);
    cr_assert_eq(a->scale_count, b->scale_count);
    cr_assert_eq(!a->zero_point, !b->zero_point);
    cr_assert_eq(!a->mean, !b->mean);
    cr_assert_eq(!a->lse_bias, !b->lse_bias);
    cr_assert_eq(memcmp(a->codes, b->codes, heads * a->head_bytes), 0);
    cr_assert_eq(memcmp(a->cu_seqlens, b->cu_seqlens, 3 * sizeof(int32_t)), 0);
    cr_assert_eq(memcmp(a->slot_offset, b->slot_offset, 3 * sizeof(int64_t)), 0);
    if (a->scale) cr_assert_eq(memcmp(a->scale, b->scale, scales * sizeof(float)), 0);
    if (a->zero_point) cr_assert_eq(memcmp(a->zero_point, b->zero_point, scales), 0);
    if (a->mean) cr_assert_eq(memcmp(a->mean, b->mean, heads * HEAD_DIM * sizeof(float)), 0);
    if (a->lse_bias)
        cr_assert_eq(memcmp(a->lse_bias, b->lse_bias, heads * TOKENS * sizeof(float)), 0);
}

Test(packed_file, every_recipe_is_read_back_bit_for_bit)
{
    static const struct {
        const char *recipe;
        bool vnni;
    } cases[] = {
        {"bf16", false},
        {"fp8", false},
        {"fp8:qk.transform=hadamard", false},
        {"int8", false},
        {"int8", true},
        {"int8-fp8", false},
        {"int4", false},
        {"int4:kv.dtype=u4,kv.granularity=group16", false},
        {"int4:kv.dtype=i4,kv.granularity=block32", false},
        {"bf16:qkv.dtype=f32", false},
        {"int8:v.granularity=tensor,v.dtype=e5m2", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        scratch_dir scratch = scratch_open();
        scratch_path path = scratch_file(&scratch, "packed.safetensors");
        sample made = make_sample(cases[i].recipe, cases[i].vnni);
        cr_assert_eq(hr_packed_write(path.text, &made.info, layer_numbers, made.layers, LAYERS),
                     HR_OK, "%s", hr_last_error());
        hr_packed_file *file;
        cr_assert_eq(hr_packed_read(path.text, &file), HR_OK, "%s", hr_last_error());
        hr_packed_file_info info = hr_packed_file_get_info(file);
        cr_assert_str_eq(info.path, path.text);
        cr_assert_str_eq(info.model, "toy");
        cr_assert_str_eq(info.recipe.name, made.info.recipe.name);
        cr_assert(info.causal);
        cr_assert_eq(info.softmax_scale, made.info.softmax_scale);
        cr_assert_eq(info.layer_count, LAYERS);
        for (int l = 0; l < LAYERS; l++) {
            int32_t number;
            const hr_packed_layer *layer = hr_packed_file_layer(file, l, &number);
            cr_assert_eq(number, layer_numbers[l]);
            check_equal(&layer->q, &made.layers[l].q);
            check_equal(&layer->k, &made.layers[l].k);
            check_equal(&layer->v, &made.layers[l].v);
        }
        cr_assert_null(hr_packed_file_layer(file, LAYERS, NULL));
        cr_assert_null(hr_packed_file_layer(file, -1, NULL));
        hr_packed_file_free(file);
        free_sample(&made);
        scratch_close(&scratch);
    }
}

Test(packed_file, keys_may_have_other_sequences_than_queries)
{
    static float values[TOKENS * HEAD_DIM];
    static const int32_t q_bounds[] = {0, 1, 2}, kv_bounds[] = {0, 30, TOKENS}, number = 3;
    hr_recipe recipe = *hr_recipe_preset(0);
    hr_layer_layouts layouts = {HR_LAYOUT_ROWS, HR_LAYOUT_ROWS, HR_LAYOUT_ROWS};
    hr_tensor q = hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){2, 1, HEAD_DIM}, values);
    hr_tensor k = hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){TOKENS, 1, HEAD_DIM}, values);
    hr_packed_layer layer;
    cr_assert_eq(hr_pack_layer(&recipe, &layouts, &q, &k, &k, 2, q_bounds, kv_bounds, NULL, &layer),
                 HR_OK);
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "packed.safetensors");
    hr_packed_file_info info = {.recipe = recipe, .softmax_scale = 1.0f};
    cr_assert_eq(hr_packed_write(path.text, &info, &number, &layer, 1), HR_OK);
    hr_packed_file *file;
    cr_assert_eq(hr_packed_read(path.text, &file), HR_OK, "%s", hr_last_error());
    const hr_packed_layer *read = hr_packed_file_layer(file, 0, NULL);
    cr_assert_eq(read->q.cu_seqlens[1], 1);
    cr_assert_eq(read->k.cu_seqlens[1], 30);
    cr_assert_eq(read->v.cu_seqlens[2], TOKENS);
    hr_packed_file_free(file);
    hr_packed_layer_free(&layer);
    scratch_close(&scratch);
}

/* One change to a good file. Fields that are NULL change nothing. */
typedef struct damage {
    const char *recipe;
    bool vnni;
    const char *drop;       /* tensor left out */
    const char *add;        /* tensor added, U8 [1] */
    const char *key, *text; /* metadata replaced; without text it is left out */
    const char *tensor;     /* of which `size` bytes at byte `at` are replaced */
    int64_t at;
    uint32_t value;
    size_t size;
    const char *reshape; /* tensor whose last dimension is halved */
    const char *retype;  /* U8 or I8 tensor that becomes the other */
    const char *message; /* what the error must say */
} damage;

enum { TENSORS_MAX = 40 };

static void add_tensor(hr_safetensors_writer *writer, const damage *how, const char *name,
                       hr_tensor tensor, void *copy)
{
    memcpy(copy, tensor.data,
           (size_t)hr_tensor_size(&tensor) * (size_t)hr_dtype_bits(tensor.dtype) / 8);
    tensor.data = copy;
    if (how->tensor && !strcmp(name, how->tensor))
        memcpy((char *)copy + how->at, &how->value, how->size);
    if (how->reshape && !strcmp(name, how->reshape)) {
        tensor.shape[tensor.ndim - 1] /= 2;
        tensor = hr_tensor_view(tensor.dtype, tensor.ndim, tensor.shape, copy);
    }
    if (how->retype && !strcmp(name, how->retype))
        tensor.dtype = tensor.dtype == HR_DTYPE_U8 ? HR_DTYPE_I8 : HR_DTYPE_U8;
    cr_assert_eq(hr_safetensors_add(writer, name, &tensor), HR_OK, "%s", hr_last_error());
}

static void write_damaged(const char *good, const char *bad, const damage *how)
{
    static const char *const keys[] = {
        "headroom.kind",     "headroom.version",       "headroom.recipe", "headroom.q_layout",
        "headroom.k_layout", "headroom.v_layout",      "headroom.causal", "headroom.softmax_scale",
        "headroom.model",    "headroom.hadamard_seed", "headroom.layers"};
    static char copies[TENSORS_MAX][1 << 16];
    hr_safetensors *file;
    hr_safetensors_writer *writer;
    cr_assert_eq(hr_safetensors_open(good, &file), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_safetensors_writer_create(&writer), HR_OK);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *text = hr_safetensors_metadata(file, keys[i]);
        cr_assert_not_null(text, "%s", keys[i]);
        if (how->key && !strcmp(how->key, keys[i])) text = how->text;
        if (text) cr_assert_eq(hr_safetensors_set_metadata(writer, keys[i], text), HR_OK);
    }
    cr_assert(hr_safetensors_count(file) < TENSORS_MAX);
    for (int64_t i = 0; i < hr_safetensors_count(file); i++) {
        const char *name = hr_safetensors_name(file, i);
        if (how->drop && !strcmp(name, how->drop)) continue;
        add_tensor(writer, how, name, hr_safetensors_tensor(file, i), copies[i]);
    }
    uint8_t byte = 0;
    hr_tensor extra = hr_tensor_view(HR_DTYPE_U8, 1, (int64_t[]){1}, &byte);
    if (how->add) cr_assert_eq(hr_safetensors_add(writer, how->add, &extra), HR_OK);
    cr_assert_eq(hr_safetensors_write(writer, bad), HR_OK, "%s", hr_last_error());
    hr_safetensors_writer_free(writer);
    hr_safetensors_close(file);
}

#define NAN_BITS 0x7fc00000u
#define K0 "model.layers.0.self_attn.k"
#define V7 "model.layers.7.self_attn.v"
#define Q0 "model.layers.0.self_attn.q"
#define GROUPS "int4:kv.dtype=u4,kv.granularity=group16"

static const damage damages[] = {
    {.recipe = "int8", .key = "headroom.kind", .text = "profile", .message = "\"profile\""},
    {.recipe = "int8", .key = "headroom.kind", .message = "headroom.kind is missing"},
    {.recipe = "int8", .key = "headroom.version", .text = "2", .message = "version 1 is"},
    {.recipe = "int8", .key = "headroom.recipe", .text = "int9", .message = "int9"},
    {.recipe = "int8", .key = "headroom.recipe", .text = "fp8", .message = "e4m3"},
    {.recipe = "int8", .key = "headroom.k_layout", .text = "vnni_v", .message = "k_layout"},
    {.recipe = "int8", .key = "headroom.v_layout", .text = "cols", .message = "\"cols\""},
    {.recipe = "int8", .key = "headroom.k_layout", .text = "vnni_k", .message = "dimensions"},
    {.recipe = "int8", .key = "headroom.causal", .text = "maybe", .message = "\"maybe\""},
    {.recipe = "int8", .key = "headroom.softmax_scale", .text = "nan", .message = "\"nan\""},
    {.recipe = "int8", .key = "headroom.softmax_scale", .text = "-1", .message = "\"-1\""},
    {.recipe = "int8", .key = "headroom.hadamard_seed", .text = "5", .message = "\"5\""},
    {.recipe = "int4", .key = "headroom.hadamard_seed", .text = "0", .message = "\"0\""},
    {.recipe = "int4",
     .key = "headroom.hadamard_seed",
     .text = "99999999999999999999",
     .message = "64-bit"},
    {.recipe = "int8", .key = "headroom.layers", .text = "", .message = "headroom.layers"},
    {.recipe = "int8", .key = "headroom.layers", .text = "0,0", .message = "headroom.layers"},
    {.recipe = "int8", .key = "headroom.layers", .text = "7,0", .message = "headroom.layers"},
    {.recipe = "int8", .key = "headroom.layers", .text = "0,7,", .message = "headroom.layers"},
    {.recipe = "int8", .key = "headroom.layers", .text = "0", .message = "belong to no layer"},
    {.recipe = "int8", .key = "headroom.layers", .text = "0,7,8", .message = "layers.8"},
    {.recipe = "int8",
     .key = "headroom.layers",
     .text = "0,1,2,3,4,5,6,7,8,9",
     .message = "10 layers"},
    {.recipe = "int8", .drop = "cu_seqlens", .message = "no tensor \"cu_seqlens\""},
    {.recipe = "int8", .drop = K0 ".scale", .message = K0 ".scale"},
    {.recipe = "int8", .drop = K0 ".mean", .message = K0 ".mean"},
    {.recipe = "int8", .drop = Q0 ".lse_bias", .message = Q0 ".lse_bias"},
    {.recipe = GROUPS, .drop = V7 ".zero_point", .message = V7 ".zero_point"},
    {.recipe = "int8", .drop = V7, .message = V7},
    {.recipe = "int8", .add = V7 ".zero_point", .message = "no layer it lists: 1"},
    {.recipe = "int8", .add = "weights", .message = "no layer it lists: 1"},
    {.recipe = "int8", .tensor = "cu_seqlens", .value = 1, .size = 4, .message = "[0] is 1"},
    {.recipe = "int8",
     .tensor = "cu_seqlens",
     .at = 4,
     .value = 71,
     .size = 4,
     .message = "falls from 71 to 70"},
    {.recipe = "int8",
     .tensor = "cu_seqlens",
     .at = 8,
     .value = 69,
     .size = 4,
     .message = "i8 [4, 69, 32] is accepted"},
    {.recipe = "int8", .tensor = K0 ".scale", .at = 8, .size = 4, .message = "scale 2 is 0"},
    {.recipe = "int8",
     .tensor = V7 ".scale",
     .value = NAN_BITS,
     .size = 4,
     .message = "scale 0 is nan"},
    {.recipe = "int8",
     .tensor = K0 ".scale",
     .value = 0x80000001u,
     .size = 4,
     .message = "scale 0 is -"},
    {.recipe = "int8", .tensor = K0 ".scale", .value = 1, .size = 4, .message = "scale 0 is"},
    {.recipe = "int8",
     .tensor = K0 ".scale",
     .value = 0x7f7fffffu,
     .size = 4,
     .message = "scale 0 is"},
    {.recipe = "int8", .tensor = K0 ".mean", .value = NAN_BITS, .size = 4, .message = "mean 0"},
    {.recipe = "int8",
     .tensor = Q0 ".lse_bias",
     .at = 4,
     .value = 0x7f800000u,
     .size = 4,
     .message = "lse_bias 1 is inf"},
    {.recipe = GROUPS,
     .tensor = V7 ".zero_point",
     .at = 3,
     .value = 16,
     .size = 1,
     .message = "zero point 3 is 16"},
    {.recipe = "int8",
     .tensor = V7,
     .at = (TOKENS + 2) * HEAD_DIM + 5,
     .value = 0x80,
     .size = 1,
     .message = "token 2, head 1, channel 5"},
    {.recipe = "int4:kv.dtype=i4",
     .tensor = K0,
     .at = 1,
     .value = 0x80,
     .size = 1,
     .message = "token 0, head 0, channel 3"},
    {.recipe = "fp8", .tensor = K0, .value = 0xff, .size = 1, .message = "channel 0"},
    {.recipe = "int8:v.dtype=e5m2", .tensor = V7, .value = 0x7c, .size = 1, .message = "channel 0"},
    {.recipe = "bf16", .tensor = V7, .at = 2, .value = 0x7f80, .size = 2, .message = "channel 1"},
    {.recipe = "int8", .reshape = K0, .message = K0},
    {.recipe = "int8", .reshape = Q0, .message = "i8 [2, 70, 16] is accepted"},
    {.recipe = "int8", .reshape = K0 ".scale", .message = "f32 [2, 35]; f32 [2, 70] is accepted"},
    {.recipe = "int8", .retype = V7, .message = "u8 [2, 70, 32]; i8 [2, 70, 32] is accepted"},
    {.recipe = "int8", .vnni = true, .reshape = V7, .message = V7},
    /* Token 0 of the first tile is real, token 3 is padding: sequence 0 has 3 tokens. */
    {.recipe = "int8", .vnni = true, .tensor = K0, .size = 1, .message = "channel 0"},
    {.recipe = "int8",
     .vnni = true,
     .tensor = K0,
     .at = 12,
     .value = 129,
     .size = 1,
     .message = "padding"},
    {.recipe = "int8",
     .vnni = true,
     .tensor = V7,
     .at = 3,
     .value = 1,
     .size = 1,
     .message = "padding"},
};

Test(packed_file, damage_is_refused)
{
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        scratch_dir scratch = scratch_open();
        scratch_path good = scratch_file(&scratch, "good"), bad = scratch_file(&scratch, "bad");
        sample made = make_sample(damages[i].recipe, damages[i].vnni);
        cr_assert_eq(hr_packed_write(good.text, &made.info, layer_numbers, made.layers, LAYERS),
                     HR_OK, "%s", hr_last_error());
        write_damaged(good.text, bad.text, &damages[i]);
        hr_packed_file *file = (hr_packed_file *)1;
        hr_status status = hr_packed_read(bad.text, &file);
        cr_assert_eq(status, HR_ERROR_FORMAT, "case %zu (%s): %s, %s", i, damages[i].message,
                     hr_status_string(status), hr_last_error());
        cr_assert_null(file);
        cr_assert(strstr(hr_last_error(), damages[i].message), "case %zu: no \"%s\" in: %s", i,
                  damages[i].message, hr_last_error());
        cr_assert(strstr(hr_last_error(), bad.text), "no path in: %s", hr_last_error());
        cr_assert_null(strchr(hr_last_error(), '\n'));
        free_sample(&made);
        scratch_close(&scratch);
    }
}

/* The damage machinery itself: without a change, the copy is read. */
Test(packed_file, an_undamaged_copy_is_accepted)
{
    scratch_dir scratch = scratch_open();
    scratch_path good = scratch_file(&scratch, "good"), copy = scratch_file(&scratch, "copy");
    sample made = make_sample("int8", true);
    cr_assert_eq(hr_packed_write(good.text, &made.info, layer_numbers, made.layers, LAYERS), HR_OK);
    write_damaged(good.text, copy.text, &(damage){0});
    hr_packed_file *file;
    cr_assert_eq(hr_packed_read(copy.text, &file), HR_OK, "%s", hr_last_error());
    hr_packed_file_free(file);
    free_sample(&made);
    scratch_close(&scratch);
}

/* Random bytes overwritten, and every sort of truncation: refused or read, but nothing else. */
Test(packed_file, noise_and_truncation_never_crash)
{
    scratch_dir scratch = scratch_open();
    scratch_path good = scratch_file(&scratch, "good"), bad = scratch_file(&scratch, "bad");
    sample made = make_sample(GROUPS, false);
    cr_assert_eq(hr_packed_write(good.text, &made.info, layer_numbers, made.layers, LAYERS), HR_OK);
    free_sample(&made);
    static char bytes[1 << 20], changed[1 << 20];
    FILE *stream = fopen(good.text, "rb");
    cr_assert_not_null(stream);
    size_t size = fread(bytes, 1, sizeof bytes, stream);
    fclose(stream);
    cr_assert(size > 1000 && size < sizeof bytes);
    uint64_t header;
    memcpy(&header, bytes, 8);
    test_random random = {33};
    for (int round = 0; round < 400; round++) {
        memcpy(changed, bytes, size);
        size_t kept = size;
        if (round % 4 == 0) {
            kept = random_bits(&random) % size;
        } else {
            /* Half of them in the header. */
            size_t span = round % 2 ? header + 8 : size;
            changed[random_bits(&random) % span] = (char)random_bits(&random);
        }
        stream = fopen(bad.text, "wb");
        cr_assert_not_null(stream);
        cr_assert_eq(fwrite(changed, 1, kept, stream), kept);
        cr_assert_eq(fclose(stream), 0);
        hr_packed_file *file;
        hr_status status = hr_packed_read(bad.text, &file);
        cr_assert(status == HR_OK || file == NULL);
        cr_assert(round % 4 != 0 || status != HR_OK);
        if (status == HR_OK) hr_packed_file_free(file);
    }
    scratch_close(&scratch);
}

Test(packed_file, layers_that_do_not_belong_together_are_not_written)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "packed");
    sample made = make_sample("int8", false), tiles = make_sample("int8", true);
    sample other = make_sample("int4", false);
    static const int32_t falling[] = {7, 0};
    const char *at = path.text;
    hr_packed_layer mixed[LAYERS] = {made.layers[0], tiles.layers[1]};
    cr_assert_eq(hr_packed_write(at, &made.info, falling, made.layers, LAYERS),
                 HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_packed_write(at, &made.info, layer_numbers, made.layers, 0),
                 HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_packed_write(at, &other.info, layer_numbers, made.layers, LAYERS),
                 HR_ERROR_MISMATCH);
    cr_assert_eq(hr_packed_write(at, &made.info, layer_numbers, mixed, LAYERS), HR_ERROR_MISMATCH);
    cr_assert(strstr(hr_last_error(), "layer 7: k has layout vnni_k"), "%s", hr_last_error());
    mixed[1] = made.layers[1];
    mixed[1].v = made.layers[1].k;
    cr_assert_eq(hr_packed_write(at, &made.info, layer_numbers, mixed, LAYERS),
                 HR_ERROR_INVALID_ARGUMENT);
    hr_packed_file_info info = made.info;
    info.softmax_scale = NAN;
    cr_assert_eq(hr_packed_write(at, &info, layer_numbers, made.layers, LAYERS),
                 HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_packed_write("/nonexistent/x", &made.info, layer_numbers, made.layers, LAYERS),
                 HR_ERROR_IO);
    cr_assert_eq(scratch_count(&scratch, NULL), 0);
    free_sample(&made);
    free_sample(&tiles);
    free_sample(&other);
    scratch_close(&scratch);
}
