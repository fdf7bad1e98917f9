/*
 * Recordings: a good one is read whole, and each way to be wrong is one line that names the file,
 * the tensor and the value. Every bad file is the good one with a single change.
 */
#include <criterion/criterion.h>
#include <locale.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "headroom/recording.h"
#include "headroom/safetensors.h"
#include "scratch_dir.h"

enum { TOKENS = 5, MAX_TENSORS = 16, MAX_METADATA = 8 };

typedef struct tensor_row {
    const char *name;
    hr_dtype dtype;
    int ndim;
    int64_t shape[3];
} tensor_row;

/* A recording to be written: rows with a NULL name are left out. */
typedef struct draft {
    tensor_row tensors[MAX_TENSORS];
    const char *metadata[MAX_METADATA][2];
    int32_t cu_seqlens[4];
    hr_dtype cu_dtype;
    int64_t cu_entries;
} draft;

#define LAYER(i, dtype, heads, kv_heads, dim)                                                      \
    {"model.layers." i ".self_attn.q", dtype, 3, {TOKENS, heads, dim}},                            \
        {"model.layers." i ".self_attn.k", dtype, 3, {TOKENS, kv_heads, dim}},                     \
    {                                                                                              \
        "model.layers." i ".self_attn.v", dtype, 3,                                                \
        {                                                                                          \
            TOKENS, kv_heads, dim                                                                  \
        }                                                                                          \
    }

/* Layers 0, 2 and 10 (which sorts before 2 as text), two sequences, and a tensor of no concern. */
enum { Q0, K0, V0, Q2, K2, V2, Q10, K10, V10, OTHER };
static const draft good = {
    .tensors = {LAYER("0", HR_DTYPE_F32, 4, 2, 8),
                LAYER("2", HR_DTYPE_F16, 4, 4, 16),
                LAYER("10", HR_DTYPE_BF16, 3, 1, 256),
                {"model.layers.0.self_attn.rotary", HR_DTYPE_U8, 1, {3}}},
    .metadata = {{"headroom.kind", "recording"},
                 {"headroom.version", "1"},
                 {"headroom.causal", "true"},
                 {"headroom.softmax_scale", "0.125"},
                 {"headroom.rope", "before"},
                 {"headroom.model", "a model"}},
    .cu_seqlens = {0, 2, TOKENS},
    .cu_dtype = HR_DTYPE_I32,
    .cu_entries = 3,
};
enum { KIND, VERSION, CAUSAL, SCALE, ROPE, MODEL };

static void write_draft(const draft *from, const char *path)
{
    static unsigned char bytes[TOKENS * 4 * 256 * 4];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i * 7);
    hr_safetensors_writer *writer;
    cr_assert_eq(hr_safetensors_writer_create(&writer), HR_OK);
    for (int i = 0; i < MAX_TENSORS; i++) {
        const tensor_row *row = &from->tensors[i];
        if (!row->name) continue;
        hr_tensor tensor = hr_tensor_view(row->dtype, row->ndim, row->shape, bytes);
        cr_assert_eq(hr_safetensors_add(writer, row->name, &tensor), HR_OK, "%s", hr_last_error());
    }
    if (from->cu_entries > 0) {
        hr_tensor tensor =
            hr_tensor_view(from->cu_dtype, 1, &from->cu_entries, (void *)from->cu_seqlens);
        cr_assert_eq(hr_safetensors_add(writer, "cu_seqlens", &tensor), HR_OK);
    }
    for (int i = 0; i < MAX_METADATA; i++)
        if (from->metadata[i][1])
            cr_assert_eq(
                hr_safetensors_set_metadata(writer, from->metadata[i][0], from->metadata[i][1]),
                HR_OK);
    cr_assert_eq(hr_safetensors_write(writer, path), HR_OK, "%s", hr_last_error());
    hr_safetensors_writer_free(writer);
}

static hr_status open_draft(const draft *from, hr_recording **out)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "rec.safetensors");
    write_draft(from, path.text);
    hr_status status = hr_recording_open(path.text, out);
    if (status != HR_OK) {
        cr_assert_null(*out);
        cr_assert(strstr(hr_last_error(), path.text), "no path in: %s", hr_last_error());
        cr_assert_null(strchr(hr_last_error(), '\n'), "more than a line: %s", hr_last_error());
    }
    scratch_close(&scratch); /* a mapping outlives the file's name */
    return status;
}

