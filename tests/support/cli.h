/* The built binary, as a process with its own outputs: for tests of the command line, and of what
 * only whole processes do (they are killed, their files are limited).
 *
 * Lines are words apart by blanks; '...' keeps blanks. No shell. A process that takes longer than
 * CLI_TIMEOUT_S is ended. Thread-safety: one thread. */
#ifndef CF_TESTS_CLI_H
#define CF_TESTS_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/support/tmpfiles.h"

enum { CLI_TIMEOUT_S = 120 };

typedef struct cli_result {
    int code; /* exit code, or -signal */
    double seconds;
    char out[1 << 16], err[1 << 16];
} cli_result;

/* The binary beside this program's folder: is it built? */
bool cli_find(void);
const char *cli_binary(void); /* once it was looked for */

/* Finds it and makes `dir`, in which outputs are kept. Says that it is not built where it returns
 * false: the program is to be skipped. */
bool cli_begin(tmp_dir *dir);

/* Runs a line to its end. */
void cli(cli_result *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
void cli_limited(cli_result *r, uint64_t fsize, const char *line); /* fsize: RLIMIT_FSIZE, or 0 */
/* Its exit code; what it said is asked for afterwards: "stdout" or "stderr", until the next call. */
int cli_run(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *cli_said(const char *where);

/* Starts one with its outputs on these descriptors (-1: those that cli_said reads). */
pid_t cli_start(const char *line, int out, int err, uint64_t fsize);
int cli_wait(pid_t pid); /* as cli_result.code */

/* An empty file of that name, and what is in it at last: closes it. */
int cli_scratch(const char *name);
void cli_read_back(int fd, char *text, size_t size);

/* CHECKs: exit 1 and one sentence that begins with the program's name. */
void cli_failed_with(const cli_result *r, const char *part);

bool cli_exists(const char *name); /* in `dir` */

/* A model dir/tiny of the shape `cli_tiny`, and a list of ids dir/ids, once for all. */
extern const char cli_tiny[];
bool cli_models_made(void);

json_t *cli_json(const char *text); /* NULL where it is none: says so */
json_int_t cli_json_at(const json_t *v, const char *a, const char *b);

#endif
