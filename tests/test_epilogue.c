/*
 * The epilogue of a plan against the same arithmetic in double precision on the output of the same
 * plan without one: every kernel, tiles finished at once and deferred, split kv axes, all norms and
 * dtypes, and the same bits for any number of threads.
 */
#include <math.h>

#include "format_minifloat.h"
#include "isa.h"
#include "plan_setup.h"

typedef struct fused {
    hr_epilogue epilogue;
    hr_tensor residual, stream, out;
    float *weight, *bias;
} fused;

static float value_at(const hr_tensor *tensor, int64_t i)
{
    if (tensor->dtype == HR_DTYPE_F32) return ((const float *)tensor->data)[i];
    return hr_bf16_to_float(((const uint16_t *)tensor->data)[i]);
}

static hr_tensor make(hr_dtype dtype, const plan_setup *s, check_random *random)
{
    hr_tensor tensor = hr_tensor_view(dtype, 3, s->o.shape, NULL);
    const int64_t count = hr_tensor_size(&tensor);
    tensor.data = calloc((size_t)count + 1, sizeof(float));
    cr_assert_not_null(tensor.data);
    for (int64_t i = 0; random && i < count; i++) {
        const float value = (float)random_normal(random);
        if (dtype == HR_DTYPE_F32)
            ((float *)tensor.data)[i] = value;
        else
            ((uint16_t *)tensor.data)[i] = (uint16_t)(0x3f00 + random_below(random, 0x180));
    }
    return tensor;
}

static fused make_fused(const plan_setup *s, int variant)
{
    check_random random = {(uint64_t)variant + 1};
    const hr_dtype dtypes[2] = {HR_DTYPE_F32, HR_DTYPE_BF16};
    const int32_t hidden = s->problem.num_heads * s->problem.head_dim;
    fused f = {
        .epilogue = {.scale = variant % 2 ? 1 : 0.5f, .norm = (hr_norm)(variant % 3), .eps = 1e-3f},
        .residual = make(dtypes[variant / 2 % 2], s, &random),
        .stream = make(dtypes[variant / 3 % 2], s, NULL),
        .out = make(dtypes[variant / 4 % 2], s, NULL),
        .weight = calloc((size_t)hidden, sizeof(float)),
        .bias = calloc((size_t)hidden, sizeof(float))};
    cr_assert(f.weight && f.bias);
    for (int32_t c = 0; c < hidden; c++) {
        f.weight[c] = (float)(1 + 0.3 * random_normal(&random));
        f.bias[c] = (float)random_normal(&random);
    }
    if (f.epilogue.norm != HR_NORM_NONE && variant != 5) f.epilogue.weight = f.weight;
    if (f.epilogue.norm == HR_NORM_LAYER) f.epilogue.bias = f.bias;
    return f;
}

static void free_fused(fused *f)
{
    free(f->residual.data);
    free(f->stream.data);
    free(f->out.data);
    free(f->weight);
    free(f->bias);
}

static void run_fused(plan_setup *s, const fused *f, hr_plan_options options)
{
    options.epilogue = &f->epilogue;
    hr_plan *plan = setup_plan(s, &options);
    const hr_plan_tensors tensors = {.operands = &s->packed,
                                     .o = &f->out,
                                     .lse = &s->lse,
                                     .residual = &f->residual,
                                     .stream = &f->stream};
    cr_assert_eq(hr_plan_run_tensors(plan, &tensors), HR_OK, "%s", hr_last_error());
    hr_plan_free(plan);
}

/* `o` is the output of the plan without an epilogue. */
static void check_fused(const plan_setup *s, const fused *f, const float *o, const char *what)
{
    const int64_t rows = s->o.shape[0], hidden = s->o.shape[1] * s->o.shape[2];
    const double stream_step = f->stream.dtype == HR_DTYPE_F32 ? 0x1p-22 : 0x1p-8;
    const double out_step = f->out.dtype == HR_DTYPE_F32 ? 0x1p-18 : 0x1p-8;
    for (int64_t row = 0; row < rows; row++) {
        double mean = 0, square = 0;
        for (int64_t i = row * hidden; i < (row + 1) * hidden; i++)
            mean += ((double)f->epilogue.scale * (double)o[i] + (double)value_at(&f->residual, i)) /
                    (double)hidden;
        if (f->epilogue.norm != HR_NORM_LAYER) mean = 0;
        for (int64_t i = row * hidden; i < (row + 1) * hidden; i++) {
            double y = (double)f->epilogue.scale * (double)o[i] + (double)value_at(&f->residual, i);
            square += (y - mean) * (y - mean) / (double)hidden;
        }
        const double inverse = 1 / sqrt(square + (double)f->epilogue.eps);
        for (int64_t c = 0, i = row * hidden; c < hidden; c++, i++) {
            double y = (double)f->epilogue.scale * (double)o[i] + (double)value_at(&f->residual, i);
            double z = y;
            if (f->epilogue.norm != HR_NORM_NONE) {
                z = (y - mean) * inverse;
                if (f->epilogue.weight) z *= (double)f->weight[c];
                if (f->epilogue.bias) z += (double)f->bias[c];
            }
            const double stream = (double)value_at(&f->stream, i);
            const double out = (double)value_at(&f->out, i);
            cr_assert(fabs(stream - y) <= stream_step * (1 + fabs(y)),
                      "%s: stream %lld: %g, not %g", what, (long long)i, stream, y);
            cr_assert(fabs(out - z) <= out_step * (1 + fabs(z)), "%s: out %lld: %g, not %g", what,
                      (long long)i, out, z);
        }
    }
}

