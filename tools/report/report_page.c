/*
 * Puts a report's JSON into the page template, inside <script type="application/json">.
 *
 * The content of a script element ends at "</script" and changes its parsing at "<!--" and
 * "<script". In JSON a "<" can only stand inside a string, where \u003c means the same, so every
 * "<" is written that way and no string can reach the HTML parser.
 */
#include "report_page.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "report_page_template.h"

static const char ESCAPED[] = "\\u003c";

char *report_page_render(const char *json, size_t *length)
{
    const size_t head_bytes = strlen(report_page_head), tail_bytes = strlen(report_page_tail);

    size_t json_bytes = 0, extra = 0;
    for (; json[json_bytes]; json_bytes++)
        if (json[json_bytes] == '<') extra += sizeof ESCAPED - 2;
    size_t bytes;
    if (__builtin_add_overflow(json_bytes, extra, &bytes) ||
        __builtin_add_overflow(bytes, head_bytes + tail_bytes + 1, &bytes))
        return NULL;
    char *page = malloc(bytes);
    if (!page) return NULL;

    char *at = mempcpy(page, report_page_head, head_bytes);
    for (const char *from = json; *from; from++) {
        if (*from == '<')
            at = mempcpy(at, ESCAPED, sizeof ESCAPED - 1);
        else
            *at++ = *from;
    }
    memcpy(at, report_page_tail, tail_bytes + 1);
    if (length) *length = bytes - 1;
    return page;
}
