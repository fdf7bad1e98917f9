/*
 * Attention over packed operands: plan once, run many times.
 *
 *     S = softmax_scale * Q K^T (+ softcap, ALiBi)
 *     O = softmax(S + mask) V
 *     LSE = ln sum exp(S + mask)
 *
 * A problem describes shapes and features; hr_plan_create chooses the kernel (kernels.def, best
 * first) and hr_plan_layouts tells packing what that kernel reads. Softmax statistics and the
 * accumulator are FP32. A fully masked row gives O = 0 and LSE = -inf; NaN propagates.
 */
#ifndef HEADROOM_ATTENTION_H
#define HEADROOM_ATTENTION_H

#include "headroom/device.h"
#include "headroom/kv_cache.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A block-sparse mask: for each block of block_q neighbouring queries of a sequence, the blocks of
 * block_kv neighbouring keys that it sees, as compressed sparse rows. Query i of its sequence is in
 * block row i / block_q, key j in block column j / block_kv.
 *
 *     rows = sum over sequences of ceil(seqlen_q / block_q)
 *     row_begin [heads * rows + 1]        row r of sequence b under head h of the mask is number
 *                                         h * rows + (rows of the sequences before b) + r
 *     columns [row_begin[heads * rows]]   of row n: columns[row_begin[n] .. row_begin[n + 1]),
 *                                         ascending, below ceil(seqlen_kv / block_kv)
 *
 * heads is 1 (all heads share the mask), num_kv_heads (so do the query heads of a KV head) or
 * num_heads. Arrays are the caller's when it fills the struct itself; those of the builders below
 * belong to the struct and are released with hr_block_mask_free.
 *
 * Blocks that are not seen are skipped, not computed. Kernels look at 64 keys at a time and cut
 * tasks at block_q: multiples of 64 for both, and block_q of at least 96, cost least.
 */
typedef struct hr_block_mask {
    int32_t block_q, block_kv;
    int32_t heads;
    int32_t rows;
    int64_t *row_begin;
    int32_t *columns;
} hr_block_mask;

/*
 * Which keys a query sees. With d = seqlen_kv - seqlen_q of its sequence (bottom-right alignment,
 * as FlashAttention 2.1 and later), query i sees key j when
 *
 *     (j <= i + d                         if causal: nothing lifts this)
 * and ( j < keep                          kept tokens: what StreamingLLM (Xiao et al. 2023) calls
 *                                         attention sinks
 *    or ( j >= i + d - window_left        if window_left >= 0
 *     and j <= i + d + window_right       if window_right >= 0
 *     and blocks shows key j to query i   if blocks ))
 */
typedef struct hr_mask {
    bool causal;
    int32_t window_left;         /* -1: no limit */
    int32_t window_right;        /* -1: no limit; must not be > 0 with causal */
    int32_t keep;                /* the first keys of each sequence; 0: none */
    const hr_block_mask *blocks; /* NULL: none; read by hr_plan_create, not kept */
} hr_mask;

/*
 * The problem. Start from hr_attention_problem_init. Arrays are read by hr_plan_create and copied;
 * sizes: cu_seqlens_* [batch + 1], alibi_slopes and sinks [num_heads] or NULL.
 */
typedef struct hr_attention_problem {
    int32_t batch;
    int32_t num_heads;
    int32_t num_kv_heads; /* divides num_heads; query head h reads h / (num_heads / num_kv_heads) */
    int32_t head_dim;
    const int32_t *cu_seqlens_q;
    const int32_t *cu_seqlens_kv;
    float softmax_scale; /* finite and > 0; usually 1 / sqrt(head_dim) */
    hr_mask mask;
    float softcap;             /* 0: none; else S = softcap * tanh(S / softcap) */
    const float *alibi_slopes; /* S += -slope * |i + d - j| */
    const float *sinks;        /* a learned logit that joins the softmax's denominator */
    /*
     * What Q and K are rotated by. CPU kernels read operands that packing has rotated so already
     * (headroom/rope.h); a run compares it with what the operands say of themselves. The oracle
     * takes unrotated q and k and rotates them: key j by j, query i by i + d.
     */
    hr_rope rope;
    /* K and V are read from a hr_kv_cache through a block table, which is copied. */
    hr_paging paging;
} hr_attention_problem;

