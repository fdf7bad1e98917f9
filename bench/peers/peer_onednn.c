/*
 * oneDNN's scaled dot product attention: the graph
 *
 *     MatMul(Q, K^T) -> Multiply(softmax_scale) [-> Add(mask)] -> SoftMax -> MatMul(., V)
 *
 * which the library takes as one partition and fuses. Variants f32, bf16 and f16: the type of Q, K,
 * V and O; the scores between are f32. Operands are [1, kv_heads, group, seqlen, head_dim] (K and V
 * with a group of 1), contiguous; without GQA the group is left out.
 */
#include <math.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <oneapi/dnnl/dnnl_graph.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "peer_driver.h"

enum { MAX_COPIES = 64, MAX_RANK = 5, INPUTS_MAX = 5 };

/* The graph's tensors; their numbers are the logical tensors' ids. */
enum { T_Q, T_K, T_V, T_SCALE, T_MASK, T_O, T_SCORE, T_SCALED, T_MASKED, T_P, TENSORS };

struct peer {
    peer_case problem;
    dnnl_data_type_t type;
    size_t element;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_graph_logical_tensor_t logical[TENSORS];
    dnnl_graph_compiled_partition_t compiled;
    size_t inputs;
    size_t order[INPUTS_MAX]; /* the T_* the partition wants, in its order */
    dnnl_graph_tensor_t tensor[TENSORS];
    void *k[MAX_COPIES], *v[MAX_COPIES], *o;
    int copies;
    float scale, *mask, *output;
};

static void check(dnnl_status_t status, const char *what)
{
    if (status != dnnl_success) peer_fail("%s failed with status %d", what, (int)status);
}

#define CHECK(call) check(call, #call)

const char *peer_version(void)
{
    static char text[128];
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, sizeof text, "oneDNN %d.%d.%d %.12s", v->major, v->minor, v->patch, v->hash);
    return text;
}

static uint16_t to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); /* inputs are finite */
}

