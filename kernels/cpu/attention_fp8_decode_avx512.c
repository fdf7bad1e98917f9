/*
 * FP8 decode on AVX-512: K and V become FP32 by way of FP16 (e4m3_decode_avx512.h, F16C); products,
 * P and statistics are FP32. P is not rounded to E4M3.
 *
 * Scales in groups of channels would want a multiplication for each code, so with those the rows go
 * through the tiled kernel, which reads and decodes each tile of K and V once, too.
 */
#include "vec_avx512.h"

#include "float_tile.h"

#include "e4m3_decode_avx512.h"
#include "single_decode_avx512.h"

enum { CODE_BYTES = 1 };

#define PRODUCT_SCALE E4M3_SCALE
#define VALUE_SCALE E4M3_SCALE

WIDE_INLINE wide_vec wide_of(__m512i raw, int plane)
{
    return floats_of(half_of(raw, plane / 2), plane % 2);
}

WIDE_INLINE wide_vec query_of(__m512i raw, int plane)
{
    return floats_of(half_or_nan_of(raw, plane / 2), plane % 2) * E4M3_SCALE;
}

/*
 * A key's eight sums lie two side by side, in lanes 0 and 2 (keys 0 and 1) or 1 and 3 (2 and 3).
 */
WIDE_INLINE __m512 sum_keys(const wide_vec sum[4])
{
    __m512 pair[2];
    for (int i = 0; i < 2; i++) {
        const __m512 even = _mm512_shuffle_ps(sum[2 * i], sum[2 * i + 1], 0x88);
        pair[i] = _mm512_add_ps(even, _mm512_shuffle_ps(sum[2 * i], sum[2 * i + 1], 0xdd));
    }
    const __m512 low = _mm512_shuffle_f32x4(pair[0], pair[1], 0x44);
    const __m512 all = _mm512_add_ps(low, _mm512_shuffle_f32x4(pair[0], pair[1], 0xee));
    return _mm512_castpd_ps(_mm512_permutex_pd(_mm512_castps_pd(all), 0xd8));
}

#include "float_decode_avx512.h"
#include "kernel_rows.h"

enum { TILE_Q = HR_TILE_Q(fp8_decode, avx512), TILE_KV = HR_TILE_KV(fp8_decode, avx512) };

static bool has_groups(const hr_kernel_args *args)
{
    return args->q.granularity == HR_GRANULARITY_GROUP ||
           args->k.granularity == HR_GRANULARITY_GROUP ||
           args->v.granularity == HR_GRANULARITY_GROUP;
}

size_t hr_attention_fp8_decode_avx512_scratch(int32_t head_dim)
{
    const size_t tiled = float_tile_scratch(head_dim, TILE_Q, TILE_KV);
    const size_t rows = float_decode_scratch(head_dim);
    return tiled > rows ? tiled : rows;
}

void hr_attention_fp8_decode_avx512(const hr_kernel_args *args)
{
    if (has_groups(args))
        float_tile_run(args, (float_formats){.qk = HR_DTYPE_E4M3,
                                             .v = HR_DTYPE_E4M3,
                                             .p = HR_DTYPE_E4M3,
                                             .tile_q = TILE_Q,
                                             .tile_kv = TILE_KV});
    else
        float_decode_run(args);
}
