#!/usr/bin/env python3
"""The C examples in docs/ compile, run and print the text block that follows them."""

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


if __name__ == "__main__":
    if not (BUILD / "libheadroom.so").exists():
        print("SKIP: HEADROOM_CLI does not name a built headroom beside its library")
        sys.exit(77)
    unittest.main()
