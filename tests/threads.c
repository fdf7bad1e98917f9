/*
 * Everything that runs on several threads, in one plain program, for ThreadSanitizer: under it
 * Criterion cannot start. Two ways in: OpenMP teams inside the library (synthesis, calibration,
 * packing, the plan, the oracle, the audit), and threads of the caller's own that each plan, run
 * and fail by themselves, or store tokens in one cache. What is computed is compared with one
 * thread's result.
 *
 * ThreadSanitizer sees OpenMP's barriers only in LLVM's runtime with its Archer tool, hence the
 * preset's clang.
 */
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "headroom/headroom.h"

enum {
    TEAM = 4,
    TOKENS = 384,
    HEADS = 4,
    KV_HEADS = 2,
    HEAD_DIM = 32,
    CALLERS = 4,
    WRITERS = 3,
    ROUNDS = 3
};

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (condition) break;                                                                      \
        fprintf(stderr, "%s:%d: %s; last error: %s\n", __FILE__, __LINE__, #condition,             \
                hr_last_error());                                                                  \
        exit(1);                                                                                   \
    } while (0)

#define SUCCEED(call) CHECK((call) == HR_OK)

enum { Q_COUNT = TOKENS * HEADS * HEAD_DIM, KV_COUNT = TOKENS * KV_HEADS * HEAD_DIM };

/* One problem with its result; static: the stacks of threads are small. */
typedef struct problem {
    float q[Q_COUNT], k[KV_COUNT], v[KV_COUNT], o[Q_COUNT];
    double reference[Q_COUNT];
} problem;

static const int32_t cu_seqlens[] = {0, 50, TOKENS};

static hr_synth_options synth_options(void)
{
    hr_synth_options options;
    hr_synth_options_init(&options);
    options.mode = "mixed";
    options.num_heads = HEADS;
    options.num_kv_heads = KV_HEADS;
    options.head_dim = HEAD_DIM;
    options.tokens = TOKENS;
    options.batch = 2;
    options.layers = 2;
    return options;
}

static hr_tensor view(float *data, int64_t heads)
{
    return hr_tensor_view(HR_DTYPE_F32, 3, (int64_t[]){TOKENS, heads, HEAD_DIM}, data);
}

/* Synthesis, packing, kernel and oracle with the team of this thread. */
static void attend(const char *text, int32_t threads, problem *p)
{
    hr_synth_options synth = synth_options();
    hr_recipe recipe;
    hr_attention_problem attention;
    hr_plan *plan;
    hr_packed_layer packed;
    SUCCEED(hr_synth_fill(&synth, 0, p->q, p->k, p->v));
    SUCCEED(hr_recipe_parse(text, &recipe));
    hr_attention_problem_init(&attention, HEADS, KV_HEADS, HEAD_DIM);
    attention.batch = 2;
    attention.cu_seqlens_q = attention.cu_seqlens_kv = cu_seqlens;
    attention.mask.causal = true;
    SUCCEED(hr_plan_create(&attention, &recipe, &(hr_plan_options){.threads = threads}, &plan));
    hr_layer_layouts layouts = hr_plan_layouts(plan);
    hr_tensor q = view(p->q, HEADS), k = view(p->k, KV_HEADS), v = view(p->v, KV_HEADS),
              o = view(p->o, HEADS);
    SUCCEED(hr_pack_layer(&recipe, &layouts, &q, &k, &v, 2, cu_seqlens, cu_seqlens, NULL, &packed));
    for (int i = 0; i < ROUNDS; i++)
        SUCCEED(hr_plan_run(plan, &packed, &o, NULL));
    SUCCEED(hr_reference_attention(&attention, &q, &k, &v, p->reference, NULL));
    hr_packed_layer_free(&packed);
    hr_plan_free(plan);
}

static void check_same(const problem *a, const problem *b)
{
    CHECK(memcmp(a->o, b->o, sizeof a->o) == 0);
    CHECK(memcmp(a->reference, b->reference, sizeof a->reference) == 0);
}

static void check_teams(void)
{
    static const char *const recipes[] = {"bf16", "int8", "int4", "int8-fp8",
                                          "int8:qk.granularity=tensor"};
    static problem one, team;
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        omp_set_num_threads(1);
        attend(recipes[i], 1, &one);
        omp_set_num_threads(TEAM);
        attend(recipes[i], TEAM, &team);
        check_same(&one, &team);
    }
}

typedef struct caller {
    int number;
    problem result;
} caller;

/* Plans and runs, and fails in between: the message has to be this thread's own. */
static void *call(void *context)
{
    caller *self = context;
    char name[32];
    snprintf(name, sizeof name, "recipe-%d", self->number);
    for (int i = 0; i < 200; i++) {
        hr_recipe recipe;
        CHECK(hr_recipe_parse(name, &recipe) == HR_ERROR_NOT_FOUND);
        CHECK(strstr(hr_last_error(), name));
    }
    omp_set_num_threads(1);
    attend("int8", 1, &self->result);
    CHECK(strstr(hr_last_error(), name));
    return NULL;
}

