/*
 * Observers: a stream of values in, out the magnitude that a static scale should map to the largest
 * code ("amax"). One observer watches one head of one tensor; the calibrator owns many.
 *
 * An observer is a row of observers.def and a table of functions. Its state depends only on the
 * multiset of values it has seen, never on their order or grouping: merging the states of two
 * shards gives the state of one pass over both, bit for bit.
 */
#ifndef HEADROOM_OBSERVER_H
#define HEADROOM_OBSERVER_H

#include <stdint.h>

#include "headroom/calibration.h"

typedef struct hr_observer_type hr_observer_type;

enum { HR_OBSERVER_TEXT_BYTES = 32 }; /* as hr_audit_config.observer */

/* An observer's choice and parameter, parsed: "percentile:99.99". */
typedef struct hr_observer_config {
    const hr_observer_type *type;
    double parameter;                  /* 0 for observers that take none */
    char text[HR_OBSERVER_TEXT_BYTES]; /* canonical; parses back to the same config */
} hr_observer_config;

struct hr_observer_type {
    const char *name;
    const char *summary; /* one line for users, with the meaning of the parameter */

    /*
     * Reads the text after the colon (NULL when there is none) into *parameter and sets
     * *has_parameter. NULL: the observer takes no parameter.
     */
    hr_status (*parse)(const char *text, double *parameter);

    /* A fresh state; NULL with the message set when memory runs out. Release with `release`. */
    void *(*create)(void);
    void (*release)(void *state);

    /* Adds count finite values. */
    void (*observe)(void *state, const float *values, int64_t count);

    /* Adds what `other`, a state of the same type, has seen. */
    void (*merge)(void *state, const void *other);

    /*
     * The amax for values that will be coded as `dtype` by one scale, hr_scale_of_amax(dtype,
     * amax). 0 exactly when every value seen was zero, or none was seen.
     */
    hr_status (*result)(const void *state, double parameter, hr_dtype dtype, float *amax);
};

/* One hr_observer_<name> a row. */
#define HR_OBSERVER(name) extern const hr_observer_type hr_observer_##name;
#include "observers.def"
#undef HR_OBSERVER

/* Parses "name" or "name:parameter"; errors list what would be accepted. NULL means absmax. */
hr_status hr_observer_parse(const char *text, hr_observer_config *out) HR_NODISCARD;

/*
 * Smallest static scale: 2^-60. The product of a Q and a K scale stays a normal float even times a
 * softmax scale of 1/64, and so do the reciprocals.
 */
#define HR_SCALE_MIN 0x1p-60f

/*
 * The dequantization multiplier that maps amax to the format's largest code, at least HR_SCALE_MIN.
 * U4 covers [-amax, amax] with its 15 steps; F32, F16 and BF16 are stored as they are, with 1.
 */
float hr_scale_of_amax(hr_dtype dtype, float amax);

#endif
