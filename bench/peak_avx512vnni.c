/*
 * vpdpbusd on 512 bits: 64 INT8 multiply-adds an instruction.
 */
#include "peak.h"
#include "peak_loop.h"

double hr_peak_int8_avx512vnni(long rounds)
{
    PEAK_LOOP_ZMM(rounds, "vpdpbusd %%zmm24, %%zmm25, %%zmm\\n");
    return 2.0 * 64 * PEAK_ZMM * (double)rounds;
}
