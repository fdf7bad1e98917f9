/*
 * Where scales lie and how dynamic ones are chosen; see pack_scale.h.
 *
 * The 4-bit formats try their absmax (U4: min/max) scale times each of a few factors: a factor
 * below 1 clips the largest values, one above 1 can move many values nearer to a level. For C4 a
 * scale made from the RMS, for which the codebook is optimal, gained nothing over these on gaussian
 * values and lost much on values with outliers; docs/int4-formats.md has the figures.
 */
#include "pack_scale.h"

#include <float.h>
#include <math.h>

#include "headroom/format.h"

enum { LANES = 8, CHUNK = 512 };

static const float scale_factors[HR_SCALE_CANDIDATES] = {1.05f, 1.0f, 0.95f, 0.9f,
                                                         0.85f, 0.8f, 0.75f, 0.7f};

/* Extremes are kept in lanes, so that the compiler may vectorize the loop. */
void hr_scale_group_observe(hr_scale_group *group, const float *values, int64_t count)
{
    float lo[LANES] = {0}, hi[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (int lane = 0; lane < LANES; lane++) {
            float value = values[i + lane];
            lo[lane] = value < lo[lane] ? value : lo[lane];
            hi[lane] = value > hi[lane] ? value : hi[lane];
        }
    }
    for (int lane = 0; i < count; i++, lane++) {
        lo[lane] = values[i] < lo[lane] ? values[i] : lo[lane];
        hi[lane] = values[i] > hi[lane] ? values[i] : hi[lane];
    }
    for (int lane = 0; lane < LANES; lane++) {
        group->lo = lo[lane] < group->lo ? lo[lane] : group->lo;
        group->hi = hi[lane] > group->hi ? hi[lane] : group->hi;
    }
}

/* The scale for a span of values and as many steps, kept where hr_scale_is_valid holds. */
static float valid_scale(hr_dtype dtype, double span, double steps)
{
    double scale = span / steps, largest = (double)FLT_MAX / hr_dtype_max(dtype);
    if (!(scale >= (double)FLT_MIN)) return FLT_MIN;
    float rounded = (float)(scale < largest ? scale : largest);
    /* Rounding up can push the largest code's value past FLT_MAX. */
    return isfinite(rounded * hr_dtype_max(dtype)) ? rounded : nextafterf(rounded, 0.0f);
}

void hr_scale_group_candidates(hr_scale_group *group, hr_dtype dtype)
{
    double absmax = group->hi > -group->lo ? group->hi : -(double)group->lo;
    double steps = hr_dtype_max(dtype), span = absmax;
    group->candidates = 0;
    if (absmax == 0.0) return;
    if (dtype == HR_DTYPE_U4) span = (double)group->hi - group->lo;
    if (hr_dtype_bits(dtype) != 4) {
        group->candidate[group->candidates++] = valid_scale(dtype, span, steps);
        return;
    }
    for (int i = 0; i < HR_SCALE_CANDIDATES; i++) {
        group->candidate[group->candidates++] = valid_scale(dtype, span * scale_factors[i], steps);
        group->error[i] = 0.0;
    }
}

/* Squared rounding errors in units of the scale, for integers in [lo, hi]. */
static void integer_errors(const float *values, int count, float inverse, float lo, float hi,
                           float *squares)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, ties to even */
    for (int i = 0; i < count; i++) {
        float y = values[i] * inverse;
        float clamped = y < lo ? lo : y;
        clamped = clamped > hi ? hi : clamped;
        float error = y - ((clamped + magic) - magic);
        squares[i] = error * error;
    }
}

static void codebook_errors(const float *values, int count, float inverse, float *squares)
{
    const int8_t *codebook = hr_codebook_c4();
    float level[8]; /* the upper half; the codebook is antisymmetric */
    for (int i = 0; i < 8; i++)
        level[i] = codebook[8 + i];
    for (int i = 0; i < count; i++) {
        float y = fabsf(values[i] * inverse);
        float best = fabsf(y - level[0]);
        for (int j = 1; j < 8; j++) {
            float distance = fabsf(y - level[j]);
            best = distance < best ? distance : best;
        }
        squares[i] = best * best;
    }
}

/* Added in lanes, for the vectorizer; the same on every machine. */
static double sum_lanes(const float *squares, int count)
{
    double lanes[LANES] = {0}, sum = 0.0;
    int i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] += squares[i + lane];
    for (int lane = 0; i < count; i++, lane++)
        lanes[lane] += squares[i];
    for (int lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    return sum;
}

