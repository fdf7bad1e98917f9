#!/usr/bin/env python3
"""The report page in headless Chromium: what it says, draws and does, light and dark.

    HEADROOM_RENDER_REPORT=build/dev/tests/render_report python3 tests/test_report_page.py

HEADROOM_SCREENSHOTS=FOLDER also leaves pictures of the page there. Exits 77 (skipped) without Chromium or jsonschema, unless HEADROOM_EXPECT contains "browser".
"""
import json
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
HOSTILE = '</script><img src=x onerror="document.title=\'owned\'"><!-- <script>alert(1)</script> \u2028 &lt;'
RENDER = os.environ.get("HEADROOM_RENDER_REPORT")
SCREENSHOTS = os.environ.get("HEADROOM_SCREENSHOTS")
TEXTS = "(s => [...document.querySelectorAll(s)].map(e => e.textContent))"

# Boxes of all elements a selector finds that lie on one another by more than a pixel.
OVERLAPS = """(selector => {
  const boxes = [...document.querySelectorAll(selector)].map(e => [e.textContent, e.getBoundingClientRect()]);
  return boxes.flatMap(([a, x], i) => boxes.slice(i + 1).filter(([b, y]) =>
    Math.min(x.right, y.right) - Math.max(x.left, y.left) > 1 &&
    Math.min(x.bottom, y.bottom) - Math.max(x.top, y.top) > 3).map(([b]) => a + ' / ' + b));
})"""

# Smallest WCAG contrast ratio of the text of each selector against the background behind it.
CONTRAST = """(selectors => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(x => (x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  return Object.fromEntries(selectors.map(s => [s, Math.min(...[...document.querySelectorAll(s)].map(e => {
    const style = getComputedStyle(e), ink = rgb(e.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05); }))]));
})"""


