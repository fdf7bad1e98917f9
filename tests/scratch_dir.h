/*
 * A fresh folder for one test's files, removed with everything in it at the end of the test.
 */
#ifndef HEADROOM_TESTS_SCRATCH_DIR_H
#define HEADROOM_TESTS_SCRATCH_DIR_H

#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct scratch_dir {
    char path[64];
} scratch_dir;

typedef struct scratch_path {
    char text[320];
} scratch_path;

static inline scratch_dir scratch_open(void)
{
    scratch_dir scratch = {"/tmp/headroom-test-XXXXXX"};
    cr_assert_not_null(mkdtemp(scratch.path));
    return scratch;
}

static inline scratch_path scratch_file(const scratch_dir *scratch, const char *name)
{
    scratch_path path;
    snprintf(path.text, sizeof path.text, "%s/%s", scratch->path, name);
    return path;
}

/* Number of files in the folder; the name of the last one seen goes to name when it is not NULL. */
static inline int scratch_count(const scratch_dir *scratch, char name[256])
{
    int count = 0;
    DIR *folder = opendir(scratch->path);
    cr_assert_not_null(folder);
    for (struct dirent *at; (at = readdir(folder));) {
        if (strcmp(at->d_name, ".") == 0 || strcmp(at->d_name, "..") == 0) continue;
        if (name) snprintf(name, 256, "%s", at->d_name);
        count++;
    }
    closedir(folder);
    return count;
}

static inline void scratch_close(const scratch_dir *scratch)
{
    char name[256];
    while (scratch_count(scratch, name) > 0)
        cr_assert_eq(remove(scratch_file(scratch, name).text), 0, "cannot remove %s", name);
    cr_assert_eq(rmdir(scratch->path), 0);
}

#endif
