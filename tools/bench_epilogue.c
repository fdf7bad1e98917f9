/*
 * Fused against afterwards; see bench_epilogue.h. Both read the residual, write the stream and the
 * normalized output; afterwards also writes O and reads it again.
 */
#include "bench_epilogue.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "median.h"

typedef struct rivals {
    hr_plan *fused, *plain;
    float *memory; /* o, residual, stream, out */
    hr_tensor o, residual, stream, out;
    hr_epilogue epilogue;
    float *weight;
} rivals;

static void rivals_free(rivals *r)
{
    hr_plan_free(r->fused);
    hr_plan_free(r->plain);
    free(r->memory);
    free(r->weight);
}

static int rivals_create(rivals *r, const bench_epilogue *bench)
{
    const hr_attention_problem *p = bench->problem;
    const int64_t shape[3] = {p->cu_seqlens_q[p->batch], p->num_heads, p->head_dim};
    const size_t hidden = (size_t)(shape[1] * shape[2]), count = (size_t)shape[0] * hidden;
    r->memory = malloc(4 * count * sizeof *r->memory);
    r->weight = malloc(hidden * sizeof *r->weight);
    if (!r->memory || !r->weight) return cli_fail("out of memory for the epilogue's tensors");
    for (size_t i = 0; i < 4 * count; i++)
        r->memory[i] = (float)(i % 17) / 8 - 1;
    for (size_t i = 0; i < hidden; i++)
        r->weight[i] = 1;
    hr_tensor *tensors[4] = {&r->o, &r->residual, &r->stream, &r->out};
    for (int i = 0; i < 4; i++)
        *tensors[i] = hr_tensor_view(HR_DTYPE_F32, 3, shape, r->memory + (size_t)i * count);
    r->epilogue = (hr_epilogue){.scale = 1, .norm = bench->norm, .eps = 1e-5f, .weight = r->weight};
    hr_plan_options options = {.kernel = bench->kernel, .threads = bench->threads};
    if (hr_plan_create(p, bench->recipe, &options, &r->plain) != HR_OK)
        return cli_fail_library("--epilogue");
    options.epilogue = &r->epilogue;
    if (hr_plan_create(p, bench->recipe, &options, &r->fused) != HR_OK)
        return cli_fail_library("--epilogue");
    return CLI_OK;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static hr_status run_fused(const rivals *r, const hr_packed_layer *operands)
{
    const hr_plan_tensors tensors = {
        .operands = operands, .o = &r->out, .residual = &r->residual, .stream = &r->stream};
    return hr_plan_run_tensors(r->fused, &tensors);
}

static hr_status run_after(const rivals *r, const hr_packed_layer *operands)
{
    hr_status status = hr_plan_run(r->plain, operands, &r->o, NULL);
    if (status == HR_OK)
        status = hr_epilogue_run(&r->epilogue, &r->o, &r->residual, &r->stream, &r->out);
    return status;
}

int bench_epilogue_run(const bench_epilogue *bench, double *x_after)
{
    const size_t n = (size_t)bench->repeats;
    rivals r = {0};
    double *fused = calloc(2 * n, sizeof *fused), *after = fused ? fused + n : NULL;
    int code = fused ? rivals_create(&r, bench) : cli_fail("out of memory for --epilogue");
    hr_status status = HR_OK;
    for (size_t i = 0; i <= n && code == CLI_OK && status == HR_OK; i++) {
        const double begin = now();
        status = run_fused(&r, bench->operands);
        const double middle = now();
        if (status == HR_OK) status = run_after(&r, bench->operands);
        if (i == 0) continue; /* warms up */
        fused[i - 1] = middle - begin;
        after[i - 1] = now() - middle;
    }
    if (status != HR_OK) code = cli_fail_library("--epilogue");
    if (code == CLI_OK) {
        *x_after = bench_median(after, n) / bench_median(fused, n);
    }
    rivals_free(&r);
    free(fused);
    return code;
}