/*
 * Full attention, softmax_scale 1/sqrt(head_dim), no features, batch 1. The caller still sets
 * cu_seqlens_q and cu_seqlens_kv, which are NULL after this.
 */
HR_API void hr_attention_problem_init(hr_attention_problem *problem, int32_t num_heads,
                                      int32_t num_kv_heads, int32_t head_dim);

/*
 * A pattern of blocks, block x block, as Longformer (Beltagy et al. 2020) and BigBird (Zaheer et
 * al. 2020) use them; a block row sees
 *
 *     window    blocks on each side of those its own queries' diagonal runs through, and these
 *     global    first blocks of the sequence; and the first `global` block rows see every block
 *     random    blocks more, drawn evenly from those it does not see yet (BigBird; 0 in Longformer)
 *
 * With causal, blocks above the diagonal are left out, and random ones are drawn below it.
 */
typedef struct hr_block_pattern {
    int32_t block;
    int32_t window, global, random;
    uint64_t seed; /* of the random blocks: the same on every machine */
    bool causal;
} hr_block_pattern;

/*
 * The mask of a pattern for sequences of these lengths (cu_seqlens_* [batch + 1]). heads: 1, or as
 * many as shall draw random blocks of their own. Release with hr_block_mask_free.
 */
HR_API hr_status hr_block_mask_from_pattern(const hr_block_pattern *pattern, int32_t heads,
                                            int32_t batch, const int32_t *cu_seqlens_q,
                                            const int32_t *cu_seqlens_kv,
                                            hr_block_mask *out) HR_NODISCARD;

/*
 * The mask of a map with a byte a block, not 0 where it is seen: map [heads][rows][columns], rows
 * as in hr_block_mask, columns = ceil(longest seqlen_kv / block_kv); bytes past the end of a
 * shorter sequence are ignored. Release with hr_block_mask_free.
 */
HR_API hr_status hr_block_mask_from_map(const uint8_t *map, int32_t block_q, int32_t block_kv,
                                        int32_t heads, int32_t batch, const int32_t *cu_seqlens_q,
                                        const int32_t *cu_seqlens_kv,
                                        hr_block_mask *out) HR_NODISCARD;

/* Releases what a builder made; the struct is zeroed. NULL is accepted. */
HR_API void hr_block_mask_free(hr_block_mask *mask);

/* What a problem can ask of a kernel, as bits; a kernel's row lists the ones it has. */
enum {
    HR_FEATURE_CAUSAL = 1 << 0,
    HR_FEATURE_WINDOW = 1 << 1,
    HR_FEATURE_VARLEN = 1 << 2, /* batch > 1 with unequal lengths, or any empty sequence */
    HR_FEATURE_GQA = 1 << 3,
    HR_FEATURE_SOFTCAP = 1 << 4,
    HR_FEATURE_ALIBI = 1 << 5,
    HR_FEATURE_SINKS = 1 << 6,
    HR_FEATURE_ROPE = 1 << 7,
    HR_FEATURE_PAGED = 1 << 8,
    HR_FEATURE_KEPT = 1 << 9, /* kept tokens beside a window or a block-sparse mask */
    HR_FEATURE_BLOCK_SPARSE = 1 << 10,
    HR_FEATURE_COUNT = 11
};

/* The name of one feature bit: "causal", ...; NULL for anything else. */
HR_API const char *hr_feature_name(uint32_t feature);

