/*
 * cuBLASLt, loaded at run time; see cublaslt.h and quant/cublaslt_api.h.
 */
#include "cublaslt.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* The header comes with cuBLAS, which a CUDA toolkit may lack: it serves to check numbers only. */
#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
_Static_assert((int)HR_CUBLASLT_OUT_OF_MEMORY == CUBLAS_STATUS_ALLOC_FAILED &&
                   (int)HR_CUBLASLT_UNSUPPORTED == CUBLAS_STATUS_NOT_SUPPORTED &&
                   (int)HR_CUBLASLT_F32 == CUDA_R_32F && (int)HR_CUBLASLT_E4M3 == CUDA_R_8F_E4M3 &&
                   (int)HR_CUBLASLT_COMPUTE_32F == CUBLAS_COMPUTE_32F &&
                   (int)HR_CUBLASLT_OP_N == CUBLAS_OP_N && (int)HR_CUBLASLT_OP_T == CUBLAS_OP_T &&
                   (int)HR_CUBLASLT_DESC_TRANSA == CUBLASLT_MATMUL_DESC_TRANSA &&
                   (int)HR_CUBLASLT_DESC_TRANSB == CUBLASLT_MATMUL_DESC_TRANSB &&
                   (int)HR_CUBLASLT_DESC_A_SCALE == CUBLASLT_MATMUL_DESC_A_SCALE_POINTER &&
                   (int)HR_CUBLASLT_DESC_B_SCALE == CUBLASLT_MATMUL_DESC_B_SCALE_POINTER &&
                   (int)HR_CUBLASLT_PREF_WORKSPACE == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES &&
                   (int)HR_CUBLASLT_PREF_ALIGNMENT_A ==
                       CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
                   (int)HR_CUBLASLT_PREF_ALIGNMENT_A + 3 ==
                       CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
               "the numbers are cuBLASLt's");
_Static_assert(sizeof(hr_cublaslt_algorithm) == sizeof(cublasLtMatmulAlgo_t) &&
                   sizeof(hr_cublaslt_choice) == sizeof(cublasLtMatmulHeuristicResult_t) &&
                   offsetof(hr_cublaslt_choice, workspace_bytes) ==
                       offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize) &&
                   offsetof(hr_cublaslt_choice, status) ==
                       offsetof(cublasLtMatmulHeuristicResult_t, state),
               "the structs are cuBLASLt's");
#endif

static pthread_once_t once = PTHREAD_ONCE_INIT;
static hr_cublaslt table;
static char why_not[512]; /* "" when the table is filled */

/* POSIX lets a pointer to a function be written as a pointer to data. */
static void find(void *library, const char *name, void *function)
{
    if (*why_not) return;
    *(void **)function = dlsym(library, name);
    if (!*(void **)function)
        snprintf(why_not, sizeof why_not, "cuBLASLt has no function %s: %s", name, dlerror());
}

static void load(void)
{
    char name[64];
    snprintf(name, sizeof name, "libcublasLt.so.%d", CUDART_VERSION / 1000);
    const char *path = getenv("HEADROOM_CUBLASLT");
    void *library = dlopen(path ? path : name, RTLD_NOW | RTLD_LOCAL); /* kept for good */
    if (!library) {
        snprintf(why_not, sizeof why_not,
                 "cuBLASLt was not found: %s (it comes with the CUDA toolkit and with PyPI's "
                 "nvidia-cublas; HEADROOM_CUBLASLT names the file)",
                 dlerror());
        return;
    }
    find(library, "cublasLtCreate", &table.create);
    find(library, "cublasLtDestroy", &table.destroy);
    find(library, "cublasLtMatmulDescCreate", &table.desc_create);
    find(library, "cublasLtMatmulDescDestroy", &table.desc_destroy);
    find(library, "cublasLtMatmulDescSetAttribute", &table.desc_set);
    find(library, "cublasLtMatrixLayoutCreate", &table.layout_create);
    find(library, "cublasLtMatrixLayoutDestroy", &table.layout_destroy);
    find(library, "cublasLtMatmulPreferenceCreate", &table.preference_create);
    find(library, "cublasLtMatmulPreferenceDestroy", &table.preference_destroy);
    find(library, "cublasLtMatmulPreferenceSetAttribute", &table.preference_set);
    find(library, "cublasLtMatmulAlgoGetHeuristic", &table.heuristic);
    find(library, "cublasLtMatmul", &table.matmul);
    find(library, "cublasLtGetStatusString", &table.status_text);
}

const hr_cublaslt *hr_cublaslt_load(const char **reason)
{
    pthread_once(&once, load);
    *reason = why_not;
    return *why_not ? NULL : &table;
}
