/*
 * Unfused FP8 attention, kernels/device_unfused.c: its softmax kernel under the emulator, alone and
 * between products that a pretended cuBLASLt computes (fake_cublaslt.h), against the FP64 oracle on
 * the values that its codes stand for.
 */
#include <criterion/criterion.h>

#include <cmath>
#include <random>
#include <vector>

#include "reference_sm90.cu"
#include "softmax_sm90.cu"

#include "fake_cuda.h"

#include "fake_cublaslt.h"
#include "headroom/headroom.h"
#include "scratch_dir.h"
extern "C" {
#include "device_baseline.h"
}

static int emulated_softmax(const hr_sm90_softmax_args *args)
{
    return hr_softmax_sm90(args);
}

static int emulated_normalize(const hr_sm90_normalize_args *args)
{
    return hr_normalize_sm90(args);
}

static int emulated_reference(const hr_sm90_reference_args *args)
{
    return hr_reference_sm90(args);
}

static void emulate()
{
    fake_start();
    fake_cublaslt_start();
    fake_blas.computes = true;
    fake_api.softmax = emulated_softmax;
    fake_api.normalize = emulated_normalize;
    fake_api.reference = emulated_reference;
}

static float decode(uint8_t code)
{
    return fake_decode(&code);
}

/* Every weight, sum and LSE of a row of logits against the definition in double precision. */
static void check_row(const hr_sm90_softmax_args &args, int row)
{
    const float *logits = args.logits + row * args.pitch;
    const int64_t diagonal = row + args.seqlen_kv - args.seqlen_q;
    const auto seen = [&](int64_t key) {
        return key < args.seqlen_kv &&
               (args.window_left == INT32_MAX || key >= diagonal - args.window_left) &&
               (args.window_right == INT32_MAX || key <= diagonal + args.window_right);
    };
    double largest = -INFINITY, sum = 0;
    for (int64_t key = 0; key < args.seqlen_kv; key++)
        if (seen(key)) largest = std::fmax(largest, logits[key]);
    for (int64_t key = 0; key < args.pitch; key++) {
        const double p = seen(key) ? std::exp2((double)(logits[key] - (float)largest)) : 0;
        const float weight = decode(args.weights[row * args.pitch + key]);
        sum += p;
        /* E4M3: half a step, 2^-4 of the value or 2^-10; and where 2^x is off by 2^-22, a step. */
        cr_assert(fabs(weight - 448 * p) <= std::fmax(448 * p * 0x1p-4, 0x1p-10) * (1 + 1e-5),
                  "row %d key %d: weight %g, not %g", row, (int)key, weight, 448 * p);
    }
    const float inverse = args.inverse[row * args.row_stride],
                lse = args.lse[row * args.row_stride];
    if (sum == 0) {
        cr_assert(inverse == 0 && lse == -INFINITY, "row %d sees nothing", row);
        return;
    }
    cr_assert(fabs(inverse * sum - 1) <= 1e-5, "row %d: inverse %g of %g", row, inverse, sum);
    const double wanted = (largest + std::log2(sum)) * M_LN2;
    cr_assert(fabs(lse - wanted) <= 1e-5 * (1 + fabs(wanted)), "row %d: LSE %g, not %g", row, lse,
              wanted);
}

static void check_softmax(int seqlen_q, int seqlen_kv, int left, int right)
{
    const int64_t pitch = (seqlen_kv + 15) / 16 * 16;
    std::vector<float> logits(seqlen_q * pitch, NAN), inverse(2 * seqlen_q, NAN),
        lse(2 * seqlen_q, NAN);
    std::vector<uint8_t> weights(logits.size(), 0xFF);
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0, 6);
    for (int row = 0; row < seqlen_q; row++)
        for (int key = 0; key < seqlen_kv; key++)
            logits[row * pitch + key] = normal(random);
    const hr_sm90_softmax_args args = {
        logits.data(), weights.data(), inverse.data(), lse.data(), pitch,  2,
        seqlen_q,      seqlen_kv,      left,           right,      nullptr};
    cr_assert_eq(hr_softmax_sm90(&args), 0, "%s", hopper_emulator::report().text().c_str());
    for (int row = 0; row < seqlen_q; row++)
        check_row(args, row);
}

Test(hopper_baseline, the_softmax_rounds_once)
{
    check_softmax(3, 1, INT32_MAX, INT32_MAX);
    check_softmax(5, 16, INT32_MAX, INT32_MAX);
    check_softmax(4, 2500, INT32_MAX, INT32_MAX); /* several steps a thread */
    check_softmax(40, 37, INT32_MAX, 0);          /* causal, the first rows see nothing */
    check_softmax(9, 1300, 7, 20);
    check_softmax(3, 50, 0, INT32_MAX);
}

