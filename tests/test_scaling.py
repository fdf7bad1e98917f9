#!/usr/bin/env python3
"""Attention's memory is flat: no buffer grows with seqlen_q times seqlen_kv, nor with seqlen.

Each point is a fresh process of bench/scaling.c. rss_run is what attention adds to the resident
set, plan and runs together; a buffer of one byte a (query, key) pair of the largest case here would
be 4 GiB, and one of 64 bytes a token 8 MiB.
"""

import json
import os
import subprocess
import sys
import unittest

SCALING = os.environ.get("HEADROOM_SCALING", "")
MIB = 1 << 20

# One thread's tiles of Q, P, O and expanded K and V, and the list of tasks. Measured: up to 1.4 MiB.
SCRATCH = 2 * MIB


def point(isa=None, **options):
    command = [SCALING, "--runs", "1"]
    for name, value in options.items():
        name = "--" + name.replace("_", "-")
        command += [name] if value is True else [name, str(value)]
    environment = dict(os.environ)
    if isa:
        environment["HEADROOM_ISA"] = isa
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True,
                                     env=environment).stdout)


class Memory(unittest.TestCase):
    def flat(self, short, long):
        self.assertLess(long["rss_run"], SCRATCH)
        # The whole process: inputs, synthesis and packing grow with the operands, nothing else.
        growth = long["operand_bytes"] - short["operand_bytes"]
        self.assertLess(long["rss_peak"] - short["rss_peak"], 2 * growth + 8 * MIB)

    def test_prefill_of_many_queries(self):
        """A window keeps the time linear; the memory of masked tiles would show all the same."""
        for recipe in ("int8", "int4", "bf16", "fp8"):
            with self.subTest(recipe):
                self.flat(*(point(recipe=recipe, seqlen_q=n, seqlen_kv=n, window=128, causal=True)
                            for n in (16384, 65536)))

    def test_prefill_of_many_keys(self):
        for recipe in ("int8", "int4", "bf16"):
            with self.subTest(recipe):
                self.flat(*(point(recipe=recipe, seqlen_q=256, seqlen_kv=n)
                            for n in (16384, 65536)))

    def test_decode(self):
        for recipe in ("int8", "int4", "bf16", "fp8"):
            with self.subTest(recipe):
                self.flat(*(point(recipe=recipe, seqlen_q=1, seqlen_kv=n, heads=4, head_dim=128)
                            for n in (16384, 131072)))

    def test_batch(self):
        self.flat(*(point(seqlen_q=512, seqlen_kv=512, causal=True, batch=n) for n in (4, 64)))

    def test_portable_kernels(self):
        for recipe in ("int8", "bf16"):
            with self.subTest(recipe):
                self.flat(*(point(recipe=recipe, seqlen_q=16, seqlen_kv=n, isa="portable")
                            for n in (16384, 65536)))


if __name__ == "__main__":
    if not SCALING:
        print("SKIP: HEADROOM_SCALING does not name the program bench/scaling.c")
        sys.exit(77)
    if "-fsanitize" in os.environ.get("HEADROOM_TEST_FLAGS", ""):
        print("SKIP: a sanitizer's shadow memory is resident too")
        sys.exit(77)
    unittest.main()
