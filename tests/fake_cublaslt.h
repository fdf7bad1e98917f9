/*
 * A cuBLASLt that is not there: descriptors are noted, products of host memory computed plainly in
 * double precision, and any function can be made to fail. It checks what the real one demands of
 * FP8 on Hopper: A transposed and B not, E4M3 in and FP32 out, m, k and pitches in multiples of
 * 16, aligned pointers, scales.
 */
#ifndef HEADROOM_FAKE_CUBLASLT_H
#define HEADROOM_FAKE_CUBLASLT_H

#include <stdlib.h>
#include <string.h>

#include "headroom/format.h"
#ifdef __cplusplus
extern "C" {
#endif
#include "cublaslt_api.h"
#ifdef __cplusplus
}
#endif

typedef enum fake_function {
    FAKE_CREATE = 1,
    FAKE_DESC_CREATE,
    FAKE_DESC_SET,
    FAKE_LAYOUT_CREATE,
    FAKE_PREFERENCE_CREATE,
    FAKE_PREFERENCE_SET,
    FAKE_HEURISTIC,
    FAKE_MATMUL,
    FAKE_FUNCTIONS
} fake_function;

typedef struct fake_library {
    fake_function fails; /* 0: none */
    int calls_left;      /* of it before it fails */
    int error;
    bool finds_nothing; /* the heuristic succeeds without an algorithm */
    bool computes;
    int live, products;
    const char *broken; /* the first demand that was not met; NULL: none */
} fake_library;

static fake_library fake_blas;

typedef struct fake_layout {
    int type;
    uint64_t rows, columns;
    int64_t pitch;
} fake_layout;

typedef struct fake_desc {
    int32_t transpose[2];
    const float *scale[2];
} fake_desc;

typedef struct fake_preference {
    size_t workspace_bytes;
    uint32_t alignment[4];
} fake_preference;

static int fake_fails(fake_function function)
{
    if (fake_blas.fails != function || fake_blas.calls_left-- > 0) return 0;
    return fake_blas.error;
}

static void fake_demand(bool met, const char *what)
{
    if (!met && !fake_blas.broken) fake_blas.broken = what;
}

static int fake_make(fake_function function, void **out, const void *content, size_t bytes)
{
    if (fake_fails(function)) return fake_blas.error;
    *out = malloc(bytes);
    memcpy(*out, content, bytes);
    fake_blas.live++;
    return 0;
}

static int fake_drop(void *object)
{
    free(object);
    fake_blas.live--;
    return 0;
}

static int fake_create(void **handle)
{
    return fake_make(FAKE_CREATE, handle, "handle", 7);
}

static int fake_desc_create(void **desc, int compute_type, int scale_type)
{
    const fake_desc content = {{0, 0}, {NULL, NULL}};
    fake_demand(compute_type == HR_CUBLASLT_COMPUTE_32F && scale_type == HR_CUBLASLT_F32,
                "FP32 accumulators and scales");
    return fake_make(FAKE_DESC_CREATE, desc, &content, sizeof content);
}

static int fake_desc_set(void *desc, int attribute, const void *value, size_t bytes)
{
    fake_desc *to = (fake_desc *)desc;
    void *field = NULL;
    size_t size = sizeof to->scale[0];
    if (fake_fails(FAKE_DESC_SET)) return fake_blas.error;
    if (attribute == HR_CUBLASLT_DESC_TRANSA || attribute == HR_CUBLASLT_DESC_TRANSB) {
        field = &to->transpose[attribute - HR_CUBLASLT_DESC_TRANSA];
        size = sizeof to->transpose[0];
    } else if (attribute == HR_CUBLASLT_DESC_A_SCALE || attribute == HR_CUBLASLT_DESC_B_SCALE) {
        field = &to->scale[attribute - HR_CUBLASLT_DESC_A_SCALE];
    }
    fake_demand(field && bytes == size, "a known attribute of its size");
    if (field && bytes == size) memcpy(field, value, bytes);
    return 0;
}

static int fake_layout_create(void **layout, int type, uint64_t rows, uint64_t columns,
                              int64_t pitch)
{
    const fake_layout content = {type, rows, columns, pitch};
    fake_demand(pitch >= (int64_t)rows && pitch % 16 == 0 && rows % 16 == 0, "multiples of 16");
    return fake_make(FAKE_LAYOUT_CREATE, layout, &content, sizeof content);
}

static int fake_preference_create(void **preference)
{
    const fake_preference content = {0, {256, 256, 256, 256}};
    return fake_make(FAKE_PREFERENCE_CREATE, preference, &content, sizeof content);
}

