/*
 * The memory of an hr_packed.
 */
#ifndef HEADROOM_PACKED_MEMORY_H
#define HEADROOM_PACKED_MEMORY_H

#include "headroom/pack.h"

/*
 * Fills the sizes (total_slots, head_bytes, scale_count) of a struct whose operand, recipe, layout,
 * batch, num_heads, head_dim and total_tokens are set, and allocates cu_seqlens (copied) and
 * slot_offset. The caller calls hr_packed_free on failure, as for the next function.
 */
hr_status hr_packed_measure(hr_packed *packed, const int32_t *cu_seqlens) HR_NODISCARD;

/* Allocates, zeroed, what a measured struct holds; lse_bias only when asked for. */
hr_status hr_packed_allocate(hr_packed *packed, bool lse_bias) HR_NODISCARD;

#endif
