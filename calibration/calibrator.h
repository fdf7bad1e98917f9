/*
 * The state of a calibration in progress, shared by observing (calibrator.c), merging
 * (calibrator_merge.c) and finishing (calibrator_finish.c).
 */
#ifndef HEADROOM_CALIBRATOR_H
#define HEADROOM_CALIBRATOR_H

#include "observer.h"
#include "source.h"

enum { HR_OPERANDS = 3, HR_MIN_TOKENS_DEFAULT = 128 };

typedef struct hr_calibrator_layer {
    int32_t layer, num_heads, num_kv_heads, head_dim;
    int64_t tokens;               /* observed in the first pass */
    int64_t second_tokens;        /* observed in the second pass */
    void **observer[HR_OPERANDS]; /* [heads of the operand] states */
    float *amax[HR_OPERANDS];     /* [heads of the operand, head_dim], before any transform */
    /* Sum of K over tokens and its rounding error (Neumaier 1974), [num_kv_heads, head_dim]. */
    double *k_sum, *k_sum_error;
    float *k_mean; /* [num_kv_heads, head_dim], set at the end of the first pass */
} hr_calibrator_layer;

struct hr_calibrator {
    hr_recipe recipe;
    hr_observer_config observer;
    uint64_t hadamard_seed;
    int64_t min_tokens;
    int passes; /* 1 or 2 */
    int pass;   /* 1 or 2 */
    hr_source source;
    int32_t layer_count, layer_capacity;
    hr_calibrator_layer **layers; /* ascending by number */
};

/* "q", "k", "v". */
const char *hr_operand_letter(hr_operand operand);
const hr_operand_recipe *hr_operand_recipe_of(const hr_recipe *recipe, hr_operand operand);

int32_t hr_calibrator_layer_heads(const hr_calibrator_layer *layer, hr_operand operand);

/* The layer of that number, or NULL. */
hr_calibrator_layer *hr_calibrator_find(const hr_calibrator *calibrator, int32_t layer);

/* A layer with nothing observed, not yet part of the calibrator. */
hr_status hr_calibrator_layer_create(const hr_calibrator *calibrator, int32_t layer,
                                     int32_t num_heads, int32_t num_kv_heads, int32_t head_dim,
                                     hr_calibrator_layer **out) HR_NODISCARD;
void hr_calibrator_layer_free(const hr_calibrator *calibrator, hr_calibrator_layer *layer);

/* Room for `more` layers, so that hr_calibrator_insert cannot fail. */
hr_status hr_calibrator_reserve(hr_calibrator *calibrator, int32_t more) HR_NODISCARD;
void hr_calibrator_insert(hr_calibrator *calibrator, hr_calibrator_layer *layer);

/* Writes the mean of K so far, [num_kv_heads, head_dim]; zeros when nothing was observed. */
void hr_calibrator_layer_mean(const hr_calibrator_layer *layer, float *mean);

#endif
