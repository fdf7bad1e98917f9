/*
 * Rows of K and V whose scales are in groups of channels as two tiles each, the high and the low
 * bytes of codes of 16 bits (integer_softmax.h, step 1; hr_integer_vnni_tile).
 */
#ifndef HEADROOM_INTEGER_EXPAND_GROUPS_AVX512VNNI_H
#define HEADROOM_INTEGER_EXPAND_GROUPS_AVX512VNNI_H

#include "integer_expand_rows_avx512vnni.h"

/* Tokens [token, end) of K, in whole layout tiles. Rows have their channels in order. */
void hr_integer_expand_k_groups(const code_rows *rows, int32_t token, int32_t end, uint8_t *high,
                                uint8_t *low);

/* Those of V. */
void hr_integer_expand_v_groups(const code_rows *rows, int32_t token, int32_t end, int8_t *high,
                                int8_t *low);

#endif
