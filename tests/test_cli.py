#!/usr/bin/env python3
"""The headroom command as scripts see it: outputs, exit codes, one-line errors, no partial files."""

import json
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


class Stages(CliTest):
    def test_the_whole_path(self):
        profile = self.calibrate()
        packed = self.dir / "packed.safetensors"
        out = self.dir / "out.safetensors"
        self.ok("pack", self.rec, "--profile", profile, "-o", packed)
        text = self.ok("run", self.rec, "--profile", profile, "--check", "-o", out).stdout
        self.assertIn("rel L2", text)
        self.ok("run", packed, "--check", "-o", self.dir / "out2.safetensors")
        self.ok("audit", self.rec, "--repeats", 1, "-o", self.dir / "report")
        report = json.loads((self.dir / "report/report.json").read_text())
        self.assertEqual(report["configs"][0]["id"], "bf16")
        self.assertTrue((self.dir / "report/report.html").stat().st_size > 10000)

    def test_packed_and_recording_give_the_same_output(self):
        for recipe in ("bf16", "int8", "int4", "int8-fp8"):
            with self.subTest(recipe):
                packed = self.dir / "p.safetensors"
                a, b = self.dir / "a.safetensors", self.dir / "b.safetensors"
                self.ok("pack", self.rec, "--recipe", recipe, "-o", packed)
                self.ok("run", self.rec, "--recipe", recipe, "-o", a)
                self.ok("run", packed, "-o", b)
                self.assertEqual(a.read_bytes(), b.read_bytes())

    def test_output_file_has_o_and_lse_of_every_layer(self):
        out = self.dir / "out.safetensors"
        self.ok("run", self.rec, "--recipe", "bf16", "-o", out)
        raw = out.read_bytes()
        header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
        for layer in range(2):
            o = header[f"model.layers.{layer}.self_attn.o"]
            lse = header[f"model.layers.{layer}.self_attn.lse"]
            self.assertEqual((o["dtype"], o["shape"]), ("F32", [24, 4, 16]))
            self.assertEqual((lse["dtype"], lse["shape"]), ("F32", [24, 4]))

    def test_masks(self):
        out = self.dir / "out.safetensors"
        blocks = self.dir / "blocks.json"
        blocks.write_text('{"block_q": 12, "block_kv": 8, "heads": 1, "columns": [[0], []]}')
        outputs = set()
        for mask in (
            (),
            ("--window", "3,0"),
            ("--window", "3,0", "--keep", 2),
            ("--block-sparse", "longformer:block=4,window=1,global=0"),
            ("--block-sparse", "bigbird:block=2,window=0,global=0,random=1,seed=9"),
            ("--block-sparse", blocks),
        ):
            with self.subTest(mask):
                text = self.ok("run", self.rec, "--recipe", "bf16", "--check", *mask, "-o", out)
                self.assertLess(float(text.stdout.splitlines()[3].split()[1]), 0.01)
                outputs.add(out.read_bytes())
        self.assertEqual(len(outputs), 6, "two masks gave the same output")
        self.ok("audit", self.rec, "--repeats", 1, "--recipe", "int8", "--window", "3,0",
                "--block-sparse", "longformer:block=4", "-o", self.dir / "masked")
        report = json.loads((self.dir / "masked/report.json").read_text())
        self.assertEqual(report["recording"]["mask"], {"window_left": 3, "window_right": 0,
                                                       "keep": 0, "block_q": 4, "block_kv": 4})
        run = ("run", self.rec, "--recipe", "bf16", "-o", out)
        for code, mask, message in (
            (2, ("--window", "3"), 'is "3"; it takes two numbers'),
            (2, ("--window", "-2,0"), "numbers of -1 or more"),
            (2, ("--keep", "-1"), "--keep is"),
            (2, ("--block-sparse", "longformer:random=1"), "is not one of block=N"),
            (1, ("--block-sparse", "bigbird:block=0"), "must be at least 1"),
            (1, ("--block-sparse", self.dir / "none.json"), "neither a pattern"),
            (2, ("--block-sparse", "bigbird:block=4", "--window", "2,0x"), "two numbers"),
        ):
            with self.subTest(message):
                self.fails(code, *run, *mask, says=message)
        blocks.write_text('{"block_q": 12, "block_kv": 8, "heads": 1, "columns": [[9], []]}')
        self.fails(1, *run, "--block-sparse", blocks, says="has 2 blocks of keys")
        blocks.write_text('{"block_q": 12, "block_kv": 8, "heads": 1, "columns": [[0], [1.5]]}')
        self.fails(1, *run, "--block-sparse", blocks, says="columns[1][0] is not")
        blocks.write_text('{"block_q": 12}')
        self.fails(1, *run, "--block-sparse", blocks, says="it must have the numbers")

    def test_every_instruction_set_level(self):
        """HEADROOM_ISA takes instruction sets away from the last one on, and runs go on."""
        x86 = ("portable", "avx2", "avx512", "avx512vnni", "avx512fp16")
        rows = json.loads(self.ok("kernels", "--json").stdout)["kernels"]
        here = {row["isa"] for row in rows if row["runnable"]} - {"sm90"}
        best = {}
        levels = sorted(here, key=lambda isa: x86.index(isa) if isa in x86 else len(x86))
        for count in range(1, len(levels) + 1):
            env = {**os.environ, "HEADROOM_ISA": ",".join(levels[:count])}
            listed = json.loads(self.ok("kernels", "--json", env=env).stdout)["kernels"]
            isa_of = {row["kernel"]: row["isa"] for row in listed if row["runnable"]}
            self.assertEqual(set(isa_of.values()), set(levels[:count]))
            for recipe in ("bf16", "int8", "int4", "int8-fp8"):
                with self.subTest(level=levels[count - 1], recipe=recipe):
                    out = self.dir / f"{recipe}-{count}.safetensors"
                    text = self.ok(
                        "run", self.rec, "--recipe", recipe, "--check", "--json", "-o", out, env=env
                    ).stdout
                    for layer in json.loads(text)["layers"]:
                        self.assertIn(layer["kernel"], isa_of)
                        self.assertLess(layer["error"]["rel_l2"], 0.3)
                        best[recipe, count] = isa_of[layer["kernel"]]
                    if recipe.startswith("int") and recipe != "int8-fp8":
                        first = self.dir / f"{recipe}-1.safetensors"
                        self.assertEqual(payload(out), payload(first))
        for recipe in ("bf16", "int8-fp8"):
            if "avx2" in here:
                self.assertEqual([best[recipe, n] for n in (1, 2)], ["portable", "avx2"])
        if "avx512vnni" in here:
            self.assertEqual(best["int8", levels.index("avx512vnni") + 1], "avx512vnni")

    def test_layers_selects(self):
        out = self.dir / "out.safetensors"
        document = json.loads(
            self.ok("run", self.rec, "--recipe", "bf16", "--layers", "1", "--json", "-o", out).stdout
        )
        self.assertEqual([row["layer"] for row in document["layers"]], [1])

    def test_every_verb_prints_one_json_document(self):
        profile = self.dir / "profile.safetensors"
        commands = [
            ("synth", "gaussian", "--heads", 2, "--tokens", 32, "-o", self.dir / "s.safetensors"),
            ("calibrate", self.rec, "-o", profile),
            ("pack", self.rec, "--profile", profile, "-o", self.dir / "p.safetensors"),
            ("run", self.rec, "--profile", profile, "--check", "-o", self.dir / "o.safetensors"),
            ("audit", self.rec, "--recipe", "bf16", "--repeats", 1, "-o", self.dir / "r"),
            ("inspect", self.rec),
            ("kernels",),
            ("bench", "--filter", "*bf16_portable/d64*", "--seqlen-q", 32, "--repeats", 1),
        ]
        for command in commands:
            with self.subTest(command[0]):
                document = json.loads(self.ok(*command, "--json", "--threads", 2).stdout)
                if command[0] == "kernels":
                    self.assertGreater(len(document["kernels"]), 8)
                    self.assertIn("attention_bf16_portable", str(document))

    def test_bench_rows_have_the_fields_scripts_read(self):
        rows = json.loads(
            self.ok(
                "bench", "--json", "--filter", "*bf16_portable/d64*", "--seqlen-q", 32,
                "--repeats", 2, "--kv-heads", 2,
            ).stdout
        )["rows"]
        self.assertEqual({row["density"] for row in rows}, {1})
        masked = json.loads(
            self.ok(
                "bench", "--json", "--filter", "*bf16_portable/d64*", "--seqlen-q", 128,
                "--repeats", 1, "--mask", "full", "--block-sparse",
                "longformer:block=32,window=0,global=0", "--epilogue", "rms",
            ).stdout
        )["rows"]
        self.assertGreater(masked[0]["x_after"], 0)
        self.assertEqual([row["density"] for row in masked], [0.25])
        self.assertEqual([row["causal"] for row in rows], [False, True])
        wanted = (
            "kernel isa recipe head_dim seqlen_q seqlen_kv num_heads num_kv_heads causal threads "
            "median_ms min_ms max_ms gops roof_gops roof_ratio kv_gbps roof_gbps kv_ratio"
        )
        for row in rows:
            self.assertLessEqual(set(wanted.split()), set(row))

    def test_every_verb_has_help_with_an_example(self):
        for verb in "calibrate pack run audit inspect kernels bench synth".split():
            with self.subTest(verb):
                self.assertIn("Example: headroom", self.ok(verb, "--help").stdout)

    def test_progress_is_not_drawn_into_a_pipe(self):
        profile = self.dir / "profile.safetensors"
        self.assertEqual(self.ok("calibrate", self.rec, "-o", profile).stderr.count("\r"), 0)

    def test_few_tokens_make_a_warning(self):
        result = self.ok("calibrate", self.rec, "-o", self.dir / "p.safetensors")
        self.assertIn("warning", result.stderr)
        self.assertIn("24", result.stderr)


