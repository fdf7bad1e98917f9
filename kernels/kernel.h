/*
 * The contract between the plan (kernels/plan.c) and one attention kernel.
 *
 * The plan splits a run into tasks of (sequence, query head, tile_q rows), spreads them over
 * threads and calls the kernel's entry for each with everything it needs in hr_kernel_args. A
 * kernel is single-threaded, validates nothing (the plan did; kernels assert), allocates nothing
 * (scratch is handed in) and touches only rows [q_begin, q_end) of o and lse.
 *
 * A decode kernel (max_seqlen_q > 0) gets the query heads of one KV head together: its entry's
 * argument is an array of `heads` structs, alike but for q, lse_bias, alibi_slope, sink, o and lse.
 * Any other kernel gets one. heads * (q_end - q_begin) <= tile_q.
 */
#ifndef HEADROOM_KERNEL_H
#define HEADROOM_KERNEL_H

#include "headroom/attention.h"

/* The architecture this binary is for, as 0 or 1: which rows kernels.def has. */
#ifdef __x86_64__
#define HR_ARCH_X86_64 1
#else
#define HR_ARCH_X86_64 0
#endif
#ifdef __aarch64__
#define HR_ARCH_AARCH64 1
#else
#define HR_ARCH_AARCH64 0
#endif

/*
 * One packed operand as seen from one head and one sequence. `codes` points at the sequence's first
 * slot; ROWS layout rows are head_dim codes apart. `scale` points at the first scale of this head
 * and sequence: TENSOR and HEAD one value; TOKEN one a token; BLOCK one a block of `block` tokens;
 * CHANNEL head_dim values; GROUP head_dim / block values a token. zero_point runs parallel to
 * scale.
 *
 * Codes of ROWS layout, and scales by token or group, are found through hr_kernel_slot: K and V may
 * be in pages (HR_FEATURE_PAGED), and then codes and scale point at slot 0 of the head in page 0.
 * In the BLOCKS layouts a sixteenth of the slot is the number of the block.
 */
typedef struct hr_kernel_operand {
    const void *codes;
    const float *scale;
    const uint8_t *zero_point;
    hr_dtype dtype;
    hr_granularity granularity;
    int32_t block;
    const int32_t *pages; /* of this sequence; NULL: not paged */
    int32_t page_size;    /* tokens */
    int32_t page_shift;   /* token / page_size = token * page_inverse >> page_shift */
    uint64_t page_inverse;
    int64_t page_slots; /* from one page's slots of a head to the next page's */
} hr_kernel_operand;

/*
 * Puts an operand in pages. A division costs more than all else a kernel does for a token, so it
 * becomes a multiplication: with 2^(n-1) < page_size <= 2^n and inverse = ceil(2^(31+n) /
 * page_size), the error token * (inverse * page_size - 2^(31+n)) stays below 2^(31+n) for every
 * token below 2^31, and token * inverse below 2^63 (Granlund and Montgomery 1994, section 4).
 */
static inline void hr_kernel_set_pages(hr_kernel_operand *operand, const int32_t *pages,
                                       int32_t page_size, int64_t page_slots)
{
    int32_t n = 0;
    while ((int64_t)1 << n < page_size)
        n++;
    operand->pages = pages;
    operand->page_size = page_size;
    operand->page_shift = 31 + n;
    operand->page_inverse =
        ((UINT64_C(1) << operand->page_shift) + (uint64_t)page_size - 1) / (uint64_t)page_size;
    operand->page_slots = page_slots;
}

/* Where a token of the sequence is, in rows of codes and in tokens' scales. */
static inline int64_t hr_kernel_slot(const hr_kernel_operand *operand, int64_t token)
{
    if (!operand->pages) return token;
    const int64_t page = (int64_t)((uint64_t)token * operand->page_inverse >> operand->page_shift);
    return operand->pages[page] * operand->page_slots + (token - page * operand->page_size);
}

/* How many of the `count` tokens from `token` on have slots one after the other. */
static inline int32_t hr_kernel_run(const hr_kernel_operand *operand, int64_t token, int32_t count)
{
    if (!operand->pages) return count;
    const int64_t page = (int64_t)((uint64_t)token * operand->page_inverse >> operand->page_shift);
    const int64_t left = (page + 1) * operand->page_size - token;
    return left < count ? (int32_t)left : count;
}

/* Keys [begin, end) of a sequence that rows may see: where ranges end, a mask has a gap. */
typedef struct hr_kernel_range {
    int32_t begin, end;
    bool kept; /* the window does not apply to them */
} hr_kernel_range;

