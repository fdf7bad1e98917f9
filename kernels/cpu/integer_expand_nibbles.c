/*
 * Rows of nibbles (I4, U4 or C4, two codes a byte, low nibble first) as int16 codes, through the 16
 * levels of their format.
 */
#include "integer_body.h"
#include "integer_nibbles.h"

/* The index of the zero point of channel 0 of a token. */
static int64_t zero_index(const hr_kernel_operand *operand, int32_t groups, int64_t token)
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

void hr_integer_expand_nibbles(const hr_kernel_operand *operand, int32_t head_dim, int64_t first,
                               int32_t count, int16_t *rows)
{
    const bool grouped = operand->granularity == HR_GRANULARITY_GROUP;
    const int32_t width = grouped ? operand->block : head_dim, groups = head_dim / width;
    int8_t levels[16];
    int16_t pairs[256][2]; /* what the two nibbles of a byte stand for */
    hr_nibble_levels(operand->dtype, 0, levels);
    for (int byte = 0; byte < 256; byte++) {
        pairs[byte][0] = levels[byte & 15];
        pairs[byte][1] = levels[byte >> 4];
    }
    for (int64_t token = first; token < first + count; token++) {
        const int64_t slot = hr_kernel_slot(operand, token);
        const uint8_t *codes = (const uint8_t *)operand->codes + slot * head_dim / 2;
        const int64_t index = zero_index(operand, groups, token);
        int16_t *row = rows + (token - first) * head_dim;
        for (int32_t b = 0; b < head_dim / 2; b++)
            memcpy(row + 2 * b, pairs[codes[b]], sizeof pairs[0]);
        for (int32_t g = 0; g < groups && operand->dtype == HR_DTYPE_U4; g++)
            for (int32_t c = g * width; c < (g + 1) * width; c++)
                row[c] = (int16_t)(row[c] - operand->zero_point[index + g]);
    }
}
