/*
 * The safetensors container: an 8-byte little-endian header length N, N bytes of JSON, then data.
 *
 * Reader: maps the file and treats it as hostile. The header is at most 100 MB with at most 2^21
 * opening brackets, commas and colons (160,000 tensors; parsing it takes up to 350 MB then) and
 * must be one JSON object without duplicate keys; every tensor has dtype, shape and data_offsets
 * and nothing else; offsets are inside the data, cover it without holes or overlaps, and their size
 * is exactly shape x dtype; 8 + N + the last offset is the file's size. Every error names the file,
 * the tensor and the offending value. The file must not be truncated while it is open: a read past
 * the new end of a mapped file raises SIGBUS.
 *
 * Writer: collects views and metadata, then writes a temporary file beside the target, fsyncs and
 * renames it, so that the final name never holds half a file. On any error the temporary
 * is removed. The data begins at a multiple of 64 bytes and tensors follow in descending order of
 * element size, so that each is aligned to its elements without holes, which the format forbids.
 */
#ifndef HEADROOM_SAFETENSORS_H
#define HEADROOM_SAFETENSORS_H

#include "headroom/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hr_safetensors hr_safetensors;

/* Opens, maps and validates a file. Release with hr_safetensors_close. */
HR_API hr_status hr_safetensors_open(const char *path, hr_safetensors **out) HR_NODISCARD;
HR_API void hr_safetensors_close(hr_safetensors *file);

HR_API const char *hr_safetensors_path(const hr_safetensors *file);
HR_API int64_t hr_safetensors_count(const hr_safetensors *file);

/*
 * Name and view of the i-th tensor, in file-offset order. Read-only memory owned by the file,
 * aligned to the element: a tensor that lies misaligned in the file, which the format allows, is
 * copied once when the file is opened. An index out of range gives NULL, and a view of NULL without
 * elements.
 */
HR_API const char *hr_safetensors_name(const hr_safetensors *file, int64_t index);
HR_API hr_tensor hr_safetensors_tensor(const hr_safetensors *file, int64_t index);

/* HR_ERROR_NOT_FOUND names the file and the tensor. */
HR_API hr_status hr_safetensors_find(const hr_safetensors *file, const char *name,
                                     hr_tensor *out) HR_NODISCARD;

/* A string of __metadata__, or NULL. Owned by the file. */
HR_API const char *hr_safetensors_metadata(const hr_safetensors *file, const char *key);

/* The index-th key of __metadata__ in the file's order, or NULL past the last. Owned by the file.
 */
HR_API const char *hr_safetensors_metadata_key(const hr_safetensors *file, int64_t index);

/* XXH3 128-bit hash of the data section, as 32 hex digits in a buffer of 33 bytes. */
HR_API void hr_safetensors_hash(const hr_safetensors *file, char out[33]);

typedef struct hr_safetensors_writer hr_safetensors_writer;

HR_API hr_status hr_safetensors_writer_create(hr_safetensors_writer **out) HR_NODISCARD;
HR_API void hr_safetensors_writer_free(hr_safetensors_writer *writer);

/*
 * Adds a contiguous tensor. The memory must stay valid until the write; name and shape are copied.
 * Packed nibbles are written as U8 with the byte shape. Duplicate names are refused.
 */
HR_API hr_status hr_safetensors_add(hr_safetensors_writer *writer, const char *name,
                                    const hr_tensor *tensor) HR_NODISCARD;

/*
 * As hr_safetensors_add, for data made while the file is written: tensor->data is ignored, and fill
 * is called once with a zeroed buffer of the tensor's size. Only one such buffer exists at a time.
 * An error of fill ends the write.
 */
typedef hr_status hr_safetensors_fill(void *context, void *buffer);
HR_API hr_status hr_safetensors_add_source(hr_safetensors_writer *writer, const char *name,
                                           const hr_tensor *tensor, hr_safetensors_fill *fill,
                                           void *context) HR_NODISCARD;

/* Setting a key again replaces its value. Key and value must be UTF-8. */
HR_API hr_status hr_safetensors_set_metadata(hr_safetensors_writer *writer, const char *key,
                                             const char *value) HR_NODISCARD;
HR_API hr_status hr_safetensors_write(const hr_safetensors_writer *writer,
                                      const char *path) HR_NODISCARD;

/*
 * Writes any bytes the same way: a temporary file in the target's directory, fsynced and renamed
 * over the target, so that path never holds half a file. A target that exists and is not a regular
 * file is refused. Errors name the path and the system's reason.
 */
HR_API hr_status hr_file_write_atomic(const char *path, const void *bytes,
                                      size_t size) HR_NODISCARD;

#ifdef __cplusplus
}
#endif

#endif