/* Instruction sets, in ascending order of preference within an architecture. */
typedef enum hr_isa {
    HR_ISA_PORTABLE = 0,
    HR_ISA_AVX2,
    HR_ISA_AVXVNNI, /* AVX2 and AVX-VNNI */
    HR_ISA_AVX512,
    HR_ISA_AVX512VNNI, /* AVX-512 F, BW, VL, DQ, VNNI, VBMI */
    HR_ISA_AVX512FP16, /* those and FP16 */
    HR_ISA_NEON,       /* Advanced SIMD with dot products and FP16 */
    HR_ISA_NEONI8MM,   /* those and 8-bit matrix products */
    HR_ISA_SM90,
    HR_ISA_COUNT
} hr_isa;

HR_API const char *hr_isa_name(hr_isa isa);

/*
 * Bit i set: this process can run hr_isa i. Honours the environment variable HEADROOM_ISA (names,
 * comma separated): only those, and always portable. An unknown name there gives 0 and a message in
 * hr_last_error, and hr_plan_create fails with it.
 */
HR_API uint32_t hr_isa_mask(void);

/* One row of kernels.def. Static storage. */
typedef struct hr_kernel_info {
    const char *name; /* "attention_int8_avx512vnni" */
    hr_isa isa;
    hr_dtype q_dtype, k_dtype, v_dtype, p_dtype;
    uint32_t q_granularities, k_granularities, v_granularities; /* bit 1 << hr_granularity */
    hr_layout q_layout, k_layout, v_layout;
    int32_t head_dim_multiple, head_dim_max;
    uint32_t features; /* HR_FEATURE_* bits */
    int32_t tile_q, tile_kv;
    /*
     * 0: any length. Else a decode kernel: the longest seqlen_q it takes; the query heads of a KV
     * head are rows of one tile, so that K and V are read once for all of them.
     */
    int32_t max_seqlen_q;
} hr_kernel_info;

HR_API int hr_kernel_count(void);
HR_API const hr_kernel_info *hr_kernel_at(int index); /* NULL when out of range */

/* What a kernel must do to serve a problem; built by hr_kernel_query_from. */
typedef struct hr_kernel_query {
    hr_recipe recipe;
    int32_t head_dim;
    int32_t seqlen_q; /* of the longest sequence; 0: any, which no decode kernel serves */
    uint32_t features;
    hr_layout k_layout, v_layout; /* of the cache, with HR_FEATURE_PAGED; else not looked at */
    const char *name;             /* NULL: any; else exactly this kernel */
} hr_kernel_query;

/*
 * Validates the problem and says what it asks of a kernel; name is NULL. The recipe is normalized.
 */
HR_API hr_status hr_kernel_query_from(const hr_attention_problem *problem, const hr_recipe *recipe,
                                      hr_kernel_query *out) HR_NODISCARD;

/*
 * The first row of kernels.def that serves the query with an ISA in isa_mask. Pure: reads neither
 * the machine nor the environment. HR_ERROR_UNSUPPORTED names the closest kernel and the first
 * thing it lacks, HR_ERROR_NOT_FOUND, for an unknown name, the kernels that serve the query.
 */
HR_API hr_status hr_kernel_find(const hr_kernel_query *query, uint32_t isa_mask,
                                const hr_kernel_info **out) HR_NODISCARD;

typedef enum hr_norm { HR_NORM_NONE = 0, HR_NORM_RMS, HR_NORM_LAYER } hr_norm;

/*
 * What follows attention in the same pass over a query tile, on all heads of a token together
 * (hidden = num_heads * head_dim), while they are in cache:
 *
 *     y = scale * O + residual                       the new residual stream
 *     out = y                                        HR_NORM_NONE
 *     out = y / sqrt(mean(y^2) + eps) * weight + bias                   HR_NORM_RMS
 *     out = (y - mean) / sqrt(mean((y - mean)^2) + eps) * weight + bias HR_NORM_LAYER
 *
 * in FP32. That is for models whose attention output needs no projection before the residual, or
 * has it folded into V; residual and stream are tensors of a run (hr_plan_tensors).
 */
