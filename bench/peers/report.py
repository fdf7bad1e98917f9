"""Tables, ratios and bars from a results file of run.py."""

import fnmatch
import statistics


def median_of(entry):
    return statistics.median(entry["figures"])


def spread_of(entry):
    """The interquartile range over the median; 0 of a single figure."""
    if len(entry["figures"]) < 2:
        return 0.0
    low, _, high = statistics.quantiles(entry["figures"], n=4, method="inclusive")
    return (high - low) / median_of(entry)


def named(burst, name):
    return next((p for p in burst["participants"] if p["name"] == name), None)


def ratio(burst, peer, ours):
    """How many times as fast ours is: the median over repeats of neighbours in time."""
    return statistics.median(a / b for a, b in zip(peer["figures"], ours["figures"]))


def opponent(burst, peer):
    """The Headroom entry a peer is compared with: 4-bit with 4-bit, all others with INT8."""
    bits = 4 if burst["row"]["phase"] == "decode" and peer["bits"] == 4 else 8
    return named(burst, "headroom/int4" if bits == 4 else "headroom/int8")


def rate(row, seconds):
    """(figure, unit): GFLOP/s of prefill, f16-equivalent GB/s of decode."""
    if row["phase"] == "prefill":
        return row["flops"] / seconds * 1e-9, "GFLOP/s"
    return row["f16_bytes"] / seconds * 1e-9, "GB/s"


def is_ours(name):
    return name.startswith(("headroom", "peak"))


def print_entry(burst, entry):
    if entry["unit"] != "s":
        print(f"  {entry['name']:22} {median_of(entry):30.1f} {entry['unit']:8} "
              f"{100 * spread_of(entry):5.1f}%")
        return
    figure, unit = rate(burst["row"], median_of(entry))
    ours = opponent(burst, entry)
    text = "" if is_ours(entry["name"]) or not ours else f"{ratio(burst, entry, ours):8.2f}"
    print(f"  {entry['name']:22} {1e3 * median_of(entry):10.3f} ms {100 * spread_of(entry):6.1f}% "
          f"{figure:8.1f} {unit:8} {entry['rel_l2']:.1e} {text}")


def print_burst(burst):
    for entry in burst["participants"]:
        print_entry(burst, entry)


def newest(results, threads):
    """{row name: {participant name: (burst, entry)}}, the newest of each."""
    found = {}
    for burst in sorted(results["bursts"], key=lambda b: b["date"]):
        if burst["threads"] != threads:
            continue
        row = found.setdefault(burst["row"]["name"], {})
        for entry in burst["participants"]:
            row[entry["name"]] = (burst, entry)
    return found


# (what, rows, peers, our recipe, the least ratio). A bar names all peers it is about: the fastest
# of them decides.
Q8 = ("ik_llama.cpp/q8_0", "ik_llama.cpp/q8_KV")
GGML = ("ggml/f16",)
EIGHT = ("ggml/q8_0", *Q8, "openvino/u8", "openvino/paged-u8", "onnxruntime/int8")
FOUR = ("ggml/q4_0", "ik_llama.cpp/q4_0", "openvino/paged-u4", "onnxruntime/int4")
BARS = (
    ("full prefill, ik_llama.cpp 8-bit", "prefill-*-full", Q8, "headroom/int8", 5),
    ("full prefill, oneDNN", "prefill-*-full", ("onednn/",), "headroom/int8", 6),
    ("full prefill, PyTorch", "prefill-*-full", ("torch/",), "headroom/int8", 6),
    ("full prefill, ggml f16", "prefill-*-full", GGML, "headroom/int8", 10),
    ("causal prefill, ik_llama.cpp 8-bit", "prefill-*-causal", Q8, "headroom/int8", 10),
    ("causal prefill, oneDNN", "prefill-*-causal", ("onednn/",), "headroom/int8", 10),
    ("causal prefill, PyTorch", "prefill-*-causal", ("torch/",), "headroom/int8", 10),
    ("causal prefill, ggml f16", "prefill-*-causal", GGML, "headroom/int8", 10),
    ("decode cold, best 8-bit", "decode-*-8x8-cold", EIGHT, "headroom/int8", 1.85),
    ("decode cold, best 4-bit", "decode-*-8x8-cold", FOUR, "headroom/int4", 2.4),
    ("decode warm, best 8-bit", "decode-*-8x8-warm", EIGHT, "headroom/int8", 1.5),
    ("decode warm, best 4-bit", "decode-*-8x8-warm", FOUR, "headroom/int4", 1.5),
    ("decode GQA, best 8-bit", "decode-*-8x2-*", EIGHT, "headroom/int8", 1.5),
    ("decode GQA, best 4-bit", "decode-*-8x2-*", FOUR, "headroom/int4", 1.5),
    ("decode cold, INT4 and ggml f16", "decode-*-8x8-cold", GGML, "headroom/int4", 4.5),
)
TWO_THREADS = 1.9


def bars(results):
    """(what, row name, least ratio, bar, the peer that decides) of every bar that was measured."""
    for what, rows, names, ours_name, bar in BARS:
        for row_name, entries in newest(results, 1).items():
            if not fnmatch.fnmatch(row_name, rows):
                continue
            ratios = [(ratio(burst, entry, named(burst, ours_name)), name)
                      for name, (burst, entry) in entries.items()
                      if name.startswith(names) and named(burst, ours_name)]
            if ratios:
                least, name = min(ratios)
                yield what, row_name, least, bar, name


def print_bars(results):
    print("\nbars, 1 thread: the least ratio to the fastest of the peers named")
    for what, row_name, least, bar, name in bars(results):
        verdict = "met" if least >= bar else "NOT MET"
        print(f"  {what:34} {row_name:26} {least:6.2f} >= {bar:<5} {verdict:8} ({name})")


def both_threads(results):
    """(row name, recipe, times as fast as one thread)."""
    for row_name, entries in newest(results, 2).items():
        for recipe in ("int8", "int4"):
            if f"headroom-1/{recipe}" not in entries or f"headroom/{recipe}" not in entries:
                continue
            burst, one = entries[f"headroom-1/{recipe}"]
            yield row_name, recipe, ratio(burst, one, named(burst, f"headroom/{recipe}"))


def print_threads(results):
    lines = [f"  {row_name:26} {recipe:5} {times:6.2f} >= {TWO_THREADS}   "
             f"{'met' if times >= TWO_THREADS else 'NOT MET'}"
             for row_name, recipe, times in both_threads(results)]
    if lines:
        print("\nbar, both threads: times as fast as one")
        print("\n".join(lines))


def print_all(results):
    print(f"{results['machine']['cpu']}, {results['machine']['os']}")
    for threads in sorted({burst["threads"] for burst in results["bursts"]}):
        for row_name, entries in newest(results, threads).items():
            print(f"\n{row_name}, threads: {threads}")
            for burst, entry in entries.values():
                print_entry(burst, entry)
    print_bars(results)
    print_threads(results)
