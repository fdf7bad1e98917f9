#!/usr/bin/env python3
"""bench/gpu.sh and its Python as far as they go without a GPU: usage, the dry run's table and JSON,
ncu's CSV."""

import json
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
