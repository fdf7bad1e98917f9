/*
 * Reader of packed files, which may be hostile: the metadata says what the tensors must be, every
 * dtype and shape is compared with that before memory is allocated for it (so that no more is
 * allocated than the file itself holds), every code and scale is checked, and a tensor that belongs
 * to no layer is an error.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/safetensors.h"
#include "memory.h"
#include "metadata.h"
#include "pack_check.h"
#include "pack_layout.h"
#include "packed_check.h"
#include "packed_file.h"
#include "packed_memory.h"
#include "printable.h"
#include "status_internal.h"

/* Heads take memory even when there are no tokens, so that a tiny file could ask for a lot. */
enum { HEADS_MAX = 65536 };

/* The file being read and what its metadata says. */
typedef struct packed_source {
    const hr_safetensors *file;
    hr_packed_file *out;
    hr_layout layout[3];
    uint64_t hadamard_seed;
    int32_t batch;
    const int32_t *cu_seqlens_q, *cu_seqlens_kv;
    int64_t tensors; /* found so far */
} packed_source;

static hr_status find_tensor(packed_source *source, const char *name, hr_tensor *out)
{
    if (hr_safetensors_find(source->file, name, out) != HR_OK)
        return hr_fail(HR_ERROR_FORMAT, "has no tensor \"%s\"", name);
    return HR_OK;
}

static hr_status metadata(const packed_source *source, const char *key, const char **out)
{
    *out = hr_safetensors_metadata(source->file, key);
    return *out ? HR_OK : hr_fail(HR_ERROR_FORMAT, "metadata %s is missing", key);
}

/* A decimal number of digits only, at most `limit`; *text moves past it. */
static bool parse_number(const char **text, uint64_t limit, uint64_t *out)
{
    const char *at = *text;
    uint64_t number = 0;
    for (; *at >= '0' && *at <= '9'; at++) {
        uint64_t digit = (uint64_t)(*at - '0');
        if (number > (limit - digit) / 10) return false;
        number = 10 * number + digit;
    }
    bool any = at != *text;
    *text = at;
    *out = number;
    return any;
}

static hr_status read_hadamard_seed(packed_source *source)
{
    const char *text, *at;
    HR_TRY(metadata(source, "headroom.hadamard_seed", &text));
    at = text;
    bool rotated = (source->out->info.recipe.q.transform | source->out->info.recipe.k.transform) &
                   HR_TRANSFORM_HADAMARD;
    if (!parse_number(&at, UINT64_MAX, &source->hadamard_seed) || *at ||
        rotated != (source->hadamard_seed != 0))
        return hr_fail(HR_ERROR_FORMAT,
                       "metadata headroom.hadamard_seed is \"%s\"; a 64-bit number is accepted, 0 "
                       "exactly where nothing is rotated",
                       hr_print(text).text);
    return HR_OK;
}

/* "0,1,2", rising, into out->layer. */
static hr_status read_layer_list(packed_source *source)
{
    const char *text;
    HR_TRY(metadata(source, "headroom.layers", &text));
    hr_packed_file *out = source->out;
    size_t count = 1;
    for (const char *at = text; *at; at++)
        count += *at == ',';
    out->layer = hr_alloc(count, sizeof *out->layer);
    if (!out->layer) return HR_ERROR_OUT_OF_MEMORY;
    const char *at = text;
    for (size_t i = 0; i < count; i++) {
        uint64_t number;
        bool valid = parse_number(&at, INT32_MAX, &number) &&
                     (i == 0 || (int64_t)number > out->layer[i - 1]) &&
                     *at == (i + 1 < count ? ',' : 0);
        if (!valid)
            return hr_fail(HR_ERROR_FORMAT,
                           "metadata headroom.layers is \"%s\"; rising numbers separated by commas "
                           "are accepted",
                           hr_print(text).text);
        out->layer[i] = (int32_t)number;
        at++;
    }
    /* Each layer has three tensors at least: bounds what is allocated by the file's own size. */
    if ((int64_t)count > hr_safetensors_count(source->file) / 3)
        return hr_fail(HR_ERROR_FORMAT,
                       "metadata headroom.layers lists %zu layers, but the file "
                       "has %lld tensors",
                       count, (long long)hr_safetensors_count(source->file));
    out->layers = hr_alloc(count, sizeof *out->layers);
    if (!out->layers) return HR_ERROR_OUT_OF_MEMORY;
    out->info.layer_count = (int32_t)count;
    return HR_OK;
}

