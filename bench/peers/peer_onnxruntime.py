"""ONNX Runtime's CPU provider: its fused attention operators, one of which is the whole model.

Prefill, variants f32 and f16: on [1, seqlen, heads * head_dim], as the operators take it.
Decode, variants f32, f16, int8 and int4: GroupQueryAttention, which its language models use, with K
and V in a cache of that type (int8 and int4: symmetric, scales by channel). Each run writes the
last token to the cache's end again, in place, and attends to all seqlen_kv keys. The operator
quantizes the cache itself: it is filled by prompts of FILL tokens, whose attention is cheap.
"""

import sys

import numpy
import onnxruntime
import peer_driver
from onnx import TensorProto, helper

FILL = 64
CACHES = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "int8": TensorProto.INT8,
          "int4": TensorProto.UINT8}
DTYPES = {"f32": numpy.float32, "f16": numpy.float16}
CODES = {"int8": 127, "int4": 7}
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]


def session_of(case, node, inputs, outputs):
    graph = helper.make_graph(
        [node], "attention",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs])
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options,
                                        providers=["CPUExecutionProvider"])


def bind(session, arrays, out):
    """Binds copies of the arrays, and outputs like those of `out`: the binding and its tensors."""
    tensors = {name: onnxruntime.OrtValue.ortvalue_from_numpy(x.copy())
               for name, x in arrays.items()}
    binding = session.io_binding()
    for name, tensor in tensors.items():
        binding.bind_ortvalue_input(name, tensor)
    for name, like in out.items():
        if isinstance(like, str):  # in the place of that input
            tensors[name] = tensors[like]
        else:
            tensors[name] = onnxruntime.OrtValue.ortvalue_from_numpy(numpy.zeros_like(like))
        binding.bind_ortvalue_output(name, tensors[name])
    return binding, tensors


def by_token(x):
    """[heads, seqlen, head_dim] to [1, seqlen, heads * head_dim]."""
    return numpy.ascontiguousarray(x.transpose(1, 0, 2).reshape(1, x.shape[1], -1))


class Prefill:
    """Full: MultiHeadAttention. Causal: GroupQueryAttention without a past, which is faster there;
    it also writes K and V to a cache."""

    def __init__(self, case):
        if case.variant in CODES or case.heads != case.kv_heads:
            sys.exit("prefill is for f32 and f16, with as many KV heads as query heads")
        kind, dtype = CACHES[case.variant], DTYPES[case.variant]
        self.arrays = {x: by_token(peer_driver.load(case, x).astype(dtype)) for x in "qkv"}
        heads, width = case.heads, case.heads * case.head_dim
        inputs = [(x, kind, [1, None, width]) for x in "qkv"]
        outputs = [("o", kind, [1, None, width])]
        self.out = {"o": self.arrays["q"]}
        if case.mask == "full":
            node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["o"],
                                    domain="com.microsoft", num_heads=heads)
        else:
            node = helper.make_node("GroupQueryAttention",
                                    ["q", "k", "v", "", "", "seqlens_k", "total"],
                                    ["o", "present_k", "present_v"], domain="com.microsoft",
                                    num_heads=heads, kv_num_heads=heads)
            inputs += [("seqlens_k", TensorProto.INT32, [1]), ("total", TensorProto.INT32, [])]
            self.arrays.update(seqlens_k=numpy.array([case.seqlen_kv - 1], numpy.int32),
                               total=numpy.array(case.seqlen_kv, numpy.int32))
            shape = [1, heads, case.seqlen_kv, case.head_dim]
            for name in ("present_k", "present_v"):
                outputs.append((name, kind, shape))
                self.out[name] = numpy.empty(shape, dtype)
        self.session = session_of(case, node, inputs, outputs)
        self.copies = []
        self.add_copy()

    def kv_bytes(self):
        return self.arrays["k"].nbytes + self.arrays["v"].nbytes

    def add_copy(self):
        self.copies.append(bind(self.session, self.arrays, self.out))

    def result(self):
        return self.copies[0][1]["o"].numpy()


