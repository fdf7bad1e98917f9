/*
 * Reader of safetensors files; the rules are in safetensors.h.
 *
 *     byte 0        8            8 + N                             file size
 *          | N (u64) | JSON header | tensor data, no holes, no overlaps |
 *
 * The file is mapped, the header parsed once, and every entry checked before anything is handed
 * out: sizes are multiplied with overflow detection, entries sorted by offset must follow one
 * another exactly.
 */
#include "headroom/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "memory.h"
#include "printable.h"
#include "status_internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are mapped without swapping");

enum { LENGTH_BYTES = 8 };
static const uint64_t MAX_HEADER_BYTES = 100000000; /* the reference implementation's cap */

/*
 * Parsed JSON takes up to 125 bytes for each of these characters, 40 times what a header made of
 * them alone has, so they are counted before anything is parsed: a tensor has 13 of them.
 */
enum { MAX_HEADER_MARKS = 1 << 21 };

typedef struct entry {
    const char *name; /* owned by the parsed header */
    hr_tensor tensor;
    uint64_t begin, end; /* within the data section */
    void *aligned_copy;  /* of a tensor that is misaligned in the file, else NULL */
} entry;

struct hr_safetensors {
    char *path;
    unsigned char *map; /* the whole file */
    uint64_t map_bytes;
    unsigned char *data; /* the data section */
    uint64_t data_bytes;
    json_t *header;
    const json_t *metadata;     /* object of strings, or NULL */
    const char **metadata_keys; /* [metadata_count] */
    int64_t metadata_count;
    entry *entries;        /* [count], by begin, then end */
    const entry **by_name; /* [count] */
    int64_t count;
};

static hr_status find_dtype(const char *name, hr_dtype *out)
{
#define SAFETENSORS_DTYPE(file_name, dtype)                                                        \
    if (strcmp(name, file_name) == 0) return *out = dtype, HR_OK;
#include "safetensors_dtypes.def"
#undef SAFETENSORS_DTYPE
    static const char accepted[] =
#define SAFETENSORS_DTYPE(file_name, dtype) " " file_name
#include "safetensors_dtypes.def"
#undef SAFETENSORS_DTYPE
        ;
    return hr_fail(HR_ERROR_UNSUPPORTED, "dtype \"%s\" is not one of%s", hr_print(name).text,
                   accepted);
}

/* Opens without blocking on a pipe and maps a regular file that can hold a header. */
static hr_status map_file(const char *path, hr_safetensors *file)
{
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (descriptor < 0) return hr_fail(HR_ERROR_IO, "cannot open: %s", strerror(errno));
    struct stat status;
    hr_status result = HR_OK;
    if (fstat(descriptor, &status) != 0)
        result = hr_fail(HR_ERROR_IO, "cannot read its size: %s", strerror(errno));
    else if (!S_ISREG(status.st_mode))
        result = hr_fail(HR_ERROR_IO, "%s, not a regular file",
                         S_ISDIR(status.st_mode) ? "is a directory" : "is a device or a pipe");
    else if (status.st_size < LENGTH_BYTES + 2)
        result = hr_fail(HR_ERROR_FORMAT,
                         "is %lld bytes long; a safetensors file has a header length of %d bytes "
                         "and at least \"{}\"",
                         (long long)status.st_size, LENGTH_BYTES);
    if (result == HR_OK) {
        void *map = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (map == MAP_FAILED) {
            result = hr_fail(HR_ERROR_IO, "cannot map %lld bytes: %s", (long long)status.st_size,
                             strerror(errno));
        } else {
            file->map = map;
            file->map_bytes = (uint64_t)status.st_size;
        }
    }
    close(descriptor);
    return result;
}

static bool is_text(const unsigned char *bytes)
{
    for (int i = 0; i < LENGTH_BYTES; i++)
        if (bytes[i] < 0x20 || bytes[i] > 0x7e) return false;
    return true;
}

/* Brackets that open, commas and colons outside of strings. */
static uint64_t count_marks(const char *text, uint64_t length)
{
    uint64_t marks = 0;
    bool in_string = false;
    for (uint64_t i = 0; i < length; i++) {
        const char c = text[i];
        if (c == '"')
            in_string = !in_string;
        else if (in_string)
            i += c == '\\';
        else
            marks += c == '{' || c == '[' || c == ',' || c == ':';
    }
    return marks;
}

