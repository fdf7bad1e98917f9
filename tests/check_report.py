#!/usr/bin/env python3
"""Checks audit reports: against tools/report.schema.json, and for what a schema cannot say.

    python3 tests/check_report.py REPORT.json ...

Prints what is wrong, one line each; exits 1 if anything is.
"""

import json
import math
import pathlib
import sys

import jsonschema

SCHEMA = pathlib.Path(__file__).resolve().parent.parent / "tools" / "report.schema.json"
SLACK = 1e-5  # relative; figures in a report may be rounded after the choice was made


def validator():
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def load(path):
    """JSON as the standard has it: Python's NaN and Infinity are refused."""

    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"), parse_constant=refuse)


def problems(report):
    """What is wrong with a report, as lines of text."""
    found = [
        f"{error.json_path}: {error.message[:200]}" for error in validator().iter_errors(report)
    ]
    found = found or list(shape_problems(report))
    return found or [
        *error_problems(report),
        *pareto_problems(report),
        *worst_problems(report),
        *choice_problems(report),
        *uniform_problems(report),
    ]


def head_errors(config):
    """{(layer, head): total rel_l2} of a config."""
    return {
        (layer["layer"], head["head"]): head["scores"]["total"]["rel_l2"]
        for layer in config["layers"]
        for head in layer["heads"]
    }


def shape_problems(report):
    layers = report["recording"]["layers"]
    numbers = [layer["layer"] for layer in layers]
    if numbers != sorted(set(numbers)):
        yield f"layers are not ascending: {numbers}"
    for layer in layers:
        if layer["num_heads"] % layer["num_kv_heads"]:
            yield f"layer {layer['layer']}: num_kv_heads does not divide num_heads"
    wanted = [(layer["layer"], head) for layer in layers for head in range(layer["num_heads"])]
    ids = [config["id"] for config in report["configs"]]
    if len(set(ids)) != len(ids):
        yield f"config ids repeat: {ids}"
    mask = report["recording"]["mask"]
    if mask and (mask["block_q"] > 0) != (mask["block_kv"] > 0):
        yield "the mask's blocks have queries or keys, but not both"
    if report["configs"][0]["recipe"] != "bf16":
        yield "the first config is not bf16"
    for config in report["configs"]:
        if list(head_errors(config)) != wanted:
            yield f"{config['id']}: layers or heads are not those of the recording"
        timing = config["timing"]
        if not timing["min_ms"] <= timing["median_ms"] <= timing["max_ms"]:
            yield f"{config['id']}: the median time is not between least and most"
    if [(head["layer"], head["head"]) for head in report["choice"]["heads"]] != wanted:
        yield "choice.heads are not those of the recording"


def error_problems(report):
    for config in report["configs"]:
        rows = [("summary", config["summary"])]
        for layer in config["layers"]:
            rows.append((f"layer {layer['layer']}", layer["scores"]))
            rows += [
                (f"layer {layer['layer']} head {head['head']}", head["scores"])
                for head in layer["heads"]
            ]
        for where, scores in rows:
            for part in ("quant", "kernel", "total", "lse"):
                reason = error_problem(scores[part])
                if reason:
                    yield f"{config['id']}, {where}, {part}: {reason}"


def error_problem(error):
    figures = {
        name: error[name] for name in ("max_abs", "rmse", "rel_l1", "rel_l2", "cosine", "sqnr_db")
    }
    if error["nonfinite"]:
        kept = [name for name, value in figures.items() if value is not None]
        return f"{error['nonfinite']} elements are not finite, yet {kept} are" if kept else None
    if figures["rmse"] is None or figures["max_abs"] is None:
        return "rmse or max_abs is null although all elements are finite"
    if figures["rmse"] > figures["max_abs"] * (1 + SLACK):
        return f"rmse {figures['rmse']} is above max_abs {figures['max_abs']}"
    if figures["sqnr_db"] is None and figures["rel_l2"] not in (None, 0):
        return f"sqnr_db is null at rel_l2 {figures['rel_l2']}"
    if figures["sqnr_db"] is not None and figures["rel_l2"]:
        expected = -20 * math.log10(figures["rel_l2"])
        if not abs(figures["sqnr_db"] - expected) <= 0.01 + 1e-3 * abs(expected):
            return f"sqnr_db {figures['sqnr_db']} does not belong to rel_l2 {figures['rel_l2']}"
    return None


def pareto_problems(report):
    points = [
        (config["timing"]["median_ms"], config["summary"]["total"]["rel_l2"], config["id"])
        for config in report["configs"]
        if config["summary"]["total"]["rel_l2"] is not None
    ]
    front = sorted(
        a
        for a in points
        if not any(b[0] <= a[0] and b[1] <= a[1] and b[:2] != a[:2] for b in points)
    )
    if sorted(report["pareto"]) != sorted(point[2] for point in front):
        yield f"pareto is {report['pareto']}, the figures give {[point[2] for point in front]}"
    times = {config["id"]: config["timing"]["median_ms"] for config in report["configs"]}
    order = [times.get(ident, 0) for ident in report["pareto"]]
    if order != sorted(order):
        yield f"pareto is not in order of speed: {report['pareto']}"