static hr_status read_metadata(packed_source *source)
{
    static const char *const layout_keys[] = {"headroom.q_layout", "headroom.k_layout",
                                              "headroom.v_layout"};
    hr_packed_file_info *info = &source->out->info;
    const char *text;
    HR_TRY(metadata(source, "headroom.kind", &text));
    if (strcmp(text, "packed") != 0)
        return hr_fail(HR_ERROR_FORMAT, "is of kind \"%s\", not a packed file",
                       hr_print(text).text);
    HR_TRY(metadata(source, "headroom.version", &text));
    if (strcmp(text, HR_PACKED_FILE_VERSION) != 0)
        return hr_fail(HR_ERROR_FORMAT,
                       "metadata headroom.version is \"%s\"; version " HR_PACKED_FILE_VERSION
                       " is accepted",
                       hr_print(text).text);
    HR_TRY(metadata(source, "headroom.recipe", &text));
    if (hr_recipe_parse(text, &info->recipe) != HR_OK)
        return hr_fail_in(HR_ERROR_FORMAT, "metadata headroom.recipe");
    for (int x = 0; x < 3; x++) {
        HR_TRY(metadata(source, layout_keys[x], &text));
        if (hr_layout_parse(text, &source->layout[x]) != HR_OK ||
            hr_layout_check(source->layout[x], (hr_operand)x,
                            hr_recipe_of_operand(&info->recipe, (hr_operand)x)->dtype) != HR_OK)
            return hr_fail_in(HR_ERROR_FORMAT, "metadata %s", layout_keys[x]);
    }
    HR_TRY(metadata(source, "headroom.causal", &text));
    info->causal = strcmp(text, "true") == 0;
    if (!info->causal && strcmp(text, "false") != 0)
        return hr_fail(HR_ERROR_FORMAT,
                       "metadata headroom.causal is \"%s\"; true and false are accepted",
                       hr_print(text).text);
    HR_TRY(hr_metadata_softmax_scale(source->file, &info->softmax_scale));
    HR_TRY(read_hadamard_seed(source));
    HR_TRY(metadata(source, "headroom.model", &text));
    source->out->model = strdup(text);
    if (!source->out->model) return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot copy the model's name");
    info->model = source->out->model;
    return read_layer_list(source);
}

static hr_status read_seqlens(packed_source *source, const char *name, const int32_t **out)
{
    hr_tensor tensor;
    HR_TRY(find_tensor(source, name, &tensor));
    if (tensor.dtype != HR_DTYPE_I32 || tensor.ndim != 1 || tensor.shape[0] < 2 ||
        tensor.shape[0] > INT32_MAX)
        return hr_fail(HR_ERROR_FORMAT,
                       "%s is %s with %d dimensions and %lld entries; i32 [batch + 1] with batch "
                       ">= 1 is accepted",
                       name, hr_dtype_name(tensor.dtype), tensor.ndim,
                       (long long)hr_tensor_size(&tensor));
    const int32_t *bounds = tensor.data;
    int32_t batch = (int32_t)(tensor.shape[0] - 1);
    if (hr_pack_check_seqlens(name, batch, bounds, bounds[batch]) != HR_OK)
        return hr_fail_in(HR_ERROR_FORMAT, "cu_seqlens");
    if (source->batch != 0 && source->batch != batch)
        return hr_fail(HR_ERROR_FORMAT, "%s has a batch of %d, but cu_seqlens of %d", name, batch,
                       source->batch);
    source->batch = batch;
    *out = bounds;
    source->tensors++;
    return HR_OK;
}

static bool same_shape(const hr_tensor *a, const hr_tensor *b)
{
    return a->dtype == b->dtype && a->ndim == b->ndim &&
           !memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof *a->shape);
}

