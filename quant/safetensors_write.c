/*
 * Writer of safetensors files; the rules are in safetensors.h.
 *
 * The header is padded with spaces, which the format allows, so that the data begins at a multiple
 * of 64; tensors are ordered by descending element size (stable), so that every tensor starts at a
 * multiple of its element.
 */
#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "device_internal.h"
#include "file.h"
#include "headroom/safetensors.h"
#include "memory.h"
#include "printable.h"
#include "status_internal.h"

enum { LENGTH_BYTES = 8, DATA_ALIGNMENT = 64, MAX_HEADER_BYTES = 100000000 };

typedef struct item {
    char *name;
    hr_tensor tensor; /* as written: U8 with the byte shape for nibbles */
    uint64_t bytes;
    hr_safetensors_fill *fill; /* NULL: the data is at tensor.data */
    void *context;
} item;

struct hr_safetensors_writer {
    json_t *names;    /* set of the tensors' names */
    json_t *metadata; /* object of strings */
    item *items;      /* [count] */
    size_t count, capacity;
};

hr_status hr_safetensors_writer_create(hr_safetensors_writer **out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out is NULL");
    *out = NULL;
    hr_safetensors_writer *writer = hr_alloc(1, sizeof *writer);
    if (!writer) return HR_ERROR_OUT_OF_MEMORY;
    writer->names = json_object();
    writer->metadata = json_object();
    if (!writer->names || !writer->metadata) {
        hr_safetensors_writer_free(writer);
        return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate a JSON object");
    }
    *out = writer;
    return HR_OK;
}

void hr_safetensors_writer_free(hr_safetensors_writer *writer)
{
    if (!writer) return;
    for (size_t i = 0; i < writer->count; i++)
        free(writer->items[i].name);
    free(writer->items);
    json_decref(writer->names);
    json_decref(writer->metadata);
    free(writer);
}

static const char *file_dtype(hr_dtype dtype)
{
    switch (dtype) {
#define SAFETENSORS_DTYPE(file_name, file_dtype)                                                   \
    case file_dtype:                                                                               \
        return file_name;
#include "safetensors_dtypes.def"
#undef SAFETENSORS_DTYPE
    default:
        return NULL;
    }
}

static bool is_contiguous(const hr_tensor *tensor)
{
    int64_t stride = 1;
    for (int i = tensor->ndim - 1; i >= 0; i--) {
        if (tensor->shape[i] > 1 && tensor->stride[i] != stride) return false;
        if (__builtin_mul_overflow(stride, tensor->shape[i], &stride)) return false;
    }
    return true;
}

/* The tensor as the file holds it, and its size. */
static hr_status describe(const hr_tensor *tensor, item *out)
{
    if (tensor->ndim < 0 || tensor->ndim > HR_TENSOR_MAX_DIMS)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "has %d dimensions; 0 to %d are accepted",
                       tensor->ndim, HR_TENSOR_MAX_DIMS);
    int64_t shape[HR_TENSOR_MAX_DIMS];
    bool empty = false;
    for (int i = 0; i < tensor->ndim; i++) {
        shape[i] = tensor->shape[i];
        if (shape[i] < 0)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT, "shape[%d] is %lld; >= 0 is accepted", i,
                           (long long)shape[i]);
        if (shape[i] == 0) empty = true;
    }
    if (!empty && !is_contiguous(tensor))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "is not contiguous");
    hr_dtype dtype = tensor->dtype;
    if (dtype == HR_DTYPE_I4 || dtype == HR_DTYPE_U4 || dtype == HR_DTYPE_C4) {
        if (tensor->ndim == 0 || shape[tensor->ndim - 1] % 2 != 0)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "its last dimension must be even to be packed two codes a byte");
        shape[tensor->ndim - 1] /= 2;
        dtype = HR_DTYPE_U8;
    }
    if (!file_dtype(dtype))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "dtype %d cannot be written", (int)dtype);
    /* Zero extents are left out of the product, so that the strides of empty tensors fit too. */
    int64_t bytes = hr_dtype_bits(dtype) / 8;
    for (int i = 0; i < tensor->ndim; i++)
        if (__builtin_mul_overflow(bytes, shape[i] ? shape[i] : 1, &bytes))
            return hr_fail(HR_ERROR_INVALID_ARGUMENT, "its size overflows 64 bits");
    if (empty) bytes = 0;
    out->tensor = hr_tensor_view(dtype, tensor->ndim, shape, tensor->data);
    out->bytes = (uint64_t)bytes;
    return HR_OK;
}

