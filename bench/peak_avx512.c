/*
 * FP32 FMA on 16 lanes.
 */
#include "peak.h"
#include "peak_loop.h"

double hr_peak_fp32_avx512(long rounds)
{
    PEAK_LOOP_ZMM(rounds, "vfmadd231ps %%zmm24, %%zmm25, %%zmm\\n");
    return 2.0 * 16 * PEAK_ZMM * (double)rounds;
}
