#!/usr/bin/env python3
"""What the README shows works: the C example compiles, runs and prints what it should, and every
`$ headroom ...` command ends well."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).parents[1]
CLI = os.environ.get("HEADROOM_CLI", "")
BUILD = pathlib.Path(CLI).parent
README = (ROOT / "README.md").read_text()


# The commands as they stand, on problems that take no time.
SMALLER = {
    "synth": ["--tokens", "128"],
    "audit": ["--repeats", "1"],
    "bench": ["--seqlen-q", "64", "--repeats", "1"],
}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def anchors(text):
    """The names by which a page's headings are linked to."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


class Readme(unittest.TestCase):
    def test_the_c_example(self):
        (code,) = blocks("c")
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
            printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
        self.assertEqual(printed, "int8: relative L2 error below 2%: yes\n")

    def test_every_command_works(self):
        commands = [
            line[2:]
            for block in blocks("console")
            for line in block.splitlines()
            if line.startswith("$ headroom ")
        ]
        verbs = {shlex.split(command)[1] for command in commands}
        self.assertEqual(
            verbs, set("synth calibrate pack run audit inspect kernels bench".split())
        )
        with tempfile.TemporaryDirectory() as folder:
            os.symlink(ROOT / "data", pathlib.Path(folder) / "data")
            for command in commands:
                words = [CLI, *shlex.split(command)[1:]]
                words += SMALLER.get(words[1], [])
                with self.subTest(command):
                    result = subprocess.run(words, cwd=folder, capture_output=True, text=True)
                    # A machine without AVX-512 has no kernel that the filter names.
                    if words[1] == "bench" and "no case matches" in result.stderr:
                        continue
                    self.assertEqual(result.returncode, 0, result.stderr)

    def test_links_in_all_pages_lead_somewhere(self):
        pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
        for page in sorted(pages):
            for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
                if re.match(r"https?://", link):
                    continue
                with self.subTest(page=page.name, link=link):
                    file, _, heading = link.partition("#")
                    target = page.parent / file if file else page
                    self.assertTrue(target.exists())
                    if heading:
                        self.assertIn(heading, anchors(target.read_text()))


if __name__ == "__main__":
    if not os.access(CLI, os.X_OK):
        print("SKIP: HEADROOM_CLI names no program")
        sys.exit(77)
    unittest.main()
