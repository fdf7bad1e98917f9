/*
 * Step 1 of integer_softmax.h for scales in groups of channels, on AVX-512 VNNI: a token's scales
 * lie side by side, a tile's are wanted group by group.
 *
 *     [256 tokens][groups] --(transpose)--> [groups][256 tokens]     k_jg, G_jg; C_g
 *
 * Two and four groups are transposed in registers, 8 shuffles for 16 tokens and four groups; other
 * numbers of groups are gathered.
 */
#ifndef HEADROOM_GROUP_SCALES_AVX512VNNI_H
#define HEADROOM_GROUP_SCALES_AVX512VNNI_H

#include "integer_vector_avx512vnni.h"

enum { MAX_GROUPS = HR_INTEGER_MAX_HEAD_DIM / 16 };

/* K's and V's scales of a tile's groups. */
typedef struct tile_groups {
    ALIGNED float k[MAX_GROUPS][HR_INTEGER_TILE];       /* k_jg */
    ALIGNED int16_t share[MAX_GROUPS][HR_INTEGER_TILE]; /* G_jg in the order of packed logits */
    float largest[MAX_GROUPS];                          /* C_g times 32768 / 32767 */
    ALIGNED float v[MAX_GROUPS][HR_INTEGER_TILE];       /* V's scales until then */
} tile_groups;

/* The scales of 16 tokens of a run, [16][groups], to out[group][token]. */
INLINE void transpose_scales(const float *scale, int32_t groups, int32_t token,
                             float out[MAX_GROUPS][HR_INTEGER_TILE])
{
    if (groups == 2) {
        const __m512 a = _mm512_loadu_ps(scale), b = _mm512_loadu_ps(scale + 16);
        const __m512i even =
            _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        _mm512_store_ps(out[0] + token, _mm512_permutex2var_ps(a, even, b));
        _mm512_store_ps(out[1] + token, _mm512_permutex2var_ps(a, odd, b));
        return;
    }
    if (groups == 4) {
        const __m512i pair =
            _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
#pragma GCC unroll 2
        for (int g = 0; g < 4; g += 2) {
            const __m512i order = _mm512_add_epi32(pair, _mm512_set1_epi32(g));
            const __m512 low =
                _mm512_permutex2var_ps(_mm512_loadu_ps(scale), order, _mm512_loadu_ps(scale + 16));
            const __m512 high = _mm512_permutex2var_ps(_mm512_loadu_ps(scale + 32), order,
                                                       _mm512_loadu_ps(scale + 48));
            _mm512_store_ps(out[g] + token, _mm512_shuffle_f32x4(low, high, 0x44));
            _mm512_store_ps(out[g + 1] + token, _mm512_shuffle_f32x4(low, high, 0xee));
        }
        return;
    }
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i index = _mm512_mullo_epi32(lane, _mm512_set1_epi32(groups));
    for (int32_t g = 0; g < groups; g++)
        _mm512_store_ps(out[g] + token, _mm512_i32gather_ps(index, scale + g, sizeof *scale));
}

/*
 * The scales of `count` tokens from `first` on to out[group], 0 past `count`, and the largest of
 * each token to `token_scale`; returns the largest of all.
 */
static inline float gather_group_scales(const hr_kernel_operand *operand, int32_t groups,
                                        int64_t first, int32_t count,
                                        float out[MAX_GROUPS][HR_INTEGER_TILE], float *token_scale)
{
    __m512 all = _mm512_setzero_ps();
    for (int32_t j = 0; j < HR_INTEGER_TILE; j += 16) {
        ALIGNED float copy[16 * MAX_GROUPS];
        const float *scale = copy;
        const int32_t left = count - j, wanted = left < 16 ? left : 16;
        if (wanted == 16 && hr_kernel_run(operand, first + j, 16) == 16) {
            scale = hr_integer_group_scales(operand, groups, first + j);
        } else {
            memset(copy, 0, sizeof copy);
            for (int32_t i = 0; i < wanted; i++)
                memcpy(copy + i * groups, hr_integer_group_scales(operand, groups, first + j + i),
                       (size_t)groups * sizeof *copy);
        }
        transpose_scales(scale, groups, j, out);
        __m512 largest = _mm512_load_ps(out[0] + j);
        for (int32_t g = 1; g < groups; g++)
            largest = _mm512_max_ps(_mm512_load_ps(out[g] + j), largest);
        _mm512_store_ps(token_scale + j, largest);
        all = _mm512_max_ps(largest, all);
    }
    return _mm512_reduce_max_ps(all);
}

