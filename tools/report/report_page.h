/*
 * The report page: one self-contained HTML file that draws a report (tools/report.schema.json).
 */
#ifndef HEADROOM_REPORT_PAGE_H
#define HEADROOM_REPORT_PAGE_H

#include <stddef.h>

/*
 * The page with `json`, a NUL-terminated UTF-8 report as hr_audit_json makes it, put in. No text in
 * the report can end the script element it sits in or open another. Returns NUL-terminated HTML for
 * the caller to write and release with free(), with its bytes (NUL not counted) in *length unless
 * that is NULL; NULL when memory is short.
 */
char *report_page_render(const char *json, size_t *length);

#endif
