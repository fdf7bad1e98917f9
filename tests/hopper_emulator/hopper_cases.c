/*
 * Runs cases of the Hopper kernels' check; hopper_cases.h.
 */
#include "hopper_cases.h"

#include "check_run.h"
#include "pack_scale.h"

static bool by_block(const hr_packed *packed)
{
    return packed->recipe.granularity == HR_GRANULARITY_BLOCK;
}

static float scale_of_token(const hr_packed *packed, int32_t head, int32_t sequence, int64_t i)
{
    return packed->scale[hr_scale_offset(packed, head, sequence) + hr_scale_step(packed, i)];
}

/* The scale of E4M3 V by block behind the tile over the tile's own. */
static float v_step_of(const hr_packed *v, int32_t head, int32_t b, int64_t first, bool last)
{
    if (v->recipe.dtype == HR_DTYPE_I8 || !by_block(v) || last) return 1;
    return scale_of_token(v, head, b, first + HR_SM90_TILE_KV) / scale_of_token(v, head, b, first);
}

/* A tile of INT8 keys, from token `first` of a sequence of `length` on. */
static void set_tokens(const hr_packed *k, const hr_packed *v, int32_t head, int32_t b,
                       int64_t first, int64_t length, float v_step, float *tile)
{
    const bool v_by_token = v->recipe.dtype == HR_DTYPE_I8;
    float largest = v_by_token ? 0 : 1;
    for (int64_t i = first; v_by_token && i < first + HR_SM90_TILE_KV && i < length; i++)
        largest = fmaxf(largest, scale_of_token(v, head, b, i));
    const float v_unit = hr_sm90_v_unit(largest);
    for (int64_t i = first; i < first + HR_SM90_TILE_KV; i++) {
        float v_scale = v_by_token && i < length ? scale_of_token(v, head, b, i) : 1;
        if (i >= length) v_scale = v_unit;
        hr_sm90_set_tile_scale(tile, (int)(i - first),
                               i < length ? scale_of_token(k, head, b, i) : 1, v_scale, v_unit);
    }
    hr_sm90_end_tile_scale(tile, v_unit, v_step);
}

/* Scales by token and block in the tile form that the kernels read; NULL: they need none. */
static float *tile_scales(const hr_packed_layer *packed)
{
    const hr_packed *k = &packed->k, *v = &packed->v;
    const int64_t tiles = v->total_slots / HR_SM90_TILE_KV;
    const bool integers = k->recipe.dtype == HR_DTYPE_I8;
    const size_t size = integers ? HR_SM90_TILE_SCALES : HR_SM90_BLOCK_SCALES;
    if (!integers && !by_block(k) && !by_block(v)) return NULL;
    float *scales = aligned_alloc(64, ((size_t)(k->num_heads * tiles) * size * 4 + 64) / 64 * 64);
    cr_assert_not_null(scales);
    for (int32_t head = 0; head < k->num_heads; head++)
        for (int32_t b = 0; b < k->batch; b++) {
            const int64_t first = v->slot_offset[b] / HR_SM90_TILE_KV;
            const int64_t end = v->slot_offset[b + 1] / HR_SM90_TILE_KV;
            const int32_t length = k->cu_seqlens[b + 1] - k->cu_seqlens[b];
            for (int64_t t = 0; t < end - first; t++) {
                float *tile = scales + (size_t)(head * tiles + first + t) * size;
                const int64_t token = t * HR_SM90_TILE_KV;
                const float v_step = v_step_of(v, head, b, token, first + t + 1 == end);
                if (integers) {
                    set_tokens(k, v, head, b, token, length, v_step, tile);
                } else {
                    tile[0] = by_block(k) ? scale_of_token(k, head, b, token) : 1;
                    tile[HR_SM90_BLOCK_V_STEP] = v_step;
                }
            }
        }
    return scales;
}

/* By block, fills block_offset [batch], which must live as long as what is returned. */
static hr_sm90_scale scale_of(const hr_packed *packed, int32_t *block_offset)
{
    hr_sm90_scale scale = {.base = packed->scale};
    switch (packed->recipe.granularity) {
    case HR_GRANULARITY_NONE:
        scale.base = NULL;
        break;
    case HR_GRANULARITY_TENSOR:
        break;
    case HR_GRANULARITY_HEAD:
        scale.head_stride = 1;
        break;
    case HR_GRANULARITY_TOKEN:
        scale.head_stride = packed->total_tokens;
        scale.stride = 1;
        break;
    case HR_GRANULARITY_BLOCK:
        scale.head_stride = packed->scale_count / packed->num_heads;
        scale.block = packed->recipe.block;
        scale.block_offset = block_offset;
        for (int32_t b = 0; b < packed->batch; b++)
            block_offset[b] = (int32_t)hr_scale_offset(packed, 0, b);
        break;
    case HR_GRANULARITY_CHANNEL:
        scale.head_stride = packed->head_dim;
        scale.stride = 1;
        break;
    default:
        cr_assert_fail("the Hopper kernels do not take scales by %s",
                       hr_granularity_name(packed->recipe.granularity));
    }
    return scale;
}

