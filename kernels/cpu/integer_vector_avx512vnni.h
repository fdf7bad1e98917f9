/*
 * The functions of integer_softmax.h on vectors of 16, bit for bit the same.
 */
#ifndef HEADROOM_INTEGER_VECTOR_AVX512VNNI_H
#define HEADROOM_INTEGER_VECTOR_AVX512VNNI_H

#include <immintrin.h>

#include "integer_softmax.h"

#define INLINE static inline __attribute__((always_inline))

/*
 * z[] = scale * 2^max(z[], -100) for n vectors side by side: one vector is a chain of nine
 * dependent operations, and eight of them fill both ports while each waits for its own.
 */
INLINE void exp2_of(__m512 z[], int n, const float coefficient[5])
{
    __m512 f[8], p[8];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        z[i] = _mm512_max_ps(z[i], _mm512_set1_ps(HR_INTEGER_MIN_LOG2));
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        f[i] = _mm512_reduce_ps(z[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        p[i] =
            _mm512_fmadd_ps(f[i], _mm512_set1_ps(coefficient[4]), _mm512_set1_ps(coefficient[3]));
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        z[i] = _mm512_sub_ps(z[i], f[i]);
#pragma GCC unroll 3
    for (int c = 2; c >= 0; c--)
#pragma GCC unroll 8
        for (int i = 0; i < n; i++)
            p[i] = _mm512_fmadd_ps(p[i], f[i], _mm512_set1_ps(coefficient[c]));
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        z[i] = _mm512_scalef_ps(p[i], z[i]);
}

static const float exp2_1[5] = {1.0f, HR_EXP2_C1, HR_EXP2_C2, HR_EXP2_C3, HR_EXP2_C4};
static const float exp2_255[5] = {255.0f, HR_EXP2_255_C1, HR_EXP2_255_C2, HR_EXP2_255_C3,
                                  HR_EXP2_255_C4};

INLINE __m512 log2_of(__m512 w)
{
    __m512 u = _mm512_sub_ps(_mm512_getmant_ps(w, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero),
                             _mm512_set1_ps(1.0f));
    __m512 p = _mm512_fmadd_ps(u, _mm512_set1_ps(HR_LOG2_D6), _mm512_set1_ps(HR_LOG2_D5));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(HR_LOG2_D4));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(HR_LOG2_D3));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(HR_LOG2_D2));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(HR_LOG2_D1));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(HR_LOG2_D0));
    return _mm512_fmadd_ps(p, u, _mm512_getexp_ps(w));
}

INLINE __m512 round22(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 2), one);
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, one));
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(~3)));
}

#endif