class BadFiles(CliTest):
    def broken(self, raw):
        path = self.dir / "broken.safetensors"
        path.write_bytes(raw)
        for command in (
            ("calibrate", path, "-o", self.dir / "out"),
            ("run", path, "--recipe", "bf16", "-o", self.dir / "out"),
            ("inspect", path),
        ):
            yield command

    def assert_refused(self, raw, *says):
        for command in self.broken(raw):
            with self.subTest(command[0]):
                self.fails(1, *command, says=("broken.safetensors", *says))

    def good(self):
        return files.header_of(files.recording_tensors(), files.recording_metadata())

    def test_truncated(self):
        raw = self.rec.read_bytes()
        self.assert_refused(raw[:-1])
        self.assert_refused(raw[:100])
        self.assert_refused(raw[:4])
        self.assert_refused(b"")

    def test_header_larger_than_the_file(self):
        header, data = self.good()
        self.assert_refused(files.encode(header, data, declared=10**7))
        self.assert_refused(files.encode(header, data, declared=2**63))

    def test_overlapping_offsets(self):
        header, data = self.good()
        entry = header["model.layers.0.self_attn.k"]["data_offsets"]
        entry[0] -= 64
        entry[1] -= 64
        self.assert_refused(files.encode(header, data), "self_attn.")

    def test_offsets_out_of_range(self):
        header, data = self.good()
        header["cu_seqlens"]["data_offsets"] = [len(data), len(data) + 12]
        self.assert_refused(files.encode(header, data), "cu_seqlens")

    def test_duplicate_keys(self):
        header, data = self.good()
        text = json.dumps(header)[:-1] + ', "cu_seqlens": ' + json.dumps(header["cu_seqlens"]) + "}"
        self.assert_refused(files.encode(text.encode(), data), "duplicate")

    def test_wrong_dtype(self):
        header, data = self.good()
        header["model.layers.0.self_attn.q"]["dtype"] = "F33"
        self.assert_refused(files.encode(header, data), "F33")

    def test_a_missing_file(self):
        self.fails(1, "calibrate", self.dir / "nothing", "-o", self.dir / "out", says="nothing")


