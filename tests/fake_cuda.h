/*
 * A CUDA that is not there: host memory plays the GPU's, and any call can be made to fail. Tests
 * set what a machine would answer and hand the table to hr_cuda_replace.
 */
#ifndef HEADROOM_FAKE_CUDA_H
#define HEADROOM_FAKE_CUDA_H

#include <stdlib.h>
#include <string.h>

#include "cuda/pack_sm90.h"
#include "cuda/prepare_sm90.h"
#include "cuda/reference_sm90.h"
#include "cuda/softmax_sm90.h"
#include "headroom/device.h"
#ifdef __cplusplus
extern "C" {
#endif
#include "cuda_api.h"
#ifdef __cplusplus
}
#endif

typedef struct fake_machine {
    int driver, count, capability;
    int count_error, device_error, allocate_error, memory_error, copy_error, clear_error,
        synchronize_error;
    int allocations_left; /* before allocate_error; < 0: endless */
    int live;             /* allocations not released */
    int synchronized;
    int launch_error, attention_launches, tile_scale_launches, no_keys_launches, kernel;
    hr_sm90_args args; /* of the last launch */
    int softmax_launches, normalize_launches;
    const hr_cublaslt *cublaslt; /* NULL: there is none */
} fake_machine;

static fake_machine fake;

static int fake_driver_version(int *version)
{
    *version = fake.driver;
    return 0;
}

static int fake_runtime_version(int *version)
{
    *version = 13000;
    return 0;
}

static int fake_device_count(int *count)
{
    *count = fake.count;
    return fake.count_error;
}

static int fake_device(hr_cuda_device *out)
{
    memset(out, 0, sizeof *out);
    strcpy(out->name, "NVIDIA Pretend");
    out->capability = fake.capability;
    out->multiprocessors = 132;
    return fake.device_error;
}

static int fake_memory(size_t *free_bytes, size_t *total_bytes)
{
    *free_bytes = 1234;
    *total_bytes = 5678;
    return fake.memory_error;
}

static int fake_allocate(void **out, size_t bytes)
{
    if (fake.allocate_error && fake.allocations_left-- == 0) return fake.allocate_error;
    *out = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(*out, 0xa5, bytes); /* what cudaMalloc gives is not zero */
    fake.live++;
    return 0;
}

static int fake_release(void *memory)
{
    fake.live--;
    free(memory);
    return 0;
}

static int fake_copy(void *to, const void *from, size_t bytes, void *stream)
{
    (void)stream;
    if (fake.copy_error) return fake.copy_error;
    memcpy(to, from, bytes);
    return 0;
}

static int fake_clear(void *memory, size_t bytes, void *stream)
{
    (void)stream;
    if (fake.clear_error) return fake.clear_error;
    memset(memory, 0, bytes);
    return 0;
}

static int fake_synchronize(void *stream)
{
    (void)stream;
    fake.synchronized++;
    return fake.synchronize_error;
}

static const char *fake_error_text(int error)
{
    return error == 719 ? "unspecified launch failure" : "a pretended error";
}

/* Launches are noted, and compute nothing. */
static int fake_attention(int kernel, const hr_sm90_args *args)
{
    fake.attention_launches++;
    fake.kernel = kernel;
    fake.args = *args;
    return fake.launch_error;
}

static int fake_tile_scale(const hr_sm90_tile_scale_args *args)
{
    (void)args;
    fake.tile_scale_launches++;
    return 0;
}

static int fake_no_keys(const hr_sm90_args *args)
{
    fake.no_keys_launches++;
    fake.args = *args;
    return 0;
}

static int fake_pack(const struct hr_sm90_pack_args *args)
{
    (void)args;
    return fake.launch_error;
}

static int fake_reference(const struct hr_sm90_reference_args *args)
{
    (void)args;
    return fake.launch_error;
}

static int fake_softmax(const struct hr_sm90_softmax_args *args)
{
    (void)args;
    fake.softmax_launches++;
    return fake.launch_error;
}

static int fake_normalize(const struct hr_sm90_normalize_args *args)
{
    (void)args;
    fake.normalize_launches++;
    return fake.launch_error;
}

static const hr_cublaslt *fake_find_cublaslt(const char **reason)
{
    *reason = "cuBLASLt was not found: pretended";
    return fake.cublaslt;
}

/* In the order of hr_cuda_api; tests that compute put emulated kernels in place of the last. */
static hr_cuda_api fake_api = {
    fake_driver_version, fake_runtime_version, fake_device_count,  fake_device,
    fake_memory,         fake_allocate,        fake_release,       fake_copy,
    fake_clear,          fake_synchronize,     fake_error_text,    fake_attention,
    fake_tile_scale,     fake_no_keys,         fake_pack,          fake_reference,
    fake_softmax,        fake_normalize,       fake_find_cublaslt,
};

/* A machine with one Hopper GPU on which everything works. */
static inline void fake_start(void)
{
    memset(&fake, 0, sizeof fake);
    fake.driver = 13000;
    fake.count = 1;
    fake.capability = 90;
    fake.allocations_left = -1;
    hr_cuda_replace(&fake_api);
}

#endif
