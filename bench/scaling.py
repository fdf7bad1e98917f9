#!/usr/bin/env python3
"""Cost of attention against sequence length and batch, in time and memory.

    cmake --build --preset release --target scaling
    scaling.py measure --results FILE           all curves; some: --curves GLOB,... --recipes ...
    scaling.py report FILE
    scaling.py page FILE -o PAGE                writes them into docs/cpu-scaling.md
    scaling.py plot FILE -o DIRECTORY           cpu-scaling.svg (needs matplotlib)

Every point is a fresh process of bench/scaling.c, so that its peak memory is its own. Curves can be
measured one by one; a results file keeps the newest of each curve and recipe.
"""

import argparse
import fnmatch
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench" / "peers"))

import page
import run as peers_run

RECIPES = ("int8", "int4", "fp8", "bf16")
LENGTHS = [1024 << i for i in range(8)]
BATCHES = [1 << i for i in range(7)]
PREFILL = {"head-dim": 128, "heads": 1, "kv-heads": 1}
DECODE = {"head-dim": 128, "heads": 8, "kv-heads": 2, "seqlen-q": 1}

# name: (what grows, a list of arguments of bench/scaling.c)
CURVES = {
    "prefill": ("seqlen", [{**PREFILL, "seqlen-q": n, "seqlen-kv": n, "causal": None}
                           for n in LENGTHS]),
    "decode": ("seqlen", [{**DECODE, "seqlen-kv": n} for n in LENGTHS]),
    "prefill-batch": ("batch", [{**PREFILL, "seqlen-q": 1024, "seqlen-kv": 1024, "causal": None,
                                 "batch": b} for b in BATCHES]),
    "decode-batch": ("batch", [{**DECODE, "seqlen-kv": 4096, "batch": b} for b in BATCHES]),
}
COLORS = {"int8": "#0b6e4f", "int4": "#e09f3e", "fp8": "#c8553d", "bf16": "#577590"}


def command(program, recipe, arguments, threads):
    words = [str(program), "--recipe", recipe, "--threads", str(threads)]
    for name, value in arguments.items():
        words += [f"--{name}"] if value is None else [f"--{name}", str(value)]
    return words


def point(program, recipe, arguments, threads):
    done = subprocess.run(command(program, recipe, arguments, threads), check=True,
                          capture_output=True, text=True)
    return json.loads(done.stdout)


def measure(arguments):
    path = pathlib.Path(arguments.results)
    if path.exists():
        results = peers_run.read_results(path)
    else:
        results = {"kind": "headroom-cpu-scaling", "version": 1, "machine": peers_run.machine(),
                   "curves": []}
    for name in (c for c in CURVES if any(fnmatch.fnmatch(c, g) for g in arguments.curves)):
        for recipe in arguments.recipes:
            grows, points = CURVES[name]
            curve = {"name": name, "grows": grows, "recipe": recipe, "date": peers_run.now(),
                     "commit": peers_run.commit(),
                     "points": [point(arguments.program, recipe, p, arguments.threads)
                                for p in points]}
            results["curves"] = [c for c in results["curves"]
                                 if (c["name"], c["recipe"]) != (name, recipe)] + [curve]
            peers_run.write_results(path, results)
            print_curve(curve)


def size_of(curve, one):
    return one["batch"] if curve["grows"] == "batch" else one["seqlen_kv"]


def print_curve(curve):
    print(f"{curve['name']} {curve['recipe']} ({curve['points'][0]['kernel']})")
    for one in curve["points"]:
        rate = one["flops"] / one["seconds"] * 1e-9
        kv = one["kv_bytes"] / one["seconds"] * 1e-9
        print(f"  {size_of(curve, one):7} {1e3 * one['seconds']:11.3f} ms {rate:8.1f} GFLOP/s "
              f"{kv:7.2f} GB/s  peak {one['rss_peak'] / 2**20:8.1f} MiB, "
              f"of it scratch {one['rss_run'] / 2**20:6.2f}", flush=True)


