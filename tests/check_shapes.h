/*
 * The shapes of the kernel check, read from the .txt files of tests/shapes. A line is
 *
 *     heads kv_heads head_dim q=LENGTH,... kv=LENGTH,...
 *
 * one length a sequence: a number, or a multiple of a kernel's tile plus or minus a number: R (its
 * tile_q) or K (its tile_kv), as 2K-1.
 */
#ifndef HEADROOM_CHECK_SHAPES_H
#define HEADROOM_CHECK_SHAPES_H

#include <criterion/criterion.h>
#include <ctype.h>
#include <glob.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHAPE_BATCH = 8, SHAPE_LINES = 64, SHAPE_LINE_BYTES = 128 };

typedef struct check_shape {
    int32_t batch, num_heads, num_kv_heads, head_dim;
    int32_t cu_seqlens_q[SHAPE_BATCH + 1], cu_seqlens_kv[SHAPE_BATCH + 1];
} check_shape;

typedef struct shape_lines {
    char line[SHAPE_LINES][SHAPE_LINE_BYTES];
    int count;
} shape_lines;

static inline void read_shape_file(const char *path, shape_lines *lines)
{
    FILE *file = fopen(path, "r");
    cr_assert_not_null(file, "cannot open %s", path);
    char text[SHAPE_LINE_BYTES];
    while (fgets(text, sizeof text, file)) {
        if (text[0] == '#' || text[0] == '\n') continue;
        cr_assert_lt(lines->count, SHAPE_LINES, "more than %d shapes", SHAPE_LINES);
        memcpy(lines->line[lines->count++], text, sizeof text);
    }
    fclose(file);
}

/* All lines of all files, in the files' alphabetical order. */
static inline void read_shapes(shape_lines *lines)
{
    lines->count = 0;
    glob_t found;
    /* A program that was built on another machine is told where the sources are on this one. */
    const char *source = getenv("HEADROOM_SOURCE");
    char pattern[4096];
    snprintf(pattern, sizeof pattern, "%s/tests/shapes/*.txt",
             source ? source : HEADROOM_SOURCE_DIR);
    cr_assert_eq(glob(pattern, 0, NULL, &found), 0, "nothing matches %s", pattern);
    for (size_t i = 0; i < found.gl_pathc; i++)
        read_shape_file(found.gl_pathv[i], lines);
    globfree(&found);
    cr_assert_gt(lines->count, 0);
}

static inline int32_t parse_length(const char **text, int32_t tile_q, int32_t tile_kv)
{
    char *end;
    long factor = 1, value;
    if (isdigit((unsigned char)**text)) {
        factor = strtol(*text, &end, 10);
        *text = end;
    }
    value = factor;
    if (**text == 'R' || **text == 'K') {
        value = factor * (**text == 'R' ? tile_q : tile_kv);
        ++*text;
        if (**text == '+' || **text == '-') {
            value += strtol(*text, &end, 10);
            *text = end;
        }
    }
    return (int32_t)value;
}

/* Comma-separated lengths to cumulative ones; returns how many. */
static inline int32_t parse_lengths(const char *text, int32_t tile_q, int32_t tile_kv,
                                    int32_t cu_seqlens[SHAPE_BATCH + 1])
{
    int32_t batch = 0;
    cu_seqlens[0] = 0;
    for (;;) {
        cr_assert_lt(batch, SHAPE_BATCH, "more than %d sequences: %s", SHAPE_BATCH, text);
        cu_seqlens[batch + 1] = cu_seqlens[batch] + parse_length(&text, tile_q, tile_kv);
        batch++;
        if (*text != ',') break;
        text++;
    }
    cr_assert(*text == 0 || isspace((unsigned char)*text), "not a length: %s", text);
    return batch;
}

static inline check_shape parse_shape(const char *line, int32_t tile_q, int32_t tile_kv)
{
    check_shape shape = {0};
    char q[SHAPE_LINE_BYTES], kv[SHAPE_LINE_BYTES];
    int fields = sscanf(line, "%d %d %d q=%127s kv=%127s", &shape.num_heads, &shape.num_kv_heads,
                        &shape.head_dim, q, kv);
    cr_assert_eq(fields, 5, "not a shape: %s", line);
    shape.batch = parse_lengths(q, tile_q, tile_kv, shape.cu_seqlens_q);
    cr_assert_eq(parse_lengths(kv, tile_q, tile_kv, shape.cu_seqlens_kv), shape.batch,
                 "q and kv differ in their number of sequences: %s", line);
    return shape;
}

#endif
