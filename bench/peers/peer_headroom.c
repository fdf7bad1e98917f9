/*
 * Headroom itself as a peer, and the machine's limits: variants are recipes (int8, int4, fp8,
 * bf16, or any text of headroom/recipe.h), and
 *
 *     peak-int8, peak-fp32   a register-only multiply-add loop, GOP/s
 *     read                   a streaming read of 1 GiB, GB/s
 *
 * Operands are packed once, as the peers' are quantized once. fp8's static scales are calibrated on
 * the inputs themselves.
 */
#include <headroom/headroom.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "peak.h"
#include "peer_driver.h"

enum { MAX_COPIES = 256 };

static const size_t READ_BYTES = (size_t)1 << 30;

struct peer {
    peer_case problem;
    const char *unit;
    hr_plan *plan;
    hr_packed_layer packed[MAX_COPIES]; /* all with the Q of the first */
    int copies;
    float *o;
    hr_peak_kind peak;
    float *stream;
};

static void check(hr_status status)
{
    if (status != HR_OK) peer_fail("%s: %s", hr_status_string(status), hr_last_error());
}

const char *peer_version(void)
{
    static char text[512];
    snprintf(text, sizeof text, "headroom %s, %s, %s", hr_version(), hr_machine_commit(),
             hr_machine_compiler());
    return text;
}

static hr_tensor view(const float *data, int tokens, int heads, int head_dim)
{
    int64_t shape[3] = {tokens, heads, head_dim};
    return hr_tensor_view(HR_DTYPE_F32, 3, shape, (void *)data);
}

/* Static scales for a recipe, calibrated on the inputs. */
static hr_profile *calibrate(const hr_recipe *recipe, const hr_tensor *q, const hr_tensor *k,
                             const hr_tensor *v)
{
    hr_calibrator_options options = {.recipe = *recipe};
    hr_calibrator *calibrator;
    hr_profile *profile;
    hr_tensor repeated = *q;
    if (q->shape[0] == 1) { /* the calibrator wants as many queries as keys */
        repeated.shape[0] = k->shape[0];
        repeated.stride[0] = 0;
    }
    check(hr_calibrator_create(&options, &calibrator));
    check(hr_calibrator_observe(calibrator, 0, &repeated, k, v));
    check(hr_calibrator_finish(calibrator, NULL, 0, &profile));
    hr_calibrator_free(calibrator);
    return profile;
}

static void pack(peer *p, const hr_recipe *recipe, const int32_t *cu_q, const int32_t *cu_kv)
{
    const peer_case *c = &p->problem;
    hr_tensor q = view(c->q, c->seqlen_q, c->num_heads, c->head_dim);
    hr_tensor k = view(c->k, c->seqlen_kv, c->num_kv_heads, c->head_dim);
    hr_tensor v = view(c->v, c->seqlen_kv, c->num_kv_heads, c->head_dim);
    hr_layer_layouts layouts = hr_plan_layouts(p->plan);
    hr_layer_scales scales = {0};
    hr_profile *profile = NULL;
    if (hr_recipe_needs_profile(recipe)) {
        profile = calibrate(recipe, &q, &k, &v);
        check(hr_profile_scales(profile, 0, recipe, &scales));
    }
    check(hr_pack_layer(recipe, &layouts, &q, &k, &v, 1, cu_q, cu_kv, profile ? &scales : NULL,
                        &p->packed[0]));
    hr_profile_free(profile);
}

static void open_attention(peer *p)
{
    const peer_case *c = &p->problem;
    const int32_t cu_q[2] = {0, c->seqlen_q}, cu_kv[2] = {0, c->seqlen_kv};
    hr_recipe recipe;
    hr_attention_problem problem;
    check(hr_recipe_parse(c->variant, &recipe));
    hr_attention_problem_init(&problem, c->num_heads, c->num_kv_heads, c->head_dim);
    problem.cu_seqlens_q = cu_q;
    problem.cu_seqlens_kv = cu_kv;
    problem.mask.causal = c->causal;
    hr_plan_options options = {.threads = c->threads};
    check(hr_plan_create(&problem, &recipe, &options, &p->plan));
    pack(p, &recipe, cu_q, cu_kv);
    p->copies = 1;
    p->unit = "s";
    p->o = peer_memory(sizeof(float) * (size_t)c->seqlen_q * (size_t)c->num_heads *
                       (size_t)c->head_dim);
}

static void open_peak(peer *p)
{
    const char *variant = p->problem.variant;
    p->unit = strcmp(variant, "read") == 0 ? "GB/s" : "GOP/s";
    if (strcmp(variant, "read") == 0) {
        p->stream = peer_memory(READ_BYTES);
        memset(p->stream, 1, READ_BYTES);
    } else if (strcmp(variant, "peak-int8") == 0) {
        p->peak = HR_PEAK_INT8;
    } else if (strcmp(variant, "peak-fp32") == 0) {
        p->peak = HR_PEAK_FP32;
    } else {
        peer_fail("\"%s\" is no peak; there are peak-int8, peak-fp32 and read", variant);
    }
}

peer *peer_open(const peer_case *problem)
{
    peer *p = calloc(1, sizeof *p);
    if (!p) peer_fail("out of memory");
    p->problem = *problem;
    if (strncmp(problem->variant, "peak", 4) == 0 || strcmp(problem->variant, "read") == 0)
        open_peak(p);
    else
        open_attention(p);
    return p;
}

size_t peer_kv_bytes(const peer *p)
{
    if (!p->plan) return 0; /* a peak */
    return (size_t)(hr_packed_bytes(&p->packed[0].k) + hr_packed_bytes(&p->packed[0].v));
}

void peer_add_copy(peer *p)
{
    if (p->copies == MAX_COPIES) peer_fail("more than %d copies of K and V", MAX_COPIES);
    const hr_packed_layer *first = &p->packed[0];
    hr_packed_layer *copy = &p->packed[p->copies++];
    copy->q = first->q;
    check(hr_packed_relayout(&first->k, first->k.layout, &copy->k));
    check(hr_packed_relayout(&first->v, first->v.layout, &copy->v));
}

double peer_run(peer *p, int copy)
{
    const peer_case *c = &p->problem;
    if (p->stream) return hr_peak_read_gbps(p->stream, READ_BYTES, c->threads);
    if (!p->plan) return hr_peak_gops(p->peak, HR_ISA_PORTABLE, c->threads);
    hr_tensor o = view(p->o, c->seqlen_q, c->num_heads, c->head_dim);
    check(hr_plan_run(p->plan, &p->packed[copy], &o, NULL));
    return 0;
}

const char *peer_unit(const peer *p)
{
    return p->unit;
}

const float *peer_output(const peer *p)
{
    return p->o;
}
