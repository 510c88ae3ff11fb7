/* Which dense weights are resident and which are streamed: a pure function of the model and of the
 * bytes that the device has for them.
 *
 * A dense matrix is used once a batch, whatever was chosen: each byte of it that is resident saves
 * a byte read per token. So as much as fits is resident, and beyond that only what the streamed
 * ones need to pass through: `n_segments` segments of device memory, each as large as the largest
 * of them. A matrix that enlarges the segments costs more streamed than resident: all above a size
 * are resident, some of the others too.
 *
 * Never streamed: vectors, weights that must be checked for being finite, an embedding, and what
 * several steps use. Thread-safety: pure functions. */
#ifndef CF_RUNTIME_DENSE_PLAN_H
#define CF_RUNTIME_DENSE_PLAN_H

#include "gpu/gpu.h"
#include "runtime/model.h"
#include "runtime/slots.h"

typedef struct cf_dense_plan {
    uint32_t n_streamed;     /* matrices; 0: all are resident, and the rest is 0 */
    uint64_t streamed_bytes; /* of them, as stored: what a batch reads */
    uint64_t resident_bytes; /* device bytes of the others, as packed */
    uint32_t n_segments;     /* 2: one is read while the other is computed on; 1: in turn */
    uint64_t segment_bytes;
    uint32_t n_stages; /* landing places of reads where they are copied to the segments */
    uint64_t stage_bytes;
    uint64_t device_bytes, host_bytes; /* of segments and stages */
    uint64_t largest, allowance;       /* for cf_dense_choose */
} cf_dense_plan;

/* Device bytes with all weights resident, and the fewest with which a model runs; *widest (may be
 * NULL): the largest matrix that is streamed then, CF_NO_WEIGHT when none can be. */
int cf_dense_bounds(const cf_model *model, const cf_slots_shape *shape, uint32_t align,
                    uint64_t max_alloc_bytes, uint64_t *all, uint64_t *least, cf_wid *widest,
                    cf_err *err);

/* The best for `budget` bytes of the device, at least the least. */
int cf_dense_plan_make(cf_dense_plan *out, const cf_model *model, const cf_slots_shape *shape,
                       uint32_t align, uint64_t max_alloc_bytes, uint64_t budget, cf_err *err);

/* streamed[i] (of model->n_weights): 1 when weight i is streamed. */
void cf_dense_choose(const cf_model *model, uint64_t largest, uint64_t allowance,
                     uint8_t *streamed);

/* Where the bytes of a streamed matrix are read to: in place, an aligned window around them;
 * elsewhere they alone, copied. */
uint64_t cf_dense_window_bytes(const cf_weight_def *w, bool in_place, uint32_t align);

#endif
