/*
 * The recordings behind a calibration; see source.h.
 */
#include "source.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "status_internal.h"

void hr_source_free(hr_source *source)
{
    free(source->model);
    free(source->rope);
    free(source->hashes);
    memset(source, 0, sizeof *source);
}

/* What a profile file will say has to be readable again. */
static hr_status check_info(const hr_recording_info *info)
{
    if (!info->path || !info->model || !info->rope)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "the source's path, model and rope must not be "
                                                  "NULL");
    if (!isfinite(info->softmax_scale) || !(info->softmax_scale > 0))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "%s: softmax_scale is %.9g; it must be finite and > 0", info->path,
                       info->softmax_scale);
    if (!hr_hash_is_valid(info->data_hash))
        return hr_fail(HR_ERROR_INVALID_ARGUMENT, "%s: data_hash is not 32 hexadecimal digits",
                       info->path);
    return HR_OK;
}

bool hr_hash_is_valid(const char *hash)
{
    return strlen(hash) == HR_HASH_BYTES - 1 &&
           strspn(hash, "0123456789abcdef") == HR_HASH_BYTES - 1;
}

static hr_status check_shared(const hr_source *source, const hr_recording_info *info)
{
    if (!source->model) return HR_OK;
    if (strcmp(source->model, info->model))
        return hr_fail(
            HR_ERROR_MISMATCH,
            "%s: its model is \"%s\", that of the recordings before is \"%s\"; a profile "
            "is made from recordings of one model",
            info->path, info->model, source->model);
    if (strcmp(source->rope, info->rope))
        return hr_fail(HR_ERROR_MISMATCH,
                       "%s: its rope stage is \"%s\", that of the recordings before is \"%s\"",
                       info->path, info->rope, source->rope);
    if (source->causal != info->causal)
        return hr_fail(HR_ERROR_MISMATCH,
                       "%s: its attention is %s, that of the recordings before is %s", info->path,
                       info->causal ? "causal" : "not causal",
                       source->causal ? "causal" : "not causal");
    if (!(source->softmax_scale == info->softmax_scale))
        return hr_fail(HR_ERROR_MISMATCH,
                       "%s: its softmax_scale is %.9g, that of the recordings before is %.9g",
                       info->path, info->softmax_scale, source->softmax_scale);
    return HR_OK;
}

hr_status hr_source_check(const hr_source *source, const hr_recording_info *info)
{
    HR_TRY(check_info(info));
    return check_shared(source, info);
}

static int compare_hashes(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* Room for `more` hashes, and the shared facts when `source` has none yet. */
static hr_status prepare(hr_source *source, const hr_recording_info *info, int64_t more)
{
    size_t count = (size_t)(source->hash_count + more);
    void *hashes = realloc(source->hashes, count * sizeof *source->hashes);
    if (!hashes) return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate %zu data hashes", count);
    source->hashes = hashes;
    if (source->model) return HR_OK;
    char *model = strdup(info->model);
    char *rope = strdup(info->rope);
    if (!model || !rope) {
        free(model);
        free(rope);
        return hr_fail(HR_ERROR_OUT_OF_MEMORY, "cannot allocate the model's name");
    }
    source->model = model;
    source->rope = rope;
    source->causal = info->causal;
    source->softmax_scale = info->softmax_scale;
    return HR_OK;
}

static void append_hashes(hr_source *source, const char (*hashes)[HR_HASH_BYTES], int64_t count)
{
    memcpy(source->hashes + source->hash_count, hashes, (size_t)count * sizeof *hashes);
    source->hash_count += count;
    qsort(source->hashes, (size_t)source->hash_count, sizeof *source->hashes, compare_hashes);
}

hr_status hr_source_add(hr_source *source, const hr_recording_info *info)
{
    HR_TRY(hr_source_check(source, info));
    HR_TRY(prepare(source, info, 1));
    char hash[1][HR_HASH_BYTES] = {{0}};
    snprintf(hash[0], sizeof hash[0], "%s", info->data_hash);
    append_hashes(source, (const char(*)[HR_HASH_BYTES])hash, 1);
    return HR_OK;
}

bool hr_source_has(const hr_source *source, const char *hash)
{
    for (int64_t i = 0; i < source->hash_count; i++)
        if (!strcmp(source->hashes[i], hash)) return true;
    return false;
}

/* Appends the recordings of `other`, if it has any. */
static hr_status append_source(hr_source *source, const hr_source *other)
{
    if (!other->model) return HR_OK;
    hr_recording_info info = {.path = "calibrator to merge",
                              .model = other->model,
                              .rope = other->rope,
                              .causal = other->causal,
                              .softmax_scale = other->softmax_scale};
    HR_TRY(check_shared(source, &info));
    HR_TRY(prepare(source, &info, other->hash_count));
    append_hashes(source, (const char(*)[HR_HASH_BYTES])other->hashes, other->hash_count);
    return HR_OK;
}

hr_status hr_source_join(const hr_source *a, const hr_source *b, hr_source *out)
{
    memset(out, 0, sizeof *out);
    hr_status status = append_source(out, a);
    if (status == HR_OK) status = append_source(out, b);
    if (status != HR_OK) hr_source_free(out);
    return status;
}

void hr_source_hash(const hr_source *source, char out[HR_HASH_BYTES])
{
    out[0] = 0;
    if (source->hash_count == 0) return;
    if (source->hash_count == 1) {
        memcpy(out, source->hashes[0], HR_HASH_BYTES);
        return;
    }
    size_t bytes = (size_t)source->hash_count * sizeof *source->hashes;
    XXH128_hash_t hash = XXH3_128bits(source->hashes, bytes);
    snprintf(out, HR_HASH_BYTES, "%016llx%016llx", (unsigned long long)hash.high64,
             (unsigned long long)hash.low64);
}
