"""Safetensors files for tests, good and bad, made with the standard library alone."""

import json
import math
import struct


def f32(count, seed=1, scale=1.0):
    """`count` deterministic floats in (-scale, scale), as little-endian bytes."""
    state = seed * 2654435761 % 2**32
    values = []
    for _ in range(count):
        state = (1664525 * state + 1013904223) % 2**32
        values.append(scale * (state / 2**31 - 1))
    return struct.pack(f"<{count}f", *values)


def i32(*values):
    return struct.pack(f"<{len(values)}i", *values)


SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1, "I8": 1, "I64": 8}


def recording_tensors(layers=2, heads=4, kv_heads=2, head_dim=16, tokens=24, cu_seqlens=None):
    """name -> (dtype, shape, bytes) of a small recording."""
    tensors = {}
    for layer in range(layers):
        for kind, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            shape = [tokens, count, head_dim]
            data = f32(math.prod(shape), seed=10 * layer + ord(kind))
            tensors[f"model.layers.{layer}.self_attn.{kind}"] = ("F32", shape, data)
    cu = cu_seqlens or [0, tokens // 2, tokens]
    tensors["cu_seqlens"] = ("I32", [len(cu)], i32(*cu))
    return tensors


def recording_metadata(model="test model"):
    return {
        "headroom.kind": "recording",
        "headroom.version": "1",
        "headroom.causal": "true",
        "headroom.softmax_scale": "0.25",
        "headroom.rope": "none",
        "headroom.model": model,
    }


def header_of(tensors, metadata):
    """(header dict, data) with the tensors laid end to end."""
    header, data = {"__metadata__": metadata}, b""
    for name, (dtype, shape, payload) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(payload)],
        }
        data += payload
    return header, data


def encode(header, data, declared=None):
    """File bytes; `header` may be a dict or ready JSON text, `declared` a false header length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if declared is None else declared) + text + data


def recording(path, tensors=None, metadata=None):
    header, data = header_of(
        recording_tensors() if tensors is None else tensors,
        recording_metadata() if metadata is None else metadata,
    )
    path.write_bytes(encode(header, data))
    return path
