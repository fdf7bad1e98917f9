/*
 * vpdpbusd on 256 bits: 32 INT8 multiply-adds an instruction.
 */
#include "peak.h"
#include "peak_loop.h"

double hr_peak_int8_avxvnni(long rounds)
{
    PEAK_LOOP_YMM(rounds, "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm\\n");
    return 2.0 * 32 * PEAK_YMM * (double)rounds;
}
