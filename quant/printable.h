/*
 * Text from a file, made safe for a one-line message: control characters (newlines, terminal escape
 * sequences) are written as \xNN and long text is cut with "...".
 */
#ifndef HEADROOM_PRINTABLE_H
#define HEADROOM_PRINTABLE_H

typedef struct hr_printable {
    char text[120];
} hr_printable;

/* NULL gives "". The result is used within one expression: hr_print(name).text. */
hr_printable hr_print(const char *text);

#endif
