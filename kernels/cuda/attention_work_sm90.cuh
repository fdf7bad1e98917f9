/*
 * The work of the Hopper attention kernels, cut and ordered: a work item is 128 query rows of one
 * head of one sequence and the tiles of keys that any of them sees. Blocks are persistent, one a
 * multiprocessor, and take one of every gridDim.x items.
 *
 * Items come in sections of heads whose K and V fit the L2 cache together. In a section the last
 * rows come first: under a causal mask those see most keys, and short items at the end even out
 * when blocks finish. Every other round of a section the blocks come in reverse order, or the first
 * of them would get the longest item of every round: 9% more than the mean at 16k tokens of 16
 * heads with head_dim 128, 22% at 8 heads with 256; less than 1% now.
 */
#ifndef HEADROOM_ATTENTION_WORK_SM90_CUH
#define HEADROOM_ATTENTION_WORK_SM90_CUH

#include "attention_tile_sm90.cuh"

namespace attention_sm90
{

struct Order {
    int blocks;  /* of 128 rows that the longest sequence has */
    int units;   /* batch * num_heads */
    int section; /* units a section has */
    int items;   /* blocks * units: given, not computed, it takes no register of the kernels */
};

/* K and V of a section take at most this much of the H100's 50 MB L2 cache. */
constexpr int64_t SECTION_BYTES = 32 << 20;

inline Order order_work(const hr_sm90_args &args, int element_bytes)
{
    const int64_t unit_bytes = (int64_t)args.max_seqlen_kv * args.head_dim * 2 * element_bytes;
    const int group = args.num_heads / args.num_kv_heads;
    int64_t heads = unit_bytes > 0 ? SECTION_BYTES / unit_bytes : args.num_kv_heads;
    heads = heads < 1 ? 1 : heads > args.num_kv_heads ? args.num_kv_heads : heads;
    const int blocks = (args.max_seqlen_q + ROWS - 1) / ROWS, units = args.batch * args.num_heads;
    return {blocks, units, (int)heads * group, blocks * units};
}

struct Work {
    int head, kv_head, sequence;
    int first_q, seqlen_q;    /* first token of the sequence in total_q; its length */
    int first_kv, seqlen_kv;  /* the same of its keys */
    int row;                  /* first of the item, in the sequence */
    int shift;                /* seqlen_kv - seqlen_q */
    int tile_begin, tile_end; /* tiles of keys, taken in descending order; may be empty */
    int full_begin, full_end; /* tiles that no row's mask cuts */
};

/* Keys that row i of the sequence sees, [lo, hi) clipped to the sequence; lo >= hi: none. */
HR_DEVICE void row_range(const hr_sm90_args &args, const Work &work, int i, int *lo, int *hi)
{
    const int diagonal = i + work.shift;
    *lo = args.window_left == INT32_MAX ? 0 : max(diagonal - args.window_left, 0);
    *hi = args.window_right == INT32_MAX
              ? work.seqlen_kv
              : (int)min((int64_t)work.seqlen_kv, (int64_t)diagonal + args.window_right + 1);
}

/* The item that a block takes after `index`; its first is blockIdx.x. */
HR_DEVICE int next_item(Order order, int index)
{
    const int blocks = (int)gridDim.x, size = order.section * order.blocks;
    int begin = index / size * size;
    const int round = (index - begin) / blocks, within = (index - begin) % blocks;
    int place = round % 2 ? blocks - 1 - within : within; /* in the section's first round */
    index += 2 * (blocks - within) - 1;
    while (index >= begin + size) {
        begin += size;
        place = (place + blocks - size % blocks) % blocks;
        index = begin + place;
    }
    return index;
}

/* False: this item has no rows, because its sequence is shorter than the longest one. */
template <int KV>
HR_DEVICE bool find_work(const hr_sm90_args &args, Order order, int index, Work &w)
{
    const int section = index / (order.section * order.blocks);
    const int first_unit = section * order.section;
    const int units = min(order.section, order.units - first_unit);
    const int within = index - first_unit * order.blocks;
    const int unit = first_unit + within % units;
    w.row = (order.blocks - 1 - within / units) * ROWS;
    w.sequence = unit / args.num_heads;
    w.head = unit % args.num_heads;
    w.kv_head = w.head / (args.num_heads / args.num_kv_heads);
    w.first_q = args.cu_seqlens_q[w.sequence];
    w.seqlen_q = args.cu_seqlens_q[w.sequence + 1] - w.first_q;
    if (w.row >= w.seqlen_q) return false;
    w.first_kv = args.cu_seqlens_kv[w.sequence];
    w.seqlen_kv = args.cu_seqlens_kv[w.sequence + 1] - w.first_kv;
    w.shift = w.seqlen_kv - w.seqlen_q;

    int first_lo, first_hi, last_lo, last_hi; /* both limits grow with the row */
    row_range(args, w, w.row, &first_lo, &first_hi);
    row_range(args, w, min(w.row + ROWS, w.seqlen_q) - 1, &last_lo, &last_hi);
    w.tile_begin = first_lo / KV;
    w.tile_end = last_hi > first_lo ? (last_hi + KV - 1) / KV : w.tile_begin;
    w.full_begin = (last_lo + KV - 1) / KV;
    w.full_end = first_hi > 0 ? first_hi / KV : 0;
    return true;
}

} // namespace attention_sm90

#endif
