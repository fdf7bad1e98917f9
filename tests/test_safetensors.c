/*
 * safetensors files: what is written is read back, and every malformed file is refused with a
 * message that names the file, the tensor and the value.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "headroom/safetensors.h"
#include "scratch_dir.h"
#include "status_internal.h"

/* Length field, header text, data_bytes bytes 0, 1, 2, ... */
static void write_raw(const char *path, uint64_t length, const char *header, size_t header_bytes,
                      size_t data_bytes)
{
    FILE *file = fopen(path, "wb");
    cr_assert_not_null(file);
    for (int i = 0; i < 8; i++)
        fputc((int)(length >> 8 * i & 0xff), file);
    fwrite(header, 1, header_bytes, file);
    for (size_t i = 0; i < data_bytes; i++)
        fputc((int)(i & 0xff), file);
    cr_assert_eq(fclose(file), 0);
}

/* Opens a file made of this header and so much data; on failure the message is in hr_last_error. */
static hr_status open_text(const char *header, size_t data_bytes, hr_safetensors **out)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "raw.safetensors");
    write_raw(path.text, strlen(header), header, strlen(header), data_bytes);
    hr_status status = hr_safetensors_open(path.text, out);
    if (status != HR_OK) {
        cr_assert_null(*out);
        cr_assert(strstr(hr_last_error(), path.text), "no path in: %s", hr_last_error());
        cr_assert_null(strchr(hr_last_error(), '\n'), "more than a line: %s", hr_last_error());
    }
    scratch_close(&scratch);
    return status;
}

#define REFUSED(expected_status, expected_text, header, data_bytes)                                \
    do {                                                                                           \
        hr_safetensors *refused_ = NULL;                                                           \
        hr_status got_ = open_text(header, data_bytes, &refused_);                                 \
        cr_assert_eq(got_, expected_status, "%s: %s", hr_status_string(got_), hr_last_error());    \
        cr_assert(strstr(hr_last_error(), expected_text), "message: %s", hr_last_error());         \
    } while (0)

#define ONE(dtype, shape, offsets)                                                                 \
    "{\"x\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

Test(safetensors_read, smallest_file)
{
    hr_safetensors *file;
    cr_assert_eq(open_text("{}", 0, &file), HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_safetensors_count(file), 0);
    cr_assert_null(hr_safetensors_metadata(file, "format"));
    hr_safetensors_close(file);
}

Test(safetensors_read, tensors_come_in_offset_order)
{
    hr_safetensors *file;
    cr_assert_eq(open_text("{\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[8,10]},"
                           "\"__metadata__\":{\"format\":\"pt\"},"
                           "\"a\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[0,8]},"
                           "\"e\":{\"dtype\":\"F32\",\"shape\":[3,0],\"data_offsets\":[8,8]}}   ",
                           10, &file),
                 HR_OK, "%s", hr_last_error());
    cr_assert_eq(hr_safetensors_count(file), 3);
    cr_assert_str_eq(hr_safetensors_name(file, 0), "a");
    cr_assert_str_eq(hr_safetensors_name(file, 1), "e");
    cr_assert_str_eq(hr_safetensors_name(file, 2), "b");
    cr_assert_str_eq(hr_safetensors_metadata(file, "format"), "pt");
    hr_tensor b;
    cr_assert_eq(hr_safetensors_find(file, "b", &b), HR_OK);
    cr_assert_eq(b.dtype, HR_DTYPE_U8);
    cr_assert_eq(b.ndim, 1);
    cr_assert_eq(((uint8_t *)b.data)[0], 8);
    cr_assert_eq(((uint8_t *)b.data)[1], 9);
    cr_assert_eq(hr_safetensors_find(file, "c", &b), HR_ERROR_NOT_FOUND);
    cr_assert(strstr(hr_last_error(), "has no tensor \"c\""));
    hr_safetensors_close(file);
}

Test(safetensors_read, misaligned_tensors_are_aligned)
{
    char header[256] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                       "\"b\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[1,5]}}";
    for (int padding = 0; padding < 4; padding++) { /* at all four places in a word */
        hr_safetensors *file;
        cr_assert_eq(open_text(header, 5, &file), HR_OK, "%s", hr_last_error());
        hr_tensor b;
        cr_assert_eq(hr_safetensors_find(file, "b", &b), HR_OK);
        cr_assert_eq((uintptr_t)b.data % 4, 0);
        cr_assert_eq(*(int32_t *)b.data, 0x04030201);
        hr_safetensors_close(file);
        strcat(header, " ");
    }
}

