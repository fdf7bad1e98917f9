/*
 * A failed allocation is an error like any other: every stage is run with its first allocation
 * failing, then with its second, and so on until it gets through (of many, later ones are picked in
 * growing steps). Each failure must be HR_ERROR_OUT_OF_MEMORY with a message, and leave nothing
 * allocated.
 *
 * The linker sends the library's allocations here (--wrap in tests/CMakeLists.txt); jansson's come
 * by its own hook. Of these jansson 2.14 passes some over (a character of a text is then missing)
 * and calls others errors of syntax, so that only crashes and leaks are looked for.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <omp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/headroom.h"
#include "scratch_dir.h"

enum { LIVE_MAX = 4096, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 16, TOKENS = 48 };

/* The allocation that fails, counted from 1; 0: none. Allocations are made by one thread here. */
static long failing, counted;
static bool failed_in_json;
static void *live[LIVE_MAX];
static int live_count;

int __real_posix_memalign(void **out, size_t alignment, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t length);
int __real_vasprintf(char **out, const char *format, va_list arguments);
void __real_free(void *memory);
int __wrap_posix_memalign(void **out, size_t alignment, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t length);
int __wrap_vasprintf(char **out, const char *format, va_list arguments);
int __wrap_asprintf(char **out, const char *format, ...);
void __wrap_free(void *memory);

static bool fails(void)
{
    if (failing == 0 || ++counted != failing) return false;
    errno = ENOMEM;
    return true;
}

static void *kept(void *memory)
{
    if (failing > 0 && memory) {
        cr_assert_lt(live_count, LIVE_MAX);
        live[live_count++] = memory;
    }
    return memory;
}

static void dropped(const void *memory)
{
    for (int i = live_count - 1; i >= 0; i--)
        if (live[i] == memory) {
            live[i] = live[--live_count];
            return;
        }
}

int __wrap_posix_memalign(void **out, size_t alignment, size_t bytes)
{
    if (fails()) return ENOMEM;
    const int error = __real_posix_memalign(out, alignment, bytes);
    if (error == 0) kept(*out);
    return error;
}

void *__wrap_realloc(void *memory, size_t bytes)
{
    if (fails()) return NULL;
    dropped(memory);
    return kept(__real_realloc(memory, bytes));
}

char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : kept(__real_strdup(text));
}

char *__wrap_strndup(const char *text, size_t length)
{
    return fails() ? NULL : kept(__real_strndup(text, length));
}

int __wrap_vasprintf(char **out, const char *format, va_list arguments)
{
    if (fails()) return -1;
    const int length = __real_vasprintf(out, format, arguments);
    if (length >= 0) kept(*out);
    return length;
}

int __wrap_asprintf(char **out, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const int length = __wrap_vasprintf(out, format, arguments);
    va_end(arguments);
    return length;
}

void __wrap_free(void *memory)
{
    dropped(memory);
    __real_free(memory);
}

static void *json_allocate(size_t bytes)
{
    if (!fails()) return kept(malloc(bytes));
    failed_in_json = true;
    return NULL;
}

static scratch_dir scratch;
static scratch_path recording_path, profile_path, packed_path, out_path;
static float q[TOKENS * HEADS * HEAD_DIM], k[TOKENS * KV_HEADS * HEAD_DIM],
    v[TOKENS * KV_HEADS * HEAD_DIM], o[TOKENS * HEADS * HEAD_DIM];
static const int32_t cu_seqlens[] = {0, 20, TOKENS};

static hr_tensor view(float *data, int64_t heads)
{
    return hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){TOKENS, heads, HEAD_DIM}, data);
}

static hr_synth_options synth_options(void)
{
    hr_synth_options options;
    hr_synth_options_init(&options);
    options.num_heads = HEADS;
    options.num_kv_heads = KV_HEADS;
    options.head_dim = HEAD_DIM;
    options.tokens = TOKENS;
    options.batch = 2;
    options.layers = 2;
    return options;
}

static hr_status synthesize(void)
{
    const hr_synth_options options = synth_options();
    return hr_synth_write(&options, out_path.text);
}

/* Two passes: K is smoothed before a static scale. */
static hr_status feed(hr_calibrator *calibrator, const hr_recording *recording)
{
    const hr_recording_info info = hr_recording_get_info(recording);
    hr_status status = hr_calibrator_set_source(calibrator, &info);
    for (int pass = 0; status == HR_OK && pass < hr_calibrator_passes(calibrator); pass++) {
        if (pass > 0) status = hr_calibrator_next_pass(calibrator);
        for (int32_t i = 0; status == HR_OK && i < info.layer_count; i++) {
            hr_recording_layer layer;
            status = hr_recording_get_layer(recording, i, &layer);
            if (status == HR_OK)
                status = hr_calibrator_observe(calibrator, i, &layer.q, &layer.k, &layer.v);
        }
    }
    return status;
}