static void refuse(draft bad, hr_status expected, const char *text)
{
    hr_recording *recording;
    hr_status status = open_draft(&bad, &recording);
    cr_assert_eq(status, expected, "%s: %s", hr_status_string(status), hr_last_error());
    cr_assert(strstr(hr_last_error(), text), "message: %s", hr_last_error());
}

Test(recording, a_good_one)
{
    hr_recording *recording;
    cr_assert_eq(open_draft(&good, &recording), HR_OK, "%s", hr_last_error());
    hr_recording_info info = hr_recording_get_info(recording);
    cr_assert(strstr(info.path, "rec.safetensors"));
    cr_assert_str_eq(info.model, "a model");
    cr_assert_str_eq(info.rope, "before");
    cr_assert(info.causal);
    cr_assert_eq(info.softmax_scale, 0.125f);
    cr_assert_eq(info.batch, 2);
    cr_assert_arr_eq(info.cu_seqlens, good.cu_seqlens, 3 * sizeof(int32_t));
    cr_assert_eq(info.total_tokens, TOKENS);
    cr_assert_eq(info.layer_count, 3);
    cr_assert_eq(strspn(info.data_hash, "0123456789abcdef"), 32);

    static const int32_t expected[3][4] = {{0, 4, 2, 8}, {2, 4, 4, 16}, {10, 3, 1, 256}};
    for (int32_t i = 0; i < 3; i++) {
        hr_recording_layer layer, found;
        cr_assert_eq(hr_recording_get_layer(recording, i, &layer), HR_OK);
        cr_assert_eq(layer.layer, expected[i][0]);
        cr_assert_eq(layer.num_heads, expected[i][1]);
        cr_assert_eq(layer.num_kv_heads, expected[i][2]);
        cr_assert_eq(layer.head_dim, expected[i][3]);
        cr_assert_eq(layer.q.dtype, good.tensors[3 * i].dtype);
        cr_assert_eq(layer.q.shape[1], expected[i][1]);
        cr_assert_eq(layer.v.shape[1], expected[i][2]);
        cr_assert_eq(((unsigned char *)layer.k.data)[1], 7);
        cr_assert_eq(hr_recording_find_layer(recording, layer.layer, &found), HR_OK);
        cr_assert_eq(found.q.data, layer.q.data);
    }
    hr_recording_layer layer;
    cr_assert_eq(hr_recording_find_layer(recording, 3, &layer), HR_ERROR_NOT_FOUND);
    cr_assert(strstr(hr_last_error(), "has no layer 3; it has layers 0, 2, 10"));
    cr_assert_eq(hr_recording_find_layer(recording, 11, &layer), HR_ERROR_NOT_FOUND);
    cr_assert_eq(hr_recording_get_layer(recording, 3, &layer), HR_ERROR_INVALID_ARGUMENT);
    cr_assert(strstr(hr_last_error(), "layer index is 3; 0 .. 2 are accepted"));
    cr_assert_eq(hr_recording_get_layer(recording, -1, &layer), HR_ERROR_INVALID_ARGUMENT);
    hr_recording_close(recording);
    hr_recording_close(NULL);
}

Test(recording, runs_of_layers_are_listed_as_ranges)
{
    draft many = {.cu_seqlens = {0, TOKENS}, .cu_dtype = HR_DTYPE_I32, .cu_entries = 2};
    memcpy(many.metadata, good.metadata, sizeof good.metadata);
    static const int numbers[] = {3, 4, 5, 7, 2147483647};
    static char names[15][64];
    for (int i = 0; i < 15; i++) {
        snprintf(names[i], sizeof names[i], "model.layers.%d.self_attn.%c", numbers[i / 3],
                 "qkv"[i % 3]);
        many.tensors[i] = (tensor_row){names[i], HR_DTYPE_F32, 3, {TOKENS, 1, 8}};
    }
    hr_recording *recording;
    cr_assert_eq(open_draft(&many, &recording), HR_OK, "%s", hr_last_error());
    hr_recording_layer layer;
    cr_assert_eq(hr_recording_find_layer(recording, 6, &layer), HR_ERROR_NOT_FOUND);
    cr_assert(strstr(hr_last_error(), "it has layers 3-5, 7, 2147483647"), "%s", hr_last_error());
    hr_recording_close(recording);
}

