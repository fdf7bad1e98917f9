/*
 * The AVX-512 VNNI body of the integer kernels, bit-exact with the portable one: the entries give
 * it K and V in the VNNI layouts, as packed (attention_int8_avx512vnni.c) or expanded a tile at a
 * time (attention_int4_avx512vnni.c).
 */
#ifndef HEADROOM_INTEGER_BODY_AVX512VNNI_H
#define HEADROOM_INTEGER_BODY_AVX512VNNI_H

#include "integer_softmax.h"

enum {
    HR_INTEGER_VNNI_ROWS = 96, /* tile_q: sixteen groups of six rows share what a tile costs */
    HR_INTEGER_VNNI_TILE = 64  /* keys a tile of the VNNI layouts has */
};

/* Where the four (or fewer) layout tiles of one softmax tile lie. */
typedef struct hr_integer_vnni_tile {
    const uint8_t *k; /* HR_LAYOUT_VNNI_K */
    const int8_t *v;  /* HR_LAYOUT_VNNI_V */
} hr_integer_vnni_tile;

/*
 * Gives the layout tiles of keys [first, first + 256): those with keys of the range, rounded to
 * whole layout tiles, must be there. `expanded` is the bytes of scratch that the entry asked for.
 */
typedef hr_integer_vnni_tile (*hr_integer_vnni_load)(const hr_kernel_args *args,
                                                     const hr_kernel_range *range, int32_t first,
                                                     void *expanded);

/* head_dim rounded up to whole vectors of V. */
static inline int32_t hr_integer_vnni_channels(int32_t head_dim)
{
    return (head_dim + 15) / 16 * 16;
}

/* args->scratch holds hr_integer_attention_avx512vnni_scratch bytes, then the entry's own. */
void hr_integer_attention_avx512vnni(const hr_kernel_args *args, hr_integer_vnni_load load);
size_t hr_integer_attention_avx512vnni_scratch(int32_t head_dim);

#endif
