/*
 * One row of synthetic data: what a mode must fill. Modes are listed in synth_modes.def.
 */
#ifndef HEADROOM_SYNTH_MODES_H
#define HEADROOM_SYNTH_MODES_H

#include <stdint.h>

typedef enum hr_synth_kind { HR_SYNTH_Q, HR_SYNTH_K, HR_SYNTH_V } hr_synth_kind;

/* A token's vector in one head of Q, K or V. */
typedef struct hr_synth_row {
    uint64_t seed;
    int32_t layer;
    hr_synth_kind kind;
    int32_t head;     /* query head for Q, KV head for K and V */
    int32_t kv_head;  /* the KV head it attends to or is */
    int32_t head_dim; /* a multiple of 8, at most 256 */
    int32_t token;    /* in all the batch */
    int32_t position; /* in its sequence */
    int32_t seqlen;   /* of its sequence */
} hr_synth_row;

/* Writes values [head_dim], before any rotary embedding. */
typedef void hr_synth_mode_fill(const hr_synth_row *row, float *values);

typedef struct hr_synth_mode {
    const char *name, *summary;
    hr_synth_mode_fill *fill;
} hr_synth_mode;

extern const hr_synth_mode hr_synth_modes[];
extern const int hr_synth_modes_count;

#endif
