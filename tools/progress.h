/* A progress bar on stderr, on a terminal only: what is done, rate, time left.
 *
 * Redrawn at most ten times a second on one line, which is wiped at the end. Elsewhere than on a
 * terminal (or with -q) every call does nothing. Thread-safety: one thread at a time. */
#ifndef CF_TOOLS_PROGRESS_H
#define CF_TOOLS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct cf_progress {
    bool on;
    char what[48];
    char unit[16]; /* empty: bytes */
    uint64_t total, begin_ns, drawn_ns;
} cf_progress;

void cf_progress_begin(cf_progress *p, const char *what, uint64_t total_bytes, bool quiet);
/* The same, counting something else than bytes ("tokens"). */
void cf_progress_begin_count(cf_progress *p, const char *what, uint64_t total, const char *unit,
                             bool quiet);
void cf_progress_update(cf_progress *p, uint64_t done);
void cf_progress_end(cf_progress *p); /* accepts a zeroed struct */

/* For cf_options.progress, with a zeroed cf_progress as user: begins, updates and ends by itself.
 */
void cf_progress_callback(void *user, const char *what, uint64_t done_bytes, uint64_t total_bytes);

#endif
