#!/usr/bin/env python3
"""Runs Headroom and public CPU attention kernels on the same problems, in turn.

    bench/peers/setup.sh                        fetch and build the peers (once)
    run.py prepare                              inputs and FP64 references (build/peers/inputs)
    run.py measure --results FILE               all rows; or some: --rows GLOB --peers GLOB,...
    run.py report FILE                          the table, ratios and bars of a results file
    run.py page FILE -o PAGE                    writes them into docs/cpu-peers.md
    run.py plot FILE -o DIRECTORY               its plots, SVG (needs matplotlib)
    run.py check FILE...                        validates results against the schema
    run.py list                                 rows, participants, and which of them are built

A burst is one row and some participants: all drivers load the same inputs, then each repeat asks
every driver in turn for one timing, so a ratio is one of neighbours in time. Headroom and the
machine's peaks are in every burst. Bursts can be measured one by one, on a machine that is quiet
for a minute at a time; a results file keeps the newest of each row and participant. Cold decode
rows take about 1 GB a participant.
"""

import argparse
import datetime
import fnmatch
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import page
import peers
import report

ALWAYS = ("headroom/int[48]", "headroom-1/*", "peak/*")  # the participants of every burst
RESULTS = peers.ROOT / "bench" / "results"
# An OpenMP run time lets idle workers spin for some milliseconds, on a processor that the next
# driver's threads want: before a timing they get the time to fall asleep.
SETTLE_SECONDS = 0.1
REFERENCE_ROWS = 128  # queries the error is measured on, evenly spaced


class DriverFailed(Exception):
    pass


class Driver:
    """A running driver: ready after construction, then figures one by one."""

    def __init__(self, participant, row, threads):
        self.participant = participant
        self.process = subprocess.Popen(
            peers.command(participant, row, threads), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=peers.environment(participant, threads), text=True,
            bufsize=1)
        self.facts = json.loads(self.line())
        self.figures = []

    def line(self):
        text = self.process.stdout.readline()
        if not text:
            raise DriverFailed(f"{self.participant.name} ended with {self.process.wait()}")
        return text

    def ask(self, command):
        try:
            self.process.stdin.write(command + "\n")
        except BrokenPipeError as error:
            raise DriverFailed(self.participant.name) from error
        return self.line()

    def measure(self):
        self.figures.append(float(self.ask("run")))

    def error(self, row):
        """Relative L2 of O against FP64 on the original inputs; None for a peak."""
        if self.facts["unit"] != "s":
            return None
        import numpy

        path = peers.BUILD / "inputs" / f"output-{os.getpid()}"
        self.ask(f"output {path}")
        o = numpy.fromfile(path, numpy.float32).reshape(row.seqlen_q, row.num_heads, row.head_dim)
        path.unlink()
        reference = numpy.load(reference_path(row))
        difference = o[reference_queries(row)] - reference
        error = float(numpy.linalg.norm(difference) / numpy.linalg.norm(reference))
        if not error < 1:
            raise DriverFailed(f"{self.participant.name} computes something else: error {error}")
        return error

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def reference_path(row):
    return pathlib.Path(f"{row.inputs}.{row.mask}.npy")


def reference_queries(row):
    import numpy

    count = min(row.seqlen_q, REFERENCE_ROWS)
    return numpy.unique(numpy.linspace(0, row.seqlen_q - 1, count).astype(int))


def prepare_row(row):
    """N(0,1) inputs from PCG64 with seed 1, and O of REFERENCE_ROWS queries in double precision."""
    import numpy

    random = numpy.random.default_rng(1)
    shapes = (("q", row.seqlen_q, row.num_heads), ("k", row.seqlen_kv, row.num_kv_heads),
              ("v", row.seqlen_kv, row.num_kv_heads))
    data = {x: random.standard_normal((n, h, row.head_dim), dtype=numpy.float32)
            for x, n, h in shapes}
    row.inputs.parent.mkdir(parents=True, exist_ok=True)
    for name, values in data.items():
        values.tofile(f"{row.inputs}.{name}")
    queries = reference_queries(row)
    keys = numpy.arange(row.seqlen_kv)
    out = numpy.empty((len(queries), row.num_heads, row.head_dim))
    for h in range(row.num_heads):
        kv = h // (row.num_heads // row.num_kv_heads)
        scores = data["q"][queries, h].astype(float) @ data["k"][:, kv].astype(float).T
        scores /= row.head_dim ** 0.5
        if row.mask == "causal":
            last = queries + row.seqlen_kv - row.seqlen_q
            scores[keys[None, :] > last[:, None]] = -numpy.inf
        p = numpy.exp(scores - scores.max(1, keepdims=True))
        out[:, h] = p / p.sum(1, keepdims=True) @ data["v"][:, kv].astype(float)
    numpy.save(reference_path(row), out)


