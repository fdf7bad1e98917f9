/*
 * Status strings and the per-thread error message. The message lives in thread-local storage of
 * fixed size, so that reporting an allocation failure allocates nothing.
 */
#include "status_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MESSAGE_BYTES = 4096 };

static _Thread_local char last_error[MESSAGE_BYTES];

const char *hr_status_string(hr_status status)
{
    switch (status) {
    case HR_OK:
        return "ok";
    case HR_ERROR_INVALID_ARGUMENT:
        return "invalid argument";
    case HR_ERROR_UNSUPPORTED:
        return "unsupported";
    case HR_ERROR_OUT_OF_MEMORY:
        return "out of memory";
    case HR_ERROR_IO:
        return "input/output error";
    case HR_ERROR_FORMAT:
        return "malformed file";
    case HR_ERROR_NOT_FOUND:
        return "not found";
    case HR_ERROR_MISMATCH:
        return "mismatch";
    case HR_ERROR_NUMERIC:
        return "not a finite number";
    case HR_ERROR_DEVICE:
        return "device error";
    }
    return "unknown status";
}

const char *hr_last_error(void)
{
    return last_error;
}

#define VERSION_TEXT_(major, minor, patch) #major "." #minor "." #patch
#define VERSION_TEXT(major, minor, patch) VERSION_TEXT_(major, minor, patch)

const char *hr_version(void)
{
    return VERSION_TEXT(HR_VERSION_MAJOR, HR_VERSION_MINOR, HR_VERSION_PATCH);
}

void hr_set_error(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
}

hr_status hr_fail_in(hr_status status, const char *format, ...)
{
    char inner[MESSAGE_BYTES];
    memcpy(inner, last_error, sizeof inner);
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    size_t used = written < 0 ? 0 : (size_t)written;
    if (used + 2 >= sizeof last_error) return status;
    memcpy(last_error + used, ": ", 2);
    size_t room = sizeof last_error - used - 3, length = strlen(inner);
    if (length > room) length = room;
    memcpy(last_error + used + 2, inner, length);
    last_error[used + 2 + length] = 0;
    return status;
}
