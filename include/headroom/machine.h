/*
 * Where a figure was measured: processor, operating system, compiler, commit. Every timing the
 * library or the command line tool gives is printed beside these.
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

#ifdef __cplusplus
}
#endif

#endif
