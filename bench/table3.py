#!/usr/bin/env python3
"""At which shape was FlashAttention-3's table 3 measured?

Shah et al. 2024, table 3, gives the root mean square error of O with Q, K and V drawn from N(0, 1) +
N(0, 100) Bernoulli(0.001): 2.4e-2 for FP8 by tensor, the same with scales by block, 9.3e-3 with
rotation, 9.1e-3 with both; without saying head_dim and length. This computes the same four with all
arithmetic in FP64 but for the rounding of Q, K, V and P to E4M3, what a kernel without any error of
its own would have, for several shapes. Needs PyTorch: build/venv-peers has it after bench/peers/setup.sh.

    python3 bench/table3.py [--head-dims 64,128,256] [--keys 2048,8192] [--seeds 4] [--queries 512]
"""
import argparse

import torch


def draw(rows, head_dim, generator):
    """N(0, 1), and every thousandth element (in the mean) with N(0, 100) added."""
    shape = (rows, head_dim)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    outlier = torch.randn(shape, generator=generator, dtype=torch.float64) * 10
    return normal + outlier * (torch.rand(shape, generator=generator) < 0.001)


def to_e4m3(x, scale):
    return (x / scale).float().to(torch.float8_e4m3fn).double() * scale


def by_tensor(x):
    return to_e4m3(x, x.abs().max() / 448)


def by_block(x, rows=128):
    return torch.cat([by_tensor(block) for block in x.split(rows)])


def rotate(x, signs):
    """Random signs, then the Hadamard transform: what "incoherent processing" does."""
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while hadamard.shape[0] < x.shape[1]:
        hadamard = torch.kron(hadamard, torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double())
    return (x * signs) @ hadamard / x.shape[1] ** 0.5


def attend(q, k, v, weights=lambda x: x):
    s = q @ k.T / q.shape[1] ** 0.5
    p = torch.exp(s - s.max(-1, keepdim=True).values)
    return weights(p) @ v / p.sum(-1, keepdim=True)


def errors(head_dim, keys, queries, seeds):
    """Root mean square errors by tensor, by block, rotated, rotated by block."""
    squares = torch.zeros(4, dtype=torch.float64)
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (draw(keys, head_dim, generator) for _ in range(3))
        signs = torch.randint(0, 2, (head_dim,), generator=generator).double() * 2 - 1
        exact = attend(q[:queries], k, v)
        i = 0
        for turn in (lambda x: x, lambda x: rotate(x, signs)):
            for quantize in (by_tensor, by_block):
                o = attend(quantize(turn(q))[:queries], quantize(turn(k)), quantize(v),
                           lambda p: to_e4m3(p, 1 / 448))
                squares[i] += ((o - exact) ** 2).mean() / seeds
                i += 1
    return squares.sqrt().tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    numbers = lambda text: [int(x) for x in text.split(",")]
    parser.add_argument("--head-dims", type=numbers, default=[64, 128, 256])
    parser.add_argument("--keys", type=numbers, default=[2048, 8192])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--queries", type=int, default=512)
    options = parser.parse_args()
    print("head_dim   keys  by tensor  by block   rotated  rotated by block")
    print("  paper              2.4e-2    2.4e-2    9.3e-3    9.1e-3")
    for head_dim in options.head_dims:
        for keys in options.keys:
            found = errors(head_dim, keys, options.queries, options.seeds)
            print(f"{head_dim:7d} {keys:7d}   " + "  ".join(f"{x:8.1e}" for x in found), flush=True)


if __name__ == "__main__":
    main()
