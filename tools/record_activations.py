#!/usr/bin/env python3
"""Records Q, K and V of a Hugging Face Transformers model as a Headroom recording.

Runs the model in eager attention on text, one sequence at a time (so nothing is padded), and keeps
what each attention layer receives: after RoPE, before KV heads are repeated for GQA. The result is
one safetensors file, described in include/headroom/recording.h:

    model.layers.{i}.self_attn.{q,k,v}   [total_tokens, heads, head_dim]   F16, BF16 or F32
    cu_seqlens                           I32 [sequences + 1]
    __metadata__                         causal, softmax_scale, RoPE stage, model

Two ways of capturing. "attention" wraps the model's eager_attention_forward, which most models of
Transformers 4.49 and later call with exactly those tensors. "projections" hooks the q, k and v
projections of models without it; RoPE has not been applied there, and the recording says so.
"""
import argparse
import inspect
import json
import math
import os
import re
import struct
import sys
import tempfile

DTYPES = {"f16": ("float16", "F16"), "bf16": ("bfloat16", "BF16"), "f32": ("float32", "F32")}
INSTALL_HINT = "install it with: python3 -m pip install torch transformers"

# Children of an attention module that make Q, K, V and that follow attention, by the names in use.
PROJECTIONS = {
    "q": ("q_proj", "query", "q_lin"),
    "k": ("k_proj", "key", "k_lin"),
    "v": ("v_proj", "value", "v_lin"),
}
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "out_lin")


class RecordError(Exception):
    """What is wrong, in one line, with what would be accepted."""


def layer_number(name, module):
    """The layer a module belongs to: its layer_idx, else the first number in its dotted name."""
    index = getattr(module, "layer_idx", None)
    if isinstance(index, int):
        return index
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    if not match:
        raise RecordError(f"cannot tell which layer the attention module '{name}' belongs to; "
                          "expected layer_idx or a number in its name")
    return int(match.group(1))


def uses_rope(model):
    """True when the model rotates Q and K: it owns a rotary module or its config says so."""
    config = model.config
    return (any("rotary" in type(m).__name__.lower() for m in model.modules())
            or bool(getattr(config, "rotary_dim", None))
            or getattr(config, "position_embedding_type", None) == "rotary")