static hr_status add(hr_safetensors_writer *writer, const char *name, item next)
{
    if (strcmp(name, "__metadata__") == 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "is a reserved name");
    if (json_object_get(writer->names, name))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "was added already");
    if (writer->count == writer->capacity) {
        size_t capacity = writer->capacity ? 2 * writer->capacity : 16;
        item *items = realloc(writer->items, capacity * sizeof *items);
        if (!items) return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate %zu items", capacity);
        writer->items = items;
        writer->capacity = capacity;
    }
    next.name = strdup(name);
    if (!next.name) return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot copy the name");
    errno = 0; /* jansson does not say which of the two it was */
    if (json_object_set_new(writer->names, name, json_true()) != 0) {
        free(next.name);
        if (errno == ENOMEM) return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot note the name");
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "is not a UTF-8 name");
    }
    writer->items[writer->count++] = next;
    return HR_OK;
}

static hr_status add_item(hr_safetensors_writer *writer, const char *name, const hr_tensor *tensor,
                          item next)
{
    if (!writer || !name || !tensor)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "writer, name or tensor is NULL");
    hr_status status = hr_device_expect("it", tensor->device, HR_DEVICE_CPU);
    if (status == HR_OK) status = describe(tensor, &next);
    if (status == HR_OK && !next.fill && !tensor->data && next.bytes > 0)
        status = hr_fail(HR_ERROR_INVALID_ARGUMENT, "its data is NULL");
    if (status == HR_OK) status = add(writer, name, next);
    if (status != HR_OK) return hr_fail_in(status, "tensor \"%s\"", hr_print(name).text);
    return HR_OK;
}

hr_status hr_safetensors_add(hr_safetensors_writer *writer, const char *name,
                             const hr_tensor *tensor)
{
    return add_item(writer, name, tensor, (item){0});
}

hr_status hr_safetensors_add_source(hr_safetensors_writer *writer, const char *name,
                                    const hr_tensor *tensor, hr_safetensors_fill *fill,
                                    void *context)
{
    if (!fill) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "fill is NULL");
    return add_item(writer, name, tensor, (item){.fill = fill, .context = context});
}

hr_status hr_safetensors_set_metadata(hr_safetensors_writer *writer, const char *key,
                                      const char *value)
{
    if (!writer || !key || !value)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "writer, key or value is NULL");
    errno = 0; /* as above */
    if (json_object_set_new(writer->metadata, key, json_string(value)) == 0) return HR_OK;
    if (errno == ENOMEM) return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate the metadata");
    return hr_fail(HR_ERROR_INVALID_ARGUMENT, "metadata \"%s\": key or value is not UTF-8",
                   hr_print(key).text);
}

/* Calls visit for every item in file order: descending element size, then order of addition. */
typedef hr_status item_visitor(const item *at, void *context);

static hr_status visit_in_order(const hr_safetensors_writer *writer, item_visitor *visit,
                                void *context)
{
    for (int bits = 64; bits >= 8; bits /= 2)
        for (size_t i = 0; i < writer->count; i++)
            if (hr_dtype_bits(writer->items[i].tensor.dtype) == bits)
                HR_TRY(visit(&writer->items[i], context));
    return HR_OK;
}

typedef struct header_state {
    json_t *header;
    json_int_t offset;
} header_state;

