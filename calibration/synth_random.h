/*
 * Random numbers and elementary functions that give the same bits on every machine.
 *
 * The generator is counter-based: a value depends on the seed and on where it goes, not on what was
 * generated before, so that threads may fill in any order. The functions use only + - * / sqrt and
 * exact scaling in binary64, all correctly rounded by IEEE 754, because libm's exp, log, sin and
 * cos differ between machines in the last bit.
 */
#ifndef HEADROOM_SYNTH_RANDOM_H
#define HEADROOM_SYNTH_RANDOM_H

#include <stdint.h>

typedef struct hr_random_words {
    uint32_t word[4];
} hr_random_words;

/* Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. */
hr_random_words hr_random_philox(hr_random_words counter, uint64_t key);

/* N(0,1) by the inverse normal CDF at (word + 1/2) / 2^32; within [-6.34, 6.34]. */
double hr_random_gaussian(uint32_t word);

/* Natural logarithm of a finite x > 0. */
double hr_stable_log(double x);

/* exp(x) for x in [-16, 0]. */
double hr_stable_exp(double x);

/* sin and cos of an angle in radians, |angle| <= 2^31. */
void hr_stable_sincos(double angle, double *sine, double *cosine);

#endif