class Recorder:
    """Collects Q, K, V of every attention layer while the model runs; a context manager.

    `layers` is a set of layer numbers or None for all; `dtype` one of DTYPES; `causal` and `scale`
    state what is otherwise observed. run() takes a sequence; collect() gives the recording.
    """

    def __init__(self, model, capture="auto", layers=None, dtype="f16", causal=None, scale=None):
        import torch

        self.torch = torch
        self.model = model
        self.layers = layers
        self.dtype = getattr(torch, DTYPES[dtype][0])
        self.dtype_name = dtype
        self.stated_causal = causal
        self.stated_scale = scale
        self.names = {module: name for name, module in model.named_modules()}
        self.parts = {}  # layer -> {"q": [one tensor a sequence], "k": ..., "v": ...}
        self.scales = {}  # layer -> softmax scale
        self.causal = {}  # layer -> whether attention is causal; None when that cannot be told
        self.owner = {}  # layer -> the module that writes it
        self.checked = {}  # layer -> length of the longest sequence explain() has looked at
        self.warnings = {}  # layer -> what the recording does not say about it
        self.lengths = []
        self.undo = []
        if getattr(model.config, "is_encoder_decoder", False):
            raise RecordError(f"{type(model).__name__} is an encoder-decoder; record an encoder or "
                              "a decoder-only model (cross attention has no place in a recording)")
        self.attention_sources = self.find_eager_functions()
        if capture == "auto":
            capture = "attention" if self.attention_sources else "projections"
        if capture == "attention" and not self.attention_sources:
            raise RecordError(f"{type(model).__name__} has no eager_attention_forward to wrap; "
                              "use --capture projections")
        self.capture = capture
        stage = "applied" if capture == "attention" else "before"
        self.rope = stage if uses_rope(model) else "none"

    def find_eager_functions(self):
        """The Python modules that define the model's layers and hold an eager_attention_forward."""
        modules = {sys.modules[type(m).__module__] for m in self.model.modules()}
        return [m for m in modules if inspect.isfunction(getattr(m, "eager_attention_forward", 0))]

    def __enter__(self):
        if hasattr(self.model, "set_attn_implementation"):
            self.model.set_attn_implementation("eager")
        else:
            self.model.config._attn_implementation = "eager"
        (self.wrap_attention if self.capture == "attention" else self.hook_projections)()
        return self

    def __exit__(self, *exception):
        for undo in reversed(self.undo):
            undo()
        self.undo.clear()

    # Capturing at the attention function.

    def wrap_attention(self):
        for source in self.attention_sources:
            original = source.eager_attention_forward

            def wrapped(module, query, key, value, *args, original=original, **kwargs):
                result = original(module, query, key, value, *args, **kwargs)
                self.take_attention(module, query, key, value, kwargs.get("scaling"), result)
                return result

            source.eager_attention_forward = wrapped
            self.undo.append(lambda source=source, original=original: setattr(
                source, "eager_attention_forward", original))

    def take_attention(self, module, query, key, value, scaling, result):
        """query [1, num_heads, T, head_dim], key and value [1, num_kv_heads, T, head_dim]."""
        name = self.names.get(module, type(module).__name__)
        layer = layer_number(name, module)
        if self.layers is not None and layer not in self.layers:
            return
        if query.shape[2] != key.shape[2]:
            raise RecordError(f"{name}: {query.shape[2]} queries meet {key.shape[2]} keys; only "
                              "self attention without cached or prefix keys can be recorded")
        scale = float(scaling) if scaling is not None else query.shape[-1] ** -0.5
        tensors = {operand: t[0].transpose(0, 1).detach()
                   for operand, t in (("q", query), ("k", key), ("v", value))}
        output = result[0] if isinstance(result, tuple) else result
        self.keep(layer, module, tensors, output, [scale])

    # Capturing at the projections.

    def hook_projections(self):
        for name, module in self.model.named_modules():
            children = dict(module.named_children())
            sources = {operand: next((children[n] for n in names if n in children), None)
                       for operand, names in PROJECTIONS.items()}
            if None in sources.values():
                continue
            layer = layer_number(name, module)
            if self.layers is not None and layer not in self.layers:
                continue
            norms = [n for n in children if re.match(r"(q|k|query|key)_?(layer)?norm", n)]
            if norms:
                raise RecordError(f"'{name}' normalizes after its projections ({norms[0]}); what "
                                  "they give is not what attention reads; use --capture attention")
            self.hook_layer(layer, module, sources, children, self.find_head_dim(module))

    def hook_layer(self, layer, module, sources, children, head_dim):
        """Gathers one layer's Q, K, V as they come, and keeps them when the layer is through."""
        seen = {}

        def split(output):
            return output[0].detach().reshape(output.shape[1], -1, head_dim)

        def finish(_module, _inputs, result):
            output = seen.pop("output", result[0] if isinstance(result, tuple) else result)
            scales = [head_dim ** -0.5, 1.0]  # GPT-Neo does not scale
            if isinstance(getattr(module, "scaling", None), float):
                scales = [module.scaling]
            self.keep(layer, module, dict(seen), output, scales)
            seen.clear()

        handles = [source.register_forward_hook(
            lambda _m, _i, output, operand=operand: seen.__setitem__(operand, split(output)))
            for operand, source in sources.items()]
        for name in OUTPUT_PROJECTIONS:
            if name in children:
                handles.append(children[name].register_forward_pre_hook(
                    lambda _m, inputs: seen.__setitem__("output", inputs[0])))
        handles.append(module.register_forward_hook(finish))
        self.undo += [handle.remove for handle in handles]

    def find_head_dim(self, module):
        config = self.model.config
        return (getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
                or getattr(config, "head_dim", None)
                or config.hidden_size // config.num_attention_heads)

    # Both ways.

    def keep(self, layer, module, tensors, output, scales):
        """tensors: q, k, v as [T, heads, head_dim]; output: what attention made of them; scales:
        the softmax scales it may have used."""
        if self.owner.setdefault(layer, module) is not module:
            raise RecordError(f"two attention modules claim layer {layer}: "
                              f"'{self.names.get(self.owner[layer])}' and "
                              f"'{self.names.get(module)}'; such a model cannot be recorded")
        dims = {operand: t.shape[-1] for operand, t in tensors.items()}
        if len(set(dims.values())) != 1:
            raise RecordError(f"layer {layer}: head_dim of Q, K, V is {dims['q']}, {dims['k']}, "
                              f"{dims['v']}; a recording needs one")
        if tensors["q"].shape[1] % tensors["k"].shape[1]:
            raise RecordError(f"layer {layer}: {tensors['q'].shape[1]} query heads cannot share "
                              f"{tensors['k'].shape[1]} KV heads evenly")
        parts = self.parts.setdefault(layer, {"q": [], "k": [], "v": []})
        for operand in parts:
            parts[operand].append(self.narrow(layer, operand, tensors[operand]))
        length = tensors["q"].shape[0]
        if length > self.checked.get(layer, 0):
            self.checked[layer] = length
            self.explain(layer, module, tensors, output, scales)

    def explain(self, layer, module, tensors, output, scales):
        """Finds the scale and the mask with which the layer's Q, K, V give its output."""
        if self.stated_scale is not None:
            scales = [self.stated_scale]
        if self.stated_causal is not None:
            masks = [self.stated_causal]
        elif tensors["q"].shape[0] > 1 and self.rope != "before":
            masks = [True, False]
        else:
            masks = [getattr(module, "is_causal", None)]
        self.scales[layer], self.causal[layer] = scales[0], masks[0]
        if self.rope == "before":
            return  # what attention reads is not known here
        if output.numel() != tensors["q"].numel():
            self.warnings[layer] = (f"its attention output was not seen, so the softmax scale "
                                    f"{scales[0]:g} is a guess")
            return
        actual = output.detach().reshape(tensors["q"].shape).double()
        errors = {(scale, causal): float((attention(**tensors, scale=scale, causal=causal)
                                          - actual).norm() / actual.norm().clamp_min(1e-30))
                  for scale in scales for causal in masks}
        best = min(errors, key=errors.get)
        self.scales[layer], self.causal[layer] = best
        # Eager attention in a 16-bit model rounds its weights to 8 or 11 bits.
        if not errors[best] <= (1e-3 if output.dtype == self.torch.float32 else 0.02):
            self.warnings[layer] = (
                "softmax(scale Q K^T) V of the recorded tensors differs from the model's own "
                f"attention by {errors[best]:.2g} (relative L2): it uses something that a "
                "recording does not carry (sliding window, softcap, sink, bias)")

    def narrow(self, layer, operand, tensor):
        """To the recorded dtype, refusing what it cannot hold."""
        torch = self.torch
        if not bool(torch.isfinite(tensor).all()):
            raise RecordError(f"layer {layer}, {operand}: the model produced NaN or infinity")
        narrow = tensor.to("cpu", self.dtype, copy=True).contiguous()
        if not bool(torch.isfinite(narrow).all()):
            raise RecordError(f"layer {layer}, {operand}: {float(tensor.abs().max()):.6g} does not "
                              f"fit {self.dtype_name} (largest {torch.finfo(self.dtype).max:g}); "
                              "use --dtype bf16 or f32")
        return narrow

    def run(self, token_ids):
        """Runs one sequence of token ids through the model."""
        torch = self.torch
        ids = torch.tensor([token_ids], dtype=torch.long, device=self.model.device)
        arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            arguments["use_cache"] = False
        self.model.eval()
        try:
            with torch.inference_mode():
                self.model(**arguments)
        except (RuntimeError, MemoryError) as error:
            reason = " ".join(str(error).split())
            raise RecordError(f"the model failed on {len(token_ids)} tokens: {reason}") from None
        self.lengths.append(len(token_ids))

    def one_value(self, values, what):
        """The value all layers agree on."""
        distinct = sorted(set(values.values()), key=str)
        if len(distinct) != 1:
            raise RecordError(f"layers disagree on {what}: {', '.join(map(str, distinct))}; choose "
                              "layers that agree with --layers")
        return distinct[0]

    def collect(self):
        """The recording as ({name: tensor}, metadata without the model's name)."""
        torch = self.torch
        missing = (self.layers or set()) - set(self.parts)
        if missing:
            raise RecordError(f"the model has no attention layer {min(missing)}")
        if not self.parts:
            raise RecordError("no attention layer was seen; expected one that calls "
                              "eager_attention_forward, or has q_proj, k_proj and v_proj")
        tensors = {}
        for layer in sorted(self.parts):
            for operand in "qkv":
                part = torch.cat(self.parts[layer][operand])
                if part.shape[0] != sum(self.lengths):
                    raise RecordError(f"layer {layer} saw {part.shape[0]} tokens, but "
                                      f"{sum(self.lengths)} were given to the model")
                tensors[f"model.layers.{layer}.self_attn.{operand}"] = part
        tensors["cu_seqlens"] = torch.tensor([0] + self.lengths).cumsum(0).to(torch.int32)
        causal = self.one_value(self.causal, "whether attention is causal")
        if causal is None:
            raise RecordError("cannot tell whether attention is causal; say --causal true or false")
        return tensors, {
            "headroom.kind": "recording",
            "headroom.version": "1",
            "headroom.causal": "true" if causal else "false",
            "headroom.softmax_scale": repr(self.one_value(self.scales, "the softmax scale")),
            "headroom.rope": self.rope,
        }


def attention(q, k, v, scale, causal):
    """softmax(scale Q K^T) V in double precision; q, k, v and the result [T, heads, head_dim]."""
    output = q.double().clone()
    group = q.shape[1] // k.shape[1]
    future = output.new_ones(len(q), len(q)).triu(1).bool() if causal else None
    for head in range(q.shape[1]):
        scores = output[:, head] @ k[:, head // group].double().T * scale
        if causal:
            scores.masked_fill_(future, -math.inf)
        output[:, head] = scores.softmax(-1) @ v[:, head // group].double()
    return output


def write_safetensors(path, tensors, metadata):
    """Writes a temporary file, syncs and renames it. The same input gives the same bytes."""
    import torch

    names = {getattr(torch, name): code for name, code in DTYPES.values()}
    names[torch.int32] = "I32"
    header, offset = {"__metadata__": metadata}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)  # data starts on a cache line
    folder = os.path.dirname(os.path.abspath(path))
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=os.path.basename(path) + ".", dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in tensors.values():
                file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes it private
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}") from None
    finally:
        if temporary:
            os.unlink(temporary)


def parse_layers(text):
    """"0-3,7" to {0, 1, 2, 3, 7}."""
    layers = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match or int(match.group(2) or match.group(1)) < int(match.group(1)):
            raise argparse.ArgumentTypeError(f"'{part}' is not a layer or range, as in 0-3,7")
        layers |= set(range(int(match.group(1)), int(match.group(2) or match.group(1)) + 1))
    return layers


def positive(kind):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"'{text}' is not a positive {kind.__name__}")
        return value
    return parse


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Record Q, K and V of a Hugging Face Transformers model for headroom.",
        epilog="example: tools/record_activations.py Qwen/Qwen2.5-0.5B --text book.txt "
               "--max-tokens 4096 --dtype bf16 -o qwen.safetensors")
    parser.add_argument("model", metavar="MODEL", help="a model's folder or Hugging Face name")
    parser.add_argument("--text", metavar="FILE", nargs="+", required=True,
                        help="UTF-8 text files, one sequence each; - reads standard input")
    parser.add_argument("-o", "--output", metavar="REC", required=True,
                        help="the recording to write (.safetensors)")
    parser.add_argument("--split", choices=("file", "paragraph"), default="file",
                        help="what is one sequence: a file (default), or a paragraph of it, "
                             "as blank lines part them")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="f16",
                        help="dtype of the recording (default f16)")
    parser.add_argument("--layers", metavar="A-B", type=parse_layers,
                        help="layers to record, as in 0-3,7 (default all)")
    parser.add_argument("--max-tokens", metavar="N", type=positive(int),
                        help="stop after N tokens in all")
    parser.add_argument("--capture", choices=("auto", "attention", "projections"), default="auto",
                        help="where Q, K, V are taken: from the attention function, after RoPE, or "
                             "from the projections, before it (default: the first that works)")
    parser.add_argument("--causal", choices=("auto", "true", "false"), default="auto",
                        help="state whether attention is causal instead of observing it")
    parser.add_argument("--softmax-scale", metavar="S", type=positive(float),
                        help="state the softmax scale instead of observing it")
    parser.add_argument("--device", default="cpu", help="where the model runs (default cpu)")
    parser.add_argument("--name", help="the model's name in the recording (default MODEL)")
    parser.add_argument("--trust-remote-code", action="store_true",
                        help="let the model's repository run its own code")
    return parser.parse_args()


