/*
 * What each mode of synthetic data puts into a row; the list is synth_modes.def.
 *
 * Every random word comes from Philox at a counter that says where it goes:
 *
 *     { channel / 4 | stream and kind << 8,  token or HEAD_WIDE,  head,  layer }   key = seed
 *
 * so that rows can be filled in any order and by any number of threads.
 */
#include "synth_modes.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "synth_random.h"

enum { WORDS = 4 };

/* Independent sequences of random words for one row. */
enum {
    STREAM_BASE,
    STREAM_OUTLIER,
    STREAM_CHANNELS,
    STREAM_BIAS,
    STREAM_DIRECTION,
    STREAM_SIGNS,
    STREAM_ROW
};

static const uint32_t HEAD_WIDE = UINT32_MAX; /* in place of the token: one draw for the head */

static hr_random_words words_at(const hr_synth_row *row, uint32_t stream, hr_synth_kind kind,
                                uint32_t token, int32_t head, int32_t block)
{
    hr_random_words counter = {{(uint32_t)block | (stream * 3 + (uint32_t)kind) << 8, token,
                                (uint32_t)head, (uint32_t)row->layer}};
    return hr_random_philox(counter, row->seed);
}

static hr_random_words row_words(const hr_synth_row *row, uint32_t stream, int32_t block)
{
    return words_at(row, stream, row->kind, (uint32_t)row->token, row->head, block);
}

static void gaussian(const hr_synth_row *row, float *values)
{
    for (int32_t channel = 0; channel < row->head_dim; channel += WORDS) {
        hr_random_words words = row_words(row, STREAM_BASE, channel / WORDS);
        for (int i = 0; i < WORDS; i++)
            values[channel + i] = (float)hr_random_gaussian(words.word[i]);
    }
}

static void sparse_outliers(const hr_synth_row *row, float *values)
{
    static const uint32_t one_in_1000 = 4294967; /* of 2^32 */
    static const double outlier_sigma = 10;      /* variance 100 */
    gaussian(row, values);
    for (int32_t channel = 0; channel < row->head_dim; channel += 2) {
        hr_random_words words = row_words(row, STREAM_OUTLIER, channel / 2);
        for (int i = 0; i < 2; i++) /* one word decides, the other is the size */
            if (words.word[2 * i] < one_in_1000)
                values[channel + i] +=
                    (float)(outlier_sigma * hr_random_gaussian(words.word[2 * i + 1]));
    }
}

static void outlier_channels(const hr_synth_row *row, float *values)
{
    gaussian(row, values);
    if (row->kind == HR_SYNTH_V) return;
    hr_random_words words = words_at(row, STREAM_CHANNELS, row->kind, HEAD_WIDE, row->head, 0);
    int32_t half = row->head_dim / 2;
    for (int i = 0; i < 2; i++) { /* one channel in each half, so that they differ */
        int32_t channel = i * half + (int32_t)(words.word[2 * i] % (uint32_t)half);
        double factor = 10 + 20 * ((double)words.word[2 * i + 1] / 4294967296.0);
        values[channel] = (float)(factor * values[channel]);
    }
}

static void mean_bias(const hr_synth_row *row, float *values)
{
    gaussian(row, values);
    if (row->kind != HR_SYNTH_K) return;
    double sigma = 2 * (1 + row->head % 8);
    for (int32_t channel = 0; channel < row->head_dim; channel += WORDS) {
        hr_random_words words =
            words_at(row, STREAM_BIAS, HR_SYNTH_K, HEAD_WIDE, row->head, channel / WORDS);
        for (int i = 0; i < WORDS; i++)
            values[channel + i] += (float)(sigma * hr_random_gaussian(words.word[i]));
    }
}

/* Adds a vector of this length and a random direction that the heads of a GQA group share. */
static void add_direction(const hr_synth_row *row, double length, float *values)
{
    /* The channel pairs that a rotary embedding turns slowest stay aligned longest. */
    int32_t half = row->head_dim / 2, pairs = half >= 16 ? half / 8 : 1;
    double size = length / sqrt(2.0 * pairs);
    for (int32_t pair = 0; pair < pairs; pair++) {
        hr_random_words words =
            words_at(row, STREAM_DIRECTION, HR_SYNTH_K, HEAD_WIDE, row->kv_head, pair);
        int32_t channel = half - 1 - pair;
        values[channel] += (float)(words.word[0] & 1 ? size : -size);
        values[channel + half] += (float)(words.word[1] & 1 ? size : -size);
    }
}

/*
 * With a unit direction u, q = N(0,1) + query u and the first key k_0 = length u, the sink's logit
 * is about query length / sqrt(head_dim), and the other keys' logits have variance
 * (head_dim + query^2) / head_dim, so their log-sum-exp is about log(seqlen) + variance / 2. A sink
 * that leads it by 2 gets about 0.88 of the attention.
 */
static void sink(const hr_synth_row *row, float *values)
{
    static const double query = 8, lead = 2, small = 0.01;
    gaussian(row, values);
    if (row->kind == HR_SYNTH_Q) add_direction(row, query, values);
    if (row->kind == HR_SYNTH_Q || row->position > 0) return;
    for (int32_t channel = 0; channel < row->head_dim; channel++)
        values[channel] = (float)(small * values[channel]);
    if (row->kind == HR_SYNTH_V) return;
    double head_dim = row->head_dim, variance = (head_dim + query * query) / head_dim;
    double logit = hr_stable_log(row->seqlen) + variance / 2 + lead;
    add_direction(row, logit * sqrt(head_dim) / query, values);
}

static void mixed(const hr_synth_row *row, float *values)
{
    static hr_synth_mode_fill *const turns[] = {gaussian, sparse_outliers, outlier_channels,
                                                mean_bias, sink};
    uint32_t turn = (uint32_t)row->kv_head + (uint32_t)row->layer;
    turns[turn % (sizeof turns / sizeof *turns)](row, values);
}

static void saturating(const hr_synth_row *row, float *values)
{
    static const float size = 4;
    uint32_t row_word = row_words(row, STREAM_ROW, 0).word[0];
    bool single_sign = row_word & 1, negative = row_word & 2;
    for (int32_t channel = 0; channel < row->head_dim; channel += WORDS) {
        hr_random_words words = row_words(row, STREAM_SIGNS, channel / WORDS);
        for (int i = 0; i < WORDS; i++)
            values[channel + i] = (single_sign ? negative : words.word[i] & 1) ? -size : size;
    }
}

static void zeros(const hr_synth_row *row, float *values)
{
    memset(values, 0, (size_t)row->head_dim * sizeof *values);
}

const hr_synth_mode hr_synth_modes[] = {
#define SYNTH_MODE(name, summary, function) {name, summary, function},
#include "synth_modes.def"
#undef SYNTH_MODE
};

const int hr_synth_modes_count = sizeof hr_synth_modes / sizeof *hr_synth_modes;
