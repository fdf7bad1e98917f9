/*
 * Atomic file replacement: temporary file, fsync, rename, fsync of the directory. See file.h.
 */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "status_internal.h"

static hr_status fail_system(const char *path, const char *action)
{
    return hr_fail(errno == ENOMEM ? HR_ERROR_OUT_OF_MEMORY : HR_ERROR_IO, "%s: cannot %s: %s",
                   path, action, strerror(errno));
}

/* What the rename will replace: path itself, or where it points when it is a symbolic link. */
static hr_status resolve_target(const char *path, char **out)
{
    struct stat status;
    size_t length = strlen(path);
    if (length == 0) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the output path is empty");
    bool is_link = lstat(path, &status) == 0 && S_ISLNK(status.st_mode);
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode))
        return hr_fail(HR_ERROR_IO, "%s: cannot write: it is %s, not a regular file", path,
                       S_ISDIR(status.st_mode) ? "a directory" : "a device, pipe or socket");
    *out = is_link ? realpath(path, NULL) : strdup(path);
    if (!*out) return fail_system(path, is_link ? "follow the symbolic link" : "write");
    return HR_OK;
}

/* "dir/" of "dir/name" (with the slash), "" of "name". */
static size_t directory_length(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

/* The temporary's name does not grow with the target's, so that NAME_MAX is no concern. */
static hr_status open_temporary(hr_file *file)
{
    enum { ATTEMPTS = 100 };
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        uint64_t salt;
        if (getrandom(&salt, sizeof salt, 0) != sizeof salt)
            return fail_system(file->path, "choose a temporary name");
        int written =
            asprintf(&file->temporary, "%.*s.headroom-%016llx.tmp",
                     (int)directory_length(file->target), file->target, (unsigned long long)salt);
        if (written < 0) {
            file->temporary = NULL;
            return hr_fail(HR_ERROR_OUT_OF_MEMORY, "%s: cannot write: out of memory", file->path);
        }
        file->descriptor = open(file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file->descriptor >= 0) return HR_OK;
        int reason = errno;
        free(file->temporary);
        file->temporary = NULL;
        errno = reason;
        if (reason != EEXIST) break;
    }
    return fail_system(file->path, "create a file in its directory");
}

hr_status hr_file_begin(const char *path, hr_file *out)
{
    *out = (hr_file){.path = path, .descriptor = -1};
    hr_status status = resolve_target(path, &out->target);
    if (status == HR_OK) status = open_temporary(out);
    if (status != HR_OK) hr_file_abort(out);
    return status;
}

hr_status hr_file_append(hr_file *file, const void *bytes, size_t size)
{
    const char *at = bytes;
    while (size > 0) {
        ssize_t written = write(file->descriptor, at, size);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) {
            if (written == 0) errno = ENOSPC; /* a regular file that takes nothing is full */
            hr_status status = fail_system(file->path, "write");
            hr_file_abort(file);
            return status;
        }
        at += written;
        size -= (size_t)written;
    }
    return HR_OK;
}

/*
 * Makes the rename durable. The target is complete at this point; a directory that may be written
 * but not read, or a file system that cannot sync one, is left to its own timing.
 */
static hr_status sync_directory(const hr_file *file)
{
    char *directory = strndup(file->target, directory_length(file->target));
    if (!directory) return hr_fail(HR_ERROR_OUT_OF_MEMORY, "%s: out of memory", file->path);
    int descriptor = open(*directory ? directory : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(directory);
    if (descriptor < 0) return HR_OK;
    hr_status status = HR_OK;
    if (fsync(descriptor) != 0 && errno != EINVAL && errno != ENOTSUP && errno != EROFS)
        status = fail_system(file->path, "sync its directory");
    close(descriptor);
    return status;
}

hr_status hr_file_commit(hr_file *file)
{
    hr_status status = HR_OK;
    if (fsync(file->descriptor) != 0) status = fail_system(file->path, "write to the disk");
    /* The descriptor is gone after close, whatever it returns. */
    if (close(file->descriptor) != 0 && errno != EINTR && status == HR_OK)
        status = fail_system(file->path, "close");
    file->descriptor = -1;
    if (status == HR_OK && rename(file->temporary, file->target) != 0)
        status = fail_system(file->path, "move the finished file into place");
    if (status == HR_OK) {
        free(file->temporary);
        file->temporary = NULL;
        status = sync_directory(file);
    }
    hr_file_abort(file);
    return status;
}

void hr_file_abort(hr_file *file)
{
    if (file->descriptor >= 0) close(file->descriptor);
    if (file->temporary) unlink(file->temporary);
    free(file->temporary);
    free(file->target);
    *file = (hr_file){.path = file->path, .descriptor = -1};
}

hr_status hr_file_write_atomic(const char *path, const void *bytes, size_t size)
{
    if (!path || (!bytes && size > 0))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "output path or bytes is NULL");
    hr_file file;
    HR_TRY(hr_file_begin(path, &file));
    HR_TRY(hr_file_append(&file, bytes, size));
    return hr_file_commit(&file);
}
