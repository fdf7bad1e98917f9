/*
 * Data type names and sizes, and contiguous views.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "headroom/tensor.h"

Test(dtype, names_parse_back)
{
    for (int i = 0; i < HR_DTYPE_COUNT; i++) {
        hr_dtype dtype = HR_DTYPE_COUNT;
        cr_assert_eq(hr_dtype_parse(hr_dtype_name((hr_dtype)i), &dtype), HR_OK);
        cr_expect_eq((int)dtype, i);
    }
    cr_expect_str_eq(hr_dtype_name(HR_DTYPE_COUNT), "unknown");
    cr_expect_str_eq(hr_dtype_name((hr_dtype)-1), "unknown");
}

Test(dtype, an_unknown_name_lists_the_known_ones)
{
    hr_dtype dtype = HR_DTYPE_F32;
    cr_assert_eq(hr_dtype_parse("fp8", &dtype), HR_ERROR_NOT_FOUND);
    cr_expect_str_eq(hr_last_error(), "no dtype 'fp8'; accepted: f64, f32, f16, bf16, e4m3, e5m2, "
                                      "i8, u8, i4, u4, c4, i16, i32, i64");
    cr_expect_eq(dtype, HR_DTYPE_F32);
    cr_expect_eq(hr_dtype_parse(NULL, &dtype), HR_ERROR_INVALID_ARGUMENT);
    cr_expect_eq(hr_dtype_parse("f32", NULL), HR_ERROR_INVALID_ARGUMENT);
}

Test(dtype, bits)
{
    static const int bits[HR_DTYPE_COUNT] = {64, 32, 16, 16, 8, 8, 8, 8, 4, 4, 4, 16, 32, 64};
    for (int i = 0; i < HR_DTYPE_COUNT; i++)
        cr_expect_eq(hr_dtype_bits((hr_dtype)i), bits[i]);
    cr_expect_eq(hr_dtype_bits(HR_DTYPE_COUNT), 0);
}

Test(tensor, a_view_is_row_major)
{
    float data[24];
    hr_tensor tensor = hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){2, 3, 4}, data);
    cr_expect_eq(tensor.ndim, 3);
    cr_expect_eq(tensor.data, data);
    cr_expect_eq(tensor.stride[0], 12);
    cr_expect_eq(tensor.stride[1], 4);
    cr_expect_eq(tensor.stride[2], 1);
    cr_expect_eq(hr_tensor_size(&tensor), 24);
}

Test(tensor, scalars_and_empty_tensors)
{
    hr_tensor scalar = hr_tensor_view(HR_DTYPE_F32, 0, NULL, NULL);
    cr_expect_eq(hr_tensor_size(&scalar), 1);
    hr_tensor empty = hr_tensor_view(HR_DTYPE_F32, 2, (int64_t[]){0, 5}, NULL);
    cr_expect_eq(hr_tensor_size(&empty), 0);
    cr_expect_eq(empty.stride[0], 5);
}