/* k_jg from K's scales, which gather_group_scales has put there. */
static inline void scale_k_groups(tile_groups *tile, int32_t groups, int32_t f)
{
    const __m512 minus_f = _mm512_set1_ps((float)-f);
    for (int32_t g = 0; g < groups; g++)
        for (int32_t j = 0; j < HR_INTEGER_TILE; j += 16)
            _mm512_store_ps(tile->k[g] + j,
                            _mm512_scalef_ps(_mm512_load_ps(tile->k[g] + j), minus_f));
}

/* G_jg and C_g from V's scales; columns have r_j. */
static inline void share_v_groups(tile_groups *tile, int32_t groups, int32_t e, int32_t count,
                                  const tile_columns *columns)
{
    const __m512 minus_e = _mm512_set1_ps((float)-e);
    for (int32_t g = 0; g < groups; g++) {
        __m512 share[HR_INTEGER_TILE / 16], all = _mm512_setzero_ps();
#pragma GCC unroll 16
        for (int32_t j = 0; j < HR_INTEGER_TILE; j += 16) {
            const int32_t left = count - j;
            const __mmask16 keys = left >= 16 ? 0xffff
                                   : left > 0 ? (__mmask16)((1 << left) - 1)
                                              : 0;
            const __m512 r =
                _mm512_load_ps(columns[j / HR_MICRO_COLUMNS].inverse + j % HR_MICRO_COLUMNS);
            const __m512 scale = _mm512_scalef_ps(_mm512_load_ps(tile->v[g] + j), minus_e);
            share[j / 16] = _mm512_maskz_max_ps(keys, _mm512_mul_ps(scale, r),
                                                _mm512_set1_ps(HR_INTEGER_MIN_SHARE));
            all = _mm512_max_ps(share[j / 16], all);
        }
        const float largest = _mm512_reduce_max_ps(all);
        const __m512 unit = _mm512_set1_ps(HR_INTEGER_SHARE_UNIT / largest);
        tile->largest[g] = largest * HR_INTEGER_SHARE_STEP;
#pragma GCC unroll 8
        for (int32_t j = 0; j < HR_INTEGER_TILE; j += 32) {
            const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(share[j / 16], unit));
            const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(share[j / 16 + 1], unit));
            _mm512_store_si512(tile->share[g] + j, _mm512_packs_epi32(low, high));
        }
    }
}

/* hr_integer_share_factor of 16 rows whose largest e_ijg are dwords; 256 / f multiplies `beta`. */
INLINE __m512i share_factors(__m512i largest, __m512 *beta)
{
    largest = _mm512_max_epi32(largest, _mm512_set1_epi32(256));
    const __m512 exact =
        _mm512_div_ps(_mm512_set1_ps(256.0f * 32640.0f), _mm512_cvtepi32_ps(largest));
    const __m512i factor = _mm512_cvttps_epi32(exact);
    *beta = _mm512_mul_ps(*beta, _mm512_div_ps(_mm512_set1_ps(256.0f), _mm512_cvtepi32_ps(factor)));
    return factor;
}

/* P of 64 keys for a group of V's scales from e_ijg in two halves, as pack_weights. */
INLINE __m512i pack_shared(__m512i low, __m512i high, __m512i factor)
{
    return _mm512_packus_epi16(_mm512_mulhrs_epi16(low, factor), _mm512_mulhrs_epi16(high, factor));
}

#endif
