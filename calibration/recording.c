/*
 * Reader of recordings: finds the layers of a safetensors file by their tensors' names and checks
 * that each is a whole attention layer; see headroom/recording.h for the format.
 *
 *     model.layers.{i}.self_attn.{q,k,v}  ->  layers[], ascending {i}, each with q, k and v
 *
 * Names of any other form are left alone, so that a recording may carry more than Headroom reads.
 */
#include "headroom/recording.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/safetensors.h"
#include "memory.h"
#include "metadata.h"
#include "printable.h"
#include "status_internal.h"

enum { HEAD_DIM_STEP = 8, MAX_HEAD_DIM = 256, MAX_HEADS = 65536, PARTS = 3 };

struct hr_recording {
    hr_safetensors *file;
    hr_recording_info info;
    hr_recording_layer *layers; /* [info.layer_count], ascending layer number */
};

/* One tensor of one layer, as found in the file. */
typedef struct part {
    int32_t layer;
    int kind; /* 0 q, 1 k, 2 v */
    hr_tensor tensor;
} part;

static const char kinds[PARTS] = {'q', 'k', 'v'};

/*
 * Recognizes "model.layers.{i}.self_attn.{q,k,v}"; sets *kind to -1 for other names. An {i} that is
 * not a plain decimal number of 31 bits is an error: the name is meant for us.
 */
static hr_status parse_name(const char *name, int32_t *layer, int *kind)
{
    static const char prefix[] = "model.layers.", suffix[] = ".self_attn.";
    *kind = -1;
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return HR_OK;
    const char *digits = name + sizeof prefix - 1;
    size_t length = strcspn(digits, ".");
    const char *rest = digits + length;
    if (strncmp(rest, suffix, sizeof suffix - 1) != 0) return HR_OK;
    rest += sizeof suffix - 1;
    for (int i = 0; i < PARTS; i++)
        if (rest[0] == kinds[i] && rest[1] == 0) *kind = i;
    if (*kind < 0) return HR_OK;
    int64_t number = 0;
    bool valid = length >= 1 && length <= 10 && (length == 1 || digits[0] != '0');
    for (size_t i = 0; i < length && valid; i++) {
        if (digits[i] < '0' || digits[i] > '9') valid = false;
        number = 10 * number + (digits[i] - '0');
    }
    if (!valid || number > INT32_MAX)
        return hr_fail(HR_ERROR_FORMAT,
                       "tensor \"%s\": the layer is not a decimal number in 0 .. %d",
                       hr_print(name).text, INT32_MAX);
    *layer = (int32_t)number;
    return HR_OK;
}

/* A required metadata string that must be one of two or three values. */
static hr_status check_choice(const hr_safetensors *file, const char *key,
                              const char *const *accepted, int count, int *chosen)
{
    const char *value = hr_safetensors_metadata(file, key);
    char list[80] = "";
    for (int i = 0; i < count; i++) {
        if (value && strcmp(value, accepted[i]) == 0) return *chosen = i, HR_OK;
        strcat(list, i ? ", " : "");
        strcat(list, accepted[i]);
    }
    if (!value) return hr_fail(HR_ERROR_FORMAT, "metadata %s is missing; accepted: %s", key, list);
    return hr_fail(HR_ERROR_FORMAT, "metadata %s is \"%s\"; accepted: %s", key,
                   hr_print(value).text, list);
}

static hr_status read_metadata(const hr_safetensors *file, hr_recording_info *info)
{
    static const char *const versions[] = {"1"}, *const booleans[] = {"false", "true"},
                             *const ropes[] = {"none", "applied", "before"};
    const char *kind = hr_safetensors_metadata(file, "headroom.kind");
    if (!kind)
        return hr_fail(HR_ERROR_FORMAT, "is not a recording: metadata headroom.kind is missing");
    if (strcmp(kind, "recording") != 0)
        return hr_fail(HR_ERROR_FORMAT, "is of kind \"%s\", not a recording", hr_print(kind).text);
    int version, causal, rope;
    HR_TRY(check_choice(file, "headroom.version", versions, 1, &version));
    HR_TRY(check_choice(file, "headroom.causal", booleans, 2, &causal));
    HR_TRY(check_choice(file, "headroom.rope", ropes, 3, &rope));
    HR_TRY(hr_metadata_softmax_scale(file, &info->softmax_scale));
    const char *model = hr_safetensors_metadata(file, "headroom.model");
    info->model = model ? model : "";
    info->causal = causal;
    info->rope = ropes[rope];
    return HR_OK;
}

