/*
 * render_report REPORT.json > PAGE.html: report_page_render as a command, for the tests.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "report_page.h"

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: render_report REPORT.json > PAGE.html\n");
        return 2;
    }
    FILE *file = fopen(argv[1], "rb");
    if (!file) {
        fprintf(stderr, "render_report: %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    char *json = NULL, *page = NULL;
    size_t capacity = 0, length = 0;
    int status = 1;
    if (getdelim(&json, &capacity, '\0', file) < 0)
        fprintf(stderr, "render_report: %s: cannot be read\n", argv[1]);
    else if (!(page = report_page_render(json, &length)))
        fprintf(stderr, "render_report: out of memory\n");
    else if (strlen(page) != length || fwrite(page, 1, length, stdout) != length || fflush(stdout))
        fprintf(stderr, "render_report: cannot write the page\n");
    else
        status = 0;
    free(page);
    free(json);
    fclose(file);
    return status;
}
