/*
 * Atomic writing when things go wrong: the target keeps its old content or stays absent, no
 * temporary file is left, and the message names the path and the system's reason.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "file.h"
#include "headroom/safetensors.h"
#include "scratch_dir.h"

static void assert_content(const char *path, const char *expected)
{
    char text[64] = "";
    FILE *file = fopen(path, "rb");
    cr_assert_not_null(file, "%s is missing", path);
    cr_assert_eq(fread(text, 1, sizeof text - 1, file), strlen(expected));
    fclose(file);
    cr_assert_str_eq(text, expected);
}

static void assert_refused(const char *path, const char *expected)
{
    cr_assert_eq(hr_file_write_atomic(path, "x", 1), HR_ERROR_IO);
    cr_assert_str_eq(hr_last_error(), expected);
}

Test(file, writes_and_replaces)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "report.json");
    cr_assert_eq(hr_file_write_atomic(path.text, "first", 5), HR_OK, "%s", hr_last_error());
    assert_content(path.text, "first");
    cr_assert_eq(hr_file_write_atomic(path.text, "second", 6), HR_OK, "%s", hr_last_error());
    assert_content(path.text, "second");
    cr_assert_eq(hr_file_write_atomic(path.text, NULL, 0), HR_OK, "%s", hr_last_error());
    assert_content(path.text, "");
    cr_assert_eq(scratch_count(&scratch, NULL), 1);
    scratch_close(&scratch);
}

Test(file, mode_follows_the_umask)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "x");
    umask(027);
    cr_assert_eq(hr_file_write_atomic(path.text, "x", 1), HR_OK);
    struct stat status;
    cr_assert_eq(stat(path.text, &status), 0);
    cr_assert_eq(status.st_mode & 0777, 0640);
    scratch_close(&scratch);
}

Test(file, names_may_be_long_or_without_a_folder)
{
    scratch_dir scratch = scratch_open();
    char name[256];
    memset(name, 'n', 255); /* NAME_MAX: the temporary's name may not be longer than the target's */
    name[255] = 0;
    cr_assert_eq(hr_file_write_atomic(scratch_file(&scratch, name).text, "x", 1), HR_OK, "%s",
                 hr_last_error());
    cr_assert_eq(chdir(scratch.path), 0);
    cr_assert_eq(hr_file_write_atomic("bare", "y", 1), HR_OK, "%s", hr_last_error());
    assert_content(scratch_file(&scratch, "bare").text, "y");
    cr_assert_eq(chdir("/"), 0);
    scratch_close(&scratch);
}

Test(file, symbolic_links_are_followed)
{
    scratch_dir scratch = scratch_open();
    scratch_path target = scratch_file(&scratch, "target"), link = scratch_file(&scratch, "link");
    scratch_path dangling = scratch_file(&scratch, "dangling");
    cr_assert_eq(hr_file_write_atomic(target.text, "old", 3), HR_OK);
    cr_assert_eq(symlink("target", link.text), 0);
    cr_assert_eq(hr_file_write_atomic(link.text, "new", 3), HR_OK, "%s", hr_last_error());
    assert_content(target.text, "new");
    struct stat status;
    cr_assert_eq(lstat(link.text, &status), 0);
    cr_assert(S_ISLNK(status.st_mode));
    cr_assert_eq(symlink("nowhere", dangling.text), 0);
    cr_assert_eq(hr_file_write_atomic(dangling.text, "x", 1), HR_ERROR_IO);
    cr_assert(strstr(hr_last_error(), "cannot follow the symbolic link: No such file"));
    cr_assert_eq(scratch_count(&scratch, NULL), 3);
    scratch_close(&scratch);
}

