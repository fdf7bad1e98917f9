#!/usr/bin/env python3
"""The headroom command as scripts see it: what its verbs write and print."""

import json
import os
import struct

import safetensors_files as files
from cli_case import CliTest, main, payload


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

    def test_check_fails_above_its_limit(self):
        out = self.dir / "out.safetensors"
        run = ("run", self.rec, "--recipe", "int8", "-o", out)
        error = json.loads(self.ok(*run, "--check", "--json").stdout)["layers"][0]["error"]["rel_l2"]
        self.ok(*run, "--check=0.1")
        self.fails(1, *run, f"--check={error / 2}", says="layer 0: relative L2", left=(out.name,))
        self.fails(1, *run, f"-c{error / 2}", "--json", says="is above", left=(out.name,))
        self.fails(2, *run, "--check=none", says="--check is", left=(out.name,))

    def test_audit_says_which_recipe_suits_all_heads(self):
        audit = ("audit", self.rec, "--recipe", "int8; int4", "--repeats", 1, "-o", self.dir / "r")
        report = json.loads(self.ok(*audit, "--json").stdout)
        worst = {c["id"]: c["worst_heads"][0]["rel_l2"] for c in report["configs"]}
        self.assertLess(worst["int8"], worst["int4"])
        for budget, config, says in (
            (2 * worst["int4"], "int4", "One recipe for all heads: int4, "),
            ((worst["int8"] * worst["int4"]) ** 0.5, "int8", "One recipe for all heads: int8, "),
            (worst["int8"] / 100, None,
             "No recipe here meets it on all heads; int4 (6.00 bits) breaks 8"),
        ):
            with self.subTest(budget=budget):
                self.assertIn(says, self.ok(*audit, "--budget", budget).stdout)
                report = json.loads((self.dir / "r/report.json").read_text())
                uniform = report["choice"]["uniform"]
                self.assertEqual(uniform["config"], config)
                self.assertEqual(uniform["rel_l2"], worst.get(config))
                self.assertEqual(uniform["narrower"] is None, config == "int4")

    def test_a_choice_is_what_the_audit_measured(self):
        folder = self.dir / "report"
        audit = ("audit", self.rec, "--observer", "absmax,mse", "--repeats", 1, "-o", folder)
        report = json.loads(self.ok(*audit, "--budget", 0.04, "--json").stdout)
        path, out = folder / "choice.json", self.dir / "out.safetensors"
        choice = json.loads(path.read_text())
        used = {config for layer in choice["layers"] for config in layer["configs"]}
        self.assertEqual({config["id"] for config in choice["configs"]}, used)
        self.assertGreater(len(used), 1)
        run = ("run", self.rec, "--choice", path, "-o", out)
        text = self.ok(*run, "--check=0.04").stdout
        for config in used:
            self.assertIn(f" {config} ", text)
        # KV heads of a config are those of a run with that recipe alone.
        result = json.loads(self.ok(*run, "--check", "--json").stdout)
        self.assertEqual(sum(config["kv_heads"] for config in result["configs"]), 4)
        self.assertEqual(result["choice"], str(path))
        shown = self.ok("inspect", path).stdout
        listed = json.loads(self.ok("inspect", path, "--json").stdout)["configs"]
        self.assertEqual(listed, [{k: config[k] for k in ("id", "recipe", "kv_heads")}
                                  for config in result["configs"]])
        self.assertIn("choice.json: choice, 2 layers", shown)
        worst = {(head["layer"], head["head"]): head["rel_l2"] for head in report["choice"]["heads"]}
        for layer, checked in zip(choice["layers"], result["layers"]):
            self.assertLessEqual(checked["error"]["rel_l2"], max(layer["rel_l2"]))
            for kv_head, error in enumerate(layer["rel_l2"]):
                group = [worst[layer["layer"], 2 * kv_head + i] for i in range(2)]
                self.assertGreaterEqual(error * (1 + 1e-5), max(group))
        # One layer, another config written by hand, and what does not go together.
        choice["layers"] = [{**choice["layers"][1], "configs": ["int8", "mine"]}]
        choice["layers"][0].pop("rel_l2")
        choice["configs"] = [{"id": "int8", "recipe": "int8"},
                             {"id": "mine", "recipe": "int4:kv.granularity=group8"}]
        path.write_text(json.dumps(choice))
        self.fails(1, *run, says="the choice has no layer 0", left=(out.name, "report"))
        self.ok(*run, "--layers", 1)
        for option in ("--recipe", "--profile", "--kernel"):
            self.fails(2, *run, option, "int8", says=f"{option} has no say", left=(out.name, "report"))
        self.fails(2, "run", self.rec, "--choice", path, "-o", path, says="is the input")
        path.write_text("{}")
        self.fails(1, *run, says=("choice.json", "schema is not"), left=(out.name, "report"))

    def test_a_recording_from_before_rope_is_warned_of(self):
        metadata = {**files.recording_metadata(), "headroom.rope": "before"}
        before = files.recording(self.dir / "before.safetensors", metadata=metadata)
        for rec, expected in ((self.rec, 0), (before, 1)):
            for verb in (
                ("calibrate", "-o", self.dir / "p.safetensors"),
                ("calibrate", "--recipe", "fp8:k.transform=mean", "-o", self.dir / "p.safetensors"),
                ("pack", "--recipe", "int8", "-o", self.dir / "q.safetensors"),
                ("run", "--recipe", "int8", "-o", self.dir / "o.safetensors"),
                ("audit", "--recipe", "int8", "--repeats", 1, "-o", self.dir / "r"),
                ("run", "--choice", self.dir / "r/choice.json", "-o", self.dir / "o.safetensors"),
            ):
                with self.subTest(rec=rec.name, verb=verb):
                    text = self.ok(verb[0], rec, *verb[1:]).stderr
                    says = "before.safetensors: Q and K are as they were before RoPE"
                    self.assertEqual(text.count(says), expected, text)

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

    def test_threads(self):
        """--threads comes before HEADROOM_NUM_THREADS, that before OMP_NUM_THREADS, and without any
        it is the processors of the affinity mask, or fewer where a quota says so."""

        def threads(*more, **env):
            kept = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
            run = self.ok("audit", self.rec, "--recipe", "bf16", "--repeats", 1, "--json", *more,
                          "-o", self.dir / "r", env={**kept, **env})
            return json.loads(run.stdout)["machine"]["threads"]

        self.assertEqual(threads(OMP_NUM_THREADS="3"), 3)
        self.assertEqual(threads(OMP_NUM_THREADS="3", HEADROOM_NUM_THREADS="5"), 5)
        self.assertEqual(threads("--threads", 2, HEADROOM_NUM_THREADS="5"), 2)
        mask = os.sched_getaffinity(0)
        self.assertLessEqual(threads(), len(mask))
        try:
            os.sched_setaffinity(0, {min(mask)})
            self.assertEqual(threads(), 1)
        finally:
            os.sched_setaffinity(0, mask)
        for wrong in ("0", "x", "2 ", "4097", "-1"):
            with self.subTest(wrong):
                env = {**os.environ, "HEADROOM_NUM_THREADS": wrong}
                self.fails(2, "kernels", env=env, says=f'HEADROOM_NUM_THREADS is "{wrong}"')

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

    def test_kernels_can_be_filtered(self):
        rows = json.loads(self.ok("kernels", "--json").stdout)["kernels"]
        some = json.loads(self.ok("kernels", "--json", "--filter", "*_portable").stdout)["kernels"]
        self.assertEqual(some, [row for row in rows if row["isa"] == "portable"])
        lines = self.ok("kernels", "--filter", "*_portable").stdout.splitlines()[1:]
        self.assertEqual([line.split()[0] for line in lines], [row["kernel"] for row in some])
        self.assertEqual({line.index(" portable ") for line in lines}, {lines[0].index(" portable ")})

    def test_bench_takes_any_shape_and_recipe(self):
        """Paged, batched, grouped, windowed and cold, with recipes that are no presets."""
        bench = ("bench", "--repeats", 1, "--threads", 1)
        rows = json.loads(self.ok(
            *bench, "--json", "--recipe", "int4:qk.transform=none; int8:p.dtype=i16; fp8",
            "--heads", 4, "--kv-heads", 2, "--head-dim", 40, "--seqlen-q", 3, "--seqlen-kv", "50,70",
            "--batch", 3, "--page-size", 16, "--mask", "causal", "--window", "20,0", "--cold", 1,
            "--filter", "*_portable/*",
        ).stdout)["rows"]
        recipes = [row["recipe"] for row in rows]
        self.assertEqual(
            {recipe: recipes.count(recipe) for recipe in recipes},
            {"int4:qk.transform=none": 2, "int8:p.dtype=i16": 2, "fp8": 2}, "two key lengths each")
        for row in rows:
            self.assertEqual(
                [row[field] for field in ("head_dim", "seqlen_q", "batch", "page_size", "num_heads",
                                          "num_kv_heads", "causal")], [40, 3, 3, 16, 4, 2, True])
            self.assertIn(f"/b3/page16/causal/masked/{row['recipe']}", row["case"])
            self.assertTrue(0 < row["check_rel_l2"] < 0.0625 and row["median_ms"] > 0)
            self.assertLess(row["density"], 1)
        text = self.ok(*bench, "--recipe", "int4:kv.granularity=group8", "--head-dim", 32,
                       "--seqlen-q", 20, "--filter", "*_portable/*").stdout.splitlines()
        self.assertEqual(len({line.rindex(" ") for line in text if "/full/" in line}), 1, text)
        # What the caches or kernels do not do is said once, and is the failure where nothing is left.
        small = (*bench, "--head-dim", 32, "--seqlen-q", 20, "--filter", "*_portable/*")
        skipped = self.ok(*small, "--page-size", 16).stderr.splitlines()
        self.assertEqual(len(skipped), 1, skipped)
        self.assertIn("are skipped: v has dynamic scales per channel", skipped[0])
        self.fails(1, *small, "--page-size", 16, "--recipe", "int8:k.granularity=block16",
                   says="are skipped: k has scales per block")
        for code, more, says in (
            (2, ("--recipe", "int5"), "no preset 'int5'"),
            (2, ("--recipe", "int4:residual=16"), "leave residual=16 out"),
            (1, ("--recipe", "int8", "--head-dim", 52), "multiple of 8 up to 256, not 52"),
            (2, ("--page-size", 24), "a multiple of 16 up to 256"),
            (2, ("--page-size", 16, "--epilogue", "rms"), "leave --page-size out"),
            (2, ("--batch", 1 << 20, "--seqlen-kv", 1 << 20), "is more than 2147483647 keys"),
            (2, ("--heads", 6, "--kv-heads", 4), "does not divide"),
        ):
            with self.subTest(more):
                self.fails(code, *bench, *more, says=says)

    def test_bench_times_a_choice(self):
        self.ok("audit", self.rec, "--repeats", 1, "--budget", 0.04, "-o", self.dir / "report")
        path = self.dir / "report/choice.json"
        bench = ("bench", "--choice", path, "--seqlen-q", "20,24", "--batch", 2, "--repeats", 1)
        rows = json.loads(self.ok(*bench, "--mask", "causal", "--json").stdout)["rows"]
        self.assertEqual([(row["seqlen_q"], row["batch"], row["causal"]) for row in rows],
                         [(20, 2, True), (24, 2, True)])
        choice = json.loads(path.read_text())
        for row in rows:
            self.assertEqual([layer["layer"] for layer in row["layers"]], [0, 1])
            for layer in row["layers"]:
                self.assertTrue(layer["median_ms"] > 0 and layer["x_bf16"] > 0)
            size, whole = (sum(layer[key] for layer in row["layers"])
                           for key in ("kv_bytes", "bf16_kv_bytes"))
            self.assertAlmostEqual(size / whole, choice["kv_bits"] / 16, delta=0.02)
        lines = self.ok(*bench, "--mask", "full").stdout.splitlines()
        self.assertEqual([line.split()[0] for line in lines[:5]],
                         [f"{path}:", "layer", "0", "1", "all"])
        self.fails(2, *bench, "--recipe", "int8", says="leave --recipe out", left=("report",))
        self.fails(1, *bench[:2], self.rec, says="is not a choice in JSON", left=("report",))

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


if __name__ == "__main__":
    main()
