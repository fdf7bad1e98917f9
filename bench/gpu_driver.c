/*
 * Headroom's GPU kernels for bench/gpu_peers.py: a few calls with plain arguments around a packer
 * and a plan, so that the script times them on the same tensors and with the same events as its
 * peers. Inputs are BF16 [batch * seqlen, heads, head_dim] on the GPU, the output likewise. Every
 * call returns an hr_status; hr_last_error has the words.
 */
#include <stdlib.h>
#include <string.h>

#include "headroom/headroom.h"

typedef struct gpu_case {
    hr_attention_problem problem;
    hr_recipe recipe;
    int32_t *cu_seqlens;
    hr_plan *plan;
    hr_device_packer *packer;
} gpu_case;

void gpu_case_free(gpu_case *c);
int gpu_case_create(const char *recipe, int batch, int seqlen, int heads, int kv_heads,
                    int head_dim, int causal, const float *q_scale, const float *k_scale,
                    const float *v_scale, const float *k_mean, void *stream, gpu_case **out);
int gpu_case_pack(gpu_case *c, void *q, void *k, void *v);
int gpu_case_run(gpu_case *c, void *o);
const char *gpu_case_kernel(const gpu_case *c);
double gpu_case_flops(const gpu_case *c);

void gpu_case_free(gpu_case *c)
{
    if (!c) return;
    hr_device_packer_free(c->packer);
    hr_plan_free(c->plan);
    free(c->cu_seqlens);
    free(c);
}

static hr_status create(gpu_case *c, const hr_layer_scales *scales, void *stream)
{
    const hr_plan_options plan = {.device = HR_DEVICE_CUDA, .stream = stream};
    const hr_device_pack_options pack = {
        .problem = &c->problem, .recipe = &c->recipe, .scales = scales, .stream = stream};
    hr_status status = hr_plan_create(&c->problem, &c->recipe, &plan, &c->plan);
    return status == HR_OK ? hr_device_packer_create(&pack, &c->packer) : status;
}

/* Scales and mean are in host memory, as hr_layer_scales; NULL where the recipe takes none. */
int gpu_case_create(const char *recipe, int batch, int seqlen, int heads, int kv_heads,
                    int head_dim, int causal, const float *q_scale, const float *k_scale,
                    const float *v_scale, const float *k_mean, void *stream, gpu_case **out)
{
    const hr_layer_scales scales = {.q = q_scale, .k = k_scale, .v = v_scale, .k_mean = k_mean};
    gpu_case *c = calloc(1, sizeof *c);
    *out = NULL;
    if (c) c->cu_seqlens = calloc((size_t)batch + 1, sizeof *c->cu_seqlens);
    if (!c || !c->cu_seqlens) {
        gpu_case_free(c);
        return HR_ERROR_OUT_OF_MEMORY;
    }
    for (int b = 0; b <= batch; b++)
        c->cu_seqlens[b] = b * seqlen;
    hr_attention_problem_init(&c->problem, heads, kv_heads, head_dim);
    c->problem.batch = batch;
    c->problem.cu_seqlens_q = c->problem.cu_seqlens_kv = c->cu_seqlens;
    c->problem.mask.causal = causal;
    hr_status status = hr_recipe_parse(recipe, &c->recipe);
    if (status == HR_OK) status = create(c, &scales, stream);
    if (status != HR_OK)
        gpu_case_free(c);
    else
        *out = c;
    return status;
}

static hr_tensor view(const gpu_case *c, void *data, int heads)
{
    const int64_t shape[3] = {c->cu_seqlens[c->problem.batch], heads, c->problem.head_dim};
    hr_tensor tensor = hr_tensor_view(HR_DTYPE_BF16, 3, shape, data);
    tensor.device = HR_DEVICE_CUDA;
    return tensor;
}

int gpu_case_pack(gpu_case *c, void *q, void *k, void *v)
{
    const hr_tensor views[3] = {view(c, q, c->problem.num_heads),
                                view(c, k, c->problem.num_kv_heads),
                                view(c, v, c->problem.num_kv_heads)};
    return hr_device_packer_run(c->packer, &views[0], &views[1], &views[2]);
}

int gpu_case_run(gpu_case *c, void *o)
{
    const hr_tensor out = view(c, o, c->problem.num_heads);
    return hr_plan_run(c->plan, hr_device_packer_layer(c->packer), &out, NULL);
}

const char *gpu_case_kernel(const gpu_case *c)
{
    return hr_plan_kernel(c->plan)->name;
}

double gpu_case_flops(const gpu_case *c)
{
    return hr_plan_flops(c->plan);
}
