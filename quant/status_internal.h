/*
 * How the library's own code reports failure: hr_fail() records the thread's message and returns
 * the status, so that a caller can write `return hr_fail(HR_ERROR_..., "...", ...)`.
 */
#ifndef HEADROOM_STATUS_INTERNAL_H
#define HEADROOM_STATUS_INTERNAL_H

#include "headroom/status.h"

/*
 * Formats the message of this thread (at most 4095 bytes; longer ones are cut) and returns status.
 * A macro, so that the compiler sees which status a failing path returns.
 */
#define hr_fail(status, ...) (hr_set_error(__VA_ARGS__), hr_returned_status(status))
void hr_set_error(const char *format, ...) HR_PRINTF(1, 2);
static inline hr_status hr_returned_status(hr_status status)
{
    return status;
}

/*
 * As hr_fail, but puts "prefix: " before the message that is already there: adds the file, layer or
 * argument to an error that came from below.
 */
hr_status hr_fail_in(hr_status status, const char *format, ...) HR_PRINTF(2, 3);

#define HR_TRY(call)                                                                               \
    do {                                                                                           \
        hr_status hr_try_status_ = (call);                                                         \
        if (hr_try_status_ != HR_OK) return hr_try_status_;                                        \
    } while (0)

#endif