/* Permission bits do not bind root, which tests may run as, so other obstacles stand in. */
Test(file, unwritable_places)
{
    assert_refused("/nonexistent/x", "/nonexistent/x: cannot create a file in its directory: "
                                     "No such file or directory");
    assert_refused("/dev/null/x", "/dev/null/x: cannot create a file in its directory: "
                                  "Not a directory");
    assert_refused("/proc/x", "/proc/x: cannot create a file in its directory: "
                              "No such file or directory");
    assert_refused("/tmp", "/tmp: cannot write: it is a directory, not a regular file");
    assert_refused("/dev/full", "/dev/full: cannot write: it is a device, pipe or socket, not a "
                                "regular file");
    cr_assert_eq(hr_file_write_atomic("", "x", 1), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(hr_file_write_atomic(NULL, "x", 1), HR_ERROR_INVALID_ARGUMENT);
    struct stat status;
    cr_assert_eq(stat("/dev/full", &status), 0);
    cr_assert(S_ISCHR(status.st_mode));
}

Test(file, folder_vanishes_before_the_rename)
{
    scratch_dir scratch = scratch_open();
    scratch_path folder = scratch_file(&scratch, "folder");
    scratch_path path = scratch_file(&scratch, "folder/x");
    cr_assert_eq(mkdir(folder.text, 0777), 0);
    hr_file file;
    cr_assert_eq(hr_file_begin(path.text, &file), HR_OK);
    cr_assert_eq(hr_file_append(&file, "x", 1), HR_OK);
    cr_assert_eq(mkdir(path.text, 0777), 0); /* a directory now stands at the target */
    cr_assert_eq(hr_file_commit(&file), HR_ERROR_IO);
    cr_assert(strstr(hr_last_error(), "cannot move the finished file into place: Is a directory"));
    cr_assert_eq(rmdir(path.text), 0);
    cr_assert_eq(rmdir(folder.text), 0, "something was left in the folder");
    scratch_close(&scratch);
}

Test(file, abort_is_harmless_after_the_end)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "x");
    hr_file file;
    cr_assert_eq(hr_file_begin(path.text, &file), HR_OK);
    hr_file_abort(&file);
    hr_file_abort(&file);
    cr_assert_eq(scratch_count(&scratch, NULL), 0);
    cr_assert_eq(hr_file_begin(path.text, &file), HR_OK);
    cr_assert_eq(hr_file_commit(&file), HR_OK);
    hr_file_abort(&file);
    cr_assert_eq(scratch_count(&scratch, NULL), 1);
    scratch_close(&scratch);
}

/*
 * The disk is full after 4096 bytes: a file size limit, with its signal ignored, makes write fail
 * in the middle. In a child, so that the limit does not bind Criterion. Exit status 0 is success.
 */
static int child_writes_too_much(const char *path)
{
    enum { SIZE = 100000 };
    static const char bytes[SIZE];
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit limit = {4096, 4096};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return 2;
    hr_safetensors_writer *writer;
    hr_tensor tensor = hr_tensor_view(HR_DTYPE_U8, 1, (int64_t[]){SIZE}, (void *)bytes);
    if (hr_safetensors_writer_create(&writer) != HR_OK) return 3;
    if (hr_safetensors_add(writer, "x", &tensor) != HR_OK) return 4;
    if (hr_safetensors_write(writer, path) != HR_ERROR_IO) return 5;
    hr_safetensors_writer_free(writer);
    char expected[400];
    snprintf(expected, sizeof expected, "%s: cannot write: File too large", path);
    return strcmp(hr_last_error(), expected) == 0 ? 0 : 6;
}

Test(file, disk_becomes_full)
{
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "x.safetensors");
    for (int existing = 0; existing <= 1; existing++) {
        if (existing) cr_assert_eq(hr_file_write_atomic(path.text, "old", 3), HR_OK);
        pid_t child = fork();
        cr_assert(child >= 0);
        if (child == 0) _exit(child_writes_too_much(path.text));
        int status;
        cr_assert_eq(waitpid(child, &status, 0), child);
        cr_assert(WIFEXITED(status));
        cr_assert_eq(WEXITSTATUS(status), 0, "step %d failed", WEXITSTATUS(status));
        cr_assert_eq(scratch_count(&scratch, NULL), existing);
        if (existing) assert_content(path.text, "old");
    }
    scratch_close(&scratch);
}
