/* What the subcommands share: exit codes, the sentence of a failure, the way out on Ctrl-C.
 *
 * Threads: everything here is called from the main thread; the signal handler touches only
 * lock-free atomics, cf_engine_cancel, write and _exit. */
#ifndef CF_TOOLS_TOOL_H
#define CF_TOOLS_TOOL_H

#include "runtime/catflap.h"

enum { CF_EXIT_DONE = 0, CF_EXIT_FAILED = 1, CF_EXIT_USAGE = 2, CF_EXIT_INTERRUPTED = 130 };

int cmd_run(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_verify(int argc, char **argv);
int cmd_tune(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_mkmodel(int argc, char **argv);
int cmd_pack(int argc, char **argv);

/* "catflap: <sentence>" on stderr; returns CF_EXIT_FAILED. */
int cf_tool_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The sentence in err, or the name of the code where there is none. */
int cf_tool_fail_err(const cf_err *err, int code);

/* ---- Ctrl-C ---- */

/* From now on the first SIGINT, SIGTERM or SIGHUP cancels `engine` (where there is one) and sets
 * cf_interrupted; the second one ends the process at once with 130. While `engine` is NULL and
 * `cleanup` is false there is nothing to wind up, and the first one does that. */
void cf_interrupt_begin(cf_engine *engine, bool cleanup);
void cf_interrupt_end(void); /* before the engine is closed */
bool cf_interrupted(void);
/* Takes back a Ctrl-C that has been obeyed, the engine's cancellation included. Returns false, and
 * takes nothing back, when SIGTERM or SIGHUP came: those end a program. */
bool cf_interrupt_reset(cf_engine *engine);

#endif
