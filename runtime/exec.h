/* The executor: runs a model's plan over a batch of rows, one row one (session, position).
 *
 * Every step appends device work; the host waits for the device only where it needs a value: at
 * ROUTE (which experts), at TAP and HEAD when somebody wants the numbers, at the end of a batch.
 * What lies between ROUTE and EXPERTS is submitted before EXPERTS waits for its reads.
 * Barriers: a step that reads what was written since the last barrier or wait asks for one
 * (exec_barrier); the hazard tracker of checking builds proves that none is missing.
 * Threads: the engine thread. No allocation after create. */
#ifndef CF_RUNTIME_EXEC_H
#define CF_RUNTIME_EXEC_H

#include "runtime/catflap.h"
#include "runtime/model.h"

typedef struct cf_exec cf_exec;

typedef struct cf_row {
    cf_session *session;
    uint32_t position;
    int32_t token;
} cf_row;

typedef struct cf_batch {
    const cf_row *rows; /* rows of one session are consecutive and in order */
    uint32_t n_rows;
    cf_phase phase;
    const cf_outputs *outputs; /* may be NULL */
    bool encoder;              /* the encoder's plan, over all of one session's input */
    bool last_logits;          /* logits of the last row are wanted even without outputs->row */
} cf_batch;

int cf_exec_create(cf_exec **out, cf_engine *engine, cf_err *err);
void cf_exec_destroy(cf_exec **exec);

/* What the steps of a plan took. */
typedef struct cf_step_time {
    uint64_t ns;               /* without what follows */
    uint64_t read_ns, copy_ns; /* the engine waited for reads, for copies */
} cf_step_time;

/* From the next run on every step is submitted and waited for by itself, and what it took is added
 * to times[its index in the plan]. NULL: no more. Results are the same, only later. */
void cf_exec_profile(cf_exec *exec, cf_step_time *times);

/* Runs the plan. *logits: of the last row when last_logits or outputs->row asked for them (valid
 * until the next run), else NULL. On failure nothing is in flight any more. */
int cf_exec_run(cf_exec *exec, const cf_batch *batch, const float **logits, cf_err *err);

#endif
