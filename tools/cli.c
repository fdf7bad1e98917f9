/*
 * Shared pieces of the verbs; see cli.h.
 */
#include "cli.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *cli_verb = "";

void cli_put_text(FILE *stream, const char *text)
{
    for (; *text; text++) {
        unsigned char byte = (unsigned char)*text;
        if (byte < 0x20 || byte == 0x7f)
            fprintf(stream, "\\x%02x", byte);
        else
            fputc(byte, stream);
    }
}

static int report(int code, const char *format, va_list arguments)
{
    char *message = NULL;
    cli_progress_end();
    fprintf(stderr, "headroom %s: ", cli_verb);
    if (vasprintf(&message, format, arguments) >= 0) {
        cli_put_text(stderr, message);
        free(message);
    }
    fputc('\n', stderr);
    return code;
}

int cli_fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int code = report(CLI_FAILED, format, arguments);
    va_end(arguments);
    return code;
}

int cli_usage(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int code = report(CLI_USAGE, format, arguments);
    va_end(arguments);
    return code;
}

int cli_fail_library(const char *context)
{
    if (context) return cli_fail("%s: %s", context, hr_last_error());
    return cli_fail("%s", hr_last_error());
}

void cli_bad_argument(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    report(CLI_USAGE, format, arguments);
    va_end(arguments);
    exit(CLI_USAGE);
}

long cli_number(const char *option, const char *text, long low, long high)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (*text == 0 || *end != 0 || errno != 0 || value < low || value > high)
        cli_bad_argument("%s is \"%s\"; it takes a whole number from %ld to %ld", option, text, low,
                         high);
    return value;
}

double cli_relative_error(const char *option, const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (*text == 0 || *end != 0 || !(value > 0) || isinf(value))
        cli_bad_argument("%s is \"%s\"; it takes a relative error > 0 such as 0.05", option, text);
    return value;
}

hr_device cli_parse_device(const char *text)
{
    hr_device device;
    if (hr_device_parse(text, &device) != HR_OK)
        cli_bad_argument("--device is \"%s\"; it takes cpu or cuda", text);
    return device;
}

static int add_recipe(const hr_recipe *recipe, hr_recipe *recipes, int32_t *count)
{
    if (*count == CLI_RECIPES_MAX)
        return cli_usage("--recipe lists more than %d recipes", CLI_RECIPES_MAX);
    recipes[(*count)++] = *recipe;
    return CLI_OK;
}

int cli_parse_recipes(char *text, hr_recipe recipes[CLI_RECIPES_MAX], int32_t *count)
{
    char *rest = NULL;
    int code = CLI_OK;
    *count = 0;
    for (char *word = text ? strtok_r(text, "; ", &rest) : NULL; word && code == CLI_OK;
         word = strtok_r(NULL, "; ", &rest)) {
        hr_recipe recipe;
        if (strcmp(word, "all") == 0) {
            for (int i = 0; i < hr_recipe_preset_count() && code == CLI_OK; i++)
                code = add_recipe(hr_recipe_preset(i), recipes, count);
        } else if (hr_recipe_parse(word, &recipe) != HR_OK) {
            code = cli_usage("--recipe: %s", hr_last_error());
        } else {
            code = add_recipe(&recipe, recipes, count);
        }
    }
    if (code == CLI_OK && text && *count == 0)
        return cli_usage("--recipe is empty; give recipes, or all for every preset");
    return code;
}

/* Digits only; -1 for anything else or a number above INT_MAX - 1. */
static int layer_number(const char *text, const char **end)
{
    long number = 0;
    for (*end = text; **end >= '0' && **end <= '9' && number < INT_MAX; ++*end)
        number = 10 * number + (**end - '0');
    return *end != text && number < INT_MAX ? (int)number : -1;
}

static void parse_layers(const char *text, cli_common *common)
{
    const char *end;
    common->first = common->last = layer_number(text, &end);
    if (*end == '-') common->last = layer_number(end + 1, &end);
    if (*end != 0 || common->first < 0 || common->last < common->first)
        cli_bad_argument("--layers is \"%s\"; it takes a number or a range such as 0-5", text);
}

