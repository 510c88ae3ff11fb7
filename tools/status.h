/* The rolling status line of `run -v`: speed, hit rate, bytes per second and share of time spent
 * waiting for reads, of the last half second or so.
 *
 * On stderr, when that is a terminal and stdout is not: text on the same screen would be garbled.
 * Erased at the end. Elsewhere every call does nothing. One thread, the engine's. */
#ifndef CF_TOOLS_STATUS_H
#define CF_TOOLS_STATUS_H

#include "runtime/catflap.h"

typedef struct cf_status {
    bool on, drawn;
    uint64_t at_ns;
    cf_stats at; /* when the line was last drawn */
} cf_status;

void cf_status_begin(cf_status *s, const cf_engine *engine, int verbose);
void cf_status_update(cf_status *s, const cf_engine *engine); /* after each token */
void cf_status_end(cf_status *s);                             /* accepts a zeroed struct */

#endif