static hr_status read_cu_seqlens(const hr_safetensors *file, hr_recording_info *info)
{
    hr_tensor tensor;
    if (hr_safetensors_find(file, "cu_seqlens", &tensor) != HR_OK)
        return hr_fail(HR_ERROR_FORMAT, "has no tensor cu_seqlens");
    if (tensor.dtype != HR_DTYPE_I32 || tensor.ndim != 1 || tensor.shape[0] < 2 ||
        tensor.shape[0] > INT32_MAX)
        return hr_fail(HR_ERROR_FORMAT,
                       "cu_seqlens is %s with %d dimensions and %lld entries; i32 [batch + 1] with "
                       "batch >= 1 is accepted",
                       hr_dtype_name(tensor.dtype), tensor.ndim,
                       (long long)hr_tensor_size(&tensor));
    const int32_t *bounds = tensor.data;
    info->batch = (int32_t)(tensor.shape[0] - 1);
    if (bounds[0] != 0)
        return hr_fail(HR_ERROR_FORMAT, "cu_seqlens[0] is %d; 0 is accepted", bounds[0]);
    for (int32_t i = 0; i < info->batch; i++)
        if (bounds[i + 1] <= bounds[i])
            return hr_fail(HR_ERROR_FORMAT,
                           "sequence %d is %s: cu_seqlens goes from %d to %d; each sequence needs "
                           "at least one token",
                           i, bounds[i + 1] == bounds[i] ? "empty" : "of negative length",
                           bounds[i], bounds[i + 1]);
    info->cu_seqlens = bounds;
    info->total_tokens = bounds[info->batch];
    return HR_OK;
}

static int compare_parts(const void *left, const void *right)
{
    const part *a = left, *b = right;
    if (a->layer != b->layer) return a->layer < b->layer ? -1 : 1;
    return a->kind - b->kind;
}

/* What a tensor must be on its own: dtype, [total_tokens, heads, head_dim]. */
static hr_status check_part(const part *at, int32_t total_tokens)
{
    const hr_tensor *t = &at->tensor;
    if (t->dtype != HR_DTYPE_F32 && t->dtype != HR_DTYPE_F16 && t->dtype != HR_DTYPE_BF16)
        return hr_fail(HR_ERROR_FORMAT, "dtype is %s; f32, f16 and bf16 are accepted",
                       hr_dtype_name(t->dtype));
    if (t->ndim != 3)
        return hr_fail(HR_ERROR_FORMAT,
                       "has %d dimensions; 3 are accepted: [total_tokens, heads, head_dim]",
                       t->ndim);
    if (t->shape[0] != total_tokens)
        return hr_fail(HR_ERROR_FORMAT, "has %lld tokens but cu_seqlens ends at %d",
                       (long long)t->shape[0], total_tokens);
    if (t->shape[1] < 1 || t->shape[1] > MAX_HEADS)
        return hr_fail(HR_ERROR_FORMAT, "has %lld heads; 1 to %d are accepted",
                       (long long)t->shape[1], MAX_HEADS);
    if (t->shape[2] < HEAD_DIM_STEP || t->shape[2] > MAX_HEAD_DIM ||
        t->shape[2] % HEAD_DIM_STEP != 0)
        return hr_fail(HR_ERROR_UNSUPPORTED,
                       "head_dim is %lld; a multiple of %d up to %d is accepted",
                       (long long)t->shape[2], HEAD_DIM_STEP, MAX_HEAD_DIM);
    return HR_OK;
}

/* parts points at the q, k and v of one layer, each already checked on its own. */
static hr_status make_layer(const part parts[PARTS], hr_recording_layer *out)
{
    const hr_tensor *q = &parts[0].tensor, *k = &parts[1].tensor, *v = &parts[2].tensor;
    int layer = parts[0].layer;
    if (k->dtype != q->dtype || v->dtype != q->dtype)
        return hr_fail(HR_ERROR_FORMAT,
                       "layer %d: dtypes of q, k, v are %s, %s, %s; they must agree", layer,
                       hr_dtype_name(q->dtype), hr_dtype_name(k->dtype), hr_dtype_name(v->dtype));
    if (k->shape[2] != q->shape[2] || v->shape[2] != q->shape[2])
        return hr_fail(HR_ERROR_FORMAT,
                       "layer %d: head_dim of q, k, v is %lld, %lld, %lld; they must agree", layer,
                       (long long)q->shape[2], (long long)k->shape[2], (long long)v->shape[2]);
    if (k->shape[1] != v->shape[1])
        return hr_fail(HR_ERROR_FORMAT,
                       "layer %d: k has %lld heads but v has %lld; they must agree", layer,
                       (long long)k->shape[1], (long long)v->shape[1]);
    if (q->shape[1] % k->shape[1] != 0)
        return hr_fail(HR_ERROR_FORMAT,
                       "layer %d: %lld query heads are not divisible by %lld KV heads", layer,
                       (long long)q->shape[1], (long long)k->shape[1]);
    *out = (hr_recording_layer){.layer = layer,
                                .num_heads = (int32_t)q->shape[1],
                                .num_kv_heads = (int32_t)k->shape[1],
                                .head_dim = (int32_t)q->shape[2],
                                .q = *q,
                                .k = *k,
                                .v = *v};
    return HR_OK;
}