class BadRecordings(CliTest):
    def refused(self, tensors, *says, metadata=None):
        path = files.recording(self.dir / "bad.safetensors", tensors, metadata)
        for command in (
            ("calibrate", path, "-o", self.dir / "out"),
            ("run", path, "--recipe", "int8", "-o", self.dir / "out"),
            ("audit", path, "-o", self.dir / "report"),
        ):
            with self.subTest(command[0]):
                self.fails(1, *command, says=("bad.safetensors", *says), left=("report",))

    def test_integers_for_q(self):
        tensors = files.recording_tensors()
        name = "model.layers.0.self_attn.q"
        tensors[name] = ("I32", tensors[name][1], tensors[name][2])
        self.refused(tensors, name, "i32")

    def test_heads_not_divisible(self):
        self.refused(files.recording_tensors(heads=3, kv_heads=2), "3", "2")

    def test_head_dims_differ(self):
        tensors = files.recording_tensors()
        other = files.recording_tensors(head_dim=24)
        name = "model.layers.1.self_attn.k"
        tensors[name] = other[name]
        self.refused(tensors, "layer 1", "24", "16")

    def test_nan_in_activations(self):
        tensors = files.recording_tensors()
        name = "model.layers.1.self_attn.k"
        dtype, shape, data = tensors[name]
        at = 4 * ((5 * 2 + 1) * 16 + 3)  # token 5, head 1, channel 3
        data = data[:at] + struct.pack("<f", float("nan")) + data[at + 4 :]
        tensors[name] = (dtype, shape, data)
        self.refused(tensors, "layer 1", "token 5", "head 1", "channel 3")

    def test_zero_length_sequence(self):
        self.refused(files.recording_tensors(cu_seqlens=[0, 12, 12, 24]), "sequence 1")

    def test_missing_tensor_of_a_layer(self):
        tensors = files.recording_tensors()
        del tensors["model.layers.1.self_attn.v"]
        self.refused(tensors, "model.layers.1.self_attn.v")

    def test_a_profile_is_not_a_recording(self):
        profile = self.calibrate()
        self.fails(1, "calibrate", profile, "-o", self.dir / "out", says=("profile", "recording"))


