/*
 * Transforms: H D is orthogonal and undone by its inverse for every head_dim, its signs are those
 * of the documented generator, mean smoothing is exact to a rounding, and huge values saturate.
 */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>

#include "headroom/pack.h"
#include "rope_internal.h"
#include "test_random.h"
#include "transform.h"

#define FOR_EACH_HEAD_DIM(head_dim)                                                                \
    for (int32_t head_dim = HR_HEAD_DIM_MULTIPLE; head_dim <= HR_HEAD_DIM_MAX;                     \
         head_dim += HR_HEAD_DIM_MULTIPLE)

Test(transform, block_is_the_largest_power_of_two_that_divides)
{
    cr_assert_eq(hr_hadamard_block(128), 128);
    cr_assert_eq(hr_hadamard_block(96), 32);
    cr_assert_eq(hr_hadamard_block(80), 16);
    cr_assert_eq(hr_hadamard_block(72), 8);
    FOR_EACH_HEAD_DIM(head_dim)
    {
        int32_t block = hr_hadamard_block(head_dim);
        cr_assert_eq(head_dim % block, 0);
        cr_assert_eq(head_dim / block % 2, 1);
        cr_assert_eq(block & (block - 1), 0);
    }
}

/* The first signs of the default seed, from SplitMix64 written down independently in Python. */
Test(transform, signs_are_those_of_the_documented_generator)
{
    static const float expected[16] = {-1, 1, 1, 1, 1, -1, -1, -1, -1, -1, 1, -1, 1, -1, 1, -1};
    float signs[16];
    hr_hadamard_signs(0, 16, signs);
    for (int c = 0; c < 16; c++)
        cr_assert_eq(signs[c], expected[c], "sign %d", c);
}

Test(transform, signs_depend_on_the_seed_and_are_balanced)
{
    float one[HR_HEAD_DIM_MAX], other[HR_HEAD_DIM_MAX];
    hr_hadamard_signs(1, HR_HEAD_DIM_MAX, one);
    hr_hadamard_signs(2, HR_HEAD_DIM_MAX, other);
    int differ = 0, minus = 0;
    for (int c = 0; c < HR_HEAD_DIM_MAX; c++) {
        cr_assert_eq(fabsf(one[c]), 1.0f);
        differ += one[c] != other[c];
        minus += one[c] < 0;
    }
    /* Binomial(256, 1/2) has a standard deviation of 8: five of them. */
    cr_assert(differ > 88 && differ < 168, "%d signs differ", differ);
    cr_assert(minus > 88 && minus < 168, "%d signs are minus", minus);
}

/*
 * Column j of H D is the rotation of unit vector j: columns must be orthonormal, and entries are
 * +-1/sqrt(block) within a block, 0 outside. Entries are rounded to float once: 2^-24 relative.
 */
Test(transform, rotation_is_orthogonal_for_every_head_dim)
{
    static float columns[HR_HEAD_DIM_MAX][HR_HEAD_DIM_MAX];
    FOR_EACH_HEAD_DIM(head_dim)
    {
        float signs[HR_HEAD_DIM_MAX];
        hr_hadamard_signs(7, head_dim, signs);
        int32_t block = hr_hadamard_block(head_dim);
        for (int32_t j = 0; j < head_dim; j++) {
            for (int32_t c = 0; c < head_dim; c++)
                columns[j][c] = c == j;
            hr_hadamard_rotate(signs, head_dim, columns[j]);
            for (int32_t c = 0; c < head_dim; c++) {
                float expected = c / block == j / block ? (float)(1.0 / sqrt(block)) : 0.0f;
                cr_assert_eq(fabsf(columns[j][c]), expected, "head_dim %d, entry %d, %d", head_dim,
                             c, j);
            }
        }
        for (int32_t i = 0; i < head_dim; i++) {
            for (int32_t j = i; j < head_dim; j++) {
                double dot = 0.0;
                for (int32_t c = 0; c < head_dim; c++)
                    dot += (double)columns[i][c] * columns[j][c];
                cr_assert(fabs(dot - (i == j)) <= 0x1p-22, "head_dim %d: columns %d, %d: %g",
                          head_dim, i, j, dot);
            }
        }
    }
}