def selected_rows(globs):
    rows = [row for row in peers.ROWS if any(fnmatch.fnmatch(row.name, g) for g in globs)]
    if not rows:
        sys.exit(f"run.py: no row matches {','.join(globs)}; run.py list shows them")
    return rows


def all_participants(arguments):
    return peers.headroom(pathlib.Path(arguments.build).resolve()) + peers.public_peers()


def selected_participants(arguments, row):
    globs = (*ALWAYS, *arguments.peers)
    found = [p for p in all_participants(arguments)
             if p.takes(row) and any(fnmatch.fnmatch(p.name, g) for g in globs)]
    return [p for p in found if not p.one_thread or arguments.threads > 1]


def use_processors(threads):
    """Everything started from here shares that many of the processors this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < threads:
        sys.exit(f"run.py: --threads {threads}, but there are {len(allowed)} processors to use")
    os.sched_setaffinity(0, allowed[-threads:])


def start(participants, row, threads):
    drivers = []
    for participant in participants:
        if not peers.installed(participant):
            print(f"  {participant.name}: not installed", file=sys.stderr)
            continue
        try:
            drivers.append(Driver(participant, row, threads))
        except DriverFailed as error:
            print(f"  left out: {error}", file=sys.stderr)
    return drivers


def measure_row(arguments, row):
    if not reference_path(row).exists():
        sys.exit(f"run.py: no inputs for {row.name}; run.py prepare makes them")
    drivers = start(selected_participants(arguments, row), row, arguments.threads)
    begin, repeats = time.monotonic(), 0
    while repeats < arguments.repeats:
        first = repeats % len(drivers)  # who comes after whom is not always the same
        for driver in drivers[first:] + drivers[:first]:
            if arguments.threads > 1:
                time.sleep(SETTLE_SECONDS)
            driver.measure()
        repeats += 1
        if time.monotonic() - begin > arguments.seconds:
            break
    entries = []
    for driver in drivers:
        try:
            entries.append({"name": driver.participant.name, "bits": driver.participant.bits,
                            **driver.facts, "rel_l2": driver.error(row),
                            "figures": driver.figures})
        except DriverFailed as error:
            print(f"  left out: {error}", file=sys.stderr)
        driver.close()
    print(f"{row.name}, {arguments.threads} thread(s), {repeats} repeats:", flush=True)
    burst = {"date": now(), "row": row_object(row), "threads": arguments.threads,
             "commit": commit(), "participants": entries}
    report.print_burst(burst)
    return burst


def row_object(row):
    return {"name": row.name, "phase": row.phase, "head_dim": row.head_dim,
            "seqlen_q": row.seqlen_q, "seqlen_kv": row.seqlen_kv, "num_heads": row.num_heads,
            "num_kv_heads": row.num_kv_heads, "mask": row.mask, "cold_mib": row.cold_mib,
            "flops": row.flops, "f16_bytes": row.f16_bytes}


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def commit():
    return subprocess.run(["git", "-C", peers.ROOT, "describe", "--always", "--dirty",
                           "--abbrev=12", "--exclude=*"], capture_output=True, text=True,
                          check=True).stdout.strip()


def machine():
    cpu = "unknown"
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True)
    return {"cpu": cpu, "processors": os.cpu_count(),
            "os": f"{platform.system()} {platform.release()}",
            "peers_compiler": compiler.stdout.splitlines()[0]}


def merge(results, burst):
    """Adds a burst; what it measured anew leaves the older bursts of its row."""
    names = {p["name"] for p in burst["participants"]}
    kept = []
    for old in results["bursts"]:
        if (old["row"]["name"], old["threads"]) == (burst["row"]["name"], burst["threads"]):
            others = [p for p in old["participants"]
                      if p["name"] not in names or is_always(p["name"])]
            if all(is_always(p["name"]) for p in others):
                continue
            old = dict(old, participants=others)
        kept.append(old)
    results["bursts"] = kept + [burst]


def is_always(name):
    return any(fnmatch.fnmatch(name, g) for g in ALWAYS)


def read_results(path):
    with open(path) as file:
        return json.load(file)


def write_results(path, results):
    """Whole or not at all: a run may be ended at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def measure(arguments):
    rows = selected_rows(arguments.rows)
    if arguments.dry_run:
        for row in rows:
            for participant in selected_participants(arguments, row):
                print(" ".join(peers.command(participant, row, arguments.threads)))
        return
    use_processors(arguments.threads)
    path = pathlib.Path(arguments.results)
    results = (read_results(path) if path.exists() else
               {"kind": "headroom-cpu-peers", "version": 1, "machine": machine(), "bursts": []})
    for row in rows:
        merge(results, measure_row(arguments, row))
        write_results(path, results)