static float from_bf16(uint16_t x)
{
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* By head, in the variant's type. */
static void *convert(const peer *p, const float *x, int seqlen, int heads)
{
    const size_t count = (size_t)seqlen * (size_t)heads * (size_t)p->problem.head_dim;
    float *by_head = peer_by_head(x, seqlen, heads, p->problem.head_dim);
    void *out = peer_memory(count * p->element);
    if (p->type == dnnl_f32) memcpy(out, by_head, count * sizeof(float));
    for (size_t i = 0; i < count && p->type == dnnl_bf16; i++)
        ((uint16_t *)out)[i] = to_bf16(by_head[i]);
    for (size_t i = 0; i < count && p->type == dnnl_f16; i++)
        ((_Float16 *)out)[i] = (_Float16)by_head[i];
    free(by_head);
    return out;
}

/* A contiguous logical tensor of [1, kv_heads, group, rows, columns], without the group if all 1.
 */
static void describe(peer *p, int id, dnnl_data_type_t type, int heads, int group, int rows,
                     int columns)
{
    const bool gqa = p->problem.num_heads != p->problem.num_kv_heads;
    dnnl_dims_t dims = {1, heads};
    int rank = 2;
    if (gqa) dims[rank++] = group;
    dims[rank++] = rows;
    dims[rank++] = columns;
    CHECK(dnnl_graph_logical_tensor_init_with_dims(&p->logical[id], (size_t)id, type, rank, dims,
                                                   dnnl_graph_layout_type_strided,
                                                   dnnl_graph_tensor_property_undef));
}

static void describe_all(peer *p)
{
    const peer_case *c = &p->problem;
    const int kv = c->num_kv_heads, group = c->num_heads / kv;
    describe(p, T_Q, p->type, kv, group, c->seqlen_q, c->head_dim);
    describe(p, T_K, p->type, kv, 1, c->seqlen_kv, c->head_dim);
    describe(p, T_V, p->type, kv, 1, c->seqlen_kv, c->head_dim);
    describe(p, T_O, p->type, kv, group, c->seqlen_q, c->head_dim);
    describe(p, T_MASK, dnnl_f32, 1, 1, c->seqlen_q, c->seqlen_kv);
    const int scores[] = {T_SCORE, T_SCALED, T_MASKED};
    for (int i = 0; i < 3; i++)
        describe(p, scores[i], dnnl_f32, kv, group, c->seqlen_q, c->seqlen_kv);
    describe(p, T_P, p->type, kv, group, c->seqlen_q, c->seqlen_kv);
    const dnnl_dims_t one = {1};
    CHECK(dnnl_graph_logical_tensor_init_with_dims(&p->logical[T_SCALE], T_SCALE, dnnl_f32, 1, one,
                                                   dnnl_graph_layout_type_strided,
                                                   dnnl_graph_tensor_property_undef));
}

static void add_op(const peer *p, dnnl_graph_graph_t graph, dnnl_graph_op_kind_t kind,
                   const char *name, int left, int right, int out)
{
    dnnl_graph_op_t op;
    CHECK(dnnl_graph_op_create(&op, (size_t)out, kind, name));
    CHECK(dnnl_graph_op_add_input(op, &p->logical[left]));
    if (right >= 0) CHECK(dnnl_graph_op_add_input(op, &p->logical[right]));
    CHECK(dnnl_graph_op_add_output(op, &p->logical[out]));
    const uint8_t yes = 1;
    const int64_t last = -1;
    if (left == T_Q)
        CHECK(dnnl_graph_op_set_attr_bool(op, dnnl_graph_op_attr_transpose_b, &yes, 1));
    if (kind == dnnl_graph_op_softmax)
        CHECK(dnnl_graph_op_set_attr_s64(op, dnnl_graph_op_attr_axis, &last, 1));
    CHECK(dnnl_graph_add_op(graph, op));
}

static void compile(peer *p)
{
    dnnl_graph_graph_t graph;
    dnnl_graph_partition_t partition;
    size_t partitions;
    CHECK(dnnl_graph_graph_create(&graph, dnnl_cpu));
    add_op(p, graph, dnnl_graph_op_matmul, "qk", T_Q, T_K, T_SCORE);
    add_op(p, graph, dnnl_graph_op_multiply, "scale", T_SCORE, T_SCALE, T_SCALED);
    if (p->mask) add_op(p, graph, dnnl_graph_op_add, "mask", T_SCALED, T_MASK, T_MASKED);
    add_op(p, graph, dnnl_graph_op_softmax, "softmax", p->mask ? T_MASKED : T_SCALED, -1, T_P);
    add_op(p, graph, dnnl_graph_op_matmul, "pv", T_P, T_V, T_O);
    CHECK(dnnl_graph_graph_finalize(graph));
    CHECK(dnnl_graph_graph_filter(graph, dnnl_graph_partition_policy_fusion));
    CHECK(dnnl_graph_graph_get_partition_num(graph, &partitions));
    if (partitions != 1) peer_fail("oneDNN cut the graph into %zu partitions, not 1", partitions);
    CHECK(dnnl_graph_graph_get_partitions(graph, 1, &partition));
    CHECK(dnnl_graph_partition_get_input_ports_num(partition, &p->inputs));
    dnnl_graph_logical_tensor_t port[INPUTS_MAX];
    const dnnl_graph_logical_tensor_t *inputs[INPUTS_MAX], *outputs[1] = {&p->logical[T_O]};
    if (p->inputs > INPUTS_MAX) peer_fail("oneDNN wants %zu inputs", p->inputs);
    CHECK(dnnl_graph_partition_get_input_ports(partition, p->inputs, port));
    for (size_t i = 0; i < p->inputs; i++) {
        p->order[i] = port[i].id;
        inputs[i] = &p->logical[port[i].id];
    }
    CHECK(dnnl_graph_compiled_partition_create(&p->compiled, partition));
    CHECK(dnnl_graph_partition_compile(partition, p->compiled, p->inputs, inputs, 1, outputs,
                                       p->engine));
    dnnl_graph_partition_destroy(partition);
    dnnl_graph_graph_destroy(graph);
}

static float *causal_mask(const peer_case *c)
{
    const size_t columns = (size_t)c->seqlen_kv;
    float *mask = peer_memory((size_t)c->seqlen_q * columns * sizeof *mask);
    for (int i = 0; i < c->seqlen_q; i++) {
        for (int j = 0; j < c->seqlen_kv; j++)
            mask[(size_t)i * columns + (size_t)j] =
                j > i + c->seqlen_kv - c->seqlen_q ? -INFINITY : 0;
    }
    return mask;
}

static dnnl_data_type_t type_named(const char *name)
{
    if (strcmp(name, "f32") == 0) return dnnl_f32;
    if (strcmp(name, "bf16") == 0) return dnnl_bf16;
    if (strcmp(name, "f16") == 0) return dnnl_f16;
    peer_fail("\"%s\" is no variant; there are f32, bf16 and f16", name);
}

peer *peer_open(const peer_case *c)
{
    peer *p = calloc(1, sizeof *p);
    if (!p) peer_fail("out of memory");
    omp_set_num_threads(c->threads);
    p->problem = *c;
    p->type = type_named(c->variant);
    p->element = p->type == dnnl_f32 ? 4 : 2;
    p->scale = 1 / sqrtf((float)c->head_dim);
    CHECK(dnnl_engine_create(&p->engine, dnnl_cpu, 0));
    CHECK(dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags));
    describe_all(p);
    if (c->causal && c->seqlen_q > 1) p->mask = causal_mask(c);
    compile(p);
    const size_t count = (size_t)c->seqlen_q * (size_t)c->num_heads * (size_t)c->head_dim;
    p->o = peer_memory(count * p->element);
    p->output = peer_memory(count * sizeof *p->output);
    p->k[0] = convert(p, c->k, c->seqlen_kv, c->num_kv_heads);
    p->v[0] = convert(p, c->v, c->seqlen_kv, c->num_kv_heads);
    p->copies = 1;
    void *handle[] = {[T_Q] = convert(p, c->q, c->seqlen_q, c->num_heads),
                      [T_K] = p->k[0],
                      [T_V] = p->v[0],
                      [T_SCALE] = &p->scale,
                      [T_MASK] = p->mask,
                      [T_O] = p->o};
    for (int i = T_Q; i <= T_O; i++)
        if (handle[i])
            CHECK(dnnl_graph_tensor_create(&p->tensor[i], &p->logical[i], p->engine, handle[i]));
    return p;
}