Test(recording, model_may_be_absent)
{
    draft changed = good;
    changed.metadata[MODEL][1] = NULL;
    hr_recording *recording;
    cr_assert_eq(open_draft(&changed, &recording), HR_OK, "%s", hr_last_error());
    cr_assert_str_eq(hr_recording_get_info(recording).model, "");
    hr_recording_close(recording);
}

Test(recording, not_a_file)
{
    hr_recording *recording;
    cr_assert_eq(hr_recording_open("/nonexistent", &recording), HR_ERROR_IO);
    cr_assert_str_eq(hr_last_error(), "/nonexistent: cannot open: No such file or directory");
    cr_assert_eq(hr_recording_open(NULL, &recording), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_recording_open("/nonexistent", NULL), HR_ERROR_INVALID_ARGUMENT);
}

static void refuse_metadata(int entry, const char *value, const char *text)
{
    draft bad = good;
    bad.metadata[entry][1] = value;
    refuse(bad, HR_ERROR_FORMAT, text);
}

Test(recording, metadata)
{
    refuse_metadata(KIND, NULL, "is not a recording: metadata headroom.kind is missing");
    refuse_metadata(KIND, "profile", "is of kind \"profile\", not a recording");
    refuse_metadata(VERSION, NULL, "metadata headroom.version is missing; accepted: 1");
    refuse_metadata(VERSION, "2", "metadata headroom.version is \"2\"; accepted: 1");
    refuse_metadata(CAUSAL, NULL, "metadata headroom.causal is missing; accepted: false, true");
    refuse_metadata(CAUSAL, "True", "metadata headroom.causal is \"True\"; accepted: false, true");
    refuse_metadata(ROPE, "\x1b[2J\n",
                    "headroom.rope is \"\\x1b[2J\\x0a\"; accepted: none, applied, "
                    "before");
    refuse_metadata(SCALE, NULL, "metadata headroom.softmax_scale is missing");
    static const char *const scales[] = {"0",   "-0.1", "nan",    "inf", "1e999", "1e-99",
                                         "0,1", "",     "0.1 kg", "[1]", "\"1\"", "true"};
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
        char expected[100];
        snprintf(expected, sizeof expected,
                 "headroom.softmax_scale is \"%s\"; a finite number > 0 is accepted", scales[i]);
        refuse_metadata(SCALE, scales[i], expected);
    }
}

Test(recording, scale_is_read_alike_in_every_locale)
{
    setlocale(LC_ALL, "de_DE.UTF-8"); /* where installed, a comma is its decimal point */
    static const struct {
        const char *text;
        float value;
    } scales[] = {{"0.125", 0.125f}, {"1", 1}, {"1.25e-2", 1.25e-2f}, {"1e+2", 100}};
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
        draft changed = good;
        changed.metadata[SCALE][1] = scales[i].text;
        hr_recording *recording;
        cr_assert_eq(open_draft(&changed, &recording), HR_OK, "%s", hr_last_error());
        cr_assert_eq(hr_recording_get_info(recording).softmax_scale, scales[i].value);
        hr_recording_close(recording);
    }
}

Test(recording, cu_seqlens)
{
    draft bad = good;
    bad.cu_entries = 0;
    refuse(bad, HR_ERROR_FORMAT, "has no tensor cu_seqlens");
    bad.cu_entries = 1;
    refuse(bad, HR_ERROR_FORMAT, "cu_seqlens is i32 with 1 dimensions and 1 entries");
    bad = good, bad.cu_dtype = HR_DTYPE_F32;
    refuse(bad, HR_ERROR_FORMAT, "cu_seqlens is f32");
    bad = good, bad.cu_seqlens[0] = 1;
    refuse(bad, HR_ERROR_FORMAT, "cu_seqlens[0] is 1; 0 is accepted");
    bad = good, bad.cu_seqlens[1] = 0;
    refuse(bad, HR_ERROR_FORMAT, "sequence 0 is empty: cu_seqlens goes from 0 to 0");
    bad = good, bad.cu_seqlens[1] = TOKENS;
    refuse(bad, HR_ERROR_FORMAT, "sequence 1 is empty: cu_seqlens goes from 5 to 5");
    bad = good, bad.cu_seqlens[1] = TOKENS + 1;
    refuse(bad, HR_ERROR_FORMAT, "sequence 1 is of negative length: cu_seqlens goes from 6 to 5");
    bad = good, bad.cu_seqlens[1] = INT32_MIN;
    refuse(bad, HR_ERROR_FORMAT, "sequence 0 is of negative length");
    bad = good, bad.cu_seqlens[2] = TOKENS - 1;
    refuse(bad, HR_ERROR_FORMAT,
           "tensor \"model.layers.0.self_attn.q\": has 5 tokens but cu_seqlens ends at 4");
}

