/*
 * Peak loops and streaming reads over threads; see peak.h.
 */
#include "peak.h"

#include <math.h>
#include <omp.h>

#include "headroom/attention.h"

typedef double (*peak_loop)(long rounds);

static peak_loop find_loop(hr_peak_kind kind)
{
#if defined(__x86_64__)
    uint32_t mask = hr_isa_mask();
    if (kind == HR_PEAK_INT8) return mask >> HR_ISA_AVX512VNNI & 1 ? hr_peak_int8_avx512vnni : NULL;
    if (mask >> HR_ISA_AVX512 & 1) return hr_peak_fp32_avx512;
    if (mask >> HR_ISA_AVX2 & 1) return hr_peak_fp32_avx2;
#else
    (void)kind;
#endif
    return NULL;
}

double hr_peak_gops(hr_peak_kind kind, int threads)
{
    /* 24 accumulators at one or two a cycle: about a millisecond at 2 to 4 GHz. */
    enum { ROUNDS = 200000 };
    peak_loop loop = find_loop(kind);
    if (!loop) return NAN;
    double operations = 0, begin = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : operations)
    operations += loop(ROUNDS);
    return 1e-9 * operations / (omp_get_wtime() - begin);
}

/* Independent running sums, so that additions do not wait for each other. */
static float sum_range(const float *memory, size_t count)
{
    enum { SUMS = 64 };
    float sums[SUMS] = {0};
    for (size_t i = 0; i + SUMS <= count; i += SUMS)
        for (int s = 0; s < SUMS; s++)
            sums[s] += memory[i + (size_t)s];
    float total = 0;
    for (int s = 0; s < SUMS; s++)
        total += sums[s];
    return total;
}

double hr_peak_read_gbps(const float *memory, size_t bytes, int threads)
{
    size_t count = bytes / sizeof *memory;
    double begin = omp_get_wtime();
    float total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        size_t of = (size_t)omp_get_num_threads(), at = (size_t)omp_get_thread_num();
        size_t first = count / of * at, last = at + 1 == of ? count : count / of * (at + 1);
        total += sum_range(memory + first, last - first);
    }
    double seconds = omp_get_wtime() - begin;
    __asm__ volatile("" : : "r"(&total) : "memory"); /* the reads are wanted, not the sum */
    return 1e-9 * (double)bytes / seconds;
}