static hr_status calibrate(void)
{
    hr_calibrator_options options = {.observer = "mse"};
    hr_recording *recording = NULL;
    hr_calibrator *calibrator = NULL;
    hr_profile *profile = NULL;
    hr_status status = hr_recipe_parse("fp8:k.transform=mean", &options.recipe);
    if (status == HR_OK) status = hr_recording_open(recording_path.text, &recording);
    if (status == HR_OK) status = hr_calibrator_create(&options, &calibrator);
    if (status == HR_OK) status = feed(calibrator, recording);
    if (status == HR_OK) status = hr_calibrator_finish(calibrator, NULL, 0, &profile);
    if (status == HR_OK) status = hr_profile_write(profile, out_path.text);
    hr_profile_free(profile);
    hr_calibrator_free(calibrator);
    if (recording) hr_recording_close(recording);
    return status;
}

static hr_status read_files(void)
{
    hr_profile *profile = NULL;
    hr_packed_file *packed = NULL;
    hr_status status = hr_profile_read(profile_path.text, &profile);
    if (status == HR_OK) status = hr_packed_read(packed_path.text, &packed);
    hr_packed_file_free(packed);
    hr_profile_free(profile);
    return status;
}

static hr_attention_problem a_problem(void)
{
    hr_attention_problem problem;
    hr_attention_problem_init(&problem, HEADS, KV_HEADS, HEAD_DIM);
    problem.batch = 2;
    problem.cu_seqlens_q = problem.cu_seqlens_kv = cu_seqlens;
    return problem;
}

static hr_status pack_and_run(const char *text, const char *path)
{
    hr_attention_problem problem = a_problem();
    hr_block_mask blocks = {0};
    hr_plan *plan = NULL;
    hr_packed_layer layer = {0};
    hr_recipe recipe;
    const hr_block_pattern pattern = {.block = 16, .window = 1, .global = 1, .random = 1};
    const hr_plan_options options = {.threads = 1, .kv_splits = 2};
    const hr_tensor tq = view(q, HEADS), tk = view(k, KV_HEADS), tv = view(v, KV_HEADS),
                    to = view(o, HEADS);
    hr_status status = hr_recipe_parse(text, &recipe);
    if (status == HR_OK)
        status = hr_block_mask_from_pattern(&pattern, 1, 2, cu_seqlens, cu_seqlens, &blocks);
    problem.mask.blocks = &blocks;
    if (status == HR_OK) status = hr_plan_create(&problem, &recipe, &options, &plan);
    if (status == HR_OK) {
        const hr_layer_layouts layouts = hr_plan_layouts(plan);
        status = hr_pack_layer(&recipe, &layouts, &tq, &tk, &tv, 2, cu_seqlens, cu_seqlens, NULL,
                               &layer);
    }
    if (status == HR_OK) status = hr_plan_run(plan, &layer, &to, NULL);
    if (status == HR_OK && path) {
        const hr_packed_file_info info = {.model = "m", .recipe = recipe, .softmax_scale = 0.25f};
        const int32_t number = 0;
        status = hr_packed_write(path, &info, &number, &layer, 1);
    }
    hr_plan_free(plan);
    hr_packed_layer_free(&layer);
    hr_block_mask_free(&blocks);
    return status;
}

static hr_status run_int8(void)
{
    return pack_and_run("int8", out_path.text);
}

static hr_status run_int4(void)
{
    return pack_and_run("int4:kv.granularity=group16", NULL);
}

static hr_status fill_cache(void)
{
    static int64_t slots[TOKENS];
    static int32_t positions[TOKENS], blocks[TOKENS];
    for (int32_t t = 0; t < TOKENS; t++)
        slots[t] = positions[t] = t;
    hr_recipe recipe;
    hr_kv_cache *cache = NULL;
    hr_packed gathered = {0};
    hr_status status = hr_recipe_parse("int4:k.transform=hadamard,residual=16", &recipe);
    const hr_kv_cache_options options = {.recipe = &recipe,
                                         .num_kv_heads = KV_HEADS,
                                         .head_dim = HEAD_DIM,
                                         .page_size = 16,
                                         .num_pages = TOKENS / 16,
                                         .max_sequences = 1};
    const int32_t pages[] = {0, 1, 2}, one_sequence[] = {0, TOKENS};
    const hr_paging paging = {.page_size = 16, .max_pages = 3, .block_table = pages};
    const hr_tensor tk = view(k, KV_HEADS), tv = view(v, KV_HEADS);
    if (status == HR_OK) status = hr_kv_cache_create(&options, &cache);
    if (status == HR_OK)
        status = hr_kv_cache_append_residual(cache, &tk, &tv, positions, slots, blocks);
    if (status == HR_OK)
        status = hr_kv_cache_gather(cache, HR_OPERAND_K, &paging, 1, one_sequence, HR_LAYOUT_ROWS,
                                    &gathered);
    hr_packed_free(&gathered);
    hr_kv_cache_free(cache);
    return status;
}