def worst_problems(report):
    for config in report["configs"]:
        errors = head_errors(config)
        badness = {head: math.inf if error is None else error for head, error in errors.items()}
        listed = [(worst["layer"], worst["head"]) for worst in config["worst_heads"]]
        expected = sorted(badness, key=lambda head: (-badness[head], head))[:10]
        if [badness.get(head) for head in listed] != [badness[head] for head in expected] or len(
            set(listed)
        ) != len(listed):
            yield f"{config['id']}: worst_heads are {listed}, the figures give {expected}"
        for worst in config["worst_heads"]:
            if worst["rel_l2"] != errors.get((worst["layer"], worst["head"])):
                yield f"{config['id']}: worst_heads has another rel_l2 than the head: {worst}"


def choose(report, budget):
    """{(layer, head): config or None}, and the heads that rounding of figures could change."""
    configs = report["configs"]
    errors = {config["id"]: head_errors(config) for config in configs}
    choice, close = {}, set()
    for head in errors[configs[0]["id"]]:
        figures = [(config, errors[config["id"]][head]) for config in configs]
        figures = [(config, error) for config, error in figures if error is not None]
        if any(abs(error - budget) <= SLACK * budget for _, error in figures):
            close.add(head)
        # min keeps the first of equals, which is the rule's last word.
        within = [(config, error) for config, error in figures if error <= budget]
        chosen = min(within, key=lambda pair: (pair[0]["kv_bits"], pair[1]), default=(None, None))
        choice[head] = chosen[0]
        for config, error in within:
            rival = config is not chosen[0] and config["kv_bits"] == chosen[0]["kv_bits"]
            if rival and 0 < error - chosen[1] <= SLACK * error:
                close.add(head)
    return choice, close


def recorded_bits(report):
    """{layer: bits of an element as it was recorded}."""
    layers = report["recording"]["layers"]
    return {layer["layer"]: 32 if layer["dtype"] == "f32" else 16 for layer in layers}


def mean_bits(report, bits):
    """Bits of query heads, {(layer, head): bits}, as the mean over KV heads that choice defines."""
    total = weights = 0
    for layer in report["recording"]["layers"]:
        group = layer["num_heads"] // layer["num_kv_heads"]
        for kv in range(layer["num_kv_heads"]):
            total += layer["head_dim"] * max(
                bits[layer["layer"], kv * group + i] for i in range(group)
            )
            weights += layer["head_dim"]
    return total / weights


def choice_problems(report):
    given = report["choice"]
    choice, close = choose(report, given["budget"])
    recorded = recorded_bits(report)
    for head in given["heads"]:
        key = (head["layer"], head["head"])
        config = choice[key]
        wanted = (
            (config["id"], head_errors(config)[key], config["kv_bits"])
            if config
            else (None, None, recorded[head["layer"]])
        )
        if (head["config"], head["rel_l2"], head["kv_bits"]) != wanted and key not in close:
            yield f"choice of {key} is {head['config']}, the figures give {wanted[0]}"
    names = [head["config"] for head in given["heads"]]
    counts = {config["id"]: names.count(config["id"]) for config in report["configs"]}
    if given["counts"] != counts or given["unmet"] != names.count(None):
        yield f"choice.counts {given['counts']} or unmet {given['unmet']}: the heads give {counts}"
    bits = mean_bits(
        report, {(head["layer"], head["head"]): head["kv_bits"] for head in given["heads"]}
    )
    if not abs(bits - given["mean_kv_bits"]) <= 1e-3 * bits:
        yield f"choice.mean_kv_bits is {given['mean_kv_bits']}, the heads give {bits}"


def choose_uniform(report, budget):
    """(config or None, its worst error, the best of fewer bits or None, how many heads it breaks),
    and whether rounding of figures could change that."""
    rows, close = [], False
    for config in report["configs"]:
        errors = list(head_errors(config).values())
        close = close or any(e is not None and abs(e - budget) <= SLACK * budget for e in errors)
        broken = sum(error is None or error > budget for error in errors)
        rows.append((config, broken, None if None in errors else max(errors)))
    whole = [row for row in rows if not row[1]]
    suited = min(whole, key=lambda row: (row[0]["kv_bits"], row[2]), default=None)
    fewer = [row for row in rows if not suited or row[0]["kv_bits"] < suited[0]["kv_bits"]]
    narrower = min(fewer, key=lambda row: (row[1], row[0]["kv_bits"]), default=None)
    return suited, narrower, close


def uniform_problems(report):
    given = report["choice"]["uniform"]
    suited, narrower, close = choose_uniform(report, report["choice"]["budget"])
    wanted = {
        "config": suited and suited[0]["id"],
        "rel_l2": suited and suited[2],
        "narrower": narrower and {"config": narrower[0]["id"], "broken_heads": narrower[1]},
    }
    if given != wanted and not close:
        yield f"choice.uniform is {given}, the heads give {wanted}"


def main(paths):
    failed = False
    for path in paths:
        try:
            lines = problems(load(path))
        except (OSError, ValueError) as error:
            lines = [str(error)]
        for line in lines:
            print(f"{path}: {line}")
        failed = failed or bool(lines)
    return 1 if failed or not paths else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