static const char *print_shape(const hr_tensor *tensor, char text[120])
{
    int used = snprintf(text, 120, "%s [", hr_dtype_name(tensor->dtype));
    for (int i = 0; i < tensor->ndim; i++)
        used += snprintf(text + used, 120 - (size_t)used, "%s%lld", i ? ", " : "",
                         (long long)tensor->shape[i]);
    snprintf(text + used, 120 - (size_t)used, "]");
    return text;
}

/* Finds the tensors of all parts of an operand and compares them with what they must be. */
static hr_status find_parts(packed_source *source, int32_t layer, const hr_packed *packed,
                            hr_tensor parts[HR_PART_COUNT])
{
    bool smoothed = source->out->info.recipe.k.transform & HR_TRANSFORM_MEAN;
    for (int part = 0; part < HR_PART_COUNT; part++) {
        hr_tensor expected;
        parts[part].data = NULL;
        if (!hr_packed_part_view(packed, smoothed, (hr_packed_part)part, &expected)) continue;
        char name[HR_PACKED_NAME_BYTES], found_text[120], expected_text[120];
        hr_packed_part_name(layer, packed->operand, (hr_packed_part)part, name);
        HR_TRY(find_tensor(source, name, &parts[part]));
        if (!same_shape(&parts[part], &expected))
            return hr_fail(HR_ERROR_FORMAT, "tensor \"%s\" is %s; %s is accepted", name,
                           print_shape(&parts[part], found_text),
                           print_shape(&expected, expected_text));
        source->tensors++;
    }
    return HR_OK;
}

static void copy_parts(hr_packed *packed, const hr_tensor parts[HR_PART_COUNT])
{
    for (int part = HR_PART_SCALE; part < HR_PART_COUNT; part++) {
        void *target = hr_packed_part_data(packed, (hr_packed_part)part);
        const hr_tensor *from = &parts[part];
        if (target && hr_tensor_size(from) > 0)
            memcpy(target, from->data,
                   (size_t)hr_tensor_size(from) * (size_t)hr_dtype_bits(from->dtype) / 8);
    }
    const hr_tensor *codes = &parts[HR_PART_CODES];
    size_t head = (size_t)(hr_tensor_size(codes) / packed->num_heads) *
                  (size_t)hr_dtype_bits(codes->dtype) / 8;
    for (int32_t h = 0; head > 0 && h < packed->num_heads; h++)
        memcpy((char *)packed->codes + (size_t)h * packed->head_bytes,
               (const char *)codes->data + (size_t)h * head, head);
}

/* out's operand, num_heads and head_dim are set; the rest follows from the metadata. */
static hr_status read_operand(packed_source *source, int32_t layer, hr_packed *out)
{
    const int32_t *cu_seqlens =
        out->operand == HR_OPERAND_Q ? source->cu_seqlens_q : source->cu_seqlens_kv;
    out->recipe = *hr_recipe_of_operand(&source->out->info.recipe, out->operand);
    out->layout = source->layout[out->operand];
    out->batch = source->batch;
    out->total_tokens = cu_seqlens[source->batch];
    if (out->recipe.transform & HR_TRANSFORM_HADAMARD) out->hadamard_seed = source->hadamard_seed;
    if (hr_pack_check_recipe(out->operand, &out->recipe, out->head_dim) != HR_OK)
        return hr_fail_in(HR_ERROR_FORMAT, "layer %d", layer);
    hr_tensor parts[HR_PART_COUNT];
    HR_TRY(hr_packed_measure(out, cu_seqlens));
    HR_TRY(find_parts(source, layer, out, parts));
    HR_TRY(hr_packed_allocate(out, out->operand == HR_OPERAND_Q &&
                                       source->out->info.recipe.k.transform & HR_TRANSFORM_MEAN));
    copy_parts(out, parts);
    hr_status status = hr_packed_check(out);
    char name[HR_PACKED_NAME_BYTES];
    hr_packed_part_name(layer, out->operand, HR_PART_CODES, name);
    return status == HR_OK ? HR_OK : hr_fail_in(status, "tensor \"%s\"", name);
}

