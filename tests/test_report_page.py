#!/usr/bin/env python3
"""The report page in headless Chromium: what it says, draws and does, light and dark.

    HEADROOM_RENDER_REPORT=build/dev/tests/render_report python3 tests/test_report_page.py

HEADROOM_SCREENSHOTS=FOLDER also leaves pictures of the page there. Exits 77 (skipped) without
Chromium or jsonschema, unless HEADROOM_EXPECT contains "browser".
"""

import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import browser
import report_example

try:
    import check_report
except ImportError:
    check_report = None

HERE = pathlib.Path(__file__).resolve().parent
EXAMPLE = HERE / "data" / "report_example.json"
HOSTILE = (
    "</script><img src=x onerror=\"document.title='owned'\"><!-- "
    "<script>alert(1)</script> \u2028 &lt;"
)
RENDER = os.environ.get("HEADROOM_RENDER_REPORT")
SCREENSHOTS = os.environ.get("HEADROOM_SCREENSHOTS")
# What is read as text, in all its colours.
TEXT_SELECTORS = (
    "h1 | h1 strong | .note | .legend .dim | .figures td | .figures th | .sub | .over | .badge | "
    ".link | .subject | svg .muted | .axis-title | .budget-label | .point-label"
).split(" | ")
PROBE = (HERE / "report_probe.js").read_text(encoding="utf-8")


def probe(page, name, *arguments):
    """Calls a function of report_probe.js in the page."""
    text = ", ".join(map(json.dumps, arguments))
    return page.evaluate(f"{PROBE.strip()}.{name}({text})")


def render(report, folder, name):
    """Writes the page of a report (or of any text) and returns its path."""
    text = report if isinstance(report, str) else json.dumps(report, ensure_ascii=False)
    source = pathlib.Path(folder, name + ".json")
    source.write_text(text, encoding="utf-8")
    page = source.with_suffix(".html")
    page.write_bytes(
        subprocess.run([RENDER, str(source)], check=True, stdout=subprocess.PIPE).stdout
    )
    return page


def uniform_words(report, budget):
    """What the page says about one recipe for all heads."""
    rows = []
    for config in report["configs"]:
        errors = check_report.head_errors(config)
        size = {key: math.inf if error is None else error for key, error in errors.items()}
        broken = [key for key in sorted(size) if not size[key] <= budget]
        broken.sort(key=lambda key: -size[key])
        rows.append((config["kv_bits"], max(size.values()), config["id"], broken))
    chosen = min((row for row in rows if not row[3]), default=None, key=lambda row: row[:2])
    narrower = [row for row in rows if not chosen or row[0] < chosen[0]]
    words = "No recipe here meets the budget on all heads. "
    if chosen:
        words = f"One recipe for all heads: {chosen[2]} ({chosen[0]:g} bits), worst head "
        words += f"{chosen[1]:#.3g}. " if chosen[1] >= 1e-3 else f"{chosen[1]:.1e}. "
    if narrower:
        bits, _, ident, broken = min(narrower, key=lambda row: (len(row[3]), row[0]))
        heads = ", ".join(f"layer {layer} head {head}" for layer, head in broken[:8])
        more = f" and {len(broken) - 8} more." if len(broken) > 8 else "."
        plural = "" if len(broken) == 1 else "s"
        words += f"{ident} ({round(bits, 2):g} bits) breaks {len(broken)} head{plural}: {heads}{more}"
    return words


