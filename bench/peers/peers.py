"""What is measured against what: the rows (shapes) and the participants (a driver and a variant).

Where a peer's driver is not built or its package not installed, its participants are left out, and
run.py says so.
"""

import dataclasses
import fnmatch
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
BUILD = ROOT / "build" / "peers"
PREFIX = ROOT / "build" / "venv-peers"
COLD_MIB = 640  # of K and V that a cold row goes through; more than any last-level cache share


@dataclasses.dataclass(frozen=True)
class Row:
    """One attention problem. cold: K and V come from memory, not from a cache."""

    phase: str
    head_dim: int
    seqlen_q: int
    seqlen_kv: int
    num_heads: int
    num_kv_heads: int
    mask: str
    cold_mib: int

    @property
    def name(self):
        if self.phase == "decode":
            heat = "cold" if self.cold_mib else "warm"
            return (f"decode-d{self.head_dim}-{self.seqlen_kv // 1024}k-"
                    f"{self.num_heads}x{self.num_kv_heads}-{heat}")
        return f"prefill-d{self.head_dim}-{self.seqlen_q // 1024}k-{self.mask}"

    @property
    def inputs(self):
        """The files of its inputs, shared by rows that differ in the mask only."""
        return BUILD / "inputs" / (f"d{self.head_dim}-q{self.seqlen_q}-kv{self.seqlen_kv}-"
                                   f"h{self.num_heads}-{self.num_kv_heads}")

    @property
    def flops(self):
        """Multiplies and adds the mask leaves; causal rows have seqlen_q == seqlen_kv."""
        pairs = self.seqlen_q * self.seqlen_kv
        if self.mask == "causal":
            pairs = self.seqlen_q * (self.seqlen_q + 1) // 2
        return 4 * self.head_dim * self.num_heads * pairs

    @property
    def f16_bytes(self):
        """What K and V would take in 16 bits: the unit of decode's GB/s, whatever the format."""
        return 4 * self.head_dim * self.num_kv_heads * self.seqlen_kv


ROWS = [Row("prefill", d, n, n, 8, 8, mask, 0)
        for d in (64, 128) for n in (1024, 4096) for mask in ("full", "causal")]
ROWS += [Row("decode", 128, 1, 32768, 8, kv, "full", cold)
         for kv in (8, 2) for cold in (0, COLD_MIB)]
ROWS += [Row("decode", 128, 1, 4096, 8, kv, "full", 0) for kv in (8, 2)]


@dataclasses.dataclass(frozen=True)
class Participant:
    """bits: of K and V. phases, rows (a glob): where it makes sense. one_thread: whatever the burst
    runs on."""

    name: str
    variant: str
    command: tuple
    bits: int
    phases: tuple = ("prefill", "decode")
    one_thread: bool = False
    rows: str = "*"

    def takes(self, row):
        return row.phase in self.phases and fnmatch.fnmatch(row.name, self.rows)

    @property
    def family(self):
        return self.name.split("/")[0]

    @property
    def needs(self):
        """The file that must be there for it to run."""
        return pathlib.Path(self.command[-1])


def headroom(build):
    driver = (str(build / "peer_headroom"),)
    recipes = (("int8", 8), ("int4", 4), ("fp8", 8), ("bf16", 16))
    found = [Participant(f"headroom/{v}", v, driver, bits) for v, bits in recipes]
    found += [Participant(f"headroom-1/{v}", v, driver, bits, one_thread=True)
              for v, bits in recipes[:2]]
    found += [Participant("peak/int8", "peak-int8", driver, 8, ("prefill",)),
              Participant("peak/read", "read", driver, 0, ("decode",))]
    return found


def public_peers():
    python = str(PREFIX / "bin" / "python")
    torch = (python, str(HERE / "peer_torch.py"))
    openvino = (python, str(HERE / "peer_openvino.py"))
    paged = (python, str(HERE / "peer_openvino_paged.py"))
    onnxruntime = (python, str(HERE / "peer_onnxruntime.py"))
    onednn = (str(BUILD / "onednn" / "peer_onednn"),)
    found = []
    for name, formats in (("ggml", (("f16", 16), ("q8_0", 8), ("q4_0", 4))),
                          ("ik_llama.cpp", (("f16", 16), ("q8_0", 8), ("q8_KV", 8), ("q4_0", 4)))):
        driver = (str(BUILD / name / "peer_ggml"),)
        found += [Participant(f"{name}/{v}", v, driver, bits) for v, bits in formats]
    found += [Participant("onednn/f32", "f32", onednn, 32),
              Participant("onednn/f16", "f16", onednn, 16),
              Participant("torch/f32", "f32", torch, 32),
              Participant("torch/bf16", "bf16", torch, 16),
              Participant("openvino/f32", "f32", openvino, 32),
              Participant("openvino/bf16", "bf16", openvino, 16, ("prefill",)),
              Participant("openvino/u8", "u8", openvino, 8, ("decode",)),
              Participant("openvino/paged-f32", "paged-f32", paged, 32, ("prefill",),
                          rows="*-causal"),
              Participant("openvino/paged-bf16", "paged-bf16", paged, 16, ("decode",)),
              Participant("openvino/paged-u8", "paged-u8", paged, 8, ("decode",)),
              Participant("openvino/paged-u4", "paged-u4", paged, 4, ("decode",)),
              Participant("onnxruntime/f32", "f32", onnxruntime, 32),
              Participant("onnxruntime/f16", "f16", onnxruntime, 16),
              Participant("onnxruntime/int8", "int8", onnxruntime, 8, ("decode",)),
              Participant("onnxruntime/int4", "int4", onnxruntime, 4, ("decode",))]
    return found


def installed(participant):
    """Whether its driver and, for a Python one, its package are there."""
    if not all(os.path.exists(word) for word in participant.command):
        return False
    if participant.command[0].endswith("python"):
        return any((PREFIX / "lib").glob(f"python3*/site-packages/{participant.family}"))
    return True


def command(participant, row, threads):
    return [*participant.command, "--variant", participant.variant,
            "--head-dim", str(row.head_dim), "--seqlen-q", str(row.seqlen_q),
            "--seqlen-kv", str(row.seqlen_kv), "--heads", str(row.num_heads),
            "--kv-heads", str(row.num_kv_heads), "--mask", row.mask,
            "--threads", str(1 if participant.one_thread else threads),
            "--cold", str(row.cold_mib), "--inputs", str(row.inputs)]


def environment(participant, threads):
    """Idle drivers must not spin for long; all allocators use huge pages alike."""
    count = 1 if participant.one_thread else threads
    variables = dict(os.environ, OMP_NUM_THREADS=str(count), KMP_BLOCKTIME="1",
                     GLIBC_TUNABLES="glibc.malloc.hugetlb=1",
                     PYTHONDONTWRITEBYTECODE="1")
    if participant.family == "onednn":
        # PyPI's oneDNN runs on SYCL, whose CPU device is an OpenCL driver in the same folder.
        library = PREFIX / "lib"
        variables.update(LD_LIBRARY_PATH=str(library), ONEAPI_DEVICE_SELECTOR="opencl:cpu",
                         OCL_ICD_FILENAMES=str(library / "libintelocl.so"))
    return variables


if __name__ == "__main__":
    sys.exit("a module of run.py")
