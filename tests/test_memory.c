/*
 * hr_alloc: zeros, alignment, checked sizes, and huge pages for what is large enough.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "headroom/status.h"
#include "memory.h"

static bool is_zero(const unsigned char *memory, size_t bytes)
{
    return memory[0] == 0 && memcmp(memory, memory + 1, bytes - 1) == 0;
}

/* Does the mapping that holds `address` carry the flag, in /proc/self/smaps? */
static bool mapping_has_flag(const void *address, const char *flag)
{
    FILE *maps = fopen("/proc/self/smaps", "r");
    cr_assert_not_null(maps);
    char line[4096];
    bool inside = false, found = false;
    while (fgets(line, sizeof line, maps)) {
        unsigned long begin, end;
        if (sscanf(line, "%lx-%lx ", &begin, &end) == 2)
            inside = begin <= (unsigned long)address && (unsigned long)address < end;
        else if (inside && strncmp(line, "VmFlags:", 8) == 0)
            found = strstr(line, flag) != NULL;
    }
    fclose(maps);
    return found;
}

Test(memory, small_buffers_are_zero_and_on_cache_lines)
{
    for (size_t bytes = 0; bytes < 300; bytes += 7) {
        unsigned char *memory = hr_alloc(bytes, 1);
        cr_assert_not_null(memory);
        cr_expect_eq((size_t)memory % 64, 0);
        cr_expect(is_zero(memory, bytes + 1));
        free(memory);
    }
}

Test(memory, large_buffers_ask_for_huge_pages)
{
    const size_t bytes = (size_t)9 << 20;
    unsigned char *memory = hr_alloc(bytes + 5, 1);
    cr_assert_not_null(memory);
    cr_expect_eq((size_t)memory % ((size_t)2 << 20), 0);
    cr_expect(is_zero(memory, bytes + 5));
    if (access("/sys/kernel/mm/transparent_hugepage", F_OK) == 0)
        cr_expect(mapping_has_flag(memory, " hg"));
    free(memory);
}

Test(memory, impossible_sizes_are_errors)
{
    cr_expect_null(hr_alloc((size_t)1 << 40, (size_t)1 << 40));
    cr_expect(strstr(hr_last_error(), "cannot allocate"));
    cr_expect_null(hr_alloc((size_t)1 << 62, 1));
    cr_expect(strstr(hr_last_error(), "cannot allocate"));
}
