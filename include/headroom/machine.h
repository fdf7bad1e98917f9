/*
 * Where a figure was measured: processor, operating system, compiler, commit. Every timing the
 * library or the command line tool gives is printed beside these. And how many threads it takes.
 */
#ifndef HEADROOM_MACHINE_H
#define HEADROOM_MACHINE_H

#include <stddef.h>

#include "headroom/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Each fills text, cut to size (>= 1) bytes with the terminator, and returns it; NULL, and text is
 * empty, when the system does not say. The processor is the first "model name" of /proc/cpuinfo
 * ("Model", the board, on Arm); the operating system is "Linux 6.1.0 x86_64".
 */
HR_API const char *hr_machine_cpu(char *text, size_t size);
HR_API const char *hr_machine_os(char *text, size_t size);

/* "gcc 12.2.0": the compiler of the library. */
HR_API const char *hr_machine_compiler(void);

/* Abbreviated git commit of the build, "-dirty" appended when the tree was; NULL when unknown. */
HR_API const char *hr_machine_commit(void);

/*
 * Threads that work is spread over where no number is given. The first of these that is set:
 *
 *     HEADROOM_NUM_THREADS    environment variable, 1 to 4096
 *     OpenMP's number         OMP_NUM_THREADS, or what omp_set_num_threads made of it
 *     the processors this process may run on (its affinity mask), but no more than its control
 *     groups have quota for, rounded up: cpu.max of version 2, cpu.cfs_quota_us of version 1, of
 *     the process's own group and those above it. Read once.
 *
 * 0, with a message in hr_last_error, when HEADROOM_NUM_THREADS is something else; plans that are
 * given no number of threads then fail with HR_ERROR_INVALID_ARGUMENT.
 */
HR_API int hr_machine_threads(void);

#ifdef __cplusplus
}
#endif

#endif
