/*
 * The audit: what each recipe costs in accuracy and buys in speed, per layer and head.
 *
 * Error is always split in three, with ref64 the FP64 oracle:
 *     e_quant  = ref64(dequantized inputs) - ref64(original inputs)   what the formats cost
 *     e_kernel = kernel output - ref64(dequantized inputs)            what the kernel adds
 *     e_total  = kernel output - ref64(original inputs)               what the user sees
 */
#ifndef HEADROOM_AUDIT_H
#define HEADROOM_AUDIT_H

#include "headroom/attention.h"
#include "headroom/calibration.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Distance of x from reference r. Non-finite elements are counted, and any makes every figure NaN,
 * so that no comparison lets it pass; so does comparing nothing. A zero reference gives relative
 * errors of 0 (x is zero too, or no larger than 2^-53, which is what HR_DTYPE_C4 leaves of exact
 * zeros; cosine 1) or infinity (cosine 0).
 */
typedef struct hr_error {
    double max_abs;    /* max |x - r| */
    double rmse;       /* sqrt(mean (x - r)^2) */
    double rel_l1;     /* sum |x - r| / sum |r| */
    double rel_l2;     /* |x - r|_2 / |r|_2 */
    double cosine;     /* x . r / (|x| |r|) */
    double sqnr_db;    /* 20 log10(|r|_2 / |x - r|_2); +inf when equal */
    int64_t count;     /* elements compared */
    int64_t nonfinite; /* NaN or infinity in x or r */
} hr_error;

/* rows x columns elements, row strides in elements. x is F32, r is F64. */
HR_API void hr_error_measure(const float *x, int64_t x_stride, const double *r, int64_t r_stride,
                             int64_t rows, int64_t columns, hr_error *out);

typedef struct hr_audit_scores {
    hr_error quant, kernel, total; /* of O */
    hr_error lse;                  /* LSE: kernel against ref64(original) */
    double softmax_kl; /* mean over rows of KL(softmax original || softmax dequantized), nats */
    double top_k_agreement; /* mean over rows of |top-k original and dequantized| / k */
} hr_audit_scores;

typedef struct hr_audit_timing {
    int32_t repeats;
    double median_ms, min_ms, max_ms; /* of all layers of one pass through the recording */
    double gops;       /* 1e9 floating-point operations the mask leaves, per second */
    double x_baseline; /* bf16 median / this median, same run, interleaved */
    int64_t kv_bytes;  /* packed K and V, scales included, all layers */
} hr_audit_timing;

/* One recipe (with one observer, when it needs static scales) over the whole recording. */
typedef struct hr_audit_config {
    char id[HR_RECIPE_NAME_BYTES + 64]; /* "fp8/absmax", "int8" */
    hr_recipe recipe;
    char observer[32]; /* "" when nothing is static */
    /* Where scales came from: made by the audit, which owns it, or the options'; NULL: all dynamic.
     */
    const hr_profile *profile;
    const hr_kernel_info *kernel;
    double kv_bits; /* hr_recipe_kv_bits, mean over layers */
    hr_audit_timing timing;
    hr_audit_scores *layers; /* [layer_count] */
    hr_audit_scores *heads;  /* all layers' heads in order; layer l starts at head_offset[l] */
    hr_audit_scores summary; /* over the whole recording */
} hr_audit_config;

/*
 * What recipes on a GPU are compared with, timed with them: "fp32-reference"
 * (hr_device_reference_attention) and "cublaslt-fp8" (FP8 products of cuBLASLt around a softmax,
 * not fused, a scale a head). Neither is a recipe, and hr_audit_choose does not choose them.
 */
typedef struct hr_audit_baseline {
    const char *id;
    char skipped[512]; /* why it was not run, and then there are no figures; "" when it was */
    hr_audit_timing timing;
    hr_error *layers, *heads; /* e_total of O, as a config's */
    hr_error total, lse;      /* over the whole recording */
} hr_audit_baseline;