static hr_status parse_header(hr_safetensors *file)
{
    uint64_t length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        length = length << 8 | file->map[i];
    if (length > MAX_HEADER_BYTES && is_text(file->map))
        return hr_fail(HR_ERROR_FORMAT,
                       "begins with the text \"%.8s\", not with a header's length: not safetensors",
                       (const char *)file->map);
    if (length > MAX_HEADER_BYTES)
        return hr_fail(
            HR_ERROR_FORMAT,
            "claims a header of %llu bytes; at most %llu are accepted (is it safetensors?)",
            (unsigned long long)length, (unsigned long long)MAX_HEADER_BYTES);
    if (length > file->map_bytes - LENGTH_BYTES)
        return hr_fail(HR_ERROR_FORMAT, "claims a header of %llu bytes but is only %llu bytes long",
                       (unsigned long long)length, (unsigned long long)file->map_bytes);
    const char *text = (const char *)file->map + LENGTH_BYTES;
    if (length == 0 || text[0] != '{')
        return hr_fail(HR_ERROR_FORMAT, "the header does not begin with '{': not safetensors");
    const uint64_t marks = count_marks(text, length);
    if (marks > MAX_HEADER_MARKS)
        return hr_fail(HR_ERROR_FORMAT,
                       "the header has %llu values, names and brackets; at most %d, enough for "
                       "160000 tensors, are accepted",
                       (unsigned long long)marks, MAX_HEADER_MARKS);
    json_error_t error = {.text = ""};
    /* jansson has no words for a failed allocation, or calls it a wrong token. */
    errno = 0;
    file->header = json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    if (errno == ENOMEM || (!file->header && !*error.text))
        return hr_fail(HR_ERROR_OUT_OF_MEMORY, "no memory to parse a header of %llu bytes",
                       (unsigned long long)length);
    if (!file->header)
        return hr_fail(HR_ERROR_FORMAT, "the header is not valid JSON: %s, at byte %d",
                       hr_print(error.text).text, error.position);
    file->data = file->map + LENGTH_BYTES + length;
    file->data_bytes = file->map_bytes - LENGTH_BYTES - length;
    return HR_OK;
}

static hr_status check_metadata(hr_safetensors *file, json_t *metadata)
{
    if (!json_is_object(metadata)) return hr_fail(HR_ERROR_FORMAT, "__metadata__ is not an object");
    file->metadata_keys = hr_alloc(json_object_size(metadata), sizeof *file->metadata_keys);
    if (!file->metadata_keys) return HR_ERROR_OUT_OF_MEMORY;
    const char *key;
    json_t *value;
    json_object_foreach (metadata, key, value) {
        if (!json_is_string(value))
            return hr_fail(HR_ERROR_FORMAT, "__metadata__ \"%s\" is not a string",
                           hr_print(key).text);
        file->metadata_keys[file->metadata_count++] = key;
    }
    file->metadata = metadata;
    return HR_OK;
}

static hr_status parse_shape(const json_t *shape, int64_t out[HR_TENSOR_MAX_DIMS], int *ndim)
{
    size_t dims = json_array_size(shape);
    if (!json_is_array(shape)) return hr_fail(HR_ERROR_FORMAT, "shape is not an array");
    if (dims > HR_TENSOR_MAX_DIMS)
        return hr_fail(HR_ERROR_UNSUPPORTED, "shape has %zu dimensions; at most %d are supported",
                       dims, HR_TENSOR_MAX_DIMS);
    for (size_t i = 0; i < dims; i++) {
        const json_t *extent = json_array_get(shape, i);
        if (!json_is_integer(extent) || json_integer_value(extent) < 0)
            return hr_fail(HR_ERROR_FORMAT, "shape[%zu] is not an integer >= 0", i);
        out[i] = json_integer_value(extent);
    }
    *ndim = (int)dims;
    return HR_OK;
}

static hr_status parse_offsets(const json_t *offsets, uint64_t data_bytes, entry *out)
{
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        return hr_fail(HR_ERROR_FORMAT, "data_offsets is not an array of two integers");
    long long from = json_integer_value(begin), to = json_integer_value(end);
    if (from < 0 || to < from)
        return hr_fail(HR_ERROR_FORMAT, "data_offsets [%lld, %lld] is not 0 <= begin <= end", from,
                       to);
    if ((uint64_t)to > data_bytes)
        return hr_fail(HR_ERROR_FORMAT,
                       "data_offsets [%lld, %lld] end past the %llu bytes of data: the file is "
                       "truncated or its header is wrong",
                       from, to, (unsigned long long)data_bytes);
    out->begin = (uint64_t)from;
    out->end = (uint64_t)to;
    return HR_OK;
}

