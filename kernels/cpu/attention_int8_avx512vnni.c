/*
 * Recipe `int8` on AVX-512 VNNI: Q I8 in rows, K and V packed for vpdpbusd, so a tile is a pointer
 * into the packed operand. The arithmetic is integer_softmax.h, the work is
 * integer_body_avx512vnni.c.
 */
#include "integer_body_avx512vnni.h"
#include "kernel_rows.h"

static hr_integer_vnni_tile load_packed(const hr_kernel_args *args, const hr_kernel_range *range,
                                        int32_t first, void *expanded)
{
    (void)range;
    (void)expanded;
    hr_integer_vnni_tile tile = {
        .k = (const uint8_t *)args->k.codes + (int64_t)first * args->head_dim,
        .v = (const int8_t *)args->v.codes +
             (int64_t)first * hr_integer_vnni_channels(args->head_dim),
    };
    return tile;
}

#define DEFINE_ENTRY(recipe)                                                                       \
    void hr_attention_##recipe##_avx512vnni(const hr_kernel_args *args)                            \
    {                                                                                              \
        hr_integer_attention_avx512vnni(args, load_packed);                                        \
    }                                                                                              \
    size_t hr_attention_##recipe##_avx512vnni_scratch(int32_t head_dim)                            \
    {                                                                                              \
        return hr_integer_attention_avx512vnni_scratch(head_dim);                                  \
    }

/* One row of kernels.def a format of P; hr_kernel_args.p_dtype tells the body which it is. */
DEFINE_ENTRY(int8)
DEFINE_ENTRY(int8_p16)