class BadPairs(CliTest):
    def test_profile_of_another_model(self):
        tensors = files.recording_tensors(heads=2, kv_heads=2)
        other = files.recording(self.dir / "other.safetensors", tensors)
        profile = self.calibrate("other-profile.safetensors", other)
        self.fails(
            1, "run", self.rec, "--profile", profile, "-o", self.dir / "out",
            says="other-profile.safetensors",
        )

    def test_missing_layer_in_the_profile(self):
        profile = self.calibrate("p.safetensors", None, "--layers", "0")
        self.fails(
            1, "run", self.rec, "--profile", profile, "-o", self.dir / "out", says="layer 1"
        )

    def test_audit_finds_the_missing_layer_before_it_works(self):
        profile = self.calibrate("p.safetensors", None, "--layers", "0")
        self.fails(
            1, "audit", self.rec, "--profile", profile, "-o", self.dir / "r", says="no layer 1",
            left=("r",),
        )
        self.ok(
            "audit", self.rec, "--profile", profile, "--layers", "0", "--recipe", "fp8",
            "--repeats", 1, "-o", self.dir / "r",
        )

    def test_missing_layer_in_the_recording(self):
        self.fails(
            1, "calibrate", self.rec, "--layers", "5-6", "-o", self.dir / "out", says=("5-6", "0 to 1")
        )

    def test_static_recipe_without_a_profile(self):
        self.fails(
            1, "run", self.rec, "--recipe", "fp8", "-o", self.dir / "out",
            says=("--profile", "headroom calibrate"),
        )

    def test_kernel_that_does_not_fit(self):
        self.fails(
            1, "run", self.rec, "--recipe", "int8", "--kernel", "attention_bf16_portable",
            "-o", self.dir / "out", says="attention_bf16_portable",
        )


