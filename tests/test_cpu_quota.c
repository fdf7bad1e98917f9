/*
 * The CPU quota of control groups, read from made-up files: both versions, limits of groups above,
 * containers that see their own group as the root, and files that are missing or hold nonsense.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "scratch_dir.h"
#include "threads.h"

/* Writes a file below the root with the folders that lead to it. */
static void put(const scratch_dir *root, const char *name, const char *text)
{
    char path[512];
    int at = snprintf(path, sizeof path, "%s/", root->path);
    snprintf(path + at, sizeof path - (size_t)at, "%s", name);
    for (char *slash = path + at; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *file = fopen(path, "w");
    cr_assert_not_null(file, "%s", path);
    fputs(text, file);
    fclose(file);
}

static void remove_all(const scratch_dir *root)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", root->path);
    cr_assert_eq(system(command), 0);
}

#define V1_MOUNTS                                                                                  \
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"                                   \
    "33 31 0:30 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"

Test(cpu_quota, version_2_takes_the_least_of_all_groups_above)
{
    const scratch_dir root = scratch_open();
    put(&root, "proc/self/cgroup", "0::/kube/pod/app\n");
    put(&root, "proc/self/mountinfo",
        "24 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
    cr_assert_eq(hr_cpu_quota(root.path), INFINITY, "no file says anything");
    put(&root, "sys/fs/cgroup/kube/pod/app/cpu.max", "max 100000\n");
    put(&root, "sys/fs/cgroup/kube/pod/cpu.max", "250000 100000\n");
    put(&root, "sys/fs/cgroup/kube/cpu.max", "800000 100000\n");
    cr_assert_eq(hr_cpu_quota(root.path), 2.5);
    put(&root, "sys/fs/cgroup/kube/pod/app/cpu.max", "50000 100000\n");
    cr_assert_eq(hr_cpu_quota(root.path), 0.5);
    put(&root, "sys/fs/cgroup/other/cpu.max", "1000 100000\n");
    cr_assert_eq(hr_cpu_quota(root.path), 0.5, "a group the process is not in");
    remove_all(&root);
}

Test(cpu_quota, version_1_has_two_files)
{
    const scratch_dir root = scratch_open();
    put(&root, "proc/self/cgroup", "9:cpuset:/\n4:cpu,cpuacct:/batch\n1:name=systemd:/\n0::/\n");
    put(&root, "proc/self/mountinfo",
        V1_MOUNTS "34 31 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n");
    put(&root, "sys/fs/cgroup/cpu,cpuacct/batch/cpu.cfs_quota_us", "-1\n");
    put(&root, "sys/fs/cgroup/cpu,cpuacct/batch/cpu.cfs_period_us", "100000\n");
    cr_assert_eq(hr_cpu_quota(root.path), INFINITY);
    put(&root, "sys/fs/cgroup/cpu,cpuacct/batch/cpu.cfs_quota_us", "300000\n");
    cr_assert_eq(hr_cpu_quota(root.path), 3);
    put(&root, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "20000\n");
    put(&root, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "10000\n");
    cr_assert_eq(hr_cpu_quota(root.path), 2);
    put(&root, "sys/fs/cgroup/cpuset/cpu.cfs_quota_us", "1\n");
    cr_assert_eq(hr_cpu_quota(root.path), 2, "another hierarchy");
    remove_all(&root);
}

/* Docker mounts the container's own group, whose name on the host is still in /proc. */
Test(cpu_quota, a_container_sees_its_group_as_the_mount)
{
    const scratch_dir root = scratch_open();
    put(&root, "proc/self/cgroup", "4:cpu,cpuacct:/docker/0123/inner\n");
    put(&root, "proc/self/mountinfo",
        V1_MOUNTS "34 31 0:31 /docker/0123 /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n");
    put(&root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000\n");
    put(&root, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    cr_assert_eq(hr_cpu_quota(root.path), 1.5);
    put(&root, "proc/self/cgroup", "4:cpu,cpuacct:/\n");
    cr_assert_eq(hr_cpu_quota(root.path), 1.5, "a namespace of its own");
    put(&root, "proc/self/cgroup", "4:cpu,cpuacct:/docker/01234\n");
    cr_assert_eq(hr_cpu_quota(root.path), 1.5, "a name that begins alike is not below");
    remove_all(&root);
}

Test(cpu_quota, nonsense_is_no_limit)
{
    const scratch_dir root = scratch_open();
    cr_assert_eq(hr_cpu_quota(root.path), INFINITY, "no /proc");
    static const char *const groups[] = {"", "\n", "0::", "::\n", "0\n", "0::/\n"};
    static const char *const limits[] = {"", "\n", "max\n", "0 0\n", "-5 10\n", "x 1\n", "100\n"};
    put(&root, "proc/self/mountinfo", "30 24 0:26 / /cg rw - cgroup2 cgroup2 rw\nshort\n - \n");
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++)
        for (size_t l = 0; l < sizeof limits / sizeof *limits; l++) {
            put(&root, "proc/self/cgroup", groups[g]);
            put(&root, "cg/cpu.max", limits[l]);
            cr_assert_eq(hr_cpu_quota(root.path), INFINITY, "\"%s\", \"%s\"", groups[g], limits[l]);
        }
    remove_all(&root);
}
