/* Runs whose logits are kept: see whole_run.h. */
#include "tests/support/whole_run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void whole_run_free(whole_run *r)
{
    free(r->logits);
    *r = (whole_run){0};
}

static void row_keep(void *user, uint32_t position, const float *logits, const float *hidden)
{
    whole_run *r = user;
    (void)hidden;
    if (position < r->n_rows)
        memcpy(r->logits + (size_t)position * r->vocab, logits, r->vocab * sizeof *logits);
}

static int32_t greedy(const float *logits, uint32_t vocab)
{
    int32_t best = 0;
    for (uint32_t v = 1; v < vocab; v++)
        if (logits[v] > logits[best])
            best = (int32_t)v;
    return best;
}

int whole_run_play(cf_engine *e, const oracle *p, whole_run *r, cf_err *err)
{
    cf_session *s = NULL;
    *r = (whole_run){.n_rows = p->n_prompt + WHOLE_RUN_DECODE, .vocab = p->vocab};
    r->logits = calloc((size_t)r->n_rows * r->vocab, sizeof *r->logits);
    cf_outputs out = {.row = row_keep, .user = r};
    int rc = cf_session_create(&s, e, err);
    if (rc == 0)
        rc = cf_session_extend(s, p->prompt, p->n_prompt, CF_PHASE_PROMPT, &out, err);
    for (int i = 0; rc == 0 && i < WHOLE_RUN_DECODE; i++) {
        int32_t id = greedy(cf_session_logits(s), r->vocab);
        rc = cf_session_extend(s, &id, 1, CF_PHASE_DECODE, &out, err);
    }
    cf_engine_get_stats(e, &r->stats);
    cf_session_destroy(&s);
    return rc;
}

bool whole_run_make(const char *dir, const oracle *p, const cf_options *o, whole_run *r)
{
    cf_err err = {0};
    cf_engine *e = NULL;
    *r = (whole_run){0};
    int rc = cf_engine_open(&e, dir, o, &err);
    if (rc == 0)
        rc = whole_run_play(e, p, r, &err);
    if (rc == 0 && cf_gpu_validation_errors(e->gpu)) /* hazards end the program by themselves */
        rc = CF_FAIL(&err, -EIO, "%d validation errors", cf_gpu_validation_errors(e->gpu));
    if (rc == 0 && cf_cache_verify(e->cache))
        rc = CF_FAIL(&err, -EIO, "%s", cf_cache_verify(e->cache));
    cf_engine_close(&e);
    if (rc < 0)
        printf("    %s\n", err.msg);
    return rc == 0;
}

bool whole_run_same(const whole_run *a, const whole_run *b)
{
    return a->logits && b->logits && a->n_rows == b->n_rows && a->vocab == b->vocab &&
           memcmp(a->logits, b->logits, (size_t)a->n_rows * a->vocab * sizeof(float)) == 0;
}