/* A choice through its file, and the first layer as it says. */
static hr_status choose_and_mix(const hr_audit *audit, const hr_recording *recording)
{
    const char *const path = out_path.text;
    hr_choice *made = NULL, *choice = NULL;
    hr_mixed *mixed = NULL;
    hr_recipe recipes[2];
    hr_layer_scales scales[2];
    hr_recording_layer layer;
    hr_status status = hr_choice_from_audit(audit, 0.05, &made);
    if (status == HR_OK) status = hr_choice_write(made, path);
    if (status == HR_OK) status = hr_choice_read(path, &choice);
    if (status == HR_OK) status = hr_choice_scales(choice, 0, scales);
    if (status == HR_OK) status = hr_recording_get_layer(recording, 0, &layer);
    if (status == HR_OK) {
        const hr_recording_info info = hr_recording_get_info(recording);
        hr_attention_problem problem;
        hr_attention_problem_init(&problem, layer.num_heads, layer.num_kv_heads, layer.head_dim);
        problem.batch = info.batch;
        problem.cu_seqlens_q = problem.cu_seqlens_kv = info.cu_seqlens;
        hr_choice_recipes(choice, recipes);
        status = hr_mixed_create(&problem, recipes, choice->config_count, choice->layers[0].config,
                                 NULL, &mixed);
    }
    if (status == HR_OK) status = hr_mixed_pack(mixed, &layer.q, &layer.k, &layer.v, scales);
    if (status == HR_OK) status = hr_mixed_start(mixed);
    hr_mixed_free(mixed);
    hr_choice_free(choice);
    hr_choice_free(made);
    remove(scratch_file(&scratch, "out-fp8-absmax.safetensors").text);
    return status;
}

static hr_status audit(void)
{
    hr_recording *recording = NULL;
    hr_audit *result = NULL;
    char *json = NULL;
    hr_recipe recipe;
    hr_status status = hr_recipe_parse("fp8", &recipe);
    const hr_audit_options options = {
        .recipes = &recipe, .recipe_count = 1, .threads = 1, .repeats = 1};
    if (status == HR_OK) status = hr_recording_open(recording_path.text, &recording);
    if (status == HR_OK) status = hr_audit_run(recording, &options, &result);
    if (status == HR_OK) status = hr_audit_json(result, 0.05, &json);
    if (status == HR_OK) status = choose_and_mix(result, recording);
    free(json);
    hr_audit_free(result);
    if (recording) hr_recording_close(recording);
    return status;
}

/* The files that stages read are made while nothing fails. */
static void prepare(void)
{
    omp_set_num_threads(1);
    json_set_alloc_funcs(json_allocate, __wrap_free);
    scratch = scratch_open();
    recording_path = scratch_file(&scratch, "recording");
    profile_path = scratch_file(&scratch, "profile");
    packed_path = scratch_file(&scratch, "packed");
    out_path = recording_path;
    const hr_synth_options options = synth_options();
    cr_assert_eq(synthesize(), HR_OK);
    cr_assert_eq(hr_synth_fill(&options, 0, q, k, v), HR_OK);
    out_path = profile_path;
    cr_assert_eq(calibrate(), HR_OK, "%s", hr_last_error());
    cr_assert_eq(pack_and_run("int8", packed_path.text), HR_OK, "%s", hr_last_error());
    out_path = scratch_file(&scratch, "out");
}

static void clean(void)
{
    scratch_close(&scratch);
}

TestSuite(out_of_memory, .init = prepare, .fini = clean, .timeout = 120);

/* Runs `stage` with allocation 1, 2, ... 64, 66, ... failing until none does. */
static void fail_every_allocation(const char *name, hr_status (*stage)(void))
{
    for (long n = 1;; n += 1 + n / 64) {
        failing = n;
        counted = 0;
        live_count = 0;
        failed_in_json = false;
        const hr_status status = stage();
        const bool failed = counted >= n;
        failing = 0;
        cr_assert_eq(live_count, 0, "%s: allocation %ld failing left %d allocated", name, n,
                     live_count);
        if (failed_in_json) continue;
        cr_assert_eq(status, failed ? HR_ERROR_OUT_OF_MEMORY : HR_OK,
                     "%s: allocation %ld failing gave \"%s\": %s", name, n,
                     hr_status_string(status), hr_last_error());
        if (!failed) {
            cr_assert_gt(n, 1, "%s allocates nothing", name);
            return;
        }
        cr_assert(*hr_last_error(), "%s: no message", name);
        cr_assert_lt(scratch_count(&scratch, NULL), 5, "%s left a temporary file", name);
    }
}

#define OUT_OF_MEMORY(stage)                                                                       \
    Test(out_of_memory, stage)                                                                     \
    {                                                                                              \
        fail_every_allocation(#stage, stage);                                                      \
    }

OUT_OF_MEMORY(synthesize)
OUT_OF_MEMORY(calibrate)
OUT_OF_MEMORY(read_files)
OUT_OF_MEMORY(run_int8)
OUT_OF_MEMORY(run_int4)
OUT_OF_MEMORY(fill_cache)
OUT_OF_MEMORY(audit)
