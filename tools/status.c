/* The rolling status line: see status.h. */
#include "tools/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"

enum { REDRAW_NS = 500000000 };

void cf_status_begin(cf_status *s, const cf_engine *engine, int verbose)
{
    const char *term = getenv("TERM");
    *s = (cf_status){.at_ns = cf_clock_ns()};
    s->on = verbose && isatty(STDERR_FILENO) && !isatty(STDOUT_FILENO) &&
            !(term && !strcmp(term, "dumb"));
    if (s->on)
        cf_engine_get_stats(engine, &s->at);
}

void cf_status_update(cf_status *s, const cf_engine *engine)
{
    uint64_t now = s->on ? cf_clock_ns() : 0;
    if (!s->on || now - s->at_ns < REDRAW_NS)
        return;
    cf_stats x;
    cf_engine_get_stats(engine, &x);
    double seconds = cf_seconds(now - s->at_ns);
    uint64_t lookups = x.decode.lookups - s->at.decode.lookups;
    uint64_t misses = x.decode.misses - s->at.decode.misses;
    char hits[32] = "-";
    if (lookups)
        snprintf(hits, sizeof hits, "%.1f %%", 100 - 100 * (double)misses / (double)lookups);
    fprintf(stderr, "\r%.2f tokens/s  hits %s  %.2f GB/s  waiting for reads %.0f %%\x1b[K",
            (double)(x.generated_tokens - s->at.generated_tokens) / seconds, hits,
            (double)(x.io_bytes - s->at.io_bytes) * 1e-9 / seconds,
            100 * (x.stall_io_s - s->at.stall_io_s) / seconds);
    s->at = x;
    s->at_ns = now;
    s->drawn = true;
}

void cf_status_end(cf_status *s)
{
    if (s->drawn)
        fputs("\r\x1b[K", stderr);
    *s = (cf_status){0};
}
