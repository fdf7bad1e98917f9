/*
 * Building a choice; choice.c does it from an audit, choice_read.c from a file.
 */
#ifndef HEADROOM_CHOICE_INTERNAL_H
#define HEADROOM_CHOICE_INTERNAL_H

#include "headroom/choice.h"

enum { HR_CHOICE_VERSION = 1 };

/* A choice with room for configs and layers, zeroed but for the copied model. */
hr_status hr_choice_allocate(const char *model, int32_t configs, int32_t layers,
                             hr_choice **out) HR_NODISCARD;

/* The arrays of a layer whose num_kv_heads is set. */
hr_status hr_choice_allocate_heads(hr_choice_layer *layer) HR_NODISCARD;

#endif
