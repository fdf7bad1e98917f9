/*
 * Writing: round trips through the reader, layout in the file, refused input, and the promise that
 * a failed write leaves neither the target nor a temporary file.
 */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "headroom/safetensors.h"
#include "scratch_dir.h"
#include "status_internal.h"

static hr_safetensors_writer *new_writer(void)
{
    hr_safetensors_writer *writer;
    cr_assert_eq(hr_safetensors_writer_create(&writer), HR_OK);
    return writer;
}

static void add(hr_safetensors_writer *writer, const char *name, hr_dtype dtype, int ndim,
                const int64_t *shape, const void *data)
{
    hr_tensor tensor = hr_tensor_view(dtype, ndim, shape, (void *)data);
    cr_assert_eq(hr_safetensors_add(writer, name, &tensor), HR_OK, "%s", hr_last_error());
}

static hr_safetensors *write_and_open(const hr_safetensors_writer *writer, const char *path)
{
    cr_assert_eq(hr_safetensors_write(writer, path), HR_OK, "%s", hr_last_error());
    hr_safetensors *file;
    cr_assert_eq(hr_safetensors_open(path, &file), HR_OK, "%s", hr_last_error());
    return file;
}

Test(safetensors_write, every_dtype_round_trips)
{
    static const uint8_t bytes[24 * 8] = {1, 2, 3, 254, 0, 17};
    static const int64_t shape[] = {2, 3, 4};
    hr_safetensors_writer *writer = new_writer();
    for (int dtype = 0; dtype < HR_DTYPE_COUNT; dtype++)
        add(writer, hr_dtype_name((hr_dtype)dtype), (hr_dtype)dtype, 3, shape, bytes);
    cr_assert_eq(hr_safetensors_set_metadata(writer, "key", "old"), HR_OK);
    cr_assert_eq(hr_safetensors_set_metadata(writer, "key", "\"quoted\"\n\xc3\xa9"), HR_OK);
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "all.safetensors");
    hr_safetensors *file = write_and_open(writer, path.text);
    hr_safetensors_writer_free(writer);
    cr_assert_eq(hr_safetensors_count(file), HR_DTYPE_COUNT);
    cr_assert_str_eq(hr_safetensors_metadata(file, "key"), "\"quoted\"\n\xc3\xa9");
    cr_assert_str_eq(hr_safetensors_path(file), path.text);
    for (int i = 0; i < HR_DTYPE_COUNT; i++) {
        hr_dtype dtype = (hr_dtype)i;
        int bits = hr_dtype_bits(dtype);
        hr_tensor back;
        cr_assert_eq(hr_safetensors_find(file, hr_dtype_name(dtype), &back), HR_OK);
        cr_assert_eq(back.dtype, bits < 8 ? HR_DTYPE_U8 : dtype);
        cr_assert_eq(back.ndim, 3);
        cr_assert_eq(back.shape[0], 2);
        cr_assert_eq(back.shape[2], bits < 8 ? 2 : 4);
        cr_assert_eq((uintptr_t)back.data % 8 % (bits < 8 ? 1 : bits / 8), 0);
        cr_assert_eq(memcmp(back.data, bytes, 24 * (size_t)bits / 8), 0);
    }
    hr_safetensors_close(file);
    scratch_close(&scratch);
}

Test(safetensors_write, scalars_empty_tensors_and_nothing)
{
    static const float value = 0.5f;
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "x.safetensors");
    hr_safetensors_writer *writer = new_writer();
    hr_safetensors *file = write_and_open(writer, path.text);
    cr_assert_eq(hr_safetensors_count(file), 0);
    hr_safetensors_close(file);
    add(writer, "scalar", HR_DTYPE_F32, 0, NULL, &value);
    add(writer, "empty", HR_DTYPE_F32, 2, (int64_t[]){0, 7}, NULL);
    file = write_and_open(writer, path.text);
    hr_tensor back;
    cr_assert_eq(hr_safetensors_find(file, "scalar", &back), HR_OK);
    cr_assert_eq(back.ndim, 0);
    cr_assert_eq(*(float *)back.data, 0.5f);
    cr_assert_eq(hr_safetensors_find(file, "empty", &back), HR_OK);
    cr_assert_eq(back.shape[0], 0);
    cr_assert_eq(back.shape[1], 7);
    hr_safetensors_close(file);
    hr_safetensors_writer_free(writer);
    scratch_close(&scratch);
}

