/*
 * How should the scale of a 4-bit group be chosen? Prints, as Markdown, the relative RMS error of
 * groups of random values under four choices:
 *
 *     absmax   the largest magnitude gets the largest code
 *     rms      the group's RMS is the RMS that the gaussian codebook is optimal for
 *     search   the best of absmax times 1.05, 1, .95, ... .7 (what packing does)
 *     dense    the best of absmax times 1.2, 1.19, ... .3: what a longer search could reach
 *
 * docs/int4-formats.md has its output.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "headroom/format.h"

enum { GROUP_MAX = 128, GROUPS = 2000 };

/* The outermost of 16 Lloyd-Max levels of N(0,1) (Max 1960, table I). */
static const double outermost_level = 2.7326;

static double uniform(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15); /* SplitMix64 */
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return ((double)((z ^ (z >> 31)) >> 11) + 1.0) * 0x1p-53;
}

static float gaussian(uint64_t *state)
{
    double radius = sqrt(-2.0 * log(uniform(state)));
    return (float)(radius * cos(6.283185307179586 * uniform(state)));
}

static float laplace(uint64_t *state)
{
    return (float)(uniform(state) < 0.5 ? log(uniform(state)) : -log(uniform(state)));
}

/* N(0,1) with one value in 32 from N(0,36). */
static float with_outliers(uint64_t *state)
{
    float value = gaussian(state);
    return uniform(state) < 1.0 / 32 ? 6.0f * value : value;
}

/* Sum of squared errors of a group under a scale. */
static double squared_error(hr_dtype dtype, const float *values, int count, double scale)
{
    uint8_t codes[GROUP_MAX / 2];
    float decoded[GROUP_MAX];
    if (hr_encode(dtype, values, count, (float)scale, 0, codes) != HR_OK ||
        hr_decode(dtype, codes, count, (float)scale, 0, decoded) != HR_OK) {
        fprintf(stderr, "int4_scales: %s\n", hr_last_error());
        exit(1);
    }
    double sum = 0.0;
    for (int i = 0; i < count; i++)
        sum += ((double)decoded[i] - values[i]) * ((double)decoded[i] - values[i]);
    return sum;
}

static double best_error(hr_dtype dtype, const float *values, int count, double scale, double high,
                         double low, double step)
{
    double best = INFINITY;
    for (double factor = high; factor > low - step / 2; factor -= step)
        best = fmin(best, squared_error(dtype, values, count, scale * factor));
    return best;
}

static void print_row(const char *name, float (*draw)(uint64_t *), hr_dtype dtype, int count)
{
    uint64_t state = 1;
    double errors[4] = {0}, total = 0.0;
    for (int group = 0; group < GROUPS; group++) {
        float values[GROUP_MAX];
        double absmax = 0.0, squares = 0.0;
        for (int i = 0; i < count; i++) {
            values[i] = draw(&state);
            absmax = fmax(absmax, fabsf(values[i]));
            squares += (double)values[i] * values[i];
        }
        double scale = absmax / hr_dtype_max(dtype);
        double rms_scale = sqrt(squares / count) * outermost_level / hr_dtype_max(dtype);
        errors[0] += squared_error(dtype, values, count, scale);
        errors[1] += squared_error(dtype, values, count, rms_scale);
        errors[2] += best_error(dtype, values, count, scale, 1.05, 0.7, 0.05);
        errors[3] += best_error(dtype, values, count, scale, 1.2, 0.3, 0.01);
        total += squares;
    }
    printf("| %s | %s | %d | %.4f | %.4f | %.4f | %.4f |\n", name, hr_dtype_name(dtype), count,
           sqrt(errors[0] / total), sqrt(errors[1] / total), sqrt(errors[2] / total),
           sqrt(errors[3] / total));
}

int main(void)
{
    static const hr_dtype dtypes[] = {HR_DTYPE_I4, HR_DTYPE_C4};
    static const struct {
        const char *name;
        float (*draw)(uint64_t *);
    } sources[] = {{"gaussian", gaussian}, {"laplace", laplace}, {"outliers", with_outliers}};
    printf("| values | format | group | absmax | rms | search | dense |\n");
    printf("|---|---|---|---|---|---|---|\n");
    for (int s = 0; s < 3; s++)
        for (int d = 0; d < 2; d++)
            for (int count = 32; count <= GROUP_MAX; count *= 2)
                print_row(sources[s].name, sources[s].draw, dtypes[d], count);
    return 0;
}
