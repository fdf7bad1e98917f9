/*
 * The portable body of the integer kernels: attention_int8_portable.c and attention_int4_portable.c
 * give it their codes as int16 and it does the rest.
 */
#ifndef HEADROOM_INTEGER_BODY_H
#define HEADROOM_INTEGER_BODY_H

#include "integer_softmax.h"

enum { HR_INTEGER_PORTABLE_ROWS = 32 }; /* tile_q of the portable kernels */

/* Codes of tokens [first, first + count), less their zero points, as rows [count][head_dim]. */
typedef void (*hr_integer_expand)(const hr_kernel_operand *operand, int32_t head_dim, int64_t first,
                                  int32_t count, int16_t *rows);

/* The expansion of I8 codes: Q of both recipes, K and V of `int8`. */
void hr_integer_expand_i8(const hr_kernel_operand *operand, int32_t head_dim, int64_t first,
                          int32_t count, int16_t *rows);

/* The expansion of I4, U4 and C4 codes. */
void hr_integer_expand_nibbles(const hr_kernel_operand *operand, int32_t head_dim, int64_t first,
                               int32_t count, int16_t *rows);

void hr_integer_attention_portable(const hr_kernel_args *args, hr_integer_expand expand_k,
                                   hr_integer_expand expand_v);
size_t hr_integer_attention_portable_scratch(int32_t head_dim);

#endif
