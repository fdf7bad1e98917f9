/*
 * Checked, aligned, zeroed allocation; see memory.h.
 */
#include "memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "status_internal.h"

enum { ALIGNMENT = 64 };

void *hr_alloc(size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > PTRDIFF_MAX - ALIGNMENT) {
        hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate %zu elements of %zu bytes", count, size);
        return NULL;
    }
    bytes = (bytes / ALIGNMENT + 1) * ALIGNMENT;
    void *memory = aligned_alloc(ALIGNMENT, bytes);
    if (!memory) {
        hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate %zu bytes", bytes);
        return NULL;
    }
    memset(memory, 0, bytes);
    return memory;
}
