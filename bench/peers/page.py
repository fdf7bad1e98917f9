"""The results section of docs/cpu-peers.md: tables and bars of a results file, in Markdown."""

import peers
import report

BEGIN = "<!-- results: written by a script -->"
END = "<!-- end of results -->"


def cell(found):
    """Rate and, of a peer, how many times as fast Headroom is."""
    if not found:
        return "–"
    burst, entry = found
    if entry["unit"] != "s":
        return f"{report.median_of(entry):.0f}"
    text = f"{report.rate(burst['row'], report.median_of(entry))[0]:.3g}"
    ours = report.opponent(burst, entry)
    if report.is_ours(entry["name"]) or not ours:
        return text
    return f"{text} ({report.ratio(burst, entry, ours):.1f}×)"


def short(row_name):
    """A row's name without what all rows of its table share."""
    name = row_name.split("-", 1)[1]
    return name.replace("d128-32k-", "32k ").replace("d128-4k-8x", "4k 8x")


def table(head, lines):
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for line in lines:
        yield "| " + " | ".join(line) + " |"


def phase_tables(results):
    """One table a phase, one thread: rows are participants, columns the problems."""
    rows = report.newest(results, 1)
    for phase, unit in (("prefill", "GFLOP/s"), ("decode", "GB/s as if in 16 bits")):
        columns = [row.name for row in peers.ROWS if row.phase == phase and row.name in rows]
        names = dict.fromkeys(name for column in columns for name in rows[column])
        lines = []
        for name in sorted(names, key=lambda n: (not report.is_ours(n), n)):
            errors = [rows[c][name][1]["rel_l2"] for c in columns if name in rows[c]]
            error = f"{max(errors):.0e}" if None not in errors else ""
            lines.append([name, error, *(cell(rows[column].get(name)) for column in columns)])
        yield from table([f"{phase}, {unit}", "error", *map(short, columns)], lines)
        yield ""


def bar_table(results):
    found = {}
    for what, row_name, least, bar, _ in report.bars(results):
        where = short(row_name).replace("-full", "").replace("-causal", "")
        found.setdefault((what, bar), []).append((least, where))
    lines = []
    for (what, bar), ratios in found.items():
        met = sum(least >= bar for least, _ in ratios)
        verdict = ("met" if met == len(ratios) else
                   f"met on {met} of {len(ratios)}" if met else "**not met**")
        measured = ", ".join(f"{least:.2f} ({where})" for least, where in ratios)
        lines.append([what, str(bar), measured, verdict])
    return table(["bar", "wanted", "measured", ""], lines)


def thread_table(results):
    found = {}
    for row_name, recipe, times in report.both_threads(results):
        verdict = "" if times >= report.TWO_THREADS else " **not met**"
        found.setdefault(row_name, {})[recipe] = f"{times:.2f}{verdict}"
    return table(["problem", "int8", "int4"],
                 ([row_name, cells.get("int8", "–"), cells.get("int4", "–")]
                  for row_name, cells in found.items()))


def versions(results):
    found = {entry["version"] for burst in results["bursts"] for entry in burst["participants"]
             if not report.is_ours(entry["name"])}
    return ", ".join(sorted(found))


def machine_of(results):
    machine = results["machine"]
    return f"{machine['cpu'].strip()}, {machine['processors']} processors, {machine['os']}"


def section(path, results):
    yield (f"{machine_of(results)}; ggml and ik_llama.cpp compiled by "
           f"{results['machine']['peers_compiler']}. {versions(results)}. Commits and compilers of "
           f"Headroom are in [the results](../bench/results/{path.name}).")
    yield ""
    yield ("In parentheses: how many times as fast Headroom is, `int8` against all but the 4-bit "
           "caches of decode, `int4` against those. *error* is the largest relative L2 over the "
           "columns.")
    yield ""
    yield from phase_tables(results)
    yield "### Bars"
    yield ""
    yield "How many times as fast Headroom is as the fastest of the peers a bar is about:"
    yield ""
    yield from bar_table(results)
    yield ""
    yield f"Two threads against one, wanted {report.TWO_THREADS}:"
    yield ""
    yield from thread_table(results)


def replace(page, lines):
    """Puts lines in place of what stands between BEGIN and END in the page."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{page}: wants one line '{BEGIN}' and one '{END}' around its results")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    body = "\n".join(lines)
    page.write_text(f"{head}{BEGIN}\n{body}\n{END}{tail}")