Test(safetensors_read, queries_out_of_range)
{
    hr_safetensors *file;
    cr_assert_eq(open_text("{\"__metadata__\":{\"z\":\"1\",\"a\":\"2\"}}", 0, &file), HR_OK);
    cr_assert_str_eq(hr_safetensors_metadata_key(file, 0), "z");
    cr_assert_str_eq(hr_safetensors_metadata_key(file, 1), "a");
    cr_assert_null(hr_safetensors_metadata_key(file, 2));
    cr_assert_null(hr_safetensors_metadata_key(file, -1));
    cr_assert_null(hr_safetensors_metadata(file, "b"));
    cr_assert_null(hr_safetensors_name(file, 0));
    hr_tensor none = hr_safetensors_tensor(file, 0);
    cr_assert_null(none.data);
    cr_assert_eq(hr_tensor_size(&none), 0);
    cr_assert_eq(hr_safetensors_find(file, NULL, &none), HR_ERROR_INVALID_ARGUMENT);
    hr_safetensors_close(file);
    cr_assert_eq(hr_safetensors_open(NULL, &file), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_safetensors_open("x", NULL), HR_ERROR_INVALID_ARGUMENT);
    hr_safetensors_close(NULL);
}

Test(safetensors_read, bad_file_kinds)
{
    hr_safetensors *file;
    cr_assert_eq(hr_safetensors_open("/nonexistent/x", &file), HR_ERROR_IO);
    cr_assert_str_eq(hr_last_error(), "/nonexistent/x: cannot open: No such file or directory");
    cr_assert_eq(hr_safetensors_open("/tmp", &file), HR_ERROR_IO);
    cr_assert_str_eq(hr_last_error(), "/tmp: is a directory, not a regular file");
    cr_assert_eq(hr_safetensors_open("/dev/zero", &file), HR_ERROR_IO);
    cr_assert(strstr(hr_last_error(), "is a device or a pipe"));
    scratch_dir scratch = scratch_open();
    scratch_path pipe = scratch_file(&scratch, "pipe");
    cr_assert_eq(mkfifo(pipe.text, 0600), 0);
    cr_assert_eq(hr_safetensors_open(pipe.text, &file), HR_ERROR_IO);
    scratch_close(&scratch);
}

Test(safetensors_read, every_truncation_is_refused)
{
    static const char header[] = ONE("F32", "[2]", "[0,8]");
    enum { HEADER = sizeof header - 1, WHOLE = 8 + HEADER + 8 };
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "cut.safetensors");
    for (int size = 0; size <= WHOLE; size++) {
        write_raw(path.text, HEADER, header, HEADER, 8);
        cr_assert_eq(truncate(path.text, size), 0);
        hr_safetensors *file;
        hr_status status = hr_safetensors_open(path.text, &file);
        cr_assert_eq(status, size == WHOLE ? HR_OK : HR_ERROR_FORMAT, "%d bytes: %s", size,
                     hr_last_error());
        hr_safetensors_close(file);
    }
    scratch_close(&scratch);
}

static void refuse_length(uint64_t length, const char *expected)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "length.safetensors");
    write_raw(path.text, length, "{}", 2, 0);
    hr_safetensors *file;
    cr_assert_eq(hr_safetensors_open(path.text, &file), HR_ERROR_FORMAT);
    cr_assert(strstr(hr_last_error(), expected), "message: %s", hr_last_error());
    scratch_close(&scratch);
}

Test(safetensors_read, wrong_header_lengths)
{
    refuse_length(0, "does not begin with '{'");
    refuse_length(1, "not valid JSON");
    refuse_length(3, "claims a header of 3 bytes but is only 10 bytes long");
    refuse_length(100000000, "claims a header of 100000000 bytes but is only 10 bytes long");
    refuse_length(100000001, "claims a header of 100000001 bytes; at most 100000000");
    refuse_length(UINT64_MAX, "claims a header of 18446744073709551615 bytes; at most");
    refuse_length(UINT64_MAX - 7, "at most 100000000");
    refuse_length(UINT64_C(0x656863732220207b), "begins with the text \"{  \"sche\", not with");
}

