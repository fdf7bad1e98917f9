/*
 * How many threads work is spread over where the caller does not say; hr_machine_threads of
 * headroom/machine.h is the public side.
 */
#ifndef HEADROOM_THREADS_H
#define HEADROOM_THREADS_H

/* At least 1, also where HEADROOM_NUM_THREADS is no number: then as if it were not set. */
int hr_threads(void);

/*
 * The processors' worth of time that control groups leave this process, INFINITY without a limit:
 * the least of quota / period over its group and all groups above it, of version 2 (cpu.max) and 1
 * (cpu.cfs_quota_us). Files are read below `root`, which is "" but in tests:
 *
 *     root/proc/self/cgroup       the group, one line a hierarchy
 *     root/proc/self/mountinfo    where hierarchies are mounted; groups are read at root/<there>
 */
double hr_cpu_quota(const char *root);

#endif
