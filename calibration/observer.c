/*
 * The table of observers and the parsing of "name:parameter".
 */
#include "observer.h"

#include <stdio.h>
#include <string.h>

#include "headroom/format.h"
#include "metadata.h"
#include "printable.h"
#include "status_internal.h"

static const hr_observer_type *const observers[] = {
#define HR_OBSERVER(name) &hr_observer_##name,
#include "observers.def"
#undef HR_OBSERVER
};

enum { OBSERVER_COUNT = sizeof observers / sizeof *observers };

int hr_observer_count(void)
{
    return OBSERVER_COUNT;
}

const char *hr_observer_name(int index)
{
    return index >= 0 && index < OBSERVER_COUNT ? observers[index]->name : "";
}

const char *hr_observer_summary(int index)
{
    return index >= 0 && index < OBSERVER_COUNT ? observers[index]->summary : "";
}

static hr_status unknown_observer(const char *text)
{
    char names[256] = "";
    size_t used = 0;
    for (int i = 0; i < OBSERVER_COUNT && used < sizeof names; i++) {
        int written = snprintf(names + used, sizeof names - used, "%s%s%s", i ? ", " : "",
                               observers[i]->name, observers[i]->parse ? "[:parameter]" : "");
        used += (size_t)written;
    }
    return hr_fail(HR_ERROR_NOT_FOUND, "no observer \"%s\"; there are %s", hr_print(text).text,
                   names);
}

hr_status hr_observer_parse(const char *text, hr_observer_config *out)
{
    if (!out) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "hr_observer_parse: out is NULL");
    memset(out, 0, sizeof *out);
    if (!text) text = "absmax";
    const char *colon = strchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : strlen(text);
    for (int i = 0; i < OBSERVER_COUNT; i++)
        if (strlen(observers[i]->name) == length && !memcmp(observers[i]->name, text, length))
            out->type = observers[i];
    if (!out->type) return unknown_observer(text);

    if (!out->type->parse) {
        if (colon)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "observer \"%s\": %s takes no parameter; write \"%s\"",
                           hr_print(text).text, out->type->name, out->type->name);
        snprintf(out->text, sizeof out->text, "%s", out->type->name);
        return HR_OK;
    }
    HR_TRY(out->type->parse(colon ? colon + 1 : NULL, &out->parameter));
    char number[HR_NUMBER_BYTES];
    double again = 0;
    HR_TRY(hr_number_print(out->parameter, 10, number));
    snprintf(out->text, sizeof out->text, "%s:%.19s", out->type->name, number);
    if (!hr_number_parse(number, &again) || again != out->parameter)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "observer \"%s\": its parameter has more than 10 significant digits",
                       hr_print(text).text);
    return HR_OK;
}

float hr_scale_of_amax(hr_dtype dtype, float amax)
{
    float scale;
    switch (dtype) {
    case HR_DTYPE_F64:
    case HR_DTYPE_F32:
    case HR_DTYPE_F16:
    case HR_DTYPE_BF16:
        return 1.0f;
    case HR_DTYPE_U4:
        scale = (float)(2.0 * amax / hr_dtype_max(HR_DTYPE_U4));
        break;
    default:
        scale = amax / hr_dtype_max(dtype);
        break;
    }
    return scale < HR_SCALE_MIN ? HR_SCALE_MIN : scale;
}