class Decode:
    def __init__(self, case):
        self.case = case
        self.kind = CACHES[case.variant]
        self.quantized = case.variant in CODES
        self.width = case.head_dim // 2 if case.variant == "int4" else case.head_dim
        self.float = TensorProto.FLOAT if self.quantized else self.kind
        self.dtype = DTYPES.get(case.variant, numpy.float32)
        self.q, self.k, self.v = (peer_driver.load(case, x).astype(self.dtype) for x in "qkv")
        self.scales = {}
        if self.quantized:  # [kv_heads, 1, head_dim]
            self.scales = {
                x + "_scale": numpy.abs(data).max(1, keepdims=True).astype(numpy.float32) /
                CODES[case.variant] for x, data in (("k", self.k), ("v", self.v))}
        self.session = self.make_session()
        self.cache = self.fill()
        self.copies = []
        self.add_copy()

    def make_session(self):
        case = self.case
        names = ["q", "k", "v", "past_k", "past_v", "seqlens_k", "total"]
        options = {}
        if self.quantized:
            names += ["", "", "", "", "", "k_scale", "v_scale"]
            options = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL",
                       "kv_cache_bit_width": 4 if case.variant == "int4" else 8}
        node = helper.make_node("GroupQueryAttention", names, ["o", "present_k", "present_v"],
                                domain="com.microsoft", num_heads=case.heads,
                                kv_num_heads=case.kv_heads, **options)
        cache = [None, case.kv_heads, None, self.width]
        widths = {"q": case.heads * case.head_dim, "k": case.kv_heads * case.head_dim,
                  "v": case.kv_heads * case.head_dim}
        inputs = [(x, self.float, [None, None, width]) for x, width in widths.items()]
        inputs += [("past_k", self.kind, cache), ("past_v", self.kind, cache),
                   ("seqlens_k", TensorProto.INT32, [None]), ("total", TensorProto.INT32, [])]
        inputs += [(name, TensorProto.FLOAT, list(x.shape)) for name, x in self.scales.items()]
        outputs = [("o", self.float, [None, None, widths["q"]]), ("present_k", self.kind, cache),
                   ("present_v", self.kind, cache)]
        return session_of(case, node, inputs, outputs)

    def fill(self):
        """K and V of all tokens as the operator quantizes them: [1, kv_heads, seqlen_kv, width].

        Prompts of FILL tokens each, a batch of them; their attention is not used.
        """
        case = self.case
        if case.seqlen_kv % FILL:
            sys.exit(f"the number of keys must be a multiple of {FILL}, not {case.seqlen_kv}")
        batch = case.seqlen_kv // FILL
        feeds = {x: by_token(data).reshape(batch, FILL, -1) for x, data in
                 (("k", self.k), ("v", self.v))}
        feeds["q"] = numpy.zeros((batch, FILL, case.heads * case.head_dim), self.dtype)
        empty = numpy.zeros((batch, case.kv_heads, 0, self.width),
                            helper.tensor_dtype_to_np_dtype(self.kind))
        feeds.update(past_k=empty, past_v=empty, total=numpy.array(FILL, numpy.int32),
                     seqlens_k=numpy.full(batch, FILL - 1, numpy.int32), **self.scales)
        caches = self.session.run(["present_k", "present_v"], feeds)
        return [numpy.ascontiguousarray(x.transpose(1, 0, 2, 3).reshape(
            1, case.kv_heads, case.seqlen_kv, self.width)) for x in caches]

    def kv_bytes(self):
        return sum(x.nbytes for x in self.cache) + sum(x.nbytes for x in self.scales.values())

    def add_copy(self):
        case = self.case
        arrays = {"q": by_token(self.q), "k": by_token(self.k[:, -1:]),
                  "v": by_token(self.v[:, -1:]), "past_k": self.cache[0],
                  "past_v": self.cache[1],
                  "seqlens_k": numpy.array([case.seqlen_kv - 1], numpy.int32),
                  "total": numpy.array(case.seqlen_kv, numpy.int32), **self.scales}
        out = {"o": arrays["q"], "present_k": "past_k", "present_v": "past_v"}
        self.copies.append(bind(self.session, arrays, out))

    def result(self):
        return self.copies[0][1]["o"].numpy()


class Peer:
    def __init__(self, case):
        self.case = case
        self.model = Decode(case) if case.seqlen_q == 1 else Prefill(case)

    def version(self):
        return f"onnxruntime {onnxruntime.__version__}"

    def kv_bytes(self):
        return self.model.kv_bytes()

    def add_copy(self):
        self.model.add_copy()

    def run(self, copy):
        self.model.session.run_with_iobinding(self.model.copies[copy][0])

    def output(self):
        shape = (self.case.seqlen_q, self.case.heads, self.case.head_dim)
        return numpy.ascontiguousarray(self.model.result().reshape(shape), numpy.float32)


if __name__ == "__main__":
    peer_driver.main(Peer)
