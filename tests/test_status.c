/*
 * Error messages: kept per thread, prefixed by callers, cut rather than overrun.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "status_internal.h"

Test(status, message_is_formatted_and_status_returned)
{
    hr_status status = hr_fail(HR_ERROR_FORMAT, "offset %d is past the end %d", 12, 10);
    cr_assert_eq(status, HR_ERROR_FORMAT);
    cr_assert_str_eq(hr_last_error(), "offset 12 is past the end 10");
}

Test(status, prefix_goes_before_the_inner_message)
{
    hr_fail(HR_ERROR_FORMAT, "bad dtype");
    hr_fail_in(HR_ERROR_FORMAT, "file %s", "a.safetensors");
    cr_assert_str_eq(hr_last_error(), "file a.safetensors: bad dtype");
}

Test(status, long_messages_are_cut)
{
    char text[8192];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    hr_fail(HR_ERROR_FORMAT, "%s", text);
    cr_assert_eq(strlen(hr_last_error()), 4095);
    hr_fail_in(HR_ERROR_FORMAT, "prefix");
    cr_assert_eq(strlen(hr_last_error()), 4095);
    cr_assert_eq(strncmp(hr_last_error(), "prefix: xxx", 11), 0);
}

static void *fail_elsewhere(void *argument)
{
    hr_fail(HR_ERROR_IO, "another thread");
    return argument;
}

Test(status, threads_do_not_share_messages)
{
    hr_fail(HR_ERROR_FORMAT, "mine");
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, fail_elsewhere, NULL), 0);
    pthread_join(thread, NULL);
    cr_assert_str_eq(hr_last_error(), "mine");
}

Test(status, every_status_has_a_string)
{
    for (int status = HR_OK; status >= HR_ERROR_DEVICE; status--)
        cr_assert_str_neq(hr_status_string((hr_status)status), "unknown status");
    cr_assert_str_eq(hr_status_string((hr_status)1), "unknown status");
}

Test(memory, overflow_is_an_error)
{
    cr_assert_null(hr_alloc(SIZE_MAX / 2, 4));
    cr_assert(strstr(hr_last_error(), "cannot allocate"));
}

Test(memory, blocks_are_aligned_and_zero)
{
    unsigned char *block = hr_alloc(3, 5);
    cr_assert_not_null(block);
    cr_assert_eq((uintptr_t)block % 64, 0);
    for (int i = 0; i < 15; i++)
        cr_assert_eq(block[i], 0);
    free(block);
}
