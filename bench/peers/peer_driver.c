/* The program of every C driver: arguments, inputs, the clock and the conversation with run.py. */
#include "peer_driver.h"

#include <argp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

/* Short runs are repeated until a timing has lasted so long, after one run to warm the caches. */
static const double TIMING_SECONDS = 0.02;

enum {
    KEY_VARIANT = 256,
    KEY_HEAD_DIM,
    KEY_SEQLEN_Q,
    KEY_SEQLEN_KV,
    KEY_HEADS,
    KEY_KV_HEADS,
    KEY_MASK,
    KEY_THREADS,
    KEY_COLD,
    KEY_INPUTS
};

typedef struct driver_arguments {
    peer_case problem;
    const char *inputs;
    long cold_mib;
} driver_arguments;

void peer_fail(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    exit(1);
}

void *peer_memory(size_t bytes)
{
    const size_t huge = (size_t)2 << 20, size = (bytes + huge - 1) / huge * huge;
    void *memory = aligned_alloc(huge, size);
    if (!memory) peer_fail("out of memory for %zu bytes", size);
    madvise(memory, size, MADV_HUGEPAGE); /* advice: kernels without huge pages refuse it */
    return memory;
}

float *peer_by_head(const float *x, int seqlen, int heads, int head_dim)
{
    const size_t row = (size_t)head_dim;
    float *out = malloc((size_t)seqlen * (size_t)heads * row * sizeof *out);
    if (!out) peer_fail("out of memory for the inputs");
    for (int t = 0; t < seqlen; t++) {
        for (int h = 0; h < heads; h++)
            memcpy(out + ((size_t)h * (size_t)seqlen + (size_t)t) * row,
                   x + ((size_t)t * (size_t)heads + (size_t)h) * row, row * sizeof *out);
    }
    return out;
}

static float *load(const char *prefix, const char *suffix, int seqlen, int heads, int head_dim)
{
    char path[4096];
    const size_t count = (size_t)seqlen * (size_t)heads * (size_t)head_dim;
    snprintf(path, sizeof path, "%s.%s", prefix, suffix);
    FILE *file = fopen(path, "rb");
    if (!file) peer_fail("%s cannot be opened", path);
    float *x = malloc(count * sizeof *x);
    if (!x) peer_fail("out of memory for %s", path);
    if (fread(x, sizeof *x, count, file) != count || fgetc(file) != EOF)
        peer_fail("%s does not hold %zu values", path, count);
    fclose(file);
    return x;
}

static const struct argp_option options[] = {
    {"variant", KEY_VARIANT, "NAME", 0, "Number format of K and V, or what the peer calls it", 0},
    {"head-dim", KEY_HEAD_DIM, "N", 0, "Head dim", 0},
    {"seqlen-q", KEY_SEQLEN_Q, "N", 0, "Queries", 0},
    {"seqlen-kv", KEY_SEQLEN_KV, "N", 0, "Keys", 0},
    {"heads", KEY_HEADS, "N", 0, "Query heads", 0},
    {"kv-heads", KEY_KV_HEADS, "N", 0, "KV heads", 0},
    {"mask", KEY_MASK, "full|causal", 0, "Which keys a query sees", 0},
    {"threads", KEY_THREADS, "N", 0, "Threads", 0},
    {"cold", KEY_COLD, "MIB", 0, "Go through copies of K and V that take so much; 0: one copy", 0},
    {"inputs", KEY_INPUTS, "PREFIX", 0, "Files PREFIX.q, .k and .v", 0},
    {0},
};

