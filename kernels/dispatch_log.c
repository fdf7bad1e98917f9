/*
 * HEADROOM_LOG: explains the choice of a kernel. The library prints nothing of its own accord; this
 * is the one exception, and the user opts in by naming where to write.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"
#include "status_internal.h"

static void write_choice(FILE *file, const hr_kernel_query *query, uint32_t isa_mask,
                         const hr_kernel_info *chosen)
{
    fprintf(file, "headroom: recipe %s, head_dim %d, features", query->recipe.name,
            query->head_dim);
    for (uint32_t bit = 0; bit < HR_FEATURE_COUNT; bit++)
        if (query->features >> bit & 1) fprintf(file, " %s", hr_feature_name(1u << bit));
    fprintf(file, "%s\n", query->features ? "" : " none");

    for (int i = 0; i < hr_kernels_count && &hr_kernels[i].info != chosen; i++) {
        char reason[HR_KERNEL_REASON_BYTES];
        const hr_kernel_info *info = &hr_kernels[i].info;
        hr_kernel_fit fit = hr_kernel_check(info, query, isa_mask, reason);
        if (fit == HR_KERNEL_LACKS_DTYPE) continue; /* another recipe's row says nothing */
        if (fit == HR_KERNEL_FITS) snprintf(reason, sizeof reason, "is not the one asked for");
        fprintf(file, "headroom:   %s %s\n", info->name, reason);
    }
    fprintf(file, "headroom:   chose %s\n", chosen ? chosen->name : "none");
}

hr_status hr_kernel_log_choice(const hr_kernel_query *query, uint32_t isa_mask,
                               const hr_kernel_info *chosen)
{
    const char *target = getenv("HEADROOM_LOG");
    if (!target || !*target) return HR_OK;
    if (strcmp(target, "stderr") == 0) {
        write_choice(stderr, query, isa_mask, chosen);
        return HR_OK;
    }
    FILE *file = fopen(target, "a");
    if (!file)
        return hr_fail(HR_ERROR_IO, "environment variable HEADROOM_LOG: cannot open %s: %s", target,
                       strerror(errno));
    write_choice(file, query, isa_mask, chosen);
    int failed = ferror(file);
    if (fclose(file) != 0 || failed)
        return hr_fail(HR_ERROR_IO, "environment variable HEADROOM_LOG: cannot write %s", target);
    return HR_OK;
}
