#!/usr/bin/env python3
"""The report's schema: strict, documented, met by the example, refusing what is no report."""

import copy
import io
import json
import os
import pathlib
import sys
import tempfile
import unittest

try:
    import jsonschema
except ImportError:
    print("SKIP: the Python package jsonschema is missing")
    sys.exit(1 if "browser" in os.environ.get("HEADROOM_EXPECT", "") else 77)

import check_report
import report_example

HERE = pathlib.Path(__file__).resolve().parent
EXAMPLE = HERE / "data" / "report_example.json"


def sub_schemas(schema, path="$"):
    if isinstance(schema, dict):
        yield path, schema
        for key, value in schema.items():
            yield from sub_schemas(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from sub_schemas(value, f"{path}[{index}]")


def objects(value, path=()):
    """Paths of all objects of a document, the first element of each array only."""
    if isinstance(value, dict):
        yield path
        for key, item in value.items():
            yield from objects(item, path + (key,))
    elif isinstance(value, list) and value:
        yield from objects(value[0], path + (0,))


def at(document, path):
    for step in path:
        document = document[step]
    return document


class Schema(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.validator = check_report.validator()
        cls.small = report_example.make_report(2, 3)
        cls.tiny = report_example.make_report(1, 1, rows=report_example.CONFIGS[:1])

    def broken(self, change):
        report = copy.deepcopy(self.tiny)
        change(report)
        return not self.validator.is_valid(report)

    def test_objects_are_closed_and_fields_required_and_described(self):
        schema = self.validator.schema
        for path, part in sub_schemas(schema):
            if "properties" not in part or not isinstance(part.get("type"), str):
                continue
            with self.subTest(path=path):
                self.assertIs(part["additionalProperties"], False)
                self.assertEqual(set(part["required"]), set(part["properties"]))
                for name, field in part["properties"].items():
                    target = field
                    if "$ref" in field:
                        target = {**schema["$defs"][field["$ref"].rsplit("/", 1)[1]], **field}
                    self.assertTrue(
                        target.get("description") or target.get("properties"), f"{path}.{name}"
                    )

    def test_example_is_a_sound_report(self):
        self.assertEqual(check_report.problems(check_report.load(EXAMPLE)), [])

    def test_example_is_what_its_generator_makes(self):
        text = io.StringIO()
        report_example.write(report_example.make_report(), text)
        self.assertEqual(json.loads(text.getvalue()), check_report.load(EXAMPLE))

    def test_extreme_shapes_are_sound(self):
        for name, report in {
            "one head": report_example.make_report(1, 1, rows=report_example.CONFIGS[:1]),
            "not finite": report_example.make_report(3, 4, nonfinite_head=("int4", 1, 2)),
        }.items():
            with self.subTest(name):
                self.assertEqual(check_report.problems(report), [])

    def test_each_field_is_needed_and_no_other_is_taken(self):
        for path in objects(self.tiny):
            if path == ("choice", "counts"):
                continue
            for field in at(self.tiny, path):
                with self.subTest(path=path, field=field):
                    self.assertTrue(self.broken(lambda report: at(report, path).pop(field)))
            with self.subTest(path=path, field="extra"):
                self.assertTrue(self.broken(lambda report: at(report, path).update(extra=1)))

    def test_wrong_values_are_refused(self):
        for path, value in [
            (("schema_version",), 2),
            (("created",), "yesterday"),
            (("machine", "threads"), 0),
            (("recording", "data_hash"), "12"),
            (("recording", "softmax_scale"), 0),
            (("recording", "rope"), "maybe"),
            (("recording", "layers"), []),
            (("configs",), []),
            (("configs", 0, "kv_bits"), None),
            (("configs", 0, "summary", "total", "rel_l2"), -1),
            (("configs", 0, "summary", "total", "rel_l2"), "NaN"),
            (("configs", 0, "summary", "total", "nonfinite"), None),
            (("configs", 0, "summary", "top_k_agreement"), 1.5),
            (("configs", 0, "worst_heads"), []),
            (("choice", "budget"), 0),
        ]:
            with self.subTest(path=path, value=value):
                self.assertTrue(
                    self.broken(lambda report: at(report, path[:-1]).update({path[-1]: value}))
                )

    def test_contradictions_are_found(self):
        def head(report):
            return report["configs"][1]["layers"][0]["heads"][1]["scores"]["total"]

        for name, change in {
            "layer order": lambda r: r["recording"]["layers"][0].update(layer=5),
            "worst head": lambda r: r["configs"][0]["worst_heads"].reverse(),
            "front": lambda r: r["pareto"].pop(),
            "choice": lambda r: r["choice"]["heads"][0].update(config="bf16"),
            "counts": lambda r: r["choice"].update(unmet=1),
            "uniform": lambda r: r["choice"]["uniform"].update(config="bf16"),
            "narrower": lambda r: r["choice"]["uniform"].update(narrower=None),
            "mean": lambda r: r["choice"].update(mean_kv_bits=1.0),
            "NaN with figures": lambda r: head(r).update(nonfinite=3),
            "null without reason": lambda r: head(r).update(rmse=None),
            "sqnr": lambda r: head(r).update(sqnr_db=1.0),
        }.items():
            with self.subTest(name):
                report = copy.deepcopy(self.small)
                change(report)
                self.assertNotEqual(check_report.problems(report), [])

    def test_nan_in_the_text_is_refused(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(EXAMPLE.read_text().replace('"top_k":8', '"top_k":NaN'))
            file.flush()
            with self.assertRaisesRegex(ValueError, "NaN"):
                check_report.load(file.name)


if __name__ == "__main__":
    unittest.main()
