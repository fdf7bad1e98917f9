/*
 * hr_encode and hr_decode: validation, then the loops of the best instruction set at hand.
 */
#include "headroom/format.h"

#include <float.h>
#include <math.h>

#include "format_c4.h"
#include "format_codec.h"
#include "status_internal.h"

enum { HR_FORMAT_HAS_NAN = 1, NIBBLE = 2, ASYMMETRIC = 4, KNOWN = 8 };

typedef struct format_row {
    float max;
    int traits;
} format_row;

static const format_row rows[HR_DTYPE_COUNT] = {
#define HR_FORMAT(DTYPE, name, type, max, traits) [HR_DTYPE_##DTYPE] = {max, KNOWN | (traits)},
#define HR_FORMAT_NIBBLE(DTYPE, name, max, traits)                                                 \
    [HR_DTYPE_##DTYPE] = {max, KNOWN | NIBBLE | (traits)},
#define HR_FORMAT_NIBBLE_ASYMMETRIC(DTYPE, name, max, traits)                                      \
    [HR_DTYPE_##DTYPE] = {max, KNOWN | NIBBLE | ASYMMETRIC | (traits)},
#include "formats.def"
};

#define HR_FORMAT_NAME(name) " " #name
static const char format_names[] =
#undef HR_FORMAT
#undef HR_FORMAT_NIBBLE
#undef HR_FORMAT_NIBBLE_ASYMMETRIC
#define HR_FORMAT(DTYPE, name, type, max, traits) HR_FORMAT_NAME(name)
#define HR_FORMAT_NIBBLE(DTYPE, name, max, traits) HR_FORMAT_NAME(name)
#define HR_FORMAT_NIBBLE_ASYMMETRIC(DTYPE, name, max, traits) HR_FORMAT_NAME(name)
#include "formats.def"
    ;

const hr_format_codec *hr_format_codecs(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return hr_format_codecs_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) /* both imply F16C */
        return hr_format_codecs_avx2;
#endif
    return hr_format_codecs_baseline;
}

static hr_status check(const char *call, hr_dtype dtype, int64_t count, float scale, int zero_point,
                       const void *values, const void *codes)
{
    if ((int)dtype < 0 || dtype >= HR_DTYPE_COUNT)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s: %d is not an hr_dtype", call, (int)dtype);
    int traits = rows[dtype].traits;
    if (!(traits & KNOWN))
        return hr_fail(HR_ERROR_UNSUPPORTED, "%s: %s is not a coded format; formats:%s", call,
                       hr_dtype_name(dtype), format_names);
    if (count < 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s: count %lld is negative", call,
                       (long long)count);
    if (traits & NIBBLE && count % 2)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "%s: count %lld is odd; %s packs two codes a byte and needs an even count",
                       call, (long long)count, hr_dtype_name(dtype));
    if (count > 0 && (!values || !codes))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s: %s is NULL with count %lld", call,
                       values ? "codes" : "values", (long long)count);
    if (!(scale > 0.0f && scale <= FLT_MAX))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s: scale %g; it must be finite and > 0", call,
                       (double)scale);
    int zero_max = traits & ASYMMETRIC ? (int)rows[dtype].max : 0;
    if (zero_point < 0 || zero_point > zero_max)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s: zero_point %d; %s accepts 0%s", call,
                       zero_point, hr_dtype_name(dtype), zero_max ? " to 15" : " only");
    return HR_OK;
}

/* Index of the first NaN, or -1. The first loop has no early exit, so that it vectorises. */
static int64_t find_nan(const float *values, int64_t count)
{
    int found = 0;
    for (int64_t i = 0; i < count; i++)
        found |= values[i] != values[i];
    for (int64_t i = 0; found; i++)
        if (isnan(values[i])) return i;
    return -1;
}

hr_status hr_encode(hr_dtype dtype, const float *values, int64_t count, float scale, int zero_point,
                    void *codes)
{
    HR_TRY(check("encode", dtype, count, scale, zero_point, values, codes));
    if (!(rows[dtype].traits & HR_FORMAT_HAS_NAN)) {
        int64_t bad = find_nan(values, count);
        if (bad >= 0)
            return hr_fail(HR_ERROR_NUMERIC, "encode: values[%lld] is NaN, which %s cannot hold",
                           (long long)bad, hr_dtype_name(dtype));
    }
    hr_format_codecs()[dtype].encode(values, count, scale, zero_point, codes);
    return HR_OK;
}

hr_status hr_decode(hr_dtype dtype, const void *codes, int64_t count, float scale, int zero_point,
                    float *values)
{
    HR_TRY(check("decode", dtype, count, scale, zero_point, values, codes));
    hr_format_codecs()[dtype].decode(codes, count, scale, zero_point, values);
    return HR_OK;
}

float hr_dtype_max(hr_dtype dtype)
{
    if (dtype == HR_DTYPE_F32) return FLT_MAX;
    return (int)dtype >= 0 && dtype < HR_DTYPE_COUNT ? rows[dtype].max : 0.0f;
}

const int8_t *hr_codebook_c4(void)
{
    return hr_c4_levels;
}