static int fake_preference_set(void *preference, int attribute, const void *value, size_t bytes)
{
    fake_preference *to = (fake_preference *)preference;
    if (fake_fails(FAKE_PREFERENCE_SET)) return fake_blas.error;
    if (attribute == HR_CUBLASLT_PREF_WORKSPACE && bytes == sizeof to->workspace_bytes)
        memcpy(&to->workspace_bytes, value, bytes);
    else if (attribute >= HR_CUBLASLT_PREF_ALIGNMENT_A &&
             attribute < HR_CUBLASLT_PREF_ALIGNMENT_A + 4 && bytes == sizeof to->alignment[0])
        memcpy(&to->alignment[attribute - HR_CUBLASLT_PREF_ALIGNMENT_A], value, bytes);
    else
        fake_demand(false, "a known preference of its size");
    return 0;
}

static void fake_check_types(const fake_desc *desc, const fake_layout *a, const fake_layout *b,
                             const fake_layout *d)
{
    fake_demand(desc->transpose[0] == HR_CUBLASLT_OP_T && desc->transpose[1] == HR_CUBLASLT_OP_N,
                "A transposed and B not");
    fake_demand(desc->scale[0] && desc->scale[1], "scales");
    fake_demand(a->type == HR_CUBLASLT_E4M3 && b->type == HR_CUBLASLT_E4M3 &&
                    d->type == HR_CUBLASLT_F32,
                "E4M3 operands and an FP32 result");
    fake_demand(a->rows == b->rows && a->columns == d->rows && b->columns == d->columns,
                "shapes that fit");
}

static int fake_heuristic(void *handle, void *desc, void *a, void *b, void *c, void *d,
                          void *preference, int wanted, hr_cublaslt_choice *out, int *found)
{
    const fake_preference *limits = (const fake_preference *)preference;
    (void)handle;
    if (fake_fails(FAKE_HEURISTIC)) return fake_blas.error;
    fake_check_types((const fake_desc *)desc, (const fake_layout *)a, (const fake_layout *)b,
                     (const fake_layout *)d);
    fake_demand(c == d && wanted == 1, "C and D alike, one algorithm");
    for (int i = 0; i < 4; i++)
        fake_demand(limits->alignment[i] == 16, "algorithms for pointers of 16 bytes");
    memset(out, 0, sizeof *out);
    out->algorithm.words[0] = 0x616c676f;
    out->workspace_bytes = limits->workspace_bytes;
    *found = fake_blas.finds_nothing ? 0 : 1;
    return 0;
}

static float fake_decode(const uint8_t *code)
{
    float value = 0;
    if (hr_decode(HR_DTYPE_E4M3, code, 1, 1.0f, 0, &value) != HR_OK) abort();
    return value;
}

static int fake_matmul(void *handle, void *desc, const void *alpha, const void *a, void *a_layout,
                       const void *b, void *b_layout, const void *beta, const void *c,
                       void *c_layout, void *d, void *d_layout,
                       const hr_cublaslt_algorithm *algorithm, void *workspace,
                       size_t workspace_bytes, void *stream)
{
    const fake_desc *product = (const fake_desc *)desc;
    const fake_layout *rows = (const fake_layout *)a_layout,
                      *columns = (const fake_layout *)b_layout;
    const fake_layout *out = (const fake_layout *)d_layout;
    (void)handle;
    (void)stream;
    if (fake_fails(FAKE_MATMUL)) return fake_blas.error;
    fake_blas.products++;
    fake_check_types(product, rows, columns, out);
    fake_demand(c == d && c_layout == d_layout && *(const float *)beta == 0, "C and D alike");
    fake_demand((uintptr_t)a % 16 == 0 && (uintptr_t)b % 16 == 0 && (uintptr_t)d % 16 == 0,
                "pointers of 16 bytes");
    fake_demand(algorithm->words[0] == 0x616c676f && workspace && workspace_bytes > 0,
                "the algorithm that was chosen, with its workspace");
    const double factor = (double)*(const float *)alpha * *product->scale[0] * *product->scale[1];
    for (uint64_t j = 0; fake_blas.computes && j < out->columns; j++)
        for (uint64_t i = 0; i < out->rows; i++) {
            const uint8_t *x = (const uint8_t *)a + i * (uint64_t)rows->pitch;
            const uint8_t *y = (const uint8_t *)b + j * (uint64_t)columns->pitch;
            double sum = 0;
            for (uint64_t l = 0; l < rows->rows; l++)
                sum += (double)fake_decode(x + l) * fake_decode(y + l);
            ((float *)d)[j * (uint64_t)out->pitch + i] = (float)(factor * sum);
        }
    return 0;
}

static const char *fake_status_text(int status)
{
    return status == 15 ? "not supported" : "a pretended failure";
}

static const hr_cublaslt fake_cublaslt = {
    fake_create,        fake_drop,   fake_desc_create,       fake_drop, fake_desc_set,
    fake_layout_create, fake_drop,   fake_preference_create, fake_drop, fake_preference_set,
    fake_heuristic,     fake_matmul, fake_status_text,
};

/* A cuBLASLt with which everything works, in the pretended CUDA of fake_cuda.h. */
static inline void fake_cublaslt_start(void)
{
    memset(&fake_blas, 0, sizeof fake_blas);
    fake.cublaslt = &fake_cublaslt;
}

#endif
