/*
 * headroom synth MODE -o REC: a synthetic recording.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

typedef struct synth_arguments {
    cli_common common;
    hr_synth_options options;
    const char *output;
} synth_arguments;

enum {
    KEY_HEADS = 256,
    KEY_KV_HEADS,
    KEY_HEAD_DIM,
    KEY_TOKENS,
    KEY_BATCH,
    KEY_SEED,
    KEY_FULL,
    KEY_ROPE
};

static const struct argp_option options[] = {
    {"output", 'o', "REC", 0, "The recording to write (required)", 0},
    {"heads", KEY_HEADS, "N", 0, "Query heads (default 8)", 0},
    {"kv-heads", KEY_KV_HEADS, "N", 0, "KV heads; divides --heads (default: as --heads)", 0},
    {"head-dim", KEY_HEAD_DIM, "N", 0, "Channels a head, a multiple of 8 up to 256 (default 64)",
     0},
    {"tokens", KEY_TOKENS, "N", 0, "Tokens in all (default 1024)", 0},
    {"batch", KEY_BATCH, "N", 0, "Sequences the tokens are split into (default 1)", 0},
    {"layers", 'l', "N", 0, "Number of layers (default 1)", 0},
    {"seed", KEY_SEED, "N", 0, "Seed (default 1)", 0},
    {"full", KEY_FULL, NULL, 0, "Every token sees every other (default: causal)", 0},
    {"rope", KEY_ROPE, NULL, 0, "Rotate Q and K by position", 0},
    {0},
};

static error_t parse(int key, char *text, struct argp_state *state)
{
    synth_arguments *arguments = state->input;
    hr_synth_options *o = &arguments->options;
    switch (key) {
    case ARGP_KEY_INIT:
        return cli_child_input(state, &arguments->common);
    case 'o':
        arguments->output = text;
        return 0;
    case KEY_HEADS:
        o->num_heads = (int32_t)cli_number("--heads", text, 1, 65536);
        return 0;
    case KEY_KV_HEADS:
        o->num_kv_heads = (int32_t)cli_number("--kv-heads", text, 1, 65536);
        return 0;
    case KEY_HEAD_DIM:
        o->head_dim = (int32_t)cli_number("--head-dim", text, 8, 256);
        return 0;
    case KEY_TOKENS:
        o->tokens = (int32_t)cli_number("--tokens", text, 1, INT32_MAX - 1);
        return 0;
    case KEY_BATCH:
        o->batch = (int32_t)cli_number("--batch", text, 1, 1 << 20);
        return 0;
    case 'l':
        o->layers = (int32_t)cli_number("--layers", text, 1, 10000);
        return 0;
    case KEY_SEED:
        o->seed = (uint64_t)cli_number("--seed", text, 0, INT64_MAX);
        return 0;
    case KEY_FULL:
        o->causal = false;
        return 0;
    case KEY_ROPE:
        o->rope = true;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 0) cli_bad_argument("takes one MODE, but also got \"%s\"", text);
        o->mode = text;
        return 0;
    case ARGP_KEY_END:
        if (!o->mode) cli_bad_argument("MODE is missing; --help lists the modes");
        if (!arguments->output) cli_bad_argument("-o REC is missing");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* The modes are a table of the library, so the help is made of it. */
static char *help_text(int key, const char *text, void *input)
{
    (void)input;
    if (key != ARGP_KEY_HELP_POST_DOC) return (char *)text;
    char *help = NULL;
    size_t size;
    FILE *stream = open_memstream(&help, &size);
    if (!stream) return (char *)text;
    fputs("Modes:\n", stream);
    for (int i = 0; i < hr_synth_mode_count(); i++)
        fprintf(stream, "  %-16s %s\n", hr_synth_mode_name(i), hr_synth_mode_summary(i));
    fputs(
        "\nExample: headroom synth sparse-outliers --heads 16 --head-dim 128 --tokens 4096 --full "
        "-o rec.safetensors",
        stream);
    fclose(stream);
    return help;
}

int verb_synth(int argc, char **argv)
{
    static const struct argp_child children[] = {{&cli_output_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "MODE",
        .doc = "Write a synthetic recording with the statistics that make low-precision attention "
               "hard. The same options and seed give the same bits on every machine.\v",
        .children = children,
        .help_filter = help_text,
    };
    synth_arguments arguments = {.common = cli_common_defaults()};
    hr_synth_options_init(&arguments.options);
    arguments.options.mode = NULL;
    arguments.options.num_kv_heads = 0;
    cli_parse(&argp, argc, argv, &arguments);
    hr_synth_options *o = &arguments.options;
    if (o->num_kv_heads == 0) o->num_kv_heads = o->num_heads;

    const hr_status status = hr_synth_write(o, arguments.output);
    if (status == HR_ERROR_INVALID_ARGUMENT || status == HR_ERROR_NOT_FOUND)
        return cli_usage("%s", hr_last_error());
    if (status != HR_OK) return cli_fail_library(NULL);
    if (arguments.common.json)
        return cli_print_json(json_pack(
            "{so ss si si si si si si sI sb sb}", "recording", cli_path(arguments.output), "mode",
            o->mode, "layers", o->layers, "num_heads", o->num_heads, "num_kv_heads",
            o->num_kv_heads, "head_dim", o->head_dim, "tokens", o->tokens, "batch", o->batch,
            "seed", (json_int_t)o->seed, "causal", o->causal, "rope", o->rope));
    printf("%s: %s, %d layer%s, %d head%s (%d KV), head_dim %d, %d token%s\n", arguments.output,
           o->mode, o->layers, cli_s(o->layers), o->num_heads, cli_s(o->num_heads), o->num_kv_heads,
           o->head_dim, o->tokens, cli_s(o->tokens));
    return CLI_OK;
}
