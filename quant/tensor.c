/*
 * Data type names and sizes, and tensor views.
 */
#include "headroom/tensor.h"

#include <string.h>

#include "status_internal.h"

static const struct {
    const char *name;
    int bits;
} dtypes[HR_DTYPE_COUNT] = {
    [HR_DTYPE_F64] = {"f64", 64},   [HR_DTYPE_F32] = {"f32", 32},  [HR_DTYPE_F16] = {"f16", 16},
    [HR_DTYPE_BF16] = {"bf16", 16}, [HR_DTYPE_E4M3] = {"e4m3", 8}, [HR_DTYPE_E5M2] = {"e5m2", 8},
    [HR_DTYPE_I8] = {"i8", 8},      [HR_DTYPE_U8] = {"u8", 8},     [HR_DTYPE_I4] = {"i4", 4},
    [HR_DTYPE_U4] = {"u4", 4},      [HR_DTYPE_C4] = {"c4", 4},     [HR_DTYPE_I32] = {"i32", 32},
    [HR_DTYPE_I64] = {"i64", 64},   [HR_DTYPE_I16] = {"i16", 16},
};

static int is_dtype(hr_dtype dtype)
{
    return (int)dtype >= 0 && dtype < HR_DTYPE_COUNT;
}

const char *hr_dtype_name(hr_dtype dtype)
{
    return is_dtype(dtype) ? dtypes[dtype].name : "unknown";
}

hr_status hr_dtype_parse(const char *name, hr_dtype *out)
{
    if (!name || !out)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "dtype parse: name or out is NULL");
    for (int i = 0; i < HR_DTYPE_COUNT; i++)
        if (!strcmp(name, dtypes[i].name)) {
            *out = (hr_dtype)i;
            return HR_OK;
        }
    char accepted[HR_DTYPE_COUNT * 8] = "";
    for (int i = 0; i < HR_DTYPE_COUNT; i++) {
        strcat(accepted, i ? ", " : "");
        strcat(accepted, dtypes[i].name);
    }
    return hr_fail(HR_ERROR_NOT_FOUND, "no dtype '%s'; accepted: %s", name, accepted);
}

int hr_dtype_bits(hr_dtype dtype)
{
    return is_dtype(dtype) ? dtypes[dtype].bits : 0;
}

hr_tensor hr_tensor_view(hr_dtype dtype, int ndim, const int64_t *shape, void *data)
{
    hr_tensor tensor = {.dtype = dtype, .ndim = ndim, .data = data};
    int64_t stride = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        tensor.shape[i] = shape[i];
        tensor.stride[i] = stride;
        stride *= shape[i];
    }
    return tensor;
}

int64_t hr_tensor_size(const hr_tensor *tensor)
{
    int64_t size = 1;
    for (int i = 0; i < tensor->ndim; i++)
        size *= tensor->shape[i];
    return size;
}
