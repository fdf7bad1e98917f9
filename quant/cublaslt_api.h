/*
 * What the library asks of cuBLASLt, as a table of its functions. The library is looked for when
 * it is first needed (kernels/cuda/cublaslt.c), so neither building nor running Headroom takes it;
 * tests put fakes in the table. Descriptors are cuBLASLt's opaque pointers, results are
 * cublasStatus_t as int, 0 for success. Names and parameters are those of "cuBLAS Library, User
 * Guide", chapter "Using the cuBLASLt API".
 */
#ifndef HEADROOM_CUBLASLT_API_H
#define HEADROOM_CUBLASLT_API_H

#include <stddef.h>
#include <stdint.h>

/* cuBLASLt's numbers, checked against its header where that is found. */
enum {
    HR_CUBLASLT_OUT_OF_MEMORY = 3, /* CUBLAS_STATUS_ALLOC_FAILED */
    HR_CUBLASLT_UNSUPPORTED = 15,  /* CUBLAS_STATUS_NOT_SUPPORTED */
    HR_CUBLASLT_F32 = 0,
    HR_CUBLASLT_E4M3 = 28,        /* cudaDataType */
    HR_CUBLASLT_COMPUTE_32F = 68, /* cublasComputeType_t */
    HR_CUBLASLT_OP_N = 0,
    HR_CUBLASLT_OP_T = 1, /* cublasOperation_t */
    HR_CUBLASLT_DESC_TRANSA = 3,
    HR_CUBLASLT_DESC_TRANSB = 4, /* CUBLASLT_MATMUL_DESC_... */
    HR_CUBLASLT_DESC_A_SCALE = 17,
    HR_CUBLASLT_DESC_B_SCALE = 18,
    HR_CUBLASLT_PREF_WORKSPACE = 1,   /* CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES */
    HR_CUBLASLT_PREF_ALIGNMENT_A = 5, /* ..._MIN_ALIGNMENT_A_BYTES, then B, C, D */
};

typedef struct hr_cublaslt_algorithm { /* cublasLtMatmulAlgo_t */
    uint64_t words[8];
} hr_cublaslt_algorithm;

typedef struct hr_cublaslt_choice { /* cublasLtMatmulHeuristicResult_t */
    hr_cublaslt_algorithm algorithm;
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
} hr_cublaslt_choice;

typedef struct hr_cublaslt {
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*desc_create)(void **desc, int compute_type, int scale_type);
    int (*desc_destroy)(void *desc);
    int (*desc_set)(void *desc, int attribute, const void *value, size_t bytes);
    int (*layout_create)(void **layout, int type, uint64_t rows, uint64_t columns, int64_t pitch);
    int (*layout_destroy)(void *layout);
    int (*preference_create)(void **preference);
    int (*preference_destroy)(void *preference);
    int (*preference_set)(void *preference, int attribute, const void *value, size_t bytes);
    int (*heuristic)(void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference,
                     int wanted, hr_cublaslt_choice *out, int *found);
    int (*matmul)(void *handle, void *desc, const void *alpha, const void *a, void *a_layout,
                  const void *b, void *b_layout, const void *beta, const void *c, void *c_layout,
                  void *d, void *d_layout, const hr_cublaslt_algorithm *algorithm, void *workspace,
                  size_t workspace_bytes, void *stream);
    const char *(*status_text)(int status);
} hr_cublaslt;

#endif
