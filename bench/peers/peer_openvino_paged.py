"""OpenVINO's CPU plugin: its PagedAttention, the operator its server for language models runs on.

Variants paged-u8, paged-u4, paged-bf16 and paged-f32: the cache's precision (KV_CACHE_PRECISION);
the inference precision is bf16 for paged-bf16 and f32 for the others. The plugin chooses the pages'
size and layout, and quantizes what it is given. For decode the cache is filled by prompts of one
page each, whose attention is cheap; each run writes the last token again, in place, and attends to
all seqlen_kv keys. Causal prefill is a prompt of all tokens, which it also writes to the cache. It
has no full mask.
"""

import sys

import numpy
import openvino
import peer_driver
from openvino import opset13 as ops

PREFIX = "paged-"
PRECISIONS = {"u8": openvino.Type.u8, "u4": openvino.Type.u4, "bf16": openvino.Type.bf16,
              "f32": openvino.Type.f32}
INTEGERS = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")


def constant(value, dtype=numpy.int32):
    return ops.constant(numpy.array(value, dtype))


def model_of(case):
    """The operator with all that it can do besides left empty, or 0."""
    width, kv_width = case.heads * case.head_dim, case.kv_heads * case.head_dim
    parameters = [ops.parameter([-1, n], numpy.float32, name=name)
                  for name, n in (("q", width), ("k", kv_width), ("v", kv_width))]
    parameters += [ops.parameter(openvino.PartialShape([-1] * 4), openvino.Type.dynamic, name=name)
                   for name in ("key_cache.0", "value_cache.0")]
    parameters += [ops.parameter([-1], numpy.int32, name=name) for name in INTEGERS]
    parameters.append(ops.parameter([], numpy.int32, name="max_context_len"))
    none, no_floats = constant([]), constant([], numpy.float32)
    zero = constant(0)
    attention = openvino.op._PagedAttentionExtension([x.output(0) for x in (
        *parameters[:9],
        constant(case.head_dim ** -0.5, numpy.float32), zero,  # scale, sliding window
        no_floats, parameters[9], zero,  # ALiBi slopes, max_context_len, score window
        none, none, no_floats,  # rotation of cached keys
        no_floats, zero, zero,  # sparse attention
        no_floats,  # sinks
        zero, none, none, none,  # eviction
        none, constant([], numpy.uint8), none)])  # token types, bias between queries
    info = attention.get_rt_info()
    for x in "kv":
        info[f"num_{x}_heads"] = case.kv_heads
        info[f"{x}_head_size"] = case.head_dim
    return openvino.Model([ops.result(attention.output(0))], parameters, "attention")


class Peer:
    def __init__(self, case):
        if case.seqlen_q > 1 and case.mask == "full":
            sys.exit("PagedAttention is causal")
        self.case = case
        self.q, self.k, self.v = (
            peer_driver.load(case, x).transpose(1, 0, 2).reshape(
                (case.seqlen_q, -1) if x == "q" else (case.seqlen_kv, -1)).copy() for x in "qkv")
        variant = case.variant.removeprefix(PREFIX)
        arithmetic = openvino.Type.bf16 if variant == "bf16" else openvino.Type.f32
        self.compiled = openvino.Core().compile_model(model_of(case), "CPU", {
            "INFERENCE_NUM_THREADS": case.threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": arithmetic, "KV_CACHE_PRECISION": PRECISIONS[variant]})
        value_cache = self.compiled.input("value_cache.0").get_partial_shape()
        # Values are quantized by token, so a page has a row for each of its tokens.
        self.page = value_cache[2].get_length()
        if case.seqlen_kv % self.page:
            sys.exit(f"the number of keys must be a multiple of {self.page}, not {case.seqlen_kv}")
        self.requests = []
        self.add_copy()

    def version(self):
        return f"openvino {openvino.__version__}"

    def cache_tensors(self):
        """An empty cache: pages of the type and shape the plugin has chosen, scales among them."""
        tensors = []
        for name in ("key_cache.0", "value_cache.0"):
            port = self.compiled.input(name)
            shape = [n.get_length() for n in list(port.get_partial_shape())[1:]]
            tensors.append(openvino.Tensor(port.get_element_type(),
                                           [self.case.seqlen_kv // self.page, *shape]))
        return tensors

    def kv_bytes(self):
        return sum(x.byte_size for x in self.requests[0][1])

    def set_inputs(self, request, cache, rows, past, pages):
        """rows: of q, k and v of one sequence, after `past` tokens, in these pages of the cache."""
        integers = {"past_lens": [past], "subsequence_begins": [0, len(rows[0])],
                    "block_indices": pages, "block_indices_begins": [0, len(pages)],
                    "max_context_len": past + len(rows[0])}
        tensors = {name: openvino.Tensor(numpy.array(x, numpy.int32))
                   for name, x in integers.items()}
        tensors.update({name: openvino.Tensor(x) for name, x in zip("qkv", rows)})
        tensors.update({"key_cache.0": cache[0], "value_cache.0": cache[1]})
        for name, tensor in tensors.items():
            request.set_tensor(name, tensor)

    def fill(self, request, cache):
        """A prompt for each page."""
        q = numpy.zeros((self.page, self.case.heads * self.case.head_dim), numpy.float32)
        for page in range(self.case.seqlen_kv // self.page):
            tokens = slice(page * self.page, (page + 1) * self.page)
            self.set_inputs(request, cache, (q, self.k[tokens], self.v[tokens]), 0, [page])
            request.infer()

    def add_copy(self):
        cache = self.cache_tensors()
        request = self.compiled.create_infer_request()
        pages = list(range(self.case.seqlen_kv // self.page))
        rows, past = (self.q, self.k, self.v), 0
        if self.case.seqlen_q == 1:
            self.fill(request, cache)
            rows, past = (self.q, self.k[-1:], self.v[-1:]), self.case.seqlen_kv - 1
        self.set_inputs(request, cache, rows, past, pages)
        self.requests.append((request, cache))

    def run(self, copy):
        self.requests[copy][0].infer()

    def output(self):
        o = self.requests[0][0].get_output_tensor(0).data
        shape = (self.case.seqlen_q, self.case.heads, self.case.head_dim)
        return numpy.ascontiguousarray(o.reshape(shape), numpy.float32)


if __name__ == "__main__":
    peer_driver.main(Peer)
