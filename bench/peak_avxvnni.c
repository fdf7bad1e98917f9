/*
 * vpdpbusd on 12 independent 256-bit accumulators: 32 INT8 multiply-adds an instruction.
 *
 * One assembly block, so that no compiler spills an accumulator or sums the series itself.
 */
#include "peak.h"

double hr_peak_int8_avxvnni(long rounds)
{
    long left = rounds;
    __asm__ volatile(".irp n,0,1,2,3,4,5,6,7,8,9,10,11\n\t"
                     "vpxor %%ymm\\n, %%ymm\\n, %%ymm\\n\n\t"
                     ".endr\n\t"
                     "vpxor %%ymm12, %%ymm12, %%ymm12\n\t"
                     "vpxor %%ymm13, %%ymm13, %%ymm13\n"
                     "1:\n\t"
                     ".irp n,0,1,2,3,4,5,6,7,8,9,10,11\n\t"
                     "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm\\n\n\t"
                     ".endr\n\t"
                     "dec %0\n\t"
                     "jnz 1b\n\t"
                     "vzeroupper" /* else SSE code after it runs many times slower */
                     : "+r"(left)
                     :
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13");
    return 2.0 * 32 * 12 * (double)rounds;
}
