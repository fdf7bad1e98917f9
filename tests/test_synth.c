/*
 * Synthetic data: the random numbers and functions beneath it, each mode's promised statistic, and
 * the same bits everywhere.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <omp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "headroom/recording.h"
#include "headroom/safetensors.h"
#include "headroom/synth.h"
#include "memory.h"
#include "scratch_dir.h"
#include "synth_random.h"

Test(synth_random, philox_known_answers)
{
    /* From the reference implementation, Random123: kat_vectors, philox4x32 10. */
    static const struct {
        hr_random_words counter;
        uint64_t key;
        hr_random_words expected;
    } known[] = {
        {{{0, 0, 0, 0}}, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
        {{{~0u, ~0u, ~0u, ~0u}}, UINT64_MAX, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
        {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
         0x299f31d0a4093822,
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        hr_random_words words = hr_random_philox(known[i].counter, known[i].key);
        cr_assert_arr_eq(words.word, known[i].expected.word, sizeof words.word);
    }
}

Test(synth_random, gaussian_inverts_the_normal_cdf)
{
    double last = -7;
    for (uint64_t word = 0; word <= UINT32_MAX; word += word < 4096 ? 1 : 65521) {
        double z = hr_random_gaussian((uint32_t)word);
        double p = ((double)word + 0.5) / 4294967296.0, back = erfc(-z / sqrt(2.0)) / 2;
        /* p's relative error is z^2 <= 40 times z's, which evaluation rounds to about 16 eps */
        cr_assert(fabs(back - p) <= 40 * 16 * 2.3e-16 * p, "word %llu: z %.17g",
                  (unsigned long long)word, z);
        cr_assert(z > last);
        last = z;
    }
    for (uint32_t word = 0; word < 100000; word += 7)
        cr_assert_eq(hr_random_gaussian(word), -hr_random_gaussian(~word));
}

Test(synth_random, elementary_functions_agree_with_libm)
{
    for (double x = 1e-12; x < 1e12; x *= 1.37)
        cr_assert(fabs(hr_stable_log(x) - log(x)) <= 1e-15 * fmax(1, fabs(log(x))), "%g", x);
    for (double x = -16; x <= 0; x += 0.01)
        cr_assert(fabs(hr_stable_exp(x) - exp(x)) <= 1e-14 * exp(x), "%g", x);
    for (double x = 0; x <= 1e6; x = x * 1.01 + 0.1) {
        double sine, cosine;
        hr_stable_sincos(x, &sine, &cosine);
        double bound = 1e-14 + 1e-15 * x; /* the angle's own rounding grows with it */
        cr_assert(fabs(sine - sin(x)) <= bound, "sin %g", x);
        cr_assert(fabs(cosine - cos(x)) <= bound, "cos %g", x);
    }
}

/* One layer's tensors. */
typedef struct layer_data {
    float *q, *k, *v;
} layer_data;

static hr_synth_options options_of(const char *mode)
{
    hr_synth_options options;
    hr_synth_options_init(&options);
    options.mode = mode;
    return options;
}

static layer_data make_layer(const hr_synth_options *options, int32_t layer)
{
    size_t vectors = (size_t)options->tokens * (size_t)options->head_dim;
    layer_data data = {
        .q = hr_alloc(vectors * (size_t)options->num_heads, sizeof(float)),
        .k = hr_alloc(vectors * (size_t)options->num_kv_heads, sizeof(float)),
        .v = hr_alloc(vectors * (size_t)options->num_kv_heads, sizeof(float)),
    };
    cr_assert(data.q && data.k && data.v);
    cr_assert_eq(hr_synth_fill(options, layer, data.q, data.k, data.v), HR_OK, "%s",
                 hr_last_error());
    return data;
}

static void free_layer(layer_data data)
{
    free(data.q);
    free(data.k);
    free(data.v);
}

typedef struct moments {
    double mean, variance, skew, kurtosis, largest;
} moments;

/* Of count values, stride apart. */
static moments moments_of(const float *values, int64_t count, int64_t stride)
{
    moments m = {0};
    for (int64_t i = 0; i < count; i++) {
        m.mean += values[i * stride] / (double)count;
        m.largest = fmax(m.largest, fabs((double)values[i * stride]));
    }
    double third = 0, fourth = 0;
    for (int64_t i = 0; i < count; i++) {
        double d = values[i * stride] - m.mean;
        m.variance += d * d / (double)count;
        third += d * d * d / (double)count;
        fourth += d * d * d * d / (double)count;
    }
    m.skew = third / pow(m.variance, 1.5);
    m.kurtosis = fourth / (m.variance * m.variance);
    return m;
}

/* Bounds are 5 standard errors of each statistic of n independent N(0,1). */
static void assert_standard_normal(const float *values, int64_t n)
{
    moments m = moments_of(values, n, 1);
    double root = sqrt((double)n);
    cr_assert(fabs(m.mean) <= 5 / root, "mean %g", m.mean);
    cr_assert(fabs(m.variance - 1) <= 5 * sqrt(2) / root, "variance %g", m.variance);
    cr_assert(fabs(m.skew) <= 5 * sqrt(6) / root, "skew %g", m.skew);
    cr_assert(fabs(m.kurtosis - 3) <= 5 * sqrt(24) / root, "kurtosis %g", m.kurtosis);
}

Test(synth, gaussian_moments_and_independence)
{
    hr_synth_options options = options_of("gaussian");
    layer_data data = make_layer(&options, 0);
    int64_t count = 1024 * 8 * 64;
    assert_standard_normal(data.q, count);
    assert_standard_normal(data.k, count);
    assert_standard_normal(data.v, count);
    /* q, k and v, neighbours in channel, head and token are uncorrelated to 5 standard errors */
    const struct {
        const float *left, *right;
    } pairs[] = {{data.q, data.k},     {data.k, data.v},      {data.q, data.q + 1},
                 {data.q, data.q + 4}, {data.q, data.q + 64}, {data.q, data.q + 512}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        double sum = 0;
        for (int64_t j = 0; j < count - 512; j++)
            sum += (double)pairs[i].left[j] * pairs[i].right[j];
        cr_assert(fabs(sum) <= 5 * sqrt((double)count), "pair %zu: %g", i, sum);
    }
    free_layer(data);
}

Test(synth, seeds_and_layers_differ)
{
    hr_synth_options options = options_of("gaussian");
    options.tokens = 4;
    options.layers = 2;
    layer_data first = make_layer(&options, 0), second = make_layer(&options, 1);
    options.seed += (uint64_t)1 << 32; /* every bit of the seed counts */
    layer_data third = make_layer(&options, 0);
    cr_assert(memcmp(first.q, second.q, 4 * 8 * 64 * sizeof(float)) != 0);
    cr_assert(memcmp(first.q, third.q, 4 * 8 * 64 * sizeof(float)) != 0);
    free_layer(first);
    free_layer(second);
    free_layer(third);
}

Test(synth, sparse_outliers_follow_the_flash_attention_3_mixture)
{
    hr_synth_options options = options_of("sparse-outliers");
    layer_data data = make_layer(&options, 0);
    int64_t count = 1024 * 8 * 64;
    const float *tensors[] = {data.q, data.k, data.v};
    for (int t = 0; t < 3; t++) {
        moments m = moments_of(tensors[t], count, 1);
        /*
         * variance 1 + 0.001 * 100 = 1.1; fourth moment 3 (0.999 + 0.001 * 101^2) = 33.6, so the
         * variance's standard error is sqrt((33.6 - 1.21) / n)
         */
        cr_assert(fabs(m.variance - 1.1) <= 5 * sqrt(32.4 / (double)count), "%g", m.variance);
        /* |x| > 6.5 never happens in the base; it does for 0.518 of the outliers, sigma sqrt(101)
         */
        double expected = 0.001 * erfc(6.5 / sqrt(2 * 101.0)) * (double)count;
        int64_t large = 0;
        for (int64_t i = 0; i < count; i++)
            large += fabsf(tensors[t][i]) > 6.5f;
        cr_assert(fabs((double)large - expected) <= 5 * sqrt(expected), "%lld, expected %g",
                  (long long)large, expected);
        cr_assert(m.largest > 20 && m.largest < 70, "%g", m.largest);
    }
    free_layer(data);
}

Test(synth, outlier_channels_are_few_fixed_and_large)
{
    hr_synth_options options = options_of("outlier-channels");
    options.num_kv_heads = 4;
    layer_data data = make_layer(&options, 0);
    const struct {
        const float *values;
        int heads, outliers;
    } tensors[] = {{data.q, 8, 2}, {data.k, 4, 2}, {data.v, 4, 0}};
    for (int t = 0; t < 3; t++)
        for (int head = 0; head < tensors[t].heads; head++) {
            int outliers = 0;
            for (int channel = 0; channel < 64; channel++) {
                moments m = moments_of(tensors[t].values + head * 64 + channel, 1024,
                                       (int64_t)tensors[t].heads * 64);
                double sigma = sqrt(m.variance);
                bool ordinary = fabs(sigma - 1) <= 0.15, outlier = sigma > 8.5 && sigma < 34;
                cr_assert(ordinary || outlier, "head %d channel %d: %g", head, channel, sigma);
                outliers += outlier;
            }
            cr_assert_eq(outliers, tensors[t].outliers, "tensor %d head %d: %d", t, head, outliers);
        }
    free_layer(data);
}

Test(synth, mean_bias_grows_with_the_head)
{
    hr_synth_options options = options_of("mean-bias");
    layer_data data = make_layer(&options, 0);
    assert_standard_normal(data.q, 1024 * 8 * 64);
    assert_standard_normal(data.v, 1024 * 8 * 64);
    for (int head = 0; head < 8; head++) {
        double sum = 0;
        for (int channel = 0; channel < 64; channel++) {
            moments m = moments_of(data.k + head * 64 + channel, 1024, 8 * 64);
            cr_assert(fabs(m.variance - 1) <= 5 * sqrt(2.0 / 1024), "%g", m.variance);
            sum += m.mean * m.mean;
        }
        /* the sum over 64 of N(0, size^2) squares has relative standard error sqrt(2/64) */
        double size = 2 * (1 + head), relative = sum / 64 / (size * size);
        cr_assert(fabs(relative - 1) <= 4 * sqrt(2.0 / 64), "head %d: %g", head, relative);
    }
    free_layer(data);
}

/* Mean attention that the first token of each sequence gets from query head `head`, not causal. */
static double sink_share(const hr_synth_options *options, layer_data data, int head)
{
    int64_t dim = options->head_dim, group = options->num_heads / options->num_kv_heads;
    double share = 0;
    int64_t queries = 0, length = options->tokens / options->batch;
    for (int64_t token = 0; token < options->tokens; token += 13, queries++) {
        const float *q = data.q + (token * options->num_heads + head) * dim;
        double sum = 0, first = 0;
        for (int64_t j = 0; j < length; j++) {
            int64_t key = token / length * length + j;
            const float *k = data.k + (key * options->num_kv_heads + head / group) * dim;
            double dot = 0;
            for (int64_t c = 0; c < dim; c++)
                dot += (double)q[c] * k[c];
            double weight = exp(dot / sqrt((double)dim));
            sum += weight;
            if (j == 0) first = weight;
        }
        share += first / sum;
    }
    return share / (double)queries;
}

Test(synth, sink_draws_most_attention_and_adds_little)
{
    for (int rope = 0; rope <= 1; rope++)
        for (int32_t head_dim = 64; head_dim <= 128; head_dim += 64) {
            hr_synth_options options = options_of("sink");
            options.num_heads = 4;
            options.num_kv_heads = 2;
            options.head_dim = head_dim;
            options.batch = 2;
            options.rope = rope;
            layer_data data = make_layer(&options, 0);
            for (int head = 0; head < 4; head++) {
                double share = sink_share(&options, data, head);
                cr_assert(share > 0.6 && share < 0.98, "head %d: %g", head, share);
            }
            for (int64_t token = 0; token < 1024; token += 512) {
                moments v = moments_of(data.v + token * 2 * head_dim, 2 * head_dim, 1);
                cr_assert(v.largest < 0.06, "%g", v.largest);
            }
            moments rest = moments_of(data.v + 2 * head_dim, 511 * 2 * head_dim, 1);
            cr_assert(fabs(rest.variance - 1) < 0.05);
            free_layer(data);
        }
}

Test(synth, gaussian_has_no_sink)
{
    hr_synth_options options = options_of("gaussian");
    layer_data data = make_layer(&options, 0);
    cr_assert(sink_share(&options, data, 0) < 0.01);
    free_layer(data);
}

Test(synth, mixed_heads_are_those_of_the_other_modes)
{
    static const char *const turns[] = {"gaussian", "sparse-outliers", "outlier-channels",
                                        "mean-bias", "sink"};
    hr_synth_options options = options_of("mixed");
    options.tokens = 64;
    options.num_kv_heads = 4;
    options.layers = 3;
    for (int32_t layer = 0; layer < 3; layer++) {
        options.mode = "mixed";
        layer_data mixed = make_layer(&options, layer);
        for (int32_t head = 0; head < 8; head++) {
            options.mode = turns[(head / 2 + layer) % 5];
            layer_data plain = make_layer(&options, layer);
            for (int64_t token = 0; token < 64; token++) {
                int64_t q = (token * 8 + head) * 64, kv = (token * 4 + head / 2) * 64;
                cr_assert_arr_eq(mixed.q + q, plain.q + q, 64 * sizeof(float));
                cr_assert_arr_eq(mixed.k + kv, plain.k + kv, 64 * sizeof(float));
                cr_assert_arr_eq(mixed.v + kv, plain.v + kv, 64 * sizeof(float));
            }
            free_layer(plain);
        }
        free_layer(mixed);
    }
}

Test(synth, saturating_and_zeros)
{
    hr_synth_options options = options_of("saturating");
    layer_data data = make_layer(&options, 0);
    int single = 0;
    for (int64_t row = 0; row < 1024 * 8; row++) {
        double sum = 0;
        for (int c = 0; c < 64; c++) {
            cr_assert_eq(fabsf(data.q[row * 64 + c]), 4.0f);
            sum += data.q[row * 64 + c];
        }
        single += fabs(sum) == 4.0 * 64;
    }
    cr_assert(abs(single - 4096) <= 5 * 45, "%d", single); /* 5 sigma of Binomial(8192, 1/2) */
    free_layer(data);
    options.mode = "zeros";
    data = make_layer(&options, 0);
    for (int64_t i = 0; i < 1024 * 8 * 64; i++)
        cr_assert(data.q[i] == 0 && data.k[i] == 0 && data.v[i] == 0);
    free_layer(data);
}

Test(synth, rope_turns_by_position_within_the_sequence)
{
    hr_synth_options options = options_of("gaussian");
    options.tokens = 4000;
    options.batch = 3;
    options.head_dim = 80;
    options.num_heads = 2;
    options.num_kv_heads = 2;
    layer_data plain = make_layer(&options, 0);
    options.rope = true;
    layer_data turned = make_layer(&options, 0);
    cr_assert_arr_eq(plain.v, turned.v, 4000 * 2 * 80 * sizeof(float));
    static const int32_t starts[] = {0, 1333, 2666}; /* 4000 / 3, 8000 / 3 */
    for (int32_t token = 0; token < 4000; token++) {
        int sequence = token < 1333 ? 0 : token < 2666 ? 1 : 2;
        for (int c = 0; c < 40; c++) {
            double angle = (token - starts[sequence]) * pow(10000, -2.0 * c / 80);
            const float *from = plain.k + token * 160 + c, *to = turned.k + token * 160 + c;
            double first = from[0] * cos(angle) - from[40] * sin(angle);
            double second = from[40] * cos(angle) + from[0] * sin(angle);
            cr_assert(fabs(to[0] - first) <= 5e-7 && fabs(to[40] - second) <= 5e-7,
                      "token %d pair %d", token, c);
        }
    }
    free_layer(plain);
    free_layer(turned);
}

/* A recording of each mode with RoPE, GQA and two sequences; the hash of its data. */
static void hash_of(const char *mode, char hash[33])
{
    hr_synth_options options = options_of(mode);
    options.num_kv_heads = 4;
    options.tokens = 100;
    options.batch = 3;
    options.layers = 2;
    options.seed = 20240711;
    options.rope = true;
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "synth.safetensors");
    cr_assert_eq(hr_synth_write(&options, path.text), HR_OK, "%s", hr_last_error());
    hr_safetensors *file;
    cr_assert_eq(hr_safetensors_open(path.text, &file), HR_OK, "%s", hr_last_error());
    hr_safetensors_hash(file, hash);
    hr_safetensors_close(file);
    scratch_close(&scratch);
}

Test(synth, same_bits_on_every_machine)
{
    static const char *const expected[][2] = {
        {"gaussian", "e18f386912a23deca78709483b589c61"},
        {"sparse-outliers", "46b64ce82d25754fb70c2726472f71cc"},
        {"outlier-channels", "2bd88a3cbf28e59ae7ca5d17b32ee127"},
        {"mean-bias", "44e0118f3bedaec9883c71b86b0310c3"},
        {"sink", "85c61bf66ba37b91abfe70280d88e8e6"},
        {"mixed", "9ece97ca037fe7771ccc1b56edfdc0c5"},
        {"saturating", "1136232edb0bc567c5e51821b26c3b1b"},
        {"zeros", "181ef2a1588c9b7d7a284b3a1e01a599"},
    };
    cr_assert_eq(hr_synth_mode_count(), (int)(sizeof expected / sizeof *expected));
    for (int i = 0; i < hr_synth_mode_count(); i++) {
        char hash[33];
        cr_assert_str_eq(hr_synth_mode_name(i), expected[i][0]);
        omp_set_num_threads(1);
        hash_of(expected[i][0], hash);
        cr_expect_str_eq(hash, expected[i][1], "%s: %s", expected[i][0], hash);
        omp_set_num_threads(3);
        hash_of(expected[i][0], hash);
        cr_expect_str_eq(hash, expected[i][1], "%s, 3 threads: %s", expected[i][0], hash);
    }
}

Test(synth, files_are_recordings)
{
    hr_synth_options options = options_of("mixed");
    options.num_kv_heads = 2;
    options.head_dim = 128;
    options.tokens = 11;
    options.batch = 3;
    options.layers = 2;
    options.rope = true;
    options.causal = false;
    scratch_dir scratch = scratch_open();
    scratch_path path = scratch_file(&scratch, "synth.safetensors");
    cr_assert_eq(hr_synth_write(&options, path.text), HR_OK, "%s", hr_last_error());
    hr_recording *recording;
    cr_assert_eq(hr_recording_open(path.text, &recording), HR_OK, "%s", hr_last_error());
    hr_recording_info info = hr_recording_get_info(recording);
    cr_assert_str_eq(info.model, "synth mixed seed 1");
    cr_assert_str_eq(info.rope, "applied");
    cr_assert_not(info.causal);
    cr_assert_eq(info.softmax_scale, (float)(1 / sqrt(128.0)));
    cr_assert_eq(info.layer_count, 2);
    cr_assert_arr_eq(info.cu_seqlens, ((int32_t[]){0, 3, 7, 11}), 4 * sizeof(int32_t));
    for (int32_t i = 0; i < 2; i++) {
        hr_recording_layer layer;
        cr_assert_eq(hr_recording_get_layer(recording, i, &layer), HR_OK);
        layer_data data = make_layer(&options, i);
        cr_assert_eq(layer.num_heads, 8);
        cr_assert_eq(layer.num_kv_heads, 2);
        cr_assert_arr_eq(layer.q.data, data.q, 11 * 8 * 128 * sizeof(float));
        cr_assert_arr_eq(layer.k.data, data.k, 11 * 2 * 128 * sizeof(float));
        cr_assert_arr_eq(layer.v.data, data.v, 11 * 2 * 128 * sizeof(float));
        free_layer(data);
    }
    hr_recording_close(recording);
    scratch_close(&scratch);
}

static void refuse(hr_synth_options options, hr_status expected, const char *text)
{
    float values[8];
    cr_assert_eq(hr_synth_fill(&options, 0, values, values, values), expected);
    cr_assert(strstr(hr_last_error(), text), "message: %s", hr_last_error());
    cr_assert_eq(hr_synth_write(&options, "/nonexistent/x"), expected);
}

Test(synth, bad_options)
{
    hr_synth_options good = options_of("gaussian"), bad;
    bad = good, bad.mode = "nonsense";
    refuse(bad, HR_ERROR_NOT_FOUND, "mode is \"nonsense\"; accepted: gaussian, sparse-outliers");
    bad = good, bad.mode = NULL;
    refuse(bad, HR_ERROR_NOT_FOUND, "accepted: gaussian");
    bad = good, bad.num_kv_heads = 3;
    refuse(bad, HR_ERROR_INVALID_ARGUMENT, "num_heads 8 is not divisible by num_kv_heads 3");
    bad = good, bad.num_heads = 0;
    refuse(bad, HR_ERROR_INVALID_ARGUMENT, "num_heads is 0");
    bad = good, bad.head_dim = 60;
    refuse(bad, HR_ERROR_INVALID_ARGUMENT, "head_dim is 60; a multiple of 8 up to 256");
    bad = good, bad.head_dim = 264;
    refuse(bad, HR_ERROR_INVALID_ARGUMENT, "head_dim is 264");
    bad = good, bad.tokens = 0;
    refuse(bad, HR_ERROR_INVALID_ARGUMENT, "tokens is 0");
    bad = good, bad.batch = 1025;
    refuse(bad, HR_ERROR_INVALID_ARGUMENT, "1025 sequences need at least as many tokens");
    bad = good, bad.layers = -1;
    refuse(bad, HR_ERROR_INVALID_ARGUMENT, "layers is -1");
    float values[8];
    cr_assert_eq(hr_synth_fill(&good, 1, values, values, values), HR_ERROR_INVALID_ARGUMENT);
    cr_assert(strstr(hr_last_error(), "layer is 1; 0 .. 0"));
    cr_assert_eq(hr_synth_fill(&good, 0, NULL, values, values), HR_ERROR_INVALID_ARGUMENT);
    cr_assert_null(hr_synth_mode_name(-1));
    cr_assert_null(hr_synth_mode_summary(hr_synth_mode_count()));
}
