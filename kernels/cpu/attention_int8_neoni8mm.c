/*
 * Recipes `int8` and `int4` on NEON with the 8-bit matrix instructions: Q I8, each of K and V I8 or
 * 4-bit, in rows. The arithmetic is integer_softmax.h, the work is integer_tile.h.
 */
#include "integer_vec_neon.h"

#include "integer_tile.h"
#include "kernel_rows.h"

_Static_assert((int)HR_TILE_Q(int8, neoni8mm) == TASK_ROWS, "kernels.def says what a task has");

INTEGER_TILE_ENTRIES(neoni8mm)