static void check_callers(void)
{
    static caller callers[CALLERS];
    pthread_t threads[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        callers[i].number = i;
        CHECK(pthread_create(&threads[i], NULL, call, &callers[i]) == 0);
    }
    for (int i = 0; i < CALLERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 1; i < CALLERS; i++)
        check_same(&callers[0].result, &callers[i].result);
}

typedef struct writer {
    hr_kv_cache *cache;
    const problem *tokens;
    int first, step;
    pthread_barrier_t *start; /* NULL: alone */
} writer;

/* Every step-th token into its slot, in one call. */
static void *store(void *context)
{
    const writer *self = context;
    const int64_t shape[3] = {TOKENS / self->step, KV_HEADS, HEAD_DIM}, row = KV_HEADS * HEAD_DIM;
    int64_t slots[TOKENS];
    for (int64_t i = 0; i < shape[0]; i++)
        slots[i] = self->first + i * self->step;
    hr_tensor k =
        hr_tensor_view(HR_DTYPE_F32, 3, shape, (float *)self->tokens->k + self->first * row);
    hr_tensor v =
        hr_tensor_view(HR_DTYPE_F32, 3, shape, (float *)self->tokens->v + self->first * row);
    k.stride[0] = v.stride[0] = self->step * row;
    if (self->start) pthread_barrier_wait(self->start);
    SUCCEED(hr_kv_cache_append(self->cache, &k, &v, NULL, slots));
    return NULL;
}

/* Threads store tokens of the same blocks. 4-bit codes of V four tokens apart share bytes: with
 * three writers these are different threads'. */
static void check_cache(void)
{
    static problem tokens;
    const hr_synth_options synth = synth_options();
    hr_recipe recipe;
    hr_kv_cache *caches[2];
    SUCCEED(hr_synth_fill(&synth, 0, tokens.q, tokens.k, tokens.v));
    SUCCEED(hr_recipe_parse("int4:qk.transform=none", &recipe));
    const hr_kv_cache_options options = {.recipe = &recipe,
                                         .num_kv_heads = KV_HEADS,
                                         .head_dim = HEAD_DIM,
                                         .page_size = 64,
                                         .num_pages = TOKENS / 64,
                                         .k_layout = HR_LAYOUT_BLOCKS_K,
                                         .v_layout = HR_LAYOUT_BLOCKS_V};
    SUCCEED(hr_kv_cache_create(&options, &caches[0]));
    SUCCEED(hr_kv_cache_create(&options, &caches[1]));
    store(&(writer){.cache = caches[0], .tokens = &tokens, .step = 1});
    writer writers[WRITERS];
    pthread_barrier_t start;
    CHECK(pthread_barrier_init(&start, NULL, WRITERS) == 0);
    pthread_t threads[WRITERS];
    for (int i = 0; i < WRITERS; i++) {
        writers[i] = (writer){caches[1], &tokens, i, WRITERS, &start};
        CHECK(pthread_create(&threads[i], NULL, store, &writers[i]) == 0);
    }
    for (int i = 0; i < WRITERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(pthread_barrier_destroy(&start) == 0);
    for (int operand = HR_OPERAND_K; operand <= HR_OPERAND_V; operand++) {
        const hr_kv_view one = hr_kv_cache_view(caches[0], (hr_operand)operand);
        const hr_kv_view all = hr_kv_cache_view(caches[1], (hr_operand)operand);
        CHECK(memcmp(one.codes, all.codes, KV_COUNT / 2) == 0);
        CHECK(memcmp(one.scale, all.scale, TOKENS * KV_HEADS * sizeof(float)) == 0);
    }
    hr_kv_cache_free(caches[0]);
    hr_kv_cache_free(caches[1]);
}

/* Calibration and audit of a recording with the team. */
static void check_audit(const char *path)
{
    static const char *const observers[] = {"absmax", "percentile:99", "mse"};
    hr_synth_options synth = synth_options();
    hr_recording *recording;
    hr_audit *audit;
    char *json;
    omp_set_num_threads(TEAM);
    SUCCEED(hr_synth_write(&synth, path));
    SUCCEED(hr_recording_open(path, &recording));
    hr_audit_options options = {
        .observers = observers, .observer_count = 3, .threads = TEAM, .repeats = 1};
    SUCCEED(hr_audit_run(recording, &options, &audit));
    SUCCEED(hr_audit_json(audit, 0.05, &json));
    CHECK(strstr(json, "fp8/percentile:99"));
    free(json);
    hr_audit_free(audit);
    hr_recording_close(recording);
    CHECK(remove(path) == 0);
}

int main(void)
{
    char folder[] = "/tmp/headroom-threads-XXXXXX", path[64];
    CHECK(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/rec.safetensors", folder);
    check_teams();
    check_callers();
    check_cache();
    check_audit(path);
    CHECK(remove(folder) == 0);
    puts("threads: teams, callers, caches and audit agree with one thread");
    return 0;
}
