/*
 * What the verbs of the headroom command share: the options every verb takes, error reporting,
 * layer ranges, the progress bar and JSON output.
 *
 * Exit codes: 0 ok, 1 the work failed, 2 usage. An error is one line on stderr: what is wrong, in
 * which file or argument, and what would be accepted. Results go to stdout, all else to stderr.
 */
#ifndef HEADROOM_CLI_H
#define HEADROOM_CLI_H

#include <argp.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "headroom/headroom.h"

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

/* Options every verb takes; a verb's argp lists one of the argps below among its children. */
typedef struct cli_common {
    bool json;
    int threads;     /* 0: hr_machine_threads */
    int first, last; /* --layers; last is INT_MAX when not given */
} cli_common;

extern const struct argp cli_common_argp;
/* Without --layers, for verbs that read no file with layers. */
extern const struct argp cli_output_argp;
/* With a --threads that is of timed runs only: all else takes hr_machine_threads. */
extern const struct argp cli_timed_argp;
cli_common cli_common_defaults(void);

/*
 * Parses a verb's arguments. `input` is the verb's own state and `common` goes to the shared
 * options; usage errors exit with CLI_USAGE.
 */
void cli_parse(const struct argp *argp, int argc, char **argv, void *input);

/*
 * For ARGP_KEY_INIT of every verb: sends the shared options to `common` and silences argp's own
 * three-line errors, of which only getopt's first line is left.
 */
error_t cli_child_input(struct argp_state *state, cli_common *common);

/* The arguments of a verb that makes one file or folder of another. */
typedef struct cli_files {
    const char *input, *output, *profile, *kernel; /* NULL: not given */
    char *recipe;                                  /* the same; writable, it may be a list */
    const char *input_name, *output_name; /* set by the verb, for messages: "recording", "OUT" */
} cli_files;

/*
 * Parses them: the one positional argument, -o, -p, -r and -k as far as the verb's options list
 * them; input and output are required. ARGP_ERR_UNKNOWN for anything else, so that a verb's parser
 * can end with it.
 */
error_t cli_parse_files(int key, char *text, const struct argp_state *state, cli_files *files);

/* Prints "headroom VERB: message" to stderr and exits with CLI_USAGE. */
_Noreturn void cli_bad_argument(const char *format, ...) HR_PRINTF(1, 2);

/* The option --device of verbs that run kernels, and its value; a name that is none is CLI_USAGE.
 */
#define CLI_DEVICE_OPTION(key)                                                                     \
    {                                                                                              \
        "device", key, "NAME", 0,                                                                  \
            "Run on cpu (default) or cuda, an NVIDIA GPU of the Hopper kind", 0                    \
    }
hr_device cli_parse_device(const char *text);

/* Reads a whole number in [low, high], or ends with a usage error that names the option. */
long cli_number(const char *option, const char *text, long low, long high);

/* Likewise a relative error: a finite number above 0. */
double cli_relative_error(const char *option, const char *text);

/*
 * Recipes of a list with spaces or semicolons between, which is written on; all stands for every
 * preset. NULL leaves *count 0. CLI_OK, or CLI_USAGE, reported.
 */
enum { CLI_RECIPES_MAX = 64 };
int cli_parse_recipes(char *text, hr_recipe recipes[CLI_RECIPES_MAX], int32_t *count);

/* Prints "headroom VERB: message" to stderr and returns CLI_FAILED (or CLI_USAGE). */
int cli_fail(const char *format, ...) HR_PRINTF(1, 2);
int cli_usage(const char *format, ...) HR_PRINTF(1, 2);

/* As cli_fail with hr_last_error(); "context: message" when context is not NULL. */
int cli_fail_library(const char *context);

/* Layers of a recording inside --layers, in order. count > 0 or CLI_FAILED with the numbers there
 * are. */
int cli_select_layers(const cli_common *common, const hr_recording *recording, int32_t **layers,
                      int32_t *count);

/* Warns on stderr of a recording whose Q and K have not been rotated yet, which no stage does. */
void cli_warn_rope(const hr_recording *recording);

/*
 * Before the work: whether `output` could be written. A directory or an unwritable folder is
 * CLI_FAILED, one of the inputs (NULL entries are skipped) CLI_USAGE.
 */
int cli_check_output(const char *output, const char *const *inputs, int count);

/* Text that may hold anything, on one line: control characters are written as \xNN. */
void cli_put_text(FILE *stream, const char *text);

/* The bar is drawn only on a terminal and erased by cli_progress_end. */
void cli_progress(double fraction, const char *what);
void cli_progress_end(void);

/* Prints one document to stdout and releases it. */
int cli_print_json(json_t *document);

/* Flushes stdout; a closed or full one is an error like any other. */
int cli_finish_output(void);

/* A finite number, or null. */
json_t *cli_figure(double value);

/* A path as a JSON string; where it is not UTF-8, bytes above ASCII are written as \xNN. */
json_t *cli_path(const char *path);

/* {"max_abs":..., ...} as in the report. */
json_t *cli_error_object(const hr_error *error);

/* "1.2 MiB" in a static ring of buffers. */
const char *cli_bytes(double bytes);

/* What makes a noun a plural after that number: "" after 1, else "s". */
const char *cli_s(long long count);

extern const char *cli_verb; /* the verb being run, for messages */

int verb_calibrate(int argc, char **argv);
int verb_pack(int argc, char **argv);
int verb_run(int argc, char **argv);
int verb_audit(int argc, char **argv);
int verb_inspect(int argc, char **argv);
int verb_kernels(int argc, char **argv);
int verb_bench(int argc, char **argv);
int verb_synth(int argc, char **argv);

#endif
