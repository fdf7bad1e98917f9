/*
 * Data types and tensor views.
 *
 * A view does not own its memory. Shapes are the field's: dense [batch, seqlen, num_heads,
 * head_dim], or varlen [total, num_heads, head_dim] with cu_seqlens. Strides are in elements.
 */
#ifndef HEADROOM_TENSOR_H
#define HEADROOM_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#include "headroom/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Values are written into files as names (hr_dtype_name), never as numbers. */
typedef enum hr_dtype {
    HR_DTYPE_F64 = 0,
    HR_DTYPE_F32,
    HR_DTYPE_F16,  /* IEEE 754 binary16 */
    HR_DTYPE_BF16, /* upper half of binary32 */
    HR_DTYPE_E4M3, /* OCP FP8 E4M3FN: bias 7, largest 448, no infinity, NaN = S.1111.111 */
    HR_DTYPE_E5M2, /* OCP FP8 E5M2: bias 15, largest finite 57344, infinities and NaN */
    HR_DTYPE_I8,   /* symmetric [-127, 127] */
    HR_DTYPE_U8,   /* [0, 255] */
    HR_DTYPE_I4,   /* symmetric [-7, 7], two codes a byte, low nibble first */
    HR_DTYPE_U4,   /* asymmetric [0, 15] with a zero point, two codes a byte, low nibble first */
    HR_DTYPE_C4,   /* index into a 16-entry INT8 codebook of a gaussian, two codes a byte */
    HR_DTYPE_I16,
    HR_DTYPE_I32,
    HR_DTYPE_I64,
    HR_DTYPE_COUNT
} hr_dtype;

/* "f64", "f32", "f16", "bf16", "e4m3", "e5m2", "i8", "u8", "i4", "u4", "c4", "i16",
 * "i32", "i64". */
HR_API const char *hr_dtype_name(hr_dtype dtype);

/* The dtype of that name; HR_ERROR_NOT_FOUND lists the names accepted. */
HR_API hr_status hr_dtype_parse(const char *name, hr_dtype *out) HR_NODISCARD;

/* Bits an element takes in memory: 4 for the nibble types. */
HR_API int hr_dtype_bits(hr_dtype dtype);

/* Where memory is; headroom/device.h allocates and copies it. */
typedef enum hr_device { HR_DEVICE_CPU = 0, HR_DEVICE_CUDA, HR_DEVICE_COUNT } hr_device;

enum { HR_TENSOR_MAX_DIMS = 4 };

/*
 * A view of memory somebody else owns. For nibble types the last dimension must be even and have
 * stride 1; strides then count nibbles.
 */
typedef struct hr_tensor {
    hr_dtype dtype;
    int ndim;                           /* 0 .. HR_TENSOR_MAX_DIMS */
    int64_t shape[HR_TENSOR_MAX_DIMS];  /* >= 0 */
    int64_t stride[HR_TENSOR_MAX_DIMS]; /* in elements */
    void *data;
    hr_device device; /* where data is; calls take host memory unless they say otherwise */
} hr_tensor;

/* A contiguous (row-major) view of host memory. ndim in 0..4; shape has ndim entries, each >= 0. */
HR_API hr_tensor hr_tensor_view(hr_dtype dtype, int ndim, const int64_t *shape, void *data);

/* Number of elements; 1 for ndim 0. */
HR_API int64_t hr_tensor_size(const hr_tensor *tensor);

#ifdef __cplusplus
}
#endif

#endif
