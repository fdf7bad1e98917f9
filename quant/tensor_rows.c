/*
 * Reading one head of a strided [tokens, heads, head_dim] view; see tensor_rows.h.
 */
#include "tensor_rows.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "device_internal.h"
#include "headroom/format.h"
#include "status_internal.h"

hr_status hr_tensor_rows_check(const hr_tensor *tensor, const char *name)
{
    if (!tensor) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s is NULL", name);
    if (tensor->dtype != HR_DTYPE_F32 && tensor->dtype != HR_DTYPE_F16 &&
        tensor->dtype != HR_DTYPE_BF16)
        return hr_fail(HR_ERROR_UNSUPPORTED, "%s has dtype %s; f32, f16 and bf16 are accepted",
                       name, hr_dtype_name(tensor->dtype));
    if (tensor->ndim != 3)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "%s has %d dimensions; [tokens, heads, head_dim] has 3", name, tensor->ndim);
    bool empty = false;
    for (int i = 0; i < 3; i++) {
        if (tensor->shape[i] < 0)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s has the size %lld in dimension %d", name,
                           (long long)tensor->shape[i], i);
        empty |= tensor->shape[i] == 0; /* the product of all three may not fit 64 bits */
    }
    if (!tensor->data && !empty) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s has no data", name);
    return hr_device_expect(name, tensor->device, HR_DEVICE_CPU);
}

/* One row; codes are gathered first when channels are not neighbours. */
static void load_row(const hr_tensor *tensor, const char *source, int64_t head_dim, float *row)
{
    size_t size = (size_t)hr_dtype_bits(tensor->dtype) / 8;
    _Alignas(4) char gathered[4];
    int64_t step = tensor->stride[2] == 1 ? head_dim : 1;
    for (int64_t c = 0; c < head_dim; c += step) {
        const char *codes = source + c * tensor->stride[2] * (int64_t)size;
        if (step == 1) codes = memcpy(gathered, codes, size);
        if (tensor->dtype == HR_DTYPE_F32) {
            memcpy(row + c, codes, (size_t)step * size);
        } else {
            /* Decoding a 16-bit format with scale 1 has no argument it could refuse. */
            hr_status status = hr_decode(tensor->dtype, codes, step, 1.0f, 0, row + c);
            (void)status;
        }
    }
}

int64_t hr_tensor_rows_load(const hr_tensor *tensor, int32_t head, int64_t first, int64_t count,
                            float *rows)
{
    int64_t head_dim = tensor->shape[2], size = hr_dtype_bits(tensor->dtype) / 8;
    for (int64_t t = 0; t < count; t++) {
        int64_t element = (first + t) * tensor->stride[0] + head * tensor->stride[1];
        float *row = rows + t * head_dim;
        load_row(tensor, (const char *)tensor->data + element * size, head_dim, row);
        int finite = 1;
        for (int64_t c = 0; c < head_dim; c++)
            finite &= fabsf(row[c]) <= FLT_MAX;
        if (finite) continue;
        for (int64_t c = 0; c < head_dim; c++)
            if (!isfinite(row[c])) return t * head_dim + c;
    }
    return -1;
}
