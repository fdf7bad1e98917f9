/*
 * Rows or blocks of K and V, in pages or not, as the tiles that the AVX-512 VNNI body reads.
 */
#ifndef HEADROOM_INTEGER_EXPAND_AVX512VNNI_H
#define HEADROOM_INTEGER_EXPAND_AVX512VNNI_H

#include "integer_body_avx512vnni.h"

/*
 * A hr_integer_vnni_load for K and V in ROWS layout, each I8, I4, U4 or C4; scales per token,
 * group, block, head or tensor. `expanded` is what the scratch below leaves after the body's.
 */
hr_integer_vnni_tile hr_integer_expand_avx512vnni(const hr_kernel_args *args,
                                                  const hr_kernel_range *range, int32_t first,
                                                  void *expanded);

/* The same for K in HR_LAYOUT_BLOCKS_K and V in HR_LAYOUT_BLOCKS_V. */
hr_integer_vnni_tile hr_integer_expand_blocks_avx512vnni(const hr_kernel_args *args,
                                                         const hr_kernel_range *range,
                                                         int32_t first, void *expanded);

/* All the scratch an entry with either loader needs: the body's and the expanded tiles. */
size_t hr_integer_expand_avx512vnni_scratch(int32_t head_dim);

#endif
