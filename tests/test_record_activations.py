#!/usr/bin/env python3
"""Recordings of tiny, randomly initialised models: what they hold must be what attention read.

The models are made from configs, so nothing is downloaded. Each is run once with the recorder and
its attention output caught separately, before the output projection; softmax(scale Q K^T + mask) V
of the *file* must give that output again. The file is read with the safetensors package, not with
the tool's own code. Exit code 77 (skipped) when torch or transformers (4.49 or later, the first
with attention functions) is missing.
"""
import importlib.util
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
try:
    import torch
    import transformers
    from safetensors import safe_open
except ImportError as missing:
    print(f"SKIP: {missing}", file=sys.stderr)
    sys.exit(77)

if tuple(map(int, transformers.__version__.split(".")[:2])) < (4, 49):
    print(f"SKIP: transformers {transformers.__version__} is older than 4.49", file=sys.stderr)
    sys.exit(77)

TOOL = pathlib.Path(__file__).resolve().parent.parent / "tools" / "record_activations.py"
spec = importlib.util.spec_from_file_location("record_activations", TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

VOCABULARY = 64
SEQUENCES = [[5, 9, 2], [7], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]]
TOKENS = sum(map(len, SEQUENCES))
DECODER = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96,
           "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 32}
# name: (config class, its arguments, causal, rope, heads, KV heads, head_dim)
MODELS = {
    "bert": ("BertConfig", DECODER, False, "none", 4, 4, 16),
    "gpt2": ("GPT2Config", {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 3,
                            "n_positions": 32}, True, "none", 3, 3, 16),
    "llama": ("LlamaConfig", {**DECODER, "num_key_value_heads": 2}, True, "applied", 4, 2, 16),
    "qwen2": ("Qwen2Config", {**DECODER, "num_key_value_heads": 1}, True, "applied", 4, 1, 16),
    "qwen3": ("Qwen3Config", {**DECODER, "num_key_value_heads": 2, "head_dim": 24},
              True, "applied", 4, 2, 24),
    "mistral": ("MistralConfig", {**DECODER, "num_key_value_heads": 4, "sliding_window": None},
                True, "applied", 4, 4, 16),
    "gpt_neox": ("GPTNeoXConfig", DECODER, True, "applied", 4, 4, 16),
    # Without an attention function to wrap: captured at the projections.
    "megatron_bert": ("MegatronBertConfig", DECODER, False, "none", 4, 4, 16),
    "gpt_neo": ("GPTNeoConfig", {"vocab_size": VOCABULARY, "hidden_size": 64, "num_layers": 2,
                                 "num_heads": 4, "attention_types": [[["global"], 2]],
                                 "max_position_embeddings": 32}, True, "none", 4, 4, 16),
}
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense")


def build(name, **changes):
    """A tiny model with weights large enough that softmax is far from uniform."""
    config_name, arguments = MODELS[name][:2]
    if not hasattr(transformers, config_name):
        raise unittest.SkipTest(f"transformers {transformers.__version__} has no {config_name}")
    torch.manual_seed(1)
    config = getattr(transformers, config_name)(**{**arguments, **changes})
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return model


def record(model, path, sequences=SEQUENCES, **options):
    """Records to path and returns the recorder and what each layer's output projection received."""
    caught = {}

    def catch(layer):
        return lambda _module, inputs: caught.setdefault(layer, []).append(inputs[0][0].clone())

    handles = []
    for name, module in model.named_modules():
        parent, _, leaf = name.rpartition(".")
        if leaf in OUTPUT_PROJECTIONS and ("attn" in parent or "attention" in parent):
            handles.append(module.register_forward_pre_hook(
                catch(int(next(part for part in parent.split(".") if part.isdigit())))))
    recorder = tool.Recorder(model, dtype=options.pop("dtype", "f32"), **options)
    with recorder:
        for sequence in sequences:
            recorder.run(sequence)
    for handle in handles:
        handle.remove()
    tensors, metadata = recorder.collect()
    tool.write_safetensors(path, tensors, {**metadata, "headroom.model": "tiny"})
    return recorder, caught


