"""FP8 flash attention in Triton, as a peer for gpu_peers.py: E4M3 Q, K, V and P with one scale each,
FP32 softmax and accumulator, V as it lies (the compiler transposes it)."""
import math


def make_attention():
    import torch
    import triton
    import triton.language as tl

    configs = [triton.Config({"TILE_M": m, "TILE_N": n}, num_warps=w, num_stages=s)
               for m, n, w, s in [(128, 64, 8, 3), (128, 128, 8, 2)]]

    @triton.autotune(configs, key=["DIM", "CAUSAL"])
    @triton.jit
    def kernel(q, k, v, o, logit_scale, v_scale, seqlen, heads, DIM: tl.constexpr,
               CAUSAL: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr):
        tile, batch_head = tl.program_id(0), tl.program_id(1)
        stride = heads * DIM
        base = (batch_head // heads).to(tl.int64) * seqlen * stride + (batch_head % heads) * DIM
        rows = tile * TILE_M + tl.arange(0, TILE_M)
        columns = tl.arange(0, TILE_N)
        channels = tl.arange(0, DIM)
        q_tile = tl.load(q + base + rows[:, None] * stride + channels[None, :],
                         mask=rows[:, None] < seqlen, other=0.0)
        largest = tl.full((TILE_M,), -float("inf"), tl.float32)
        total = tl.zeros((TILE_M,), tl.float32)
        sums = tl.zeros((TILE_M, DIM), tl.float32)
        end = tl.minimum(seqlen, (tile + 1) * TILE_M) if CAUSAL else seqlen
        for begin in range(0, end, TILE_N):
            keys = begin + columns
            inside = keys < seqlen
            k_tile = tl.load(k + base + keys[None, :] * stride + channels[:, None],
                             mask=inside[None, :], other=0.0)
            logits = tl.dot(q_tile, k_tile) * logit_scale
            seen = inside[None, :]
            if CAUSAL:
                seen = seen & (keys[None, :] <= rows[:, None])
            logits = tl.where(seen, logits, -float("inf"))
            new = tl.maximum(largest, tl.max(logits, 1))
            p = tl.exp2(logits - new[:, None])
            scale = tl.exp2(largest - new)
            total = total * scale + tl.sum(p, 1)
            v_tile = tl.load(v + base + keys[:, None] * stride + channels[None, :],
                             mask=inside[:, None], other=0.0)
            sums = sums * scale[:, None] + tl.dot((p * 256.0).to(tl.float8e4nv), v_tile)
            largest = new
        sums = sums * (v_scale / 256.0 / total)[:, None]
        tl.store(o + base + rows[:, None] * stride + channels[None, :], sums.to(tl.bfloat16),
                 mask=rows[:, None] < seqlen)

    def attention(q, k, v, q_scale, k_scale, v_scale, causal):
        batch, seqlen, heads, dim = q.shape
        out = torch.empty(q.shape, dtype=torch.bfloat16, device=q.device)
        logit_scale = q_scale * k_scale / math.sqrt(dim) * math.log2(math.e)
        grid = lambda meta: (triton.cdiv(seqlen, meta["TILE_M"]), batch * heads)
        kernel[grid](q, k, v, out, logit_scale, v_scale, seqlen, heads, DIM=dim, CAUSAL=causal)
        return out
    return attention
