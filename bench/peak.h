/*
 * The machine's own limits, measured: register-only multiply-add loops and a streaming read. They
 * run beside a kernel in the same process, so that a ratio to them survives a drifting clock.
 */
#ifndef HEADROOM_PEAK_H
#define HEADROOM_PEAK_H

#include <stddef.h>

#include "headroom/attention.h"

typedef enum hr_peak_kind {
    HR_PEAK_FP32, /* FP32 fused multiply-add */
    HR_PEAK_FP16, /* FP16 fused multiply-add */
    HR_PEAK_INT8  /* INT8 dot products into int32: vpdpbusd, or vpmaddwd of widened codes */
} hr_peak_kind;

/*
 * 1e9 operations (a multiply and an add count as two) a second over `threads` threads, in about a
 * millisecond, of the widest loop that kernels of `isa` could be; of those this processor has where
 * isa is HR_ISA_PORTABLE. NaN when this build has no such loop.
 */
double hr_peak_gops(hr_peak_kind kind, hr_isa isa, int threads);

/* Memory for the streaming read, in huge pages where the system has them; free() it. NULL: none. */
void *hr_peak_memory(size_t bytes);

/* GB/s of reading `bytes` bytes once, split over `threads` threads. */
double hr_peak_read_gbps(const void *memory, size_t bytes, int threads);

/* The loops: each does `rounds` rounds and returns the operations done. */
double hr_peak_fp32_avx2(long rounds);
double hr_peak_fp32_avx512(long rounds);
double hr_peak_fp16_avx512fp16(long rounds);
double hr_peak_int8_avx2(long rounds);
double hr_peak_int8_avxvnni(long rounds);
double hr_peak_int8_avx512vnni(long rounds);

#endif