Test(safetensors_read, header_is_not_a_json_object)
{
    REFUSED(HR_ERROR_FORMAT, "does not begin with '{'", "[]", 0);
    REFUSED(HR_ERROR_FORMAT, "does not begin with '{'", " {}", 0);
    REFUSED(HR_ERROR_FORMAT, "not valid JSON", "{\"x\":", 0);
    REFUSED(HR_ERROR_FORMAT, "not valid JSON", "{} {}", 0);
    REFUSED(HR_ERROR_FORMAT, "not valid JSON", "{\"\xff\":1}", 0);
    REFUSED(HR_ERROR_FORMAT, "not valid JSON", "{\"a\\u0000b\":1}", 0);
}

Test(safetensors_read, deep_nesting)
{
    enum { DEPTH = 200000 };
    char *text = malloc(DEPTH + 16);
    cr_assert_not_null(text);
    strcpy(text, "{\"x\":");
    memset(text + 5, '[', DEPTH);
    text[5 + DEPTH] = 0;
    REFUSED(HR_ERROR_FORMAT, "not valid JSON", text, 0);
    free(text);
}

/* What takes 40 times its size in memory is refused before it is parsed. */
Test(safetensors_read, headers_of_too_many_values)
{
    enum { MARKS = 1 << 21 };
    const struct {
        const char *begin, *item, *end, *says;
        int count;
    } cases[] = {
        {"{\"x\":[", "{},", "0]}", "the header has 2097153 values, names and", (MARKS - 2) / 2},
        {"{\"x\":[", "{},", "0]}", "tensor \"x\": is not an object", (MARKS - 4) / 2},
        {"{", "\"a\":0,", "\"b\":0}", "the header has 2097154 values", MARKS / 2},
        {"{\"x\":\"", "{[,:\\\"", "\"}", "tensor \"x\": is not an object", MARKS},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const size_t item = strlen(cases[i].item);
        char *text = malloc(64 + item * (size_t)cases[i].count), *at = text;
        cr_assert_not_null(text);
        at = stpcpy(at, cases[i].begin);
        for (int n = 0; n < cases[i].count; n++, at += item)
            memcpy(at, cases[i].item, item);
        strcpy(at, cases[i].end);
        REFUSED(HR_ERROR_FORMAT, cases[i].says, text, 0);
        free(text);
    }
}

