/*
 * Decode with recipes `int8` and `int4` on AVX2 with AVX-VNNI: products of bytes.
 * Q I8, each of K and V I8 or 4-bit, in rows; up to 16 queries of each head. The arithmetic is
 * integer_softmax.h, bit for bit; the work is integer_decode_tile.h.
 */
#include "integer_decode_vec_avx2.h"

#include "integer_decode_tile.h"
#include "kernel_rows.h"

_Static_assert((int)HR_TILE_Q(int8_decode, avxvnni) == DECODE_ROWS, "kernels.def says the rows");

INTEGER_DECODE_ENTRIES(avxvnni)
