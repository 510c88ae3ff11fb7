/* A run from end to end, all its logits kept: a prompt in chunks, then a greedy continuation. For
 * tests that hold one way of running a model against another, bit by bit. */
#ifndef CF_TESTS_WHOLE_RUN_H
#define CF_TESTS_WHOLE_RUN_H

#include "runtime/engine.h"
#include "tests/support/oracle.h"

enum { WHOLE_RUN_DECODE = 4 };

typedef struct whole_run {
    uint32_t n_rows, vocab;
    float *logits; /* [prompt + WHOLE_RUN_DECODE, vocab] */
    cf_stats stats;
} whole_run;

/* In a session of its own. */
int whole_run_play(cf_engine *e, const oracle *p, whole_run *r, cf_err *err);
/* Opens an engine for it, and closes it; also checks what the device's validation and the cache
 * have to say. False: why is printed. */
bool whole_run_make(const char *dir, const oracle *p, const cf_options *o, whole_run *r);
void whole_run_free(whole_run *r);
bool whole_run_same(const whole_run *a, const whole_run *b); /* every bit of the logits */

#endif
