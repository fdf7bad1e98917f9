#!/usr/bin/env python3
"""The examples in docs/ work: those in C compile, run and print the text block that follows them,
and what those in Python write is what it says it is."""

import glob
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).parents[1]
BUILD = pathlib.Path(os.environ.get("HEADROOM_CLI", "")).parent
CLI = os.environ.get("HEADROOM_CLI", "")
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# [text](file#part), and `folder/file.c` of a folder that git has.
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")
NAMED = re.compile(r"`((?:bench|calibration|cmake|data|docs|include|kernels|quant|tests|tools)/"
                   r"[\w./*{},-]*\.\w+)")
EXAMPLE = re.compile(r"^```c\n(.*?)^```$.*?^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(code):
    with tempfile.TemporaryDirectory() as folder:
        source, program = pathlib.Path(folder) / "example.c", pathlib.Path(folder) / "example"
        source.write_text(code)
        subprocess.run(
            [
                *shlex.split(os.environ.get("CC", "cc")),
                *shlex.split(os.environ.get("HEADROOM_TEST_FLAGS", "")),
                "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/include", source,
                "-o", program, f"-L{BUILD}", "-lheadroom", f"-Wl,-rpath,{BUILD}",
            ],
            check=True,
        )
        return subprocess.run([program], check=True, capture_output=True, text=True).stdout


class Docs(unittest.TestCase):
    def test_c_examples(self):
        count = 0
        for page in sorted((ROOT / "docs").glob("*.md")):
            for code, printed in EXAMPLE.findall(page.read_text()):
                with self.subTest(page.name):
                    self.assertEqual(run(code), printed)
                count += 1
        self.assertGreater(count, 0)

    def test_files_that_pages_name_are_there(self):
        count = 0
        for page in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]:
            text = page.read_text()
            links = [(page.parent / link, link) for link in LINK.findall(text)]
            for path, name in links + [(ROOT / name, name) for name in NAMED.findall(text)]:
                # `attention_{bf16,fp8}_sm90.cu` and `check_hopper_*.cpp` are several files.
                pattern = re.sub(r"\{[^}]*\}", "*", str(path))
                with self.subTest(page.name, name=name):
                    self.assertTrue(glob.glob(pattern), "no such file")
                count += 1
        self.assertGreater(count, 50)

    def test_python_examples(self):
        if not importlib.util.find_spec("safetensors"):
            self.skipTest("no safetensors for Python")
        (code,) = PYTHON.findall((ROOT / "docs/files.md").read_text())
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
            recording = pathlib.Path(folder, "recording.safetensors")
            inspect = [CLI, "inspect", recording]
            listed = subprocess.run(inspect, check=True, capture_output=True, text=True).stdout
            self.assertIn(": recording, 7 tensors", listed)
            output = pathlib.Path(folder, "output.safetensors")
            check = [CLI, "run", recording, "--recipe", "int8", "--check=0.05", "-o", output]
            subprocess.run(check, check=True, capture_output=True)


if __name__ == "__main__":
    if not (BUILD / "libheadroom.so").exists():
        print("SKIP: HEADROOM_CLI does not name a built headroom beside its library")
        sys.exit(77)
    unittest.main()
