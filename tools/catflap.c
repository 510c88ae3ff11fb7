/* catflap: the program. Finds the subcommand and hands over; knows nothing else. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "tools/tool.h"

typedef struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *what;
} command;

static const command commands[] = {
    {"run", cmd_run, "generate text from a prompt"},
    {"chat", cmd_chat, "a conversation in the model's own chat template"},
    {"eval", cmd_eval, "perplexity and speed over a text; logits and hidden states"},
    {"info", cmd_info, "what a model is, its memory plan, its steps; the devices here"},
    {"verify", cmd_verify, "check a model's files without a run"},
    {"tune", cmd_tune, "replay routing traces: what a cache size and a policy would bring"},
    {"bench", cmd_bench, "the speed of a model, stage by stage; `bench io`: of a drive"},
    {"pack", cmd_pack, "write a model as one file: quantised, aligned, with checksums"},
    {"mkmodel", cmd_mkmodel, "write a checkpoint of random weights, of any size"},
};

enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void usage(FILE *out)
{
    fprintf(out, "catflap " CF_VERSION
                 ": run Mixture-of-Experts models several times larger than the memory\n"
                 "of the device, streaming their experts from the drive.\n\n"
                 "usage: catflap COMMAND ...\n\n");
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-8s  %s\n", commands[i].name, commands[i].what);
    fprintf(out, "\n  catflap COMMAND --help   says more, with an example\n"
                 "  catflap --version\n\n"
                 "example:\n"
                 "  catflap run models/demo -p \"Once upon a time\" -n 100 --vram 28M -v\n");
}

static int dispatch(int argc, char **argv)
{
    if (argc < 2) {
        usage(stderr);
        return CF_EXIT_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        usage(stdout);
        return CF_EXIT_DONE;
    }
    if (!strcmp(name, "--version")) {
        printf("catflap " CF_VERSION "\n");
        return CF_EXIT_DONE;
    }
    for (int i = 0; i < N_COMMANDS; i++)
        if (!strcmp(name, commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    cf_tool_fail("there is no command \"%.64s\"", name);
    fputc('\n', stderr);
    usage(stderr);
    return CF_EXIT_USAGE;
}

int main(int argc, char **argv)
{
    /* A reader that went away is a failed write, which is reported, and not a silent death. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file size limit likewise */
    int code = dispatch(argc, argv);
    bool lost = ferror(stdout) != 0;
    int cause = lost ? 0 : fflush(stdout) == 0 ? 0 : errno;
    if ((lost || cause) && code == CF_EXIT_DONE)
        code = cf_tool_fail("cannot write to standard output%s%s", cause ? ": " : "",
                            cause ? strerror(cause) : "");
    return code;
}