def read_texts(paths, split):
    texts = []
    for path in paths:
        try:
            with (sys.stdin if path == "-" else open(path, encoding="utf-8")) as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}")
        pieces = re.split(r"\n\s*\n", text) if split == "paragraph" else [text]
        pieces = [piece.strip() for piece in pieces if piece.strip()]
        if not pieces:
            raise RecordError(f"{path} holds no text")
        texts += pieces
    return texts


def tokenize(tokenizer, config, texts, max_tokens):
    """Lists of token ids, none longer than the model takes, no more than max_tokens in all."""
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    longest = min(limit for limit in limits if isinstance(limit, int) and limit > 0)
    sequences, left = [], max_tokens or sys.maxsize
    for text in texts:
        ids = tokenizer(text, truncation=False)["input_ids"]
        if len(ids) > longest:
            print(f"record_activations: a text of {len(ids)} tokens is cut to the model's "
                  f"{longest}", file=sys.stderr)
        ids = ids[:min(longest, left)]
        if ids:
            sequences.append(ids)
            left -= len(ids)
    return sequences


def load(arguments):
    """(model, tokenizer), or a RecordError that says what is missing."""
    try:
        import torch
        import transformers
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise RecordError(f"{reason}; {INSTALL_HINT}") from None
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        shared = {"trust_remote_code": arguments.trust_remote_code}
        tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model, **shared)
        model = transformers.AutoModel.from_pretrained(
            arguments.model, attn_implementation="eager", torch_dtype="auto", **shared)
        return model.to(torch.device(arguments.device)), tokenizer
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise RecordError(f"cannot load {arguments.model}: {reason}") from None