static size_t operand_bytes(const peer *p)
{
    const peer_case *c = &p->problem;
    return p->element * (size_t)c->seqlen_kv * (size_t)c->num_kv_heads * (size_t)c->head_dim;
}

size_t peer_kv_bytes(const peer *p)
{
    return 2 * operand_bytes(p);
}

void peer_add_copy(peer *p)
{
    if (p->copies == MAX_COPIES) peer_fail("more than %d copies of K and V", MAX_COPIES);
    const size_t bytes = operand_bytes(p);
    p->k[p->copies] = memcpy(peer_memory(bytes), p->k[0], bytes);
    p->v[p->copies++] = memcpy(peer_memory(bytes), p->v[0], bytes);
}

double peer_run(peer *p, int copy)
{
    const_dnnl_graph_tensor_t inputs[INPUTS_MAX], outputs[1] = {p->tensor[T_O]};
    CHECK(dnnl_graph_tensor_set_data_handle(p->tensor[T_K], p->k[copy]));
    CHECK(dnnl_graph_tensor_set_data_handle(p->tensor[T_V], p->v[copy]));
    for (size_t i = 0; i < p->inputs; i++)
        inputs[i] = p->tensor[p->order[i]];
    CHECK(dnnl_graph_compiled_partition_execute(p->compiled, p->stream, p->inputs, inputs, 1,
                                                outputs));
    CHECK(dnnl_stream_wait(p->stream));
    return 0;
}

const char *peer_unit(const peer *p)
{
    (void)p;
    return "s";
}

/* O comes head by head, in the variant's type. */
const float *peer_output(const peer *p)
{
    const peer_case *c = &p->problem;
    const size_t d = (size_t)c->head_dim, n = (size_t)c->seqlen_q, heads = (size_t)c->num_heads;
    for (size_t h = 0; h < heads; h++) {
        for (size_t t = 0; t < n; t++) {
            for (size_t i = 0; i < d; i++) {
                const size_t at = (h * n + t) * d + i;
                p->output[(t * heads + h) * d + i] = p->type == dnnl_f32 ? ((const float *)p->o)[at]
                                                     : p->type == dnnl_bf16
                                                         ? from_bf16(((const uint16_t *)p->o)[at])
                                                         : (float)((const _Float16 *)p->o)[at];
            }
        }
    }
    return p->output;
}
