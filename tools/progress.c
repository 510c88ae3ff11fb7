/* A progress bar on stderr: see progress.h. */
#include "tools/progress.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "tools/table.h"

enum { REDRAW_NS = 100000000, MAX_BAR = 40 };

void cf_progress_begin(cf_progress *p, const char *what, uint64_t total_bytes, bool quiet)
{
    cf_progress_begin_count(p, what, total_bytes, "", quiet);
}

void cf_progress_begin_count(cf_progress *p, const char *what, uint64_t total, const char *unit,
                             bool quiet)
{
    *p = (cf_progress){.total = total, .begin_ns = cf_clock_ns()};
    const char *term = getenv("TERM");
    p->on = !quiet && isatty(STDERR_FILENO) && !(term && !strcmp(term, "dumb"));
    snprintf(p->what, sizeof p->what, "%s", what);
    snprintf(p->unit, sizeof p->unit, "%s", unit);
}

static int terminal_columns(void)
{
    struct winsize w;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0)
        return w.ws_col;
    return 80;
}

static void time_left_text(double seconds, char *buf, size_t size)
{
    unsigned s = seconds < 359999 ? (unsigned)seconds : 359999;
    if (s >= 3600)
        snprintf(buf, size, "%u:%02u:%02u", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(buf, size, "%u:%02u", s / 60, s % 60);
}

static const char *amount_text(const cf_progress *p, double v, char *buf, size_t size)
{
    if (!p->unit[0])
        return cf_bytes_text((uint64_t)v, buf, size);
    snprintf(buf, size, v < 100 && v != floor(v) ? "%.1f" : "%.0f", v);
    return buf;
}

static void progress_draw(const cf_progress *p, uint64_t done, uint64_t now_ns)
{
    char have[32], all[32], rate[32], left[32] = "-:--";
    double share = p->total ? (double)done / (double)p->total : 1;
    double seconds = cf_seconds(now_ns - p->begin_ns);
    double per_second = seconds > 0 ? (double)done / seconds : 0;
    if (per_second > 0)
        time_left_text((double)(p->total - done) / per_second, left, sizeof left);
    char tail[160], bar[MAX_BAR + 1];
    int n = snprintf(tail, sizeof tail, "%3.0f %%  %s of %s%s%s  %s/s  %s left", share * 100,
                     amount_text(p, (double)done, have, sizeof have),
                     amount_text(p, (double)p->total, all, sizeof all), p->unit[0] ? " " : "",
                     p->unit, amount_text(p, per_second, rate, sizeof rate), left);
    int room = terminal_columns() - 1 - n - (int)strlen(p->what) - 5;
    int width = room < 0 ? 0 : room > MAX_BAR ? MAX_BAR : room;
    int filled = (int)(share * width);
    memset(bar, '#', (size_t)filled);
    memset(bar + filled, '.', (size_t)(width - filled));
    bar[width] = 0;
    if (width >= 4)
        fprintf(stderr, "\r%s [%s] %s\x1b[K", p->what, bar, tail);
    else if (room + n - 5 > 0) /* what it is before how fast it is */
        fprintf(stderr, "\r%s %3.0f %%\x1b[K", p->what, share * 100);
    else
        fprintf(stderr, "\r%3.0f %%\x1b[K", share * 100);
}

void cf_progress_update(cf_progress *p, uint64_t done)
{
    if (!p->on)
        return;
    uint64_t now = cf_clock_ns();
    if (p->drawn_ns && now - p->drawn_ns < REDRAW_NS)
        return;
    p->drawn_ns = now;
    progress_draw(p, done < p->total ? done : p->total, now);
}

void cf_progress_end(cf_progress *p)
{
    if (p->on && p->drawn_ns)
        fputs("\r\x1b[K", stderr);
    p->on = false;
}

void cf_progress_callback(void *user, const char *what, uint64_t done_bytes, uint64_t total_bytes)
{
    cf_progress *p = user;
    if (!p->begin_ns)
        cf_progress_begin(p, what, total_bytes, false);
    cf_progress_update(p, done_bytes);
    if (done_bytes >= total_bytes)
        cf_progress_end(p);
}
