/*
 * cuBLASLt, where the machine has it.
 */
#ifndef HEADROOM_CUBLASLT_H
#define HEADROOM_CUBLASLT_H

#include "cublaslt_api.h"

/*
 * The table, or NULL and why not. HEADROOM_CUBLASLT names the file to load; without it, the
 * dynamic loader looks for libcublasLt.so of this build's major version of CUDA. The answer of the
 * first call stays; any thread may call.
 */
const hr_cublaslt *hr_cublaslt_load(const char **reason);

#endif
