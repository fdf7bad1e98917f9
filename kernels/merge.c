/*
 * Merging attention states over disjoint sets of keys:
 *
 *     LSE = ln (sum over p of exp(LSE_p) + exp(sink))      O = sum over p of exp(LSE_p - LSE) O_p
 *
 * relative to the largest LSE_p, so that nothing overflows. Sums are double and in ascending order,
 * so a result depends on the parts alone; one merge costs parts x head_dim multiply-adds, nothing
 * beside the attention itself.
 */
#include <math.h>
#include <string.h>

#include "device_internal.h"
#include "plan.h"
#include "status_internal.h"
#include "threads.h"

enum {
    CHANNELS = 128, /* summed at a time, so that any head_dim needs no allocation */
    KEPT = 32       /* parts whose exponentials are kept; those of further ones are made again */
};

/* The largest LSE, sink included; NaN as soon as one is NaN. */
static double largest_lse(const float *lse, int64_t stride, int32_t parts, float sink)
{
    double largest = (double)sink;
    for (int32_t p = 0; p < parts; p++) {
        const double value = (double)lse[p * stride];
        if (value > largest || isnan(value)) largest = value;
    }
    return largest;
}

void hr_merge_row(const float *o, int64_t o_stride, const float *lse, int64_t lse_stride,
                  int32_t parts, int32_t head_dim, float sink, float *out, float *out_lse)
{
    if (parts == 1 && sink == -INFINITY && isfinite(lse[0])) { /* a weight of 1 */
        memcpy(out, o, (size_t)head_dim * sizeof *out);
        if (out_lse) *out_lse = lse[0];
        return;
    }
    const double largest = largest_lse(lse, lse_stride, parts, sink);
    const bool empty = largest == -INFINITY; /* no part saw a key: every weight is 0 */
    double total = empty ? 0 : exp((double)sink - largest), kept[KEPT];
    for (int32_t p = 0; p < parts && !empty; p++) {
        const double share = exp((double)lse[p * lse_stride] - largest);
        if (p < KEPT) kept[p] = share;
        total += share;
    }
    for (int32_t first = 0; first < head_dim; first += CHANNELS) {
        const int32_t count = head_dim - first < CHANNELS ? head_dim - first : CHANNELS;
        double sum[CHANNELS] = {0};
        for (int32_t p = 0; p < parts && !empty; p++) {
            const double share = p < KEPT ? kept[p] : exp((double)lse[p * lse_stride] - largest);
            const double weight = share / total;
            const float *part = o + p * o_stride + first;
            for (int32_t c = 0; c < count; c++)
                sum[c] += weight * (double)part[c];
        }
        for (int32_t c = 0; c < count; c++)
            out[first + c] = (float)sum[c];
    }
    if (out_lse) *out_lse = empty ? -INFINITY : (float)(largest + log(total));
}

/* `shape` has ndim entries. */
static hr_status check_states(const char *name, const hr_tensor *tensor, int ndim,
                              const int64_t *shape)
{
    if (tensor->dtype != HR_DTYPE_F32)
        return hr_fail(HR_ERROR_MISMATCH, "%s is %s; it must be f32", name,
                       hr_dtype_name(tensor->dtype));
    if (tensor->ndim != ndim)
        return hr_fail(HR_ERROR_MISMATCH, "%s has %d dimensions; it must have %d", name,
                       tensor->ndim, ndim);
    bool empty = false;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT, "o_parts has a negative extent, %lld",
                           (long long)shape[i]);
        if (tensor->shape[i] != shape[i])
            return hr_fail(HR_ERROR_MISMATCH, "%s has shape[%d] %lld; o_parts needs %lld", name, i,
                           (long long)tensor->shape[i], (long long)shape[i]);
        empty |= shape[i] == 0;
    }
    if (!tensor->data && !empty)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the data of %s must not be NULL", name);
    return hr_device_expect(name, tensor->device, HR_DEVICE_CPU);
}

static hr_status check_unit_stride(const char *name, const hr_tensor *tensor)
{
    const int64_t stride = tensor->stride[tensor->ndim - 1];
    if (stride != 1)
        return hr_fail(HR_ERROR_MISMATCH, "the last stride of %s is %lld; it must be 1", name,
                       (long long)stride);
    return HR_OK;
}

hr_status hr_merge_states(const hr_tensor *o_parts, const hr_tensor *lse_parts, const float *sinks,
                          const hr_tensor *o, const hr_tensor *lse)
{
    if (!o_parts || !lse_parts || !o)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "o_parts, lse_parts and o must not be NULL");
    HR_TRY(check_states("o_parts", o_parts, 4, o_parts->shape));
    HR_TRY(check_states("lse_parts", lse_parts, 3, o_parts->shape));
    HR_TRY(check_states("o", o, 3, o_parts->shape + 1));
    if (lse) HR_TRY(check_states("lse", lse, 2, o_parts->shape + 1));
    HR_TRY(check_unit_stride("o_parts", o_parts));
    HR_TRY(check_unit_stride("o", o));
    const int64_t parts = o_parts->shape[0], tokens = o_parts->shape[1], heads = o_parts->shape[2];
    const int64_t head_dim = o_parts->shape[3];
    if (parts < 1 || parts > INT32_MAX || head_dim > INT32_MAX)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "o_parts has %lld parts of head_dim %lld; there must be 1 to 2^31 - 1 parts",
                       (long long)parts, (long long)head_dim);
    for (int64_t head = 0; sinks && head < heads; head++)
        if (!(sinks[head] < INFINITY))
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "sinks[%lld] is %g; it must be finite, or -infinity for none",
                           (long long)head, (double)sinks[head]);
    const double elements = (double)tokens * (double)heads * (double)parts * (double)head_dim;
#pragma omp parallel for collapse(2) num_threads(hr_threads()) if (elements > 1 << 16)
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t head = 0; head < heads; head++) {
            const float *part_o = o_parts->data, *part_lse = lse_parts->data;
            part_o += token * o_parts->stride[1] + head * o_parts->stride[2];
            part_lse += token * lse_parts->stride[1] + head * lse_parts->stride[2];
            float *out = (float *)o->data + token * o->stride[0] + head * o->stride[1];
            float *out_lse = NULL;
            if (lse) out_lse = (float *)lse->data + token * lse->stride[0] + head * lse->stride[1];
            hr_merge_row(part_o, o_parts->stride[0], part_lse, lse_parts->stride[0], (int32_t)parts,
                         (int32_t)head_dim, sinks ? sinks[head] : -INFINITY, out, out_lse);
        }
    return HR_OK;
}
