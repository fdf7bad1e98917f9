/*
 * Processor, operating system, compiler and commit, for reports; see machine.h.
 */
#include "headroom/machine.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "headroom_commit.h"

/* Arm kernels often give neither name. */
const char *hr_machine_cpu(char *text, size_t size)
{
    text[0] = 0;
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (!file) return NULL;
    char line[512];
    const char *found = NULL;
    while (!found && fgets(line, sizeof line, file)) {
        if (strncmp(line, "model name", 10) != 0 && strncmp(line, "Model", 5) != 0) continue;
        char *value = strchr(line, ':');
        if (!value) continue;
        value += 1 + strspn(value + 1, " \t");
        value[strcspn(value, "\n")] = 0;
        snprintf(text, size, "%s", value);
        found = text;
    }
    fclose(file);
    return found;
}

const char *hr_machine_os(char *text, size_t size)
{
    struct utsname name;
    text[0] = 0;
    if (uname(&name) != 0) return NULL;
    snprintf(text, size, "%s %s %s", name.sysname, name.release, name.machine);
    return text;
}

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

const char *hr_machine_compiler(void)
{
#if defined(__clang__)
    return "clang " TEXT(__clang_major__) "." TEXT(__clang_minor__) "." TEXT(__clang_patchlevel__);
#elif defined(__GNUC__)
    return "gcc " TEXT(__GNUC__) "." TEXT(__GNUC_MINOR__) "." TEXT(__GNUC_PATCHLEVEL__);
#else
    return "unknown compiler";
#endif
}

const char *hr_machine_commit(void)
{
    return *HEADROOM_COMMIT ? HEADROOM_COMMIT : NULL;
}
