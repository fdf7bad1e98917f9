/*
 * Rotary position embedding of contiguous rows; see rope_internal.h.
 */
#include "rope_internal.h"

#include <math.h>

#include "status_internal.h"

hr_status hr_rope_check(const hr_rope *rope, int32_t head_dim)
{
    if (rope->rotary_dim < 0 || rope->rotary_dim % 2 != 0 || rope->rotary_dim > head_dim)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "rotary_dim is %d; it must be 0 (none) or even and at most head_dim, %d",
                       rope->rotary_dim, head_dim);
    if (rope->rotary_dim && !(isfinite(rope->theta) && rope->theta > 0))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "rope theta is %g; it must be finite and greater than 0",
                       (double)rope->theta);
    return HR_OK;
}

hr_status hr_rope_check_positions(const int32_t *positions, int64_t count)
{
    if (!positions && count > 0)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "positions is NULL; rope needs the position of every token");
    for (int64_t t = 0; t < count; t++)
        if (positions[t] < 0)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "positions[%lld] is %d; positions must be at least 0", (long long)t,
                           positions[t]);
    return HR_OK;
}

bool hr_rope_equal(const hr_rope *a, const hr_rope *b)
{
    if (a->rotary_dim != b->rotary_dim) return false;
    return a->rotary_dim == 0 || (a->interleaved == b->interleaved && a->theta == b->theta);
}

void hr_rope_rates(const hr_rope *rope, double *rates)
{
    for (int32_t i = 0; i < rope->rotary_dim / 2; i++)
        rates[i] = pow((double)rope->theta, -2.0 * i / rope->rotary_dim);
}

void hr_rope_turns(const hr_rope *rope, const double *rates, int32_t position, float *turns)
{
    for (int32_t i = 0; i < rope->rotary_dim / 2; i++) {
        double angle = position * rates[i];
        turns[2 * i] = (float)cos(angle);
        turns[2 * i + 1] = (float)sin(angle);
    }
}

void hr_rope_rotate(const hr_rope *rope, const float *turns, float *row)
{
    const int32_t half = rope->rotary_dim / 2;
    const int32_t step = rope->interleaved ? 2 : 1, distance = rope->interleaved ? 1 : half;
    for (int32_t i = 0; i < half; i++) {
        double c = (double)turns[2 * i], s = (double)turns[2 * i + 1];
        double a = (double)row[i * step], b = (double)row[i * step + distance];
        /* Up to sqrt(2) times the larger of |a| and |b|. */
        row[i * step] = hr_saturate(a * c - b * s);
        row[i * step + distance] = hr_saturate(a * s + b * c);
    }
}
