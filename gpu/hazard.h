/* The hazard tracker: who touches which bytes, and what orders it (checking runs only).
 *
 * Validation layers do not see accesses through buffer addresses, so the seam declares them here.
 * Two accesses that overlap, one of them a write, must be ordered:
 *   same stream    a barrier between them (submits do not matter), or the later batch waited for
 *                  work of the other stream that had waited for the earlier one
 *   other stream   the later batch, or one before it on its stream, waited for the earlier's point
 *   host           the host waited for the point, directly or through work that waited for it
 * A host wait orders everything after it. Within a batch this is checked when an op is recorded,
 * between batches when the later of the two is submitted (its waits are known then).
 * A host write into what an open batch reads is fine: the submit makes it visible.
 *
 * Threads: any; one mutex inside. Memory: grows to the most accesses in flight, then stays. */
#ifndef CF_GPU_HAZARD_H
#define CF_GPU_HAZARD_H

#include "gpu/gpu.h"

typedef struct cf_hazards cf_hazards;

/* Scattered writes go to places that only the device knows; the caller vouches that two of them
 * to one buffer without a barrier never meet. */
typedef enum { CF_ACCESS_READ, CF_ACCESS_WRITE, CF_ACCESS_SCATTER } cf_access;

/* `outer_n` times `n` runs of `bytes`, `outer_stride` and `stride` apart. n and outer_n >= 1. */
typedef struct cf_range {
    uint64_t off, bytes;
    uint64_t stride, outer_stride;
    uint32_t n, outer_n;
} cf_range;

static inline cf_range cf_range_plain(uint64_t off, uint64_t bytes)
{
    return (cf_range){off, bytes, 0, 0, 1, 1};
}

/* Do they share a byte? Exact, but for pairs of such irregular ranges that it would take long:
 * there, true. */
bool cf_range_overlap(const cf_range *a, const cf_range *b);

int cf_hazards_create(cf_hazards **out, cf_err *err);
void cf_hazards_destroy(cf_hazards **h); /* accepts NULL; leaves NULL */

/* Opens an op: the accesses that follow on this stream are its own and never conflict with each
 * other. `name`: static storage. */
void cf_hazards_op(cf_hazards *h, cf_stream stream, const char *name);
void cf_hazards_access(cf_hazards *h, cf_stream stream, const cf_gpu_buf *buf,
                       const cf_range *range, cf_access access);
void cf_hazards_barrier(cf_hazards *h, cf_stream stream);

/* The open batch got `value`; 0 = it was refused and will never run. */
void cf_hazards_submit(cf_hazards *h, cf_stream stream, const cf_gpu_point *waits, int n_waits,
                       uint64_t value);
void cf_hazards_waited(cf_hazards *h, cf_gpu_point point); /* the host knows it is reached */
void cf_hazards_host(cf_hazards *h, const cf_gpu_buf *buf, uint64_t off, uint64_t bytes,
                     bool write);
void cf_hazards_forget(cf_hazards *h, const cf_gpu_buf *buf); /* about to be destroyed */

/* What to do instead of printing the sentence and aborting. Called without the mutex. */
void cf_hazards_handler(cf_hazards *h, cf_hazard_fn *fn, void *user);

/* Accesses remembered now, over both streams (tests: pruning works). */
uint64_t cf_hazards_count(cf_hazards *h);

#endif
