"""PyTorch's scaled_dot_product_attention on the CPU; variants f32, bf16 and f16.

Operands are [1, heads, seqlen, head_dim], contiguous; the flash kernel is PyTorch's own choice for
them. GQA goes through enable_gqa.
"""

import numpy
import peer_driver
import torch
from torch.nn.functional import scaled_dot_product_attention

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class Peer:
    def __init__(self, case):
        torch.set_num_threads(case.threads)
        dtype = DTYPES[case.variant]
        self.q, k, v = (torch.from_numpy(peer_driver.load(case, x)).unsqueeze(0).to(dtype)
                        for x in "qkv")
        self.kv = [(k, v)]
        self.causal = case.mask == "causal" and case.seqlen_q > 1
        self.gqa = case.heads != case.kv_heads
        self.o = None

    def version(self):
        return f"torch {torch.__version__}"

    def kv_bytes(self):
        return sum(x.numel() * x.element_size() for x in self.kv[0])

    def add_copy(self):
        self.kv.append(tuple(x.clone() for x in self.kv[0]))

    def run(self, copy):
        k, v = self.kv[copy]
        with torch.inference_mode():
            self.o = scaled_dot_product_attention(self.q, k, v, is_causal=self.causal,
                                                  enable_gqa=self.gqa)

    def output(self):
        o = self.o[0].transpose(0, 1).float().contiguous().numpy()
        return numpy.ascontiguousarray(o)


if __name__ == "__main__":
    peer_driver.main(Peer)
