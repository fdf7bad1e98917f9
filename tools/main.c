/*
 * headroom VERB ...: dispatch to one file a verb.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

typedef struct verb {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} verb;

static const verb verbs[] = {
    {"calibrate", "recorded Q/K/V -> a profile of per-head scales", verb_calibrate},
    {"pack", "a recording and a profile -> packed Q/K/V", verb_pack},
    {"run", "attention over a recording or a packed file -> O and LSE", verb_run},
    {"audit", "accuracy against speed of every recipe, per layer and head -> report", verb_audit},
    {"inspect", "say what a file is and what is in it", verb_inspect},
    {"kernels", "list the attention kernels and which of them this machine runs", verb_kernels},
    {"bench", "time the kernels beside this machine's peaks", verb_bench},
    {"synth", "write a synthetic recording", verb_synth},
};

enum { VERB_COUNT = sizeof verbs / sizeof verbs[0] };

static void print_help(FILE *stream)
{
    fputs("Usage: headroom VERB [OPTION...] ...\n"
          "Quantized low-precision attention: how few bits each head can live with, and what it "
          "buys.\n\n",
          stream);
    for (int i = 0; i < VERB_COUNT; i++)
        fprintf(stream, "  %-10s %s\n", verbs[i].name, verbs[i].summary);
    fputs(
        "\nheadroom VERB --help says more, with an example. headroom --version prints the "
        "version.\n\n"
        "Exit codes: 0 done, 1 the work failed or a limit was not met (run --check=MAX), 2 wrong\n"
        "usage. Results go to standard output (--json: one document), errors to standard error.\n"
        "Environment: HEADROOM_ISA=portable,avx2 leaves only these instruction sets;\n"
        "HEADROOM_LOG=stderr, or a file, is told why each kernel was chosen;\n"
        "HEADROOM_NUM_THREADS=N, and else OMP_NUM_THREADS, is the default of --threads.\n",
        stream);
}

/*
 * With a standard stream closed, the next file opened would take its number and receive what is
 * printed. /dev/null opened the wrong way round keeps the number and makes every use of it fail.
 */
static void hold_standard_streams(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) < 0)
            _exit(CLI_FAILED);
}

int main(int argc, char **argv)
{
    hold_standard_streams();
    /* A closed pipe and a file-size limit become errors of write(), reported like any other. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);

    const char *name = argc > 1 ? argv[1] : "";
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help(stdout);
        return cli_finish_output();
    }
    if (strcmp(name, "--version") == 0) {
        printf("headroom %s\n", hr_version());
        return cli_finish_output();
    }
    for (int i = 0; i < VERB_COUNT; i++) {
        if (strcmp(name, verbs[i].name) != 0) continue;
        char invocation[64];
        snprintf(invocation, sizeof invocation, "headroom %s", name);
        cli_verb = name;
        argv[1] = invocation; /* argp names the program by its argv[0] */
        int code = verbs[i].run(argc - 1, argv + 1);
        int flushed = cli_finish_output();
        return code != CLI_OK ? code : flushed;
    }
    if (*name)
        fprintf(stderr, "headroom: there is no verb \"%s\"; headroom --help lists them\n", name);
    else
        print_help(stderr);
    return CLI_USAGE;
}
