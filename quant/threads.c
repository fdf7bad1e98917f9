/*
 * The number of threads to use by default:
 *
 *     HEADROOM_NUM_THREADS                        when it is set
 *     OpenMP's own number                         when the user or the host chose it
 *                                                 (OMP_NUM_THREADS, omp_set_num_threads)
 *     min(processors, ceil(CPU quota))            otherwise; OpenMP counts the processors that the
 *                                                 affinity mask leaves, but knows no quotas
 */
#include "threads.h"

#include <errno.h>
#include <math.h>
#include <omp.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "headroom/machine.h"
#include "status_internal.h"

enum { MAX_THREADS = 4096 };

/* Looked up once; two threads that both do find the same. */
static atomic_int known_processors, known_allowed;

static void look(void)
{
    const double quota = ceil(hr_cpu_quota(""));
    const int processors = omp_get_num_procs();
    known_allowed = quota < processors ? (int)quota : processors;
    known_processors = processors;
}

/* 0 when the variable is not set or empty, -1 when it is no number of threads. */
static int chosen_threads(void)
{
    const char *text = getenv("HEADROOM_NUM_THREADS");
    if (!text || !*text) return 0;
    char *end;
    errno = 0;
    const long number = strtol(text, &end, 10);
    return *end == 0 && errno == 0 && number >= 1 && number <= MAX_THREADS ? (int)number : -1;
}

int hr_threads(void)
{
    const int chosen = chosen_threads();
    if (chosen > 0) return chosen;
    if (known_processors == 0) look();
    const int usual = omp_get_max_threads();
    return usual != known_processors || getenv("OMP_NUM_THREADS") ? usual : known_allowed;
}

int hr_machine_threads(void)
{
    if (chosen_threads() >= 0) return hr_threads();
    hr_fail(HR_ERROR_INVALID_ARGUMENT,
            "HEADROOM_NUM_THREADS is \"%s\"; a whole number from 1 to %d is accepted",
            getenv("HEADROOM_NUM_THREADS"), MAX_THREADS);
    return 0;
}
