#!/usr/bin/env python3
"""bench/gpu.sh and its Python as far as they go without a GPU: usage, the dry run's table and JSON,
ncu's CSV."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

BENCH = pathlib.Path(__file__).parents[1] / "bench"
NCU = '''== headroom prints this
==PROF== and ncu this
"ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread"
"","","ns","register/thread"
"0","void attention<1>(args)","1,234","168"
"1","void attention<2>(args)","n/a","240"
'''


def run(*command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


class GpuBench(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def test_usage(self):
        shown = run("bash", BENCH / "gpu.sh", "--help")
        self.assertEqual(shown.returncode, 0, shown.stderr)
        self.assertIn("--stages LIST", shown.stdout)
        self.assertNotIn("set -euo", shown.stdout)
        for arguments, message in [(["--stages", "build,nap"], 'no stage "nap"'),
                                   (["--speed"], 'unknown option "--speed"'),
                                   (["--out"], "--out needs a value")]:
            refused = run("bash", BENCH / "gpu.sh", *arguments)
            self.assertEqual(refused.returncode, 2)
            self.assertIn(message, refused.stderr)

    def test_a_failing_stage_is_reported(self):
        """Without a GPU the check fails, says so in the summary, and gives exit code 1."""
        if shutil.which("nvidia-smi"):
            self.skipTest("there is a GPU")
        ran = run("bash", BENCH / "gpu.sh", "--stages", "check", "--out", self.folder,
                  "--bundle", self.folder / "none")
        self.assertEqual(ran.returncode, 1)
        self.assertRegex(ran.stdout, r"FAILED +\d+ s  check")

    def test_one_failure_keeps_the_rest(self):
        """Programs that a GPU machine has are pretended: one recipe's check fails, one sanitizer
        says nothing, and the benchmark is stopped after it wrote some cases."""
        tree, out, tools = (self.folder / name for name in ("tree", "out", "tools"))
        programs = {"build/gpu-run/test_device": "", "build/gpu-run/check_device": "",
                    "build/gpu-run/check_kernels": 'echo "$HEADROOM_FILTER"; [ "$HEADROOM_FILTER" '
                                                   '!= attention_int8_sm90 ]',
                    "build/gpu-run/headroom": "exit 3"}
        stubs = {"nvidia-smi": "echo pretended", "ncu": f"cat <<'CSV'\n{NCU}CSV",
                 "compute-sanitizer": '[ $2 = racecheck ] || echo "========= ERROR SUMMARY: 0 '
                                      'errors ($2)"'}
        for folder, files in [(tree, programs), (tools, stubs)]:
            for name, text in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"#!/bin/sh\n{text}\n")
                path.chmod(0o755)
        (tree / "bench").mkdir()
        for name in ("gpu.sh", "gpu_ncu.py"):
            shutil.copy(BENCH / name, tree / "bench")
        (tree / "bench" / "gpu_peers.py").write_text(
            "import subprocess, sys\n"
            f"real = [sys.executable, {str(BENCH / 'gpu_peers.py')!r}]\n"
            "if '--table' in sys.argv:\n"
            "    sys.exit(subprocess.run(real + sys.argv[1:]).returncode)\n"
            "out = sys.argv[sys.argv.index('--out') + 1]\n"
            "subprocess.run(real + ['--dry-run', '--out', out], check=True)\n"
            "sys.exit('stopped')\n")
        ran = subprocess.run(["bash", tree / "bench" / "gpu.sh", "--stages",
                              "check,bench,ncu,sanitize", "--out", out], capture_output=True,
                             text=True, env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"})
        self.assertEqual(ran.returncode, 1, ran.stdout)
        for line in ("attention_bf16_sm90", "FAILED", "ERROR SUMMARY: 0 errors (synccheck)"):
            self.assertIn(line, ran.stdout)
        for stage, outcome in [("check", "FAILED"), ("bench", "FAILED"), ("ncu", "ok"),
                               ("sanitize", "ok")]:
            self.assertRegex(ran.stdout, rf"{outcome} +\d+ s  {stage}")
        self.assertIn("TFLOP/s, head_dim 256", ran.stdout.split("=== summary")[1])
        self.assertEqual(len(json.loads((out / "ncu.json").read_text())["launches"]), 6)
        self.assertEqual(sorted(path.name for path in out.iterdir()),
                         ["gpu.json", "logs.tar.gz", "ncu.json", "table.txt"])

    def test_dry_run(self):
        out = self.folder / "gpu.json"
        ran = run(sys.executable, BENCH / "gpu_peers.py", "--dry-run", "--out", out)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        document = json.loads(out.read_text())
        self.assertEqual(len({row["contestant"] for row in document["rows"]}), 6)
        self.assertEqual(document["failures"][0]["contestant"], "cudnn fp8")
        self.assertIn("TFLOP/s, head_dim 256", ran.stdout)
        self.assertIn("not run: cudnn fp8 in 1 case: ImportError", ran.stdout)
        row = document["rows"][0]
        flops = 4 * row["batch"] * row["heads"] * row["seqlen"] ** 2 * row["head_dim"]
        self.assertAlmostEqual(row["tflops"], flops / row["median_ms"] * 1e-9)

    def test_library_is_required(self):
        ran = run(sys.executable, BENCH / "gpu_peers.py", "--out", self.folder / "x")
        self.assertEqual(ran.returncode, 2)
        self.assertIn("--library is required", ran.stderr)

    def test_ncu(self):
        page, out = self.folder / "ncu.csv", self.folder / "ncu.json"
        page.write_text(NCU)
        ran = run(sys.executable, BENCH / "gpu_ncu.py", page, out)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        document = json.loads(out.read_text())
        self.assertEqual(document["units"]["gpu__time_duration.sum"], "ns")
        metrics = document["launches"][0]["metrics"]
        self.assertEqual(metrics, {"gpu__time_duration.sum": 1234.0,
                                   "launch__registers_per_thread": 168.0})
        self.assertEqual(len(document["launches"]), 2)
        page.write_text("nothing was profiled\n")
        self.assertNotEqual(run(sys.executable, BENCH / "gpu_ncu.py", page, out).returncode, 0)


if __name__ == "__main__":
    unittest.main()
