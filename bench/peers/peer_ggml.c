/*
 * ggml's GGML_OP_FLASH_ATTN_EXT, one node in a graph; for ggml itself and for ik_llama.cpp's
 * fork of it, which dispatches the same operator to its own kernels.
 *
 * Variants are ggml's type names: f16, q8_0, q4_0, ..., and q8_KV where the tree has it. K and V
 * are quantized by the library's own functions and lie head by head, [num_kv_heads, seqlen_kv,
 * head_dim], contiguous: ggml's own tests of the operator lay them out so.
 */
#include <ggml.h>
#if __has_include(<ggml-cpu.h>)
#include <ggml-cpu.h>
#define PLAN(graph, threads) ggml_graph_plan(graph, threads, NULL)
#define QUANTIZE(...) ggml_quantize_chunk(__VA_ARGS__, NULL)
enum { NEEDS_MASK = 0 };
#else /* ik_llama.cpp */
#define PLAN(graph, threads) ggml_graph_plan(graph, threads)
#define QUANTIZE(...) ggml_quantize_chunk(__VA_ARGS__, NULL, NULL)
enum { NEEDS_MASK = 1 }; /* its own kernels do; without one a slow generic path runs */
#endif
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "peer_driver.h"

enum { MAX_COPIES = 256, MASK_ROWS_MULTIPLE = 64 };

struct peer {
    peer_case problem;
    struct ggml_context *context;
    struct ggml_tensor *q, *mask;
    enum ggml_type type;
    size_t operand_bytes; /* of K alone, and of V */
    int copies;
    void *k[MAX_COPIES], *v[MAX_COPIES];
    struct ggml_cgraph *graph[MAX_COPIES];
    struct ggml_tensor *o[MAX_COPIES];
    struct ggml_cplan plan;
    float *output;
};

const char *peer_version(void)
{
    return PEER_VERSION;
}

static enum ggml_type type_named(const char *name)
{
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        const char *known = ggml_type_name((enum ggml_type)i);
        if (known && strcmp(known, name) == 0) return (enum ggml_type)i;
    }
    peer_fail("this tree has no type %s", name);
}

static void *quantize(const peer *p, const float *x)
{
    const peer_case *c = &p->problem;
    float *by_head = peer_by_head(x, c->seqlen_kv, c->num_kv_heads, c->head_dim);
    void *data = peer_memory(p->operand_bytes);
    const int64_t rows = (int64_t)c->seqlen_kv * c->num_kv_heads;
    QUANTIZE(p->type, by_head, data, 0, rows, c->head_dim);
    free(by_head);
    return data;
}

/*
 * FP16, rows padded: -inf where the mask is causal and key j after query i (bottom-right aligned),
 * else 0. NULL where all keys are seen and the library does without.
 */
static struct ggml_tensor *mask_of(struct ggml_context *context, const peer_case *c)
{
    const bool causal = c->causal && c->seqlen_q > 1;
    if (!causal && !NEEDS_MASK) return NULL;
    const int64_t rows =
        (c->seqlen_q + MASK_ROWS_MULTIPLE - 1) / MASK_ROWS_MULTIPLE * MASK_ROWS_MULTIPLE;
    struct ggml_tensor *mask = ggml_new_tensor_4d(context, GGML_TYPE_F16, c->seqlen_kv, rows, 1, 1);
    ggml_fp16_t *data = peer_memory(ggml_nbytes(mask));
    const ggml_fp16_t masked = ggml_fp32_to_fp16(-INFINITY);
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < c->seqlen_kv; j++)
            data[i * c->seqlen_kv + j] = causal && j > i + c->seqlen_kv - c->seqlen_q ? masked : 0;
    }
    mask->data = data;
    return mask;
}

static void add_graph(peer *p, void *k_data, void *v_data)
{
    const peer_case *c = &p->problem;
    if (p->copies == MAX_COPIES) peer_fail("more than %d copies of K and V", MAX_COPIES);
    struct ggml_tensor *k =
        ggml_new_tensor_4d(p->context, p->type, c->head_dim, c->seqlen_kv, c->num_kv_heads, 1);
    struct ggml_tensor *v =
        ggml_new_tensor_4d(p->context, p->type, c->head_dim, c->seqlen_kv, c->num_kv_heads, 1);
    k->data = k_data;
    v->data = v_data;
    struct ggml_tensor *o =
        ggml_flash_attn_ext(p->context, p->q, k, v, p->mask, 1 / sqrtf((float)c->head_dim), 0, 0);
    ggml_flash_attn_ext_set_prec(o, GGML_PREC_F32);
    o->data = p->output;
    p->k[p->copies] = k_data;
    p->v[p->copies] = v_data;
    p->o[p->copies] = o;
    p->graph[p->copies] = ggml_new_graph_custom(p->context, 8, false);
    ggml_build_forward_expand(p->graph[p->copies], o);
    p->copies++;
}

peer *peer_open(const peer_case *problem)
{
    peer *p = calloc(1, sizeof *p);
    if (!p) peer_fail("out of memory");
    p->problem = *problem;
    struct ggml_init_params parameters = {.mem_size = (size_t)64 << 20, .no_alloc = true};
    p->context = ggml_init(parameters);
    if (!p->context) peer_fail("ggml_init failed");
#if __has_include(<ggml-cpu.h>)
    ggml_cpu_init();
#endif
    p->type = type_named(problem->variant);
    p->operand_bytes = ggml_row_size(p->type, problem->head_dim) * (size_t)problem->seqlen_kv *
                       (size_t)problem->num_kv_heads;
    p->q = ggml_new_tensor_4d(p->context, GGML_TYPE_F32, problem->head_dim, problem->seqlen_q,
                              problem->num_heads, 1);
    p->q->data = peer_by_head(problem->q, problem->seqlen_q, problem->num_heads, problem->head_dim);
    p->mask = mask_of(p->context, problem);
    p->output = peer_memory(sizeof(float) * (size_t)problem->seqlen_q * (size_t)problem->num_heads *
                            (size_t)problem->head_dim);
    add_graph(p, quantize(p, problem->k), quantize(p, problem->v));
    p->plan = PLAN(p->graph[0], problem->threads);
    if (p->plan.work_size) p->plan.work_data = peer_memory(p->plan.work_size);
    return p;
}

size_t peer_kv_bytes(const peer *p)
{
    return 2 * p->operand_bytes;
}

static void *copy_of(const void *data, size_t bytes)
{
    return memcpy(peer_memory(bytes), data, bytes);
}

void peer_add_copy(peer *p)
{
    add_graph(p, copy_of(p->k[0], p->operand_bytes), copy_of(p->v[0], p->operand_bytes));
}

double peer_run(peer *p, int copy)
{
    if (ggml_graph_compute(p->graph[copy], &p->plan) != GGML_STATUS_SUCCESS)
        peer_fail("ggml_graph_compute failed");
    return 0;
}

const char *peer_unit(const peer *p)
{
    (void)p;
    return "s";
}

/* The operator's own output is [seqlen_q, num_heads, head_dim]. */
const float *peer_output(const peer *p)
{
    return p->output;
}
