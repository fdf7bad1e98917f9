/*
 * Masks from the command line; see mask_option.h.
 *
 * A block mask in a file is JSON: {"block_q": 64, "block_kv": 64, "heads": 1, "columns": [[0], [0,
 * 1], ...]} with one list of columns for each row of hr_block_mask.
 */
#include "mask_option.h"

#include <stdlib.h>
#include <string.h>

enum { KEY_WINDOW = 512, KEY_KEEP, KEY_BLOCK_SPARSE };

static const struct argp_option options[] = {
    {"window", KEY_WINDOW, "L,R", 0,
     "A query sees at most L keys before and R after its own position; -1: no limit", 8},
    {"keep", KEY_KEEP, "N", 0,
     "The first N keys stay visible whatever window and blocks hide (attention sinks)", 8},
    {"block-sparse", KEY_BLOCK_SPARSE, "PATTERN|FILE", 0,
     "See blocks only: longformer:block=64,window=4,global=1 or "
     "bigbird:block=64,window=1,global=1,random=3,seed=0 (sizes in blocks), or a JSON file with "
     "block_q, block_kv, heads and columns, a list of visible key blocks for each query block",
     8},
    {0},
};

static void parse_window(const char *text, cli_mask *mask)
{
    char *end;
    long left = strtol(text, &end, 10), right = -2;
    bool good = end != text && *end == ',';
    if (good) {
        const char *second = end + 1;
        right = strtol(second, &end, 10);
        good = end != second && *end == 0;
    }
    if (!good || left < -1 || right < -1 || left > INT32_MAX - 1 || right > INT32_MAX - 1)
        cli_bad_argument("--window is \"%s\"; it takes two numbers of -1 or more, such as 1024,0",
                         text);
    mask->left = (int32_t)left;
    mask->right = (int32_t)right;
}