typedef struct hr_epilogue {
    float scale; /* 1 leaves O as it is */
    hr_norm norm;
    float eps;
    const float *weight, *bias; /* [hidden] or NULL: 1 and 0; copied by hr_plan_create */
} hr_epilogue;

typedef struct hr_plan hr_plan; /* opaque; immutable after creation; one run at a time */

typedef struct hr_plan_options {
    const char *kernel; /* NULL: the best one */
    uint32_t isa_mask;  /* 0: hr_isa_mask(); else the instruction sets allowed among those */
    int32_t threads;    /* 0: hr_machine_threads; 1 when the caller's own threads each run a plan */
    hr_device device;   /* where operands and outputs are and kernels run; see headroom/device.h */
    void *stream;       /* cudaStream_t that runs are queued on; NULL on the CPU */
    /*
     * Chunks to split the kv axis into: partial results of the chunks are computed side by side and
     * then merged in order. 1: never; 0: so many that 16 or fewer queries over few heads and many
     * keys still occupy many threads. Depends on the problem and this option only, so results are
     * the same bits for any number of threads.
     */
    int32_t kv_splits;
    /* NULL: none. With one, a thread finishes all heads of a query tile. CPU kernels only. */
    const hr_epilogue *epilogue;
} hr_plan_options;

/*
 * Validates the problem, chooses the kernel and lays out the work. options may be NULL. Release
 * with hr_plan_free.
 *
 * The environment variable HEADROOM_LOG ("stderr", or a file to append to) makes it explain its
 * choice there: the one case in which the library writes anything the caller did not hand it.
 */
HR_API hr_status hr_plan_create(const hr_attention_problem *problem, const hr_recipe *recipe,
                                const hr_plan_options *options, hr_plan **out) HR_NODISCARD;
HR_API void hr_plan_free(hr_plan *plan);

HR_API const hr_kernel_info *hr_plan_kernel(const hr_plan *plan);
HR_API hr_layer_layouts hr_plan_layouts(const hr_plan *plan);

/*
 * The layouts that a cache of this recipe's K and V decodes fastest from on this machine:
 * HR_LAYOUT_BLOCKS_K and _V where kernels read these for any problem, prefill included, else
 * HR_LAYOUT_ROWS. For hr_kv_cache_options and then hr_paging. Follows hr_isa_mask.
 */
HR_API hr_status hr_kv_cache_layouts(const hr_recipe *recipe, int32_t head_dim, hr_layout *k,
                                     hr_layout *v) HR_NODISCARD;

/* Floating-point operations the mask leaves: 4 * head_dim * num_heads * visible (i, j) pairs. */
HR_API double hr_plan_flops(const hr_plan *plan);

/*
 * Runs a plan whose problem has no paging. o: F32 [total_q, num_heads, head_dim], strides free but
 * the last, which is 1; on a GPU also BF16, its address a multiple of 8 and its strides even. lse:
 * F32 [total_q, num_heads] or NULL. Packed operands must have the plan's shapes, recipe and
 * layouts: HR_ERROR_MISMATCH says which differs. Rows of sequences without keys are O = 0, LSE =
 * -inf (with a sink: LSE = the sink).
 */
HR_API hr_status hr_plan_run(hr_plan *plan, const hr_packed_layer *operands, const hr_tensor *o,
                             const hr_tensor *lse) HR_NODISCARD;

/*
 * Runs of a plan, on whatever device it is, for a caller that has operands and wants results in
 * host memory: operands are copied to the device once, and O and LSE live there. On the CPU the
 * operands are used in place and must outlive the run, as the plan must.
 *
 *     create -> (start, any number of times) -> wait or fetch -> free
 *
 * start is hr_plan_run, and returns on a GPU when the work is queued; wait returns when it is done;
 * fetch waits and copies O [total_q, num_heads, head_dim] and LSE [total_q, num_heads], either of
 * which may be NULL.
 */