Test(hopper_baseline, a_nan_reaches_its_row_only)
{
    std::vector<float> logits(2 * 16, 1.0f), inverse(2), lse(2);
    std::vector<uint8_t> weights(2 * 16);
    logits[5] = NAN;
    const hr_sm90_softmax_args args = {
        logits.data(), weights.data(), inverse.data(), lse.data(), 16, 1, 2, 16,
        INT32_MAX,     INT32_MAX,      nullptr};
    cr_assert_eq(hr_softmax_sm90(&args), 0);
    cr_assert(std::isnan(inverse[0]) && std::isnan(lse[0]) && std::isnan(decode(weights[5])));
    check_row(args, 1);
}

struct Problem {
    hr_attention_problem problem;
    std::vector<float> q, k, v;
    hr_tensor tensors[3];

    Problem(int heads, int kv_heads, int head_dim, int batch, const int32_t *cu_seqlens_q,
            const int32_t *cu_seqlens_kv)
    {
        hr_attention_problem_init(&problem, heads, kv_heads, head_dim);
        problem.batch = batch;
        problem.cu_seqlens_q = cu_seqlens_q;
        problem.cu_seqlens_kv = cu_seqlens_kv;
        const int64_t q_shape[3] = {cu_seqlens_q[batch], heads, head_dim};
        const int64_t kv_shape[3] = {cu_seqlens_kv[batch], kv_heads, head_dim};
        std::mt19937 random((unsigned)head_dim);
        std::normal_distribution<float> normal;
        q.resize(q_shape[0] * q_shape[1] * q_shape[2]);
        k.resize(kv_shape[0] * kv_shape[1] * kv_shape[2]);
        v.resize(k.size());
        for (std::vector<float> *x : {&q, &k, &v})
            for (float &value : *x)
                value = normal(random);
        tensors[0] = hr_tensor_view(HR_DTYPE_F32, 3, q_shape, q.data());
        tensors[1] = hr_tensor_view(HR_DTYPE_F32, 3, kv_shape, k.data());
        tensors[2] = hr_tensor_view(HR_DTYPE_F32, 3, kv_shape, v.data());
    }

    /* Makes the tensors what their E4M3 codes with a scale a head stand for. */
    void round()
    {
        const hr_layer_layouts rows = {HR_LAYOUT_ROWS, HR_LAYOUT_ROWS, HR_LAYOUT_ROWS};
        hr_recipe recipe;
        hr_packed_layer packed;
        cr_assert_eq(hr_recipe_parse("fp8:qkv.scale=dynamic", &recipe), HR_OK);
        cr_assert_eq(hr_pack_layer(&recipe, &rows, &tensors[0], &tensors[1], &tensors[2],
                                   problem.batch, problem.cu_seqlens_q, problem.cu_seqlens_kv, NULL,
                                   &packed),
                     HR_OK, "%s", hr_last_error());
        cr_assert_eq(hr_unpack(&packed.q, q.data()), HR_OK);
        cr_assert_eq(hr_unpack(&packed.k, k.data()), HR_OK);
        cr_assert_eq(hr_unpack(&packed.v, v.data()), HR_OK);
        hr_packed_layer_free(&packed);
    }
};

/* Relative L2 of O, and LSE within 1e-4 where there is one, of a second run as of a first. */
static double run(hr_baseline kind, Problem &p, const std::vector<float> (&inputs)[3])
{
    std::vector<double> o(p.q.size()), lse(p.q.size() / p.problem.head_dim);
    std::vector<float> got(o.size(), NAN), got_lse(lse.size(), NAN);
    cr_assert_eq(hr_reference_attention(&p.problem, &p.tensors[0], &p.tensors[1], &p.tensors[2],
                                        o.data(), lse.data()),
                 HR_OK, "%s", hr_last_error());
    hr_device_baseline *baseline;
    cr_assert_eq(hr_device_baseline_create(kind, &p.problem, inputs[0].data(), inputs[1].data(),
                                           inputs[2].data(), &baseline),
                 HR_OK, "%s", hr_last_error());
    for (int i = 0; i < 2; i++)
        cr_assert_eq(hr_device_baseline_start(baseline), HR_OK, "%s\n%s", hr_last_error(),
                     hopper_emulator::report().text().c_str());
    cr_assert_eq(hr_device_baseline_fetch(baseline, got.data(), got_lse.data()), HR_OK);
    hr_device_baseline_free(baseline);
    cr_assert_eq(fake.live, 0);
    cr_assert_eq(fake_blas.live, 0);
    cr_assert_null(fake_blas.broken, "cuBLASLt was not given %s", fake_blas.broken);
    double error = 0, norm = 0;
    for (size_t i = 0; i < o.size(); i++) {
        error += (got[i] - o[i]) * (got[i] - o[i]);
        norm += o[i] * o[i];
    }
    for (size_t i = 0; i < lse.size(); i++)
        cr_assert(got_lse[i] == lse[i] || fabs(got_lse[i] - lse[i]) <= 1e-4 * (1 + fabs(lse[i])),
                  "LSE %zu is %g, not %g", i, got_lse[i], lse[i]);
    return std::sqrt(error / norm);
}