static hr_status describe_in_header(const item *at, void *context)
{
    header_state *state = context;
    json_int_t end;
    if (__builtin_add_overflow(state->offset, (json_int_t)at->bytes, &end))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the tensors' total size overflows 64 bits");
    json_t *shape = json_array();
    for (int i = 0; i < at->tensor.ndim; i++)
        json_array_append_new(shape, json_integer(at->tensor.shape[i]));
    json_t *description = json_pack("{s:s, s:o, s:[I, I]}", "dtype", file_dtype(at->tensor.dtype),
                                    "shape", shape, "data_offsets", state->offset, end);
    state->offset = end;
    /* Any allocation that failed above ends here: a short shape array would be a wrong header. */
    const bool whole =
        json_array_size(json_object_get(description, "shape")) == (size_t)at->tensor.ndim;
    const bool added = whole && json_object_set(state->header, at->name, description) == 0;
    json_decref(description);
    if (!added) return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot build the JSON header");
    return HR_OK;
}

/* The header's text, padded so that length field and text fill a multiple of 64 bytes. */
static hr_status make_header(const hr_safetensors_writer *writer, char **text, size_t *size)
{
    header_state state = {.header = json_object()};
    if (!state.header) return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot build the JSON header");
    hr_status status = HR_OK;
    if (json_object_size(writer->metadata) > 0 &&
        json_object_set(state.header, "__metadata__", writer->metadata) != 0)
        status = hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot build the JSON header");
    if (status == HR_OK) status = visit_in_order(writer, describe_in_header, &state);
    size_t length = status == HR_OK ? json_dumpb(state.header, NULL, 0, JSON_COMPACT) : 0;
    if (status == HR_OK && length == 0)
        status = hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot print the JSON header");
    if (status == HR_OK && length > MAX_HEADER_BYTES - DATA_ALIGNMENT)
        status = hr_fail(HR_ERROR_INVALID_ARGUMENT,
                         "the header would take %zu bytes; at most %d are accepted", length,
                         MAX_HEADER_BYTES - DATA_ALIGNMENT);
    if (status == HR_OK) {
        *size = (LENGTH_BYTES + length + DATA_ALIGNMENT - 1) / DATA_ALIGNMENT * DATA_ALIGNMENT;
        *text = hr_alloc(*size, 1);
        if (!*text) status = HR_ERROR_OUT_OF_MEMORY;
    }
    if (status == HR_OK) {
        uint64_t padded = *size - LENGTH_BYTES;
        for (int i = 0; i < LENGTH_BYTES; i++)
            (*text)[i] = (char)(padded >> 8 * i & 0xff);
        memset(*text + LENGTH_BYTES, ' ', padded);
        if (json_dumpb(state.header, *text + LENGTH_BYTES, length, JSON_COMPACT) != length)
            status = hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot print the JSON header");
    }
    json_decref(state.header);
    return status;
}

static hr_status append_data(const item *at, void *context)
{
    hr_file *file = context;
    if (!at->fill || at->bytes == 0) return hr_file_append(file, at->tensor.data, at->bytes);
    void *buffer = hr_alloc(at->bytes, 1);
    if (!buffer) return HR_ERROR_OUT_OF_MEMORY;
    hr_status status = at->fill(at->context, buffer);
    if (status == HR_OK) status = hr_file_append(file, buffer, at->bytes);
    free(buffer);
    return status;
}

hr_status hr_safetensors_write(const hr_safetensors_writer *writer, const char *path)
{
    if (!writer || !path)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "writer or output path is NULL");
    char *header = NULL;
    size_t header_bytes = 0;
    hr_status status = make_header(writer, &header, &header_bytes);
    if (status != HR_OK) {
        free(header);
        return hr_fail_in(status, "%s", path);
    }
    hr_file file;
    status = hr_file_begin(path, &file);
    if (status == HR_OK) {
        status = hr_file_append(&file, header, header_bytes);
        if (status == HR_OK) status = visit_in_order(writer, append_data, &file);
        if (status == HR_OK)
            status = hr_file_commit(&file);
        else
            hr_file_abort(&file);
    }
    free(header);
    return status;
}
