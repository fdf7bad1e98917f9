/*
 * Scales of packed operands: how many there are, where they lie, and how dynamic ones are chosen.
 *
 * A scale group is the set of elements that share a scale. Statistics and candidate errors add up
 * over parts of a group, so that a group may be met in pieces (a tensor head by head, a channel
 * tile by tile):
 *
 *     hr_scale_group group = {0};
 *     hr_scale_group_observe(&group, part, n);        for every part
 *     hr_scale_group_candidates(&group, dtype);
 *     if (group.candidates > 1)
 *         hr_scale_group_measure(&group, dtype, part, n);     for every part again
 *     scale = hr_scale_group_choose(&group);
 *
 * FP8 and INT8 have one candidate: the scale that maps the largest magnitude to the largest code.
 * The 4-bit formats try several, because clipping the few largest values is worth finer steps for
 * the rest; the one with the least squared error wins.
 */
#ifndef HEADROOM_PACK_SCALE_H
#define HEADROOM_PACK_SCALE_H

#include "headroom/pack.h"

enum { HR_SCALE_CANDIDATES = 8 };

typedef struct hr_scale_group {
    float lo, hi; /* least and greatest value, zero included */
    int candidates;
    float candidate[HR_SCALE_CANDIDATES];
    double error[HR_SCALE_CANDIDATES]; /* sum of squared errors under each candidate */
} hr_scale_group;

void hr_scale_group_observe(hr_scale_group *group, const float *values, int64_t count);
void hr_scale_group_candidates(hr_scale_group *group, hr_dtype dtype);
void hr_scale_group_measure(hr_scale_group *group, hr_dtype dtype, const float *values,
                            int64_t count);

/* Adds what `other` observed, or, when both have the same candidates, measured. */
void hr_scale_group_merge(hr_scale_group *group, const hr_scale_group *other);

/* The best scale, 0 when every value was zero; else finite and with a finite reciprocal. */
float hr_scale_group_choose(const hr_scale_group *group);

/*
 * The zero point of a U4 group with that range; 0 for other formats. `scale` may be smaller than
 * (hi - lo) / 15, when the range is clipped, or larger, when a floor raised it.
 */
uint8_t hr_scale_zero_point(hr_dtype dtype, float lo, float hi, float scale);

/*
 * A group far smaller than the largest of its head, or all zeros, takes largest * 2^-16: kernels
 * put log2(v_scale) in the exponent of the softmax, where a scale of 0 would be -inf and a tiny one
 * would waste its range. Such a group's values are below half a step of the floor, or lose at most
 * half of it. A head (or tensor) that is entirely zero takes 1, which is harmless: its codes stand
 * for 0. C4 has no level 0, so that such a head takes 2^-60 and is +6 * 2^-60 throughout.
 */
float hr_scale_floor(hr_dtype dtype, float largest);

/* True when scale, 1 / scale and scale * largest code are finite and scale > 0. */
int hr_scale_is_valid(hr_dtype dtype, float scale);

/* Elements of hr_packed.scale for these shapes; 0 for GRANULARITY_NONE. */
int64_t hr_scale_count(const hr_operand_recipe *recipe, int32_t num_heads, int32_t head_dim,
                       int32_t batch, const int32_t *cu_seqlens);

/*
 * Index in hr_packed.scale of the first scale of `head` and `sequence`. The scales of the
 * sequence's token i follow it at i (TOKEN), i / block (BLOCK), i * head_dim / block (GROUP) or 0.
 */
int64_t hr_scale_offset(const hr_packed *packed, int32_t head, int32_t sequence);

/* That offset of token i within its sequence. */
int64_t hr_scale_step(const hr_packed *packed, int64_t token);

#endif