Test(recording, whole_layers)
{
    draft bad = good;
    bad.tensors[K2].name = NULL;
    refuse(bad, HR_ERROR_FORMAT, "layer 2: tensor \"model.layers.2.self_attn.k\" is missing");
    bad = good, bad.tensors[V10].name = NULL;
    refuse(bad, HR_ERROR_FORMAT, "layer 10: tensor \"model.layers.10.self_attn.v\" is missing");
    bad = good, bad.tensors[Q0].name = NULL;
    refuse(bad, HR_ERROR_FORMAT, "layer 0: tensor \"model.layers.0.self_attn.q\" is missing");
    bad = good;
    for (int i = Q0; i <= V10; i++)
        bad.tensors[i].name = NULL;
    refuse(bad, HR_ERROR_FORMAT, "has no layers: no tensor is named model.layers.{i}.self_attn");
}

Test(recording, layer_numbers)
{
    static const char *const wrong[] = {
        "model.layers.02.self_attn.q",         "model.layers..self_attn.q",
        "model.layers.-1.self_attn.q",         "model.layers.1x.self_attn.q",
        "model.layers.2147483648.self_attn.q", "model.layers.99999999999999999999.self_attn.q"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        draft bad = good;
        bad.tensors[OTHER].name = wrong[i];
        char expected[128];
        snprintf(expected, sizeof expected, "\"%s\": the layer is not a decimal number", wrong[i]);
        refuse(bad, HR_ERROR_FORMAT, expected);
    }
}

Test(recording, tensors)
{
    draft bad = good;
    bad.tensors[K0].dtype = HR_DTYPE_I8;
    refuse(bad, HR_ERROR_FORMAT,
           "tensor \"model.layers.0.self_attn.k\": dtype is i8; f32, f16 and bf16 are accepted");
    bad = good, bad.tensors[V2].dtype = HR_DTYPE_BF16;
    refuse(bad, HR_ERROR_FORMAT, "layer 2: dtypes of q, k, v are f16, f16, bf16; they must agree");
    bad = good, bad.tensors[Q2].ndim = 2;
    refuse(bad, HR_ERROR_FORMAT,
           "\"model.layers.2.self_attn.q\": has 2 dimensions; 3 are accepted");
    bad = good, bad.tensors[K2].shape[0] = TOKENS - 1;
    refuse(bad, HR_ERROR_FORMAT,
           "\"model.layers.2.self_attn.k\": has 4 tokens but cu_seqlens ends "
           "at 5");
    bad = good, bad.tensors[K2].shape[1] = 0;
    refuse(bad, HR_ERROR_FORMAT, "\"model.layers.2.self_attn.k\": has 0 heads");
}

Test(recording, heads)
{
    draft bad = good;
    bad.tensors[K2].shape[1] = bad.tensors[V2].shape[1] = 3;
    refuse(bad, HR_ERROR_FORMAT, "layer 2: 4 query heads are not divisible by 3 KV heads");
    bad = good, bad.tensors[V2].shape[1] = 2;
    refuse(bad, HR_ERROR_FORMAT, "layer 2: k has 4 heads but v has 2; they must agree");
    bad = good, bad.tensors[K10].shape[1] = bad.tensors[V10].shape[1] = 4;
    refuse(bad, HR_ERROR_FORMAT, "layer 10: 3 query heads are not divisible by 4 KV heads");
}

Test(recording, head_dim)
{
    draft bad = good;
    bad.tensors[K2].shape[2] = 8;
    refuse(bad, HR_ERROR_FORMAT, "layer 2: head_dim of q, k, v is 16, 8, 16; they must agree");
    static const int64_t wrong[] = {0, 4, 12, 264};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        bad = good;
        bad.tensors[Q2].shape[2] = wrong[i];
        char expected[128];
        snprintf(expected, sizeof expected,
                 "\"model.layers.2.self_attn.q\": head_dim is %lld; a multiple of 8 up to 256",
                 (long long)wrong[i]);
        refuse(bad, HR_ERROR_UNSUPPORTED, expected);
    }
}