static float *plain_output(plan_setup *s, const hr_plan_options *options)
{
    hr_plan *plan = setup_plan(s, options);
    hr_layer_layouts layouts = hr_plan_layouts(plan);
    setup_pack(s, &layouts);
    setup_run(s, plan);
    hr_plan_free(plan);
    float *o = malloc(o_bytes(s));
    cr_assert_not_null(o);
    memcpy(o, s->o.data, o_bytes(s));
    return o;
}

static bool runnable(const hr_kernel_info *row)
{
    return row->isa != HR_ISA_SM90 && hr_isa_mask() >> row->isa & 1;
}

Test(epilogue, every_kernel)
{
    for (int i = 0; i < hr_kernel_count(); i++) {
        const hr_kernel_info *row = hr_kernel_at(i);
        if (!runnable(row)) continue;
        for (int shape = 0; shape < 2; shape++) {
            /* Few query tiles (deferred), or, where lengths are free, many (at once). */
            int32_t queries = row->max_seqlen_q ? 3 : shape ? 16 * row->tile_q + 5 : 37;
            const int32_t head_dim = head_dim_for(row, 16);
            plan_setup *s = setup_make("bf16", 4, 2, head_dim, queries, shape ? 20 : 300);
            recipe_for(row, &s->recipe);
            hr_plan_options options = {.kernel = row->name};
            float *o = plain_output(s, &options);
            fused f = make_fused(s, 2 * i + shape);
            run_fused(s, &f, options);
            check_fused(s, &f, o, row->name);
            free_fused(&f);
            free(o);
            setup_free(s);
        }
    }
}

Test(epilogue, every_norm_and_dtype)
{
    plan_setup *s = setup_make("bf16", 3, 1, 40, 50, 60); /* hidden 120 is no multiple of 16 */
    float *o = plain_output(s, NULL);
    for (int variant = 0; variant < 24; variant++) {
        fused f = make_fused(s, variant);
        run_fused(s, &f, (hr_plan_options){0});
        check_fused(s, &f, o, "bf16");
        fused after = make_fused(s, variant);
        cr_assert_eq(
            hr_epilogue_run(&after.epilogue, &s->o, &after.residual, &after.stream, &after.out),
            HR_OK, "%s", hr_last_error());
        cr_expect_eq(memcmp(f.out.data, after.out.data, o_bytes(s)), 0);
        cr_expect_eq(memcmp(f.stream.data, after.stream.data, o_bytes(s)), 0);
        after.out.shape[1]++;
        cr_expect_eq(hr_epilogue_run(&after.epilogue, &s->o, NULL, NULL, &after.out),
                     HR_ERROR_MISMATCH);
        cr_expect(strstr(hr_last_error(), "out has shape[1] 4; o has 3"), "%s", hr_last_error());
        free_fused(&after);
        free_fused(&f);
    }
    free(o);
    setup_free(s);
}

Test(epilogue, splits_masked_rows_sinks_and_lse)
{
    static const char *const recipes[] = {"bf16", "int8"};
    const float sinks[4] = {0.5f, -INFINITY, 2, -1};
    for (int r = 0; r < 2; r++) {
        plan_setup *s = setup_make(recipes[r], 4, 2, 64, 6, 5000);
        s->recipe.k.transform = 0;
        s->problem.mask.causal = true;
        s->problem.sinks = sinks;
        hr_plan_options options = {.kv_splits = 5};
        float *o = plain_output(s, &options), *lse = malloc(lse_bytes(s));
        memcpy(lse, s->lse.data, lse_bytes(s));
        memset(s->lse.data, 0xff, lse_bytes(s));
        fused f = make_fused(s, 1);
        run_fused(s, &f, options);
        check_fused(s, &f, o, recipes[r]);
        cr_expect_eq(memcmp(lse, s->lse.data, lse_bytes(s)), 0, "%s", recipes[r]);
        free_fused(&f);
        free(o);
        free(lse);
        setup_free(s);
    }
    /* More queries than keys: the first rows see nothing, and get the residual alone. */
    plan_setup *s = setup_make("bf16", 2, 2, 32, 40, 10);
    s->problem.mask.causal = true;
    float *o = plain_output(s, NULL);
    cr_assert_eq(o[0], 0);
    fused f = make_fused(s, 4);
    run_fused(s, &f, (hr_plan_options){0});
    check_fused(s, &f, o, "masked rows");
    free_fused(&f);
    free(o);
    setup_free(s);
}

