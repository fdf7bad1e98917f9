"""What the tests of the headroom command share: a folder with a recording, and running a command
that must succeed, or fail with one line and leave nothing behind."""

import os
import pathlib
import resource
import struct
import subprocess
import sys
import tempfile
import unittest

import safetensors_files as files

CLI = os.environ.get("HEADROOM_CLI") or str(
    pathlib.Path(__file__).parents[1] / "build/release/headroom"
)


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))


def payload(path):
    """The tensors of a safetensors file as they lie in it: all but its header."""
    raw = path.read_bytes()
    return raw[8 + struct.unpack("<Q", raw[:8])[0] :]


class CliTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="headroom-cli-")
        self.addCleanup(self.folder.cleanup)
        self.dir = pathlib.Path(self.folder.name)
        self.rec = files.recording(self.dir / "rec.safetensors")

    def run_cli(self, *arguments, **options):
        return subprocess.run(
            [CLI, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options
        )

    def ok(self, *arguments, **options):
        result = self.run_cli(*arguments, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result

    def fails(self, code, *arguments, says=(), left=(), **options):
        """The command fails with `code` and one line that has every word of `says`; besides the
        inputs only files named in `left` remain."""
        before = {p.name for p in self.dir.iterdir()}
        result = self.run_cli(*arguments, **options)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        lines = result.stderr.strip().splitlines()
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertTrue(lines[0].startswith("headroom"), lines[0])
        for word in (says,) if isinstance(says, str) else says:
            self.assertIn(word, lines[0])
        after = {p.name for p in self.dir.iterdir()}
        self.assertEqual(after - before - set(left), set(), "files left behind")
        return result

    def calibrate(self, name="profile.safetensors", rec=None, *more):
        profile = self.dir / name
        self.ok("calibrate", rec or self.rec, "-o", profile, *more)
        return profile


def main():
    if not os.access(CLI, os.X_OK):
        print(f"SKIP: there is no headroom command at {CLI}")
        sys.exit(77)
    unittest.main()