def render(report, folder, name):
    """Writes the page of a report (or of any text) and returns its path."""
    text = report if isinstance(report, str) else json.dumps(report, ensure_ascii=False)
    source = pathlib.Path(folder, name + ".json")
    source.write_text(text, encoding="utf-8")
    page = source.with_suffix(".html")
    page.write_bytes(subprocess.run([RENDER, str(source)], check=True, stdout=subprocess.PIPE).stdout)
    return page


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

    def assert_draws(self, page, report):
        """Everything that must be there for any report."""
        count = sum(layer["num_heads"] for layer in report["recording"]["layers"])
        finite = [config for config in report["configs"] if config["summary"]["total"]["rel_l2"] is not None]
        self.assertTrue(page.evaluate("document.getElementById('failure').hidden"))
        for selector, expected in {
            ".point": len(report["configs"]),
            "#map-choice .cell": count,
            "#map-error .cell": count,
            "#configs tbody tr": len(report["configs"]),
            "#head-table tbody tr": len(report["configs"]),
            ".front": 1 if finite else 0,
        }.items():
            self.assertEqual(page.evaluate(f"document.querySelectorAll('{selector}').length"), expected, selector)
        fills = page.evaluate("[...document.querySelectorAll('.cell')].every(e => /^(#|url)/.test(e.getAttribute('fill')))")
        self.assertTrue(fills)
        self.assert_answer(page, report, report["choice"]["budget"])
        self.assert_quiet(page)

    def assert_answer(self, page, report, budget):
        """The headline, the legend and the chosen cells say what the figures give at a budget."""
        choice, _ = check_report.choose(report, budget)
        recorded = {layer["layer"]: 32 if layer["dtype"] == "f32" else 16 for layer in report["recording"]["layers"]}
        bits = {head: config["kv_bits"] if config else recorded[head[0]] for head, config in choice.items()}
        ids = [config["id"] if config else None for config in choice.values()]
        answer = page.evaluate("document.getElementById('answer').textContent")
        match = re.match(r"At a budget of (\S+) relative L2, (\d+) of (\d+) heads? lives? with (\S+), and the mean over "
                         r"all (?:is|stays at) ([\d.]+) bits per K/V element", answer)
        self.assertTrue(match, answer)
        self.assertAlmostEqual(float(match[1]), budget, delta=1e-3 * budget)
        self.assertEqual(int(match[2]), max(ids.count(ident) for ident in set(ids) - {None}))
        self.assertEqual(int(match[2]), ids.count(match[4]))
        self.assertEqual(int(match[3]), len(ids))
        self.assertAlmostEqual(float(match[5]), check_report.mean_bits(report, bits), delta=0.051)
        legend = page.evaluate(TEXTS + "('#share-legend b')")
        self.assertEqual(sorted(map(int, legend)), sorted(ids.count(ident) for ident in set(ids)))

    def test_page_is_self_contained(self):
        text = self.example.read_text(encoding="utf-8")
        data = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', text, re.S)
        self.assertEqual(json.loads(data[1]), self.report)
        self.assertNotIn("<", data[1])
        rest = text[:data.start()] + text[data.end():]
        self.assertEqual(re.findall(r"\w+://|url\((?!#)|@import|\bsrc=", rest), [])
        self.assertIn("default-src 'none'", rest)

    def test_light_and_dark(self):
        grounds = []
        for dark in (False, True):
            with self.subTest(dark=dark):
                page = self.open(self.example, dark=dark)
                self.assertEqual(page.evaluate("document.documentElement.dataset.theme"), "dark" if dark else "light")
                self.assert_draws(page, self.report)
                grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
                ratios = page.evaluate(CONTRAST + """(["h1", "h1 strong", ".note", ".legend .dim", ".figures td", ".figures th",
                    ".sub", ".over", ".badge", ".link", ".subject", "svg .muted", ".axis-title", ".budget-label", ".point-label"])""")
                for selector, ratio in ratios.items():
                    self.assertGreaterEqual(ratio, 4.5, selector)
                page.click("#theme")
                self.assertEqual(page.evaluate("document.documentElement.dataset.theme"), "light" if dark else "dark")
                page.evaluate("localStorage.clear()")
                self.assert_quiet(page)
        self.assertNotEqual(*grounds)

    def test_worst_heads_are_named(self):
        page = self.open(self.example)
        for index, config in enumerate(self.report["configs"]):
            page.evaluate(f"(s => {{ s.value = {index}; s.dispatchEvent(new Event('change')); }})"
                          "(document.getElementById('worst-config'))")
            self.assertEqual(page.evaluate(TEXTS + "('#worst .link')"),
                             [f"layer {worst['layer']} head {worst['head']}" for worst in config["worst_heads"]])
        page.click("#worst .link")
        worst = self.report["configs"][-1]["worst_heads"][0]
        self.assertEqual(page.evaluate("document.getElementById('head-title').textContent"),
                         f"Layer {worst['layer']} · head {worst['head']}")
        self.assert_quiet(page)

    def test_no_labels_overlap_and_nothing_sticks_out(self):
        for width in (1280, 800, 400):
            with self.subTest(width=width):
                page = self.open(self.example, width=width, touch=width == 400)
                self.assertEqual(page.evaluate(OVERLAPS + "('.point-label, .budget-label')"), [])
                self.assertEqual(page.evaluate(OVERLAPS + "('#curve text')"), [])
                labels = page.evaluate(TEXTS + "('.point-label')")
                self.assertEqual(len(labels), len(self.report["configs"]), labels)
                self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), width)

    def test_budget_is_recomputed(self):
        page = self.open(self.example)
        page.evaluate("document.getElementById('budget').focus()")
        before = float(page.evaluate("document.getElementById('budget-number').value"))
        for _ in range(25):
            page.press("ArrowRight")
        after = float(page.evaluate("document.getElementById('budget-number').value"))
        self.assertGreater(after, before)
        self.assert_answer(page, self.report, after)
        for text in ("0.012", "0,004", "0.3"):
            page.evaluate("(i => { i.value = '%s'; i.dispatchEvent(new Event('change')); })"
                          "(document.getElementById('budget-number'))" % text)
            page.settle()
            self.assert_answer(page, self.report, float(text.replace(",", ".")))
        page.evaluate("(i => { i.value = '0'; i.dispatchEvent(new Event('change')); })(document.getElementById('budget-number'))")
        page.settle()
        self.assert_answer(page, self.report, 0.3)
        page.click("#budget-reset")
        self.assert_answer(page, self.report, self.report["choice"]["budget"])
        self.assert_quiet(page)

    def test_budget_that_nothing_meets(self):
        page = self.open(self.example)
        page.evaluate("(i => { i.value = '1e-7'; i.dispatchEvent(new Event('change')); })(document.getElementById('budget-number'))")
        page.settle()
        self.assertIn("no head can live with any of 8 configs", page.evaluate("document.getElementById('answer').textContent"))
        self.assertEqual(page.evaluate(TEXTS + "('#share-legend b')"), ["72"])
        self.assert_quiet(page)

    def test_table_sorts(self):
        page = self.open(self.example)
        ids = [config["id"] for config in self.report["configs"]]
        order = "[...document.querySelectorAll('#configs tbody tr')].map(e => Number(e.dataset.config))"
        self.assertEqual(page.evaluate(order), list(range(len(ids))))
        totals = [config["summary"]["total"]["rel_l2"] for config in self.report["configs"]]
        for expected, state in ((False, "ascending"), (True, "descending")):
            page.click("[data-sort=total]")
            self.assertEqual(page.evaluate(order), sorted(range(len(ids)), key=totals.__getitem__, reverse=expected))
            self.assertEqual(page.evaluate("document.querySelector('[data-sort=total]').closest('th').ariaSort"), state)
        self.assert_quiet(page)

    def test_every_metric_and_config_can_be_shown(self):
        page = self.open(self.example)
        metrics = page.evaluate("[...document.getElementById('metric').options].map(o => o.value)")
        self.assertEqual(len(metrics), 4 * 6 + 2)
        captions = set()
        for metric in metrics:
            for config in (-1, 0, 7):
                page.evaluate("for (const [id, value] of [['metric', '%s'], ['map-config', %d]]) {"
                              "const s = document.getElementById(id); s.value = value; s.dispatchEvent(new Event('change')); }"
                              % (metric, config))
                captions.add(page.evaluate("document.getElementById('error-caption').textContent"))
                ticks = page.evaluate(TEXTS + "('#scale text')")
                self.assertGreaterEqual(len(ticks), 1, metric)
                self.assertNotIn("NaN", " ".join(ticks), metric)
        self.assertEqual(len(captions), 3 * len(metrics))
        self.assert_quiet(page)

    def test_heads_by_mouse_and_keyboard(self):
        page = self.open(self.example)
        page.hover("#map-error .cell[data-index='29']")
        tip = page.evaluate("document.getElementById('tip').innerText")
        self.assertIn("Layer 2 · head 5", tip)
        page.click("#map-choice .cell[data-index='29']")
        self.assertEqual(page.evaluate("document.getElementById('head-title').textContent"), "Layer 2 · head 5")
        page.evaluate("document.querySelector('#map-error .cell[tabindex=\"0\"]').focus()")
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "Enter"):
            page.press(key)
        self.assertEqual(page.evaluate("document.getElementById('head-title').textContent"), "Layer 1 · head 1")
        self.assertIn("Layer 1 · head 1", page.evaluate("document.activeElement.ariaLabel"))
        page.evaluate("document.querySelector('.point[data-config=\"5\"]').focus()")
        page.press("Enter")
        self.assertEqual(page.evaluate("document.getElementById('map-config').value"), "5")
        self.assertEqual(page.evaluate("document.querySelector('.point.chosen').dataset.config"), "5")
        self.assertEqual(page.evaluate("document.activeElement.dataset.config"), "5")
        self.assert_quiet(page)

    def test_controls_have_names(self):
        page = self.open(self.example)
        unnamed = page.evaluate("[...document.querySelectorAll('button, select, input, [role=button], [role=img], [role=grid]')]"
                                ".filter(e => !(e.labels && e.labels.length) && !e.ariaLabel && !e.textContent.trim()).map(e => e.outerHTML)")
        self.assertEqual(unnamed, [])

    def test_not_finite_is_shown_loudly(self):
        report = report_example.make_report(3, 4, nonfinite_head=("int4", 1, 2))
        page = self.render_and_open(report, "nonfinite")
        self.assert_draws(page, report)
        self.assertEqual(page.evaluate("document.querySelector('.strip-label').textContent"), "not finite")
        self.assertEqual(page.evaluate("document.querySelector('#worst .link').textContent"), "layer 1 head 2")
        self.assertEqual(page.evaluate("document.querySelector('#worst .nonfinite').textContent"), "NaN/Inf")
        self.assertIn("NaN/Inf", page.evaluate("document.querySelector('#configs tr[data-config=\"7\"]').textContent"))
        page.evaluate("(s => { s.value = 7; s.dispatchEvent(new Event('change')); })(document.getElementById('map-config'))")
        self.assertEqual(page.evaluate("document.querySelector('#map-error .cell[data-index=\"6\"]').getAttribute('fill')"),
                         "url(#hatch-alarm)")
        page.hover("#map-error .cell[data-index='6']")
        self.assertIn("37 elements not finite", page.evaluate("document.getElementById('tip').innerText"))

    def test_exact_and_infinite_are_told_apart(self):
        report = report_example.make_report(2, 3)
        exact = report["configs"][0]["layers"][0]["heads"][0]["scores"]["kernel"]
        exact.update(max_abs=0, rmse=0, rel_l1=0, rel_l2=0, cosine=1, sqnr_db=None)
        zero = report["configs"][1]["layers"][0]["heads"][0]["scores"]["quant"]
        zero.update(rel_l1=None, rel_l2=None, cosine=None, sqnr_db=None)
        page = self.render_and_open(report, "exact")
        page.click("#map-choice .cell[data-index='0']")
        self.assertEqual(check_report.problems(report), [])
        self.assertIn("∞", page.evaluate("document.getElementById('head-table').textContent"))
        page.evaluate("for (const [id, value] of [['metric', 'kernel.sqnr_db'], ['map-config', 0]]) {"
                      "const s = document.getElementById(id); s.value = value; s.dispatchEvent(new Event('change')); }")
        page.hover("#map-error .cell[data-index='0']")
        self.assertIn("exact", page.evaluate("document.getElementById('tip').innerText"))
        self.assert_quiet(page)

    def test_smallest_and_largest(self):
        for name, report in {
            "one": report_example.make_report(1, 1, rows=report_example.CONFIGS[:1]),
            "large": report_example.make_report(80, 64, rows=[report_example.CONFIGS[i] for i in (0, 5, 7)]),
        }.items():
            for width in (1280, 400):
                with self.subTest(name, width=width):
                    page = self.render_and_open(report, name, width=width)
                    self.assert_draws(page, report)
                    self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), width)

    def test_grouped_heads_share_a_kv_head(self):
        report = report_example.make_report(3, 8)
        for layer in report["recording"]["layers"]:
            layer.update(num_kv_heads=2, dtype="bf16")
        page = self.render_and_open(report, "grouped")
        self.assert_answer(page, report, report["choice"]["budget"])
        page.click("#map-choice .cell[data-index='13']")
        self.assertIn("reads KV head 1, shared by 4 query heads", page.evaluate("document.getElementById('head-note').textContent"))
        self.assert_quiet(page)

    def test_hostile_text_stays_text(self):
        report = report_example.make_report(2, 3, model=HOSTILE)
        report["machine"]["cpu"] = report["recording"]["path"] = HOSTILE
        report["configs"][1].update(id=HOSTILE, recipe=HOSTILE, observer=HOSTILE)
        report["configs"][1]["kernel"]["name"] = HOSTILE
        report["pareto"] = [HOSTILE]
        page = self.render_and_open(report, "hostile")
        self.assertEqual(page.evaluate("document.querySelectorAll('img, script:not(#report-data):not(:last-of-type)').length"), 0)
        self.assertEqual(page.evaluate("document.getElementById('subject').textContent"), HOSTILE)
        self.assertIn("onerror", page.evaluate("document.title"))
        self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), 1280)
        self.assert_quiet(page)

    def test_broken_data_is_said(self):
        for name, text in {"words": "no JSON", "other": '{"schema": "else"}', "half": EXAMPLE.read_text()[:5000]}.items():
            with self.subTest(name):
                page = self.render_and_open(text, name)
                self.assertIn("cannot be shown", page.evaluate("document.getElementById('failure').textContent"))
                self.assertFalse(page.evaluate("document.getElementById('failure').hidden"))
                self.assertNotEqual(page.problems, [])  # which also shows that problems are seen

    def test_the_network_is_closed(self):
        page = self.open(self.example)
        page.evaluate("fetch('http://127.0.0.1:9/').catch(() => 0)")
        page.evaluate("new Promise(done => { const i = new Image(); i.onerror = i.onload = done; i.src = 'http://127.0.0.1:9/'; })")
        self.assertIn("Content Security Policy", " ".join(page.problems))

    @unittest.skipUnless(SCREENSHOTS, "no folder for screenshots given")
    def test_screenshots(self):
        for width in (1280, 800, 400):
            for dark in (False, True):
                page = self.open(self.example, width=width, dark=dark)
                page.screenshot(pathlib.Path(SCREENSHOTS, f"report-{width}-{'dark' if dark else 'light'}.png"))


if __name__ == "__main__":
    if not RENDER:
        sys.exit("HEADROOM_RENDER_REPORT must name the render_report of a build")
    missing = "Chromium" if not browser.find_chromium() else "the Python package jsonschema" if not check_report else None
    if missing:
        print(f"SKIP: {missing} is missing")
        sys.exit(1 if "browser" in os.environ.get("HEADROOM_EXPECT", "") else 77)
    unittest.main()