/* Heads of one operand and head_dim, from its codes: the first and, in ROWS, the last size. */
static hr_status read_sizes(packed_source *source, int32_t layer, hr_operand operand,
                            int32_t *heads, int32_t *head_dim)
{
    char name[HR_PACKED_NAME_BYTES];
    hr_tensor codes;
    hr_packed_part_name(layer, operand, HR_PART_CODES, name);
    HR_TRY(find_tensor(source, name, &codes));
    hr_dtype dtype = hr_recipe_of_operand(&source->out->info.recipe, operand)->dtype;
    bool rows = source->layout[operand] == HR_LAYOUT_ROWS;
    int64_t per_element = hr_dtype_bits(dtype) == 4 ? 2 : 1;
    if (codes.ndim != (rows ? 3 : 2) || codes.shape[0] < 1 || codes.shape[0] > HEADS_MAX ||
        codes.shape[codes.ndim - 1] > INT32_MAX / per_element)
        return hr_fail(HR_ERROR_FORMAT,
                       "tensor \"%s\" has %d dimensions and %lld heads; [heads, %s with 1 to %d "
                       "heads is accepted",
                       name, codes.ndim, codes.ndim > 0 ? (long long)codes.shape[0] : 0,
                       rows ? "tokens, head_dim]" : "head_bytes]", HEADS_MAX);
    *heads = (int32_t)codes.shape[0];
    if (head_dim) *head_dim = (int32_t)(codes.shape[2] * per_element);
    return HR_OK;
}

static hr_status read_layer(packed_source *source, int32_t layer, hr_packed_layer *out)
{
    int32_t num_heads, num_kv_heads, head_dim;
    /* Q has no layout but ROWS, so its codes tell head_dim. */
    HR_TRY(read_sizes(source, layer, HR_OPERAND_Q, &num_heads, &head_dim));
    HR_TRY(read_sizes(source, layer, HR_OPERAND_K, &num_kv_heads, NULL));
    if (num_heads % num_kv_heads != 0)
        return hr_fail(HR_ERROR_FORMAT, "layer %d: %d query heads are not divisible by %d KV heads",
                       layer, num_heads, num_kv_heads);
    out->q = (hr_packed){.operand = HR_OPERAND_Q, .num_heads = num_heads, .head_dim = head_dim};
    out->k = (hr_packed){.operand = HR_OPERAND_K, .num_heads = num_kv_heads, .head_dim = head_dim};
    out->v = (hr_packed){.operand = HR_OPERAND_V, .num_heads = num_kv_heads, .head_dim = head_dim};
    HR_TRY(read_operand(source, layer, &out->q));
    HR_TRY(read_operand(source, layer, &out->k));
    return read_operand(source, layer, &out->v);
}

static hr_status read_file(packed_source *source)
{
    HR_TRY(read_metadata(source));
    HR_TRY(read_seqlens(source, "cu_seqlens", &source->cu_seqlens_q));
    source->cu_seqlens_kv = source->cu_seqlens_q;
    for (int64_t i = 0; i < hr_safetensors_count(source->file); i++)
        if (strcmp(hr_safetensors_name(source->file, i), "cu_seqlens_kv") == 0)
            HR_TRY(read_seqlens(source, "cu_seqlens_kv", &source->cu_seqlens_kv));
    for (int32_t i = 0; i < source->out->info.layer_count; i++)
        HR_TRY(read_layer(source, source->out->layer[i], &source->out->layers[i]));
    int64_t extra = hr_safetensors_count(source->file) - source->tensors;
    if (extra > 0)
        return hr_fail(HR_ERROR_FORMAT, "tensors that belong to no layer it lists: %lld",
                       (long long)extra);
    return HR_OK;
}

hr_status hr_packed_read(const char *path, hr_packed_file **out)
{
    if (!path || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is NULL", path ? "out" : "path");
    *out = NULL;
    hr_safetensors *file = NULL;
    HR_TRY(hr_safetensors_open(path, &file));
    packed_source source = {.file = file, .out = hr_alloc(1, sizeof *source.out)};
    hr_status status = source.out ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
    if (status == HR_OK) {
        source.out->info.path = source.out->path = strdup(path);
        status = source.out->path ? read_file(&source)
                                  : hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot copy the path");
        if (status != HR_OK) hr_fail_in(status, "%s", path);
    }
    hr_safetensors_close(file);
    if (status != HR_OK) {
        hr_packed_file_free(source.out);
        return status;
    }
    *out = source.out;
    return HR_OK;
}
