/* Command line options: getopt_long with the common flags, and values that are checked.
 *
 * A value that is malformed is a usage error: one sentence that names the flag and the value, and
 * exit 2. Abbreviated long options are refused, since a new flag could change their meaning.
 * One cf_args at a time (getopt keeps its state in globals). */
#ifndef CF_TOOLS_OPTIONS_H
#define CF_TOOLS_OPTIONS_H

#include <getopt.h>

#include "tools/tool.h"

/* The flags that every command which opens an engine takes. */
typedef struct cf_common {
    cf_options engine;
    const char *stats_path, *trace_path, *timeline_path;
    int verbose;
    bool quiet;
    uint64_t given; /* see cf_common_given */
} cf_common;

enum {
    CF_OPT_DEVICE = 256,
    CF_OPT_VRAM,
    CF_OPT_RAM,
    CF_OPT_CTX,
    CF_OPT_POLICY,
    CF_OPT_PREFETCH,
    CF_OPT_IO,
    CF_OPT_DIRECT,
    CF_OPT_CHUNK,
    CF_OPT_KV,
    CF_OPT_ACTIVATIONS,
    CF_OPT_THREADS,
    CF_OPT_STATS,
    CF_OPT_TRACE,
    CF_OPT_TIMELINE,
    CF_OPT_HISTORY,
    CF_OPT_MEMORY,
    CF_OPT_CHECK,
    CF_OPT_COMMAND /* a command's own options from here on */
};

#define CF_COMMON_SHORT "vq"
/* clang-format off */
#define CF_COMMON_OPTIONS                                                                          \
    {"device", required_argument, NULL, CF_OPT_DEVICE},                                            \
    {"vram", required_argument, NULL, CF_OPT_VRAM},                                                \
    {"ram", required_argument, NULL, CF_OPT_RAM},                                                  \
    {"ctx", required_argument, NULL, CF_OPT_CTX},                                                  \
    {"policy", required_argument, NULL, CF_OPT_POLICY},                                            \
    {"prefetch", required_argument, NULL, CF_OPT_PREFETCH},                                        \
    {"io", required_argument, NULL, CF_OPT_IO},                                                    \
    {"direct", required_argument, NULL, CF_OPT_DIRECT},                                            \
    {"chunk", required_argument, NULL, CF_OPT_CHUNK},                                              \
    {"kv", required_argument, NULL, CF_OPT_KV},                                                    \
    {"activations", required_argument, NULL, CF_OPT_ACTIVATIONS},                                  \
    {"threads", required_argument, NULL, CF_OPT_THREADS},                                          \
    {"stats", required_argument, NULL, CF_OPT_STATS},                                              \
    {"trace", required_argument, NULL, CF_OPT_TRACE},                                              \
    {"timeline", required_argument, NULL, CF_OPT_TIMELINE},                                        \
    {"history", required_argument, NULL, CF_OPT_HISTORY},                                          \
    {"memory", required_argument, NULL, CF_OPT_MEMORY},                                            \
    {"check", no_argument, NULL, CF_OPT_CHECK}
/* clang-format on */

extern const char cf_common_help[];

typedef struct cf_args {
    const char *command;          /* for messages */
    const char *help;             /* printed for --help */
    const char *short_options;    /* without 'h'; "+" and ":" are added */
    const struct option *options; /* without help; ends in {0} */
    cf_common *common;            /* NULL: the command has no common flags */
    int argc;
    char **argv;
    /* The option just read. */
    char name[64];
    const char *value;
    int exit_code; /* once cf_args_next has returned CF_ARGS_STOP */
} cf_args;

enum { CF_ARGS_END = -1, CF_ARGS_STOP = -2 };

void cf_common_init(cf_common *common);
/* Whether the user gave this option (CF_OPT_DEVICE and on; of sampling.h, too). */
bool cf_common_given(const cf_common *common, int opt);
void cf_common_note(cf_common *common, int opt); /* it was given */
/* Opens the model as the flags say, with a bar on a terminal unless -q, lets Ctrl-C cancel it from
 * then on, and says what it is, and which of the flags change nothing (inert.h). 0, or negative
 * with a sentence. */
int cf_common_open(cf_common *common, const char *model, cf_engine **engine, cf_engine_info *info,
                   cf_err *err);
/* For commands that have no input for an encoder: refuses models with one. */
int cf_decoder_only(const cf_engine_info *info, const char *model, const char *command,
                    cf_err *err);
void cf_args_begin(cf_args *args);

/* The command's next own option (the common ones are taken care of), CF_ARGS_END, or CF_ARGS_STOP:
 * help was given or a usage error reported, and the command returns args->exit_code. */
int cf_args_next(cf_args *args);
/* After CF_ARGS_END: the one operand, or NULL after reporting that it is missing or that there are
 * more; `what` is its name in the usage ("MODEL"). */
const char *cf_args_operand(cf_args *args, const char *what);

/* Takes a command's own option; 0, or CF_ARGS_STOP after reporting. user: the command's settings. */
typedef int cf_args_take(void *user, cf_args *args, int opt);
/* All of it, from cf_args_begin on: the options by `take`, then the one operand, which is called `what`.
 * 0, or CF_ARGS_STOP. */
int cf_args_parse(cf_args *args, cf_args_take *take, void *user, const char *what,
                  const char **operand);

/* Reports a usage error ("catflap: <sentence> (see catflap run --help)"); returns CF_ARGS_STOP. */
int cf_args_usage(cf_args *args, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The value of the option just read; 0, or CF_ARGS_STOP after reporting. Limits are inclusive. */
int cf_args_u64(cf_args *args, uint64_t min, uint64_t max, uint64_t *out);
int cf_args_u32(cf_args *args, uint32_t min, uint32_t max, uint32_t *out);
int cf_args_double(cf_args *args, double min, double max, double *out);
int cf_args_size(cf_args *args, uint64_t *out); /* at least one byte */
int cf_args_switch(cf_args *args, bool *out);   /* on or off */

/* Pure parsers. "12", "12K", "12M", "12G" (powers of 1024), nothing before or behind. */
bool cf_parse_size(const char *text, uint64_t *out);
bool cf_parse_u64(const char *text, uint64_t *out);

#endif
