/*
 * hr_kv_cache_append: tokens in floating point -> codes and scales in their slots.
 *
 *     load row -> rope -> subtract mean -> rotate -> choose scales -> encode -> layout -> slot
 *
 * Everything is checked before anything is written. Heads run in parallel; each head's tokens are
 * stored in order, so that the later of two tokens for one slot stays.
 */
#include <float.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "kv_cache_internal.h"
#include "memory.h"
#include "pack_encode.h"
#include "status_internal.h"
#include "tensor_rows.h"
#include "threads.h"

enum {
    CHUNK = 32,               /* tokens whose rotations are computed at a time, on the stack */
    PARALLEL_ELEMENTS = 32768 /* below it, starting threads takes longer than the work */
};

/* One call. */
typedef struct append_job {
    hr_kv_cache *cache;
    const hr_tensor *k, *v;
    const int32_t *positions;
    const int64_t *slots;
    int64_t tokens;
    int threads;
} append_job;

static hr_status check_input(const hr_kv_cache *cache, const hr_tensor *x, const char *name)
{
    HR_TRY(hr_tensor_rows_check(x, name));
    if (x->shape[1] != cache->num_kv_heads || x->shape[2] != cache->head_dim)
        return hr_fail(
            HR_ERROR_MISMATCH, "%s has %lld heads of head_dim %lld; the cache has %d of %d", name,
            (long long)x->shape[1], (long long)x->shape[2], cache->num_kv_heads, cache->head_dim);
    return HR_OK;
}

static hr_status check_slots(const hr_kv_cache *cache, const int64_t *slots, int64_t tokens)
{
    if (!slots && tokens > 0) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "slot_mapping is NULL");
    const int64_t limit = (int64_t)cache->num_pages * cache->page_size;
    for (int64_t t = 0; t < tokens; t++) {
        if (slots[t] >= -1 && slots[t] < limit) continue;
        if (slots[t] < 0)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "slot_mapping[%lld] is %lld; slots are at least 0, or -1 to skip",
                           (long long)t, (long long)slots[t]);
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "slot_mapping[%lld] is %lld, in page %lld; the cache has %d pages of %d, "
                       "slots 0 to %lld",
                       (long long)t, (long long)slots[t], (long long)(slots[t] / cache->page_size),
                       cache->num_pages, cache->page_size, (long long)(limit - 1));
    }
    return HR_OK;
}

/* The first token at or after `first` of a head with a value that is not finite, or `tokens`. */
static int64_t find_bad_token(const append_job *job, const hr_tensor *x, int32_t head,
                              int64_t *channel)
{
    float row[HR_HEAD_DIM_MAX];
    for (int64_t t = 0; t < job->tokens; t++) {
        if (job->slots[t] < 0) continue;
        *channel = hr_tensor_rows_load(x, head, t, 1, row);
        if (*channel >= 0) return t;
    }
    return job->tokens;
}

/*
 * A named critical section and not a reduction, for which clang makes a global symbol without the
 * library's prefix. It is entered only for a bad head.
 */
static hr_status check_finite(const append_job *job, const hr_tensor *x, const char *name)
{
    int32_t bad_head = INT32_MAX;
#pragma omp parallel for num_threads(job->threads) schedule(static)
    for (int32_t head = 0; head < job->cache->num_kv_heads; head++) {
        int64_t channel;
        if (find_bad_token(job, x, head, &channel) == job->tokens) continue;
#pragma omp critical(hr_kv_cache_bad_head)
        if (head < bad_head) bad_head = head;
    }
    if (bad_head == INT32_MAX) return HR_OK;
    int64_t channel, token = find_bad_token(job, x, bad_head, &channel);
    return hr_fail(HR_ERROR_NUMERIC,
                   "%s has a NaN or infinity at token %lld, head %d, channel %lld; the cache takes "
                   "finite values",
                   name, (long long)token, bad_head, (long long)channel);
}

static bool all_zero(const float *row, int32_t head_dim)
{
    for (int32_t c = 0; c < head_dim; c++)
        if (row[c] != 0.0f) return false;
    return true;
}

/*
 * Codes of 4-bit V to their halves of a block's bytes: [2][channels][4 bytes], the other halves
 * being those of the token four places away. Calls for different slots may run at the same time,
 * so the bits to change are changed atomically, of two channels at a time.
 */