static error_t parse(int key, char *text, struct argp_state *state)
{
    driver_arguments *a = state->input;
    int *number = key == KEY_HEAD_DIM    ? &a->problem.head_dim
                  : key == KEY_SEQLEN_Q  ? &a->problem.seqlen_q
                  : key == KEY_SEQLEN_KV ? &a->problem.seqlen_kv
                  : key == KEY_HEADS     ? &a->problem.num_heads
                  : key == KEY_KV_HEADS  ? &a->problem.num_kv_heads
                  : key == KEY_THREADS   ? &a->problem.threads
                                         : NULL;
    if (number) {
        *number = atoi(text);
        return 0;
    }
    switch (key) {
    case KEY_VARIANT:
        a->problem.variant = text;
        return 0;
    case KEY_MASK:
        a->problem.causal = strcmp(text, "causal") == 0;
        return 0;
    case KEY_COLD:
        a->cold_mib = atol(text);
        return 0;
    case KEY_INPUTS:
        a->inputs = text;
        return 0;
    case ARGP_KEY_END:
        if (!a->problem.variant || !a->inputs || a->problem.head_dim < 1 ||
            a->problem.seqlen_q < 1 || a->problem.seqlen_kv < 1 || a->problem.num_heads < 1 ||
            a->problem.num_kv_heads < 1 || a->problem.threads < 1)
            argp_error(state, "every option but --mask and --cold is needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/*
 * Seconds of a run. Cold: the mean over all copies, each read once, so that none is in a cache.
 * Warm: one run that does not count, then the mean of as many as TIMING_SECONDS take; a run longer
 * than that needs no warming.
 */
static double time_run(peer *p, int copies, double *last)
{
    if (strcmp(peer_unit(p), "s") != 0) return peer_run(p, 0);
    int runs = 0;
    if (copies == 1 && !(*last > TIMING_SECONDS)) peer_run(p, 0);
    const double begin = now();
    double seconds;
    do {
        for (int copy = 0; copy < copies; copy++)
            peer_run(p, copy);
        runs += copies;
        seconds = now() - begin;
    } while (copies == 1 && seconds < TIMING_SECONDS);
    *last = seconds / runs;
    return *last;
}

static void write_output(const peer *p, const peer_case *problem, const char *path)
{
    const size_t count =
        (size_t)problem->seqlen_q * (size_t)problem->num_heads * (size_t)problem->head_dim;
    FILE *file = fopen(path, "wb");
    if (!file) peer_fail("%s cannot be written", path);
    const size_t written = fwrite(peer_output(p), sizeof(float), count, file);
    if (fclose(file) != 0 || written != count) peer_fail("%s cannot be written", path);
    puts("ok");
}

static void converse(peer *p, const peer_case *problem, int copies)
{
    char line[4096];
    double last = 0;
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (strcmp(line, "run") == 0)
            printf("%.9g\n", time_run(p, copies, &last));
        else if (strncmp(line, "output ", 7) == 0 && peer_output(p))
            write_output(p, problem, line + 7);
        else
            peer_fail("not a command here: %s", line);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    static const struct argp argp = {.options = options,
                                     .parser = parse,
                                     .doc = "One peer's attention on one shape, run at the word of "
                                            "bench/peers/run.py on standard input."};
    driver_arguments arguments = {.problem = {.threads = 1}};
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    peer_case *problem = &arguments.problem;
    float *q =
        load(arguments.inputs, "q", problem->seqlen_q, problem->num_heads, problem->head_dim);
    float *k =
        load(arguments.inputs, "k", problem->seqlen_kv, problem->num_kv_heads, problem->head_dim);
    float *v =
        load(arguments.inputs, "v", problem->seqlen_kv, problem->num_kv_heads, problem->head_dim);
    problem->q = q;
    problem->k = k;
    problem->v = v;
    peer *p = peer_open(problem);
    free(q);
    free(k);
    free(v);
    const double cold_bytes = (double)arguments.cold_mib * (1 << 20);
    int copies = 1;
    while (strcmp(peer_unit(p), "s") == 0 && (double)peer_kv_bytes(p) * copies < cold_bytes) {
        peer_add_copy(p);
        copies++;
    }
    peer_run(p, 0);
    printf("{\"version\": \"%s\", \"unit\": \"%s\", \"kv_bytes\": %zu, \"copies\": %d}\n",
           peer_version(), peer_unit(p), peer_kv_bytes(p), copies);
    fflush(stdout);
    converse(p, problem, copies);
    return 0;
}
