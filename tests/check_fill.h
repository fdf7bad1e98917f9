/*
 * Seeded input data of the kernel check: each fill aims at one way that low precision goes wrong.
 */
#ifndef HEADROOM_CHECK_FILL_H
#define HEADROOM_CHECK_FILL_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct check_random {
    uint64_t state;
} check_random;

/* splitmix64 (Steele, Lea, Flood 2014). */
static inline uint64_t random_bits(check_random *random)
{
    uint64_t z = random->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* Uniform in (0, 1]. */
static inline double random_unit(check_random *random)
{
    return (double)((random_bits(random) >> 11) + 1) * 0x1p-53;
}

static inline int32_t random_below(check_random *random, int32_t limit)
{
    return (int32_t)(random_bits(random) % (uint64_t)limit);
}

/* N(0, 1), by Box and Muller. */
static inline double random_normal(check_random *random)
{
    double radius = sqrt(-2 * log(random_unit(random)));
    return radius * cos(6.283185307179586 * random_unit(random));
}

typedef enum check_fill {
    FILL_GAUSSIAN,        /* N(0, 1) */
    FILL_OUTLIER_CHANNEL, /* one channel 20 times larger */
    FILL_MEAN_BIAS,       /* a constant vector added to every token */
    FILL_SATURATING,      /* every element at the largest magnitude, random signs */
    FILL_ZEROS,
    FILL_SPARSE_OUTLIERS, /* N(0, 1) + N(0, 100) * Bernoulli(0.001): FlashAttention-3, table 3 */
    FILL_RAMP,            /* later tokens larger: the running maximum moves in every tile */
    FILL_COUNT
} check_fill;

static const char *const fill_names[FILL_COUNT] = {
    "gaussian", "outlier-channel", "mean-bias", "saturating", "zeros", "sparse-outliers", "ramp",
};

/* x [tokens][heads][head_dim] */
static inline void fill_tensor(check_fill fill, check_random *random, int32_t tokens, int32_t heads,
                               int32_t head_dim, float *x)
{
    float bias[256];
    for (int32_t c = 0; c < head_dim; c++)
        bias[c] = (float)(3 * random_normal(random));
    int32_t outlier = random_below(random, head_dim);
    for (int32_t t = 0; t < tokens; t++)
        for (int32_t i = 0; i < heads * head_dim; i++) {
            double value = random_normal(random);
            int32_t c = i % head_dim;
            if (fill == FILL_OUTLIER_CHANNEL && c == outlier) value *= 20;
            if (fill == FILL_MEAN_BIAS) value += (double)bias[c];
            if (fill == FILL_SATURATING) value = value < 0 ? -2 : 2;
            if (fill == FILL_ZEROS) value = 0;
            if (fill == FILL_SPARSE_OUTLIERS && random_unit(random) < 0.001)
                value += 10 * random_normal(random);
            if (fill == FILL_RAMP) value *= 1 + 3.0 * t / tokens;
            x[(int64_t)t * heads * head_dim + i] = (float)value;
        }
}

#endif
