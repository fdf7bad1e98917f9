/*
 * What calibration data came from: the model and attention parameters all recordings of one profile
 * share, and the data hash of each.
 */
#ifndef HEADROOM_SOURCE_H
#define HEADROOM_SOURCE_H

#include "headroom/recording.h"

enum { HR_HASH_BYTES = 33 }; /* 32 hexadecimal digits and NUL */

/* Zero-initialized: no source. */
typedef struct hr_source {
    char *model, *rope; /* owned; NULL when there is no source */
    bool causal;
    float softmax_scale;
    int64_t hash_count;
    char (*hashes)[HR_HASH_BYTES]; /* sorted */
} hr_source;

void hr_source_free(hr_source *source);

/*
 * Adds a recording. HR_ERROR_MISMATCH, with `source` unchanged, when its model, rope stage, causal
 * or softmax_scale is not that of the recordings before.
 */
hr_status hr_source_add(hr_source *source, const hr_recording_info *info) HR_NODISCARD;

/* HR_ERROR_MISMATCH unless `info` could be added to `source`. */
hr_status hr_source_check(const hr_source *source, const hr_recording_info *info) HR_NODISCARD;

/* Whether the text is 32 lower-case hexadecimal digits. */
bool hr_hash_is_valid(const char *hash);

bool hr_source_has(const hr_source *source, const char *hash);

/* The recordings of both, with the same check, as a new source. */
hr_status hr_source_join(const hr_source *a, const hr_source *b, hr_source *out) HR_NODISCARD;

/*
 * One hash for all the data, whatever the order of the recordings: "" for none, the recording's own
 * for one, else the XXH3-128 of the sorted hashes, each with its terminating NUL.
 */
void hr_source_hash(const hr_source *source, char out[HR_HASH_BYTES]);

#endif
