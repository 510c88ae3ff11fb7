/* Dense weights that do not stay: matrices streamed in the order of the plan, once a batch.
 *
 * Device memory for them is a few equal *segments*. The streamed matrices, in the order of their
 * use, are cut into *pages* of at most a segment; page p lies in segment p mod n. What is to be
 * read is known exactly: pages are read as far ahead as there are segments, nothing is read that is
 * not used, nothing twice in a batch (a step that uses a matrix twice holds it meanwhile).
 *
 *     page:   waiting -> being read -> used by recorded work -> free, when that work is done
 *
 * A matrix of which recorded work is not known to be done keeps its page: its lease. Reads before
 * the next EXPERTS step are demands, like those of the experts, in order of submission; what lies
 * beyond yields to the experts, and becomes a demand when that step is over.
 *
 * In place (unified memory) the ring reads into the segment itself. Elsewhere reads land in stages,
 * a part of a matrix each, from which the copy thread fills the segment. What RAM has room for is
 * held there (dense_hold.h): read to its place in the first batch that uses it, from then on copied
 * from there. Reads and those copies go through the schedule each at their own pace. A batch that
 * fails leaves what it has brought whole; the rest is read again in the next one.
 *
 * Nothing here touches the expert cache: what is resident there is a function of the plan alone.
 * Threads: the engine thread calls; completions arrive on the I/O and copy threads. */
#ifndef CF_RUNTIME_DENSE_H
#define CF_RUNTIME_DENSE_H

#include "runtime/base/pages.h"
#include "runtime/copier.h"
#include "runtime/dense_hold.h"
#include "runtime/dense_plan.h"
#include "runtime/timeline.h"
#include "runtime/weights.h"
#include "storage/fetch.h"

typedef struct cf_dense cf_dense;

typedef struct cf_dense_options {
    const cf_model *model; /* all borrowed */
    cf_gpu *gpu;
    cf_ledger *ledger;
    const cf_dense_plan *plan;
    const cf_hold_plan *hold;
    const cf_slots_shape *shape;
    const uint8_t *streamed; /* [model->n_weights] */
    uint32_t align;
} cf_dense_options;

typedef struct cf_dense_stats {
    uint64_t reads, bytes; /* matrices, or parts of them; as asked of the kernel */
    uint64_t copied;       /* bytes that came from RAM instead of a read */
    /* Waited for reads; for copies once reads were in; for the device to give back a segment. */
    uint64_t stall_ns, copy_ns, device_ns;
} cf_dense_stats;

/* Host bytes of the tables for n streamed matrices. */
uint64_t cf_dense_memory(const cf_dense_plan *plan);

/* Takes the memory; batches can begin once reads and copies have somebody to do them. */
int cf_dense_create(cf_dense **out, const cf_dense_options *options, cf_err *err);
void cf_dense_destroy(cf_dense **dense);         /* between batches; accepts NULL */
cf_io_region cf_dense_region(const cf_dense *d); /* what reads go to */
/* region: its number among the fetcher's. */
void cf_dense_attach(cf_dense *d, cf_fetch *fetch, int32_t region, cf_copier *copier,
                     cf_timeline *timeline);

/* ---- a batch: begin, then for each use seek, perhaps wait, use; in the order of the plan ---- */

void cf_dense_begin(cf_dense *d, bool head); /* head: the HEAD step will compute */
typedef enum {
    CF_DENSE_THERE,
    CF_DENSE_TURNED, /* there; what is recorded uses an earlier page, and should be submitted */
    CF_DENSE_AWAITED
} cf_dense_state;

/* Goes to the matrix that is used next, which ends the use of the one before. Going to the present
 * one again is no change. */
cf_dense_state cf_dense_seek(cf_dense *d, cf_wid w);
/* Blocks until it is there. Everything recorded must have been submitted. On failure nothing is in
 * flight, and the batch can only be ended. */
int cf_dense_wait(cf_dense *d, cf_err *err);
/* Its place; work that uses it waits for *ready (value 0: for nothing). */
cf_span cf_dense_use(cf_dense *d, cf_gpu_point *ready);
void cf_dense_submitted(cf_dense *d, cf_gpu_point point); /* everything recorded until now */
void cf_dense_collect(cf_dense *d); /* frees what the device is done with, asks for more */
void cf_dense_step_end(cf_dense *d, bool experts); /* the present use has ended */
/* All device work has been waited for. */
void cf_dense_end(cf_dense *d);

void cf_dense_get_stats(const cf_dense *d, cf_dense_stats *out);

#endif
