"""Bar charts of a results file of run.py: one panel a row, one bar a participant."""

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as pyplot

import report

COLORS = {"headroom": "#0b6e4f", "ggml": "#c8553d", "ik_llama.cpp": "#e09f3e", "onednn": "#577590",
          "torch": "#9a7aa0", "openvino": "#8d99ae", "onnxruntime": "#5f7a61"}


def panel(axes, row_name, entries):
    burst_entries = [(name, report.rate(burst["row"], report.median_of(entry)))
                     for name, (burst, entry) in entries.items() if entry["unit"] == "s"]
    burst_entries.sort(key=lambda item: item[1][0])
    names = [name for name, _ in burst_entries]
    figures = [figure for _, (figure, _) in burst_entries]
    unit = burst_entries[0][1][1]
    colors = [COLORS.get(name.split("/")[0], "#444444") for name in names]
    axes.barh(names, figures, color=colors)
    for i, figure in enumerate(figures):
        axes.text(figure, i, f" {figure:.3g}", va="center", fontsize=7)
    axes.set_title(row_name, fontsize=9)
    axes.set_xlabel(unit if unit == "GFLOP/s" else "GB/s of K and V as if in 16 bits", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.margins(x=0.15)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw(results, folder):
    """Writes cpu-peers-prefill.svg and cpu-peers-decode.svg, of the rows with one thread."""
    pyplot.rcParams.update({"svg.hashsalt": "headroom", "svg.fonttype": "none"})
    rows = report.newest(results, 1)
    for phase in ("prefill", "decode"):
        chosen = [item for item in rows.items() if item[0].startswith(phase)]
        if not chosen:
            continue
        columns = 2
        lines = -(-len(chosen) // columns)
        figure, axes = pyplot.subplots(lines, columns, figsize=(10, 3.2 * lines), squeeze=False)
        for spare in axes.flat[len(chosen):]:
            spare.set_visible(False)
        for axis, (row_name, entries) in zip(axes.flat, chosen):
            panel(axis, row_name, entries)
        cpu = results["machine"]["cpu"]
        figure.suptitle(f"{phase}, one thread, {cpu}", fontsize=10)
        figure.tight_layout()
        path = folder / f"cpu-peers-{phase}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
        print(path)