static error_t parse_common(int key, char *argument, struct argp_state *state)
{
    cli_common *common = state->input;
    switch (key) {
    case 'j':
        common->json = true;
        return 0;
    case 't':
        common->threads = (int)cli_number("--threads", argument, 1, 4096);
        /* For what takes no number of its own. */
        setenv("HEADROOM_NUM_THREADS", argument, 1);
        return 0;
    case 'l':
        parse_layers(argument, common);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_timed(int key, char *argument, struct argp_state *state)
{
    if (key != 't') return parse_common(key, argument, state);
    ((cli_common *)state->input)->threads = (int)cli_number("--threads", argument, 1, 4096);
    return 0;
}

#define LAYERS                                                                                     \
    {                                                                                              \
        "layers", 'l', "A-B", 0, "Only layers A to B (or one layer A)", 10                         \
    }
#define JSON                                                                                       \
    {                                                                                              \
        "json", 'j', NULL, 0, "Print one JSON document on standard output", 10                     \
    }
#define THREADS(help)                                                                              \
    {                                                                                              \
        "threads", 't', "N", 0, help, 10                                                           \
    }
#define ALL_THREADS "Threads to use (default: all that affinity and CPU quota leave)"
#define TIMED_THREADS                                                                              \
    "Threads of the timed runs; all else, such as the FP64 reference, takes what affinity and "    \
    "CPU quota leave (the default) or HEADROOM_NUM_THREADS says"

static const struct argp_option common_options[] = {LAYERS, JSON, THREADS(ALL_THREADS), {0}};
static const struct argp_option output_options[] = {JSON, THREADS(ALL_THREADS), {0}};
static const struct argp_option timed_options[] = {LAYERS, JSON, THREADS(TIMED_THREADS), {0}};

const struct argp cli_common_argp = {.options = common_options, .parser = parse_common};
const struct argp cli_output_argp = {.options = output_options, .parser = parse_common};
const struct argp cli_timed_argp = {.options = timed_options, .parser = parse_timed};

cli_common cli_common_defaults(void)
{
    return (cli_common){.first = 0, .last = INT_MAX};
}

error_t cli_child_input(struct argp_state *state, cli_common *common)
{
    state->child_inputs[0] = common;
    state->err_stream = NULL;
    return 0;
}

error_t cli_parse_files(int key, char *text, const struct argp_state *state, cli_files *files)
{
    switch (key) {
    case 'o':
        files->output = text;
        return 0;
    case 'p':
        files->profile = text;
        return 0;
    case 'r':
        files->recipe = text;
        return 0;
    case 'k':
        files->kernel = text;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 0)
            cli_bad_argument("takes one %s, but also got \"%s\"", files->input_name, text);
        files->input = text;
        return 0;
    case ARGP_KEY_END:
        if (!files->input) cli_bad_argument("REC is missing: no %s given", files->input_name);
        if (!files->output) cli_bad_argument("-o %s is missing", files->output_name);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

void cli_parse(const struct argp *argp, int argc, char **argv, void *input)
{
    argp_err_exit_status = CLI_USAGE;
    if (argp_parse(argp, argc, argv, 0, NULL, input) != 0) exit(CLI_USAGE);
    if (hr_machine_threads() == 0) cli_bad_argument("%s", hr_last_error());
}

int cli_select_layers(const cli_common *common, const hr_recording *recording, int32_t **layers,
                      int32_t *count)
{
    hr_recording_info info = hr_recording_get_info(recording);
    int32_t lowest = INT32_MAX, highest = 0;
    *count = 0;
    *layers = calloc((size_t)info.layer_count + 1, sizeof **layers);
    if (!*layers) return cli_fail("out of memory");
    for (int32_t i = 0; i < info.layer_count; i++) {
        hr_recording_layer layer;
        if (hr_recording_get_layer(recording, i, &layer) != HR_OK) return cli_fail_library(NULL);
        if (layer.layer < lowest) lowest = layer.layer;
        if (layer.layer > highest) highest = layer.layer;
        if (layer.layer >= common->first && layer.layer <= common->last)
            (*layers)[(*count)++] = layer.layer;
    }
    bool one_missing = common->first == common->last && *count == 0;
    bool range_missing = common->last != INT_MAX && common->last > highest;
    if (*count > 0 && !one_missing && !range_missing) return CLI_OK;
    return cli_fail("%s: --layers %d-%d is not in the recording, which has %d layer%s, %d to %d",
                    info.path, common->first, common->last, info.layer_count,
                    cli_s(info.layer_count), lowest, highest);
}

void cli_warn_rope(const hr_recording *recording)
{
    const hr_recording_info info = hr_recording_get_info(recording);
    if (strcmp(info.rope, "before") != 0) return;
    fprintf(stderr, "headroom %s: warning: ", cli_verb);
    cli_put_text(stderr, info.path);
    fputs(
        ": Q and K are as they were before RoPE (headroom.rope is \"before\") and are not rotated "
        "here: scales and errors are those of attention without positions; record them after "
        "RoPE to have the model's\n",
        stderr);
}

int cli_check_output(const char *output, const char *const *inputs, int count)
{
    struct stat target, input;
    bool exists = stat(output, &target) == 0;
    if (exists && S_ISDIR(target.st_mode))
        return cli_fail("%s: cannot write: it is a directory, not a regular file", output);
    for (int i = 0; exists && i < count; i++)
        if (inputs[i] && stat(inputs[i], &input) == 0 && input.st_dev == target.st_dev &&
            input.st_ino == target.st_ino)
            return cli_usage("-o %s is the input %s; it would be overwritten", output, inputs[i]);
    /* The folder that matters is that of a link's target. */
    char *copy = exists ? realpath(output, NULL) : strdup(output);
    if (!copy) return cli_fail("%s: cannot write: %s", output, strerror(errno));
    int code = CLI_OK;
    if (access(dirname(copy), W_OK | X_OK) != 0)
        code = cli_fail("%s: cannot create a file in its directory: %s", output, strerror(errno));
    free(copy);
    return code;
}

static bool bar_drawn;

void cli_progress(double fraction, const char *what)
{
    enum { WIDTH = 30 };
    if (!isatty(STDERR_FILENO)) return;
    int filled = (int)(fraction * WIDTH);
    fprintf(stderr, "\r\033[K[%.*s%.*s] %3.0f%%  ", filled, "##############################",
            WIDTH - filled, "..............................", 100 * fraction);
    cli_put_text(stderr, what);
    fflush(stderr);
    bar_drawn = true;
}

void cli_progress_end(void)
{
    if (bar_drawn) fputs("\r\033[K", stderr);
    bar_drawn = false;
}

int cli_finish_output(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return CLI_OK;
    /* A second report would follow when main flushes again. */
    static bool reported;
    if (reported) return CLI_FAILED;
    reported = true;
    return cli_fail("cannot write to standard output: %s", strerror(errno));
}

int cli_print_json(json_t *document)
{
    char *text = document ? json_dumps(document, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(document);
    if (!text) return cli_fail("out of memory for the JSON output");
    puts(text);
    free(text);
    return cli_finish_output();
}

json_t *cli_path(const char *path)
{
    json_t *text = json_string(path);
    if (text) return text;
    char *escaped = NULL;
    size_t size;
    FILE *stream = open_memstream(&escaped, &size);
    if (!stream) return NULL;
    for (; *path; path++)
        fprintf(stream, *path & 0x80 ? "\\x%02x" : "%c", (unsigned char)*path);
    fclose(stream);
    text = json_string(escaped);
    free(escaped);
    return text;
}

json_t *cli_figure(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

json_t *cli_error_object(const hr_error *error)
{
    return json_pack("{so so so so so so sI sI}", "max_abs", cli_figure(error->max_abs), "rmse",
                     cli_figure(error->rmse), "rel_l1", cli_figure(error->rel_l1), "rel_l2",
                     cli_figure(error->rel_l2), "cosine", cli_figure(error->cosine), "sqnr_db",
                     cli_figure(error->sqnr_db), "count", (json_int_t)error->count, "nonfinite",
                     (json_int_t)error->nonfinite);
}

const char *cli_s(long long count)
{
    return count == 1 ? "" : "s";
}

const char *cli_bytes(double bytes)
{
    static char ring[4][32];
    static int next;
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    for (; bytes >= 1024 && unit < 4; unit++)
        bytes /= 1024;
    char *text = ring[next++ % 4];
    snprintf(text, sizeof ring[0], unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
    return text;
}
