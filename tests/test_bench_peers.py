#!/usr/bin/env python3
"""What bench/peers promises without any peer: its programs start, a dry run says what would run,
results are merged and judged as documented, and committed results meet the schema."""

import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PEERS = ROOT / "bench" / "peers"
RESULTS = ROOT / "bench" / "results"
sys.dont_write_bytecode = True
sys.path.insert(0, str(PEERS))
sys.path.insert(0, str(ROOT / "bench"))

import page
import peers
import report
import run
import scaling


def burst(date, figures, row="decode-d128-32k-8x8-cold", threads=1):
    """figures: {participant: (bits, seconds of each repeat)}."""
    (chosen,) = [r for r in peers.ROWS if r.name == row]
    return {
        "date": date, "row": run.row_object(chosen), "threads": threads, "commit": "0123456789ab",
        "participants": [
            {"name": name, "bits": bits, "version": "1", "unit": "s", "kv_bytes": 1, "copies": 1,
             "rel_l2": 0.01, "figures": seconds}
            for name, (bits, seconds) in figures.items()
        ],
    }


def results_of(*bursts):
    results = {"kind": "headroom-cpu-peers", "version": 1, "bursts": [],
               "machine": {"cpu": "c", "processors": 1, "os": "o", "peers_compiler": "cc"}}
    for one in bursts:
        run.merge(results, one)
    return results


def output(command):
    return subprocess.run(command, check=True, capture_output=True, text=True,
                          env=dict(os.environ, PYTHONDONTWRITEBYTECODE="1")).stdout


