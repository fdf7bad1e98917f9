/*
 * Merging calibrators that saw different shards of the data.
 *
 * In the first pass everything adds up: observers, channel maxima, channel sums, sources. In the
 * second pass only what that pass observed does, and both calibrators must have come out of the
 * same first pass (the same means), or they would have smoothed K differently.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calibrator.h"
#include "memory.h"
#include "status_internal.h"

static hr_status check_options(const hr_calibrator *a, const hr_calibrator *b)
{
    if (strcmp(a->recipe.name, b->recipe.name))
        return hr_fail(HR_ERROR_MISMATCH,
                       "calibrators of recipes \"%s\" and \"%s\" cannot be merged", a->recipe.name,
                       b->recipe.name);
    if (strcmp(a->observer.text, b->observer.text))
        return hr_fail(HR_ERROR_MISMATCH, "calibrators with observers %s and %s cannot be merged",
                       a->observer.text, b->observer.text);
    if (a->hadamard_seed != b->hadamard_seed)
        return hr_fail(HR_ERROR_MISMATCH, "calibrators with different Hadamard seeds cannot be "
                                          "merged");
    if (a->min_tokens != b->min_tokens)
        return hr_fail(HR_ERROR_MISMATCH,
                       "calibrators with min_tokens %lld and %lld cannot be merged",
                       (long long)a->min_tokens, (long long)b->min_tokens);
    if (a->pass != b->pass)
        return hr_fail(HR_ERROR_MISMATCH,
                       "a calibrator in pass %d cannot be merged with one in pass %d", a->pass,
                       b->pass);
    return HR_OK;
}

static hr_status check_layer(const hr_calibrator_layer *a, const hr_calibrator_layer *b)
{
    if (a->num_heads != b->num_heads || a->num_kv_heads != b->num_kv_heads ||
        a->head_dim != b->head_dim)
        return hr_fail(HR_ERROR_MISMATCH,
                       "layer %d has %d heads, %d KV heads and head_dim %d in one calibrator, %d, "
                       "%d and %d in the other",
                       a->layer, a->num_heads, a->num_kv_heads, a->head_dim, b->num_heads,
                       b->num_kv_heads, b->head_dim);
    return HR_OK;
}

static hr_status check_same_first_pass(const hr_calibrator *a, const hr_calibrator *b)
{
    char hashes[2][HR_HASH_BYTES];
    hr_source_hash(&a->source, hashes[0]);
    hr_source_hash(&b->source, hashes[1]);
    bool same = a->layer_count == b->layer_count && !strcmp(hashes[0], hashes[1]);
    for (int32_t i = 0; same && i < a->layer_count; i++) {
        const hr_calibrator_layer *x = a->layers[i], *y = b->layers[i];
        size_t mean_bytes = (size_t)x->num_kv_heads * (size_t)x->head_dim * sizeof(float);
        same = x->layer == y->layer && check_layer(x, y) == HR_OK && x->tokens == y->tokens &&
               !memcmp(x->k_mean, y->k_mean, mean_bytes);
    }
    if (same) return HR_OK;
    return hr_fail(HR_ERROR_MISMATCH,
                   "calibrators in the second pass can be merged only if both finished the same "
                   "first pass; theirs differ. Merge before hr_calibrator_next_pass");
}

static void merge_observers(const hr_calibrator *calibrator, hr_operand operand,
                            hr_calibrator_layer *layer, const hr_calibrator_layer *other)
{
    for (int32_t head = 0; head < hr_calibrator_layer_heads(layer, operand); head++)
        calibrator->observer.type->merge(layer->observer[operand][head],
                                         other->observer[operand][head]);
}

/* The sum of two compensated sums; symmetric in the two, so that a + b and b + a are the same. */
static void merge_sums(double *sum, double *error, const double *other_sum,
                       const double *other_error, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        double a = sum[i], b = other_sum[i], total = a + b;
        double lost = fabs(a) >= fabs(b) ? (a - total) + b : (b - total) + a;
        sum[i] = total;
        error[i] = (error[i] + other_error[i]) + lost;
    }
}

static void merge_first_pass(const hr_calibrator *calibrator, hr_calibrator_layer *layer,
                             const hr_calibrator_layer *other)
{
    for (hr_operand x = HR_OPERAND_Q; x <= HR_OPERAND_V; x++) {
        int64_t count = (int64_t)hr_calibrator_layer_heads(layer, x) * layer->head_dim;
        for (int64_t i = 0; i < count; i++)
            if (other->amax[x][i] > layer->amax[x][i]) layer->amax[x][i] = other->amax[x][i];
        merge_observers(calibrator, x, layer, other);
    }
    merge_sums(layer->k_sum, layer->k_sum_error, other->k_sum, other->k_sum_error,
               (int64_t)layer->num_kv_heads * layer->head_dim);
    layer->tokens += other->tokens;
}

/* Adds empty layers for those only `other` has; on error the calibrator is as before. */
static hr_status add_missing_layers(hr_calibrator *calibrator, const hr_calibrator *other)
{
    HR_TRY(hr_calibrator_reserve(calibrator, other->layer_count));
    hr_calibrator_layer **made = hr_alloc((size_t)other->layer_count, sizeof *made);
    hr_status status = made ? HR_OK : HR_ERROR_OUT_OF_MEMORY;
    int32_t count = 0;
    for (int32_t i = 0; status == HR_OK && i < other->layer_count; i++) {
        const hr_calibrator_layer *l = other->layers[i];
        if (hr_calibrator_find(calibrator, l->layer)) continue;
        status = hr_calibrator_layer_create(calibrator, l->layer, l->num_heads, l->num_kv_heads,
                                            l->head_dim, &made[count]);
        if (status == HR_OK) count++;
    }
    for (int32_t i = 0; i < count; i++) {
        if (status == HR_OK)
            hr_calibrator_insert(calibrator, made[i]);
        else
            hr_calibrator_layer_free(calibrator, made[i]);
    }
    free(made);
    return status;
}

hr_status hr_calibrator_merge(hr_calibrator *calibrator, const hr_calibrator *other)
{
    if (!calibrator || !other || calibrator == other)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "hr_calibrator_merge takes two different calibrators");
    HR_TRY(check_options(calibrator, other));
    if (calibrator->pass == 2) {
        HR_TRY(check_same_first_pass(calibrator, other));
        for (int32_t i = 0; i < calibrator->layer_count; i++) {
            merge_observers(calibrator, HR_OPERAND_K, calibrator->layers[i], other->layers[i]);
            calibrator->layers[i]->second_tokens += other->layers[i]->second_tokens;
        }
        return HR_OK;
    }
    for (int32_t i = 0; i < other->layer_count; i++) {
        const hr_calibrator_layer *known = hr_calibrator_find(calibrator, other->layers[i]->layer);
        if (known) HR_TRY(check_layer(known, other->layers[i]));
    }
    hr_source joined;
    HR_TRY(hr_source_join(&calibrator->source, &other->source, &joined));
    hr_status status = add_missing_layers(calibrator, other);
    if (status != HR_OK) {
        hr_source_free(&joined);
        return status;
    }
    hr_source_free(&calibrator->source);
    calibrator->source = joined;
    for (int32_t i = 0; i < other->layer_count; i++)
        merge_first_pass(calibrator, hr_calibrator_find(calibrator, other->layers[i]->layer),
                         other->layers[i]);
    return HR_OK;
}
