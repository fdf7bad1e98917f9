/*
 * What the library asks of CUDA, as a table of functions: the CUDA runtime's own in a build with
 * CUDA (kernels/cuda/cuda_api.c), none in a build without, fakes in tests. Everything else of the
 * library is plain C that neither includes nor links CUDA.
 *
 * Functions return a cudaError_t as int, 0 for success. Streams are cudaStream_t.
 */
#ifndef HEADROOM_CUDA_API_H
#define HEADROOM_CUDA_API_H

#include <stddef.h>

#include "cublaslt_api.h"
#include "headroom/device.h"

/* The errors that get a message of their own; checked against CUDA's where CUDA is compiled. */
enum {
    HR_CUDA_SUCCESS = 0,
    HR_CUDA_OUT_OF_MEMORY = 2,
    HR_CUDA_DRIVER_TOO_OLD = 35,
    HR_CUDA_NO_DEVICE = 100
};

enum { HR_CUDA_NAME_BYTES = 256, HR_CUDA_CAPABILITY = 90 }; /* 10 * major + minor */

struct hr_sm90_args;
struct hr_sm90_normalize_args;
struct hr_sm90_pack_args;
struct hr_sm90_reference_args;
struct hr_sm90_softmax_args;
struct hr_sm90_tile_scale_args;

typedef struct hr_cuda_device {
    char name[HR_CUDA_NAME_BYTES];
    int index, capability, multiprocessors;
} hr_cuda_device;

typedef struct hr_cuda_api {
    /* 1000 * major + 10 * minor: what the driver supports (0: none), and what this build needs. */
    int (*driver_version)(int *version);
    int (*runtime_version)(int *version);
    int (*device_count)(int *count);
    int (*device)(hr_cuda_device *out); /* the calling thread's current device */
    int (*memory)(size_t *free_bytes, size_t *total_bytes);
    int (*allocate)(void **out, size_t bytes);
    int (*release)(void *memory);
    int (*copy)(void *to, const void *from, size_t bytes, void *stream); /* any direction */
    int (*clear)(void *memory, size_t bytes, void *stream);
    int (*synchronize)(void *stream);
    const char *(*error_text)(int error);
    /* Launches; arguments as in kernels/cuda. `kernel` is an hr_device_kernel. */
    int (*attention)(int kernel, const struct hr_sm90_args *args);
    int (*tile_scale)(const struct hr_sm90_tile_scale_args *args);
    int (*no_keys)(const struct hr_sm90_args *args);
    int (*pack)(const struct hr_sm90_pack_args *args);
    int (*reference)(const struct hr_sm90_reference_args *args);
    int (*softmax)(const struct hr_sm90_softmax_args *args);
    int (*normalize)(const struct hr_sm90_normalize_args *args);
    /* cuBLASLt's functions, or NULL and the reason. */
    const hr_cublaslt *(*cublaslt)(const char **reason);
} hr_cuda_api;

/* The table in use; NULL in a build without CUDA. */
const hr_cuda_api *hr_cuda(void);

/* For tests: another table, or NULL for the build's own again. Not while other threads run. */
void hr_cuda_replace(const hr_cuda_api *api);

/* HR_OK for 0; else HR_ERROR_DEVICE, "CUDA failed to <what>: <text> (error <number>)". */
hr_status hr_cuda_status(int error, const char *what) HR_NODISCARD;

/* As hr_device_check(HR_DEVICE_CUDA), and what was found. */
hr_status hr_cuda_find(hr_cuda_device *out) HR_NODISCARD;

#endif