typedef struct hr_audit_layer {
    int32_t layer; /* number in the model */
    int32_t num_heads, num_kv_heads, head_dim;
    hr_dtype dtype; /* of the recording */
} hr_audit_layer;

typedef struct hr_audit {
    int32_t layer_count;
    hr_audit_layer *layers; /* [layer_count] in ascending order of number */
    int32_t *head_offset;   /* [layer_count + 1] */
    int32_t config_count;
    hr_audit_config *configs; /* bf16 first */
    int32_t baseline_count;   /* 0 on the CPU */
    hr_audit_baseline *baselines;
    int32_t top_k;
    int32_t threads;
    bool masked;          /* hr_audit_options.mask was given: */
    hr_mask mask;         /* a copy, without its blocks, */
    hr_block_mask blocks; /* of which the sizes are here; block_q is 0 when there were none */
    hr_recording_info recording; /* path and model stay owned by the recording */
    const hr_profile *profile;   /* the options', which must outlive the result; or NULL */
} hr_audit;

/* Called between steps with the fraction done; a nonzero return stops the audit (HR_ERROR_IO). */
typedef int (*hr_progress)(void *context, double fraction, const char *what);

typedef struct hr_audit_options {
    const hr_recipe *recipes; /* NULL: all presets */
    int32_t recipe_count;
    const char *const *observers; /* for recipes with static scales; NULL: absmax */
    int32_t observer_count;
    /*
     * Used instead of calibrating, for recipes whose static scales it has; HR_ERROR_NOT_FOUND
     * when it lacks a layer that is audited.
     */
    const hr_profile *profile;
    const int32_t *layers; /* layer numbers, each once; NULL: all */
    int32_t layer_count;
    /*
     * What else hides keys: window, keep and blocks (for the recording's lengths; heads 1, or
     * as all its layers allow). Causality is the recording's. NULL: nothing.
     */
    const hr_mask *mask;
    hr_device device; /* where recipes run; NULL recipes are then the presets it has kernels for */
    int32_t threads;  /* of the timed runs; 0: hr_machine_threads, which all else uses */
    int32_t repeats;  /* timed runs a config; 0: 7 */
    int32_t top_k;    /* 0: 8 */
    hr_progress progress;
    void *progress_context;
} hr_audit_options;

/*
 * Runs the audit. bf16 is always included, as the baseline. Recipes that need static scales are
 * calibrated on the recording itself with each observer, unless a profile is given. Release with
 * hr_audit_free; the recording must outlive the result.
 */
HR_API hr_status hr_audit_run(const hr_recording *recording, const hr_audit_options *options,
                              hr_audit **out) HR_NODISCARD;
HR_API void hr_audit_free(hr_audit *audit);

/*
 * The answer to "how few bits can each head live with": for every head the config of fewest kv_bits
 * (ties: least error) whose e_total rel_l2 is <= budget. choice has head_offset[layer_count]
 * entries, an index into configs, or -1 when none but the originals would do.
 */
HR_API hr_status hr_audit_choose(const hr_audit *audit, double budget,
                                 int32_t *choice) HR_NODISCARD;

/* One recipe for all heads, and the nearest that is not quite enough. */
typedef struct hr_audit_uniform {
    /*
     * Index of the config of fewest kv_bits (ties: the least worst) whose e_total rel_l2 is <=
     * budget on every head; -1: none is.
     */
    int32_t config;
    double worst; /* its largest rel_l2 of a head; NaN without one */
    /*
     * Of the configs of fewer bits (all, without a config) that which breaks the fewest heads,
     * and how many; -1 and 0: there is none.
     */
    int32_t narrower, broken;
} hr_audit_uniform;

HR_API hr_status hr_audit_choose_uniform(const hr_audit *audit, double budget,
                                         hr_audit_uniform *out) HR_NODISCARD;

/*
 * The report as one JSON document (tools/report.schema.json), NUL-terminated; free with free().
 * `budget` is the one used for the per-head choice in it.
 */
HR_API hr_status hr_audit_json(const hr_audit *audit, double budget, char **out) HR_NODISCARD;

#ifdef __cplusplus
}
#endif

#endif
