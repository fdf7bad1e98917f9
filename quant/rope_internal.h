/*
 * Rotating rows by their position; the equation is in headroom/rope.h.
 *
 *     double rates[HR_ROPE_PAIRS];             once:            hr_rope_rates
 *     float turns[2 * HR_ROPE_PAIRS];          for a token:     hr_rope_turns
 *     row = rotated row                        for each head:   hr_rope_rotate
 */
#ifndef HEADROOM_ROPE_INTERNAL_H
#define HEADROOM_ROPE_INTERNAL_H

#include "headroom/rope.h"
#include "headroom/status.h"
#include "transform.h"

enum { HR_ROPE_PAIRS = HR_HEAD_DIM_MAX / 2 };

/* HR_ERROR_INVALID_ARGUMENT unless the fields keep the rules of headroom/rope.h. */
hr_status hr_rope_check(const hr_rope *rope, int32_t head_dim) HR_NODISCARD;

/* Each of `count` positions given and >= 0, else HR_ERROR_INVALID_ARGUMENT naming the first. */
hr_status hr_rope_check_positions(const int32_t *positions, int64_t count) HR_NODISCARD;

/* True when both rotate alike; what does not matter without a rotation is not compared. */
bool hr_rope_equal(const hr_rope *a, const hr_rope *b);

/* rates[i] = theta^(-2 i / rotary_dim), for rotary_dim / 2 pairs. */
void hr_rope_rates(const hr_rope *rope, double *rates);

/* turns[2 i] = cos, turns[2 i + 1] = sin of position * rates[i]. */
void hr_rope_turns(const hr_rope *rope, const double *rates, int32_t position, float *turns);

/* Rotates channels [0, rotary_dim) of the row in place; saturates at the largest finite float. */
void hr_rope_rotate(const hr_rope *rope, const float *turns, float *row);

#endif