static void put_shared_halves(const hr_layout_map *map, uint8_t *block, size_t token,
                              const uint8_t *codes)
{
    uint64_t *pairs = (uint64_t *)(void *)(block + token / 8 * map->channels * 4);
    const size_t shift = token % 4 * 8 + token / 4 % 2 * 4;
    const uint64_t halves = UINT64_C(0x0000000f0000000f) << shift;
    for (size_t i = 0; i < (size_t)map->head_dim / 2; i++) {
        const uint64_t two = (codes[i] & UINT64_C(15)) | (uint64_t)(codes[i] >> 4) << 32;
        const uint64_t has = __atomic_load_n(&pairs[i], __ATOMIC_RELAXED);
        __atomic_fetch_xor(&pairs[i], (has ^ two << shift) & halves, __ATOMIC_RELAXED);
    }
}

/* Codes in rows form to where the store has those of a row. */
static void put_codes(const hr_kv_store *store, int64_t row, const uint8_t *codes)
{
    size_t token;
    uint8_t *tile = store->codes + hr_kv_tile(store, row, &token);
    if (store->layout == HR_LAYOUT_ROWS)
        memcpy(tile, codes, store->row_bytes);
    else if (store->layout == HR_LAYOUT_BLOCKS_V && store->map.nibbles)
        put_shared_halves(&store->map, tile, token, codes);
    else
        hr_layout_put_row(&store->map, tile, token, codes);
}

/*
 * A transformed row to its slot: a one-token operand of one head whose arrays are the cache's.
 *
 * A token of zeros takes the smallest scale. It has no other token to take a scale from, and a
 * large one would hurt the others: integer kernels measure V's scales against the largest of 256.
 */
static hr_status store_row(const hr_kv_cache *cache, const hr_kv_store *store, int32_t head,
                           int64_t slot, const float *row)
{
    int32_t one_token[2] = {0, 1};
    uint8_t codes[HR_HEAD_DIM_MAX * sizeof(float)];
    const int64_t index = hr_kv_row(cache, head, slot);
    const int64_t scale = hr_kv_scale_index(cache, store, head, index);
    hr_packed token = {
        .operand = store->operand,
        .recipe = store->recipe,
        .batch = 1,
        .num_heads = 1,
        .head_dim = cache->head_dim,
        .total_tokens = 1,
        .cu_seqlens = one_token,
        .scale = store->scale ? store->scale + scale : NULL,
        .zero_point = store->zero_point ? store->zero_point + scale : NULL,
        .scale_count = store->token_scales,
    };
    if (store->token_scales) {
        hr_head_choose_scales(&token, 0, row);
        if (all_zero(row, cache->head_dim))
            for (int32_t i = 0; i < store->token_scales; i++)
                token.scale[i] = FLT_MIN;
    }
    HR_TRY(hr_head_encode(&token, 0, row, codes));
    put_codes(store, index, codes);
    return HR_OK;
}

/* Tokens [first, first + count) of one head; turns [count][rotary_dim]. */
static hr_status append_head(const append_job *job, int32_t head, int64_t first, int64_t count,
                             const float *turns)
{
    const hr_kv_cache *cache = job->cache;
    const int32_t head_dim = cache->head_dim;
    float row[HR_HEAD_DIM_MAX];
    for (int64_t t = first; t < first + count; t++) {
        if (job->slots[t] < 0) continue;
        (void)hr_tensor_rows_load(job->k, head, t, 1, row);
        if (cache->rope.rotary_dim)
            hr_rope_rotate(&cache->rope, turns + (t - first) * cache->rope.rotary_dim, row);
        if (cache->mean) hr_mean_subtract(cache->mean + (int64_t)head * head_dim, head_dim, row);
        if (cache->hadamard_seed) hr_hadamard_rotate(cache->signs, head_dim, row);
        HR_TRY(store_row(cache, &cache->k, head, job->slots[t], row));
        (void)hr_tensor_rows_load(job->v, head, t, 1, row);
        HR_TRY(store_row(cache, &cache->v, head, job->slots[t], row));
    }
    return HR_OK;
}

static hr_status append_chunk(const append_job *job, int64_t first, int64_t count)
{
    const hr_kv_cache *cache = job->cache;
    float turns[CHUNK * HR_HEAD_DIM_MAX];
    for (int64_t i = 0; cache->rope.rotary_dim && i < count; i++)
        if (job->slots[first + i] >= 0)
            hr_rope_turns(&cache->rope, cache->rates, job->positions[first + i],
                          turns + i * cache->rope.rotary_dim);
    hr_status failed = HR_OK;
#pragma omp parallel for num_threads(job->threads) schedule(static)
    for (int32_t head = 0; head < cache->num_kv_heads; head++) {
        hr_status status = append_head(job, head, first, count, turns);
        if (status != HR_OK) {
#pragma omp atomic write
            failed = status;
        }
    }
    if (failed != HR_OK)
        return hr_fail(failed, "a token of %lld to %lld cannot be encoded", (long long)first,
                       (long long)(first + count - 1));
    return HR_OK;
}