/* parts is sorted by layer, then kind, without duplicates: names in a file are unique. */
static hr_status group_layers(hr_recording *recording, const part *parts, int64_t count)
{
    recording->layers = hr_alloc((size_t)(count / PARTS + 1), sizeof *recording->layers);
    if (!recording->layers) return HR_ERROR_OUT_OF_MEMORY;
    for (int64_t i = 0; i < count; i += PARTS) {
        for (int kind = 0; kind < PARTS; kind++) {
            const part *at = &parts[i + kind];
            if (i + kind >= count || at->layer != parts[i].layer || at->kind != kind)
                return hr_fail(HR_ERROR_FORMAT,
                               "layer %d: tensor \"model.layers.%d.self_attn.%c\" is missing",
                               parts[i].layer, parts[i].layer, kinds[kind]);
            hr_status status = check_part(at, recording->info.total_tokens);
            if (status != HR_OK)
                return hr_fail_in(status, "tensor \"model.layers.%d.self_attn.%c\"", at->layer,
                                  kinds[kind]);
        }
        HR_TRY(make_layer(&parts[i], &recording->layers[recording->info.layer_count++]));
    }
    if (recording->info.layer_count == 0)
        return hr_fail(HR_ERROR_FORMAT,
                       "has no layers: no tensor is named model.layers.{i}.self_attn.{q,k,v}");
    return HR_OK;
}

static hr_status read_layers(hr_recording *recording)
{
    int64_t tensors = hr_safetensors_count(recording->file), count = 0;
    part *parts = hr_alloc((size_t)tensors, sizeof *parts);
    if (!parts) return HR_ERROR_OUT_OF_MEMORY;
    hr_status status = HR_OK;
    for (int64_t i = 0; i < tensors && status == HR_OK; i++) {
        part *next = &parts[count];
        status = parse_name(hr_safetensors_name(recording->file, i), &next->layer, &next->kind);
        if (status != HR_OK || next->kind < 0) continue;
        next->tensor = hr_safetensors_tensor(recording->file, i);
        count++;
    }
    if (status == HR_OK && count / PARTS > INT32_MAX)
        status = hr_fail(HR_ERROR_UNSUPPORTED, "has more than %d layers", INT32_MAX);
    if (status == HR_OK) {
        qsort(parts, (size_t)count, sizeof *parts, compare_parts);
        status = group_layers(recording, parts, count);
    }
    free(parts);
    return status;
}

hr_status hr_recording_open(const char *path, hr_recording **out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out is NULL");
    *out = NULL;
    hr_recording *recording = hr_alloc(1, sizeof *recording);
    if (!recording) return HR_ERROR_OUT_OF_MEMORY;
    hr_status status = hr_safetensors_open(path, &recording->file);
    if (status == HR_OK) {
        hr_recording_info *info = &recording->info;
        info->path = hr_safetensors_path(recording->file);
        status = read_metadata(recording->file, info);
        if (status == HR_OK) status = read_cu_seqlens(recording->file, info);
        if (status == HR_OK) status = read_layers(recording);
        if (status == HR_OK) hr_safetensors_hash(recording->file, info->data_hash);
        if (status != HR_OK) hr_fail_in(status, "%s", path);
    }
    if (status != HR_OK) {
        hr_recording_close(recording);
        return status;
    }
    *out = recording;
    return HR_OK;
}

void hr_recording_close(hr_recording *recording)
{
    if (!recording) return;
    hr_safetensors_close(recording->file);
    free(recording->layers);
    free(recording);
}

hr_recording_info hr_recording_get_info(const hr_recording *recording)
{
    return recording->info;
}

hr_status hr_recording_get_layer(const hr_recording *recording, int32_t index,
                                 hr_recording_layer *out)
{
    if (index < 0 || index >= recording->info.layer_count)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s: layer index is %d; 0 .. %d are accepted",
                       recording->info.path, index, recording->info.layer_count - 1);
    *out = recording->layers[index];
    return HR_OK;
}

/* "0-5, 8, 10-11", cut with "..." when it would not fit a message. */
static void list_layers(const hr_recording *recording, char *text, size_t size)
{
    size_t used = 0;
    text[0] = 0;
    for (int32_t i = 0, last; i < recording->info.layer_count; i = last + 1) {
        const hr_recording_layer *layers = recording->layers;
        for (last = i; last + 1 < recording->info.layer_count &&
                       layers[last + 1].layer == layers[last].layer + 1;)
            last++;
        char range[32];
        if (last == i)
            snprintf(range, sizeof range, "%s%d", i ? ", " : "", layers[i].layer);
        else
            snprintf(range, sizeof range, "%s%d-%d", i ? ", " : "", layers[i].layer,
                     layers[last].layer);
        if (used + strlen(range) + sizeof ", ..." > size) {
            strcpy(text + used, ", ...");
            return;
        }
        strcpy(text + used, range);
        used += strlen(range);
    }
}

hr_status hr_recording_find_layer(const hr_recording *recording, int32_t layer,
                                  hr_recording_layer *out)
{
    int32_t low = 0, high = recording->info.layer_count;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (recording->layers[middle].layer < layer)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == recording->info.layer_count || recording->layers[low].layer != layer) {
        char numbers[200];
        list_layers(recording, numbers, sizeof numbers);
        return hr_fail(HR_ERROR_NOT_FOUND, "%s: has no layer %d; it has layers %s",
                       recording->info.path, layer, numbers);
    }
    *out = recording->layers[low];
    return HR_OK;
}
