/*
 * Numbers as text through jansson, which knows the locale's decimal point; see metadata.h.
 */
#include "metadata.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "printable.h"
#include "status_internal.h"

static const char softmax_scale_key[] = "headroom.softmax_scale";

bool hr_number_parse(const char *text, double *out)
{
    errno = 0;
    json_t *number = text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
    bool valid = json_is_number(number) && errno != ENOMEM;
    if (valid) *out = json_number_value(number);
    json_decref(number);
    return valid;
}

hr_status hr_number_print(double value, int digits, char out[HR_NUMBER_BYTES])
{
    json_t *number = json_real(value);
    size_t length = number ? json_dumpb(number, out, HR_NUMBER_BYTES - 1,
                                        JSON_ENCODE_ANY | JSON_REAL_PRECISION(digits))
                           : 0;
    json_decref(number);
    if (length == 0 || length >= HR_NUMBER_BYTES)
        return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot print the number %.*g", digits, value);
    /* JSON's mark of a real number. */
    if (length > 2 && memcmp(out + length - 2, ".0", 2) == 0) length -= 2;
    out[length] = 0;
    return HR_OK;
}

hr_status hr_metadata_softmax_scale(const hr_safetensors *file, float *out)
{
    const char *text = hr_safetensors_metadata(file, softmax_scale_key);
    double value = 0;
    if (!text) return hr_fail(HR_ERROR_FORMAT, "metadata %s is missing", softmax_scale_key);
    float scale = hr_number_parse(text, &value) ? (float)value : 0;
    if (scale == 0 && errno == ENOMEM)
        return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate a number");
    if (!(scale > 0 && isfinite(scale)))
        return hr_fail(HR_ERROR_FORMAT, "metadata %s is \"%s\"; a finite number > 0 is accepted",
                       softmax_scale_key, hr_print(text).text);
    *out = scale;
    return HR_OK;
}

hr_status hr_metadata_set_softmax_scale(hr_safetensors_writer *writer, float scale)
{
    char text[HR_NUMBER_BYTES];
    HR_TRY(hr_number_print((double)scale, 9, text));
    return hr_safetensors_set_metadata(writer, softmax_scale_key, text);
}
