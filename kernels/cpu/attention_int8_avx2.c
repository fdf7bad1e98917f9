/*
 * Recipes `int8` and `int4` on AVX2: Q I8, each of K and V I8 or 4-bit, in rows; products of 16-bit
 * codes, so scales of K and V may also be per group of channels. The arithmetic is
 * integer_softmax.h, the work is integer_tile.h.
 */
#include "integer_vec_avx2.h"

#include "integer_tile.h"
#include "kernel_rows.h"

_Static_assert((int)HR_TILE_Q(int8, avx2) == TASK_ROWS, "kernels.def says what a task has");

INTEGER_TILE_ENTRIES(avx2)
