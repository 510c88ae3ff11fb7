/* Jobs that end on other threads, waited for together. The first failure is kept.
 *
 * Thread-safety: cf_gather_done from any thread, the rest from the one that waits. */
#ifndef CF_TOOLS_GATHER_H
#define CF_TOOLS_GATHER_H

#include <pthread.h>
#include <stdint.h>

#include "runtime/base/err.h"

typedef struct cf_gather {
    pthread_mutex_t lock;
    pthread_cond_t idle;
    uint32_t pending;
    int status; /* 0, or the first failure's, */
    cf_err err; /* and its sentence */
} cf_gather;

void cf_gather_init(cf_gather *g);
void cf_gather_finish(cf_gather *g);

void cf_gather_expect(cf_gather *g, uint32_t jobs); /* before the first can end */
void cf_gather_done(cf_gather *g, int status, const cf_err *err);
int cf_gather_wait(cf_gather *g); /* until all are; returns `status` */

#endif
