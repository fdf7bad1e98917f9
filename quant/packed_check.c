/*
 * Checks the codes and scales of a packed operand that came from a file; see packed_check.h.
 */
#include "packed_check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "pack_layout.h"
#include "pack_scale.h"
#include "status_internal.h"

/* Index of the first code in a row that stands for no finite value, or -1. */
static int64_t find_bad_code(hr_dtype dtype, const uint8_t *row, int64_t head_dim)
{
    for (int64_t c = 0; c < head_dim; c++) {
        uint8_t nibble = (uint8_t)(row[c / 2] >> (c % 2 * 4) & 15);
        uint16_t half;
        float value;
        switch (dtype) {
        case HR_DTYPE_I8:
            if (row[c] == 128) return c;
            break;
        case HR_DTYPE_I4:
            if (nibble == 8) return c;
            break;
        case HR_DTYPE_E4M3:
            if ((row[c] & 0x7f) == 0x7f) return c;
            break;
        case HR_DTYPE_E5M2:
            if ((row[c] & 0x7c) == 0x7c) return c;
            break;
        case HR_DTYPE_F16:
            memcpy(&half, row + 2 * c, sizeof half);
            if ((half & 0x7c00) == 0x7c00) return c;
            break;
        case HR_DTYPE_BF16:
            memcpy(&half, row + 2 * c, sizeof half);
            if ((half & 0x7f80) == 0x7f80) return c;
            break;
        case HR_DTYPE_F32:
            memcpy(&value, row + 4 * c, sizeof value);
            if (!isfinite(value)) return c;
            break;
        default: /* U4 and C4 have a value for every code */
            break;
        }
    }
    return -1;
}

static hr_status check_codes(const hr_packed *packed, uint8_t *rows)
{
    hr_dtype dtype = packed->recipe.dtype;
    size_t row_bytes = hr_layout_row_bytes(dtype, packed->head_dim);
    for (int32_t head = 0; head < packed->num_heads; head++) {
        hr_layout_to_rows(packed, head, rows);
        for (int64_t t = 0; t < packed->total_tokens; t++) {
            int64_t bad = find_bad_code(dtype, rows + (size_t)t * row_bytes, packed->head_dim);
            if (bad >= 0)
                return hr_fail(HR_ERROR_FORMAT,
                               "token %lld, head %d, channel %lld has a code that %s does not use",
                               (long long)t, head, (long long)bad, hr_dtype_name(dtype));
        }
    }
    return HR_OK;
}

/* Padding is checked by laying the same codes out again. */
static hr_status check_padding(const hr_packed *packed)
{
    if (packed->layout == HR_LAYOUT_ROWS) return HR_OK;
    hr_packed rows, again = {0};
    HR_TRY(hr_packed_relayout(packed, HR_LAYOUT_ROWS, &rows));
    hr_status status = hr_packed_relayout(&rows, packed->layout, &again);
    hr_packed_free(&rows);
    if (status == HR_OK &&
        memcmp(again.codes, packed->codes, (size_t)packed->num_heads * packed->head_bytes))
        status = hr_fail(HR_ERROR_FORMAT, "padding of the %s layout is not code 0",
                         hr_layout_name(packed->layout));
    hr_packed_free(&again);
    return status;
}

static hr_status check_finite(const char *name, const float *values, int64_t count)
{
    for (int64_t i = 0; values && i < count; i++)
        if (!isfinite(values[i]))
            return hr_fail(HR_ERROR_FORMAT, "%s %lld is %g; finite values are accepted", name,
                           (long long)i, (double)values[i]);
    return HR_OK;
}

hr_status hr_packed_check(const hr_packed *packed)
{
    for (int64_t i = 0; i < packed->scale_count; i++) {
        if (!hr_scale_is_valid(packed->recipe.dtype, packed->scale[i]))
            return hr_fail(HR_ERROR_FORMAT,
                           "scale %lld is %g; finite values above 0 whose reciprocal and largest "
                           "code stay finite are accepted",
                           (long long)i, (double)packed->scale[i]);
        if (packed->zero_point && packed->zero_point[i] > 15)
            return hr_fail(HR_ERROR_FORMAT, "zero point %lld is %d; 0 to 15 are accepted",
                           (long long)i, packed->zero_point[i]);
    }
    HR_TRY(check_finite("mean", packed->mean, (int64_t)packed->num_heads * packed->head_dim));
    HR_TRY(check_finite("lse_bias", packed->lse_bias, packed->num_heads * packed->total_tokens));
    uint8_t *rows = hr_alloc((size_t)packed->total_tokens,
                             hr_layout_row_bytes(packed->recipe.dtype, packed->head_dim));
    if (!rows) return HR_ERROR_OUT_OF_MEMORY;
    hr_status status = check_codes(packed, rows);
    free(rows);
    if (status == HR_OK) status = check_padding(packed);
    return status;
}