static int32_t limit(int32_t window)
{
    return window < 0 ? INT32_MAX : window;
}

/* First tiles of V, and first blocks of Q, K and V, of every sequence. */
typedef struct case_offsets {
    int32_t tile[SHAPE_BATCH + 1], block[3][SHAPE_BATCH + 1];
} case_offsets;

/* Everything but the output. `offsets` is filled. */
static hr_sm90_args make_args(const check_case *test, const hr_packed_layer *packed,
                              const float *tiles, case_offsets *offsets)
{
    const hr_attention_problem *problem = &test->problem;
    const hr_packed *q = &packed->q, *k = &packed->k, *v = &packed->v;
    for (int32_t b = 0; b <= problem->batch; b++)
        offsets->tile[b] = (int32_t)(v->slot_offset[b] / HR_SM90_TILE_KV);
    hr_sm90_args args = {
        .q = q->codes,
        .k = k->codes,
        .v = v->codes,
        .q_head_bytes = (int64_t)q->head_bytes,
        .k_head_bytes = (int64_t)k->head_bytes,
        .v_head_bytes = (int64_t)v->head_bytes,
        .total_q = q->total_tokens,
        .total_kv = k->total_tokens,
        .kv_tiles = v->total_slots / HR_SM90_TILE_KV,
        .batch = problem->batch,
        .num_heads = problem->num_heads,
        .num_kv_heads = problem->num_kv_heads,
        .head_dim = problem->head_dim,
        .cu_seqlens_q = problem->cu_seqlens_q,
        .cu_seqlens_kv = problem->cu_seqlens_kv,
        .kv_tile_offset = offsets->tile,
        .max_seqlen_q = hr_longest_sequence(problem->cu_seqlens_q, problem->batch),
        .max_seqlen_kv = hr_longest_sequence(problem->cu_seqlens_kv, problem->batch),
        .q_scale = scale_of(q, offsets->block[0]),
        .tile_scale = tiles,
        .softmax_scale = problem->softmax_scale,
        .softcap = problem->softcap,
        .lse_bias = q->lse_bias,
        .sinks = problem->sinks,
        .window_left = limit(problem->mask.window_left),
        .window_right = problem->mask.causal ? 0 : limit(problem->mask.window_right),
    };
    if (k->recipe.dtype == HR_DTYPE_E4M3) args.k_scale = scale_of(k, offsets->block[1]);
    if (v->recipe.dtype == HR_DTYPE_E4M3) args.v_scale = scale_of(v, offsets->block[2]);
    return args;
}

/*
 * Constants of check_bound.h for these kernels. ex2.approx is right to 2^-22. E4M3 P is 448 at the
 * running maximum, so that its smallest step is relative to the largest weight of all keys.
 */
static error_model model_for(hopper_model kernel, const check_case *test, bool fp22)
{
    error_model model = {.tile_kv = 128,
                         .dot_terms = test->shape.head_dim,
                         .exp_error = 0x1p-22,
                         .v_steps = test->recipe.v.granularity == HR_GRANULARITY_BLOCK};
    switch (kernel) {
    case HOPPER_BF16:
        model.p_relative = 0x1p-8;
        break;
    case HOPPER_INT8_FP8:
    case HOPPER_FP8:
        model.fp22_pv = fp22; /* the emulator's own choice; a GPU has no other (check_bound.h) */
        model.fp22_qk = fp22 && kernel == HOPPER_FP8;
        if (kernel == HOPPER_INT8_FP8) model.dot_terms = 0;
        model.p_relative = 0x1p-4;
        model.p_absolute = 0x1p-10 / 448;
        model.p_running = true;
        break;
    case HOPPER_INT8:
        set_hopper_int8(&model);
        break;
    }
    return model;
}

static double square_sum(const double *x, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += x[i] * x[i];
    return sum;
}

