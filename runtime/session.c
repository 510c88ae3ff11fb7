/* Sessions: timelines of tokens over an engine. See catflap.h. */
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/engine.h"

int cf_session_create(cf_session **out, cf_engine *e, cf_err *err)
{
    uint32_t index = 0;
    while (index < e->plan.sessions && e->session_used[index])
        index++;
    if (index == e->plan.sessions)
        return CF_FAIL(err, CF_ELIMIT, "the engine was opened for %u sessions, all are in use",
                       e->plan.sessions);
    cf_session *s = calloc(1, sizeof *s);
    if (!s || !(s->ids = calloc(e->plan.ctx, sizeof *s->ids))) {
        free(s);
        return CF_FAIL(err, -ENOMEM, "out of memory for a session of %u positions", e->plan.ctx);
    }
    s->engine = e;
    s->index = index;
    s->number = e->n_sessions_made++;
    e->session_used[index] = 1;
    *out = s;
    return 0;
}

void cf_session_destroy(cf_session **session)
{
    cf_session *s = *session;
    if (!s)
        return;
    s->engine->session_used[s->index] = 0;
    free(s->ids);
    free(s);
    *session = NULL;
}

uint32_t cf_session_length(const cf_session *session)
{
    return session->length;
}

const float *cf_session_logits(const cf_session *session)
{
    return session->logits;
}

uint32_t cf_session_rewind(cf_session *session, uint32_t length)
{
    session->logits = NULL;
    /* A cache keeps every position by itself: any length can be returned to. A recurrent state has
     * no positions: what is before its end can only be computed again from the beginning. */
    if (length < session->length)
        session->length = session->engine->model->n_states ? 0 : length;
    return session->length;
}

static int ids_check(const cf_engine *e, const int32_t *ids, uint32_t n, cf_err *err)
{
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= e->model->spec.vocab)
            return CF_FAIL(err, -EINVAL, "token id %d (number %u) is outside the vocabulary of %u",
                           ids[i], i, e->model->spec.vocab);
    return 0;
}

/* One chunk, which fits. */
static int chunk_run(cf_session *s, uint32_t n, cf_phase phase, const cf_outputs *outputs,
                     bool last, cf_err *err)
{
    cf_engine *e = s->engine;
    cf_row *rows = e->batch_rows;
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (cf_row){s, s->length + i, s->ids[s->length + i]};
    cf_batch batch = {.rows = rows, .n_rows = n, .phase = phase, .outputs = outputs,
                      .last_logits = last};
    uint64_t begin = cf_clock_ns();
    int rc = cf_exec_run(e->exec, &batch, &s->logits, err);
    uint64_t ns = cf_clock_ns() - begin;
    if (phase == CF_PHASE_DECODE) {
        e->counters.decode_ns += ns;
        e->counters.generated_tokens += rc < 0 ? 0 : n;
    } else {
        e->counters.prefill_ns += ns;
        e->counters.prompt_tokens += rc < 0 ? 0 : n;
    }
    if (rc == 0) {
        s->length += n;
        s->turn ^= 1; /* a chunk that failed leaves the old state in force */
    }
    return rc;
}

int cf_session_encode(cf_session *s, const int32_t *ids, uint32_t n, const cf_outputs *outputs,
                      cf_err *err)
{
    cf_engine *e = s->engine;
    uint32_t most = e->plan.chunk; /* which the context holds */
    int rc = ids_check(e, ids, n, err);
    if (rc < 0)
        return rc;
    if (!e->model->n_encoder_steps)
        return CF_FAIL(err, -EINVAL, "%s has no encoder: its session is extended",
                       e->model->spec.name);
    if (n == 0)
        return CF_FAIL(err, -EINVAL, "the encoder's input has at least one token");
    if (n > most)
        return CF_FAIL(err, CF_ELIMIT,
                       "the encoder reads its %u tokens at once and a chunk holds %u: --chunk %u "
                       "(and --ctx) would do",
                       n, most, n);
    s->logits = NULL;
    s->length = s->encoded = 0;
    for (uint32_t i = 0; i < n; i++)
        e->batch_rows[i] = (cf_row){s, i, ids[i]};
    cf_batch batch = {.rows = e->batch_rows, .n_rows = n, .phase = CF_PHASE_PROMPT,
                      .outputs = outputs, .encoder = true};
    const float *none;
    uint64_t begin = cf_clock_ns();
    rc = cf_exec_run(e->exec, &batch, &none, err);
    e->counters.prefill_ns += cf_clock_ns() - begin;
    e->counters.prompt_tokens += rc < 0 ? 0 : n;
    s->encoded = rc < 0 ? 0 : n;
    return rc;
}

int cf_session_extend(cf_session *s, const int32_t *ids, uint32_t n, cf_phase phase,
                      const cf_outputs *outputs, cf_err *err)
{
    cf_engine *e = s->engine;
    int rc = ids_check(e, ids, n, err);
    if (rc < 0)
        return rc;
    if (n == 0)
        return CF_FAIL(err, -EINVAL, "a session is extended by at least one token");
    if (e->model->n_encoder_steps && !s->encoded)
        return CF_FAIL(err, -EINVAL, "%s continues what its encoder has read, which is nothing yet",
                       e->model->spec.name);
    if (n > e->plan.ctx - s->length)
        return CF_FAIL(err, CF_ELIMIT,
                       "%u tokens after %u exceed the context of %u; a larger --ctx makes room", n,
                       s->length, e->plan.ctx);
    memcpy(s->ids + s->length, ids, n * sizeof *ids);
    s->logits = NULL;
    for (uint32_t done = 0; done < n;) {
        uint32_t part = n - done < e->plan.chunk ? n - done : e->plan.chunk;
        rc = chunk_run(s, part, phase, outputs, done + part == n, err);
        if (rc < 0)
            return rc;
        done += part;
    }
    return 0;
}