static hr_status parse_tensor(json_t *description, hr_safetensors *file, entry *out)
{
    if (!json_is_object(description)) return hr_fail(HR_ERROR_FORMAT, "is not an object");
    const char *key;
    json_t *value;
    json_object_foreach (description, key, value)
        if (strcmp(key, "dtype") && strcmp(key, "shape") && strcmp(key, "data_offsets"))
            return hr_fail(HR_ERROR_FORMAT,
                           "unknown key \"%s\"; dtype, shape and data_offsets are accepted",
                           hr_print(key).text);
    if (json_object_size(description) != 3)
        return hr_fail(HR_ERROR_FORMAT, "must have dtype, shape and data_offsets");
    const char *dtype_name = json_string_value(json_object_get(description, "dtype"));
    if (!dtype_name) return hr_fail(HR_ERROR_FORMAT, "dtype is not a string");
    hr_dtype dtype;
    HR_TRY(find_dtype(dtype_name, &dtype));
    int64_t shape[HR_TENSOR_MAX_DIMS];
    int ndim;
    HR_TRY(parse_shape(json_object_get(description, "shape"), shape, &ndim));
    HR_TRY(parse_offsets(json_object_get(description, "data_offsets"), file->data_bytes, out));
    /* Zero extents are left out of the product, so that the strides of empty tensors fit too. */
    int64_t bytes = hr_dtype_bits(dtype) / 8;
    bool empty = false;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] == 0) empty = true;
        if (__builtin_mul_overflow(bytes, shape[i] ? shape[i] : 1, &bytes))
            return hr_fail(HR_ERROR_FORMAT, "the product of its shape overflows 64 bits");
    }
    if (empty) bytes = 0;
    if ((uint64_t)bytes != out->end - out->begin)
        return hr_fail(HR_ERROR_FORMAT,
                       "data_offsets [%llu, %llu] hold %llu bytes but shape and dtype need %lld",
                       (unsigned long long)out->begin, (unsigned long long)out->end,
                       (unsigned long long)(out->end - out->begin), (long long)bytes);
    out->tensor = hr_tensor_view(dtype, ndim, shape, file->data + out->begin);
    return HR_OK;
}

static hr_status parse_entries(hr_safetensors *file)
{
    file->entries = hr_alloc(json_object_size(file->header), sizeof *file->entries);
    file->by_name = hr_alloc(json_object_size(file->header), sizeof *file->by_name);
    if (!file->entries || !file->by_name) return HR_ERROR_OUT_OF_MEMORY;
    const char *name;
    json_t *value;
    json_object_foreach (file->header, name, value) {
        if (strcmp(name, "__metadata__") == 0) {
            HR_TRY(check_metadata(file, value));
            continue;
        }
        entry *next = &file->entries[file->count++];
        next->name = name;
        hr_status status = parse_tensor(value, file, next);
        if (status != HR_OK) return hr_fail_in(status, "tensor \"%s\"", hr_print(name).text);
    }
    return HR_OK;
}

static int compare_offsets(const void *left, const void *right)
{
    const entry *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    if (a->end != b->end) return a->end < b->end ? -1 : 1;
    return strcmp(a->name, b->name); /* empty tensors at one place: a fixed order */
}

static int compare_names(const void *left, const void *right)
{
    const entry *const *a = left, *const *b = right;
    return strcmp((*a)->name, (*b)->name);
}

/* Sorted by offset, each tensor begins where the one before ended, and the last ends the file. */
static hr_status check_coverage(hr_safetensors *file)
{
    qsort(file->entries, (size_t)file->count, sizeof *file->entries, compare_offsets);
    uint64_t covered = 0;
    for (int64_t i = 0; i < file->count; i++) {
        const entry *at = &file->entries[i];
        if (at->begin != covered)
            return hr_fail(HR_ERROR_FORMAT,
                           "tensor \"%s\": data_offsets [%llu, %llu] %s the data before, which "
                           "ends at %llu",
                           hr_print(at->name).text, (unsigned long long)at->begin,
                           (unsigned long long)at->end,
                           at->begin < covered ? "overlap" : "leave a hole after",
                           (unsigned long long)covered);
        covered = at->end;
    }
    if (covered != file->data_bytes)
        return hr_fail(HR_ERROR_FORMAT, "has %llu bytes of data but its tensors cover only %llu",
                       (unsigned long long)file->data_bytes, (unsigned long long)covered);
    return HR_OK;
}