def rate_tables(results):
    """One table a curve that grows with seqlen: recipes down, lengths across."""
    for name, what in (("prefill", "GFLOP/s"), ("decode", "µs a query")):
        curves = {c["recipe"]: c["points"] for c in results["curves"] if c["name"] == name}
        head = [f"{point['seqlen_kv'] // 1024}k" for point in next(iter(curves.values()), [])]
        lines = []
        for recipe in (r for r in RECIPES if r in curves):
            figures = [p["flops"] / p["seconds"] * 1e-9 if name == "prefill" else 1e6 * p["seconds"]
                       for p in curves[recipe]]
            lines.append([recipe, *(f"{figure:.0f}" for figure in figures)])
        yield from page.table([f"{name}, {what}", *head], lines)
        yield ""


def section(path, results):
    yield (f"{page.machine_of(results)}, one thread; all points are in "
           f"[the results](../bench/results/{path.name}).")
    yield ""
    yield from rate_tables(results)
    most = max(p["rss_run"] for c in results["curves"] for p in c["points"]) / 2**20
    yield f"No point of any curve took more than {most:.1f} MiB for plan and runs together."


def write_page(arguments):
    path = pathlib.Path(arguments.file)
    page.replace(pathlib.Path(arguments.output), section(path, peers_run.read_results(path)))


def draw(results, folder):
    """Above: time. Below: what attention itself adds to the resident set, beside the operands."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as pyplot

    pyplot.rcParams.update({"svg.hashsalt": "headroom", "svg.fonttype": "none"})
    names = [n for n in CURVES if any(c["name"] == n for c in results["curves"])]
    figure, axes = pyplot.subplots(2, len(names), figsize=(3.4 * len(names), 6), squeeze=False)
    for column, name in enumerate(names):
        time_axes, memory_axes = axes[0][column], axes[1][column]
        for curve in (c for c in results["curves"] if c["name"] == name):
            xs = [size_of(curve, p) for p in curve["points"]]
            color = COLORS.get(curve["recipe"], "#444444")
            time_axes.plot(xs, [1e3 * p["seconds"] for p in curve["points"]], "o-", color=color,
                           label=curve["recipe"], markersize=3)
            memory_axes.plot(xs, [p["rss_run"] / 2**20 for p in curve["points"]], "o-",
                             color=color, markersize=3)
            packed = [p["operand_bytes"] / 2**20 for p in curve["points"]]
            if curve["recipe"] == "int8":
                memory_axes.plot(xs, packed, ":", color="#888888", label="operands and O")
        time_axes.set_title(name, fontsize=9)
        for axis, label in ((time_axes, "ms"), (memory_axes, "MiB, plan and runs")):
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xlabel(CURVES[name][0] if axis is memory_axes else "", fontsize=8)
            axis.set_ylabel(label, fontsize=8)
            axis.tick_params(labelsize=7)
            axis.legend(fontsize=7, frameon=False)
    figure.suptitle(f"one thread, {results['machine']['cpu']}", fontsize=10)
    figure.tight_layout()
    path = pathlib.Path(folder) / "cpu-scaling.svg"
    figure.savefig(path, metadata={"Date": None})
    print(path)


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    verb = verbs.add_parser("measure", help="run the points of curves")
    verb.add_argument("--program", default=str(ROOT / "build" / "release" / "scaling"))
    verb.add_argument("--curves", type=peers_run.words, default=["*"], metavar="GLOB,...")
    verb.add_argument("--recipes", type=peers_run.words, default=list(RECIPES))
    verb.add_argument("--threads", type=int, default=1)
    verb.add_argument("--results", default="build/scaling.json", metavar="FILE")
    verb.set_defaults(run=measure)
    verb = verbs.add_parser("report", help="the figures of a results file")
    verb.add_argument("file")
    verb.set_defaults(run=lambda a: [print_curve(c) for c in
                                     peers_run.read_results(a.file)["curves"]])
    verb = verbs.add_parser("page", help="write a results file into the page of the docs")
    verb.add_argument("file")
    verb.add_argument("-o", "--output", default=str(ROOT / "docs" / "cpu-scaling.md"),
                      metavar="PAGE")
    verb.set_defaults(run=write_page)
    verb = verbs.add_parser("plot", help="the plot of a results file")
    verb.add_argument("file")
    verb.add_argument("-o", "--output", default=str(ROOT / "docs"), metavar="DIRECTORY")
    verb.set_defaults(run=lambda a: draw(peers_run.read_results(a.file), a.output))
    return parser.parse_args()


if __name__ == "__main__":
    chosen = parse()
    chosen.run(chosen)