def main():
    arguments = parse_arguments()
    try:
        texts = read_texts(arguments.text, arguments.split)
        model, tokenizer = load(arguments)
        sequences = tokenize(tokenizer, model.config, texts, arguments.max_tokens)
        causal = {"auto": None, "true": True, "false": False}[arguments.causal]
        recorder = Recorder(model, arguments.capture, arguments.layers, arguments.dtype, causal,
                            arguments.softmax_scale)
        with recorder:
            for done, sequence in enumerate(sequences):
                if sys.stderr.isatty():
                    print(f"\rsequence {done + 1} of {len(sequences)}", end="", file=sys.stderr)
                recorder.run(sequence)
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        tensors, metadata = recorder.collect()
        name = arguments.name or (os.path.basename(os.path.normpath(arguments.model))
                                  if os.path.isdir(arguments.model) else arguments.model)
        metadata["headroom.model"] = name
        write_safetensors(arguments.output, tensors, metadata)
    except RecordError as error:
        print(f"record_activations: {error}", file=sys.stderr)
        return 1
    for layer, warning in recorder.warnings.items():
        print(f"record_activations: warning: layer {layer}: {warning}", file=sys.stderr)
    print(f"{arguments.output}: {len(recorder.parts)} layers, {len(sequences)} sequences, "
          f"{sum(recorder.lengths)} tokens, {arguments.dtype}, "
          f"{'causal' if metadata['headroom.causal'] == 'true' else 'bidirectional'}, "
          f"RoPE {recorder.rope}, {os.path.getsize(arguments.output) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
