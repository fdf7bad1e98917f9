/*
 * Recipes `int8` and `int4` on AVX2 with AVX-VNNI: Q I8, each of K and V I8 or 4-bit, in rows;
 * products of bytes. The arithmetic is integer_softmax.h, the work is integer_tile.h.
 */
#include "integer_vec_avx2.h"

#include "integer_tile.h"
#include "kernel_rows.h"

_Static_assert((int)HR_TILE_Q(int8, avxvnni) == TASK_ROWS, "kernels.def says what a task has");

INTEGER_TILE_ENTRIES(avxvnni)