Test(epilogue, same_bits_for_any_number_of_threads)
{
    const int32_t queries[] = {1, 100, 2000};
    for (int shape = 0; shape < 3; shape++)
        for (int recipe = 0; recipe < 2; recipe++) {
            plan_setup *s =
                setup_make(recipe ? "int8" : "bf16", 4, 2, 32, queries[shape], 2000 * (1 + !shape));
            s->problem.mask.causal = true;
            s->problem.mask.window_left = 300;
            s->problem.mask.keep = 4;
            free(plain_output(s, NULL));
            fused one = make_fused(s, 2), many = make_fused(s, 2);
            run_fused(s, &one, (hr_plan_options){.threads = 1});
            for (int32_t threads = 2; threads <= 5; threads++) {
                run_fused(s, &many, (hr_plan_options){.threads = threads});
                cr_expect_eq(memcmp(one.out.data, many.out.data, o_bytes(s)), 0, "%d threads",
                             threads);
                cr_expect_eq(memcmp(one.stream.data, many.stream.data, o_bytes(s)), 0, "%d threads",
                             threads);
            }
            free_fused(&one);
            free_fused(&many);
            setup_free(s);
        }
}

/* The residual stream may be updated in place. */
Test(epilogue, in_place)
{
    plan_setup *s = setup_make("bf16", 2, 1, 32, 70, 70);
    float *o = plain_output(s, NULL);
    fused f = make_fused(s, 1), same = make_fused(s, 1);
    cr_assert_eq(f.residual.dtype, HR_DTYPE_F32);
    run_fused(s, &f, (hr_plan_options){0});
    free(same.stream.data);
    same.stream = same.residual;
    run_fused(s, &same, (hr_plan_options){0});
    cr_expect_eq(memcmp(f.stream.data, same.residual.data, o_bytes(s)), 0);
    cr_expect_eq(memcmp(f.out.data, same.out.data, o_bytes(s)), 0);
    same.stream.data = NULL;
    free_fused(&f);
    free_fused(&same);
    free(o);
    setup_free(s);
}

static void expect_refused(plan_setup *s, const hr_epilogue *epilogue, const char *message)
{
    hr_plan *plan;
    const hr_plan_options options = {.epilogue = epilogue};
    cr_expect_eq(hr_plan_create(&s->problem, &s->recipe, &options, &plan),
                 HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), message), "%s", hr_last_error());
}

Test(epilogue, refusals)
{
    plan_setup *s = setup_make("bf16", 2, 1, 32, 7, 7);
    const float weight[64] = {1};
    expect_refused(s, &(hr_epilogue){.scale = NAN}, "scale is nan");
    expect_refused(s, &(hr_epilogue){.scale = 1, .norm = (hr_norm)9}, "norm is 9");
    expect_refused(s, &(hr_epilogue){.scale = 1, .norm = HR_NORM_RMS, .eps = -1}, "eps is -1");
    expect_refused(s, &(hr_epilogue){.scale = 1, .weight = weight}, "but no norm");
    const hr_attention_problem small = s->problem;
    s->problem.num_heads = s->problem.num_kv_heads = 1 << 23;
    s->problem.head_dim = 256;
    expect_refused(s, &(hr_epilogue){.scale = 1}, "a token have 2147483648 elements");
    s->problem = small;

    free(plain_output(s, NULL));
    fused f = make_fused(s, 1);
    hr_plan *plan = setup_plan(s, NULL);
    hr_plan_tensors tensors = {.operands = &s->packed, .o = &s->o, .residual = &f.residual};
    cr_expect_eq(hr_plan_run_tensors(plan, &tensors), HR_ERROR_INVALID_ARGUMENT);
    cr_expect(strstr(hr_last_error(), "residual was given, but the plan has no epilogue"));
    hr_plan_free(plan);
    plan = setup_plan(s, &(hr_plan_options){.epilogue = &f.epilogue});
    f.residual.stride[1] = 64;
    cr_expect_eq(hr_plan_run_tensors(plan, &tensors), HR_ERROR_MISMATCH);
    cr_expect(strstr(hr_last_error(), "heads of residual are 64 elements apart"), "%s",
              hr_last_error());
    tensors.o = NULL;
    cr_expect_eq(hr_plan_run_tensors(plan, &tensors), HR_ERROR_INVALID_ARGUMENT);
    hr_plan_free(plan);
    free_fused(&f);
    setup_free(s);
}
