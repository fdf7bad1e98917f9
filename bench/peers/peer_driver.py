"""The Python drivers' side of the conversation that peer_driver.h describes.

A driver makes a class with version, unit, kv_bytes, open via its constructor (one copy of K and V),
add_copy(), run(copy) and output(), and calls main(class).
"""

import argparse
import json
import sys
import time

TIMING_SECONDS = 0.02  # as peer_driver.c


def arguments():
    parser = argparse.ArgumentParser(description="One peer's attention on one shape, run at the "
                                     "word of bench/peers/run.py on standard input.")
    parser.add_argument("--variant", required=True)
    for name in ("head-dim", "seqlen-q", "seqlen-kv", "heads", "kv-heads"):
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--mask", choices=("full", "causal"), default="full")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cold", type=int, default=0, metavar="MIB")
    parser.add_argument("--inputs", required=True, metavar="PREFIX")
    return parser.parse_args()


def load(case, suffix):
    """[heads, seqlen, head_dim], contiguous."""
    import numpy

    seqlen, heads = ((case.seqlen_q, case.heads) if suffix == "q" else
                     (case.seqlen_kv, case.kv_heads))
    x = numpy.fromfile(f"{case.inputs}.{suffix}", numpy.float32)
    return numpy.ascontiguousarray(
        x.reshape(seqlen, heads, case.head_dim).transpose(1, 0, 2))


def time_run(peer, copies, last):
    """Seconds of a run: cold, the mean over all copies; warm, after one run that does not count."""
    runs = 0
    if copies == 1 and last <= TIMING_SECONDS:
        peer.run(0)
    begin = time.perf_counter()
    while True:
        for copy in range(copies):
            peer.run(copy)
        runs += copies
        seconds = time.perf_counter() - begin
        if copies > 1 or seconds >= TIMING_SECONDS:
            return seconds / runs


def main(peer_class):
    case = arguments()
    peer = peer_class(case)
    copies = 1
    while peer.kv_bytes() * copies < case.cold << 20:
        peer.add_copy()
        copies += 1
    peer.run(0)
    print(json.dumps({"version": peer.version(), "unit": "s", "kv_bytes": peer.kv_bytes(),
                      "copies": copies}), flush=True)
    last = 0.0
    for line in sys.stdin:
        command, _, path = line.strip().partition(" ")
        if command == "run":
            last = time_run(peer, copies, last)
            print(f"{last:.9g}", flush=True)
        elif command == "output":
            peer.output().tofile(path)
            print("ok", flush=True)
        else:
            sys.exit(f"not a command here: {line.strip()}")