static hr_status align_tensors(hr_safetensors *file)
{
    for (int64_t i = 0; i < file->count; i++) {
        entry *at = &file->entries[i];
        size_t element = (size_t)hr_dtype_bits(at->tensor.dtype) / 8;
        if ((uintptr_t)at->tensor.data % element == 0) continue;
        at->aligned_copy = hr_alloc(at->end - at->begin, 1);
        if (!at->aligned_copy) return HR_ERROR_OUT_OF_MEMORY;
        memcpy(at->aligned_copy, at->tensor.data, at->end - at->begin);
        at->tensor.data = at->aligned_copy;
    }
    return HR_OK;
}

static hr_status load(hr_safetensors *file)
{
    HR_TRY(map_file(file->path, file));
    HR_TRY(parse_header(file));
    HR_TRY(parse_entries(file));
    HR_TRY(check_coverage(file));
    HR_TRY(align_tensors(file));
    for (int64_t i = 0; i < file->count; i++)
        file->by_name[i] = &file->entries[i];
    qsort(file->by_name, (size_t)file->count, sizeof *file->by_name, compare_names);
    return HR_OK;
}

hr_status hr_safetensors_open(const char *path, hr_safetensors **out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "out is NULL");
    *out = NULL;
    if (!path) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the path is NULL");
    hr_safetensors *file = hr_alloc(1, sizeof *file);
    if (!file) return HR_ERROR_OUT_OF_MEMORY;
    file->path = strdup(path);
    hr_status status =
        file->path ? load(file) : hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot copy the path");
    if (status != HR_OK) {
        hr_safetensors_close(file);
        return hr_fail_in(status, "%s", path);
    }
    *out = file;
    return HR_OK;
}

void hr_safetensors_close(hr_safetensors *file)
{
    if (!file) return;
    for (int64_t i = 0; i < file->count; i++)
        free(file->entries[i].aligned_copy);
    free(file->entries);
    free(file->by_name);
    free(file->metadata_keys);
    json_decref(file->header);
    if (file->map) munmap(file->map, (size_t)file->map_bytes);
    free(file->path);
    free(file);
}

const char *hr_safetensors_path(const hr_safetensors *file)
{
    return file->path;
}

int64_t hr_safetensors_count(const hr_safetensors *file)
{
    return file->count;
}

const char *hr_safetensors_name(const hr_safetensors *file, int64_t index)
{
    return index >= 0 && index < file->count ? file->entries[index].name : NULL;
}

hr_tensor hr_safetensors_tensor(const hr_safetensors *file, int64_t index)
{
    if (index >= 0 && index < file->count) return file->entries[index].tensor;
    return hr_tensor_view(HR_DTYPE_U8, 1, (int64_t[]){0}, NULL);
}

hr_status hr_safetensors_find(const hr_safetensors *file, const char *name, hr_tensor *out)
{
    if (!name || !out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "name or out is NULL");
    const entry key = {.name = name}, *wanted = &key;
    const entry **found =
        bsearch(&wanted, file->by_name, (size_t)file->count, sizeof *file->by_name, compare_names);
    if (!found)
        return hr_fail(HR_ERROR_NOT_FOUND, "%s: has no tensor \"%s\"", file->path,
                       hr_print(name).text);
    *out = (*found)->tensor;
    return HR_OK;
}

const char *hr_safetensors_metadata(const hr_safetensors *file, const char *key)
{
    return json_string_value(json_object_get(file->metadata, key));
}

const char *hr_safetensors_metadata_key(const hr_safetensors *file, int64_t index)
{
    return index >= 0 && index < file->metadata_count ? file->metadata_keys[index] : NULL;
}

void hr_safetensors_hash(const hr_safetensors *file, char out[33])
{
    static const char digits[] = "0123456789abcdef";
    XXH128_canonical_t bytes;
    XXH128_canonicalFromHash(&bytes, XXH3_128bits(file->data, (size_t)file->data_bytes));
    for (size_t i = 0; i < sizeof bytes.digest; i++) {
        out[2 * i] = digits[bytes.digest[i] >> 4];
        out[2 * i + 1] = digits[bytes.digest[i] & 15];
    }
    out[32] = 0;
}