static error_t parse(int key, char *text, struct argp_state *state)
{
    cli_mask *mask = state->input;
    switch (key) {
    case KEY_WINDOW:
        parse_window(text, mask);
        break;
    case KEY_KEEP:
        mask->keep = (int32_t)cli_number("--keep", text, 0, INT32_MAX);
        break;
    case KEY_BLOCK_SPARSE:
        mask->block_sparse = text;
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    mask->given = true;
    return 0;
}

const struct argp cli_mask_argp = {.options = options, .parser = parse};

cli_mask cli_mask_defaults(void)
{
    return (cli_mask){.left = -1, .right = -1};
}

/* Sets one "name=value" of a pattern; false when there is no such number. */
static bool set_number(hr_block_pattern *pattern, bool bigbird, const char *word)
{
    const struct {
        const char *name;
        int32_t *value;
    } numbers[] = {{"block", &pattern->block},
                   {"window", &pattern->window},
                   {"global", &pattern->global},
                   {"random", bigbird ? &pattern->random : NULL}};
    const char *equals = strchr(word, '=');
    char *end;
    if (!equals) return false;
    const long long value = strtoll(equals + 1, &end, 10);
    if (end == equals + 1 || *end != 0 || value < 0 || value > INT32_MAX) return false;
    const size_t length = (size_t)(equals - word);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (strlen(numbers[i].name) == length && strncmp(numbers[i].name, word, length) == 0) {
            if (numbers[i].value) *numbers[i].value = (int32_t)value;
            return numbers[i].value;
        }
    if (!bigbird || length != 4 || strncmp("seed", word, length) != 0) return false;
    pattern->seed = (uint64_t)value;
    return true;
}

static int parse_pattern(const char *text, bool bigbird, hr_block_pattern *pattern)
{
    *pattern = (hr_block_pattern){.block = 64, .window = bigbird ? 1 : 4, .global = 1};
    if (bigbird) pattern->random = 3;
    char *copy = strdup(strchr(text, ':') + 1), *rest = NULL;
    if (!copy) return cli_fail("out of memory");
    int code = CLI_OK;
    for (char *word = strtok_r(copy, ",", &rest); word && code == CLI_OK;
         word = strtok_r(NULL, ",", &rest))
        if (!set_number(pattern, bigbird, word))
            code = cli_usage("--block-sparse: \"%s\" in \"%s\" is not one of block=N, window=N, "
                             "global=N%s",
                             word, text, bigbird ? ", random=N, seed=N" : "");
    free(copy);
    return code;
}

/* The rows of a JSON mask; `blocks` is zeroed. */
static int read_columns(const char *path, const json_t *lists, hr_block_mask *blocks)
{
    const size_t rows = json_array_size(lists);
    size_t count = 0, used = 0, r, i;
    json_t *list, *column;
    json_array_foreach (lists, r, list)
        count += json_array_size(list);
    blocks->row_begin = calloc(rows + 1, sizeof *blocks->row_begin);
    blocks->columns = calloc(count + 1, sizeof *blocks->columns);
    if (!blocks->row_begin || !blocks->columns) return cli_fail("out of memory for %s", path);
    if (blocks->heads < 1 || rows % (size_t)blocks->heads != 0 || rows > INT32_MAX)
        return cli_fail("%s: %zu lists of columns cannot be those of %d heads", path, rows,
                        blocks->heads);
    blocks->rows = (int32_t)(rows / (size_t)blocks->heads);
    json_array_foreach (lists, r, list) {
        if (!json_is_array(list)) return cli_fail("%s: columns[%zu] is not a list", path, r);
        json_array_foreach (list, i, column) {
            const json_int_t value = json_integer_value(column);
            if (!json_is_integer(column) || value < 0 || value > INT32_MAX)
                return cli_fail("%s: columns[%zu][%zu] is not the number of a block", path, r, i);
            blocks->columns[used++] = (int32_t)value;
        }
        blocks->row_begin[r + 1] = (int64_t)used;
    }
    return CLI_OK;
}

static int read_file(const char *path, hr_block_mask *blocks)
{
    json_error_t error;
    json_t *document = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!document)
        return cli_fail("--block-sparse: %s is neither a pattern (longformer:..., bigbird:...) nor "
                        "a JSON file: %s",
                        path, error.text);
    json_t *lists;
    int code;
    if (json_unpack_ex(document, &error, 0, "{s:i, s:i, s:i, s:o !}", "block_q", &blocks->block_q,
                       "block_kv", &blocks->block_kv, "heads", &blocks->heads, "columns",
                       &lists) != 0 ||
        !json_is_array(lists))
        code = cli_fail("%s: it must have the numbers block_q, block_kv and heads and the list "
                        "columns, and nothing else",
                        path);
    else
        code = read_columns(path, lists, blocks);
    json_decref(document);
    return code;
}

int cli_mask_apply(const cli_mask *mask, hr_attention_problem *problem, hr_block_mask *blocks)
{
    memset(blocks, 0, sizeof *blocks);
    problem->mask.window_left = mask->left;
    problem->mask.window_right = mask->right;
    problem->mask.keep = mask->keep;
    if (!mask->block_sparse) return CLI_OK;
    problem->mask.blocks = blocks;
    const bool bigbird = strncmp(mask->block_sparse, "bigbird:", 8) == 0;
    if (!bigbird && strncmp(mask->block_sparse, "longformer:", 11) != 0)
        return read_file(mask->block_sparse, blocks);
    hr_block_pattern pattern;
    int code = parse_pattern(mask->block_sparse, bigbird, &pattern);
    if (code != CLI_OK) return code;
    pattern.causal = problem->mask.causal;
    if (hr_block_mask_from_pattern(&pattern, 1, problem->batch, problem->cu_seqlens_q,
                                   problem->cu_seqlens_kv, blocks) != HR_OK)
        return cli_fail_library("--block-sparse");
    return CLI_OK;
}