Test(safetensors_write, data_begins_at_64_bytes_and_large_elements_first)
{
    static const uint8_t bytes[16] = {0};
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "x.safetensors");
    hr_safetensors_writer *writer = new_writer();
    add(writer, "bytes", HR_DTYPE_U8, 1, (int64_t[]){3}, bytes);
    add(writer, "halves", HR_DTYPE_F16, 1, (int64_t[]){3}, bytes);
    add(writer, "longs", HR_DTYPE_I64, 1, (int64_t[]){1}, bytes);
    add(writer, "more bytes", HR_DTYPE_I8, 1, (int64_t[]){5}, bytes);
    hr_safetensors *file = write_and_open(writer, path.text);
    const char *const order[] = {"longs", "halves", "bytes", "more bytes"};
    for (int i = 0; i < 4; i++)
        cr_assert_str_eq(hr_safetensors_name(file, i), order[i]);
    hr_tensor first = hr_safetensors_tensor(file, 0);
    cr_assert_eq((uintptr_t)first.data % 64, 0); /* the mapping begins at a page */
    struct stat status;
    cr_assert_eq(stat(path.text, &status), 0);
    cr_assert_eq(status.st_size % 64, 8 + 6 + 3 + 5);
    hr_safetensors_close(file);
    hr_safetensors_writer_free(writer);
    scratch_close(&scratch);
}

static hr_status try_add(const char *name, hr_tensor tensor)
{
    hr_safetensors_writer *writer = new_writer();
    hr_status status = hr_safetensors_add(writer, name, &tensor);
    hr_safetensors_writer_free(writer);
    return status;
}

Test(safetensors_write, bad_tensors_are_refused)
{
    static float values[6];
    hr_tensor good = hr_tensor_view(HR_DTYPE_F32, 2, (int64_t[]){2, 3}, values), bad;
    cr_assert_eq(try_add("x", good), HR_OK);
    cr_assert_eq(try_add("__metadata__", good), HR_ERROR_INVALID_ARGUMENT);
    cr_assert(strstr(hr_last_error(), "reserved"));
    cr_assert_eq(try_add("\xff", good), HR_ERROR_INVALID_ARGUMENT);
    cr_assert(strstr(hr_last_error(), "UTF-8"));
    bad = good, bad.stride[0] = 4;
    cr_assert_eq(try_add("x", bad), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_str_eq(hr_last_error(), "tensor \"x\": is not contiguous");
    bad = good, bad.data = NULL;
    cr_assert_eq(try_add("x", bad), HR_ERROR_INVALID_ARGUMENT);
    bad = good, bad.ndim = 5;
    cr_assert_eq(try_add("x", bad), HR_ERROR_INVALID_ARGUMENT);
    bad = good, bad.shape[1] = -3;
    cr_assert_eq(try_add("x", bad), HR_ERROR_INVALID_ARGUMENT);
    bad = hr_tensor_view(HR_DTYPE_F32, 1, (int64_t[]){INT64_MAX / 2}, values);
    cr_assert_eq(try_add("x", bad), HR_ERROR_INVALID_ARGUMENT);
    cr_assert(strstr(hr_last_error(), "overflows"));
    bad = hr_tensor_view(HR_DTYPE_I4, 2, (int64_t[]){2, 3}, values);
    cr_assert_eq(try_add("x", bad), HR_ERROR_INVALID_ARGUMENT);
    cr_assert(strstr(hr_last_error(), "must be even"));
    bad = good, bad.dtype = HR_DTYPE_COUNT;
    cr_assert_eq(try_add("x", bad), HR_ERROR_INVALID_ARGUMENT);

    hr_safetensors_writer *writer = new_writer();
    add(writer, "x", HR_DTYPE_F32, 1, (int64_t[]){6}, values);
    cr_assert_eq(hr_safetensors_add(writer, "x", &good), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_str_eq(hr_last_error(), "tensor \"x\": was added already");
    cr_assert_eq(hr_safetensors_set_metadata(writer, "key", "\xff"), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_safetensors_set_metadata(writer, "key", NULL), HR_ERROR_INVALID_ARGUMENT);
    hr_safetensors_writer_free(writer);
}

static hr_status fill_ramp(void *context, void *buffer)
{
    int *calls = context;
    (*calls)++;
    for (int i = 0; i < 4; i++)
        ((int32_t *)buffer)[i] = i * i;
    return HR_OK;
}

static hr_status fill_fails(void *context, void *buffer)
{
    (void)context, (void)buffer;
    return hr_fail(HR_ERROR_NUMERIC, "no value here");
}

Test(safetensors_write, data_made_while_writing)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "x.safetensors");
    hr_safetensors_writer *writer = new_writer();
    hr_tensor view = hr_tensor_view(HR_DTYPE_I32, 1, (int64_t[]){4}, NULL);
    int calls = 0;
    cr_assert_eq(hr_safetensors_add_source(writer, "x", &view, fill_ramp, &calls), HR_OK);
    hr_safetensors *file = write_and_open(writer, path.text);
    cr_assert_eq(calls, 1);
    hr_tensor x = hr_safetensors_tensor(file, 0);
    cr_assert_arr_eq(x.data, ((int32_t[]){0, 1, 4, 9}), 16);
    hr_safetensors_close(file);

    cr_assert_eq(unlink(path.text), 0);
    cr_assert_eq(hr_safetensors_add_source(writer, "y", &view, fill_fails, NULL), HR_OK);
    cr_assert_eq(hr_safetensors_write(writer, path.text), HR_ERROR_NUMERIC);
    cr_assert_str_eq(hr_last_error(), "no value here");
    cr_assert_eq(scratch_count(&scratch, NULL), 0);
    hr_safetensors_writer_free(writer);
    scratch_close(&scratch);
}