/* O's root mean square distance from `reference`; *relative gets it over reference's own. */
static double rms_error(const check_case *test, const guarded_output *output,
                        const double *reference, double *relative)
{
    const check_shape *shape = &test->shape;
    const int64_t rows = (int64_t)shape->cu_seqlens_q[shape->batch] * shape->num_heads;
    double sum = 0;
    for (int64_t row = 0; row < rows; row++)
        for (int32_t c = 0; c < shape->head_dim; c++) {
            double error =
                (double)o_row(output, row / shape->num_heads, row % shape->num_heads)[c] -
                reference[row * shape->head_dim + c];
            sum += error * error;
        }
    const size_t count = (size_t)(rows * shape->head_dim);
    const double size = square_sum(reference, count);
    *relative = size > 0 ? sqrt(sum / size) : 0;
    return sqrt(sum / (double)count);
}

/* The same against the oracle on the inputs before quantization. */
static double total_error(const check_case *test, const guarded_output *output, double *relative)
{
    const int64_t rows = test->q.shape[0] * test->q.shape[1];
    double *o = allocate((size_t)(rows * test->shape.head_dim), sizeof *o);
    cr_assert_eq(hr_reference_attention(&test->problem, &test->q, &test->k, &test->v, o, NULL),
                 HR_OK, "%s", hr_last_error());
    const double error = rms_error(test, output, o, relative);
    free(o);
    return error;
}

/* BF16 O of the launch to the guarded FP32 one; the bound grows by one rounding. */
static void widen_output(check_case *test, const guarded_output *output, const uint16_t *o)
{
    const check_shape *shape = &test->shape;
    const int64_t rows = (int64_t)shape->cu_seqlens_q[shape->batch] * shape->num_heads;
    for (int64_t i = 0; i < rows * shape->head_dim; i++) {
        const int64_t row = i / shape->head_dim;
        const uint32_t bits = (uint32_t)o[i] << 16;
        float *to = o_row(output, row / shape->num_heads, row % shape->num_heads);
        memcpy(&to[i % shape->head_dim], &bits, sizeof bits);
        test->o_bound[i] = test->o_bound[i] * (1 + 0x1p-8) + fabs(test->o[i]) * 0x1p-8;
    }
}

/* Puts a NaN where no packing would: one head, V's token 3 at its place in the first tile. */
static void poison(hr_packed_layer *packed, char operand)
{
    hr_packed *x = operand == 'q' ? &packed->q : operand == 'k' ? &packed->k : &packed->v;
    int64_t at = 3 * x->head_dim + 5;
    const bool wide = x->recipe.dtype == HR_DTYPE_BF16;
    if (operand == 'v') at = 5 * HR_SM90_TILE_KV + (wide ? 3 : 5);
    if (wide)
        ((uint16_t *)x->codes)[at] = 0x7FC0;
    else
        ((uint8_t *)x->codes)[at] = 0x7F;
}

/* A NaN in q spoils its row, in k every row, in v one channel of every row. */
static void check_nan(const check_case *test, const guarded_output *output, char operand)
{
    for (int64_t token = 0; token < test->q.shape[0]; token++) {
        const bool row = operand == 'k' || (operand == 'q' && token == 3);
        cr_expect_eq(isnan(*lse_of(output, token, 0)), row, "%c: LSE of row %lld is %g", operand,
                     (long long)token, (double)*lse_of(output, token, 0));
        for (int32_t c = 0; c < test->shape.head_dim; c++)
            cr_expect_eq(isnan(o_row(output, token, 0)[c]), row || (operand == 'v' && c == 5),
                         "%c: O[%lld][%d] is %g", operand, (long long)token, c,
                         (double)o_row(output, token, 0)[c]);
    }
}

