/*
 * Peak loops and streaming reads over threads; see peak.h.
 */
#include "peak.h"

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

typedef double (*peak_loop)(long rounds);

#if defined(__x86_64__)
typedef struct loop_row {
    hr_peak_kind kind;
    hr_isa isa;
    peak_loop loop;
} loop_row;

/* Widest first. */
static const loop_row loops[] = {
    {HR_PEAK_FP32, HR_ISA_AVX512, hr_peak_fp32_avx512},
    {HR_PEAK_FP32, HR_ISA_AVX2, hr_peak_fp32_avx2},
    {HR_PEAK_FP16, HR_ISA_AVX512FP16, hr_peak_fp16_avx512fp16},
    {HR_PEAK_INT8, HR_ISA_AVX512VNNI, hr_peak_int8_avx512vnni},
    {HR_PEAK_INT8, HR_ISA_AVXVNNI, hr_peak_int8_avxvnni},
    {HR_PEAK_INT8, HR_ISA_AVX2, hr_peak_int8_avx2},
};

static peak_loop find_loop(hr_peak_kind kind, hr_isa isa)
{
    for (size_t i = 0; i < sizeof loops / sizeof loops[0]; i++) {
        const bool taken =
            isa == HR_ISA_PORTABLE ? hr_isa_mask() >> loops[i].isa & 1 : loops[i].isa <= isa;
        if (loops[i].kind == kind && taken) return loops[i].loop;
    }
    return NULL;
}
#else
static peak_loop find_loop(hr_peak_kind kind, hr_isa isa)
{
    (void)kind;
    (void)isa;
    return NULL;
}
#endif

double hr_peak_gops(hr_peak_kind kind, hr_isa isa, int threads)
{
    /* 12 or 24 accumulators at one or two a cycle: about a millisecond at 2 to 4 GHz. */
    enum { ROUNDS = 200000 };
    peak_loop loop = find_loop(kind, isa);
    if (!loop) return NAN;
    double operations = 0, begin = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : operations)
    operations += loop(ROUNDS);
    return 1e-9 * operations / (omp_get_wtime() - begin);
}

/*
 * Reads a word of every cache line, which is what moves the line, in eight places of the range in
 * turn: with one place the processor's prefetchers and the memory's banks are not all busy.
 */
static uint64_t read_range(const char *memory, size_t bytes)
{
    enum { PLACES = 8, LINE = 64, LINES = 4 };
    uint64_t words[PLACES] = {0}, all = 0;
    const size_t part = bytes / PLACES / (LINE * LINES) * (LINE * LINES);
    for (size_t at = 0; at < part; at += LINE * LINES)
        for (size_t p = 0; p < PLACES; p++)
            for (size_t line = 0; line < LINES; line++) {
                uint64_t word;
                memcpy(&word, memory + p * part + at + line * LINE, sizeof word);
                words[p] ^= word;
            }
    for (int p = 0; p < PLACES; p++)
        all ^= words[p];
    return all;
}

void *hr_peak_memory(size_t bytes)
{
    void *memory;
    if (posix_memalign(&memory, 2 << 20, bytes) != 0) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    memset(memory, 1, bytes);
    return memory;
}

double hr_peak_read_gbps(const void *memory, size_t bytes, int threads)
{
    double begin = omp_get_wtime();
    uint64_t all = 0;
#pragma omp parallel num_threads(threads) reduction(^ : all)
    {
        size_t of = (size_t)omp_get_num_threads(), at = (size_t)omp_get_thread_num();
        all ^= read_range((const char *)memory + bytes / of * at, bytes / of);
    }
    double seconds = omp_get_wtime() - begin;
    __asm__ volatile("" : : "r"(all)); /* the reads are wanted, not the words */
    return 1e-9 * (double)bytes / seconds;
}
