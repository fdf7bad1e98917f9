/*
 * The parts of an audit: audit.c sets up the configs and walks the layers; audit_layer.c measures
 * one layer; audit_baseline.c does both for baselines; audit_json.c writes the report.
 */
#ifndef HEADROOM_AUDIT_INTERNAL_H
#define HEADROOM_AUDIT_INTERNAL_H

#include "device_baseline.h"
#include "divergence.h"
#include "error_sums.h"
#include "headroom/audit.h"

enum { HR_AUDIT_CONFIGS_MAX = 256 }; /* recipes x observers of one audit */

/* The sums behind hr_audit_scores, which merge from heads to layers to the recording. */
typedef struct hr_audit_sums {
    hr_error_sums quant, kernel, total, lse;
    hr_divergence divergence;
} hr_audit_sums;

void hr_audit_sums_merge(hr_audit_sums *sums, const hr_audit_sums *other);
hr_audit_scores hr_audit_sums_finish(const hr_audit_sums *sums);

/* One layer of the recording with its FP64 reference on the original inputs. */
typedef struct hr_audit_reference {
    hr_attention_problem problem;
    hr_tensor q, k, v;            /* the recording's */
    float *q_f32, *k_f32, *v_f32; /* the same values, contiguous F32 */
    double *o, *lse;              /* ref64 of the originals */
} hr_audit_reference;

hr_status hr_audit_reference_create(const hr_recording_info *info, const hr_recording_layer *layer,
                                    const hr_mask *mask, hr_audit_reference *out) HR_NODISCARD;
void hr_audit_reference_free(hr_audit_reference *reference);

/* One config on one layer: packed operands, plan and output, kept while the layer is timed. */
typedef struct hr_audit_run_state {
    hr_plan *plan;
    hr_packed_layer packed;
    hr_device_run *run;
    float *o, *lse;
} hr_audit_run_state;

/*
 * Plans, packs and runs one config, and measures it: heads gets num_heads sums. Release state with
 * hr_audit_run_state_free, on error too.
 */
hr_status hr_audit_measure(const hr_audit_reference *reference, const hr_recipe *recipe,
                           const hr_layer_scales *scales, const hr_plan_options *options,
                           int32_t top_k, hr_audit_run_state *state,
                           hr_audit_sums *heads) HR_NODISCARD;
void hr_audit_run_state_free(hr_audit_run_state *state);

/* Repeats of a timing, sorted, into figures; x_baseline against `bf16_ms`, 0 for bf16 itself. */
void hr_audit_timing_finish(double *seconds, int32_t repeats, double flops, double bf16_ms,
                            hr_audit_timing *timing);

/* A baseline while the audit runs. */
typedef struct hr_audit_baseline_state {
    hr_device_baseline *run; /* of the layer at hand */
    hr_error_sums *heads;    /* all layers' heads, e_total of O */
    hr_error_sums lse;
    double *seconds; /* [repeats] */
    double flops;
} hr_audit_baseline_state;

/*
 * Adds the baselines of a device to the audit, which has its layers; *states gets
 * audit->baseline_count of them. Release with hr_audit_baselines_end, on error too.
 */
hr_status hr_audit_baselines_begin(hr_audit *audit, hr_device device, int32_t repeats,
                                   hr_audit_baseline_state **states) HR_NODISCARD;
void hr_audit_baselines_end(const hr_audit *audit, hr_audit_baseline_state *states);

/*
 * Runs every baseline on layer `at` and measures it; `flops` is the layer's work. One that cannot
 * do the problem, finds no cuBLASLt or no memory is marked as skipped; other failures are errors.
 */
hr_status hr_audit_baselines_measure(hr_audit *audit, const hr_audit_reference *reference,
                                     int32_t at, double flops,
                                     hr_audit_baseline_state *states) HR_NODISCARD;
void hr_audit_baselines_layer_end(const hr_audit *audit, hr_audit_baseline_state *states);
void hr_audit_baselines_finish(hr_audit *audit, int32_t repeats, hr_audit_baseline_state *states);

/* As hr_audit_time. */
hr_status hr_audit_baseline_time(hr_audit_baseline_state *state, double *seconds) HR_NODISCARD;

/* Runs the state's plan once more and gives the seconds it took. */
hr_status hr_audit_time(hr_audit_run_state *state, double *seconds) HR_NODISCARD;

#endif
