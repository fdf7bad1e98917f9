/*
 * Files that appear whole or not at all: bytes go to a temporary file in the target's directory,
 * which is fsynced and renamed over the target on commit.
 *
 *     hr_file_begin -> hr_file_append ... -> hr_file_commit
 *                                        \-> hr_file_abort   (removes the temporary file)
 *
 * The new file has mode 0666 & ~umask. A target that is a symbolic link is followed; one that
 * exists and is not a regular file (a directory, /dev/null) is refused, since renaming would
 * replace it. A process killed between begin and commit leaves ".headroom-*.tmp" behind, never a
 * half target.
 *
 * A file size limit (RLIMIT_FSIZE) raises SIGXFSZ, which kills the process by default. The library
 * does not touch signal handlers: a program that wants an error instead ignores SIGXFSZ, as the
 * headroom command does (and SIGPIPE, for a closed pipe on its standard output).
 */
#ifndef HEADROOM_FILE_H
#define HEADROOM_FILE_H

#include <stddef.h>

#include "headroom/safetensors.h" /* hr_file_write_atomic */

typedef struct hr_file {
    const char *path; /* as the caller gave it, for messages; must outlive the hr_file */
    char *target;     /* path with a final symbolic link resolved */
    char *temporary;
    int descriptor;
} hr_file;

/* Every function leaves nothing behind on failure: append and commit abort by themselves. */
hr_status hr_file_begin(const char *path, hr_file *out) HR_NODISCARD;
hr_status hr_file_append(hr_file *file, const void *bytes, size_t size) HR_NODISCARD;
hr_status hr_file_commit(hr_file *file) HR_NODISCARD;

/* Closes and removes the temporary file; does nothing after a commit or another abort. */
void hr_file_abort(hr_file *file);

#endif
