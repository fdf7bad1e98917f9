/*
 * Cases of the Hopper attention kernels' check: data, packing, the oracle's answer and the derived
 * bound come from the CPU kernels' check (check_run.h), the kernel runs under the emulator.
 */
#ifndef HEADROOM_HOPPER_CASES_H
#define HEADROOM_HOPPER_CASES_H

#include "attention_sm90.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef int (*hopper_kernel)(const hr_sm90_args *args);

/* How a kernel rounds, for the bound. */
typedef enum hopper_model { HOPPER_BF16, HOPPER_FP8, HOPPER_INT8, HOPPER_INT8_FP8 } hopper_model;

typedef struct hopper_case {
    const char *recipe; /* hr_recipe_parse's text, with dynamic scales */
    const char *shape;  /* a line of tests/shapes; R is 128 rows, K 128 keys */
    uint32_t features;  /* of HR_FEATURE_CAUSAL, WINDOW, SOFTCAP, SINKS */
    int fill;           /* check_fill */
    uint64_t seed;
    int32_t multiprocessors; /* blocks: fewer than items make them persistent; 0: 3 */
    int32_t schedule;        /* hopper_emulator::Schedule */
    int32_t bf16_output;
    int32_t fp22; /* the accumulator of E4M3 products as the hardware's */
    char nan;     /* 'q', 'k' or 'v': that operand's token 3, channel 5 is a NaN; 0: none */
} hopper_case;

/* Of all elements: rms error against the oracle on the dequantized inputs, over the oracle's rms.
 */
typedef struct hopper_result {
    double relative_l2;        /* the kernel's own error */
    double total_l2;           /* against the oracle on the inputs before quantization */
    double total_rmse;         /* likewise, not divided by anything */
    double worst_o, worst_lse; /* error over bound */
} hopper_result;

/*
 * Runs one case; fails the test when the emulator finds a fault, a guard word is overwritten, or O
 * or LSE is NaN or outside the bound. With `nan`, O is instead checked to be NaN where it must be,
 * and only there, and nothing is returned.
 */
hopper_result hopper_run_case(const hopper_case *test, hopper_kernel kernel, hopper_model model);

/* The same for every shape of the check, fills, features and schedules in rotation. */
void hopper_run_shapes(const char *recipe, hopper_kernel kernel, hopper_model model, int first,
                       int step);

/*
 * Every third shape with the E4M3 accumulator as the hardware has it, against the bound that
 * check_kernels holds a GPU to.
 */
void hopper_run_shapes_fp22(const char *recipe, hopper_kernel kernel, hopper_model model);

/*
 * N(0, 1) inputs, 2048 keys, head_dim 64 and 128: quantization and kernel together, against the
 * original inputs, are at least `low` and at most `high`. Prints the figures under `name`.
 */
void hopper_error_on_gaussian_inputs(const char *name, const char *recipe, hopper_kernel kernel,
                                     hopper_model model, double low, double high);

/*
 * Sums over 128k keys of N(0, 1) lose nothing, with the E4M3 accumulator as the hardware has it:
 * relative L2 of O of a head, against FP64 on the inputs before quantization, is at most 1.1 times
 * that of eight heads of 4k keys, and the kernel's own part at most 1.01 times what it is with an
 * accumulator in FP32. Prints all.
 */
void hopper_long_sums_lose_nothing(const char *name, const char *recipe, hopper_kernel kernel,
                                   hopper_model model, int32_t head_dim);

/*
 * Root mean square error of O under FlashAttention-3's table 3 (Shah et al. 2024): Q, K and V from
 * N(0, 1) + N(0, 100) Bernoulli(0.001), against FP64 on the inputs before quantization. Two heads,
 * 128 queries, four seeds. Prints it.
 */
double hopper_table3_rmse(const char *recipe, hopper_kernel kernel, hopper_model model,
                          int32_t head_dim, int32_t keys);

/* A NaN in Q, K or V shows where it must, and only there. */
void hopper_nan_propagates(const char *recipe, hopper_kernel kernel, hopper_model model);

/* In hopper_options.cpp: the emulator's options, and its report on the last launch. */
void hopper_set_options(int schedule, uint64_t seed, int fp22);
const char *hopper_report_text(void);

#ifdef __cplusplus
}
#endif

#endif
