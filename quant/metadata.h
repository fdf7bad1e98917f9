/*
 * Numbers in metadata and option texts: a decimal point in every locale, which printf and strtod of
 * a program that called setlocale do not give, and the softmax_scale that recordings, profiles and
 * packed files all carry.
 */
#ifndef HEADROOM_METADATA_H
#define HEADROOM_METADATA_H

#include <stdbool.h>

#include "headroom/safetensors.h"

enum { HR_NUMBER_BYTES = 32 };

/*
 * A JSON number; false for anything else (nan, hexadecimal, text after it, NULL), and with errno
 * ENOMEM where memory ran out.
 */
bool hr_number_parse(const char *text, double *out);

/* As printf("%.<digits>g") in the C locale; value is finite, digits in 1 .. 17. */
hr_status hr_number_print(double value, int digits, char out[HR_NUMBER_BYTES]) HR_NODISCARD;

/* metadata headroom.softmax_scale, finite and > 0; HR_ERROR_FORMAT quotes what is there instead. */
hr_status hr_metadata_softmax_scale(const hr_safetensors *file, float *out) HR_NODISCARD;

/* The text that reads back as the same float. */
hr_status hr_metadata_set_softmax_scale(hr_safetensors_writer *writer, float scale) HR_NODISCARD;

#endif
