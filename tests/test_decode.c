/*
 * Decode over a million keys: offsets, int32 sums and the sum of weights hold, in one chunk and
 * split, with answers in closed form.
 */
#include "cpu/integer_softmax.h"
#include "integer_case.h"
#include "isa.h"

enum { KEYS = 1 << 20, DIM = 64, LATE = KEYS - 5 };

static void run(const integer_case *c, int32_t splits, float *o, float *lse)
{
    hr_plan *plan;
    hr_plan_options options = {.kv_splits = splits};
    cr_assert_eq(hr_plan_create(&c->problem, &c->recipe, &options, &plan), HR_OK, "%s",
                 hr_last_error());
    const hr_layer_layouts layouts = hr_plan_layouts(plan);
    hr_packed_layer packed = c->packed, moved = {0};
    if (layouts.k != HR_LAYOUT_ROWS) {
        cr_assert_eq(hr_packed_relayout(&c->packed.k, layouts.k, &moved.k), HR_OK);
        packed.k = moved.k;
    }
    if (layouts.v != HR_LAYOUT_ROWS) {
        cr_assert_eq(hr_packed_relayout(&c->packed.v, layouts.v, &moved.v), HR_OK);
        packed.v = moved.v;
    }
    const int64_t shape[3] = {1, 1, DIM};
    hr_tensor o_view = hr_tensor_view(HR_DTYPE_F32, 3, shape, o);
    hr_tensor lse_view = hr_tensor_view(HR_DTYPE_F32, 2, shape, lse);
    cr_assert_eq(hr_plan_run(plan, &packed, &o_view, &lse_view), HR_OK, "%s", hr_last_error());
    hr_packed_layer_free(&moved);
    hr_plan_free(plan);
}

Test(decode, a_million_keys)
{
    integer_case c;
    make_integer_case(&c, "int8:k.transform=none", 1, KEYS, DIM);
    set_token(&c.packed.q, 0, 127, 1);
    memset(c.packed.k.codes, 0, (size_t)KEYS * DIM);
    memset(c.packed.v.codes, 127, (size_t)KEYS * DIM);
    for (int64_t i = 0; i < KEYS; i++)
        c.packed.v.scale[i] = i % 4 == 3 ? 5 : 1;
    for (int32_t splits = 0; splits <= 1; splits++) {
        float o[DIM], lse;
        run(&c, splits, o, &lse);
        /* Weights are good to WEIGHT_ERROR and rounded to 1/1024 octave. */
        cr_expect_float_eq(lse, log(KEYS), HR_INTEGER_WEIGHT_ERROR + 0x1p-11, "%d splits: %g",
                           splits, (double)lse);
        /* The mean of 1, 1, 1 and 5; P rounds 51 to itself. 4096 tiles are added in FP32, which is
         * good to 2 * 4096 * 2^-24 of the sum. */
        for (int i = 0; i < DIM; i++)
            cr_expect_float_eq(o[i], 2 * 127, 254 * 0x1p-11, "%d splits: %g", splits, (double)o[i]);
    }
    /* One key near the end takes all the weight. */
    set_token(&c.packed.k, LATE, 100, 1);
    set_token(&c.packed.v, LATE, -100, 0.5f);
    for (int32_t splits = 0; splits <= 1; splits++) {
        float o[DIM], lse;
        run(&c, splits, o, &lse);
        cr_expect_float_eq(lse, 127.0 * 100 * DIM, 1);
        for (int i = 0; i < DIM; i++)
            cr_expect_float_eq(o[i], -50, 1e-4, "%d splits: %g", splits, (double)o[i]);
    }
    free_integer_case(&c);
}
