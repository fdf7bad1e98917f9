#!/usr/bin/env python3
"""gpu_ncu.py IN.csv... OUT.json: ncu's raw CSV pages as a JSON list, one object a launch."""
import csv
import json
import sys


# Of the hundreds that sections have; what a version of ncu lacks is not shown.
SHOWN = ("gpu__time_duration.sum", "sm__throughput.avg.pct", "gpu__dram_throughput.avg.pct",
         "sm__inst_issued.avg.pct", "sm__issue_active", "sm__inst_executed_pipe_tensor",
         "sm__inst_executed_pipe_xu", "sm__inst_executed_pipe_alu", "sm__inst_executed_pipe_fma",
         "sm__pipe_tensor", "launch__registers_per_thread")


def read_launches(lines):
    """Skips what the profiled program and ncu print before the table; its second row has units."""
    table = [line for line in lines if line.startswith('"')]
    rows = list(csv.DictReader(table))
    if not rows:
        raise SystemExit("gpu_ncu.py: no launch was profiled")
    units = rows[0] if not rows[0].get("ID", "").strip() else {}
    launches = []
    for row in rows[1:] if units else rows:
        metrics = {}
        for name, text in row.items():
            if name and ("__" in name):
                try:
                    metrics[name] = float(text.replace(",", ""))
                except (ValueError, AttributeError):
                    metrics[name] = text
        launches.append({"kernel": row.get("Kernel Name", "")[:200], "metrics": metrics})
    return {"units": {n: u for n, u in units.items() if n and "__" in n and u},
            "launches": launches}


def main():
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    document = {"units": {}, "launches": []}
    for path in sys.argv[1:-1]:
        with open(path) as file:
            page = read_launches(file.read().splitlines())
        document["units"].update(page["units"])
        document["launches"] += page["launches"]
    with open(sys.argv[-1], "w") as file:
        json.dump(document, file, indent=1)
    for launch in document["launches"]:
        metrics = launch["metrics"]
        print(launch["kernel"][:60], {n: v for n, v in metrics.items() if n.startswith(SHOWN)})


if __name__ == "__main__":
    main()