class Programs(unittest.TestCase):
    def test_python_compiles(self):
        for file in PEERS.glob("*.py"):
            compile(file.read_text(), file, "exec")

    def test_help(self):
        self.assertIn("measure", output([sys.executable, PEERS / "run.py", "--help"]))
        text = output(["bash", PEERS / "setup.sh", "--help"])
        for family in {p.family for p in peers.public_peers()}:
            self.assertIn(family, text)

    def test_every_driver_says_what_it_wants(self):
        """Python drivers import their library before they read arguments, so they are read here."""
        for participant in peers.public_peers():
            source = participant.needs
            if source.suffix != ".py":
                continue
            with self.subTest(participant.name):
                self.assertIn(participant.variant.removeprefix("paged-"), source.read_text())
                self.assertIn("peer_driver.main(Peer)", source.read_text())

    def test_participants_run_where_they_make_sense(self):
        rows = {row.name: row for row in peers.ROWS}
        found = {p.name: p for p in peers.public_peers()}
        self.assertEqual(len(found), len(peers.public_peers()), "two have the same name")
        for name, prefill, decode in (("openvino/paged-f32", "causal", False),
                                      ("openvino/paged-u4", None, True),
                                      ("openvino/u8", None, True),
                                      ("onnxruntime/f32", "full causal", True),
                                      ("onnxruntime/int4", None, True),
                                      ("onednn/f16", "full causal", True)):
            for mask in ("full", "causal"):
                self.assertEqual(found[name].takes(rows[f"prefill-d64-1k-{mask}"]),
                                 mask in (prefill or "").split(), (name, mask))
            self.assertEqual(found[name].takes(rows["decode-d128-4k-8x2-warm"]), decode, name)

    def test_dry_run_names_every_participant_of_the_phase(self):
        text = output([sys.executable, PEERS / "run.py", "measure", "--dry-run", "--rows",
                       "decode-d128-32k-8x2-cold"])
        commands = text.splitlines()
        (row,) = [r for r in peers.ROWS if r.name == "decode-d128-32k-8x2-cold"]
        wanted = [p for p in run.peers.public_peers() if p.takes(row)]
        for participant in wanted:
            self.assertTrue(any(all(word in line for word in participant.command) and
                                f"--variant {participant.variant} " in line
                                for line in commands), participant.name)
        for line in commands:
            self.assertIn("--kv-heads 2 --mask full --threads 1 --cold 640", line)

    def test_unknown_row(self):
        done = subprocess.run([sys.executable, PEERS / "run.py", "measure", "--rows", "nothing"],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("no row matches nothing", done.stderr)


class Merging(unittest.TestCase):
    def test_a_newer_burst_replaces_what_it_measured(self):
        old = burst("2026-01-01T00:00:00Z", {"headroom/int8": (8, [1.0]), "ggml/f16": (16, [5.0]),
                                             "ggml/q8_0": (8, [9.0])})
        new = burst("2026-01-02T00:00:00Z", {"headroom/int8": (8, [2.0]), "ggml/f16": (16, [6.0])})
        entries = report.newest(results_of(old, new), 1)["decode-d128-32k-8x8-cold"]
        self.assertEqual(entries["ggml/f16"][1]["figures"], [6.0])
        self.assertEqual(entries["ggml/q8_0"][1]["figures"], [9.0])
        # The old peer keeps the Headroom figures of its own burst: ratios stay of neighbours.
        self.assertEqual(report.named(entries["ggml/q8_0"][0], "headroom/int8")["figures"], [1.0])

    def test_a_burst_without_peers_left_goes(self):
        one = burst("2026-01-01T00:00:00Z", {"headroom/int8": (8, [1.0]), "ggml/f16": (16, [5.0])})
        again = dict(one, date="2026-01-02T00:00:00Z")
        self.assertEqual(results_of(one, again)["bursts"], [again])

    def test_threads_are_kept_apart(self):
        one = burst("2026-01-01T00:00:00Z", {"ggml/f16": (16, [5.0])})
        two = burst("2026-01-01T00:00:00Z", {"ggml/f16": (16, [3.0])}, threads=2)
        self.assertEqual(len(results_of(one, two)["bursts"]), 2)


class Judging(unittest.TestCase):
    def test_the_ratio_is_of_neighbours(self):
        one = burst("2026-01-01T00:00:00Z", {"headroom/int8": (8, [1.0, 2.0, 4.0]),
                                             "ggml/q8_0": (8, [3.0, 6.0, 13.0])})
        self.assertEqual(report.ratio(one, one["participants"][1], one["participants"][0]), 3.0)

    def test_the_fastest_peer_decides(self):
        one = burst("2026-01-01T00:00:00Z", {
            "headroom/int8": (8, [1.0]), "headroom/int4": (4, [0.5]), "ggml/q8_0": (8, [9.0]),
            "ik_llama.cpp/q8_0": (8, [1.8]), "ik_llama.cpp/q4_0": (4, [1.3]),
            "ggml/f16": (16, [2.0])})
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            report.print_bars(results_of(one))
        lines = {line.split("  ")[1]: line
                 for line in text.getvalue().splitlines() if ">=" in line}
        self.assertIn("1.80 >= 1.85  NOT MET  (ik_llama.cpp/q8_0)",
                      lines["decode cold, best 8-bit"])
        self.assertIn("2.60 >= 2.4   met      (ik_llama.cpp/q4_0)",
                      lines["decode cold, best 4-bit"])
        self.assertIn("4.00 >= 4.5   NOT MET", lines["decode cold, INT4 and ggml f16"])


class Results(unittest.TestCase):
    def setUp(self):
        try:
            import jsonschema
        except ImportError:
            self.skipTest("the Python package jsonschema is missing")
        self.validate = jsonschema.validate
        self.schema = run.schema_of({"kind": "headroom-cpu-peers"})
        self.error = jsonschema.ValidationError

    def test_committed_results(self):
        for path in sorted(RESULTS.glob("*-cpu-*.json")):
            with self.subTest(path.name):
                results = run.read_results(path)
                self.validate(results, run.schema_of(results))
                for one in results.get("bursts", []):
                    lengths = {len(p["figures"]) for p in one["participants"]}
                    self.assertEqual(len(lengths), 1, "repeats differ within a burst")

    def test_the_schema_refuses(self):
        good = results_of(burst("2026-01-01T00:00:00Z", {"headroom/int8": (8, [1.0])}))
        self.validate(good, self.schema)
        bad = json.loads(json.dumps(good))
        bad["bursts"][0]["participants"][0]["figures"] = [0]
        with self.assertRaises(self.error):
            self.validate(bad, self.schema)
        bad = json.loads(json.dumps(good))
        del bad["bursts"][0]["commit"]
        with self.assertRaises(self.error):
            self.validate(bad, self.schema)


class Pages(unittest.TestCase):
    """A page names the results file it shows, and shows what is in it."""

    def check(self, name, section):
        path = ROOT / "docs" / name
        text = path.read_text()
        (results,) = set(re.findall(r"\.\./bench/results/([\w.-]+-cpu-[a-z]+\.json)\)", text))
        with tempfile.TemporaryDirectory() as folder:
            again = pathlib.Path(folder) / name
            again.write_text(text)
            page.replace(again, section(RESULTS / results, run.read_results(RESULTS / results)))
            self.assertEqual(text, again.read_text(), f"docs/{name} is not what its results say")

    def test_peers(self):
        self.check("cpu-peers.md", page.section)

    def test_scaling(self):
        self.check("cpu-scaling.md", scaling.section)

    def test_a_page_without_a_place_for_results(self):
        with tempfile.NamedTemporaryFile("w", suffix=".md") as file:
            with self.assertRaisesRegex(SystemExit, "wants one line"):
                page.replace(pathlib.Path(file.name), [])


if __name__ == "__main__":
    unittest.main()
