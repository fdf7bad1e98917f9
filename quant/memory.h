/*
 * Checked allocation: sizes are multiplied with overflow detection, and buffers are 64-byte aligned
 * (one AVX-512 vector, one cache line), as the kernels expect.
 */
#ifndef HEADROOM_MEMORY_H
#define HEADROOM_MEMORY_H

#include <stddef.h>

/*
 * count * size zeroed bytes (at least one), 64-byte aligned; release with free(). NULL on failure,
 * with the thread's error message set: callers return HR_ERROR_OUT_OF_MEMORY. From 8 MiB on the
 * memory is 2 MiB aligned and the system is asked for huge pages.
 */
void *hr_alloc(size_t count, size_t size);

#endif
