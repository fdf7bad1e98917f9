/*
 * Escaping of untrusted text for messages; see printable.h.
 */
#include "printable.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* C0 controls and DEL; C1 controls are the UTF-8 pairs C2 80 .. C2 9F. */
static bool is_control(const unsigned char *at)
{
    if (at[0] < 0x20 || at[0] == 0x7f) return true;
    return at[0] == 0xc2 && at[1] >= 0x80 && at[1] <= 0x9f;
}

hr_printable hr_print(const char *text)
{
    enum { ESCAPE_BYTES = 4 };
    hr_printable out = {{0}};
    /* Room for the longest escape, the three dots and the terminator is kept at every step. */
    size_t limit = sizeof out.text - ESCAPE_BYTES - 4, used = 0;
    const unsigned char *at = (const unsigned char *)(text ? text : "");
    for (; *at && used <= limit; at++) {
        if (is_control(at)) {
            used += (size_t)snprintf(out.text + used, ESCAPE_BYTES + 1, "\\x%02x", *at);
            if (*at == 0xc2) /* the second byte is a control only together with this one */
                used += (size_t)snprintf(out.text + used, ESCAPE_BYTES + 1, "\\x%02x", *++at);
        } else {
            out.text[used++] = (char)*at;
        }
    }
    if (!*at) return out;
    while (used > 0 && ((unsigned char)out.text[used - 1] & 0xc0) == 0x80)
        used--; /* do not cut inside a UTF-8 sequence */
    if (used > 0 && (unsigned char)out.text[used - 1] >= 0xc0) used--;
    strcpy(out.text + used, "...");
    return out;
}
