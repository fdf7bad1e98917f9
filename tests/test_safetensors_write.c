/*
 * Writing: round trips through the reader, layout in the file, refused input, and the promise that
 * a failed write leaves neither the target nor a temporary file.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "safetensors.h"
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
