/*
 * What a mask means, and the ranges of keys that kernels visit.
 *
 * hr_mask_row says key by key what headroom/attention.h says; the oracle goes by it. Plans cut the
 * keys of a sequence, or of one row of its block mask, into ranges instead:
 *
 *     0 .. keep ........ run of seen blocks ...... another ......     seqlen_kv
 *     [ kept  )          [ range         )        [ range )
 *
 * which depend on the problem alone, never on a kernel's tiles: kernels of an exact recipe treat
 * each range's part of a softmax tile as a tile of its own and so still agree bit for bit.
 */
#include "memory.h"
#include "plan.h"
#include "status_internal.h"

static bool shows_block(const hr_block_mask *mask, int64_t row, int32_t column)
{
    int64_t low = mask->row_begin[row], high = mask->row_begin[row + 1];
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (mask->columns[middle] == column) return true;
        if (mask->columns[middle] < column)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

void hr_mask_row(const hr_attention_problem *problem, int32_t sequence, int32_t head, int32_t query,
                 bool *visible)
{
    const hr_mask *mask = &problem->mask;
    const int32_t *q = problem->cu_seqlens_q + sequence, *kv = problem->cu_seqlens_kv + sequence;
    const int32_t seqlen_kv = kv[1] - kv[0];
    const int64_t diagonal = (int64_t)query + seqlen_kv - (q[1] - q[0]);
    const int64_t row =
        mask->blocks ? hr_block_mask_row(mask->blocks, problem, sequence, head, query) : 0;
    for (int32_t j = 0; j < seqlen_kv; j++) {
        bool seen = mask->window_left < 0 || j >= diagonal - mask->window_left;
        seen = seen && (mask->window_right < 0 || j <= diagonal + mask->window_right);
        seen =
            seen && (!mask->blocks || shows_block(mask->blocks, row, j / mask->blocks->block_kv));
        visible[j] = (seen || j < mask->keep) && (!mask->causal || j <= diagonal);
    }
}

/* What the building passes append to: counted first, then filled. */
typedef struct range_list {
    hr_kernel_range *range; /* NULL: count only */
    int64_t count;
} range_list;

/* Keys [begin, end), if there are any. */
static void add_range(range_list *list, int32_t begin, int32_t end, bool kept)
{
    if (begin >= end) return;
    if (list->range) list->range[list->count] = (hr_kernel_range){begin, end, kept};
    list->count++;
}

/* `before`: keys of the sequence that come before these. */
static int32_t kept_keys(const hr_mask *mask, int32_t before, int32_t seqlen_kv)
{
    const bool hides = mask->blocks || mask->window_left >= 0 || mask->window_right >= 0;
    const int32_t kept = mask->keep - before;
    return !hides || kept < 0 ? 0 : kept < seqlen_kv ? kept : seqlen_kv;
}

/*
 * One row of the block mask: a range for each run of neighbouring columns. Blocks are of the whole
 * sequence, in which `before` keys come before these.
 */
static void add_block_row(range_list *list, const hr_block_mask *mask, int64_t row, int32_t before,
                          int32_t kept, int32_t seqlen_kv)
{
    add_range(list, 0, kept, true);
    for (int64_t i = mask->row_begin[row], end = mask->row_begin[row + 1]; i < end;) {
        int64_t next = i + 1;
        while (next < end && mask->columns[next] == mask->columns[next - 1] + 1)
            next++;
        const int64_t from = (int64_t)mask->columns[i] * mask->block_kv - before;
        const int64_t to = ((int64_t)mask->columns[next - 1] + 1) * mask->block_kv - before;
        add_range(list, (int32_t)(from > kept ? from : kept),
                  (int32_t)(to < seqlen_kv ? to : seqlen_kv), false);
        i = next;
    }
}

/* Lists in the order of hr_plan_range_list; begin [lists + 1] is filled when not NULL. */
static int64_t make_lists(const hr_plan *plan, range_list *list, int64_t *begin)
{
    const hr_attention_problem *problem = &plan->problem;
    const hr_mask *mask = &problem->mask;
    const hr_block_mask *blocks = mask->blocks;
    int64_t number = 0;
    for (int32_t head = 0; head < (blocks ? blocks->heads : 1); head++)
        for (int32_t b = 0; b < problem->batch; b++) {
            const int32_t seqlen_q = problem->cu_seqlens_q[b + 1] - problem->cu_seqlens_q[b];
            const int32_t seqlen_kv = problem->cu_seqlens_kv[b + 1] - problem->cu_seqlens_kv[b];
            const int32_t before = plan->keys_before ? plan->keys_before[b] : 0;
            const int32_t kept = kept_keys(mask, before, seqlen_kv);
            const int64_t rows =
                blocks ? ((int64_t)seqlen_q + blocks->block_q - 1) / blocks->block_q : 1;
            for (int64_t row = 0; row < rows; row++, number++) {
                if (begin) begin[number] = list->count;
                if (blocks) {
                    add_block_row(list, blocks, number, before, kept, seqlen_kv);
                } else {
                    add_range(list, 0, kept, true);
                    add_range(list, kept, seqlen_kv, false);
                }
            }
        }
    if (begin) begin[number] = list->count;
    return number;
}

int64_t hr_plan_range_list(const hr_plan *plan, int32_t sequence, int32_t head, int32_t query)
{
    const hr_attention_problem *problem = &plan->problem;
    if (!problem->mask.blocks) return sequence;
    return hr_block_mask_row(problem->mask.blocks, problem, sequence, head, query);
}

hr_status hr_plan_build_ranges(hr_plan *plan)
{
    range_list list = {0};
    const int64_t lists = make_lists(plan, &list, NULL);
    plan->ranges = hr_alloc((size_t)list.count, sizeof *plan->ranges);
    plan->range_begin = hr_alloc((size_t)lists + 1, sizeof *plan->range_begin);
    if (!plan->ranges || !plan->range_begin) return HR_ERROR_OUT_OF_MEMORY;
    list = (range_list){.range = plan->ranges};
    make_lists(plan, &list, plan->range_begin);
    return HR_OK;
}
