#!/usr/bin/env python3
"""Writes formats.txt: what FP8, FP16 and BF16 codes mean and how floats round, by ml_dtypes.

    pip install numpy ml_dtypes xxhash
    python3 tests/vectors/make_vectors.py > tests/vectors/formats.txt

Lines, all numbers in hexadecimal:

    code FORMAT CODE BITS      the float with these bits is what an 8-bit code stands for, or "nan"
    decode FORMAT FIRST HASH   XXH3-64 of the float bits (u32, little-endian; NaN as 7fc00000)
                               of the 4096 16-bit codes from FIRST on
    encode FORMAT LOW HASH     XXH3-64 of the codes (u8 or u16, little-endian; NaN as the positive
                               code with all bits set) of the 65536 floats whose upper half is
                               0 .. ffff and whose lower half is LOW

Encoding saturates: inputs are clipped to the largest finite value before ml_dtypes rounds them.
Every tie of an FP8 format has LOW = 0 and its float neighbours have LOW = 1 and ffff; 8000 is
BF16's tie and 1000, 3000, ... are FP16's. NumPy itself converts FP16.
"""
import sys

import ml_dtypes
import numpy as np
import xxhash

FORMATS = [
    ("e4m3", ml_dtypes.float8_e4m3fn, np.uint8, 448.0, 0x7F),
    ("e5m2", ml_dtypes.float8_e5m2, np.uint8, 57344.0, 0x7F),
    ("f16", np.float16, np.uint16, 65504.0, 0x7FFF),
    ("bf16", ml_dtypes.bfloat16, np.uint16, float.fromhex("0x1.fep127"), 0x7FFF),
]
LOW_HALVES = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x5000, 0x7000, 0x7FFF, 0x8000, 0x8001, 0x9000,
              0xB000, 0xD000, 0xEFFF, 0xF000, 0xF001, 0xFFFF]


def digest(array):
    little_endian = array.astype(array.dtype.newbyteorder("<"))
    return f"{xxhash.xxh3_64_intdigest(little_endian.tobytes()):016x}"


def decoded(codes, kind):
    values = codes.view(kind).astype(np.float32)
    bits = values.view(np.uint32).copy()
    bits[np.isnan(values)] = 0x7FC00000
    return bits


def main():
    print(f"# make_vectors.py with numpy {np.__version__}, ml_dtypes {ml_dtypes.__version__}")
    for name, kind, code_type, largest, nan_code in FORMATS:
        if code_type is np.uint8:
            for code, bits in enumerate(decoded(np.arange(256).astype(np.uint8), kind)):
                print(f"code {name} {code:02x}", "nan" if bits == 0x7FC00000 else f"{bits:08x}")
        else:
            for first in range(0, 65536, 4096):
                codes = np.arange(first, first + 4096).astype(np.uint16)
                print(f"decode {name} {first:04x} {digest(decoded(codes, kind))}")
        for low in LOW_HALVES:
            bits = (np.arange(65536, dtype=np.uint32) << 16) | np.uint32(low)
            values = bits.view(np.float32)
            codes = np.clip(values, -largest, largest).astype(kind).view(code_type).copy()
            codes[np.isnan(values)] = nan_code
            print(f"encode {name} {low:04x} {digest(codes)}")


if __name__ == "__main__":
    sys.exit(main())