/* What is left against the codes' own values is P's rounding: half a step of 2^-3, evenly spread,
 * is 2^-4 / sqrt(3) = .036 at worst and .025 on average over a binade. */
static void check_attention(bool causal, int left, int right, int head_dim)
{
    static const int32_t cu_seqlens_q[] = {0, 5, 5, 40, 41},
                         cu_seqlens_kv[] = {0, 90, 97, 120, 120};
    Problem p(4, 2, head_dim, 4, cu_seqlens_q, cu_seqlens_kv);
    p.problem.mask.causal = causal;
    p.problem.mask.window_left = left;
    p.problem.mask.window_right = right;
    const std::vector<float> inputs[3] = {p.q, p.k, p.v};
    p.round();
    emulate();
    const double error = run(HR_BASELINE_CUBLASLT_FP8, p, inputs);
    cr_assert(error <= 0.03, "relative L2 of O %g", error);
    const std::vector<float> rounded[3] = {p.q, p.k, p.v};
    const double exact = run(HR_BASELINE_FP32, p, rounded);
    cr_assert(exact <= 1e-6, "relative L2 of the FP32 reference %g", exact);
}

Test(hopper_baseline, unfused_attention_is_attention)
{
    check_attention(false, -1, -1, 64);
    check_attention(true, -1, -1, 128);
    check_attention(false, 7, 20, 96);
    check_attention(true, 3, -1, 16);
}

/* The audit of a GPU, whose recipes are pretended launches here and give O = 0. */
static void check_audit(bool with_cublaslt)
{
    scratch_dir scratch = scratch_open();
    const scratch_path path = scratch_file(&scratch, "rec.safetensors");
    hr_synth_options synth;
    hr_synth_options_init(&synth);
    synth.num_heads = 2;
    synth.num_kv_heads = 1;
    synth.head_dim = 64;
    synth.tokens = 40;
    synth.batch = 2;
    synth.layers = 2;
    cr_assert_eq(hr_synth_write(&synth, path.text), HR_OK, "%s", hr_last_error());
    hr_recording *recording;
    cr_assert_eq(hr_recording_open(path.text, &recording), HR_OK, "%s", hr_last_error());

    emulate();
    if (!with_cublaslt) fake.cublaslt = NULL;
    hr_recipe bf16;
    cr_assert_eq(hr_recipe_parse("bf16", &bf16), HR_OK);
    hr_audit_options options = {};
    options.recipes = &bf16;
    options.recipe_count = 1;
    options.device = HR_DEVICE_CUDA;
    options.repeats = 1;
    hr_audit *audit;
    cr_assert_eq(hr_audit_run(recording, &options, &audit), HR_OK, "%s", hr_last_error());
    cr_assert_eq(audit->baseline_count, HR_BASELINE_COUNT);
    const hr_audit_baseline &exact = audit->baselines[HR_BASELINE_FP32],
                            &fp8 = audit->baselines[HR_BASELINE_CUBLASLT_FP8];
    cr_assert_str_eq(exact.skipped, "");
    cr_assert(exact.total.rel_l2 <= 1e-6 && exact.lse.max_abs <= 1e-5, "%g", exact.total.rel_l2);
    cr_assert_eq(exact.total.count, 2 * 40 * 2 * 64);
    cr_assert(exact.timing.median_ms > 0 && exact.heads[3].count == 40 * 64);
    cr_assert_eq(exact.timing.kv_bytes, 2 * 2 * 4 * 40 * 64);
    if (with_cublaslt) {
        cr_assert_str_eq(fp8.skipped, "");
        cr_assert(fp8.total.rel_l2 > 1e-3 && fp8.total.rel_l2 <= 0.1, "%g", fp8.total.rel_l2);
        cr_assert(fp8.layers[1].rel_l2 <= 0.1 && fp8.timing.median_ms > 0);
    } else {
        cr_assert(strstr(fp8.skipped, "not found: pretended"), "%s", fp8.skipped);
    }
    char *json;
    cr_assert_eq(hr_audit_json(audit, 0.05, &json), HR_OK, "%s", hr_last_error());
    cr_assert(strstr(json, "\"baselines\":[{\"id\":\"fp32-reference\",\"skipped\":null"));
    cr_assert(!strstr(json, "\"skipped\":\"cuBLASLt") == with_cublaslt);
    free(json);
    hr_audit_free(audit);
    hr_recording_close(recording);
    scratch_close(&scratch);
    cr_assert_eq(fake.live, 0);
    cr_assert_eq(fake_blas.live, 0);
}

Test(hopper_baseline, the_audit_of_a_gpu_has_both)
{
    check_audit(true);
}

Test(hopper_baseline, the_audit_says_which_is_missing)
{
    check_audit(false);
}