typedef struct hr_kernel_args {
    int32_t heads; /* elements of the array that this one is in: 1, but for decode kernels */
    int32_t head_dim;
    int32_t seqlen_q, seqlen_kv; /* of this sequence; seqlen_kv >= 1 */
    int32_t q_begin, q_end;      /* rows of this task, q_end - q_begin in 1 .. tile_q */
    /*
     * The task's part of the kv axis, 0 <= kv_begin < kv_end <= seqlen_kv. Inside it rows see keys
     * of these ranges, ascending and disjoint, and the kernel visits them one after the other
     * through hr_kernel_visit, each cut into tiles at multiples of tile_kv; it masks row by row.
     */
    int32_t kv_begin, kv_end;
    const hr_kernel_range *ranges;
    int32_t range_count;
    hr_kernel_operand q, k, v;
    hr_dtype p_dtype;
    uint32_t isa_mask;     /* the instruction sets the plan may use, beyond the kernel's own */
    const float *lse_bias; /* [seqlen_q] of this head, or NULL; added to LSE times softmax_scale */
    float softmax_scale;
    /*
     * Row i sees the keys from i + shift - window_left to i + shift + window_right; a limit that is
     * HR_WINDOW_NONE is absent. Causal is window_right 0; kept_right is 0 too with causal, else
     * HR_WINDOW_NONE, and stands for window_right in kept ranges, which have no window_left.
     */
    int32_t shift; /* seqlen_kv - seqlen_q */
    int32_t window_left, window_right, kept_right;
    float softcap;     /* 0: none */
    float alibi_slope; /* 0: none */
    float sink;        /* -inf: none; natural-log logit */
    float *o;          /* row i of this head at o + i * o_stride, i counted within the sequence */
    int64_t o_stride;
    float *lse; /* row i at lse + i * lse_stride; NULL: not wanted */
    int64_t lse_stride;
    /*
     * A number that no other KV head or sequence has, nor the same one in another run: by it a
     * kernel knows what it kept in scratch for the next task of the KV head. Never 0.
     */
    uint64_t kv_id;
    /*
     * This thread's, 64-byte aligned, as many bytes as the row's scratch function says; zeros
     * before a plan's first run, and then as the thread's last task of this plan left it.
     */
    void *scratch;
} hr_kernel_args;

enum { HR_WINDOW_NONE = INT32_MAX };

typedef void (*hr_kernel_entry)(const hr_kernel_args *args);
typedef size_t (*hr_kernel_scratch)(int32_t head_dim);

/* A row of kernels.def with its functions; hr_kernel_info is the first member. */
typedef struct hr_kernel {
    hr_kernel_info info;
    hr_kernel_entry entry; /* NULL in rows of a GPU */
    hr_kernel_scratch scratch_bytes;
    int device_kernel; /* hr_device_kernel_none in rows of the CPU */
} hr_kernel;

/* The rows compiled into this binary, best first. */
extern const hr_kernel hr_kernels[];
extern const int hr_kernels_count;

/*
 * Keys of a range that row i of the task sees, as a half-open range inside it; empty (lo >= hi)
 * when there are none. Both ends grow with the row. The one place where mask semantics is written
 * for the CPU kernels.
 */
static inline void hr_kernel_row_range(const hr_kernel_args *args, const hr_kernel_range *range,
                                       int32_t row, int32_t *lo, int32_t *hi)
{
    const int64_t diagonal = (int64_t)row + args->shift;
    const int32_t left = range->kept ? HR_WINDOW_NONE : args->window_left;
    const int32_t right = range->kept ? args->kept_right : args->window_right;
    int64_t first = range->begin, end = range->end;
    if (left != HR_WINDOW_NONE && diagonal - left > first) first = diagonal - left;
    if (right != HR_WINDOW_NONE && diagonal + right + 1 < end) end = diagonal + right + 1;
    *lo = (int32_t)(first < range->end ? first : range->end);
    *hi = (int32_t)(end > range->begin ? end : range->begin);
}

/* Range `index` less the keys that no row of the task sees; false when none are left. */
static inline bool hr_kernel_visit(const hr_kernel_args *args, int32_t index, hr_kernel_range *out)
{
    int32_t lo, hi, unused;
    *out = args->ranges[index];
    hr_kernel_row_range(args, out, args->q_begin, &lo, &unused);
    hr_kernel_row_range(args, out, args->q_end - 1, &unused, &hi);
    out->begin = lo > args->kv_begin ? lo : args->kv_begin;
    out->end = hi < args->kv_end ? hi : args->kv_end;
    return out->begin < out->end;
}

/* True when row i sees a key of the task. */
static inline bool hr_kernel_row_sees(const hr_kernel_args *args, int32_t row)
{
    for (int32_t i = 0; i < args->range_count; i++) {
        hr_kernel_range range;
        int32_t lo, hi;
        if (!hr_kernel_visit(args, i, &range)) continue;
        hr_kernel_row_range(args, &range, row, &lo, &hi);
        if (lo < hi) return true;
    }
    return false;
}

#endif