Test(safetensors_read, duplicate_keys)
{
    REFUSED(HR_ERROR_FORMAT, "duplicate object key",
            "{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
            "\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
            1);
    REFUSED(HR_ERROR_FORMAT, "duplicate object key",
            "{\"x\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1);
    REFUSED(HR_ERROR_FORMAT, "duplicate object key", "{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}",
            0);
}

Test(safetensors_read, metadata_holds_strings)
{
    REFUSED(HR_ERROR_FORMAT, "__metadata__ is not an object", "{\"__metadata__\":[]}", 0);
    REFUSED(HR_ERROR_FORMAT, "__metadata__ \"a\" is not a string", "{\"__metadata__\":{\"a\":1}}",
            0);
    REFUSED(HR_ERROR_FORMAT, "__metadata__ \"a\" is not a string",
            "{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}", 0);
}

Test(safetensors_read, tensor_keys)
{
    REFUSED(HR_ERROR_FORMAT, "tensor \"x\": is not an object", "{\"x\":[]}", 0);
    REFUSED(HR_ERROR_FORMAT, "tensor \"x\": must have dtype, shape and data_offsets", "{\"x\":{}}",
            0);
    REFUSED(HR_ERROR_FORMAT, "unknown key \"junk\"",
            "{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"junk\":{\"a\":[]}}}",
            1);
}

Test(safetensors_read, dtypes)
{
    REFUSED(HR_ERROR_UNSUPPORTED, "dtype \"U16\" is not one of F64 F32 F16 BF16 F8_E4M3 F8_E5M2",
            ONE("U16", "[1]", "[0,2]"), 2);
    REFUSED(HR_ERROR_UNSUPPORTED, "dtype \"f32\" is not one of", ONE("f32", "[1]", "[0,4]"), 4);
    REFUSED(HR_ERROR_UNSUPPORTED, "dtype \"\\x1b[31m\\x0a\" is not one of",
            ONE("\\u001b[31m\\n", "[1]", "[0,4]"), 4);
    REFUSED(HR_ERROR_FORMAT, "dtype is not a string",
            "{\"x\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]}}", 1);
}

Test(safetensors_read, shapes)
{
    REFUSED(HR_ERROR_FORMAT, "shape[1] is not an integer >= 0", ONE("U8", "[1,-1]", "[0,1]"), 1);
    REFUSED(HR_ERROR_FORMAT, "shape[0] is not an integer >= 0", ONE("U8", "[1.0]", "[0,1]"), 1);
    REFUSED(HR_ERROR_FORMAT, "shape[0] is not an integer >= 0", ONE("U8", "[\"1\"]", "[0,1]"), 1);
    REFUSED(HR_ERROR_FORMAT, "shape is not an array", ONE("U8", "1", "[0,1]"), 1);
    REFUSED(HR_ERROR_UNSUPPORTED, "shape has 5 dimensions", ONE("U8", "[1,1,1,1,1]", "[0,1]"), 1);
    REFUSED(HR_ERROR_FORMAT, "need 8", ONE("F32", "[2]", "[0,4]"), 4);
    REFUSED(HR_ERROR_FORMAT, "need 4", ONE("F32", "[1]", "[0,8]"), 8);
    /* 2^62 * 4 bytes and 2^32 * 2^32 elements wrap to 0 in 64 bits */
    REFUSED(HR_ERROR_FORMAT, "overflows", ONE("F32", "[4611686018427387904]", "[0,0]"), 0);
    REFUSED(HR_ERROR_FORMAT, "overflows", ONE("U8", "[4294967296,4294967296]", "[0,0]"), 0);
    REFUSED(HR_ERROR_FORMAT, "overflows", ONE("U8", "[0,4294967296,4294967296]", "[0,0]"), 0);
    REFUSED(HR_ERROR_FORMAT, "not valid JSON", ONE("U8", "[18446744073709551616]", "[0,0]"), 0);
}

Test(safetensors_read, offsets)
{
    REFUSED(HR_ERROR_FORMAT, "data_offsets [0, 5] end past the 4 bytes of data",
            ONE("U8", "[5]", "[0,5]"), 4);
    REFUSED(HR_ERROR_FORMAT, "end past the 4 bytes", ONE("U8", "[1]", "[0,9223372036854775807]"),
            4);
    REFUSED(HR_ERROR_FORMAT, "data_offsets [-1, 1]", ONE("U8", "[2]", "[-1,1]"), 4);
    REFUSED(HR_ERROR_FORMAT, "data_offsets [3, 1]", ONE("U8", "[2]", "[3,1]"), 4);
    REFUSED(HR_ERROR_FORMAT, "not an array of two integers", ONE("U8", "[1]", "[0.0,1.0]"), 1);
    REFUSED(HR_ERROR_FORMAT, "not an array of two integers", ONE("U8", "[1]", "[0]"), 1);
    REFUSED(HR_ERROR_FORMAT, "not an array of two integers", ONE("U8", "[1]", "[0,1,2]"), 2);
    REFUSED(HR_ERROR_FORMAT, "not an array of two integers", ONE("U8", "[1]", "{\"a\":0}"), 1);
    REFUSED(HR_ERROR_FORMAT, "has 5 bytes of data but its tensors cover only 4",
            ONE("U8", "[4]", "[0,4]"), 5);
    REFUSED(HR_ERROR_FORMAT, "leave a hole after", ONE("U8", "[4]", "[1,5]"), 5);
}

#define TWO(first, second)                                                                         \
    "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" first "},"                          \
    "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" second "}}"

Test(safetensors_read, holes_and_overlaps)
{
    REFUSED(HR_ERROR_FORMAT, "tensor \"b\": data_offsets [3, 7] overlap the data before",
            TWO("[0,4]", "[3,7]"), 7);
    REFUSED(HR_ERROR_FORMAT, "overlap", TWO("[0,4]", "[0,4]"), 4);
    REFUSED(HR_ERROR_FORMAT, "tensor \"b\": data_offsets [5, 9] leave a hole after",
            TWO("[0,4]", "[5,9]"), 9);
    REFUSED(HR_ERROR_FORMAT, "tensor \"a\": data_offsets [5, 9] leave a hole after",
            TWO("[5,9]", "[0,4]"), 9);
}
