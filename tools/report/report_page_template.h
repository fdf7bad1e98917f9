/* The page, made at build time: what stands before and what stands after the report's JSON. */
#ifndef HEADROOM_REPORT_PAGE_TEMPLATE_H
#define HEADROOM_REPORT_PAGE_TEMPLATE_H

extern const char report_page_head[], report_page_tail[];

#endif
