/*
 * The CPU quota of control groups, which containers set and processor counts do not show:
 *
 *     /proc/self/cgroup       0::/a/b            version 2, group /a/b
 *                             4:cpu,cpuacct:/a   version 1, hierarchy with the controller cpu
 *     /proc/self/mountinfo    36 32 0:33 ROOT MOUNT opts - cgroup2 source opts
 *     MOUNT/b/cpu.max         "200000 100000" or "max 100000": quota and period, microseconds
 *
 * ROOT is the group that is mounted at MOUNT: "/", or in a container its own group, /a here. A
 * limit holds for all groups below its own, so all from the process's up to MOUNT are read.
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

enum { PATH_BYTES = 4096 };

/* The first line of a file, without its end; false when there is none. */
static bool read_line(const char *folder, const char *name, char *line, size_t size)
{
    char path[2 * PATH_BYTES];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, name) >= sizeof path) return false;
    FILE *file = fopen(path, "r");
    if (!file) return false;
    const bool found = fgets(line, (int)size, file) != NULL;
    fclose(file);
    if (found) line[strcspn(line, "\n")] = 0;
    return found;
}

/* quota / period of one group; INFINITY where it has no limit ("max", -1) or no such file. */
static double group_quota(const char *folder, bool second)
{
    char line[64], period_line[64];
    char *rest = line;
    double quota, period;
    if (second) {
        if (!read_line(folder, "cpu.max", line, sizeof line)) return INFINITY;
        quota = strtod(line, &rest);
        period = strtod(rest, NULL);
    } else {
        if (!read_line(folder, "cpu.cfs_quota_us", line, sizeof line) ||
            !read_line(folder, "cpu.cfs_period_us", period_line, sizeof period_line))
            return INFINITY;
        quota = strtod(line, &rest);
        period = strtod(period_line, NULL);
    }
    return rest != line && quota > 0 && period > 0 ? quota / period : INFINITY;
}

/* Whether a list of words between commas has this one. */
static bool lists(const char *words, const char *word)
{
    const size_t length = strlen(word);
    for (const char *at = words; (at = strstr(at, word)); at += length)
        if ((at == words || at[-1] == ',') && (at[length] == 0 || at[length] == ',')) return true;
    return false;
}

/* The process's group in the hierarchy of version 2, or in that of version 1 with the controller
 * cpu. */
static bool find_group(const char *root, bool second, char group[PATH_BYTES])
{
    char path[PATH_BYTES], line[PATH_BYTES];
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "r");
    if (!file) return false;
    bool found = false;
    while (!found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':');
        char *name = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!name) continue;
        *name++ = 0;
        controllers++;
        if (second ? *controllers != 0 : !lists(controllers, "cpu")) continue;
        strcpy(group, name);
        found = true;
    }
    fclose(file);
    return found;
}

/* Where that hierarchy is mounted, and which of its groups is the root there. */
static bool find_mount(const char *root, bool second, char top[PATH_BYTES], char at[PATH_BYTES])
{
    char path[PATH_BYTES], line[2 * PATH_BYTES], type[64], options[PATH_BYTES];
    snprintf(path, sizeof path, "%s/proc/self/mountinfo", root);
    FILE *file = fopen(path, "r");
    if (!file) return false;
    bool found = false;
    while (!found && fgets(line, sizeof line, file)) {
        const char *tail = strstr(line, " - ");
        if (!tail || sscanf(line, "%*s %*s %*s %4095s %4095s", top, at) != 2 ||
            sscanf(tail + 3, "%63s %*s %4095s", type, options) != 2)
            continue;
        found = second ? strcmp(type, "cgroup2") == 0
                       : strcmp(type, "cgroup") == 0 && lists(options, "cpu");
    }
    fclose(file);
    return found;
}

static double hierarchy_quota(const char *root, bool second)
{
    char group[PATH_BYTES], top[PATH_BYTES], at[PATH_BYTES], folder[3 * PATH_BYTES];
    if (!find_group(root, second, group) || !find_mount(root, second, top, at)) return INFINITY;
    /* Below ROOT, the rest of the name; a group elsewhere is not to be seen but for MOUNT. */
    const size_t length = strcmp(top, "/") == 0 ? 0 : strlen(top);
    const bool below =
        strncmp(group, top, length) == 0 && (group[length] == '/' || group[length] == 0);
    const char *rest = below ? group + length : "";
    const size_t mount = (size_t)snprintf(folder, sizeof folder, "%s%s", root, at);
    snprintf(folder + mount, sizeof folder - mount, "%s", rest);
    double least = INFINITY;
    for (;;) {
        least = fmin(least, group_quota(folder, second));
        char *slash = strrchr(folder + mount, '/');
        if (!slash) return least;
        *slash = 0;
    }
}

double hr_cpu_quota(const char *root)
{
    return fmin(hierarchy_quota(root, true), hierarchy_quota(root, false));
}