Test(safetensors_write, hash_of_the_data_section)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "x.safetensors");
    hr_safetensors_writer *writer = new_writer();
    hr_safetensors *file = write_and_open(writer, path.text);
    char hash[33];
    hr_safetensors_hash(file, hash);
    cr_assert_str_eq(hash, "99aa06d3014798d86001c324468d497f"); /* of no bytes: xxhsum -H2 */
    hr_safetensors_close(file);
    add(writer, "x", HR_DTYPE_U8, 1, (int64_t[]){3}, "abc");
    cr_assert_eq(hr_safetensors_set_metadata(writer, "not", "hashed"), HR_OK);
    file = write_and_open(writer, path.text);
    hr_safetensors_hash(file, hash);
    cr_assert_str_eq(hash, "06b05ab6733a618578af5f94892f3950"); /* printf abc | xxhsum -H2 */
    hr_safetensors_close(file);
    hr_safetensors_writer_free(writer);
    scratch_close(&scratch);
}

static int allocations_left;

static void *limited_malloc(size_t size)
{
    return allocations_left-- > 0 ? malloc(size) : NULL;
}

static hr_status write_something(const char *path)
{
    static const float value = 1;
    hr_safetensors_writer *writer;
    hr_tensor tensor = hr_tensor_view(HR_DTYPE_F32, 2, (int64_t[]){1, 1}, (void *)&value);
    HR_TRY(hr_safetensors_writer_create(&writer));
    hr_status status = hr_safetensors_add(writer, "x", &tensor);
    if (status == HR_OK) status = hr_safetensors_set_metadata(writer, "key", "value");
    if (status == HR_OK) status = hr_safetensors_write(writer, path);
    hr_safetensors_writer_free(writer);
    return status;
}

/* The n-th allocation of the JSON library fails, for every n: an error each time, and no file. */
Test(safetensors_write, json_runs_out_of_memory)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "x.safetensors");
    json_set_alloc_funcs(limited_malloc, free);
    int failures = 0;
    for (bool done = false; !done; failures++) {
        cr_assert_eq(scratch_count(&scratch, NULL), 0);
        allocations_left = failures;
        done = write_something(path.text) == HR_OK;
    }
    cr_assert_gt(failures, 10);
    failures = 0;
    for (bool done = false; !done; failures++) {
        allocations_left = failures;
        hr_safetensors *file;
        hr_status status = hr_safetensors_open(path.text, &file);
        done = status == HR_OK;
        /* jansson takes some of its failed allocations for a syntax error */
        cr_assert(done || status == HR_ERROR_OUT_OF_MEMORY || status == HR_ERROR_FORMAT, "%d: %s",
                  failures, hr_last_error());
        hr_safetensors_close(file);
    }
    cr_assert_gt(failures, 10);
    json_set_alloc_funcs(malloc, free);
    scratch_close(&scratch);
}
