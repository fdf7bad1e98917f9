/*
 * The register-only loop of the peaks on x86: `body` once for each accumulator n, \\n in it, then
 * again, `rounds` times. 12 accumulators of 256 bits, operands ymm12 and ymm13, ymm14 free; or 24
 * of 512 bits, operands zmm24 and zmm25. With an instruction's latency of four or five and two of
 * them a cycle, none waits for another.
 *
 * One assembly block, so that no compiler spills an accumulator or sums the series itself.
 */
#ifndef HEADROOM_PEAK_LOOP_H
#define HEADROOM_PEAK_LOOP_H

enum { PEAK_YMM = 12, PEAK_ZMM = 24 }; /* accumulators */

/* vzeroupper, or SSE code after the loop runs many times slower. */
#define PEAK_LOOP(rounds, accumulators, clear, first, second, body, ...)                           \
    do {                                                                                           \
        long left_ = (rounds);                                                                     \
        __asm__ volatile(".irp n," accumulators "\n\t" clear("\\n") ".endr\n\t" clear(first)       \
                             clear(second) "1:\n\t"                                                \
                                           ".irp n," accumulators "\n\t" body "\n\t"               \
                                           ".endr\n\t"                                             \
                                           "dec %0\n\t"                                            \
                                           "jnz 1b\n\t"                                            \
                                           "vzeroupper"                                            \
                         : "+r"(left_)                                                             \
                         :                                                                         \
                         : "cc", __VA_ARGS__);                                                     \
    } while (0)

#define PEAK_CLEAR_YMM(n) "vpxor %%ymm" n ", %%ymm" n ", %%ymm" n "\n\t"
#define PEAK_CLEAR_ZMM(n) "vpxord %%zmm" n ", %%zmm" n ", %%zmm" n "\n\t"

#define PEAK_LOOP_YMM(rounds, body)                                                                \
    PEAK_LOOP(rounds, "0,1,2,3,4,5,6,7,8,9,10,11", PEAK_CLEAR_YMM, "12", "13", body, "xmm0",       \
              "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",     \
              "xmm11", "xmm12", "xmm13", "xmm14")

#define PEAK_LOOP_ZMM(rounds, body)                                                                \
    PEAK_LOOP(rounds, "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",             \
              PEAK_CLEAR_ZMM, "24", "25", body, "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",    \
              "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",         \
              "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",     \
              "xmm24", "xmm25")

#endif
