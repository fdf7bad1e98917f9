#!/usr/bin/env python3
"""Makes audit reports of invented figures, for the tests of the schema and of the report page.

    python3 tests/report_example.py > tests/data/report_example.json

Figures are drawn from a seeded generator: every head has a difficulty, every recipe a typical
error, and the scores that depend on one another (total, cosine, SQNR, layer and summary scores,
Pareto front, choice) are computed as tools/report.schema.json defines them. Nothing here was
measured.
"""

import json
import math
import random
import sys

HEAD_DIM = 32
TOKENS = 480
BUDGET = 0.05

BF16 = ("bf16", "none", 0, "none", "none")
E4M3 = ("e4m3", "head", 0, "static", "none")
E4M3_ROTATED = ("e4m3", "head", 0, "static", "hadamard")
INT8 = ("i8", "token", 0, "dynamic", "none")
INT8_SMOOTH = ("i8", "token", 0, "dynamic", "mean")

# id, recipe, observer, (q, k, v, p), ISA, bits, milliseconds, typical error of quant and kernel
CONFIGS = [
    ("bf16", "bf16", None, (BF16, BF16, BF16, "bf16"), "portable", 16, 41.7, 2.1e-3, 1.4e-3),
    (
        "fp8/absmax",
        "fp8",
        "absmax",
        (E4M3, E4M3, E4M3, "e4m3"),
        "portable",
        8.07,
        44.9,
        5.6e-2,
        1.9e-2,
    ),
    (
        "fp8/percentile:99.99",
        "fp8",
        "percentile:99.99",
        (E4M3, E4M3, E4M3, "e4m3"),
        "portable",
        8.07,
        45.2,
        5.2e-2,
        1.9e-2,
    ),
    ("fp8/mse", "fp8", "mse", (E4M3, E4M3, E4M3, "e4m3"), "portable", 8.07, 45.0, 4.6e-2, 1.9e-2),
    (
        "fp8:qk.transform=hadamard/mse",
        "fp8:qk.transform=hadamard",
        "mse",
        (E4M3_ROTATED, E4M3_ROTATED, E4M3, "e4m3"),
        "portable",
        8.07,
        45.4,
        3.9e-2,
        1.8e-2,
    ),
    ("int8", "int8", None, (INT8, INT8_SMOOTH, INT8, "u8"), "avx512vnni", 9, 4.31, 8.8e-3, 5.1e-3),
    (
        "int8-fp8",
        "int8-fp8",
        None,
        (INT8, INT8_SMOOTH, ("e4m3", "channel", 0, "dynamic", "none"), "e4m3"),
        "portable",
        8.58,
        43.8,
        2.3e-2,
        1.3e-2,
    ),
    (
        "int4",
        "int4",
        None,
        (
            ("i8", "token", 0, "dynamic", "hadamard"),
            ("i4", "token", 0, "dynamic", "hadamard"),
            ("i4", "token", 0, "dynamic", "none"),
            "u8",
        ),
        "avx512vnni",
        5,
        3.62,
        4.9e-2,
        5.2e-3,
    ),
]


