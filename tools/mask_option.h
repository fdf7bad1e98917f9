/*
 * The options of run, audit and bench that hide keys beyond causality: --window, --keep and
 * --block-sparse.
 */
#ifndef HEADROOM_MASK_OPTION_H
#define HEADROOM_MASK_OPTION_H

#include "cli.h"

typedef struct cli_mask {
    bool given;                /* any of the options */
    int32_t left, right, keep; /* as in hr_mask */
    const char *block_sparse;  /* a pattern's text, or a file */
} cli_mask;

extern const struct argp cli_mask_argp;
cli_mask cli_mask_defaults(void);

/*
 * Puts the options into the problem's mask; its lengths and causality are set. `blocks` is the
 * caller's, must live as long as the problem and is released with hr_block_mask_free, whatever this
 * returns: CLI_OK, or CLI_FAILED or CLI_USAGE, reported.
 */
int cli_mask_apply(const cli_mask *mask, hr_attention_problem *problem, hr_block_mask *blocks);

#endif
