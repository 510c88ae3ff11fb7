/* What the subcommands share: see tool.h. */
#include "tools/tool.h"

#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int cf_tool_fail(const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    fflush(stdout);
    fprintf(stderr, "catflap: %s\n", line);
    return CF_EXIT_FAILED;
}

int cf_tool_fail_err(const cf_err *err, int code)
{
    return cf_tool_fail("%s", err->msg[0] ? err->msg : cf_err_name(code));
}

/* ---- Ctrl-C ---- */

static _Atomic(cf_engine *) interrupt_engine;
static atomic_bool interrupt_winds_up, interrupt_seen, interrupt_final;
static atomic_int interrupt_running; /* handlers that may hold the engine's address */

_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_POINTER_LOCK_FREE == 2 &&
                   ATOMIC_BOOL_LOCK_FREE == 2,
               "the signal handler needs lock-free atomics");

static void interrupt_handler(int signal)
{
    int saved = errno;
    atomic_fetch_add(&interrupt_running, 1);
    cf_engine *engine = atomic_load(&interrupt_engine);
    if (signal != SIGINT)
        atomic_store(&interrupt_final, true);
    bool again = atomic_exchange(&interrupt_seen, true);
    if (again || (!engine && !atomic_load(&interrupt_winds_up))) {
        static const char line[] = "catflap: interrupted\n";
        ssize_t n = write(STDERR_FILENO, line, sizeof line - 1);
        (void)n;
        _exit(CF_EXIT_INTERRUPTED);
    }
    if (engine)
        cf_engine_cancel(engine);
    atomic_fetch_sub(&interrupt_running, 1);
    errno = saved;
}

void cf_interrupt_begin(cf_engine *engine, bool cleanup)
{
    atomic_store(&interrupt_winds_up, cleanup);
    atomic_store(&interrupt_engine, engine);
    struct sigaction action = {.sa_handler = interrupt_handler, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        struct sigaction old;
        /* nohup means what it says. (A shell's background job ignores SIGINT too, but there whoever
         * sends one by hand means it.) */
        bool nohup =
            signals[i] == SIGHUP && sigaction(SIGHUP, NULL, &old) == 0 && old.sa_handler == SIG_IGN;
        if (!nohup)
            sigaction(signals[i], &action, NULL);
    }
}

void cf_interrupt_end(void)
{
    atomic_store(&interrupt_engine, NULL);
    atomic_store(&interrupt_winds_up, false);
    /* The handler may be running in another thread, with the address it has read before. */
    while (atomic_load(&interrupt_running))
        sched_yield();
}

bool cf_interrupted(void)
{
    return atomic_load(&interrupt_seen);
}

bool cf_interrupt_reset(cf_engine *engine)
{
    if (atomic_load(&interrupt_final))
        return false;
    atomic_store(&interrupt_seen, false);
    cf_engine_resume(engine);
    return true;
}