def prepare(arguments):
    for row in selected_rows(arguments.rows):
        prepare_row(row)
        print(row.inputs)


def show_list(arguments):
    print("rows:")
    for row in peers.ROWS:
        print(f"  {row.name}")
    print("participants:")
    for participant in all_participants(arguments):
        state = "" if peers.installed(participant) else "  (not installed)"
        print(f"  {participant.name}{state}")


def schema_of(results):
    """Files say their kind: headroom-cpu-peers or, of bench/scaling.py, headroom-cpu-scaling."""
    name = results["kind"].removeprefix("headroom-")
    return json.loads((RESULTS / f"{name}.schema.json").read_text())


def check(arguments):
    import jsonschema

    for path in arguments.files:
        results = read_results(path)
        jsonschema.validate(results, schema_of(results))
        print(f"{path}: valid")


def plot(arguments):
    import plot as plotting

    plotting.draw(read_results(arguments.file), pathlib.Path(arguments.output))


def write_page(arguments):
    path = pathlib.Path(arguments.file)
    page.replace(pathlib.Path(arguments.output), page.section(path, read_results(path)))


def words(text):
    return text.split(",")


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=str(peers.ROOT / "build" / "release"),
                        help="where Headroom is built (default build/release)")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    verb = verbs.add_parser("list", help="rows and participants")
    verb.set_defaults(run=show_list)
    verb = verbs.add_parser("prepare", help="write inputs and references")
    verb.add_argument("--rows", type=words, default=["*"], metavar="GLOB,...")
    verb.set_defaults(run=prepare)
    verb = verbs.add_parser("measure", help="run a burst of each row")
    verb.add_argument("--rows", type=words, default=["*"], metavar="GLOB,...")
    verb.add_argument("--peers", type=words, default=["*"], metavar="GLOB,...",
                      help="participants beside Headroom and the peaks, e.g. 'ik_llama.cpp/*'")
    verb.add_argument("--threads", type=int, default=1)
    verb.add_argument("--repeats", type=int, default=7)
    verb.add_argument("--seconds", type=float, default=1e9,
                      help="no further repeat of a row after so long")
    verb.add_argument("--results", default="build/peers/results.json", metavar="FILE")
    verb.add_argument("--dry-run", action="store_true", help="print the drivers' commands only")
    verb.set_defaults(run=measure)
    verb = verbs.add_parser("report", help="table and bars of a results file")
    verb.add_argument("file")
    verb.set_defaults(run=lambda a: report.print_all(read_results(a.file)))
    verb = verbs.add_parser("page", help="write a results file into the page of the docs")
    verb.add_argument("file")
    verb.add_argument("-o", "--output", default=str(peers.ROOT / "docs" / "cpu-peers.md"),
                      metavar="PAGE")
    verb.set_defaults(run=write_page)
    verb = verbs.add_parser("plot", help="plots of a results file")
    verb.add_argument("file")
    verb.add_argument("-o", "--output", default=str(peers.ROOT / "docs"), metavar="DIRECTORY")
    verb.set_defaults(run=plot)
    verb = verbs.add_parser("check", help="validate results files")
    verb.add_argument("files", nargs="+")
    verb.set_defaults(run=check)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        chosen = parse()
        chosen.run(chosen)
    except DriverFailed as failure:
        sys.exit(f"run.py: {failure}")
