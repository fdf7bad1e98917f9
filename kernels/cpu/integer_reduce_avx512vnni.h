/*
 * Twelve vectors, one a row, to one vector with a lane a row: sums or minima across lanes, all rows
 * at a time. A reduction of one vector after the other waits for itself; this one halves pairs,
 *
 *     quarters of 128 bits    q0 + q2, q1 + q3 of two rows     then q0 + q1 of four rows
 *     halves of a quarter     low + high of eight rows         then dword 0 + dword 1
 *
 * which adds the lanes in the order of hr_integer_sum.
 */
#ifndef HEADROOM_INTEGER_REDUCE_AVX512VNNI_H
#define HEADROOM_INTEGER_REDUCE_AVX512VNNI_H

#include "integer_vector_avx512vnni.h"

enum { HR_REDUCE_ROWS = 12 };

typedef enum reduction { ADD_FLOATS, ADD_DWORDS, MIN_WORDS } reduction;

INLINE __m512i reduce_two(__m512i a, __m512i b, reduction op)
{
    if (op == ADD_DWORDS) return _mm512_add_epi32(a, b);
    if (op == MIN_WORDS) return _mm512_min_epu16(a, b);
    return _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)));
}

/* Dword r is row r, reduced to 32 bits; the last four lanes repeat rows 8 to 11. */
INLINE __m512i reduce_rows(const __m512i v[HR_REDUCE_ROWS], reduction op)
{
    __m512i pair[6], four[3], eight[2];
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++)
        pair[i] = reduce_two(_mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0x44),
                             _mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0xee), op);
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++) /* quarter k is of row 4 i + k */
        four[i] = reduce_two(_mm512_shuffle_i32x4(pair[2 * i], pair[2 * i + 1], 0x88),
                             _mm512_shuffle_i32x4(pair[2 * i], pair[2 * i + 1], 0xdd), op);
    /* In quarter k 64 bits of rows k and 4 + k, and of row 8 + k twice. */
    eight[0] = reduce_two(_mm512_unpacklo_epi64(four[0], four[1]),
                          _mm512_unpackhi_epi64(four[0], four[1]), op);
    eight[1] = reduce_two(_mm512_unpacklo_epi64(four[2], four[2]),
                          _mm512_unpackhi_epi64(four[2], four[2]), op);
    /* Dword j of quarter k is of row 4 j + k. */
    const __m512 low = _mm512_castsi512_ps(eight[0]), high = _mm512_castsi512_ps(eight[1]);
    const __m512i all = reduce_two(_mm512_castps_si512(_mm512_shuffle_ps(low, high, 0x88)),
                                   _mm512_castps_si512(_mm512_shuffle_ps(low, high, 0xdd)), op);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, all);
}

#endif