static hr_status append(hr_kv_cache *cache, const hr_tensor *k, const hr_tensor *v,
                        const int32_t *positions, const int64_t *slot_mapping)
{
    HR_TRY(check_input(cache, k, "k"));
    HR_TRY(check_input(cache, v, "v"));
    const int64_t tokens = k->shape[0];
    if (v->shape[0] != tokens)
        return hr_fail(HR_ERROR_MISMATCH, "k has %lld tokens, but v has %lld", (long long)tokens,
                       (long long)v->shape[0]);
    HR_TRY(check_slots(cache, slot_mapping, tokens));
    if (cache->rope.rotary_dim) HR_TRY(hr_rope_check_positions(positions, tokens));

    append_job job = {.cache = cache,
                      .k = k,
                      .v = v,
                      .positions = positions,
                      .slots = slot_mapping,
                      .tokens = tokens,
                      .threads = 1};
    if (!omp_in_parallel() && tokens * cache->num_kv_heads * cache->head_dim >= PARALLEL_ELEMENTS) {
        job.threads = hr_threads();
        if (job.threads > cache->num_kv_heads) job.threads = cache->num_kv_heads;
    }
    HR_TRY(check_finite(&job, k, "k"));
    HR_TRY(check_finite(&job, v, "v"));
    for (int64_t first = 0; first < tokens; first += CHUNK)
        HR_TRY(append_chunk(&job, first, tokens - first < CHUNK ? tokens - first : CHUNK));
    return HR_OK;
}

hr_status hr_kv_cache_append(hr_kv_cache *cache, const hr_tensor *k, const hr_tensor *v,
                             const int32_t *positions, const int64_t *slot_mapping)
{
    if (!cache) return hr_fail(HR_ERROR_INVALID_ARGUMENT, "cache is NULL");
    if (cache->recent)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the cache's recipe has a residual: hr_kv_cache_append_residual stores "
                       "tokens there");
    return append(cache, k, v, positions, slot_mapping);
}

/* Where the tokens go in the residual's cache: slots [tokens]. */
static hr_status ring_slots(const hr_kv_cache *cache, int64_t tokens, const int32_t *positions,
                            const int64_t *slot_mapping, const int32_t *blocks, int64_t *slots)
{
    const int64_t pages = hr_kv_ring_pages(cache->residual), page = HR_RESIDUAL_MULTIPLE;
    for (int64_t t = 0; t < tokens; t++) {
        slots[t] = -1;
        if (slot_mapping[t] < 0) continue;
        if (blocks[t] < 0 || blocks[t] >= cache->max_sequences)
            return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                           "blocks[%lld] is %d; the cache has %d residual blocks", (long long)t,
                           blocks[t], cache->max_sequences);
        slots[t] = (blocks[t] * pages + positions[t] / page % pages) * page + positions[t] % page;
    }
    return HR_OK;
}

hr_status hr_kv_cache_append_residual(hr_kv_cache *cache, const hr_tensor *k, const hr_tensor *v,
                                      const int32_t *positions, const int64_t *slot_mapping,
                                      const int32_t *blocks)
{
    if (!cache || !k || !blocks || !slot_mapping)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "cache, k, slot_mapping and blocks must not be NULL");
    if (!cache->recent)
        return hr_fail(HR_ERROR_INVALID_ARGUMENT,
                       "the cache's recipe has no residual: hr_kv_cache_append stores tokens");
    const int64_t tokens = k->ndim > 0 ? k->shape[0] : 0;
    HR_TRY(hr_rope_check_positions(positions, tokens));
    int64_t *slots = hr_alloc((size_t)tokens, sizeof *slots);
    if (!slots) return HR_ERROR_OUT_OF_MEMORY;
    hr_status status = ring_slots(cache, tokens, positions, slot_mapping, blocks, slots);
    /* The codes first: what is wrong with the call is found there, before anything is stored. */
    if (status == HR_OK) status = append(cache, k, v, positions, slot_mapping);
    if (status == HR_OK) status = append(cache->recent, k, v, positions, slots);
    free(slots);
    return status;
}