class OddNames(CliTest):
    def test_paths_that_are_not_utf8(self):
        folder = os.fsencode(self.dir)
        rec, out = folder + b"/r\xff.safetensors", folder + b"/o\xfe.safetensors"
        os.rename(self.rec, rec)
        for command, key, name in (
            (("calibrate", "-o", out), "profile", "o\\xfe.safetensors"),
            (("pack", "--recipe", "int8", "-o", out), "packed", "o\\xfe.safetensors"),
            (("run", "--recipe", "int8", "-o", out), "output", "o\\xfe.safetensors"),
            (("inspect",), "file", "r\\xff.safetensors"),
            (("audit", "--recipe", "bf16", "--repeats", "1", "-o", folder + b"/\xfd"),
             "recording", "r\\xff.safetensors"),
        ):
            with self.subTest(command[0]):
                result = subprocess.run([CLI, *command, rec, "--json"], capture_output=True)
                self.assertEqual(result.returncode, 0, result.stderr)
                value = json.loads(result.stdout)[key]
                self.assertTrue((value["path"] if key == "recording" else value).endswith(name))

    def test_control_characters_stay_out_of_the_terminal(self):
        self.fails(1, "inspect", self.dir / "a\nb\x1b[31m", says="a\\x0ab\\x1b[31m")
        metadata = {**files.recording_metadata(), "headroom.model": "m\x1b[31m\nn", "x\ty": "z"}
        path = files.recording(self.dir / "odd.safetensors", files.recording_tensors(), metadata)
        text = self.ok("inspect", path).stdout
        self.assertIn("m\\x1b[31m\\x0an", text)
        self.assertIn("x\\x09y", text)
        document = json.loads(self.ok("inspect", path, "--json").stdout)
        self.assertEqual(document["metadata"], metadata)

    def test_long_model_name(self):
        metadata = {**files.recording_metadata(), "headroom.model": "x" + "\u00e9" * 400}
        path = files.recording(self.dir / "long.safetensors", files.recording_tensors(), metadata)
        out = self.dir / "out.safetensors"
        document = json.loads(self.ok("run", path, "--recipe", "bf16", "-o", out, "--json").stdout)
        self.assertEqual(document["model"], metadata["headroom.model"])


