/*
 * Why a kernel does or does not serve a query: used by the choice itself, by its error messages and
 * by HEADROOM_LOG.
 */
#ifndef HEADROOM_DISPATCH_H
#define HEADROOM_DISPATCH_H

#include "kernel.h"

/* What a row is checked for, in order; a kernel that fails later is closer to serving the query. */
typedef enum hr_kernel_fit {
    HR_KERNEL_LACKS_DTYPE,
    HR_KERNEL_LACKS_GRANULARITY,
    HR_KERNEL_LACKS_HEAD_DIM,
    HR_KERNEL_LACKS_SEQLEN_Q,
    HR_KERNEL_LACKS_FEATURE,
    HR_KERNEL_LACKS_LAYOUT,
    HR_KERNEL_LACKS_ISA,
    HR_KERNEL_FITS
} hr_kernel_fit;

enum { HR_KERNEL_REASON_BYTES = 256 };

/*
 * The first check the row fails. `reason` gets a clause whose subject is the kernel ("does not
 * support paged"), or "" when it fits.
 */
hr_kernel_fit hr_kernel_check(const hr_kernel_info *info, const hr_kernel_query *query,
                              uint32_t isa_mask, char reason[HR_KERNEL_REASON_BYTES]);

/* hr_kv_cache_layouts for any machine: pure, like the choice of a kernel. */
hr_status hr_kernel_cache_layouts(const hr_recipe *recipe, int32_t head_dim, uint32_t isa_mask,
                                  hr_layout *k, hr_layout *v) HR_NODISCARD;

/* The row behind an info that hr_kernel_find or hr_kernel_at returned. */
const hr_kernel *hr_kernel_of(const hr_kernel_info *info);

/*
 * If the user set HEADROOM_LOG ("stderr", or a file to append to), writes there why each row was
 * passed over and which one was chosen (NULL: none). The library's only output. HR_ERROR_IO when
 * the file cannot be written.
 */
hr_status hr_kernel_log_choice(const hr_kernel_query *query, uint32_t isa_mask,
                               const hr_kernel_info *chosen) HR_NODISCARD;

#endif