def attention(q, k, v, scale, causal):
    """Naive attention of one sequence, query by query; [T, heads, head_dim]."""
    group = q.shape[1] // k.shape[1]
    output = torch.empty_like(q, dtype=torch.float64)
    for i in range(q.shape[0]):
        visible = i + 1 if causal else k.shape[0]
        for head in range(q.shape[1]):
            scores = k[:visible, head // group].double() @ q[i, head].double() * scale
            output[i, head] = torch.softmax(scores, 0) @ v[:visible, head // group].double()
    return output


class Recordings(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.path = str(self.folder / "rec.safetensors")

    def check_model(self, name, tolerance=1e-5, **options):
        causal, rope, heads, kv_heads, head_dim = MODELS[name][2:]
        model = build(name)
        recorder, caught = record(model, self.path, **options)
        self.assertFalse(recorder.warnings)
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata()
            self.assertEqual(metadata["headroom.kind"], "recording")
            self.assertEqual(metadata["headroom.version"], "1")
            self.assertEqual(metadata["headroom.causal"], str(causal).lower())
            self.assertEqual(metadata["headroom.rope"], rope)
            ends = file.get_tensor("cu_seqlens")
            self.assertEqual(ends.dtype, torch.int32)
            self.assertEqual(ends.tolist(), [0, 3, 4, 15])
            layers = model.config.num_hidden_layers
            self.assertEqual(len(file.keys()), 3 * layers + 1)
            self.assertEqual(sorted(caught), list(range(layers)))
            scale = float(metadata["headroom.softmax_scale"])
            for layer in range(layers):
                q, k, v = (file.get_tensor(f"model.layers.{layer}.self_attn.{o}") for o in "qkv")
                self.assertEqual(list(q.shape), [TOKENS, heads, head_dim])
                self.assertEqual(list(k.shape), [TOKENS, kv_heads, head_dim])
                self.assertEqual(list(v.shape), [TOKENS, kv_heads, head_dim])
                for sequence, output in enumerate(caught[layer]):
                    rows = slice(ends[sequence], ends[sequence + 1])
                    expected = attention(q[rows], k[rows], v[rows], scale, causal)
                    error = (output.reshape(expected.shape) - expected).abs().max().item()
                    self.assertTrue(error <= tolerance * expected.abs().max().item(),
                                    f"{name} layer {layer} sequence {sequence}: error {error}")
        return metadata

    def test_bert(self):
        self.check_model("bert")

    def test_bert_at_the_projections_is_the_same_file(self):
        record(build("bert"), self.path)
        first = pathlib.Path(self.path).read_bytes()
        record(build("bert"), self.path, capture="projections")
        self.assertEqual(pathlib.Path(self.path).read_bytes(), first)

    def test_gpt2(self):
        self.check_model("gpt2")

    def test_llama(self):
        self.check_model("llama")

    def test_qwen2(self):
        self.check_model("qwen2")

    def test_qwen3_head_dim_is_not_hidden_size_over_heads(self):
        self.check_model("qwen3")

    def test_mistral(self):
        self.check_model("mistral")

    def test_gpt_neox(self):
        self.check_model("gpt_neox")

    def test_megatron_bert_without_an_attention_function(self):
        self.check_model("megatron_bert")

    def test_gpt_neo_does_not_scale(self):
        metadata = self.check_model("gpt_neo")
        self.assertEqual(float(metadata["headroom.softmax_scale"]), 1.0)

    def test_projections_of_a_rope_model_are_before_rope(self):
        record(build("llama"), self.path)
        after = {}
        with safe_open(self.path, "pt") as file:
            for operand in "qkv":
                after[operand] = file.get_tensor(f"model.layers.0.self_attn.{operand}")
        record(build("llama"), self.path, capture="projections")
        with safe_open(self.path, "pt") as file:
            self.assertEqual(file.metadata()["headroom.rope"], "before")
            self.assertEqual(file.metadata()["headroom.causal"], "true")
            for operand in "qkv":
                before = file.get_tensor(f"model.layers.0.self_attn.{operand}")
                first = torch.tensor([0, 3, 4])  # position 0 of each sequence is not rotated
                self.assertTrue(torch.equal(before[first], after[operand][first]))
                self.assertEqual(torch.equal(before, after[operand]), operand == "v")

    def test_dtypes_and_layers(self):
        names = {f"model.layers.{i}.self_attn.{o}" for i in (0, 2) for o in "qkv"}
        full = {}
        for dtype_name in ("f32", "f16", "bf16"):
            record(build("llama"), self.path, dtype=dtype_name, layers={0, 2})
            with safe_open(self.path, "pt") as file:
                self.assertEqual(set(file.keys()), names | {"cu_seqlens"})
                for name in names:
                    tensor = file.get_tensor(name)
                    full.setdefault(name, tensor)  # f32 comes first
                    dtype = getattr(torch, tool.DTYPES[dtype_name][0])
                    self.assertEqual(tensor.dtype, dtype)
                    self.assertTrue(torch.equal(tensor, full[name].to(dtype)), name)

    def test_the_same_run_gives_the_same_bytes(self):
        record(build("llama"), self.path)
        first = pathlib.Path(self.path).read_bytes()
        record(build("llama"), self.path)
        self.assertEqual(pathlib.Path(self.path).read_bytes(), first)

    def test_a_sliding_window_shorter_than_the_text_is_a_warning(self):
        recorder, _ = record(build("mistral", sliding_window=4), self.path)
        self.assertEqual(sorted(recorder.warnings), [0, 1, 2])
        self.assertIn("sliding window", recorder.warnings[0])

    def test_values_beyond_f16_are_an_error(self):
        model = build("bert")
        with torch.no_grad():
            model.encoder.layer[1].attention.self.key.bias[0] = 1e6
        with self.assertRaisesRegex(tool.RecordError, r"layer 1, k: .* does not fit f16"):
            record(model, self.path, dtype="f16")
        record(model, self.path, dtype="bf16")

    def test_nan_is_an_error(self):
        model = build("llama")
        with torch.no_grad():
            model.layers[1].self_attn.v_proj.weight[0, 0] = math.nan
        with self.assertRaisesRegex(tool.RecordError, "layer 1, v: .*NaN"):
            record(model, self.path)

    def test_a_missing_layer_is_an_error(self):
        with self.assertRaisesRegex(tool.RecordError, "no attention layer 7"):
            record(build("bert"), self.path, layers={1, 7})

    def test_encoder_decoders_are_refused(self):
        config = transformers.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=32,
                                       num_layers=1, num_heads=4)
        with self.assertRaisesRegex(tool.RecordError, "encoder-decoder"):
            tool.Recorder(transformers.T5Model(config))

    def test_the_model_is_left_as_it_was(self):
        model = build("llama")
        model.config._attn_implementation = "sdpa"  # the default; the recorder needs eager
        module = sys.modules[type(model).__module__]
        original = module.eager_attention_forward
        record(model, self.path)
        self.assertIs(module.eager_attention_forward, original)


class CommandLine(unittest.TestCase):
    """The tool as a program, on a saved tiny BERT with a tiny vocabulary."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three"]
        (cls.folder / "vocab.txt").write_text("\n".join(words) + "\n")
        cls.model = cls.folder / "model"
        tokenizer = transformers.BertTokenizer(str(cls.folder / "vocab.txt"))
        tokenizer.save_pretrained(cls.model)
        build("bert").save_pretrained(cls.model)
        cls.text = cls.folder / "text.txt"
        cls.text.write_text("one two\nthree\n\n\ntwo two two\n")

    def run_tool(self, *arguments, code=0):
        done = subprocess.run([sys.executable, str(TOOL), *map(str, arguments)],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, code, done.stderr)
        if code == 1:
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        return done.stdout if code == 0 else done.stderr

    def lengths(self, path):
        with safe_open(str(path), "pt") as file:
            return file.get_tensor("cu_seqlens").diff().tolist(), file.metadata()

    def test_paragraphs(self):
        path = self.folder / "a.safetensors"
        out = self.run_tool(self.model, "--text", self.text, "--split", "paragraph", "-o", path)
        self.assertIn("3 layers, 2 sequences, 10 tokens, f16, bidirectional, RoPE none", out)
        lengths, metadata = self.lengths(path)
        self.assertEqual(lengths, [5, 5])
        self.assertEqual(metadata["headroom.model"], "model")

    def test_files_and_max_tokens(self):
        path = self.folder / "b.safetensors"
        self.run_tool(self.model, "--text", self.text, self.text, "--max-tokens", "11", "-o", path,
                      "--name", "tiny/bert", "--layers", "1-2", "--dtype", "f32")
        lengths, metadata = self.lengths(path)
        self.assertEqual(lengths, [8, 3])
        self.assertEqual(metadata["headroom.model"], "tiny/bert")

    def test_errors_are_one_line_and_leave_no_file(self):
        path = self.folder / "c.safetensors"
        empty = self.folder / "empty.txt"
        empty.write_text("\n \n")
        for arguments, message in (
                ((self.model, "--text", self.folder / "none.txt"), "none.txt: No such file"),
                ((self.model, "--text", empty), "empty.txt holds no text"),
                ((self.folder / "nowhere", "--text", self.text), "cannot load"),
                ((self.model, "--text", self.text, "--layers", "9"), "no attention layer 9")):
            self.assertIn(message, self.run_tool(*arguments, "-o", path, code=1))
        missing = self.folder / "no" / "folder" / "d.safetensors"
        self.assertIn("cannot write", self.run_tool(self.model, "--text", self.text, "-o", missing,
                                                    code=1))
        self.assertEqual(list(self.folder.glob("c.safetensors*")), [])

    def test_usage_errors(self):
        for arguments in (("--layers", "3-1"), ("--max-tokens", "0"), ("--dtype", "int8"),
                          ("--softmax-scale", "nan")):
            self.run_tool(self.model, "--text", self.text, "-o", "x", *arguments, code=2)

    def test_help_has_an_example(self):
        self.assertIn("example:", self.run_tool("--help"))


if __name__ == "__main__":
    unittest.main()
