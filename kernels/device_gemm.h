/*
 * FP8 matrix products on a GPU, through cuBLASLt:
 *
 *     D [n, m] = alpha * a_scale * b_scale * B [n, k] A [m, k]^T        E4M3 in, FP32 out
 *
 * All row-major, so both operands have k contiguous. To cuBLASLt, whose matrices are column-major,
 * that is D (m x n) = A^T B with A (k x m) transposed and B (k x n) not: "TN", the one format its
 * FP8 kernels take on Hopper. They also want m, k and pitches in multiples of 16, pointers of 16
 * bytes, and promote their accumulators to FP32 as they go unless told not to, which they are not.
 * The scales are single floats in device memory, one of a whole operand.
 */
#ifndef HEADROOM_DEVICE_GEMM_H
#define HEADROOM_DEVICE_GEMM_H

#include "cublaslt_api.h"
#include "headroom/status.h"

enum { HR_GEMM_ALIGN = 16 };

typedef struct hr_gemm {
    const hr_cublaslt *api;
    void *handle, *desc;
    void *workspace; /* device memory */
} hr_gemm;

/* One shape, and the algorithm chosen for it. */
typedef struct hr_gemm_shape {
    void *a, *b, *d; /* layouts */
    hr_cublaslt_choice choice;
} hr_gemm_shape;

/*
 * HR_ERROR_NOT_FOUND with the reason when there is no cuBLASLt on this machine, HR_ERROR_DEVICE
 * when it fails. Release with hr_gemm_close, after an error too; zeroed is fine.
 */
hr_status hr_gemm_open(hr_gemm *gemm) HR_NODISCARD;
void hr_gemm_close(hr_gemm *gemm);

/*
 * d_pitch in elements; the operands' pitch is k. HR_ERROR_UNSUPPORTED when cuBLASLt has no
 * algorithm. Release with hr_gemm_shape_free, after an error too.
 */
hr_status hr_gemm_shape_create(const hr_gemm *gemm, int64_t m, int64_t n, int64_t k,
                               int64_t d_pitch, hr_gemm_shape *out) HR_NODISCARD;
void hr_gemm_shape_free(const hr_gemm *gemm, hr_gemm_shape *shape);

typedef struct hr_gemm_operand {
    const void *codes;
    const float *scale;
} hr_gemm_operand;

/* Queues a product on the stream. Not from two threads at once: the scales are the handle's. */
hr_status hr_gemm_run(const hr_gemm *gemm, const hr_gemm_shape *shape, float alpha,
                      hr_gemm_operand a, hr_gemm_operand b, float *d, void *stream) HR_NODISCARD;

#endif
