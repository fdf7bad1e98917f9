/*
 * What an integer kernel keeps in scratch from one task for the next must be of the same keys: runs
 * of several tasks, KV heads and sequences have the bits of each task alone in a plan of its own,
 * and runs of one plan on other data at the same addresses those of a new plan.
 */
#include "kernel.h"
#include "plan_setup.h"

enum { HEADS = 4, HEAD_DIM = 16, PIECE = 96 };

static bool is_integer_row(const hr_kernel_info *row)
{
    return hr_isa_mask() >> row->isa & 1 && row->q_dtype == HR_DTYPE_I8 &&
           row->p_dtype != HR_DTYPE_BF16 && row->p_dtype != HR_DTYPE_E4M3 &&
           row->max_seqlen_q == 0 && row->isa != HR_ISA_SM90;
}

/* Gaussian tokens of very different size, so that no two tiles have the same scales. */
static void refill(plan_setup *s, uint64_t seed)
{
    check_random random = {seed};
    hr_tensor *tensors[3] = {&s->q, &s->k, &s->v};
    for (int i = 0; i < 3; i++) {
        float *data = tensors[i]->data;
        const int64_t vectors = hr_tensor_size(tensors[i]) / HEAD_DIM;
        for (int64_t v = 0; v < vectors; v++) {
            const float size = (float)exp2(random_normal(&random));
            for (int c = 0; c < HEAD_DIM; c++)
                data[v * HEAD_DIM + c] = size * (float)random_normal(&random);
        }
    }
}

static plan_setup *make(const hr_kernel_info *row, const int32_t *seqlens_q,
                        const int32_t *seqlens_kv, int32_t batch, int32_t kv_heads)
{
    plan_setup *s = calloc(1, sizeof *s);
    cr_assert_not_null(s);
    for (int32_t b = 0; b < batch; b++) {
        s->cu_seqlens_q[b + 1] = s->cu_seqlens_q[b] + seqlens_q[b];
        s->cu_seqlens_kv[b + 1] = s->cu_seqlens_kv[b] + seqlens_kv[b];
    }
    setup_fill(s, "int8", batch, HEADS, kv_heads, HEAD_DIM);
    recipe_for(row, &s->recipe);
    refill(s, 7);
    return s;
}

static hr_plan *make_packed_plan(plan_setup *s, const hr_kernel_info *row, int32_t threads)
{
    const hr_plan_options options = {.kernel = row->name, .threads = threads, .kv_splits = 1};
    hr_plan *plan = setup_plan(s, &options);
    hr_layer_layouts layouts = hr_plan_layouts(plan);
    setup_pack(s, &layouts);
    return plan;
}

/* Rows [first, first + count) of one head of `from`, as the only head of `to`. */
static void take_rows(const hr_tensor *from, int32_t head, int32_t first, int32_t count,
                      hr_tensor *to)
{
    for (int32_t row = 0; row < count; row++)
        memcpy((float *)to->data + row * HEAD_DIM,
               (const float *)from->data + (first + row) * from->stride[0] + head * from->stride[1],
               HEAD_DIM * sizeof(float));
}

/* Some rows of a head of a sequence, computed alone, against s->o. */
static void expect_alone(const plan_setup *s, const hr_kernel_info *row, int32_t sequence,
                         int32_t head, int32_t first, int32_t count)
{
    const int32_t first_kv = s->cu_seqlens_kv[sequence], first_q = s->cu_seqlens_q[sequence];
    const int32_t keys = s->cu_seqlens_kv[sequence + 1] - first_kv;
    const int32_t kv_head = head / (HEADS / s->problem.num_kv_heads);
    plan_setup *alone = setup_make("int8", 1, 1, HEAD_DIM, count, keys);
    recipe_for(row, &alone->recipe);
    take_rows(&s->q, head, first_q + first, count, &alone->q);
    take_rows(&s->k, kv_head, first_kv, keys, &alone->k);
    take_rows(&s->v, kv_head, first_kv, keys, &alone->v);
    hr_plan *plan = make_packed_plan(alone, row, 1);
    /* Without LSE, as nothing but O is compared: kernels then have a shorter way. */
    cr_assert_eq(hr_plan_run(plan, &alone->packed, &alone->o, NULL), HR_OK);
    const float *got =
        (const float *)s->o.data + (first_q + first) * s->o.stride[0] + head * s->o.stride[1];
    for (int32_t i = 0; i < count; i++)
        cr_assert_arr_eq(got + i * s->o.stride[0], (const float *)alone->o.data + i * HEAD_DIM,
                         HEAD_DIM * sizeof(float), "%s: sequence %d, head %d, row %d", row->name,
                         sequence, head, first + i);
    hr_plan_free(plan);
    setup_free(alone);
}

