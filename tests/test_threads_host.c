/*
 * A library inside a threaded host: runs with threads = 1, or inside the host's parallel region,
 * start no thread, and every way of running gives the same bits.
 */
#include <dirent.h>
#include <omp.h>
#include <pthread.h>

#include "plan_setup.h"

enum { HOST_THREADS = 4 };

/* Threads of this process. */
static int count_threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    cr_assert_not_null(tasks);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(tasks));)
        count += entry->d_name[0] != '.';
    closedir(tasks);
    return count;
}

/* All that a run can have: a block-sparse mask, kept tokens, sinks and an epilogue. */
typedef struct host_job {
    plan_setup *s;
    hr_block_mask blocks;
    hr_plan *plan;
    int most; /* threads seen while it ran */
} host_job;

static const float sinks[4] = {1, -1, 0, 2};
static const hr_epilogue epilogue = {.scale = 1, .norm = HR_NORM_RMS, .eps = 1e-5f};

static void make_job(host_job *job, int32_t threads)
{
    plan_setup *s = job->s = setup_make("int8", 4, 2, 64, 700, 700);
    const hr_block_pattern pattern = {
        .block = 64, .window = 1, .global = 1, .random = 2, .seed = 4, .causal = true};
    cr_assert_eq(
        hr_block_mask_from_pattern(&pattern, 4, 1, s->cu_seqlens_q, s->cu_seqlens_kv, &job->blocks),
        HR_OK);
    s->problem.mask = (hr_mask){true, 300, -1, 5, &job->blocks};
    s->problem.sinks = sinks;
    job->plan = setup_plan(s, &(hr_plan_options){.threads = threads, .epilogue = &epilogue});
    hr_layer_layouts layouts = hr_plan_layouts(job->plan);
    setup_pack(s, &layouts);
}

static void free_job(host_job *job)
{
    hr_plan_free(job->plan);
    hr_block_mask_free(&job->blocks);
    setup_free(job->s);
}

static void *run_job(void *context)
{
    host_job *job = context;
    for (int round = 0; round < 3; round++) {
        setup_run(job->s, job->plan);
        const int threads = count_threads();
        if (threads > job->most) job->most = threads;
    }
    return NULL;
}

Test(threads_host, one_thread_a_plan_starts_none)
{
    host_job jobs[HOST_THREADS] = {0};
    pthread_t threads[HOST_THREADS];
    for (int i = 0; i < HOST_THREADS; i++)
        make_job(&jobs[i], 1);
    const int before = count_threads();
    for (int i = 0; i < HOST_THREADS; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, run_job, &jobs[i]), 0);
    for (int i = 0; i < HOST_THREADS; i++)
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < HOST_THREADS; i++) {
        cr_expect_leq(jobs[i].most, before + HOST_THREADS, "a run started threads");
        cr_expect_eq(memcmp(jobs[0].s->o.data, jobs[i].s->o.data, o_bytes(jobs[0].s)), 0);
    }
    for (int i = 0; i < HOST_THREADS; i++)
        free_job(&jobs[i]);
}

Test(threads_host, no_teams_inside_a_region)
{
    host_job jobs[HOST_THREADS] = {0}, alone = {0};
    make_job(&alone, 3);
    run_job(&alone);
    for (int i = 0; i < HOST_THREADS; i++)
        make_job(&jobs[i], 3);
    omp_set_max_active_levels(2); /* nested teams would be real */
#pragma omp parallel num_threads(HOST_THREADS)
    {
#pragma omp barrier
    }
    const int before = count_threads();
#pragma omp parallel num_threads(HOST_THREADS)
    run_job(&jobs[omp_get_thread_num()]);
    for (int i = 0; i < HOST_THREADS; i++) {
        cr_expect_leq(jobs[i].most, before, "a run inside a region started threads");
        cr_expect_eq(memcmp(alone.s->o.data, jobs[i].s->o.data, o_bytes(alone.s)), 0);
        cr_expect_eq(memcmp(alone.s->lse.data, jobs[i].s->lse.data, lse_bytes(alone.s)), 0);
        free_job(&jobs[i]);
    }
    free_job(&alone);
}