void hr_scale_group_measure(hr_scale_group *group, hr_dtype dtype, const float *values,
                            int64_t count)
{
    float squares[CHUNK];
    for (int64_t start = 0; start < count; start += CHUNK) {
        int part = (int)(count - start < CHUNK ? count - start : CHUNK);
        for (int i = 0; i < group->candidates; i++) {
            float scale = group->candidate[i], inverse = 1.0f / scale;
            if (dtype == HR_DTYPE_C4) {
                codebook_errors(values + start, part, inverse, squares);
            } else {
                int zero = hr_scale_zero_point(dtype, group->lo, group->hi, scale);
                float lo = dtype == HR_DTYPE_U4 ? (float)-zero : -hr_dtype_max(dtype);
                integer_errors(values + start, part, inverse, lo, hr_dtype_max(dtype) - (float)zero,
                               squares);
            }
            group->error[i] += sum_lanes(squares, part) * ((double)scale * scale);
        }
    }
}

void hr_scale_group_merge(hr_scale_group *group, const hr_scale_group *other)
{
    group->lo = other->lo < group->lo ? other->lo : group->lo;
    group->hi = other->hi > group->hi ? other->hi : group->hi;
    for (int i = 0; i < group->candidates; i++)
        group->error[i] += other->error[i];
}

float hr_scale_group_choose(const hr_scale_group *group)
{
    if (group->candidates == 0) return 0.0f;
    int best = 0;
    for (int i = 1; i < group->candidates; i++)
        if (group->error[i] < group->error[best]) best = i;
    return group->candidate[best];
}

uint8_t hr_scale_zero_point(hr_dtype dtype, float lo, float hi, float scale)
{
    if (dtype != HR_DTYPE_U4) return 0;
    double unclipped = ((double)hi - lo) / 15.0;
    double step = scale > unclipped ? scale : unclipped;
    double zero = step > 0.0 ? rint(-(double)lo / step) : 0.0;
    return (uint8_t)(zero > 15.0 ? 15.0 : zero);
}

float hr_scale_floor(hr_dtype dtype, float largest)
{
    if (largest == 0.0f) return dtype == HR_DTYPE_C4 ? 0x1p-60f : 1.0f;
    float floor = largest * 0x1p-16f;
    return floor > FLT_MIN ? floor : FLT_MIN;
}

int hr_scale_is_valid(hr_dtype dtype, float scale)
{
    return scale > 0.0f && isfinite(scale) && isfinite(1.0f / scale) &&
           isfinite(scale * hr_dtype_max(dtype));
}

static int64_t sequence_blocks(const hr_operand_recipe *recipe, int64_t tokens)
{
    return (tokens + recipe->block - 1) / recipe->block;
}

int64_t hr_scale_count(const hr_operand_recipe *recipe, int32_t num_heads, int32_t head_dim,
                       int32_t batch, const int32_t *cu_seqlens)
{
    int64_t heads = num_heads, tokens = cu_seqlens[batch], blocks = 0;
    switch (recipe->granularity) {
    case HR_GRANULARITY_TENSOR:
        return 1;
    case HR_GRANULARITY_HEAD:
        return heads;
    case HR_GRANULARITY_TOKEN:
        return heads * tokens;
    case HR_GRANULARITY_BLOCK:
        for (int32_t b = 0; b < batch; b++)
            blocks += sequence_blocks(recipe, (int64_t)cu_seqlens[b + 1] - cu_seqlens[b]);
        return heads * blocks;
    case HR_GRANULARITY_CHANNEL:
        return heads * head_dim;
    case HR_GRANULARITY_GROUP:
        return heads * tokens * (head_dim / recipe->block);
    case HR_GRANULARITY_NONE:
    case HR_GRANULARITY_COUNT:
        break;
    }
    return 0;
}

int64_t hr_scale_offset(const hr_packed *packed, int32_t head, int32_t sequence)
{
    const hr_operand_recipe *recipe = &packed->recipe;
    if (recipe->granularity == HR_GRANULARITY_TENSOR || packed->num_heads == 0) return 0;
    int64_t offset = packed->scale_count / packed->num_heads * head;
    int64_t first = packed->cu_seqlens[sequence];
    if (recipe->granularity == HR_GRANULARITY_BLOCK) {
        for (int32_t b = 0; b < sequence; b++)
            offset +=
                sequence_blocks(recipe, (int64_t)packed->cu_seqlens[b + 1] - packed->cu_seqlens[b]);
        return offset;
    }
    return offset + hr_scale_step(packed, first);
}

int64_t hr_scale_step(const hr_packed *packed, int64_t token)
{
    switch (packed->recipe.granularity) {
    case HR_GRANULARITY_TOKEN:
        return token;
    case HR_GRANULARITY_BLOCK:
        return token / packed->recipe.block;
    case HR_GRANULARITY_GROUP:
        return token * (packed->head_dim / packed->recipe.block);
    default:
        return 0;
    }
}