def short(value):
    """Four significant digits, and null for what JSON cannot hold."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


class Sums:
    """The sums that an error object is made of, so that heads add up to layers."""

    def __init__(self, count=0, reference=0.0, squares=0.0, max_abs=0.0, nonfinite=0):
        self.count, self.reference, self.squares = count, reference, squares
        self.max_abs, self.nonfinite = max_abs, nonfinite

    def add(self, other):
        self.count += other.count
        self.reference += other.reference
        self.squares += other.squares
        self.max_abs = max(self.max_abs, other.max_abs)
        self.nonfinite += other.nonfinite

    def rel_l2(self):
        return math.nan if self.nonfinite else math.sqrt(self.squares / self.reference)

    def error(self):
        rel = self.rel_l2()
        figures = {
            "max_abs": math.nan if self.nonfinite else self.max_abs,
            "rmse": rel * math.sqrt(self.reference / self.count),
            "rel_l1": rel * 0.94,
            "rel_l2": rel,
            "cosine": 1 - rel * rel / 2,
            "sqnr_db": -20 * math.log10(rel) if rel != 0 else math.inf,
        }
        result = {name: short(value) for name, value in figures.items()}
        return {
            **result,
            "cosine": None if self.nonfinite else round(figures["cosine"], 9),
            "count": self.count,
            "nonfinite": self.nonfinite,
        }


class Scores:
    """Scores of one head, or of several added together."""

    PARTS = ("quant", "kernel", "total", "lse")

    def __init__(self):
        self.sums = {part: Sums() for part in self.PARTS}
        self.kl = self.top_k = self.heads = 0

    def add(self, other):
        for part in self.PARTS:
            self.sums[part].add(other.sums[part])
        self.kl += other.kl
        self.top_k += other.top_k
        self.heads += other.heads

    def json(self):
        return {
            **{part: self.sums[part].error() for part in self.PARTS},
            "softmax_kl": short(self.kl / self.heads),
            "top_k_agreement": short(self.top_k / self.heads),
        }


def head_scores(rng, difficulty, rms, quant, kernel, nonfinite):
    scores = Scores()
    count = TOKENS * HEAD_DIM
    reference = count * rms * rms
    quant *= difficulty * math.exp(rng.gauss(0, 0.12))
    kernel *= math.exp(rng.gauss(0, 0.1))
    for part, rel in (("quant", quant), ("kernel", kernel), ("total", math.hypot(quant, kernel))):
        squares = rel * rel * reference
        bad = nonfinite if part != "quant" else 0
        scores.sums[part] = Sums(count, reference, squares, 6.5 * math.sqrt(squares / count), bad)
    squares = (0.02 * quant) ** 2 * TOKENS * 16
    scores.sums["lse"] = Sums(
        TOKENS, TOKENS * 16.0, squares, 3 * math.sqrt(squares / TOKENS), nonfinite
    )
    scores.kl = 0.4 * quant * quant
    scores.top_k = max(0.0, 1 - 1.1 * quant)
    scores.heads = 1
    return scores


def format_json(formats):
    names = ("dtype", "granularity", "block", "scale", "transform")
    result = {name: dict(zip(names, value)) for name, value in zip("qkv", formats)}
    return {**result, "p": {"dtype": formats[3]}}


def make_config(rng, row, heads_of_layers, nonfinite_head):
    ident, recipe, observer, formats, isa, bits, ms, quant, kernel = row
    layers, summary = [], Scores()
    for layer, heads in enumerate(heads_of_layers):
        layer_scores, rows = Scores(), []
        for head, (hard, rms) in enumerate(heads):
            bad = 37 if nonfinite_head == (ident, layer, head) else 0
            scores = head_scores(rng, hard, rms, quant, kernel, bad)
            layer_scores.add(scores)
            rows.append({"head": head, "scores": scores.json()})
        summary.add(layer_scores)
        layers.append({"layer": layer, "scores": layer_scores.json(), "heads": rows})
    every = [
        (layer["layer"], row["head"], row["scores"]["total"])
        for layer in layers
        for row in layer["heads"]
    ]
    every.sort(key=lambda item: -math.inf if item[2]["rel_l2"] is None else -item[2]["rel_l2"])
    elements = 2 * TOKENS * HEAD_DIM * len(every)
    ms *= len(every) / 72
    return {
        "id": ident,
        "recipe": recipe,
        "formats": format_json(formats),
        "observer": observer,
        "kernel": {"name": f"attention_{recipe.split(':')[0].replace('-', '_')}_{isa}", "isa": isa},
        "kv_bits": bits,
        "timing": {
            "repeats": 7,
            "median_ms": short(ms),
            "min_ms": short(ms * 0.985),
            "max_ms": short(ms * rng.uniform(1.02, 1.2)),
            "gops": short(4 * HEAD_DIM * TOKENS * TOKENS * len(every) / ms / 1e6),
            "x_baseline": short(CONFIGS[0][6] * len(every) / 72 / ms),
            "kv_bytes": round(elements * bits / 8),
        },
        "summary": summary.json(),
        "layers": layers,
        "worst_heads": [
            {"layer": layer, "head": head, "rel_l2": error["rel_l2"], "cosine": error["cosine"]}
            for layer, head, error in every[:10]
        ],
    }


def pareto(configs):
    points = [
        (config["timing"]["median_ms"], config["summary"]["total"]["rel_l2"], config["id"])
        for config in configs
        if config["summary"]["total"]["rel_l2"] is not None
    ]
    front = [
        a
        for a in points
        if not any(b[0] <= a[0] and b[1] <= a[1] and b[:2] != a[:2] for b in points)
    ]
    return [point[2] for point in sorted(front)]


def choose(configs, budget):
    heads, bits = [], []
    for index, layer in enumerate(configs[0]["layers"]):
        for row in layer["heads"]:
            choice = {
                "layer": layer["layer"],
                "head": row["head"],
                "config": None,
                "rel_l2": None,
                "kv_bits": 32,
            }
            within = []
            for config in configs:
                error = config["layers"][index]["heads"][row["head"]]["scores"]["total"]["rel_l2"]
                if error is not None and error <= budget:
                    within.append((config["kv_bits"], error, config["id"]))
            if within:
                fewest = min(within, key=lambda entry: entry[:2])
                choice.update(kv_bits=fewest[0], rel_l2=fewest[1], config=fewest[2])
            heads.append(choice)
            bits.append(choice["kv_bits"])
    chosen = [head["config"] for head in heads]
    rows = []
    for config in sorted(configs, key=lambda config: config["kv_bits"]):
        errors = [
            row["scores"]["total"]["rel_l2"] for layer in config["layers"] for row in layer["heads"]
        ]
        broken = sum(error is None or error > budget for error in errors)
        rows.append((config["kv_bits"], config["id"], broken, max(error if error is not None else math.inf for error in errors)))
    whole = [row for row in rows if not row[2]]
    suited = min(whole, key=lambda row: (row[0], row[3]), default=None)
    fewer = [row for row in rows if not suited or row[0] < suited[0]]
    narrower = min(fewer, key=lambda row: row[2], default=None)
    uniform = {
        "config": suited and suited[1],
        "rel_l2": suited and suited[3],
        "narrower": narrower and {"config": narrower[1], "broken_heads": narrower[2]},
    }
    return {
        "budget": budget,
        "heads": heads,
        "counts": {config["id"]: chosen.count(config["id"]) for config in configs},
        "unmet": chosen.count(None),
        "mean_kv_bits": short(sum(bits) / len(bits)),
        "uniform": uniform,
    }


def make_report(num_layers=6, num_heads=12, rows=None, nonfinite_head=None, seed=7, model=None):
    """A report of num_layers x num_heads heads. nonfinite_head: (config id, layer, head)."""
    rng = random.Random(seed)
    rows = CONFIGS if rows is None else rows
    # Of each head: how hard it is to quantize, and the RMS of its output.
    heads = [
        [
            (
                math.exp(
                    rng.gauss(0, 0.22)
                    + (1.1 if rng.random() < 0.06 else 0)
                    + 0.25 * math.sin(layer)
                ),
                rng.uniform(0.05, 0.4),
            )
            for _ in range(num_heads)
        ]
        for layer in range(num_layers)
    ]
    configs = [make_config(rng, row, heads, nonfinite_head) for row in rows]
    return {
        "schema": "headroom-report",
        "schema_version": 1,
        "headroom": {"version": "0.1.0", "commit": "0123456789ab"},
        "created": "2025-01-31T12:00:00Z",
        "machine": {
            "cpu": "Example CPU @ 2.50GHz (test data)",
            "isa": ["portable", "avx2", "avx512", "avx512vnni"],
            "threads": 2,
            "compiler": "gcc 12.2.0",
            "os": "Linux 6.1.0 x86_64",
        },
        "recording": {
            "path": "tests/data/invented.safetensors",
            "model": "invented-model (test data, not measured)" if model is None else model,
            "data_hash": "0123456789abcdef0123456789abcdef",
            "total_tokens": TOKENS,
            "batch": 4,
            "causal": False,
            "mask": None,
            "softmax_scale": 0.1767767,
            "rope": "none",
            "layers": [
                {
                    "layer": layer,
                    "num_heads": num_heads,
                    "num_kv_heads": num_heads,
                    "head_dim": HEAD_DIM,
                    "dtype": "f32",
                }
                for layer in range(num_layers)
            ],
        },
        "top_k": 8,
        "configs": configs,
        "baselines": [],
        "pareto": pareto(configs),
        "choice": choose(configs, BUDGET),
    }


def write(value, out, depth=0):
    """JSON with one line for each score or head, so that a change can be read in a diff."""
    flat = (
        depth >= 5
        or not isinstance(value, (dict, list))
        or not any(
            isinstance(item, (dict, list))
            for item in (value.values() if isinstance(value, dict) else value)
        )
    )
    if flat:
        out.write(json.dumps(value, separators=(",", ":"), allow_nan=False))
        return
    is_object = isinstance(value, dict)
    out.write("{" if is_object else "[")
    for index, item in enumerate(value.items() if is_object else value):
        out.write(("," if index else "") + "\n" + " " * (depth + 1))
        if is_object:
            out.write(json.dumps(item[0]) + ":")
            item = item[1]
        write(item, out, depth + 1)
    out.write("\n" + " " * depth + ("}" if is_object else "]"))


if __name__ == "__main__":
    write(make_report(), sys.stdout)
    sys.stdout.write("\n")