typedef struct hr_device_run hr_device_run;
HR_API hr_status hr_device_run_create(hr_plan *plan, const hr_packed_layer *operands,
                                      hr_device_run **out) HR_NODISCARD;
HR_API hr_status hr_device_run_start(hr_device_run *run) HR_NODISCARD;
HR_API hr_status hr_device_run_wait(hr_device_run *run) HR_NODISCARD;
HR_API hr_status hr_device_run_fetch(hr_device_run *run, float *o, float *lse) HR_NODISCARD;
HR_API void hr_device_run_free(hr_device_run *run);

/*
 * Runs a plan whose problem has paging: K and V are read from the cache, through the problem's
 * block table. q as for hr_plan_run: packed in the plan's layout, by the cache's rope and hadamard
 * seed, and with the cache's k_mean where keys are smoothed. The cache must have the plan's heads,
 * head_dim, page_size, rope, layouts and K and V recipes. HR_ERROR_MISMATCH says which differs, and
 * HR_ERROR_INVALID_ARGUMENT which page the cache does not have. Results have the same bits as those
 * of the same kernel on the same codes in contiguous operands.
 */
HR_API hr_status hr_plan_run_paged(hr_plan *plan, const hr_packed *q, const hr_kv_cache *cache,
                                   const hr_tensor *o, const hr_tensor *lse) HR_NODISCARD;

/*
 * Everything a run can read and write. Without paging: operands; with: q and cache, and where the
 * recipe has a residual, q_recent: Q in BF16 (recipe bf16, HR_LAYOUT_ROWS, the same rope). o and
 * lse as for hr_plan_run. With an epilogue, o is `out`, and o, residual and stream are F32 or BF16,
 * each on its own, [total_q, num_heads, head_dim] with the hidden dimension contiguous: strides
 * (any, head_dim, 1). residual and stream may be the same tensor; o may be either when both dtypes
 * are the same. Zero-initialize, then set what applies.
 */
typedef struct hr_plan_tensors {
    const hr_packed_layer *operands;
    const hr_packed *q, *q_recent;
    const hr_kv_cache *cache;
    const hr_tensor *o, *lse;
    const hr_tensor *residual; /* read by the epilogue; NULL: 0 */
    const hr_tensor *stream;   /* y is written here; NULL: not wanted */
} hr_plan_tensors;

/*
 * An epilogue by itself, on an O that lies in memory: gives the same bits as fused into a plan that
 * gives this O. o: F32; residual, stream (NULL: none) and out: F32 or BF16, all [total_q,
 * num_heads, head_dim] with the hidden dimension contiguous, in host memory.
 */
HR_API hr_status hr_epilogue_run(const hr_epilogue *epilogue, const hr_tensor *o,
                                 const hr_tensor *residual, const hr_tensor *stream,
                                 const hr_tensor *out) HR_NODISCARD;

/* Runs any plan; hr_plan_run and hr_plan_run_paged are this with the fields they name. */
HR_API hr_status hr_plan_run_tensors(hr_plan *plan, const hr_plan_tensors *tensors) HR_NODISCARD;

/*
 * Packing on a GPU: Q, K and V in BF16 to what the GPU's kernels read (Q and K in HR_LAYOUT_ROWS, V
 * in HR_LAYOUT_SM90_V) in one launch, with the same codes and scales, bit for bit, as hr_pack_layer
 * makes of the same values; lse_bias may differ in its last bit. Takes operands in BF16, in I8 with
 * scales per tensor, head, token or block, and in E4M3 with scales per tensor, head, channel or
 * block, blocks being a multiple of 128 tokens; head_dim a multiple of 16; HR_ERROR_UNSUPPORTED
 * names anything else. Dynamic scales other than per token take a second launch. Made for the
 * shapes and rope of a problem and used for any number of runs, which allocate nothing.
 */
