/*
 * FP16 FMA on 32 lanes.
 */
#include "peak.h"
#include "peak_loop.h"

double hr_peak_fp16_avx512fp16(long rounds)
{
    PEAK_LOOP_ZMM(rounds, "vfmadd231ph %%zmm24, %%zmm25, %%zmm\\n");
    return 2.0 * 32 * PEAK_ZMM * (double)rounds;
}
