/*
 * Rotary position embedding (RoFormer, Su et al. 2021): the channels [0, rotary_dim) of Q and K are
 * taken in pairs, and pair i of a token at position p is rotated by the angle
 *
 *     p * theta^(-2 i / rotary_dim)         (a, b) -> (a cos - b sin, a sin + b cos)
 *
 * so that q . k depends on the distance of the two positions only.
 *
 * On the CPU Q and K are rotated when they are packed, before smoothing, rotation by Hadamard and
 * quantization: Q in hr_pack (hr_pack_options.rope and .positions), K in hr_kv_cache_append or
 * hr_pack. Cosines and sines are computed in double and rounded once to FP32; a rotated value is
 * computed from them in double and rounded once, so that it is off by at most 2^-22 of the length
 * of its pair.
 */
#ifndef HEADROOM_ROPE_H
#define HEADROOM_ROPE_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hr_rope {
    int32_t rotary_dim; /* 0: none; else even, <= head_dim */
    bool interleaved;   /* pairs (2i, 2i+1) as GPT-J; otherwise (i, i + rotary_dim/2) as GPT-NeoX */
    float theta;        /* base, e.g. 10000; finite and > 0 */
} hr_rope;

#ifdef __cplusplus
}
#endif

#endif