/* Each direction rounds once, so a channel moves by at most 2^-24 of the row's length, twice. */
Test(transform, rotation_is_undone_and_keeps_products)
{
    test_random random = {11};
    FOR_EACH_HEAD_DIM(head_dim)
    {
        float signs[HR_HEAD_DIM_MAX], q[HR_HEAD_DIM_MAX], k[HR_HEAD_DIM_MAX], qr[HR_HEAD_DIM_MAX],
            kr[HR_HEAD_DIM_MAX];
        hr_hadamard_signs(3, head_dim, signs);
        random_gaussians(&random, q, head_dim);
        random_gaussians(&random, k, head_dim);
        double before = 0.0, after = 0.0, norm_q = 0.0, norm_k = 0.0;
        for (int32_t c = 0; c < head_dim; c++) {
            qr[c] = q[c];
            kr[c] = k[c];
            before += (double)q[c] * k[c];
            norm_q += (double)q[c] * q[c];
            norm_k += (double)k[c] * k[c];
        }
        hr_hadamard_rotate(signs, head_dim, qr);
        hr_hadamard_rotate(signs, head_dim, kr);
        for (int32_t c = 0; c < head_dim; c++)
            after += (double)qr[c] * kr[c];
        cr_assert(fabs(after - before) <= 0x1p-22 * sqrt(norm_q * norm_k), "head_dim %d", head_dim);
        hr_hadamard_unrotate(signs, head_dim, qr);
        for (int32_t c = 0; c < head_dim; c++)
            cr_assert(fabs((double)qr[c] - q[c]) <= 0x1p-23 * sqrt(norm_q), "head_dim %d",
                      head_dim);
    }
}

Test(transform, huge_rows_saturate_instead_of_overflowing)
{
    float signs[64], row[64];
    hr_hadamard_signs(0, 64, signs);
    for (int c = 0; c < 64; c++)
        row[c] = signs[c] * FLT_MAX; /* all of the energy goes to channel 0 */
    hr_hadamard_rotate(signs, 64, row);
    cr_assert_eq(row[0], FLT_MAX);
    for (int c = 1; c < 64; c++)
        cr_assert(isfinite(row[c]));
}

Test(transform, mean_is_the_channel_mean_and_is_undone)
{
    enum { TOKENS = 1000, HEAD_DIM = 24 };
    static float rows[TOKENS * HEAD_DIM];
    test_random random = {5};
    random_gaussians(&random, rows, TOKENS * HEAD_DIM);
    double sum[HEAD_DIM] = {0}, pieces[HEAD_DIM] = {0};
    float mean[HEAD_DIM];
    for (int i = 0; i < TOKENS * HEAD_DIM; i++)
        rows[i] += 10.0f * (float)(i % HEAD_DIM);
    hr_channel_sum(rows, TOKENS, HEAD_DIM, sum);
    hr_channel_sum(rows, 333, HEAD_DIM, pieces);
    hr_channel_sum(rows + 333 * HEAD_DIM, TOKENS - 333, HEAD_DIM, pieces);
    hr_channel_mean(sum, TOKENS, HEAD_DIM, mean);
    for (int c = 0; c < HEAD_DIM; c++) {
        cr_assert_eq(sum[c], pieces[c]);
        /* Five standard deviations of the mean of 1000 unit gaussians. */
        cr_assert(fabs(mean[c] - 10.0 * c) <= 0.16, "channel %d: %g", c, (double)mean[c]);
    }
    float row[HEAD_DIM];
    for (int c = 0; c < HEAD_DIM; c++)
        row[c] = rows[c];
    hr_mean_subtract(mean, HEAD_DIM, row);
    hr_mean_add(mean, HEAD_DIM, row);
    for (int c = 0; c < HEAD_DIM; c++)
        cr_assert(fabsf(row[c] - rows[c]) <= 0x1p-23f * (fabsf(rows[c]) + fabsf(mean[c])));
}

Test(transform, mean_of_nothing_is_zero_and_huge_differences_saturate)
{
    double sum[8] = {0};
    float mean[8];
    hr_channel_mean(sum, 0, 8, mean);
    for (int c = 0; c < 8; c++)
        cr_assert_eq(mean[c], 0.0f);
    float row[8] = {FLT_MAX, -FLT_MAX}, far[8] = {-FLT_MAX, FLT_MAX};
    hr_mean_subtract(far, 8, row);
    cr_assert_eq(row[0], FLT_MAX);
    cr_assert_eq(row[1], -FLT_MAX);
}

/* A pair turned by an eighth of a circle is up to sqrt(2) times its larger channel. */
Test(transform, huge_pairs_saturate_when_rope_turns_them)
{
    const hr_rope rope = {.rotary_dim = 2, .theta = 10000};
    const float turns[2] = {0x1.6a09e6p-1f, 0x1.6a09e6p-1f};
    float row[2] = {FLT_MAX, -FLT_MAX};
    hr_rope_rotate(&rope, turns, row);
    cr_assert_eq(row[0], FLT_MAX);
    cr_assert_eq(row[1], 0.0f);
    float other[2] = {-FLT_MAX, -FLT_MAX};
    hr_rope_rotate(&rope, turns, other);
    cr_assert_eq(other[0], 0.0f);
    cr_assert_eq(other[1], -FLT_MAX);
}
