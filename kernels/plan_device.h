/*
 * Plans whose kernel runs on a GPU: one launch does the work of all tasks. What a run needs and
 * does not change (offsets, sinks, room for the tiles' scales) is put into device memory when the
 * plan is made, so that a run allocates nothing and copies nothing.
 */
#ifndef HEADROOM_PLAN_DEVICE_H
#define HEADROOM_PLAN_DEVICE_H

#include "plan.h"

/* The kernels of device rows, in the order of kernels.def. */
typedef enum hr_device_kernel {
#define HR_KERNEL(...)
#define HR_DECODE_KERNEL(...)
#define HR_DEVICE_KERNEL(recipe, ...) hr_device_kernel_##recipe,
#include "kernels.def"
#undef HR_KERNEL
    hr_device_kernel_count,
    hr_device_kernel_none = -1
} hr_device_kernel;

typedef struct hr_plan_device hr_plan_device;

/* The plan's problem, recipe and kernel are set. */
hr_status hr_plan_device_create(hr_plan *plan, void *stream) HR_NODISCARD;
void hr_plan_device_free(hr_plan_device *device);

/* The stream of its plan; NULL for NULL, a plan on the CPU. */
void *hr_plan_device_stream(const hr_plan_device *device);

/* Queues a run on the plan's stream; io has been checked. */
hr_status hr_plan_device_run(const hr_plan *plan, const hr_plan_io *io) HR_NODISCARD;

#endif
