/*
 * FP32 FMA on 8 lanes; and INT8 codes as 16-bit words, vpmaddwd and vpaddd: 16 multiply-adds in two
 * instructions.
 */
#include "peak.h"
#include "peak_loop.h"

double hr_peak_fp32_avx2(long rounds)
{
    PEAK_LOOP_YMM(rounds, "vfmadd231ps %%ymm12, %%ymm13, %%ymm\\n");
    return 2.0 * 8 * PEAK_YMM * (double)rounds;
}

double hr_peak_int8_avx2(long rounds)
{
    PEAK_LOOP_YMM(rounds, "vpmaddwd %%ymm12, %%ymm13, %%ymm14\n\t"
                          "vpaddd %%ymm14, %%ymm\\n, %%ymm\\n");
    return 2.0 * 16 * PEAK_YMM * (double)rounds;
}