static void expect_all_alone(const plan_setup *s, const hr_kernel_info *row)
{
    for (int32_t b = 0; b < s->problem.batch; b++) {
        const int32_t rows = s->cu_seqlens_q[b + 1] - s->cu_seqlens_q[b];
        for (int32_t head = 0; head < HEADS; head++)
            for (int32_t first = 0; first < rows; first += PIECE)
                expect_alone(s, row, b, head, first, rows - first < PIECE ? rows - first : PIECE);
    }
}

/* Sequences that end at different keys of the same tile, and heads with scales of their own. */
Test(kept_scratch, tasks_of_other_heads_and_sequences_do_not_meet)
{
    const int32_t queries[] = {100, 200, 97}, keys[] = {300, 300, 511};
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (!is_integer_row(row)) continue;
        for (int32_t threads = 1; threads <= 3; threads += 2) {
            plan_setup *s = make(row, queries, keys, 3, 2);
            hr_plan *plan = make_packed_plan(s, row, threads);
            setup_run(s, plan);
            expect_all_alone(s, row);
            hr_plan_free(plan);
            setup_free(s);
        }
    }
}

/* More keys than a kernel would keep anything of. */
Test(kept_scratch, long_sequences)
{
    const int32_t queries[] = {100}, keys[] = {17000};
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (!is_integer_row(row)) continue;
        plan_setup *s = make(row, queries, keys, 1, 2);
        hr_plan *plan = make_packed_plan(s, row, 1);
        setup_run(s, plan);
        for (int32_t first = 0; first < 100; first += PIECE)
            expect_alone(s, row, 0, 1, first, first ? 100 - PIECE : PIECE);
        hr_plan_free(plan);
        setup_free(s);
    }
}

static void copy_operand(hr_packed *to, const hr_packed *from)
{
    cr_assert_eq(to->head_bytes, from->head_bytes);
    const size_t heads = (size_t)from->num_heads;
    memcpy(to->codes, from->codes, heads * from->head_bytes);
    const size_t scales = heads * (size_t)from->total_tokens;
    memcpy(to->scale, from->scale, scales * sizeof(float));
    if (from->zero_point) memcpy(to->zero_point, from->zero_point, scales);
}

/* The second run's operands lie where the first one's did, whose last KV head is its first. */
Test(kept_scratch, the_next_run_has_other_data_at_the_same_addresses)
{
    const int32_t queries[] = {200}, keys[] = {700};
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (!is_integer_row(row)) continue;
        for (int32_t threads = 1; threads <= 3; threads += 2) {
            plan_setup *s = make(row, queries, keys, 1, 1), *other = make(row, queries, keys, 1, 1);
            hr_plan *plan = make_packed_plan(s, row, threads);
            setup_run(s, plan);
            refill(other, 8);
            hr_plan_free(make_packed_plan(other, row, threads));
            copy_operand(&s->packed.q, &other->packed.q);
            copy_operand(&s->packed.k, &other->packed.k);
            copy_operand(&s->packed.v, &other->packed.v);
            memcpy(s->q.data, other->q.data, (size_t)hr_tensor_size(&s->q) * sizeof(float));
            memcpy(s->k.data, other->k.data, (size_t)hr_tensor_size(&s->k) * sizeof(float));
            memcpy(s->v.data, other->v.data, (size_t)hr_tensor_size(&s->v) * sizeof(float));
            setup_run(s, plan);
            expect_all_alone(s, row);
            hr_plan_free(plan);
            setup_free(other);
            setup_free(s);
        }
    }
}