hopper_result hopper_run_case(const hopper_case *wanted, hopper_kernel kernel, hopper_model model)
{
    check_case test = {.shape = parse_shape(wanted->shape, 128, 128),
                       .fill = (check_fill)wanted->fill,
                       .features = wanted->features,
                       .seed = wanted->seed};
    cr_assert_eq(hr_recipe_parse(wanted->recipe, &test.recipe), HR_OK, "%s", hr_last_error());
    make_case(&test);
    char text[512];
    describe_case(&test, text);

    const hr_layer_layouts layouts = {HR_LAYOUT_ROWS, HR_LAYOUT_ROWS, HR_LAYOUT_SM90_V};
    hr_packed_layer packed;
    pack_case(&test, &layouts, &packed);
    answer_case(&test, &packed);
    compute_bound(&(bound_input){.problem = &test.problem,
                                 .packed = &packed,
                                 .model = model_for(model, &test, wanted->fp22),
                                 .q = test.dequantized[0],
                                 .k = test.dequantized[1],
                                 .v = test.dequantized[2],
                                 .lse = test.lse,
                                 .o_bound = test.o_bound,
                                 .lse_bound = test.lse_bound});

    guarded_output output = make_output(&test.shape);
    const int64_t rows = packed.q.total_tokens * packed.q.num_heads;
    uint16_t *o16 = allocate((size_t)(rows * packed.q.head_dim), sizeof *o16);
    float *tiles = tile_scales(&packed);
    case_offsets offsets;
    hr_sm90_args args = make_args(&test, &packed, tiles, &offsets);
    args.multiprocessors = wanted->multiprocessors ? wanted->multiprocessors : 3;
    args.o = output.o.data;
    args.o_token_stride = output.o.stride[0];
    args.o_head_stride = output.o.stride[1];
    if (wanted->bf16_output) {
        args.o_is_bf16 = 1;
        args.o = o16;
        args.o_token_stride = (int64_t)packed.q.num_heads * packed.q.head_dim;
        args.o_head_stride = packed.q.head_dim;
    }
    args.lse = output.lse.data;
    args.lse_token_stride = output.lse.stride[0];
    args.lse_head_stride = output.lse.stride[1];

    if (wanted->nan) poison(&packed, wanted->nan);
    hopper_set_options(wanted->schedule, wanted->seed, wanted->fp22);
    int error = kernel(&args);
    cr_assert_eq(error, 0, "error %d, schedule %d: %s\n%s", error, wanted->schedule, text,
                 hopper_report_text());
    if (wanted->bf16_output) widen_output(&test, &output, o16);
    cr_assert(guards_intact(&output, &test.shape), "wrote outside O and LSE: %s", text);
    if (wanted->nan) check_nan(&test, &output, wanted->nan);
    const comparison worst = wanted->nan ? (comparison){0} : compare_output(&test, &output);
    cr_expect(worst.o <= 1 && worst.lse <= 1,
              "O is %g of its bound (token %lld, head %lld, channel %lld), LSE %g: %s", worst.o,
              (long long)worst.token, (long long)worst.head, (long long)worst.channel, worst.lse,
              text);
    hopper_result result = {.worst_o = worst.o, .worst_lse = worst.lse};
    (void)rms_error(&test, &output, test.o, &result.relative_l2);
    result.total_rmse = total_error(&test, &output, &result.total_l2);
    free(output.memory);
    free(o16);
    free(tiles);
    hr_packed_layer_free(&packed);
    free_case(&test);
    return result;
}

static const char *const shapes[] = {
    /* One row, one key; both sides of a tile; primes. */
    "1 1 128 q=1 kv=1",
    "1 1 64 q=1 kv=127",
    "2 1 128 q=127 kv=129",
    "1 1 64 q=129 kv=3K+1",
    "1 1 128 q=131 kv=2K-1",
    /* All rows of the ring reused, several items a block. */
    "3 1 64 q=200 kv=6K",
    "2 2 128 q=257 kv=5K+17",
    /* Groups of query heads. */
    "4 2 64 q=97 kv=211",
    "8 1 128 q=16 kv=300",
    /* More queries than keys: rows without keys under a causal mask. */
    "1 1 64 q=300 kv=70",
    "2 2 128 q=139 kv=5",
    /* Sequences of unequal lengths, some empty. */
    "2 1 64 q=5,0,130,64 kv=140,33,0,256",
    "1 1 128 q=1,129,40 kv=257,1,128",
    /* Other head_dim: by the next tile up. */
    "1 1 96 q=67 kv=200",
    "2 1 32 q=40 kv=150",
    "1 1 256 q=70 kv=3K+5",
    "2 1 256 q=129,3 kv=130,400",
    "1 1 192 q=50 kv=2K+3",
};
enum { SHAPE_COUNT = sizeof shapes / sizeof shapes[0] };

static void run_shapes(const char *recipe, hopper_kernel kernel, hopper_model model, int first,
                       int step, int32_t fp22)
{
    static const uint32_t features[] = {
        0,
        HR_FEATURE_CAUSAL,
        HR_FEATURE_WINDOW,
        HR_FEATURE_CAUSAL | HR_FEATURE_SINKS,
        HR_FEATURE_CAUSAL | HR_FEATURE_WINDOW | HR_FEATURE_SOFTCAP,
        HR_FEATURE_SOFTCAP,
        HR_FEATURE_WINDOW | HR_FEATURE_SINKS | HR_FEATURE_SOFTCAP,
    };
    enum { FEATURES = sizeof features / sizeof features[0], FILLS_A_SHAPE = 4 };
    double worst_o = 0, worst_lse = 0;
    for (int shape = first; shape < SHAPE_COUNT; shape += step)
        for (int i = 0; i < FILLS_A_SHAPE; i++) {
            const int number = shape * FILLS_A_SHAPE + i;
            const hopper_case test = {.recipe = recipe,
                                      .shape = shapes[shape],
                                      .features = features[(shape + 2 * i) % FEATURES],
                                      .fill = number % FILL_COUNT,
                                      .seed = (uint64_t)number + 1,
                                      .multiprocessors = 1 + number % 3,
                                      .schedule = (number + shape) % 3,
                                      .bf16_output = number % 5 == 4,
                                      .fp22 = fp22};
            const hopper_result result = hopper_run_case(&test, kernel, model);
            worst_o = fmax(worst_o, result.worst_o);
            worst_lse = fmax(worst_lse, result.worst_lse);
        }
    fprintf(stderr, "%s%s: O at most %.3f of its bound, LSE %.3f\n", recipe,
            fp22 ? " in 22 bits" : "", worst_o, worst_lse);
}