class BadOutputs(CliTest):
    def writers(self, out):
        yield "calibrate", self.rec, "-o", out
        yield "pack", self.rec, "--recipe", "int8", "-o", out
        yield "run", self.rec, "--recipe", "bf16", "-o", out
        yield "synth", "gaussian", "--tokens", 64, "-o", out

    def test_full_disk(self):
        out = self.dir / "out.safetensors"
        for command in self.writers(out):
            with self.subTest(command[0]):
                self.fails(1, *command, says="out.safetensors", preexec_fn=limit_file_size)

    def test_full_disk_keeps_the_old_file(self):
        out = self.dir / "out.safetensors"
        out.write_bytes(b"old")
        self.fails(1, "pack", self.rec, "--recipe", "int8", "-o", out, preexec_fn=limit_file_size)
        self.assertEqual(out.read_bytes(), b"old")

    def test_full_disk_for_the_report(self):
        self.fails(
            1, "audit", self.rec, "--recipe", "bf16", "--repeats", 1, "-o", self.dir / "r",
            says="report.json", left=("r",), preexec_fn=limit_file_size,
        )
        self.assertEqual(list((self.dir / "r").iterdir()), [])

    def test_unwritable_path(self):
        # Under a regular file nothing can be made, not even by root.
        for command in self.writers(self.rec / "out.safetensors"):
            with self.subTest(command[0]):
                self.fails(1, *command, says=str(self.rec / "out.safetensors"))
        self.fails(
            1, "audit", self.rec, "--recipe", "bf16", "-o", self.rec / "r", says=str(self.rec / "r")
        )

    def test_read_only_folder(self):
        # /proc takes no files from anybody, root included.
        for command in self.writers("/proc/out.safetensors"):
            with self.subTest(command[0]):
                self.fails(1, *command, says="/proc/out.safetensors")

    def test_output_is_the_input(self):
        original = self.rec.read_bytes()
        link = self.dir / "link.safetensors"
        link.symlink_to(self.rec)
        for out in (self.rec, link):
            for command in list(self.writers(out))[:3]:
                with self.subTest((command[0], out.name)):
                    self.fails(2, *command, says=str(out))
        self.assertEqual(self.rec.read_bytes(), original)

    def test_output_is_a_folder(self):
        for command in self.writers(self.dir):
            with self.subTest(command[0]):
                self.fails(1, *command, says=str(self.dir))

    def test_closed_stdout(self):
        for command in (("kernels",), ("kernels", "--json"), ("inspect", self.rec)):
            with self.subTest(command):
                result = subprocess.run(
                    ["sh", "-c", '"$@" >&-', "sh", CLI, *map(str, command)],
                    capture_output=True, text=True,
                )
                self.assertEqual(result.returncode, 1)
                self.assertIn("standard output", result.stderr)
                self.assertEqual(len(result.stderr.splitlines()), 1)

    def test_closed_stdout_does_not_spoil_the_file(self):
        out = self.dir / "out.safetensors"
        result = subprocess.run(
            ["sh", "-c", '"$@" >&-', "sh", CLI, "pack", self.rec, "--recipe", "int8", "-o", out],
            capture_output=True, text=True,
        )
        self.assertEqual(result.returncode, 1)
        self.ok("inspect", out)

    def test_full_stdout(self):
        with open("/dev/full", "w") as full:
            result = subprocess.run([CLI, "kernels"], stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn("standard output", result.stderr)


class Usage(CliTest):
    def test_usage_errors_exit_with_2(self):
        out = self.dir / "out"
        for command, says in (
            (("fly",), "fly"),
            (("calibrate", "-o", out), "REC"),
            (("calibrate", self.rec), "-o"),
            (("calibrate", self.rec, "-o", out, "--observer", "median"), "absmax"),
            (("calibrate", self.rec, "-o", out, "--observer", "percentile:20"), "percentile"),
            (("calibrate", self.rec, "-o", out, "--recipe", "fp7"), "fp8"),
            (("calibrate", self.rec, "-o", out, "--granularity", "row"), "head"),
            (("calibrate", self.rec, "-o", out, "--threads", "many"), "--threads"),
            (("calibrate", self.rec, "-o", out, "--layers", "5-2"), "--layers"),
            (("calibrate", self.rec, "-o", out, "--layers", "0-"), "--layers"),
            (("calibrate", self.rec, "-o", out, "--layers", "0-4294967296"), "--layers"),
            (("audit", self.rec, "-o", out, "--observer", "absmax,median"), "median"),
            (("run", self.rec, "-o", out), "--profile"),
            (("synth", "-o", out), "MODE"),
            (("audit", self.rec, "-o", out, "--budget", "-1"), "--budget"),
            (("calibrate", self.rec, "-o", out, "--colour"), "--colour"),
            (("calibrate", self.rec, "-o"), "o"),
            (("kernels", "extra"), "extra"),
            (("bench", "--mask", "half"), "half"),
        ):
            with self.subTest(command):
                self.fails(2, *command, says=says)

    def test_unknown_names_are_failures_that_list_what_there_is(self):
        self.fails(1, "synth", "nosuch", "-o", self.dir / "x", says=("nosuch", "gaussian"))
        self.fails(
            1, "run", self.rec, "--recipe", "bf16", "--kernel", "nosuch", "-o", self.dir / "x",
            says="nosuch",
        )
        self.fails(1, "bench", "--filter", "nosuch", says="nosuch")

    def test_bad_isa_variable(self):
        for command in (
            ("run", self.rec, "--recipe", "bf16", "-o", self.dir / "x"), ("kernels",), ("bench",)
        ):
            with self.subTest(command[0]):
                self.fails(1, *command, says="avx9", env={**os.environ, "HEADROOM_ISA": "avx9"})


if __name__ == "__main__":
    if not os.access(CLI, os.X_OK):
        print(f"SKIP: there is no headroom command at {CLI}")
        sys.exit(77)
    unittest.main()
