"""OpenVINO's CPU plugin: its ScaledDotProductAttention.

Variants f32, bf16 and f16: a model of that one operator, in that inference precision.
Variants u8 and u4 (decode only): a model with state, as its language models are, for which the
plugin keeps K and V in a quantized cache of its own (KV_CACHE_PRECISION). The state is set to all
tokens but one; each run appends the last token's K and V again, so runs see seqlen_kv keys and then
a few more.
"""

import sys

import numpy
import openvino
import peer_driver
from openvino import opset13 as ops

PRECISIONS = {"f32": openvino.Type.f32, "bf16": openvino.Type.bf16, "f16": openvino.Type.f16}
CACHES = {"u8": openvino.Type.u8, "u4": openvino.Type.u4}


def parameter(heads, head_dim, name):
    return ops.parameter([1, heads, -1, head_dim], numpy.float32, name=name)


def repeat_heads(x, case):
    """[1, kv_heads, L, D] to [1, heads, L, D] as exported models do, which the plugin fuses."""
    times = case.heads // case.kv_heads
    if times == 1:
        return x
    x = ops.unsqueeze(x, ops.constant(2))
    shape = ops.constant([1, case.kv_heads, times, 1, case.head_dim])
    x = ops.broadcast(x, shape, broadcast_spec="BIDIRECTIONAL")
    return ops.reshape(x, ops.constant([0, case.heads, -1, case.head_dim]), special_zero=True)


def plain_model(case):
    q = parameter(case.heads, case.head_dim, "q")
    k, v = (parameter(case.kv_heads, case.head_dim, x) for x in "kv")
    causal = case.mask == "causal" and case.seqlen_q > 1
    o = ops.scaled_dot_product_attention(q, repeat_heads(k, case), repeat_heads(v, case),
                                         causal=causal)
    return openvino.Model([ops.result(o)], [q, k, v], "attention")


def model_with_state(case):
    q = parameter(case.heads, case.head_dim, "q")
    k, v = (parameter(case.kv_heads, case.head_dim, x) for x in "kv")
    beam = ops.parameter([-1], numpy.int32, name="beam")
    sinks, all_tokens = [], []
    for name, token in (("k", k), ("v", v)):
        variable = "past_" + name
        shape = [1, case.kv_heads, -1, case.head_dim]
        empty = ops.constant(numpy.zeros((1, case.kv_heads, 0, case.head_dim), numpy.float32))
        past = ops.read_value(empty, variable, numpy.float32, openvino.PartialShape(shape))
        kept = ops.gather(past, beam, ops.constant(0))
        both = ops.concat([kept, token], 2)
        sinks.append(ops.assign(both, variable))
        all_tokens.append(repeat_heads(both, case))
    o = ops.scaled_dot_product_attention(q, *all_tokens, causal=False)
    return openvino.Model([ops.result(o)], sinks, [q, k, v, beam], "attention")


class Peer:
    def __init__(self, case):
        self.case = case
        self.q, self.k, self.v = (peer_driver.load(case, x)[None] for x in "qkv")
        options = {"INFERENCE_NUM_THREADS": case.threads, "NUM_STREAMS": 1,
                   "PERFORMANCE_HINT": "LATENCY"}
        self.cache = CACHES.get(case.variant)
        if self.cache:
            if case.seqlen_q != 1:
                sys.exit("a quantized cache is for decode, with one query")
            options.update(KV_CACHE_PRECISION=self.cache, INFERENCE_PRECISION_HINT="f32")
        else:
            options.update(INFERENCE_PRECISION_HINT=PRECISIONS[case.variant])
        model = model_with_state(case) if self.cache else plain_model(case)
        self.compiled = openvino.Core().compile_model(model, "CPU", options)
        self.requests = []
        self.add_copy()
        self.result = None

    def version(self):
        return f"openvino {openvino.__version__}"

    def kv_bytes(self):
        """Payload of K and V; the plugin does not say what its scales take."""
        bits = (self.cache or PRECISIONS[self.case.variant]).bitwidth
        if not self.cache:
            bits = 32  # inputs are float32; the plugin converts
        return self.k.size * 2 * bits // 8

    def add_copy(self):
        request = self.compiled.create_infer_request()
        if self.cache:
            for state in request.query_state():
                filled = self.k if state.name == "past_k" else self.v
                state.state = openvino.Tensor(numpy.ascontiguousarray(filled[:, :, :-1]))
            inputs = [self.q, self.k[:, :, -1:].copy(), self.v[:, :, -1:].copy(),
                      numpy.zeros(1, numpy.int32)]
        else:
            inputs = [self.q, self.k.copy(), self.v.copy()]
        tensors = [openvino.Tensor(x, shared_memory=True) for x in inputs]
        for i, tensor in enumerate(tensors):
            request.set_input_tensor(i, tensor)
        self.requests.append((request, inputs, tensors))

    def run(self, copy):
        request = self.requests[copy][0]
        request.infer()
        if self.result is None:  # of the first run, which sees exactly seqlen_kv keys
            self.result = request.get_output_tensor().data.copy()

    def output(self):
        return numpy.ascontiguousarray(self.result[0].transpose(1, 0, 2), numpy.float32)


if __name__ == "__main__":
    peer_driver.main(Peer)
