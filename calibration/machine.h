/*
 * What a report says of where it was measured: processor, operating system, compiler, commit.
 */
#ifndef HEADROOM_MACHINE_H
#define HEADROOM_MACHINE_H

#include <stddef.h>

/* Each fills text (always terminated) and returns it, or returns NULL when the system does not say.
 */
const char *hr_machine_cpu(char *text, size_t size);
const char *hr_machine_os(char *text, size_t size);

/* "gcc 12.2.0": the compiler of the library. */
const char *hr_machine_compiler(void);

/* Abbreviated git commit of the build, "-dirty" appended when the tree was; NULL when unknown. */
const char *hr_machine_commit(void);

#endif
