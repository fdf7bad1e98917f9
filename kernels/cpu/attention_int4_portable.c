/*
 * Recipe `int4` in plain C: Q is I8, K and V are I4, U4 or C4 in rows, two codes a byte, low nibble
 * first. Nibbles become int16 codes a tile at a time, through the 16 levels of their format; the
 * rest is the arithmetic of integer_softmax.h, in integer_body.c.
 */
#include "integer_body.h"
#include "integer_nibbles.h"
#include "kernel_rows.h"

/* The index of the scale, and of the zero point, of channel 0 of a token. */
static int64_t scale_index(const hr_kernel_operand *operand, int32_t groups, int64_t token)
{
    switch (operand->granularity) {
    case HR_GRANULARITY_TOKEN:
        return hr_kernel_slot(operand, token);
    case HR_GRANULARITY_BLOCK:
        return token / operand->block;
    case HR_GRANULARITY_GROUP:
        return hr_kernel_slot(operand, token) * groups;
    default:
        return 0;
    }
}

static void expand_nibbles(const hr_kernel_operand *operand, int32_t head_dim, int64_t first,
                           int32_t count, int16_t *rows)
{
    const bool grouped = operand->granularity == HR_GRANULARITY_GROUP;
    const int32_t width = grouped ? operand->block : head_dim, groups = head_dim / width;
    const int fraction = hr_integer_fraction(operand);
    int8_t levels[16];
    hr_nibble_levels(operand->dtype, 0, levels);
    for (int64_t token = first; token < first + count; token++) {
        const int64_t slot = hr_kernel_slot(operand, token);
        const uint8_t *codes = (const uint8_t *)operand->codes + slot * head_dim / 2;
        const int64_t index = scale_index(operand, groups, token);
        const float token_scale = hr_integer_token_scale(operand, head_dim, token);
        int16_t *row = rows + (token - first) * head_dim;
        for (int32_t c = 0; c < head_dim; c++) {
            int32_t group = c / width;
            int32_t code = levels[codes[c / 2] >> (c % 2 * 4) & 15];
            if (operand->dtype == HR_DTYPE_U4) code -= operand->zero_point[index + group];
            row[c] = grouped ? hr_integer_group_code(code, operand->scale[index + group],
                                                     token_scale, fraction)
                             : (int16_t)code;
        }
    }
}

#define DEFINE_ENTRY(recipe)                                                                       \
    void hr_attention_##recipe##_portable(const hr_kernel_args *args)                              \
    {                                                                                              \
        hr_integer_attention_portable(args, expand_nibbles, expand_nibbles);                       \
    }                                                                                              \
    size_t hr_attention_##recipe##_portable_scratch(int32_t head_dim)                              \
    {                                                                                              \
        return hr_integer_attention_portable_scratch(head_dim);                                    \
    }

/* One row of kernels.def a format; hr_kernel_operand.dtype tells the code which it is. */
DEFINE_ENTRY(int4)
DEFINE_ENTRY(int4_uniform)
DEFINE_ENTRY(int4_asymmetric)

/* K in I8, V in 4 bits. */
void hr_attention_int8_int4_portable(const hr_kernel_args *args)
{
    hr_integer_attention_portable(args, hr_integer_expand_i8, expand_nibbles);
}

size_t hr_attention_int8_int4_portable_scratch(int32_t head_dim)
{
    return hr_integer_attention_portable_scratch(head_dim);
}