typedef struct hr_device_packer hr_device_packer; /* opaque */

typedef struct hr_device_pack_options {
    const hr_attention_problem *problem; /* shapes, sequences and rope; the rest is not read */
    const hr_recipe *recipe;
    /* Host memory; k_mean is required where K is smoothed. Or NULL. */
    const hr_layer_scales *scales;
    const int32_t *q_positions, *k_positions; /* host memory, of every token; with rope */
    void *stream;                             /* that runs are queued on */
} hr_device_pack_options;

HR_API hr_status hr_device_packer_create(const hr_device_pack_options *options,
                                         hr_device_packer **out) HR_NODISCARD;
HR_API void hr_device_packer_free(hr_device_packer *packer);

/* Queues the launches. q, k, v: BF16 on the GPU, 16-byte aligned, strides multiples of 8 but the
 * last, which is 1. */
HR_API hr_status hr_device_packer_run(hr_device_packer *packer, const hr_tensor *q,
                                      const hr_tensor *k, const hr_tensor *v) HR_NODISCARD;

/* What the last run made, for hr_plan_run on the same stream; the packer's, overwritten by runs. */
HR_API const hr_packed_layer *hr_device_packer_layer(const hr_device_packer *packer);

/* Waits for the runs so far; HR_ERROR_NUMERIC when one of them met a NaN or infinity. */
HR_API hr_status hr_device_packer_check(hr_device_packer *packer) HR_NODISCARD;

/*
 * Merges attention states of the same queries over disjoint sets of keys, as split and distributed
 * KV give them (FlashDecoding; Milakov and Gimelshein 2018, section 3.1):
 *
 *     LSE = ln sum over p of exp(LSE_p)        O = sum over p of exp(LSE_p - LSE) O_p
 *
 * o_parts: F32 [parts, total_q, num_heads, head_dim]; lse_parts: F32 [parts, total_q, num_heads],
 * parts >= 1. sinks: [num_heads] logits that join the sum here, and must not have joined a part, or
 * NULL. o: F32 [total_q, num_heads, head_dim]; lse: F32 [total_q, num_heads] or NULL; neither may
 * overlap the parts. Strides are free but the last ones of o_parts and o, which are 1. A part that
 * saw no key has O_p = 0, LSE_p = -inf; a row of such parts alone gives O = 0, LSE = -inf (or the
 * sink). NaN propagates. Sums are in double precision, in ascending order of p.
 */
HR_API hr_status hr_merge_states(const hr_tensor *o_parts, const hr_tensor *lse_parts,
                                 const float *sinks, const hr_tensor *o,
                                 const hr_tensor *lse) HR_NODISCARD;

/*
 * The FP64 oracle: naive two-pass softmax in double precision. q, k, v: F64, F32, F16 or BF16
 * [total, heads, head_dim], any strides. o: F64 [total_q, num_heads, head_dim]; lse: F64 [total_q,
 * num_heads] or NULL. Supports every feature of the problem but paging. O(total_q * seqlen_kv *
 * head_dim) time; memory for one head in double precision and a row of weights a thread.
 */
HR_API hr_status hr_reference_attention(const hr_attention_problem *problem, const hr_tensor *q,
                                        const hr_tensor *k, const hr_tensor *v, double *o,
                                        double *lse) HR_NODISCARD;

/*
 * The same in FP32 on a GPU, for problems that are too long for the oracle: plain, slow and right
 * to FP32's rounding. q, k, v, o, lse: F32 in the GPU's memory, contiguous, shaped as above. Causal
 * masks, windows, GQA and varlen only; head_dim up to 256. Returns when it is done.
 */
HR_API hr_status hr_device_reference_attention(const hr_attention_problem *problem,
                                               const hr_tensor *q, const hr_tensor *k,
                                               const hr_tensor *v, const hr_tensor *o,
                                               const hr_tensor *lse) HR_NODISCARD;

#ifdef __cplusplus
}
#endif

#endif
