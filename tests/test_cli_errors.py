#!/usr/bin/env python3
"""What the headroom command makes of bad and odd inputs: its exit codes, one-line errors, and no
partial files."""

import json
import os
import struct
import subprocess

import safetensors_files as files
from cli_case import CLI, CliTest, limit_file_size, main


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

    def test_unknown_names_are_answered_with_what_there_is(self):
        self.fails(2, "synth", "nosuch", "-o", self.dir / "x", says=("nosuch", "gaussian"))
        self.fails(2, "synth", "zeros", "--head-dim", 12, "-o", self.dir / "x", says="multiple of 8")
        self.fails(
            1, "run", self.rec, "--recipe", "bf16", "--kernel", "nosuch", "-o", self.dir / "x",
            says=("nosuch", "run recipe bf16 here: attention_bf16_"),
        )
        self.fails(1, "bench", "--filter", "nosuch", says="nosuch")
        self.fails(1, "kernels", "--filter", "nosuch", says="nosuch")
        for verb in ("bench", "kernels"):
            self.fails(2, verb, "--layers", 0, says="--layers")

    def test_bad_isa_variable(self):
        for command in (
            ("run", self.rec, "--recipe", "bf16", "-o", self.dir / "x"), ("kernels",), ("bench",)
        ):
            with self.subTest(command[0]):
                self.fails(1, *command, says="avx9", env={**os.environ, "HEADROOM_ISA": "avx9"})


if __name__ == "__main__":
    main()
