/*
 * Memory and streams of the devices that kernels run on: the host's processors, and one NVIDIA GPU
 * of compute capability 9.0 (Hopper).
 *
 * A tensor and a packed operand say where their memory is (hr_tensor.device, hr_packed.device); a
 * plan says where it runs (hr_plan_options.device) and takes operands and outputs of that device
 * only: HR_ERROR_MISMATCH names the one that is elsewhere. Nothing is copied behind the caller's
 * back. The GPU is CUDA's current device of the calling thread. Streams are cudaStream_t as void *;
 * NULL is CUDA's default stream.
 *
 *     hr_plan_options options = {.device = HR_DEVICE_CUDA, .stream = stream};
 *     hr_plan_create(&problem, &recipe, &options, &plan);
 *     hr_pack_layer(..., &host);                                   codes on the host
 *     hr_packed_layer_copy(&host, HR_DEVICE_CUDA, &operands);      codes on the GPU
 *     hr_plan_run(plan, &operands, &o, &lse);                      queued on the stream
 *     hr_device_synchronize(HR_DEVICE_CUDA, stream);
 */
#ifndef HEADROOM_DEVICE_H
#define HEADROOM_DEVICE_H

#include "headroom/pack.h"

#ifdef __cplusplus
extern "C" {
#endif

/* "cpu", "cuda". */
HR_API const char *hr_device_name(hr_device device);

/* The device of that name; HR_ERROR_NOT_FOUND lists the names accepted. */
HR_API hr_status hr_device_parse(const char *name, hr_device *out) HR_NODISCARD;

/*
 * HR_OK when kernels can run there: always for the CPU. For CUDA HR_ERROR_DEVICE otherwise, and the
 * message tells the cases apart and says what would be accepted: a build without CUDA, no driver, a
 * driver that is too old, no GPU, a GPU of another architecture.
 */
HR_API hr_status hr_device_check(hr_device device) HR_NODISCARD;

/* "NVIDIA H100 80GB HBM3 (compute capability 9.0, 132 multiprocessors)", cut to size bytes. */
HR_API hr_status hr_device_describe(hr_device device, char *text, size_t size) HR_NODISCARD;

/*
 * count * size bytes, zeroed, aligned to at least 64 bytes (CUDA: 256). HR_ERROR_OUT_OF_MEMORY
 * says how much was wanted and, on a GPU, how much is free. Release with hr_device_free, on the
 * same device; NULL is fine.
 */
HR_API hr_status hr_device_alloc(hr_device device, size_t count, size_t size,
                                 void **out) HR_NODISCARD;
HR_API void hr_device_free(hr_device device, void *memory);

/*
 * Copies bytes between devices, in either direction or within one. With CUDA on either side the
 * copy waits for what the stream has queued before it, and has been made when the call returns.
 */
HR_API hr_status hr_device_copy(hr_device to, void *destination, hr_device from, const void *source,
                                size_t bytes, void *stream) HR_NODISCARD;

/* Waits until all that is queued on the stream is done; a kernel's failure is reported here. */
HR_API hr_status hr_device_synchronize(hr_device device, void *stream) HR_NODISCARD;

/*
 * The same operand in the memory of `device`: codes, scales, means and biases are copied, and
 * cu_seqlens and slot_offset stay in host memory on every device. Release with hr_packed_free (or
 * hr_packed_layer_free), which frees on the right device.
 */
HR_API hr_status hr_packed_copy(const hr_packed *packed, hr_device device,
                                hr_packed *out) HR_NODISCARD;
HR_API hr_status hr_packed_layer_copy(const hr_packed_layer *layer, hr_device device,
                                      hr_packed_layer *out) HR_NODISCARD;

#ifdef __cplusplus
}
#endif

#endif
