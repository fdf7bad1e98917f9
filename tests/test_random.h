/*
 * Seeded random floats for tests: SplitMix64 and Box-Muller, the same on every machine.
 */
#ifndef HEADROOM_TESTS_TEST_RANDOM_H
#define HEADROOM_TESTS_TEST_RANDOM_H

#include <math.h>
#include <stdint.h>

typedef struct test_random {
    uint64_t state;
} test_random;

static inline uint64_t random_bits(test_random *random)
{
    uint64_t z = random->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* In (0, 1]. */
static inline double random_uniform(test_random *random)
{
    return ((double)(random_bits(random) >> 11) + 1.0) * 0x1p-53;
}

static inline float random_gaussian(test_random *random)
{
    double radius = sqrt(-2.0 * log(random_uniform(random)));
    return (float)(radius * cos(6.283185307179586 * random_uniform(random)));
}

static inline void random_gaussians(test_random *random, float *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        values[i] = random_gaussian(random);
}

#endif