void hopper_run_shapes(const char *recipe, hopper_kernel kernel, hopper_model model, int first,
                       int step)
{
    run_shapes(recipe, kernel, model, first, step, 0);
}

void hopper_run_shapes_fp22(const char *recipe, hopper_kernel kernel, hopper_model model)
{
    run_shapes(recipe, kernel, model, 0, 3, 1);
}

void hopper_error_on_gaussian_inputs(const char *name, const char *recipe, hopper_kernel kernel,
                                     hopper_model model, double low, double high)
{
    static const char *const lines[] = {"1 1 64 q=64 kv=2048", "1 1 128 q=64 kv=2048"};
    for (int i = 0; i < 2; i++) {
        const hopper_case test = {.recipe = recipe, .shape = lines[i], .seed = 21};
        const hopper_result result = hopper_run_case(&test, kernel, model);
        fprintf(stderr, "%s, %s: relative L2 %.4f, the kernel's own %.4f\n", name, lines[i],
                result.total_l2, result.relative_l2);
        cr_expect(result.total_l2 <= high && result.total_l2 >= low, "%s: %g", lines[i],
                  result.total_l2);
    }
}

void hopper_long_sums_lose_nothing(const char *name, const char *recipe, hopper_kernel kernel,
                                   hopper_model model, int32_t head_dim)
{
    enum { SHORT, LONG, LONG_IN_FP32, RUNS };
    static const char *const shapes_of[RUNS] = {"8 8 %d q=32 kv=4096", "1 1 %d q=32 kv=131072",
                                                "1 1 %d q=32 kv=131072"};
    hopper_result result[RUNS];
    for (int i = 0; i < RUNS; i++) {
        char shape[64];
        snprintf(shape, sizeof shape, shapes_of[i], head_dim);
        const hopper_case test = {
            .recipe = recipe, .shape = shape, .seed = 31, .fp22 = i != LONG_IN_FP32};
        result[i] = hopper_run_case(&test, kernel, model);
        fprintf(stderr, "%s, %s%s: relative L2 %.5f, the kernel's own %.5f\n", name, shape,
                i == LONG_IN_FP32 ? " in FP32" : "", result[i].total_l2, result[i].relative_l2);
    }
    cr_expect(result[LONG].total_l2 <= 1.1 * result[SHORT].total_l2, "%g against %g",
              result[LONG].total_l2, result[SHORT].total_l2);
    cr_expect(result[LONG].relative_l2 <= 1.01 * result[LONG_IN_FP32].relative_l2,
              "%g against %g in FP32", result[LONG].relative_l2, result[LONG_IN_FP32].relative_l2);
}

double hopper_table3_rmse(const char *recipe, hopper_kernel kernel, hopper_model model,
                          int32_t head_dim, int32_t keys)
{
    char shape[64];
    double squares = 0;
    snprintf(shape, sizeof shape, "2 2 %d q=128 kv=%d", head_dim, keys);
    hopper_case test = {.recipe = recipe, .shape = shape, .fill = FILL_SPARSE_OUTLIERS};
    for (test.seed = 41; test.seed <= 44; test.seed++) {
        const double error = hopper_run_case(&test, kernel, model).total_rmse;
        squares += error * error / 4;
    }
    fprintf(stderr, "%s, head_dim %d, %d keys, sparse outliers: RMSE %.2e\n", recipe, head_dim,
            keys, sqrt(squares));
    return sqrt(squares);
}

void hopper_nan_propagates(const char *recipe, hopper_kernel kernel, hopper_model model)
{
    for (const char *operand = "qkv"; *operand; operand++) {
        const hopper_case test = {
            .recipe = recipe, .shape = "1 1 64 q=70 kv=200", .seed = 9, .nan = *operand};
        hopper_run_case(&test, kernel, model);
    }
}