class ReportPage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="headroom-page-")
        cls.report = check_report.load(EXAMPLE)
        cls.example = render(EXAMPLE.read_text(encoding="utf-8"), cls.folder.name, "example")
        cls.browser = browser.Browser()

    @classmethod
    def tearDownClass(cls):
        cls.browser.__exit__()
        cls.folder.cleanup()

    def open(self, path, **options):
        page = self.browser.open(path, **options)
        self.addCleanup(page.close)
        return page

    def render_and_open(self, report, name, **options):
        return self.open(render(report, self.folder.name, name), **options)

    def assert_quiet(self, page):
        self.assertEqual(page.problems, [])
        self.assertEqual(page.requests, [])

    def assert_fits(self, page, width):
        self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), width)

    def assert_draws(self, page, report):
        """Everything that must be there for any report."""
        heads = sum(layer["num_heads"] for layer in report["recording"]["layers"])
        errors = [config["summary"]["total"]["rel_l2"] for config in report["configs"]]
        self.assertTrue(page.evaluate("document.getElementById('failure').hidden"))
        for selector, expected in {
            ".point": len(report["configs"]),
            ".front": 1 if any(error is not None for error in errors) else 0,
            "#map-choice .cell": heads,
            "#map-error .cell": heads,
            "#map-choice .cell[fill^='#'], #map-choice .cell[fill^='url']": heads,
            "#map-error .cell[fill^='#'], #map-error .cell[fill^='url']": heads,
            "#configs tbody tr": len(report["configs"]),
            "#head-table tbody tr": len(report["configs"]),
        }.items():
            self.assertEqual(page.count(selector), expected, selector)
        self.assert_answer(page, report, report["choice"]["budget"])
        self.assert_quiet(page)

    def assert_answer(self, page, report, budget):
        """The headline and the legend say what the figures give at a budget."""
        choice, _ = check_report.choose(report, budget)
        recorded = check_report.recorded_bits(report)
        bits = {
            head: config["kv_bits"] if config else recorded[head[0]]
            for head, config in choice.items()
        }
        ids = [config["id"] if config else None for config in choice.values()]
        answer = page.text("#answer")
        match = re.match(
            r"At a budget of (\S+) relative L2, (\d+) of (\d+) heads? lives? with (\S+), "
            r"and the mean over all (?:is|stays at) ([\d.]+) bits per K/V element",
            answer,
        )
        self.assertTrue(match, answer)
        self.assertAlmostEqual(float(match[1]), budget, delta=1e-3 * budget)
        self.assertEqual(int(match[2]), max(ids.count(ident) for ident in set(ids) - {None}))
        self.assertEqual(int(match[2]), ids.count(match[4]))
        self.assertEqual(int(match[3]), len(ids))
        self.assertAlmostEqual(float(match[5]), check_report.mean_bits(report, bits), delta=0.051)
        legend = sorted(map(int, page.texts("#share-legend b")))
        self.assertEqual(legend, sorted(ids.count(ident) for ident in set(ids)))
        self.assertEqual(page.text("#uniform"), uniform_words(report, budget))

    def test_page_is_self_contained(self):
        text = self.example.read_text(encoding="utf-8")
        element = r'<script type="application/json" id="report-data">(.*?)</script>'
        data = re.search(element, text, re.S)
        self.assertEqual(json.loads(data[1]), self.report)
        self.assertNotIn("<", data[1])
        rest = text[: data.start()] + text[data.end() :]
        self.assertEqual(re.findall(r"\w+://|url\((?!#)|@import|\bsrc=", rest), [])
        self.assertIn("default-src 'none'", rest)

    def test_light_and_dark(self):
        theme = "document.documentElement.dataset.theme"
        grounds = []
        for dark in (False, True):
            with self.subTest(dark=dark):
                page = self.open(self.example, dark=dark)
                self.assertEqual(page.evaluate(theme), "dark" if dark else "light")
                self.assert_draws(page, self.report)
                grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
                for selector, ratio in probe(page, "contrast", TEXT_SELECTORS).items():
                    self.assertGreaterEqual(ratio, 4.5, selector)
                page.click("#theme")
                self.assertEqual(page.evaluate(theme), "light" if dark else "dark")
                page.evaluate("localStorage.clear()")
                self.assert_quiet(page)
        self.assertNotEqual(*grounds)

    def test_worst_heads_are_named(self):
        page = self.open(self.example)
        for index, config in enumerate(self.report["configs"]):
            page.set("worst-config", index)
            names = [f"layer {w['layer']} head {w['head']}" for w in config["worst_heads"]]
            self.assertEqual(page.texts("#worst .link"), names)
        page.click("#worst .link")
        worst = self.report["configs"][-1]["worst_heads"][0]
        title = f"Layer {worst['layer']} · head {worst['head']}"
        self.assertEqual(page.text("#head-title"), title)
        self.assert_quiet(page)

    def test_no_labels_overlap_and_nothing_sticks_out(self):
        for width in (1280, 800, 400):
            with self.subTest(width=width):
                page = self.open(self.example, width=width, touch=width == 400)
                self.assertEqual(probe(page, "overlaps", ".point-label, .budget-label"), [])
                self.assertEqual(probe(page, "overlaps", "#curve text"), [])
                self.assertEqual(page.count(".point-label"), len(self.report["configs"]))
                self.assert_fits(page, width)

    def test_budget_is_recomputed(self):
        page = self.open(self.example)
        exact = "Number(document.getElementById('budget-number').value)"
        page.evaluate("document.getElementById('budget').focus()")
        before = page.evaluate(exact)
        for _ in range(25):
            page.press("ArrowRight")
        after = page.evaluate(exact)
        self.assertGreater(after, before)
        self.assert_answer(page, self.report, after)
        for text in ("0.012", "0,004", "0.3"):
            page.set("budget-number", text)
            self.assert_answer(page, self.report, float(text.replace(",", ".")))
        page.set("budget-number", "0")  # no budget: the one before is kept
        self.assert_answer(page, self.report, 0.3)
        page.click("#budget-reset")
        self.assert_answer(page, self.report, self.report["choice"]["budget"])
        self.assert_quiet(page)

    def test_budget_that_nothing_meets(self):
        page = self.open(self.example)
        page.set("budget-number", "1e-7")
        self.assertIn("no head can live with any of 8 configs", page.text("#answer"))
        self.assertEqual(page.texts("#share-legend b"), ["72"])
        self.assert_quiet(page)

    def test_table_sorts(self):
        page = self.open(self.example)
        rows = "[...document.querySelectorAll('#configs tbody tr')]"
        order = rows + ".map(e => Number(e.dataset.config))"
        totals = [config["summary"]["total"]["rel_l2"] for config in self.report["configs"]]
        self.assertEqual(page.evaluate(order), list(range(len(totals))))
        for descending, state in ((False, "ascending"), (True, "descending")):
            page.click("[data-sort=total]")
            expected = sorted(range(len(totals)), key=totals.__getitem__, reverse=descending)
            self.assertEqual(page.evaluate(order), expected)
            self.assertEqual(page.attribute("th:has([data-sort=total])", "aria-sort"), state)
        self.assert_quiet(page)

    def test_every_metric_and_config_can_be_shown(self):
        page = self.open(self.example)
        metrics = page.evaluate("[...document.getElementById('metric').options].map(o => o.value)")
        self.assertEqual(len(metrics), 4 * 6 + 2)
        captions = set()
        for metric in metrics:
            page.set("metric", metric)
            for config in (-1, 0, 7):
                page.set("map-config", config)
                captions.add(page.text("#error-caption"))
                ticks = page.texts("#scale text")
                self.assertGreaterEqual(len(ticks), 1, metric)
                self.assertNotIn("NaN", " ".join(ticks), metric)
        self.assertEqual(len(captions), 3 * len(metrics))
        self.assert_quiet(page)

    def test_heads_by_mouse_and_keyboard(self):
        page = self.open(self.example)
        page.hover("#map-error .cell[data-index='29']")
        self.assertIn("Layer 2 · head 5", page.text("#tip"))
        page.click("#map-choice .cell[data-index='29']")
        self.assertEqual(page.text("#head-title"), "Layer 2 · head 5")
        page.evaluate("document.querySelector('#map-error .cell[tabindex=\"0\"]').focus()")
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "Enter"):
            page.press(key)
        self.assertEqual(page.text("#head-title"), "Layer 1 · head 1")
        self.assertIn("Layer 1 · head 1", page.attribute(":focus", "aria-label"))
        page.evaluate("document.querySelector('.point[data-config=\"5\"]').focus()")
        page.press("Enter")
        self.assertEqual(page.evaluate("document.getElementById('map-config').value"), "5")
        self.assertEqual(page.attribute(".point.chosen", "data-config"), "5")
        self.assertEqual(page.attribute(":focus", "data-config"), "5")
        self.assert_quiet(page)

    def test_controls_have_names(self):
        self.assertEqual(probe(self.open(self.example), "unnamed"), [])

    def test_not_finite_is_shown_loudly(self):
        report = report_example.make_report(3, 4, nonfinite_head=("int4", 1, 2))
        page = self.render_and_open(report, "nonfinite")
        self.assert_draws(page, report)
        self.assertEqual(page.text(".strip-label"), "not finite")
        self.assertEqual(page.text("#worst .link"), "layer 1 head 2")
        self.assertEqual(page.text("#worst .nonfinite"), "NaN/Inf")
        self.assertIn("NaN/Inf", page.text("#configs tr[data-config='7']"))
        page.set("map-config", 7)
        cell = "#map-error .cell[data-index='6']"
        self.assertEqual(page.attribute(cell, "fill"), "url(#hatch-alarm)")
        page.hover(cell)
        self.assertIn("37 elements not finite", page.text("#tip"))

    def test_exact_and_infinite_are_told_apart(self):
        report = report_example.make_report(2, 3)
        exact = report["configs"][0]["layers"][0]["heads"][0]["scores"]["kernel"]
        exact.update(max_abs=0, rmse=0, rel_l1=0, rel_l2=0, cosine=1, sqnr_db=None)
        zero = report["configs"][1]["layers"][0]["heads"][0]["scores"]["quant"]
        zero.update(rel_l1=None, rel_l2=None, cosine=None, sqnr_db=None)
        self.assertEqual(check_report.problems(report), [])
        page = self.render_and_open(report, "exact")
        page.click("#map-choice .cell[data-index='0']")
        self.assertIn("∞", page.text("#head-table"))
        page.set("metric", "kernel.sqnr_db")
        page.set("map-config", 0)
        page.hover("#map-error .cell[data-index='0']")
        self.assertIn("exact", page.text("#tip"))
        self.assert_quiet(page)

    def test_smallest_and_largest(self):
        rows = report_example.CONFIGS
        for name, report in {
            "one": report_example.make_report(1, 1, rows=rows[:1]),
            "large": report_example.make_report(80, 64, rows=[rows[0], rows[5], rows[7]]),
        }.items():
            for width in (1280, 400):
                with self.subTest(name, width=width):
                    page = self.render_and_open(report, name, width=width)
                    self.assert_draws(page, report)
                    self.assert_fits(page, width)

    def test_grouped_heads_share_a_kv_head(self):
        report = report_example.make_report(3, 8)
        for layer in report["recording"]["layers"]:
            layer.update(num_kv_heads=2, dtype="bf16")
        page = self.render_and_open(report, "grouped")
        self.assert_answer(page, report, report["choice"]["budget"])
        page.click("#map-choice .cell[data-index='13']")
        self.assertIn("reads KV head 1, shared by 4 query heads", page.text("#head-note"))
        self.assert_quiet(page)

    def test_missing_positions_are_said(self):
        for rope in ("none", "applied", "before"):
            with self.subTest(rope):
                report = report_example.make_report(2, 3)
                report["recording"]["rope"] = rope
                page = self.render_and_open(report, "rope")
                self.assertEqual(page.count("#rope-note:not([hidden])"), int(rope == "before"))
                if rope == "before":
                    self.assertIn("attention without positions", page.text("#rope-note"))
                self.assert_quiet(page)

    def test_the_mask_is_said(self):
        page = self.open(self.example)
        self.assertIn("Maskfull", page.text("#provenance"))
        self.assertEqual(page.count("#mask-note[hidden]"), 1)
        for causal, mask, expected in (
            (True, None, "causal"),
            (True, (63, -1, 0, 0, 0), "causal, a window of 63 keys before a query's own"),
            (False, (1, 0, 4, 0, 0), "full, a window of 1 key before and 0 keys after a query's own, "
             "the first 4 keys always seen"),
            (False, (-1, 8, 0, 0, 0),
             "full, a window of all keys before and 8 keys after a query's own"),
            (True, (-1, -1, 1, 64, 128), "causal, block-sparse in blocks of 64 queries × 128 keys, "
             "the first key always seen"),
        ):
            with self.subTest(expected):
                report = report_example.make_report(2, 3)
                names = ("window_left", "window_right", "keep", "block_q", "block_kv")
                report["recording"].update(
                    causal=causal, mask=dict(zip(names, mask)) if mask else None)
                self.assertEqual(list(check_report.problems(report)), [])
                page = self.render_and_open(report, "masked")
                self.assertIn("Mask" + expected + "Softmax", page.text("#provenance"))
                self.assertEqual(page.count("#mask-note:not([hidden])"), int(mask is not None))
                if mask:
                    self.assertIn(f"the audit's mask: {expected}.", page.text("#mask-note"))
                self.assert_fits(page, 1280)
                self.assert_quiet(page)

    def test_baselines_of_a_gpu_are_shown(self):
        page = self.open(self.example)
        self.assertEqual(page.count("#baselines-section[hidden]"), 1)
        report = report_example.make_report(2, 3)
        bf16 = report["configs"][0]
        total, lse = bf16["summary"]["total"], bf16["summary"]["lse"]
        layers = [{"layer": 0, "total": total, "heads": [{"head": 0, "total": total}]}]
        reason = "cuBLASLt was not found: <b>libcublasLt.so.13</b>"
        report["baselines"] = [
            {"id": "fp32-reference", "skipped": None, "timing": bf16["timing"], "total": total,
             "lse": lse, "layers": layers},
            {"id": "cublaslt-fp8", "skipped": reason, "timing": None, "total": None, "lse": None,
             "layers": []},
        ]
        self.assertEqual(list(check_report.problems(report)), [])
        page = self.render_and_open(report, "baselines")
        self.assert_draws(page, report)
        self.assertIn("not run: " + reason, page.text("#baselines tr:nth-child(2)"))
        self.assertIn("fp32-reference", page.text("#baselines tbody tr"))
        self.assert_fits(page, 1280)
        self.assert_quiet(page)
        report["baselines"][1]["skipped"] = None
        self.assertNotEqual(list(check_report.problems(report)), [], "nothing ran, and no reason")

    def test_hostile_text_stays_text(self):
        report = report_example.make_report(2, 3, model=HOSTILE)
        report["machine"]["cpu"] = report["recording"]["path"] = HOSTILE
        report["configs"][1].update(id=HOSTILE, recipe=HOSTILE, observer=HOSTILE)
        report["configs"][1]["kernel"]["name"] = HOSTILE
        report["pareto"] = [HOSTILE]
        page = self.render_and_open(report, "hostile")
        self.assertEqual(page.count("img"), 0)
        self.assertEqual(page.count("script"), 2)
        self.assertEqual(page.text("#subject"), HOSTILE)
        self.assertIn("onerror", page.evaluate("document.title"))
        self.assert_fits(page, 1280)
        self.assert_quiet(page)

    def test_broken_data_is_said(self):
        for name, text in {
            "words": "no JSON",
            "other": '{"schema": "else"}',
            "half": EXAMPLE.read_text()[:5000],
        }.items():
            with self.subTest(name):
                page = self.render_and_open(text, name)
                self.assertIn("cannot be shown", page.text("#failure:not([hidden])"))
                self.assertNotEqual(page.problems, [])  # which also shows that problems are seen

    def test_the_network_is_closed(self):
        page = self.open(self.example)
        self.assertEqual(probe(page, "loadImage", "http://127.0.0.1:9/"), 0)
        self.assertIn("Content Security Policy", " ".join(page.problems))

    @unittest.skipUnless(SCREENSHOTS, "HEADROOM_SCREENSHOTS names no folder")
    def test_screenshots(self):
        for width in (1280, 800, 400):
            for theme in ("light", "dark"):
                page = self.open(self.example, width=width, dark=theme == "dark")
                page.screenshot(pathlib.Path(SCREENSHOTS, f"report-{width}-{theme}.png"))
        report = json.loads(EXAMPLE.read_text(encoding="utf-8"))
        report["recording"].update(causal=True, mask={
            "window_left": 255, "window_right": -1, "keep": 4, "block_q": 64, "block_kv": 64})
        page = self.render_and_open(report, "masked-picture")
        page.screenshot(pathlib.Path(SCREENSHOTS, "report-masked.png"))


if __name__ == "__main__":
    if not RENDER:
        sys.exit("HEADROOM_RENDER_REPORT must name the render_report of a build")
    missing = (
        "Chromium"
        if not browser.find_chromium()
        else "the Python package jsonschema" if not check_report else None
    )
    if missing:
        print(f"SKIP: {missing} is missing")
        sys.exit(1 if "browser" in os.environ.get("HEADROOM_EXPECT", "") else 77)
    unittest.main()
